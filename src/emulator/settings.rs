//! How the org behaves where real ones differ or where a test wants it otherwise: switches that can be
//! changed while it runs.

use serde::{Deserialize, Serialize};

/// How a stream ends that was left without credits for too long (facts 3.3 leaves it open).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleClose {
    /// A clean end with status OK.
    End,
    /// An error without a code, by the number of its gRPC status.
    Status(i32),
}

/// What an unknown topic is answered with; real orgs do either (facts 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTopic {
    /// NOT_FOUND.
    NotFound,
    /// PERMISSION_DENIED.
    PermissionDenied,
}

/// When a stream sends its response headers, which facts 2.2 leave open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadersSent {
    /// As soon as the call arrives.
    AtOnce,
    /// When the first FetchRequest was read and accepted; a refusal then comes without headers.
    AfterRequest,
    /// With the first response. A client that waits for headers waits for an event or a keepalive.
    WithFirstResponse,
}

/// The form of access tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenFormat {
    /// `00D…!…`, the form the Pub/Sub API accepts.
    Opaque,
    /// A JWT, as an app with that option issues; the Pub/Sub API refuses it (facts 8.4).
    Jwt,
}

/// Whether the user may see the org's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsShown {
    /// 200, with what is left.
    Yes,
    /// 403, as for a user without View Setup and Configuration.
    Forbidden,
    /// 404.
    Missing,
}

/// The switches, all with a default. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Silence after which a stream with credits gets an empty response: 120 s, as observed; the
    /// contract allows 270 s.
    pub keepalive_ms: u64,
    /// How long a stream without credits stays open after its last response, or after its start where
    /// the first FetchRequest never comes: 60 s.
    pub idle_close_ms: u64,
    /// How it then ends.
    pub idle_close: IdleClose,
    /// Most events in one response; none means as many as credits and bytes allow.
    pub events_per_response: Option<u32>,
    /// Most payload bytes in one response: 3 MB. One event is always sent, whatever its size.
    pub max_response_bytes: usize,
    /// When a stream sends its response headers.
    pub headers: HeadersSent,
    /// End a response between events that share a replay ID, even where credits are left.
    pub split_siblings: bool,
    /// What an unknown topic is answered with.
    pub unknown_topic: UnknownTopic,
    /// Topics that the user may not subscribe to: `can_subscribe` is false and Subscribe is refused.
    pub denied_topics: Vec<String>,
    /// Events that may be delivered, over all streams, before `subscription.limit.exceeded`; counted
    /// from the start or the last reset of the count.
    pub delivery_limit: Option<u64>,
    /// How `GET /services/data/v…/limits` is answered. Its daily deliveries are `delivery_limit`, else 50,000.
    pub limits: LimitsShown,
    /// How long a PublishStream may go without events: 70 s.
    pub publish_stream_idle_ms: u64,
    /// Revoking a token also ends the streams it opened. Expiry never does.
    pub revoke_ends_streams: bool,
    /// A used refresh token is replaced; using it again revokes its successors.
    pub rotate_refresh_tokens: bool,
    /// How long an access token lives without being used; none means until it is expired by hand.
    pub token_lifetime_ms: Option<u64>,
    /// The form of access tokens.
    pub token_format: TokenFormat,
    /// The identity URL of a sign-in holds the org's ID in 15 characters instead of 18; both are seen.
    pub short_org_id: bool,
    /// The scopes that a token response says were granted.
    pub token_scope: String,
    /// Fields left out of token responses, for example `instance_url`.
    pub omit_token_fields: Vec<String>,
    /// Further accepted audiences of a JWT; its own login URL is always accepted.
    pub audiences: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keepalive_ms: 120_000,
            idle_close_ms: 60_000,
            idle_close: IdleClose::End,
            events_per_response: None,
            max_response_bytes: 3_000_000,
            headers: HeadersSent::AtOnce,
            split_siblings: false,
            unknown_topic: UnknownTopic::NotFound,
            denied_topics: Vec::new(),
            delivery_limit: None,
            limits: LimitsShown::Yes,
            publish_stream_idle_ms: 70_000,
            revoke_ends_streams: false,
            rotate_refresh_tokens: false,
            token_lifetime_ms: None,
            token_format: TokenFormat::Opaque,
            short_org_id: false,
            token_scope: "api openid refresh_token".to_owned(),
            omit_token_fields: Vec::new(),
            audiences: vec![
                "https://login.salesforce.com".to_owned(),
                "https://test.salesforce.com".to_owned(),
            ],
        }
    }
}

impl Settings {
    /// These settings with the members of a JSON object put over them. An unknown name or a value of
    /// the wrong type is an error that says which.
    pub fn with(&self, changes: &serde_json::Value) -> Result<Self, serde_json::Error> {
        let changes = serde_json::Map::deserialize(changes)?;
        let mut merged = serde_json::to_value(self)?;
        if let Some(merged) = merged.as_object_mut() {
            merged.extend(changes);
        }
        serde_json::from_value(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_leave_the_other_settings_alone_and_unknown_names_are_refused() {
        let settings = Settings {
            keepalive_ms: 50,
            ..Settings::default()
        };
        let changed = settings
            .with(&serde_json::json!({"events_per_response": 3, "idle_close": {"status": 13}}))
            .unwrap();
        assert_eq!(changed.keepalive_ms, 50);
        assert_eq!(changed.events_per_response, Some(3));
        assert_eq!(changed.idle_close, IdleClose::Status(13));
        assert!(settings.with(&serde_json::json!({"keepalive": 1})).is_err());
        assert!(settings.with(&serde_json::json!([])).is_err());
    }
}
