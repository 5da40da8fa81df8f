//! The configuration as plain values. Each part is given the section it needs, not the whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::event::{ReplayId, Topic};

/// Everything a user can say.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to sign in, and where the Pub/Sub API is.
    pub salesforce: SalesforceConfig,
    /// Where positions are kept.
    pub store: StoreConfig,
    /// At least one.
    pub subscriptions: Vec<SubscriptionConfig>,
    /// Where to serve Prometheus metrics; `ORGSTREAM_METRICS_ADDR`.
    pub metrics_addr: Option<std::net::SocketAddr>,
    /// Folder of schemas to look in before asking the org.
    pub schemas_dir: PathBuf,
}

/// The `[salesforce]` section.
#[derive(Debug, Clone)]
pub struct SalesforceConfig {
    /// Login host, or the org's My Domain.
    pub login_url: String,
    /// How to sign in.
    pub auth: AuthConfig,
    /// Pub/Sub API endpoint.
    pub pubsub_endpoint: String,
    /// One more trusted CA, as a PEM file.
    pub ca_file: Option<PathBuf>,
    /// A stream that is silent for longer is dead; 300 s.
    pub silence_limit: Duration,
    /// How often HTTP/2 pings look for a dead connection; 30 s.
    pub ping_interval: Duration,
    /// How long a ping may stay unanswered; 10 s.
    pub ping_timeout: Duration,
    /// How old an access token may grow before it is renewed ahead of time; 60 min.
    pub token_max_age: Duration,
    /// Back-off between connection attempts.
    pub reconnect: BackoffConfig,
    /// How often an error that an administrator may mend is tried again: between a minute and five.
    pub blocked_retry: BackoffConfig,
    /// How long a stream stays away after the org's delivery allocation was used up; 15 to 60 min.
    pub allocation_retry: BackoffConfig,
}

/// How to sign in.
#[derive(Debug, Clone)]
pub enum AuthConfig {
    /// JWT bearer flow.
    Jwt {
        /// Consumer key.
        client_id: String,
        /// User name, not user ID.
        username: String,
        /// RSA private key, PEM text.
        private_key: SecretString,
        /// `aud`, where it is not the login URL.
        audience: Option<String>,
    },
    /// Client credentials flow.
    ClientCredentials {
        /// Consumer key.
        client_id: String,
        /// Consumer secret.
        client_secret: SecretString,
    },
    /// Refresh token flow.
    RefreshToken {
        /// Consumer key.
        client_id: String,
        /// Consumer secret, unless the app needs none.
        client_secret: Option<SecretString>,
        /// The first refresh token; a rotated one in the store comes before it.
        refresh_token: SecretString,
    },
    /// A ready access token.
    AccessToken {
        /// The token.
        access_token: SecretString,
        /// Scheme and host of the org.
        instance_url: String,
        /// Org ID; else taken from the token or asked for.
        org_id: Option<String>,
    },
}

/// The `[store]` section.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `postgres://…` or `sqlite://…`.
    pub url: SecretString,
    /// Pool size; 4.
    pub max_connections: u32,
    /// How long one call may take; 30 s.
    pub timeout: Duration,
    /// Encrypts credentials (and, with masks, dead letters): `ORGSTREAM_ENCRYPTION_KEY`.
    pub encryption_key: Option<SecretString>,
}

/// One `[[subscription]]`.
#[derive(Debug, Clone)]
pub struct SubscriptionConfig {
    /// Its name, unique.
    pub name: String,
    /// What it streams.
    pub topic: Topic,
    /// Where it begins with no stored position.
    pub start: Start,
    /// True where the configuration names `start`.
    pub start_is_explicit: bool,
    /// What to do when the stored position is gone from the bus.
    pub on_expired_replay_id: OnExpiredReplayId,
    /// What stays in order.
    pub ordering: Ordering,
    /// Field that orders a platform event.
    pub key: Option<String>,
    /// Calls of one handler at the same time.
    pub concurrency: usize,
    /// Events received and above the position.
    pub max_in_flight: usize,
    /// Bytes of the same.
    pub max_in_flight_bytes: usize,
    /// How long a schema that cannot be had just now holds the stream up; 15 min.
    pub schema_wait: Duration,
    /// At least one.
    pub handlers: Vec<HandlerConfig>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// What comes from now on.
    Latest,
    /// Everything the bus still keeps.
    Earliest,
    /// After this place.
    After(ReplayId),
}

/// What to do when the stored position is gone from the bus. A hole is recorded in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExpiredReplayId {
    /// Go on with everything the bus still keeps.
    Earliest,
    /// Go on with what comes from now on.
    Latest,
    /// Wait for a person.
    Stop,
}

/// What stays in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// Events of one record.
    Record,
    /// Everything.
    Strict,
    /// Nothing.
    None,
}

/// One `[[subscription.handler]]`.
#[derive(Debug, Clone)]
pub struct HandlerConfig {
    /// Its name, unique within the subscription.
    pub name: String,
    /// `log`, `webhook`, or a type that was registered.
    pub kind: String,
    /// When to try again, and when to give up.
    pub retry: RetryConfig,
    /// What to do with an event that was given up.
    pub on_exhausted: OnExhausted,
    /// The keys of its own type, checked by that type.
    pub options: BTreeMap<String, toml::Value>,
}

/// When to try again, and when to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryConfig {
    /// Attempts that count against an event; 8.
    pub attempts: u32,
    /// Pauses between attempts: 500 ms to 1 min.
    pub backoff: BackoffConfig,
    /// The longest an event is tried; 12 h.
    pub total: Duration,
}

/// Exponential back-off with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// First pause.
    pub initial: Duration,
    /// Longest pause.
    pub max: Duration,
}

/// What to do with an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// Park it and go on.
    Park,
    /// Stop the subscription and wait for a person.
    Stop,
}
