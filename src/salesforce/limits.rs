//! What is left of the org's allocations: the REST resource `limits` (REST API Developer Guide, "Limits").
//!
//! Its values are exact within five minutes, and only users with the permission View Setup and Configuration
//! may see them: who is not told does without.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::auth::TokenSource;
use super::{Origin, tls};
use crate::config::SalesforceConfig;

/// Any version that has the key does; old ones are not switched off for years.
const PATH: &str = "/services/data/v60.0/limits";

/// An org has some 70 limits in about 6 kB.
const MAX_BODY: usize = 256 * 1024;

const TIMEOUT: Duration = Duration::from_secs(10);

/// How many events the org may still be delivered, over all its subscribers, platform events and change events
/// together (facts, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deliveries {
    /// In 24 hours.
    pub max: u64,
    /// What is left of them.
    pub remaining: u64,
}

/// Why the org does not tell its limits. Texts for people, without anything of the answer's body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The user is not allowed to see them, or the org does not have them.
    #[error(
        "the org does not show its limits to this user (HTTP {0}): the permission \"View Setup and \
         Configuration\" would let it"
    )]
    NotShown(u16),
    /// It may work later.
    #[error("the org's limits could not be read: {0}")]
    Unavailable(String),
}

/// Asks the org for its limits. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    http: reqwest::Client,
    tokens: Arc<dyn TokenSource>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "DailyDeliveredPlatformEvents")]
    delivered: Option<Limit>,
}

#[derive(Deserialize)]
struct Limit {
    #[serde(rename = "Max")]
    max: i64,
    #[serde(rename = "Remaining")]
    remaining: i64,
}

impl Limits {
    /// Prepares the client; sends nothing.
    ///
    /// # Errors
    ///
    /// A `ca_file` that cannot be used.
    pub fn new(
        config: &SalesforceConfig,
        tokens: Arc<dyn TokenSource>,
    ) -> Result<Self, LimitsError> {
        let http = client(&config.login_url, config.ca_file.as_deref())?;
        Ok(Self { http, tokens })
    }

    /// What is left of the daily event deliveries. Takes ten seconds at most beside a sign-in; not tried again.
    ///
    /// # Errors
    ///
    /// [`LimitsError`], where the org does not say.
    pub async fn deliveries(&self) -> Result<Deliveries, LimitsError> {
        let unavailable = |why: &str| LimitsError::Unavailable(why.to_owned());
        let session = self
            .tokens
            .session()
            .await
            .map_err(|error| unavailable(&error.to_string()))?;
        let failed = |error: reqwest::Error| unavailable(&error.without_url().to_string());
        let mut response = self
            .http
            .get(format!("{}{PATH}", session.instance_url))
            .bearer_auth(session.access_token.expose_secret())
            .send()
            .await
            .map_err(failed)?;
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                return Err(LimitsError::NotShown(status.as_u16()));
            }
            // 401 included: whoever streams with this session will find out and sign in again.
            _ => return Err(unavailable(&format!("HTTP {}", status.as_u16()))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(unavailable("the answer is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| unavailable("the answer is not as expected"))?;
        let limit = answer
            .delivered
            .ok_or_else(|| unavailable("the answer does not name DailyDeliveredPlatformEvents"))?;
        // An org that has overspent may show less than nothing.
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        Ok(Deliveries {
            max: count(limit.max),
            remaining: count(limit.remaining),
        })
    }
}

fn client(login_url: &str, ca_file: Option<&Path>) -> Result<reqwest::Client, LimitsError> {
    let unavailable = LimitsError::Unavailable;
    let roots = tls::roots(ca_file).map_err(unavailable)?;
    let tls = tls::client_config(roots).map_err(|error| unavailable(error.to_string()))?;
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        // The bearer token goes to the org's own host and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION")));
    if Origin::parse(login_url).is_ok_and(|login| login.is_loopback()) {
        builder = builder.no_proxy();
    }
    builder
        .build()
        .map_err(|error| unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthConfig;
    use crate::emulator::{
        DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Emulator, EmulatorConfig, LimitsShown,
    };
    use crate::salesforce::auth::Authenticator;

    async fn setup() -> (Emulator, Limits) {
        let org = Emulator::start(EmulatorConfig::default()).await.unwrap();
        let auth = AuthConfig::ClientCredentials {
            client_id: DEFAULT_CLIENT_ID.to_owned(),
            client_secret: DEFAULT_CLIENT_SECRET.into(),
        };
        let config = SalesforceConfig::new(org.login_url(), auth);
        let tokens = Arc::new(Authenticator::new(&config, None).unwrap());
        let limits = Limits::new(&config, tokens).unwrap();
        (org, limits)
    }

    #[tokio::test]
    async fn the_org_tells_what_is_left_of_its_deliveries() {
        let (org, limits) = setup().await;
        let left = |max, remaining| Ok(Deliveries { max, remaining });
        assert_eq!(limits.deliveries().await, left(50_000, 50_000));
        org.change_settings(|settings| settings.delivery_limit = Some(10_000));
        assert_eq!(limits.deliveries().await, left(10_000, 10_000));
        org.stop().await;
    }

    #[tokio::test]
    async fn an_org_that_does_not_tell_is_told_from_one_that_cannot_now() {
        let (org, limits) = setup().await;
        for (shown, status) in [(LimitsShown::Forbidden, 403), (LimitsShown::Missing, 404)] {
            org.change_settings(|settings| settings.limits = shown);
            assert_eq!(
                limits.deliveries().await,
                Err(LimitsError::NotShown(status))
            );
        }
        org.expire_tokens();
        let error = limits.deliveries().await.unwrap_err();
        assert!(error.to_string().contains("HTTP 401"), "{error}");
        org.stop().await;
        let error = limits.deliveries().await.unwrap_err();
        assert!(matches!(error, LimitsError::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("http://"), "{error}");
    }
}
