//! HTTP towards a login host: bounded in time and size, no redirects, and every answer classified.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode, header};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::TOKEN_PATH;
use super::errors::{Failure, classify};
use crate::salesforce::{Origin, tls};

/// Longer than any real answer, and little to hold for a host that never stops sending.
const MAX_BODY: usize = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A clock that is further off is worth mentioning.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// What a login flow sends its requests with.
#[derive(Debug, Clone)]
pub(super) struct LoginHttp {
    client: reqwest::Client,
}

/// Whether an answer is judged with this machine's clock in mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// The request holds times of ours.
    Matters,
    /// It holds none.
    Irrelevant,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl LoginHttp {
    /// `login` decides whether a proxy of the environment is used: never towards this machine.
    pub(super) fn new(login: &Origin, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let roots = tls::roots(ca_file).map_err(|reason| {
            Failure::refused(
                format!("`salesforce.ca_file` cannot be used: {reason}"),
                "Set it to a PEM file of the CA certificate to trust, or remove it",
            )
        })?;
        let tls = tls::client_config(roots)
            .map_err(|error| Failure::passing(format!("no TLS: {error}")))?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION")));
        if login.is_loopback() {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|error| Failure::passing(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self { client })
    }

    /// Sends a token request; gives answers of status 200 that hold an access token, and a classified
    /// failure for all else.
    pub(super) async fn token_request(
        &self,
        clock: Clock,
        request: HttpRequest,
    ) -> Result<HttpResponse, Failure> {
        let (host, answer) = self.send(request).await?;
        if answer.status == StatusCode::OK && holds_access_token(&answer.body) {
            return Ok(HttpResponse::new(answer.body));
        }
        Err(refusal(&host, &answer, clock))
    }

    /// Asks a resource of the org with a bearer token; gives the JSON of an answer of status 200, and
    /// `None` where the org does not let this token see it.
    pub(super) async fn get_json(
        &self,
        request: HttpRequest,
    ) -> Result<Option<serde_json::Value>, Failure> {
        let (host, answer) = self.send(request).await?;
        match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body)
                .map(Some)
                .map_err(|_| not_json(&host, &answer)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(None),
            _ => Err(refusal(&host, &answer, Clock::Irrelevant)),
        }
    }

    /// By how many seconds this machine's clock is ahead of the login host's, below zero where it is
    /// behind, as the `Date` of an answer tells; `None` where it tells nothing.
    pub(super) async fn clock_ahead(&self, login: &Origin) -> Result<Option<i64>, Failure> {
        // Whatever the answer is: no host takes a sign-in by GET, but every one says what time it is.
        let request: HttpRequest = http::Request::get(format!("{login}{TOKEN_PATH}"))
            .body(Vec::new())
            .map_err(|error| Failure::passing(format!("no request: {error}")))?;
        let (_, answer) = self.send(request).await?;
        let ours = OffsetDateTime::from(SystemTime::now());
        Ok(date(&answer.headers).map(|theirs| (ours - theirs).whole_seconds()))
    }

    async fn send(&self, request: HttpRequest) -> Result<(String, Answer), Failure> {
        let request = reqwest::Request::try_from(request)
            .map_err(|error| Failure::passing(format!("no request: {}", chain(&error))))?;
        let host = request.url().host_str().unwrap_or_default().to_owned();
        // The URL is named by its host alone.
        let failed = |error: reqwest::Error| {
            let why = chain(&error.without_url());
            let cure = if why.contains("invalid peer certificate") {
                "; if a proxy or a test signs certificates of its own, name its CA in `salesforce.ca_file` \
                 (SALESFORCE_CA_FILE)"
            } else {
                ""
            };
            Failure::passing(format!("cannot reach {host}: {why}{cure}"))
        };
        let mut response = self.client.execute(request).await.map_err(failed)?;
        let mut answer = Answer {
            status: response.status(),
            headers: response.headers().clone(),
            body: Vec::new(),
        };
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.body.len() + chunk.len() > MAX_BODY {
                return Err(Failure::passing(format!(
                    "{host} answered with more than {MAX_BODY} bytes (HTTP {}): is `salesforce.login_url` right?",
                    answer.status.as_u16()
                )));
            }
            answer.body.extend_from_slice(&chunk);
        }
        Ok((host, answer))
    }
}

/// For the flows that the `oauth2` crate speaks; their requests hold no times.
impl<'c> AsyncHttpClient<'c> for LoginHttp {
    type Error = Failure;
    type Future = BoxFuture<'c, Result<HttpResponse, Failure>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.token_request(Clock::Irrelevant, request).boxed()
    }
}

fn holds_access_token(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
    }
    serde_json::from_slice::<Answer>(body).is_ok_and(|answer| !answer.access_token.is_empty())
}

/// What an answer without the thing asked for means.
fn refusal(host: &str, answer: &Answer, clock: Clock) -> Failure {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
        #[serde(default)]
        error_description: Option<String>,
    }
    let status = answer.status;
    if status.is_server_error() {
        return Failure::passing(format!("{host} answered HTTP {}", status.as_u16()));
    }
    if status.is_redirection() {
        return redirected(host, answer);
    }
    if let Ok(refusal) = serde_json::from_slice::<Refusal>(&answer.body) {
        let description = refusal.error_description.unwrap_or_default();
        // A request holds times where it is signed.
        let (signed, clock) = match clock {
            Clock::Matters => (true, clock_difference(&answer.headers, SystemTime::now())),
            Clock::Irrelevant => (false, None),
        };
        return classify(&refusal.error, &description, signed, clock);
    }
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            Failure::throttled(format!("{host} answered HTTP 429, too many requests"))
        }
        StatusCode::OK if serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body).is_ok() => {
            Failure::passing(format!("the answer of {host} holds no access token"))
        }
        _ => not_json(host, answer),
    }
}

fn redirected(host: &str, answer: &Answer) -> Failure {
    let target = answer
        .headers
        .get(header::LOCATION)
        .and_then(|location| location.to_str().ok())
        .and_then(|location| Origin::parse(location).ok());
    let (to, cure) = match target {
        Some(target) => (
            format!(" to {}", target.host()),
            format!(
                "Set `salesforce.login_url` (SALESFORCE_LOGIN_URL) to {target} if that is the org's login host"
            ),
        ),
        None => (
            String::new(),
            "Check `salesforce.login_url` (SALESFORCE_LOGIN_URL)".to_owned(),
        ),
    };
    Failure::refused(format!("{host} redirects{to}"), cure)
}

/// A web page or a text: of a proxy, of a host in trouble, or of one that is no login host at all.
fn not_json(host: &str, answer: &Answer) -> Failure {
    Failure::passing(format!(
        "{host} answered HTTP {} without JSON: is `salesforce.login_url` right, or does a proxy answer in its place?",
        answer.status.as_u16()
    ))
}

/// When the server sent an answer, by its own clock.
fn date(headers: &HeaderMap) -> Option<OffsetDateTime> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    OffsetDateTime::parse(date, &Rfc2822).ok()
}

/// A sentence on how far this machine's clock is from the server's, where that is more than a minute.
fn clock_difference(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    let theirs = SystemTime::from(date(headers)?);
    let (difference, direction) = match now.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    (difference > CLOCK_TOLERANCE).then(|| {
        let minutes = difference.as_secs() / 60;
        let length = match minutes {
            0..120 => format!("{minutes} min"),
            120..2880 => format!("{} h {} min", minutes / 60, minutes % 60),
            _ => format!("{} days", minutes / 1440),
        };
        format!("This machine's clock is {length} {direction} the login host's")
    })
}

/// An error's causes, innermost last, each once: libraries repeat them in their own text.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::AuthError;
    use super::super::errors::Kind;
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers
                .iter()
                .map(|(name, value)| {
                    (
                        header::HeaderName::from_static(name),
                        value.parse().unwrap(),
                    )
                })
                .collect(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn only_an_answer_in_json_can_refuse_a_login() {
        for (status, body, kind) in [
            (
                400,
                r#"{"error":"invalid_grant","error_description":"user is locked"}"#,
                Kind::Refused,
            ),
            (401, r#"{"error":"invalid_client"}"#, Kind::Refused),
            (400, "<html>maintenance</html>", Kind::Passing),
            (404, "", Kind::Passing),
            (200, "<html>captive portal</html>", Kind::Passing),
            (200, r#"{"scope":"api"}"#, Kind::Passing),
            (200, r#"{"access_token":""}"#, Kind::Passing),
            (503, r#"{"error":"invalid_grant"}"#, Kind::Passing),
            (429, "slow down", Kind::Throttled),
        ] {
            let failure = refusal(
                "login.example",
                &answer(status, &[], body),
                Clock::Irrelevant,
            );
            assert_eq!(failure.kind, kind, "{status} {body}");
            assert!(!failure.to_string().contains("<html>"));
        }
    }

    #[test]
    fn a_redirect_names_the_host_to_configure() {
        let answer = answer(
            302,
            &[("location", "https://acme.my.salesforce.com/login?x=secret")],
            "",
        );
        let AuthError::Refused { reason, cure } =
            refusal("old.example", &answer, Clock::Irrelevant).error
        else {
            panic!("not refused");
        };
        assert_eq!(reason, "old.example redirects to acme.my.salesforce.com");
        assert!(cure.contains("https://acme.my.salesforce.com") && !cure.contains("secret"));
    }

    #[test]
    fn a_clock_that_is_off_is_measured_against_the_date_header() {
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let headers = answer(400, &[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "").headers;
        let said = |now| clock_difference(&headers, now);
        assert_eq!(said(theirs), None);
        assert_eq!(said(theirs + Duration::from_secs(59)), None);
        assert_eq!(
            said(theirs + Duration::from_secs(3600)).unwrap(),
            "This machine's clock is 60 min ahead of the login host's"
        );
        assert_eq!(
            said(theirs - Duration::from_secs(9000)).unwrap(),
            "This machine's clock is 2 h 30 min behind the login host's"
        );
        assert_eq!(clock_difference(&HeaderMap::new(), theirs), None);
    }
}
