//! The `[salesforce]` section: how to sign in, and where the Pub/Sub API is.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use super::address::{is_loopback_origin, login_origin, origin};
use super::section::{Section, Var};
use super::{BackoffConfig, Checks, SalesforceConfig, parse_duration};

/// The platform promises an empty response within 270 s while events are asked for (facts 3.3): whoever
/// waits for less takes a quiet stream for a dead one.
const KEEPALIVE_PROMISE: Duration = Duration::from_secs(270);

/// With it an hour, which the forecast looks back over and in which a reading counts as one of now, has four readings.
const LONGEST_LIMITS_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// Where the value of a key belongs.
type Field<T> = fn(&mut SalesforceConfig) -> &mut T;

const DURATIONS: [(&str, Field<Duration>); 7] = [
    ("silence_limit", |config| &mut config.silence_limit),
    ("ping_interval", |config| &mut config.ping_interval),
    ("ping_timeout", |config| &mut config.ping_timeout),
    ("token_max_age", |config| &mut config.token_max_age),
    ("retention", |config| &mut config.retention),
    ("retention_warning", |config| &mut config.retention_warning),
    ("limits_interval", |config| &mut config.limits_interval),
];

const BACKOFFS: [(&str, Field<BackoffConfig>); 3] = [
    ("reconnect", |config| &mut config.reconnect),
    ("blocked_retry", |config| &mut config.blocked_retry),
    ("allocation_retry", |config| &mut config.allocation_retry),
];

/// Reads the section; `None` where one cannot sign in with it, and then that has been noted.
pub(super) fn read(section: Section<'_>, checks: &Checks<'_>) -> Option<SalesforceConfig> {
    let login_url = section
        .parsed("login_url", Var::Salesforce, login_origin)
        .unwrap_or_else(|| SalesforceConfig::LOGIN_URL.to_owned());
    let auth = super::auth::read(&section, &login_url, checks);
    let pubsub_endpoint = section.parsed("pubsub_endpoint", Var::Salesforce, origin);
    let ca_file = section.parsed("ca_file", Var::Salesforce, readable);
    let durations = DURATIONS.map(|(key, field)| {
        let value = section.parsed(key, Var::Salesforce, positive_duration);
        (field, value)
    });
    let backoffs = BACKOFFS.map(|(key, field)| {
        let table = section.table(key);
        let value = BackoffKeys::read(&table, Var::Salesforce);
        table.finish();
        (field, value)
    });
    let (reader, silence_limit) = (section.reader(), section.place("silence_limit"));
    let limits_interval = section.place("limits_interval");
    let retention_warning = section.place("retention_warning");
    section.finish();

    let mut config = SalesforceConfig::new(login_url, auth?);
    config.pubsub_endpoint = pubsub_endpoint.unwrap_or(config.pubsub_endpoint);
    config.ca_file = ca_file;
    for (field, value) in durations {
        let field = field(&mut config);
        *field = value.unwrap_or(*field);
    }
    for (field, value) in backoffs {
        let field = field(&mut config);
        *field = value.over(*field);
    }
    if config.silence_limit < KEEPALIVE_PROMISE && !is_loopback_origin(&config.pubsub_endpoint) {
        reader.warn(
            silence_limit,
            "shorter than the 270 s within which the platform promises a sign of life: quiet streams will be \
             taken for dead",
        );
    }
    if config.limits_interval > LONGEST_LIMITS_INTERVAL {
        reader.problem(
            limits_interval,
            "is longer than 15m: when the deliveries will be used up is told from the readings of the last hour",
        );
    }
    if config.retention_warning >= config.retention {
        reader.problem(
            retention_warning,
            "is not shorter than retention: every position would be warned of",
        );
    }
    Some(config)
}

/// How long the bus keeps events, and how long before a position leaves it a person is warned: of the section
/// that is all that commands which only read the store need.
pub(super) fn read_retention(section: &Section<'_>) -> (Duration, Duration) {
    let read = |key, default| {
        section
            .parsed(key, Var::Salesforce, positive_duration)
            .unwrap_or(default)
    };
    (
        read("retention", SalesforceConfig::RETENTION),
        read("retention_warning", SalesforceConfig::RETENTION_WARNING),
    )
}

/// What was said about a back-off.
pub(super) struct BackoffKeys {
    initial: Option<Duration>,
    max: Option<Duration>,
}

impl BackoffKeys {
    /// Reads `initial` and `max`.
    pub(super) fn read(section: &Section<'_>, var: Var) -> Self {
        let initial = section.parsed("initial", var, positive_duration);
        let max = section.parsed("max", var, positive_duration);
        if let (Some(initial), Some(max)) = (initial, max)
            && initial > max
        {
            section.problem("max", "is shorter than initial");
        }
        Self { initial, max }
    }

    /// With defaults for what was left out. Where only one was given, the other follows it.
    pub(super) fn over(self, default: BackoffConfig) -> BackoffConfig {
        let initial = self.initial.unwrap_or(default.initial);
        let max = self.max.unwrap_or(default.max.max(initial));
        BackoffConfig {
            initial: initial.min(max),
            max,
        }
    }
}

/// A duration longer than nothing.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

fn readable(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    File::open(&path)
        .and_then(|mut file| file.read(&mut [0]))
        .map_err(|error| {
            format!("the file cannot be read: {error}; check the path and its permissions")
        })?;
    Ok(path)
}
