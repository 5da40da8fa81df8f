//! What can go wrong in a store, and what a database's errors mean for the daemon.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::event::OrgId;
use crate::postgres::ConnectError;

/// The store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It could not be reached, was too slow, or refused for now: the same call may succeed later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Another worker holds the subscription under a newer epoch.
    #[error(
        "another worker has taken subscription `{subscription}` over (epoch {ours} has passed)"
    )]
    Fenced {
        /// Which.
        subscription: String,
        /// The epoch that was refused.
        ours: i64,
    },
    /// Another worker holds the lease.
    #[error("{} runs subscription `{subscription}`", .by.as_deref().unwrap_or("another worker"))]
    Held {
        /// Which.
        subscription: String,
        /// Name of the worker, where it is known.
        by: Option<String>,
    },
    /// A person paused the subscription.
    #[error(
        "subscription `{subscription}` is paused: `orgstream resume {subscription}` lets it run"
    )]
    Paused {
        /// Which.
        subscription: String,
    },
    /// The store belongs to another org.
    #[error(
        "this store holds the positions of org {stored}, but the login is for org {given}: use another \
         database, or drop the schema `orgstream` (SQLite: delete the file) to begin anew"
    )]
    OtherOrg {
        /// Org found in the store.
        stored: OrgId,
        /// Org signed in to.
        given: OrgId,
    },
    /// The name is bound to another topic.
    #[error(
        "subscription `{name}` has a position on {stored}, but the configuration says {given}: choose \
         another name for the new topic, or change the topic back"
    )]
    TopicChanged {
        /// Subscription.
        name: String,
        /// Topic in the store.
        stored: String,
        /// Topic in the configuration.
        given: String,
    },
    /// A name that is gone had this topic: probably a rename.
    #[error(
        "subscription `{name}` is new, and {topic} was streamed as `{old}`, which is not configured any \
         more: run `orgstream rename {old} {name}`, or call it `{old}` again, to keep its position; or set \
         `start` to begin anew under the new name"
    )]
    RenameSuspected {
        /// New name.
        name: String,
        /// Name in the store.
        old: String,
        /// Topic of both.
        topic: String,
    },
    /// A person gave the name up by a rename, and a configuration still has it.
    #[error(
        "subscription `{name}` was renamed to `{new}` and goes on under that name: call it `{new}` in the \
         configuration, or run `orgstream rename {new} {name}` to name it back; a subscription of its own on \
         {topic} needs another name"
    )]
    Renamed {
        /// The name in the configuration.
        name: String,
        /// What it is called now.
        new: String,
        /// Topic of both.
        topic: String,
    },
    /// The tables are missing or of another version.
    #[error("the store's schema is not ready: {0}")]
    NotMigrated(String),
    /// A configuration that can never work.
    #[error("{0}")]
    Config(String),
}

/// What to do where the tables are not there.
pub(super) const RUN_MIGRATE: &str = "run `orgstream migrate`";

impl From<sqlx::Error> for StoreError {
    /// Never carries row contents, nor the URL with its password.
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => postgres(error),
                None => sqlite(error.as_ref()),
            },
            sqlx::Error::Io(error) => Self::Unavailable(format!("connection failed: {error}")),
            sqlx::Error::Tls(error) => Self::Unavailable(format!(
                "TLS failed: {error}; where the database offers none and the network is trusted, add \
                 `?sslmode=disable` to store.url"
            )),
            sqlx::Error::Configuration(error) => Self::Config(format!("store.url: {error}")),
            // Decoding errors name a column and a type, no value.
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<ConnectError> for StoreError {
    /// Says where nothing answered.
    fn from(ConnectError { place, error }: ConnectError) -> Self {
        match Self::from(error) {
            Self::Unavailable(why) => Self::Unavailable(format!("{place}: {why}")),
            other => other,
        }
    }
}

/// By SQLSTATE (Postgres manual, appendix A).
fn postgres(error: &PgDatabaseError) -> StoreError {
    let code = error.code();
    let text = error.message();
    match code {
        // undefined table, schema, column, function
        "42P01" | "3F000" | "42703" | "42883" => {
            StoreError::NotMigrated(format!("{text} (SQLSTATE {code}): {RUN_MIGRATE}"))
        }
        "57014" => StoreError::Unavailable(format!(
            "a statement took too long and was cancelled (SQLSTATE {code})"
        )),
        "55P03" => StoreError::Unavailable(format!(
            "a row stayed locked by another session (SQLSTATE {code})"
        )),
        "25006" => StoreError::Unavailable(format!(
            "the database is read-only, a standby perhaps (SQLSTATE {code})"
        )),
        "42501" => StoreError::Unavailable(format!(
            "{text} (SQLSTATE {code}): grant the database user that right"
        )),
        // Data and constraint errors may quote what a row holds.
        _ if code.starts_with("22") || code.starts_with("23") => StoreError::Unavailable(format!(
            "the database refused a value (SQLSTATE {code}{})",
            error
                .constraint()
                .map(|name| format!(", constraint {name}"))
                .unwrap_or_default()
        )),
        // Connections, resources, shutdowns, deadlocks, logins: the server's own words name none of it.
        _ => StoreError::Unavailable(format!("{text} (SQLSTATE {code})")),
    }
}

/// By primary result code (sqlite.org/rescode.html), the low byte of the extended one that sqlx gives.
fn sqlite(error: &dyn DatabaseError) -> StoreError {
    let code = error
        .code()
        .and_then(|code| code.parse::<u32>().ok())
        .unwrap_or(0);
    let text = error.message();
    match code & 0xff {
        1 if text.contains("no such") || text.contains("has no column") => {
            StoreError::NotMigrated(format!("{text}: {RUN_MIGRATE}"))
        }
        5 | 6 => StoreError::Unavailable(format!(
            "the SQLite file stayed locked by another process (code {code})"
        )),
        13 => StoreError::Unavailable(format!("the disk is full (SQLite code {code})")),
        26 => StoreError::Config(
            "store.url names a file that is not a SQLite database: choose another path".to_owned(),
        ),
        19 | 20 => StoreError::Unavailable(format!("SQLite refused a value (code {code})")),
        _ => StoreError::Unavailable(format!("{text} (SQLite code {code})")),
    }
}
