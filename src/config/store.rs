//! The `[store]` section: where positions are kept.

use std::time::Duration;

use super::StoreConfig;
use super::duration::parse_duration;
use super::salesforce::positive_duration;
use super::section::{Section, Var};

/// Shortest text accepted as an encryption key, in characters: what `openssl rand -hex 16` prints.
pub(super) const KEY_LENGTH: usize = 32;

const LEAST_LEASE: Duration = Duration::from_secs(2);
const MOST_LEASE: Duration = Duration::from_secs(5 * 60);

/// Whether this store keeps credentials.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A refresh token, encrypted.
    Kept,
    /// None that is known of.
    Elsewhere,
}

/// Reads the section; `None` where the URL is no good, and then it has been noted.
pub(super) fn read(section: Section<'_>, credentials: Credentials) -> Option<StoreConfig> {
    let on_heroku = section.reader().env.var("DYNO").is_some();
    let url = match section.text("url", Var::Named("DATABASE_URL")) {
        Some(given) => check_url(&given.text, on_heroku)
            // Not `refuse`, which could repeat the URL and the password in it.
            .map_err(|error| section.reader().problem(given.place.clone(), error))
            .map(|()| given.text),
        None => check_url(StoreConfig::URL, on_heroku)
            .map_err(|error| section.missing("url", Var::Named("DATABASE_URL"), &error))
            .map(|()| StoreConfig::URL.to_owned()),
    };
    let max_connections = section.number("max_connections", Var::None, 2..=100u32);
    let timeout = section.parsed("timeout", Var::None, positive_duration);
    let lease = section.parsed("lease", Var::None, lease_duration);
    let variable = Var::Named("ORGSTREAM_ENCRYPTION_KEY");
    let encryption_key = match credentials {
        Credentials::Elsewhere => section.text("encryption_key", variable),
        Credentials::Kept => section.needed(
            "encryption_key",
            variable,
            "auth = refresh_token needs it, because the org may replace the token with each use and the new one is \
             kept encrypted only; make one with `openssl rand -hex 32`",
        ),
    };
    if let Some(key) = &encryption_key
        && key.text.chars().count() < KEY_LENGTH
    {
        section.reader().problem(
            key.place.clone(),
            format!(
                "is shorter than {KEY_LENGTH} characters; make one with `openssl rand -hex 32`"
            ),
        );
    }
    section.finish();
    let mut config = StoreConfig::new(url.ok()?);
    config.max_connections = max_connections.unwrap_or(config.max_connections);
    config.timeout = timeout.unwrap_or(config.timeout);
    config.lease = lease.unwrap_or(config.lease);
    config.encryption_key = encryption_key.map(|given| given.text.into());
    Some(config)
}

/// Shorter, and a pause of the network costs the lease; longer, and a dead worker's subscriptions rest.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text)?;
    if (LEAST_LEASE..=MOST_LEASE).contains(&lease) {
        Ok(lease)
    } else {
        Err("expected a time between 2s and 5m".to_owned())
    }
}

/// True where a URL's scheme is that of Postgres.
pub(super) fn is_postgres(url: &str) -> bool {
    let url = url.trim_start();
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

fn check_url(url: &str, on_heroku: bool) -> Result<(), String> {
    if is_postgres(url) {
        return Ok(());
    }
    if !url.starts_with("sqlite:") {
        return Err("expected a URL that begins with postgres:// or sqlite://".to_owned());
    }
    if on_heroku {
        return Err(
            "SQLite cannot keep positions on a dyno, whose disk is gone every day; add a database with \
             `heroku addons:create heroku-postgresql:essential-0`, which sets DATABASE_URL"
                .to_owned(),
        );
    }
    if cfg!(not(feature = "sqlite")) {
        return Err("this build has no SQLite; set DATABASE_URL to a postgres:// URL".to_owned());
    }
    Ok(())
}
