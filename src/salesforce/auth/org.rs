//! From a token endpoint's answer to a session: which org it is, and where.

use std::time::Instant;

use http::header;
use oauth2::basic::BasicTokenType;
use oauth2::{ExtraTokenFields, HttpRequest, StandardTokenResponse, TokenResponse};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::Session;
use super::errors::Failure;
use super::http::LoginHttp;
use crate::event::OrgId;
use crate::salesforce::Origin;

/// What Salesforce adds to the answer of a token endpoint (facts 8.1 to 8.3). `issued_at` is left out:
/// sources disagree on its unit, and this process notes when it received the token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OrgFields {
    #[serde(default)]
    instance_url: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

impl ExtraTokenFields for OrgFields {}

/// A token endpoint's answer.
pub(super) type TokenAnswer = StandardTokenResponse<OrgFields, BasicTokenType>;

/// The session that an answer grants.
pub(super) async fn session(http: &LoginHttp, answer: &TokenAnswer) -> Result<Session, Failure> {
    let token = answer.access_token().secret();
    let fields = answer.extra_fields();
    let instance = fields
        .instance_url
        .as_deref()
        .filter(|url| !url.trim().is_empty())
        .ok_or_else(|| {
            Failure::refused(
                "the login host's answer names no instance_url",
                "Set `salesforce.login_url` (SALESFORCE_LOGIN_URL) to https://login.salesforce.com, \
                 https://test.salesforce.com or the org's My Domain, rather than to a site or a proxy",
            )
        })?;
    let instance = Origin::parse(instance).map_err(|error| {
        Failure::refused(
            format!("the instance_url of the login host's answer {error}"),
            "Check `salesforce.login_url` (SALESFORCE_LOGIN_URL): this answer is not Salesforce's",
        )
    })?;
    let known = fields.id.as_deref().and_then(org_of_identity);
    let scopes = answer.scopes().map(|scopes| {
        let names = scopes.iter().map(|scope| scope.as_str().to_owned());
        names.collect()
    });
    Ok(Session {
        scopes,
        ..build(http, token, instance, known).await?
    })
}

/// A session of a token in hand. The org is `known`, else named by the token, else asked for.
pub(super) async fn build(
    http: &LoginHttp,
    token: &str,
    instance: Origin,
    known: Option<OrgId>,
) -> Result<Session, Failure> {
    check_format(token)?;
    let org_id = match known.or_else(|| org_of_token(token)) {
        Some(org_id) => org_id,
        None => ask_org(http, token, &instance).await?,
    };
    Ok(Session {
        access_token: SecretString::from(token),
        instance_url: instance.as_str().to_owned(),
        org_id,
        scopes: None,
        obtained_at: Instant::now(),
    })
}

/// The Pub/Sub API takes opaque tokens only (facts section 0, 16), and anything but visible ASCII cannot
/// be sent as metadata.
pub(super) fn check_format(token: &str) -> Result<(), Failure> {
    if token.starts_with("eyJ") && token.split('.').count() == 3 {
        return Err(Failure::refused(
            "the access token is a JSON Web Token, which the Pub/Sub API does not accept",
            "In Setup > External Client App Manager > the app > Settings > OAuth Settings, turn off \"Issue JSON Web \
             Token (JWT)-based access tokens for named users\"",
        ));
    }
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::refused(
            "the access token is blank or holds characters that no access token has",
            "Set `salesforce.access_token` (SALESFORCE_ACCESS_TOKEN) to the token alone, without quotes or line ends",
        ));
    }
    Ok(())
}

/// The org in an identity URL: the part before the last, `https://<host>/id/<org>/<user>` (facts 8.5).
fn org_of_identity(url: &str) -> Option<OrgId> {
    let mut parts = url.trim_end_matches('/').rsplit('/');
    let _user = parts.next()?;
    OrgId::parse(parts.next()?).ok()
}

/// The org in an opaque token or session ID: the text before `!` (facts 8.5).
fn org_of_token(token: &str) -> Option<OrgId> {
    OrgId::parse(token.split_once('!')?.0).ok()
}

/// Asks the org's userinfo endpoint (facts 8.5).
async fn ask_org(http: &LoginHttp, token: &str, instance: &Origin) -> Result<OrgId, Failure> {
    let unknown = || {
        Failure::refused(
            "the org's ID is neither in the login host's answer nor in the token, and the org does not tell it",
            "Add the scope \"Access the identity URL service (id, profile, email, address, phone)\" to the app, or set \
             `salesforce.org_id` (SALESFORCE_ORG_ID) beside a ready access token",
        )
    };
    let request: HttpRequest = http::Request::get(format!("{instance}/services/oauth2/userinfo"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|_| unknown())?;
    let answer = http.get_json(request).await?.ok_or_else(unknown)?;
    answer
        .get("organization_id")
        .and_then(|id| OrgId::parse(id.as_str()?).ok())
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_org_is_found_in_the_identity_url_or_in_the_token() {
        let org = Some("00D58000000arpqEAA");
        for url in [
            "https://login.salesforce.com/id/00D58000000arpqEAA/00558000000x",
            "https://acme.my.salesforce.com/id/00D58000000arpq/00558000000x/",
        ] {
            assert_eq!(org_of_identity(url).as_ref().map(OrgId::as_str), org);
        }
        assert_eq!(org_of_identity("https://login.salesforce.com"), None);
        let of_token = org_of_token("00D58000000arpq!AQ0AQ");
        assert_eq!(of_token.as_ref().map(OrgId::as_str), org);
        assert_eq!(org_of_token("opaque"), None);
    }

    #[test]
    fn tokens_that_the_pubsub_api_refuses_are_named_before_it_does() {
        assert!(check_format("00D58000000arpq!AQ0.x.y").is_ok());
        let jwt = check_format("eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl").unwrap_err();
        assert!(jwt.to_string().contains("JSON Web Token (JWT)"), "{jwt}");
        for token in ["", "00D!a b", "00D!ä", "00D!a\n"] {
            assert!(check_format(token).is_err());
        }
    }
}
