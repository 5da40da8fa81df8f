//! The JWT bearer flow (facts 8.1): a signed assertion for an access token; no secret, no refresh token.

use std::time::{Duration, SystemTime};

use http::header;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use oauth2::HttpRequest;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::errors::Failure;
use super::http::{Clock, LoginHttp};
use super::org::TokenAnswer;
use super::{TOKEN_PATH, key};
use crate::salesforce::Origin;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// The server's cap is 3 or 5 minutes, depending on whom one believes (facts 8.1).
const VALIDITY: Duration = Duration::from_secs(180);

pub(super) struct Jwt {
    login: Origin,
    client_id: String,
    username: String,
    audience: String,
    key: EncodingKey,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    /// Seconds since 1970.
    exp: u64,
}

impl Jwt {
    pub(super) fn new(
        login: Origin,
        client_id: &str,
        username: &str,
        private_key: &SecretString,
        audience: Option<&str>,
    ) -> Result<Self, Failure> {
        let key = key::parse(private_key.expose_secret()).map_err(|error| {
            Failure::refused(
                format!("`salesforce.private_key` cannot be used: {error}"),
                "Set `salesforce.private_key` (SALESFORCE_PRIVATE_KEY) or `private_key_file` to the RSA private \
                 key whose certificate is uploaded to the app",
            )
        })?;
        let audience = audience.map_or_else(|| default_audience(&login), str::to_owned);
        Ok(Self {
            login,
            client_id: client_id.to_owned(),
            username: username.to_owned(),
            audience,
            key,
        })
    }

    pub(super) async fn grant(&self, http: &LoginHttp) -> Result<TokenAnswer, Failure> {
        let request = self.request(SystemTime::now())?;
        let response = http.token_request(Clock::Matters, request).await?;
        // The parser's own words could repeat the token.
        serde_json::from_slice(response.body()).map_err(|_| {
            Failure::passing(format!(
                "the answer of {} is not that of a token endpoint",
                self.login.host()
            ))
        })
    }

    fn request(&self, now: SystemTime) -> Result<HttpRequest, Failure> {
        let assertion = self.assertion(now)?;
        // Neither part needs escaping: colons may stand in a form's value, and an assertion is base64url
        // and dots.
        let body = format!("grant_type={GRANT_TYPE}&assertion={assertion}");
        http::Request::post(format!("{}{TOKEN_PATH}", self.login))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(body.into_bytes())
            .map_err(|error| Failure::passing(error.to_string()))
    }

    fn assertion(&self, now: SystemTime) -> Result<String, Failure> {
        let claims = Claims {
            iss: &self.client_id,
            sub: &self.username,
            aud: &self.audience,
            exp: (now + VALIDITY)
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key)
            .map_err(|error| Failure::passing(format!("the assertion cannot be signed: {error}")))
    }
}

/// Salesforce names itself by its login hosts; whether a My Domain is accepted is not documented
/// (facts 8.1), so a My Domain's audience is the login host of its kind of org.
fn default_audience(login: &Origin) -> String {
    let Some(domain) = login.host().strip_suffix(".my.salesforce.com") else {
        return login.as_str().to_owned();
    };
    let sandbox =
        domain.contains("--") || domain.ends_with(".sandbox") || domain.ends_with(".scratch");
    if sandbox {
        "https://test.salesforce.com".to_owned()
    } else {
        "https://login.salesforce.com".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::super::testing::key_pair;
    use super::*;

    #[test]
    fn the_audience_is_the_login_host_of_the_org_s_kind() {
        for (login, audience) in [
            (
                "https://login.salesforce.com",
                "https://login.salesforce.com",
            ),
            (
                "https://test.salesforce.com/",
                "https://test.salesforce.com",
            ),
            (
                "https://acme.my.salesforce.com",
                "https://login.salesforce.com",
            ),
            (
                "https://acme.develop.my.salesforce.com",
                "https://login.salesforce.com",
            ),
            (
                "https://acme--uat.sandbox.my.salesforce.com",
                "https://test.salesforce.com",
            ),
            (
                "https://acme--uat.my.salesforce.com",
                "https://test.salesforce.com",
            ),
            (
                "https://x.scratch.my.salesforce.com",
                "https://test.salesforce.com",
            ),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ] {
            assert_eq!(default_audience(&Origin::parse(login).unwrap()), audience);
        }
    }

    #[test]
    fn the_assertion_is_signed_and_lives_for_three_minutes() {
        let keys = key_pair();
        let jwt = Jwt::new(
            Origin::parse("https://login.salesforce.com").unwrap(),
            "consumer",
            "user@example.com",
            &SecretString::from(keys.private_pem.as_str()),
            None,
        )
        .unwrap();
        let now = SystemTime::now();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&["https://login.salesforce.com"]);
        let token = jsonwebtoken::decode::<Value>(
            jwt.assertion(now).unwrap(),
            &DecodingKey::from_rsa_der(&keys.public_der),
            &validation,
        )
        .unwrap();
        assert_eq!(token.claims["iss"], "consumer");
        assert_eq!(token.claims["sub"], "user@example.com");
        let exp = token.claims["exp"].as_u64().unwrap();
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert_eq!(exp - now, 180);
    }
}
