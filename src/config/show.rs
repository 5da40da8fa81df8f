//! The effective configuration as TOML, secrets masked: what `orgstream config` prints.

use std::fmt::{Display, Write};
use std::time::Duration;

use secrecy::ExposeSecret;
use toml::Value;

use super::duration::{format_bytes, format_duration};
use super::{
    AuthConfig, BackoffConfig, Config, FieldsConfig, Group, HandlerConfig, OnExhausted,
    OnExpiredReplayId, Ordering, RetentionConfig, SalesforceConfig, Start, StoreConfig,
    SubscriptionConfig, WebConfig,
};

/// What stands in place of a secret.
const MASK: &str = "***";

/// Parts of an option's name that mark its value as a secret.
const SECRET_NAMES: [&str; 9] = [
    "header",
    "auth",
    "secret",
    "token",
    "password",
    "passwd",
    "credential",
    "cookie",
    "key",
];

/// Query parameters of a URL that are worth seeing and hold no secret.
const PLAIN_PARAMETERS: [&str; 6] = [
    "sslmode",
    "application_name",
    "connect_timeout",
    "host",
    "port",
    "mode",
];

/// Writes the configuration as TOML, every key with its value, defaults included.
///
/// Secrets are `***`. In the options of a handler, which this module knows nothing about, that is every
/// header, every variable under `env`, every option whose name speaks of a key, token, password or the like, and in every URL the
/// password and the query's values.
pub fn show(config: &Config) -> String {
    let mut out = Writer::default();
    if let Some(address) = config.metrics_addr {
        out.text("metrics_addr", &address);
    }
    if let Some(every) = config.log_samples {
        out.text("log_samples", &format_duration(every));
    }
    out.text("schemas_dir", &config.schemas_dir.display());
    if let Some(otlp) = &config.otlp {
        // No key of this file: OpenTelemetry's own variables say it.
        out.comment(&format!(
            "metrics are pushed to {} every {}",
            otlp.place(),
            format_duration(otlp.interval)
        ));
    }
    salesforce(&mut out, &config.salesforce);
    store(&mut out, &config.store);
    retention(&mut out, &config.retention);
    web(&mut out, &config.web);
    for one in &config.subscriptions {
        subscription(&mut out, one);
    }
    out.0
}

/// A URL without its password and without the values of its query.
pub(crate) fn masked_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.starts_with("sqlite:") {
            url.to_owned()
        } else {
            MASK.to_owned()
        };
    };
    // A password may hold any of / ? # unescaped, so everything up to the last @ counts as userinfo.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => match userinfo.split_once(':') {
            Some((user, _)) => (format!("{user}:{MASK}@"), rest),
            None => (format!("{userinfo}@"), rest),
        },
        None => (String::new(), rest),
    };
    let Some((path, query)) = rest.split_once('?') else {
        return format!("{scheme}://{user}{rest}");
    };
    let query: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if PLAIN_PARAMETERS.contains(&name) => parameter.to_owned(),
            Some((name, _)) => format!("{name}={MASK}"),
            None => MASK.to_owned(),
        })
        .collect();
    format!("{scheme}://{user}{path}?{}", query.join("&"))
}

fn salesforce(out: &mut Writer, config: &SalesforceConfig) {
    out.heading("[salesforce]");
    out.text("login_url", &config.login_url);
    match &config.auth {
        AuthConfig::Jwt {
            client_id,
            username,
            private_key: _,
            audience,
        } => {
            out.text("auth", &"jwt");
            out.text("client_id", client_id);
            out.text("username", username);
            out.text("private_key", &MASK);
            out.optional("audience", audience.as_deref());
        }
        AuthConfig::ClientCredentials {
            client_id,
            client_secret: _,
        } => {
            out.text("auth", &"client_credentials");
            out.text("client_id", client_id);
            out.text("client_secret", &MASK);
        }
        AuthConfig::RefreshToken {
            client_id,
            client_secret,
            refresh_token: _,
        } => {
            out.text("auth", &"refresh_token");
            out.text("client_id", client_id);
            out.optional("client_secret", client_secret.as_ref().map(|_| MASK));
            out.text("refresh_token", &MASK);
        }
        AuthConfig::AccessToken {
            access_token: _,
            instance_url,
            org_id,
        } => {
            out.text("auth", &"access_token");
            out.text("access_token", &MASK);
            out.text("instance_url", instance_url);
            out.optional("org_id", org_id.as_deref());
        }
    }
    out.text("pubsub_endpoint", &config.pubsub_endpoint);
    if let Some(file) = &config.ca_file {
        out.text("ca_file", &file.display());
    }
    out.duration("silence_limit", config.silence_limit);
    out.duration("ping_interval", config.ping_interval);
    out.duration("ping_timeout", config.ping_timeout);
    out.duration("token_max_age", config.token_max_age);
    out.duration("retention", config.retention);
    out.duration("retention_warning", config.retention_warning);
    out.duration("limits_interval", config.limits_interval);
    out.backoff("reconnect", config.reconnect);
    out.backoff("blocked_retry", config.blocked_retry);
    out.backoff("allocation_retry", config.allocation_retry);
}

fn store(out: &mut Writer, config: &StoreConfig) {
    out.heading("[store]");
    out.text("url", &masked_url(config.url.expose_secret()));
    out.line("max_connections", &config.max_connections);
    out.duration("timeout", config.timeout);
    out.duration("lease", config.lease);
    out.optional(
        "encryption_key",
        config.encryption_key.as_ref().map(|_| MASK),
    );
}

fn retention(out: &mut Writer, config: &RetentionConfig) {
    out.heading("[retention]");
    out.duration("dead_letters", config.dead_letters);
    out.duration("holes", config.holes);
    out.duration("position_marks", config.position_marks);
    out.duration("samples", config.samples);
    out.duration("state_changes", config.state_changes);
    out.duration("allocation", config.allocation);
}

fn web(out: &mut Writer, config: &WebConfig) {
    out.heading("[web]");
    out.text("addr", &config.addr);
    out.optional("token", config.token.as_ref().map(|_| MASK));
    out.line("behind_proxy", &config.behind_proxy);
}

fn subscription(out: &mut Writer, config: &SubscriptionConfig) {
    out.heading("[[subscription]]");
    out.text("name", &config.name);
    out.text("topic", &config.topic);
    match &config.start {
        Start::Latest => out.text("start", &"latest"),
        Start::Earliest => out.text("start", &"earliest"),
        Start::After(replay_id) => out.text("start", replay_id),
    }
    let expired = match config.on_expired_replay_id {
        OnExpiredReplayId::Earliest => "earliest",
        OnExpiredReplayId::Latest => "latest",
        OnExpiredReplayId::Stop => "stop",
    };
    out.text("on_expired_replay_id", &expired);
    let ordering = match config.ordering {
        Ordering::Record => "record",
        Ordering::Strict => "strict",
        Ordering::None => "none",
    };
    out.text("ordering", &ordering);
    out.optional("key", config.key.as_deref());
    out.line("concurrency", &config.concurrency);
    out.line("max_in_flight", &config.max_in_flight);
    out.text(
        "max_in_flight_bytes",
        &format_bytes(config.max_in_flight_bytes),
    );
    out.line("max_parked", &config.max_parked);
    out.duration("schema_wait", config.schema_wait);
    let group = match config.group {
        Group::None => "none",
        Group::Transaction => "transaction",
    };
    out.text("group", &group);
    out.duration("group_wait", config.group_wait);
    out.line("group_max_events", &config.group_max_events);
    for one in &config.handlers {
        handler(out, one);
    }
}

fn handler(out: &mut Writer, config: &HandlerConfig) {
    out.heading("[[subscription.handler]]");
    out.text("name", &config.name);
    out.text("type", &config.kind);
    out.line(
        "retry",
        &format_args!(
            "{{ attempts = {}, initial = \"{}\", max = \"{}\", total = \"{}\" }}",
            config.retry.attempts,
            format_duration(config.retry.backoff.initial),
            format_duration(config.retry.backoff.max),
            format_duration(config.retry.total),
        ),
    );
    let exhausted = match config.on_exhausted {
        OnExhausted::Park => "park",
        OnExhausted::Stop => "stop",
    };
    out.text("on_exhausted", &exhausted);
    let filter = &config.filter;
    out.list("entity", &filter.entity);
    let change = filter.change.iter();
    let change: Vec<String> = change.map(|one| one.symbol().to_lowercase()).collect();
    out.list("change", &change);
    out.list("changed", &filter.changed);
    if config.fields.hides() {
        out.line("fields", &fields(&config.fields));
    }
    for (name, value) in &config.options {
        out.line(&quoted_key(name), &masked(name, value));
    }
}

/// As an inline table.
fn fields(config: &FieldsConfig) -> Value {
    let mut table = toml::Table::new();
    let lists = [
        ("only", config.only.as_deref()),
        ("without", Some(&config.without[..])),
        ("mask", Some(&config.mask[..])),
        ("hash", Some(&config.hash[..])),
    ];
    for (key, names) in lists {
        if let Some(names) = names.filter(|names| key == "only" || !names.is_empty()) {
            table.insert(key.to_owned(), names_value(names));
        }
    }
    if config.hash_key.is_some() {
        table.insert("hash_key".to_owned(), Value::String(MASK.to_owned()));
    }
    Value::Table(table)
}

fn names_value(names: &[String]) -> Value {
    Value::Array(names.iter().cloned().map(Value::String).collect())
}

/// True where an option's name speaks of a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let lower = name.to_lowercase();
    lower == "env" || SECRET_NAMES.iter().any(|secret| lower.contains(secret))
}

/// An option's value with everything masked that may be a secret.
fn masked(name: &str, value: &Value) -> Value {
    if is_secret(name) {
        return blotted(value);
    }
    match value {
        Value::String(text) if text.contains("://") => {
            Value::String(escaped(&without_path(&masked_url(text))))
        }
        Value::String(text) => Value::String(escaped(text)),
        Value::Array(list) => Value::Array(list.iter().map(|value| masked(name, value)).collect()),
        Value::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, value)| (name.clone(), masked(name, value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// A web address without its path, which is a secret where a hook is known by nothing else.
fn without_path(url: &str) -> String {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    match rest.and_then(|rest| rest.split_once('/')) {
        Some((_, path)) if !path.is_empty() && !path.starts_with('?') => {
            let authority = &url[..url.len() - path.len()];
            let query = path.split_once('?').map(|(_, query)| format!("?{query}"));
            format!("{authority}{MASK}{}", query.unwrap_or_default())
        }
        _ => url.to_owned(),
    }
}

/// The same shape with no value left.
fn blotted(value: &Value) -> Value {
    match value {
        Value::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, value)| (name.clone(), blotted(value)))
                .collect(),
        ),
        _ => Value::String(MASK.to_owned()),
    }
}

/// A text that reads the same again: a dollar sign is written twice, for this is a configuration again.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

/// A key as TOML writes it.
fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare {
        key.to_owned()
    } else {
        Value::String(key.to_owned()).to_string()
    }
}

#[derive(Default)]
struct Writer(String);

impl Writer {
    fn heading(&mut self, heading: &str) {
        self.0.push('\n');
        self.0.push_str(heading);
        self.0.push('\n');
    }

    fn comment(&mut self, text: &str) {
        let _ = writeln!(self.0, "# {text}");
    }

    fn line(&mut self, key: &str, value: &dyn Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &dyn Display) {
        self.line(key, &Value::String(escaped(&value.to_string())));
    }

    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, &value);
        }
    }

    /// A list of names, where there are any.
    fn list(&mut self, key: &str, names: &[String]) {
        if !names.is_empty() {
            self.line(key, &names_value(names));
        }
    }

    fn duration(&mut self, key: &str, value: Duration) {
        self.text(key, &format_duration(value));
    }

    fn backoff(&mut self, key: &str, value: BackoffConfig) {
        self.line(
            key,
            &format_args!(
                "{{ initial = \"{}\", max = \"{}\" }}",
                format_duration(value.initial),
                format_duration(value.max)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_passwords_and_query_values() {
        for (url, shown) in [
            (
                "postgres://u:pw@h:5432/db?sslmode=require",
                "postgres://u:***@h:5432/db?sslmode=require",
            ),
            ("postgres://u:p/w?x#@@h/db", "postgres://u:***@h/db"),
            (
                "postgres://h/db?password=pw&host=%2Ftmp",
                "postgres://h/db?password=***&host=%2Ftmp",
            ),
            ("https://h/hook?code", "https://h/hook?***"),
            ("sqlite://orgstream.db", "sqlite://orgstream.db"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("hunter2", "***"),
        ] {
            assert_eq!(masked_url(url), shown);
        }
    }

    #[test]
    fn options_that_may_be_secrets_are_masked_at_any_depth() {
        let value: toml::Table = toml::from_str(
            "url = 'https://u:hunter2@h/?k=hunter2'\n\
             hook = 'https://h:8443/services/hunter2?k=hunter2'\n\
             plain = 'http://h'\n\
             api_key = 'hunter2'\n\
             headers = { Authorization = 'Bearer hunter2', 'X-Plain' = 'hunter2' }\n\
             nested = { deep = [{ client_secret = 'hunter2', note = 'seen' }] }\n\
             env = { COLOUR = 'hunter2' }\n\
             timeout = '30s'\n",
        )
        .unwrap();
        let shown: Vec<String> = value
            .iter()
            .map(|(name, value)| format!("{name} = {}", masked(name, value)))
            .collect();
        let shown = shown.join("\n");
        assert!(!shown.contains("hunter2"), "{shown}");
        let hook = "https://h:8443/***?k=***";
        for kept in [
            "30s",
            "seen",
            "X-Plain",
            "https://u:***@h/?k=***",
            hook,
            "\"http://h\"",
        ] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
    }
}
