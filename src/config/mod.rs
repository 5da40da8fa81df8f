//! The configuration: plain values, and the loader that makes them from a file and the environment.
//!
//! Each part of the daemon is given the section it needs, not the whole. [`load()`] finds and reads the
//! configuration and reports everything that is wrong with it at once, each problem with its place and its
//! cure; [`show()`] prints what came of it, secrets masked. `docs/CONFIGURATION.md` lists every key.

mod address;
mod auth;
mod document;
mod duration;
mod env;
mod error;
mod interpolate;
mod load;
mod reader;
mod retention;
mod salesforce;
mod secrets;
mod section;
mod shaping;
mod show;
mod store;
mod subscription;
mod telemetry;
#[cfg(test)]
mod tests;
mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::event::{ReplayId, Topic};

pub use duration::{parse_bytes, parse_duration};
pub use env::{Env, ProcessEnv};
pub use error::{ConfigError, Place, Problem};
pub(crate) use load::needs_encryption;
pub use load::{
    Loaded, Origin, Subscriptions, load, load_bus_retention, load_handlers, load_salesforce,
    load_store, load_subscriptions, load_vault, load_web,
};
pub(crate) use secrets::secrets;
pub(crate) use shaping::is_within;
pub use shaping::{FieldsConfig, FilterConfig};
pub(crate) use show::masked_url;
pub use show::show;
pub(crate) use subscription::valid_name;
pub use telemetry::OtlpConfig;

/// What the loader asks of parts it knows nothing about.
#[derive(Clone, Copy)]
pub struct Checks<'a> {
    /// Says why a private key cannot be used. It is given the text as configured: PEM, PEM with `\n`, or
    /// base64 of PEM.
    pub private_key: &'a dyn Fn(&str) -> Result<(), String>,
    /// Says what is wrong with a handler: its type, its options, or that the store, where that could be read,
    /// is not one that it can work with.
    pub handler: &'a dyn Fn(&HandlerConfig, Option<&StoreConfig>) -> Vec<HandlerProblem>,
}

impl Checks<'_> {
    /// Nothing is checked.
    pub const NONE: Self = Self {
        private_key: &|_| Ok(()),
        handler: &|_, _| Vec::new(),
    };
}

/// What is wrong with a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerProblem {
    /// The key at fault; `None` where it is the type.
    pub key: Option<String>,
    /// What is wrong and what to do, without any value that may be a secret.
    pub message: String,
}

/// Everything a user can say.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to sign in, and where the Pub/Sub API is.
    pub salesforce: SalesforceConfig,
    /// Where positions are kept.
    pub store: StoreConfig,
    /// How long what is done with is kept.
    pub retention: RetentionConfig,
    /// Where the status page is served.
    pub web: WebConfig,
    /// At least one.
    pub subscriptions: Vec<SubscriptionConfig>,
    /// Where to serve Prometheus metrics; `ORGSTREAM_METRICS_ADDR`.
    pub metrics_addr: Option<std::net::SocketAddr>,
    /// Where metrics are pushed to, by the variables of OpenTelemetry.
    pub otlp: Option<OtlpConfig>,
    /// How often lines with figures go to standard error, for Heroku's log metrics; `ORGSTREAM_LOG_SAMPLES`.
    pub log_samples: Option<Duration>,
    /// Folder of schemas to look in before asking the org.
    pub schemas_dir: PathBuf,
}

impl Config {
    /// Folder of schemas where none is named.
    pub const SCHEMAS_DIR: &str = "schemas";
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
    /// How long the bus keeps an event; 72 h, and 24 h for old standard-volume platform events.
    pub retention: Duration,
    /// How long before its end a position that is about to leave that window is warned of; 12 h.
    pub retention_warning: Duration,
    /// How often one of all workers asks the org what is left of its event deliveries; 5 min.
    pub limits_interval: Duration,
    /// Back-off between connection attempts.
    pub reconnect: BackoffConfig,
    /// How often an error that an administrator may mend is tried again: between a minute and five.
    pub blocked_retry: BackoffConfig,
    /// How long a stream stays away after the org's delivery allocation was used up; 15 to 60 min.
    pub allocation_retry: BackoffConfig,
}

impl SalesforceConfig {
    /// Login host of production and Developer Edition orgs.
    pub const LOGIN_URL: &str = "https://login.salesforce.com";
    /// The global Pub/Sub API endpoint.
    pub const PUBSUB_ENDPOINT: &str = "https://api.pubsub.salesforce.com:7443";

    /// How long the bus keeps platform events of today's kind and change events (facts 3.6).
    pub const RETENTION: Duration = Duration::from_secs(72 * 60 * 60);

    /// Time enough to mend what keeps a subscription from going on.
    pub const RETENTION_WARNING: Duration = Duration::from_secs(12 * 60 * 60);

    /// Defaults for everything but these two.
    pub fn new(login_url: impl Into<String>, auth: AuthConfig) -> Self {
        let backoff = |initial_ms, max_ms| BackoffConfig {
            initial: Duration::from_millis(initial_ms),
            max: Duration::from_millis(max_ms),
        };
        Self {
            login_url: login_url.into(),
            auth,
            pubsub_endpoint: Self::PUBSUB_ENDPOINT.to_owned(),
            ca_file: None,
            silence_limit: Duration::from_secs(300),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
            token_max_age: Duration::from_secs(60 * 60),
            retention: Self::RETENTION,
            retention_warning: Self::RETENTION_WARNING,
            limits_interval: Duration::from_secs(5 * 60),
            reconnect: backoff(500, 30_000),
            blocked_retry: backoff(60_000, 300_000),
            allocation_retry: backoff(15 * 60_000, 60 * 60_000),
        }
    }
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
    /// Connections to Postgres at most, at least 2; 4. One of them is kept for the lease.
    pub max_connections: u32,
    /// How long one call may take; 30 s.
    pub timeout: Duration,
    /// How long a worker that is not heard of keeps its subscriptions; 15 s.
    pub lease: Duration,
    /// Encrypts credentials (and, with masks, dead letters): `ORGSTREAM_ENCRYPTION_KEY`.
    pub encryption_key: Option<SecretString>,
}

impl StoreConfig {
    /// Where positions are kept if nothing is said: a file in the current directory.
    pub const URL: &str = "sqlite://orgstream.db";

    /// Defaults for everything but the URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: SecretString::from(url.into()),
            max_connections: 4,
            timeout: Duration::from_secs(30),
            lease: Duration::from_secs(15),
            encryption_key: None,
        }
    }

    /// True where positions are kept in Postgres.
    pub fn is_postgres(&self) -> bool {
        store::is_postgres(self.url.expose_secret())
    }
}

/// The `[retention]` section: how long the store keeps what is done with. What waits for a person is never
/// deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Dead letters that were handled or discarded; 30 days.
    pub dead_letters: Duration,
    /// Holes that were acknowledged; 90 days.
    pub holes: Duration,
    /// Position marks, by which a replay from a time finds its place; 96 hours, more than the bus keeps.
    pub position_marks: Duration,
    /// Samples of lag and events, for charts; 48 hours.
    pub samples: Duration,
    /// Changes of state; 96 hours. The newest 20 of a subscription stay, and no more than its newest 500.
    pub state_changes: Duration,
    /// Readings of the org's daily event deliveries; 48 hours.
    pub allocation: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            dead_letters: hours(30 * 24),
            holes: hours(90 * 24),
            position_marks: hours(96),
            samples: hours(48),
            state_changes: hours(96),
            allocation: hours(48),
        }
    }
}

/// The `[web]` section: `orgstream web`.
#[derive(Debug, Clone)]
pub struct WebConfig {
    /// Where it listens.
    pub addr: std::net::SocketAddr,
    /// Opens everything but `/healthz` and `/readyz`; `None` only where another command reads it.
    pub token: Option<SecretString>,
    /// True where nobody can connect but a proxy that writes the address it was called from at the end of
    /// `X-Forwarded-For`, as Heroku's router does.
    pub behind_proxy: bool,
}

impl WebConfig {
    /// Where it listens if nothing is said and no `PORT` is set: for this machine alone.
    pub const ADDR: std::net::SocketAddr =
        std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            addr: Self::ADDR,
            token: None,
            behind_proxy: false,
        }
    }
}

/// The most handlers that one subscription can have: what each has finished is one bit of a word.
pub const MAX_HANDLERS: usize = 64;

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
    /// Open dead letters beyond which nothing more is parked; 10,000.
    pub max_parked: usize,
    /// How long a schema that cannot be had just now holds the stream up; 15 min.
    pub schema_wait: Duration,
    /// What is handed over together.
    pub group: Group,
    /// How long a transaction stays open after its last event, where nothing else closes it; 1 s.
    pub group_wait: Duration,
    /// Events of the largest transaction that is handed over whole; half of `max_in_flight`, at most 1000.
    pub group_max_events: usize,
    /// At least one.
    pub handlers: Vec<HandlerConfig>,
}

impl SubscriptionConfig {
    /// Defaults for everything but these two, and no handler yet.
    pub fn new(name: impl Into<String>, topic: Topic) -> Self {
        Self {
            name: name.into(),
            topic,
            start: Start::Latest,
            start_is_explicit: false,
            on_expired_replay_id: OnExpiredReplayId::Earliest,
            ordering: Ordering::Record,
            key: None,
            concurrency: 8,
            max_in_flight: 1000,
            max_in_flight_bytes: 32 * 1024 * 1024,
            max_parked: 10_000,
            schema_wait: Duration::from_secs(15 * 60),
            group: Group::None,
            group_wait: Duration::from_secs(1),
            group_max_events: Self::group_max_events_by_default(1000),
            handlers: Vec::new(),
        }
    }

    /// True where a handler is not shown all of an event. Its dead letters are then kept encrypted.
    pub fn hides(&self) -> bool {
        self.handlers.iter().any(|handler| handler.fields.hides())
    }

    /// Half of what may be in flight: while a handler has one such transaction, the next can come in.
    fn group_max_events_by_default(max_in_flight: usize) -> usize {
        (max_in_flight / 2).clamp(1, 1000)
    }

    /// Events of the largest transaction that can be had whole: with so many in flight there is room left
    /// to ask for more, which the reader does in chunks of a quarter of its window.
    pub fn largest_group(&self) -> usize {
        let window = self.max_in_flight.min(100);
        self.max_in_flight.saturating_sub(window.div_ceil(4))
    }
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

/// What is handed over together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Each event by itself.
    None,
    /// The change events of one transaction (design 3.1, rule 14).
    Transaction,
}

/// One `[[subscription.handler]]`. Its `Debug` form names the options without their values, which may be
/// secrets.
#[derive(Clone)]
pub struct HandlerConfig {
    /// Its name, unique within the subscription.
    pub name: String,
    /// `log`, `webhook`, `postgres`, or a type that was registered.
    pub kind: String,
    /// When to try again, and when to give up.
    pub retry: RetryConfig,
    /// What to do with an event that was given up.
    pub on_exhausted: OnExhausted,
    /// Which events it is given.
    pub filter: FilterConfig,
    /// What it is given of their fields.
    pub fields: FieldsConfig,
    /// The keys of its own type, checked by that type.
    pub options: BTreeMap<String, toml::Value>,
}

impl HandlerConfig {
    /// A handler of this type, of the same name, with defaults for the rest.
    pub fn new(kind: impl Into<String>) -> Self {
        let kind = kind.into();
        Self {
            name: kind.clone(),
            kind,
            retry: RetryConfig::default(),
            on_exhausted: Self::on_exhausted_by_default(Ordering::Record),
            filter: FilterConfig::default(),
            fields: FieldsConfig::default(),
            options: BTreeMap::new(),
        }
    }

    /// In strict order nothing goes on past an event that was given up (design 3.1, rule 8).
    fn on_exhausted_by_default(ordering: Ordering) -> OnExhausted {
        match ordering {
            Ordering::Strict => OnExhausted::Stop,
            Ordering::Record | Ordering::None => OnExhausted::Park,
        }
    }
}

impl fmt::Debug for HandlerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerConfig")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("retry", &self.retry)
            .field("on_exhausted", &self.on_exhausted)
            .field("filter", &self.filter)
            .field("fields", &self.fields)
            .field("options", &self.options.keys())
            .finish()
    }
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

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 8,
            backoff: BackoffConfig {
                initial: Duration::from_millis(500),
                max: Duration::from_secs(60),
            },
            total: Duration::from_secs(12 * 60 * 60),
        }
    }
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
