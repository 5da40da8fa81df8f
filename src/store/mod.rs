//! Where orgstream keeps its place: positions, schemas, dead letters, holes, credentials.
//!
//! One trait, [`Store`]; Postgres for production, SQLite where nothing else is installed. The tables are
//! part of the interface (design 4.5): a person at a SQL prompt can see what goes on.

mod command;
mod common;
mod control;
mod crypto;
mod dead_letter;
mod error;
mod hole;
mod lease;
mod measured;
mod migrations;
mod observation;
mod position;
mod postgres;
mod retention;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(test)]
mod tests;
mod transaction;
mod vault;

use std::sync::Arc;

use async_trait::async_trait;
use secrecy::ExposeSecret;

use crate::config::StoreConfig;
use crate::event::{OrgId, Topic};
use crate::salesforce::auth::CredentialVault;

pub use command::{
    CommandKind, CommandState, Commands, MarksAround, PositionMark, ReplayArguments,
    ReplayProgress, StoredCommand,
};
pub use control::{Controls, Renamed};
pub use dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetters, LetterSelection, LetterSummary, PART, Placed,
    Refusal, SettledAhead, StoredDeadLetter,
};
pub use error::StoreError;
pub use hole::{Hole, HoleFilter, HoleKind, Holes, StoredHole};
pub use lease::{
    Footing, Heartbeat, Lease, Leases, LivingWorker, Peer, Refused, Survey, Surveyed, TakenOver,
    Tenure, Worker,
};
pub use observation::{AllocationReading, Observations, Sample, Snapshot, StateChange};
pub use position::{FinishedAhead, Positions, Progress, Recent, StateReport, SubscriptionStatus};
pub use retention::{PRUNE_PORTION, Pruned, Retention, STATE_CHANGES_KEPT, STATE_CHANGES_MOST};
pub use schema::Schemas;
pub use transaction::{HandOver, Mark, TransactionError, Transactions, Work};

/// Names a subscription's row: a position belongs to an org, a name and a topic (design 3.1, rule 4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SubscriptionKey {
    /// The org whose bus it is.
    pub org_id: OrgId,
    /// The subscription's name in the configuration.
    pub name: String,
    /// The topic it streams.
    pub topic: Topic,
}

/// Keeps what must survive. Every call is bounded in time and may be retried.
#[async_trait]
pub trait Store:
    Leases
    + Controls
    + Positions
    + DeadLetters
    + Holes
    + Commands
    + Schemas
    + Transactions
    + Retention
    + Observations
    + CredentialVault
    + Send
    + Sync
{
    /// Answers when the store does.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Brings the tables up to this version; safe to call from several processes at once. Gives the
    /// versions that were applied.
    async fn migrate(&self) -> Result<Vec<i64>, StoreError>;

    /// Versions that [`Store::migrate`] would apply; empty where the tables are ready.
    async fn pending_migrations(&self) -> Result<Vec<i64>, StoreError>;

    /// Binds the store to an org at first use; refuses another one ever after.
    async fn bind_org(&self, org_id: &OrgId) -> Result<(), StoreError>;

    /// The org that the store is bound to; `None` before its first use.
    async fn bound_org(&self) -> Result<Option<OrgId>, StoreError>;

    /// How its pools of connections are used just now; takes no time.
    fn connections(&self) -> Vec<ConnectionUse>;

    /// Closes connections; later calls are refused.
    async fn close(&self);
}

/// Connections to a database, kept for one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionUse {
    /// `calls` for all but those of the others, `lease` for heartbeats and surveys, `handlers` for transactions
    /// of handlers.
    pub pool: &'static str,
    /// Open and at rest.
    pub idle: usize,
    /// With somebody, or being opened.
    pub in_use: usize,
    /// How many there may be.
    pub max: usize,
}

/// Opens the store that the URL's scheme names. Connects at the first call, so that a database that is
/// down is a matter of [`Store::ping`] and not of the start.
///
/// # Errors
///
/// [`StoreError::Config`] where the URL, the folder of a SQLite file or the encryption key can never work.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    let cipher = config
        .encryption_key
        .as_ref()
        .map(crypto::Cipher::new)
        .transpose()
        .map_err(|error| StoreError::Config(error.to_string()))?;
    let url = config.url.expose_secret().trim();
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            Ok(measured::shown(postgres::PostgresStore::open(config, cipher)?))
        }
        #[cfg(feature = "sqlite")]
        Some("sqlite") => {
            Ok(measured::shown(sqlite::SqliteStore::open(config, cipher)?))
        }
        #[cfg(not(feature = "sqlite"))]
        Some("sqlite") => Err(StoreError::Config(
            "store.url names SQLite, which this build leaves out: give the URL of a Postgres database, \
             or build with the feature `sqlite`"
                .to_owned(),
        )),
        _ => Err(StoreError::Config(
            "store.url must begin with postgres:// or sqlite:".to_owned(),
        )),
    }
}
