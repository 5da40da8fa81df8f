//! The org's token service (facts section 8).

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::config::App;
use super::errors::Call;
use super::faults::{Fault, FaultKind};
use super::org::{Org, SharedOrg};
use super::settings::TokenFormat;
use super::tokens::TokenState;

/// ID of the user whom every sign-in is.
pub(super) const USER_ID: &str = "0055g000004emu1AAA";

/// `exp` of a JWT may lie this far ahead: five minutes, and some slack for clocks (facts 8.1).
const MAX_EXPIRY_AHEAD_S: i64 = 310;

const JWT_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// A refused sign-in: `error` and `error_description`, with the HTTP status they come with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: String,
    description: String,
}

impl Refusal {
    fn new(error: &str, description: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error: error.to_owned(),
            description: description.to_owned(),
        }
    }

    fn grant(description: &str) -> Self {
        Self::new("invalid_grant", description)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"error": self.error, "error_description": self.description});
        (self.status, axum::Json(body)).into_response()
    }
}

/// A sign-in that succeeded.
struct Grant {
    username: String,
    access_token: String,
    refresh_token: Option<String>,
}

/// The routes of the login host.
pub(super) fn router(org: SharedOrg) -> Router {
    Router::new()
        .route("/services/oauth2/token", post(token))
        .route("/services/oauth2/userinfo", get(userinfo).post(userinfo))
        .route("/services/oauth2/revoke", post(revoke))
        .layer(map_response_with_state(org.clone(), dated))
        .with_state(org)
}

/// Answers tell the time by the org's clock, so that a client can see how far its own is off.
async fn dated(State(org): State<SharedOrg>, mut response: Response) -> Response {
    let now = OffsetDateTime::from(org.clock.now());
    if let Ok(date) = now.format(&Rfc2822)
        && let Ok(date) = HeaderValue::from_str(&date.replace("+0000", "GMT"))
    {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

async fn token(State(org): State<SharedOrg>, headers: HeaderMap, body: String) -> Response {
    let _ = org.ticket(Call::Token);
    let fault = org.state().faults.at_call(Call::Token, None);
    if let Some(fault) = fault
        && let Some(answer) = meet(&org, &fault).await
    {
        return answer;
    }
    match sign_in(&org, &headers, &form(&body)) {
        Ok(grant) => success(&org, grant),
        Err(refusal) => refusal.into_response(),
    }
}

fn form(body: &str) -> HashMap<String, String> {
    form_urlencoded::parse(body.as_bytes())
        .into_owned()
        .collect()
}

/// What a fault makes of a sign-in; nothing where it goes on after all.
async fn meet(org: &Org, fault: &Fault) -> Option<Response> {
    let status = fault
        .status
        .and_then(|status| u16::try_from(status).ok())
        .and_then(|status| StatusCode::from_u16(status).ok());
    match fault.kind {
        FaultKind::Delay => {
            tokio::time::sleep(fault.delay()).await;
            None
        }
        FaultKind::Hang | FaultKind::Silence | FaultKind::HalfOpen => std::future::pending().await,
        FaultKind::Reset | FaultKind::Disconnect | FaultKind::End => {
            let cut = tokio_stream::once(Err::<bytes::Bytes, _>(std::io::Error::other("cut off")));
            Some(Body::from_stream(cut).into_response())
        }
        FaultKind::ExpiredToken => {
            org.state().tokens.expire_all();
            Some(Refusal::grant("expired access/refresh token").into_response())
        }
        FaultKind::CorruptPayload => Some(html(StatusCode::OK)),
        _ => match status {
            Some(status) if status.is_server_error() => Some(html(status)),
            _ => {
                let error = fault.code.as_deref().unwrap_or("invalid_grant");
                let description = fault.message.as_deref();
                let refusal = Refusal {
                    status: status.unwrap_or(StatusCode::BAD_REQUEST),
                    ..Refusal::new(error, description.unwrap_or("authentication failure"))
                };
                Some(refusal.into_response())
            }
        },
    }
}

fn html(status: StatusCode) -> Response {
    let body = "<html><body>We are down for maintenance.</body></html>";
    (status, [(header::CONTENT_TYPE, "text/html")], body).into_response()
}

fn sign_in(
    org: &Org,
    headers: &HeaderMap,
    form: &HashMap<String, String>,
) -> Result<Grant, Refusal> {
    match form.get("grant_type").map(String::as_str) {
        Some(JWT_GRANT) => jwt_bearer(org, form),
        Some("client_credentials") => client_credentials(org, headers, form),
        Some("refresh_token") => refresh_token(org, headers, form),
        Some(_) => Err(Refusal::new(
            "unsupported_grant_type",
            "grant type not supported",
        )),
        None => Err(Refusal::new("invalid_request", "grant type is missing")),
    }
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Value,
    exp: f64,
}

/// JWT bearer flow: the signature against the app's keys, then audience, expiry and user (facts 8.1).
fn jwt_bearer(org: &Org, form: &HashMap<String, String>) -> Result<Grant, Refusal> {
    let invalid = || Refusal::grant("invalid assertion");
    let assertion = form.get("assertion").ok_or_else(invalid)?;
    let claims = unverified_claims(assertion).ok_or_else(invalid)?;
    let app = find_app(org, &claims.iss)?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let signed = app.public_keys.iter().any(|pem| {
        DecodingKey::from_rsa_pem(pem.as_bytes()).is_ok_and(|key| {
            jsonwebtoken::decode::<Value>(assertion.as_bytes(), &key, &validation).is_ok()
        })
    });
    if !signed {
        return Err(invalid());
    }
    let audience_ok = {
        let state = org.state();
        let accepted = |aud: &str| {
            let aud = aud.trim_end_matches('/');
            aud == org.login_url
                || aud == org.instance_url
                || state.settings.audiences.iter().any(|known| known == aud)
        };
        match &claims.aud {
            Value::String(aud) => accepted(aud),
            Value::Array(auds) => auds.iter().filter_map(Value::as_str).any(accepted),
            _ => false,
        }
    };
    if !audience_ok {
        return Err(Refusal::grant("audience validation failed"));
    }
    // Seconds: milliseconds lie far beyond the limit, which is how the platform refuses them.
    let ahead = claims.exp - (org.clock.now_ms() / 1000) as f64;
    if !(ahead > 0.0 && ahead <= MAX_EXPIRY_AHEAD_S as f64) {
        return Err(Refusal::grant("expired authorization code"));
    }
    if !app.usernames.contains(&claims.sub) {
        return Err(Refusal::grant("user hasn't approved this consumer"));
    }
    Ok(issue(org, &claims.sub))
}

fn unverified_claims(assertion: &str) -> Option<Claims> {
    let claims = assertion.split('.').nth(1)?;
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

fn find_app<'a>(org: &'a Org, client_id: &str) -> Result<&'a App, Refusal> {
    org.apps
        .iter()
        .find(|app| app.client_id == client_id)
        .ok_or_else(|| Refusal::new("invalid_client_id", "client identifier invalid"))
}

/// Client ID and secret from the form, or from HTTP Basic.
fn client(headers: &HeaderMap, form: &HashMap<String, String>) -> (String, Option<SecretString>) {
    let basic = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|value| BASE64_STANDARD.decode(value).ok())
        .and_then(|value| String::from_utf8(value).ok());
    if let Some((id, secret)) = basic.as_deref().and_then(|basic| basic.split_once(':')) {
        // RFC 6749 has both form-encoded before they are joined.
        let decode = |text: &str| {
            form_urlencoded::parse(format!("v={text}").as_bytes())
                .next()
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        return (decode(id), Some(SecretString::from(decode(secret))));
    }
    let secret = form.get("client_secret");
    (
        form.get("client_id").cloned().unwrap_or_default(),
        secret.map(|secret| SecretString::from(secret.as_str())),
    )
}

fn check_secret(app: &App, given: Option<&SecretString>) -> Result<(), Refusal> {
    match (&app.client_secret, given) {
        (Some(secret), Some(given)) if secret.expose_secret() == given.expose_secret() => Ok(()),
        _ => Err(Refusal::new("invalid_client", "invalid client credentials")),
    }
}

fn client_credentials(
    org: &Org,
    headers: &HeaderMap,
    form: &HashMap<String, String>,
) -> Result<Grant, Refusal> {
    let (client_id, secret) = client(headers, form);
    let app = find_app(org, &client_id)?;
    check_secret(app, secret.as_ref())?;
    let username = app.usernames.first().ok_or_else(|| {
        Refusal::new(
            "invalid_app_access",
            "user is not admin approved to access this app",
        )
    })?;
    Ok(issue(org, username))
}

fn refresh_token(
    org: &Org,
    headers: &HeaderMap,
    form: &HashMap<String, String>,
) -> Result<Grant, Refusal> {
    let (client_id, secret) = client(headers, form);
    let app = find_app(org, &client_id)?;
    let may_be_left_out = app.client_secret.is_none() || app.secret_not_required_for_refresh;
    if secret.is_some() || !may_be_left_out {
        check_secret(app, secret.as_ref())?;
    }
    let token = form
        .get("refresh_token")
        .ok_or_else(|| Refusal::new("invalid_request", "refresh token is missing"))?;
    let now = org.clock.now();
    let refreshed = org.change(|state| {
        let rotate = state.settings.rotate_refresh_tokens;
        let format = state.settings.token_format;
        state
            .tokens
            .refresh(token, &client_id, rotate, now, || new_token(org, format))
    });
    let refreshed = refreshed.map_err(|_| Refusal::grant("expired access/refresh token"))?;
    Ok(Grant {
        username: refreshed.username,
        access_token: refreshed.access_token,
        refresh_token: refreshed.refresh_token,
    })
}

/// A live access token for a user.
fn issue(org: &Org, username: &str) -> Grant {
    let now = org.clock.now();
    let mut state = org.state();
    let access_token = new_token(org, state.settings.token_format);
    let family = state.tokens.new_family();
    state.tokens.admit(&access_token, username, family, now);
    Grant {
        username: username.to_owned(),
        access_token,
        refresh_token: None,
    }
}

/// A live access token for the first app's first user, for tests that sign in by hand.
pub(super) fn issue_token(org: &Org) -> String {
    let username = org.apps.first().and_then(|app| app.usernames.first());
    issue(org, username.map_or("", String::as_str)).access_token
}

/// A new token's text: opaque ones begin with the first 15 characters of the org's ID.
pub(super) fn new_token(org: &Org, format: TokenFormat) -> String {
    let random = random_text();
    match format {
        TokenFormat::Opaque => {
            let org_id = org.id.as_str().get(..15).unwrap_or_default();
            format!("{org_id}!AQ{random}")
        }
        TokenFormat::Jwt => {
            let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            let header = part(json!({"alg": "RS256", "typ": "JWT", "tty": "sfdc-core-token"}));
            // Three parts, whatever the signature is made of.
            let signature = random.replace('.', "_");
            format!("{header}.{}.{signature}", part(json!({"sub": USER_ID})))
        }
    }
}

fn random_text() -> String {
    let mut bytes = [0; 48];
    // Where the system has no randomness a guessable token still serves: nothing real is behind it.
    let _ = SystemRandom::new().fill(&mut bytes);
    BASE64_URL_SAFE_NO_PAD.encode(bytes).replace('-', ".")
}

fn success(org: &Org, grant: Grant) -> Response {
    let length = if org.state().settings.short_org_id {
        15
    } else {
        18
    };
    let org_id = org.id.as_str().get(..length).unwrap_or_default();
    let mut body = json!({
        "access_token": grant.access_token,
        "signature": BASE64_STANDARD.encode(random_text()),
        "scope": org.state().settings.token_scope.clone(),
        "instance_url": org.instance_url,
        "id": format!("{}/id/{org_id}/{USER_ID}", org.login_url),
        "token_type": "Bearer",
        // Epoch milliseconds as text, whatever old pages say (facts 8.4).
        "issued_at": org.clock.now_ms().to_string(),
    });
    if let Some(fields) = body.as_object_mut() {
        if let Some(token) = grant.refresh_token {
            fields.insert("refresh_token".to_owned(), json!(token));
        }
        for name in &org.state().settings.omit_token_fields {
            fields.remove(name);
        }
    }
    tracing::debug!(username = grant.username, "emulator: signed in");
    axum::Json(body).into_response()
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

async fn userinfo(State(org): State<SharedOrg>, headers: HeaderMap) -> Response {
    let Some(token) = bearer(&headers) else {
        return (StatusCode::FORBIDDEN, "Missing_OAuth_Token").into_response();
    };
    if org.use_token(token) != TokenState::Live {
        return (StatusCode::FORBIDDEN, "Bad_OAuth_Token").into_response();
    }
    let username = org
        .state()
        .tokens
        .username(token)
        .unwrap_or_default()
        .to_owned();
    let body = json!({
        "sub": format!("{}/id/{}/{USER_ID}", org.login_url, org.id),
        "user_id": USER_ID,
        "organization_id": org.id.as_str(),
        "preferred_username": username,
        "nickname": "integration",
        "name": "Integration User",
        "email": username,
        "user_type": "STANDARD",
        "language": "en_US",
        "locale": "en_US",
        "urls": {"custom_domain": org.instance_url},
    });
    axum::Json(body).into_response()
}

async fn revoke(State(org): State<Arc<Org>>, body: String) -> Response {
    let form = form(&body);
    let Some(token) = form.get("token") else {
        return Refusal::new("invalid_request", "token is missing").into_response();
    };
    if org.change(|state| state.tokens.revoke(token)) {
        StatusCode::OK.into_response()
    } else {
        Refusal::new("invalid_token", "invalid token").into_response()
    }
}
