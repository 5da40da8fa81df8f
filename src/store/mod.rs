//! Where orgstream keeps its place: positions, schemas, dead letters, holes, credentials.
//!
//! One trait, [`Store`]; Postgres for production, SQLite where nothing else is installed. The tables are
//! part of the interface (design 4.5): a person at a SQL prompt can see what goes on.

mod common;
mod crypto;
mod error;
mod migrations;
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(test)]
mod tests;
mod vault;

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::ExposeSecret;

use crate::config::StoreConfig;
use crate::event::{EventIdentity, OrgId, ReplayId, SchemaId, Topic};
use crate::salesforce::auth::CredentialVault;

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

/// The right to run a subscription. Every write carries its epoch; a writer whose epoch has passed is
/// refused with [`StoreError::Fenced`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which subscription.
    pub key: SubscriptionKey,
    /// Random for each start of a process.
    pub holder: String,
    /// Grows with each change of hands.
    pub epoch: i64,
}

/// What a worker finds when it takes a subscription over.
#[derive(Debug, Clone)]
pub struct TakenOver {
    /// The right to run it, under a new epoch.
    pub lease: Lease,
    /// Where it stands; `None` where no event or keepalive was ever finished.
    pub position: Option<ReplayId>,
    /// True where an earlier run was about to begin at LATEST ([`Store::mark_begun`]) and left no position: what came between then and now is a hole.
    pub begun_without_position: bool,
    /// Where it has no position: the first replay ID that came on a stream that began at LATEST
    /// ([`Store::mark_first`]). What came after it can still be had.
    pub begun_with: Option<ReplayId>,
    /// What each handler has finished above the position (design 3.1, rule 3).
    pub finished_ahead: Vec<FinishedAhead>,
    /// When the position was last written.
    pub position_at: Option<SystemTime>,
}

/// An event that a handler has finished although the position has not passed it yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FinishedAhead {
    /// Handler name.
    pub handler: String,
    /// Which event.
    pub identity: EventIdentity,
}

/// What a subscription has achieved since its last write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The new position; `None` leaves it as it is.
    pub position: Option<ReplayId>,
    /// The whole set above the position, which replaces what is stored.
    pub finished_ahead: Vec<FinishedAhead>,
    /// The last moment with a live stream and nothing unfinished.
    pub caught_up_at: Option<SystemTime>,
    /// Commit time of the newest event at or below the position, for `position_mark`.
    pub marked_at: Option<SystemTime>,
    /// Events received since the last write.
    pub received: u64,
    /// Events finished since the last write.
    pub finished: u64,
}

/// A state that `orgstream status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateReport {
    /// `connecting`, `live`, `paused`, `reconnecting`, `blocked`, `stopped`.
    pub state: String,
    /// Why, and the cure where a person has to act.
    pub detail: Option<String>,
}

/// An event to park.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Which event; with subscription and handler, its unique key.
    pub identity: EventIdentity,
    /// The handler that could not handle it; `None` where it could not be decoded for anyone.
    pub handler: Option<String>,
    /// `rejected`, `exhausted`, `undecodable`, `schema_refused`, `schema_unavailable`.
    pub reason: String,
    /// What went wrong, for a person; without payload or secrets.
    pub error: String,
    /// How often it was handed over.
    pub attempts: u32,
    /// Publisher's ID.
    pub event_uuid: String,
    /// Place on the bus.
    pub replay_id: Option<ReplayId>,
    /// Schema that wrote the payload.
    pub schema_id: SchemaId,
    /// The payload, as received.
    pub payload: Bytes,
    /// Records it concerns, so that later events of theirs can wait behind it.
    pub record_ids: Vec<String>,
    /// Avro record name, where it is known.
    pub record_name: Option<String>,
    /// When it was received.
    pub received_at: SystemTime,
}

/// A parked event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Number that commands use.
    pub id: i64,
    /// Subscription it was parked for.
    pub subscription: String,
    /// Topic of that subscription.
    pub topic: String,
    /// `open`, later `handled` or `discarded`.
    pub state: String,
    /// When it was parked.
    pub parked_at: SystemTime,
    /// The event.
    pub letter: DeadLetter,
}

/// A stretch of the bus that was not seen, or records whose change came without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// `lost` or `gap`.
    pub kind: HoleKind,
    /// Why: `expired_replay_id`, `latest_before_first_response`, `gap_event`, `overflow`, `wildcard`.
    pub reason: String,
    /// The last place known before it; `None` where there is none.
    pub from: Option<ReplayId>,
    /// The first place known after it; `None` until the next event or keepalive.
    pub to: Option<ReplayId>,
    /// Entity of a gap.
    pub entity: Option<String>,
    /// Records of a gap.
    pub record_ids: Vec<String>,
    /// A sentence for a person.
    pub explanation: String,
}

/// Kind of a [`Hole`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoleKind {
    /// A stretch of the bus that was not seen.
    Lost,
    /// Records or an entity whose change came without its content.
    Gap,
}

/// A hole as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHole {
    /// Number that commands use.
    pub id: i64,
    /// Subscription it belongs to.
    pub subscription: String,
    /// When it was recorded.
    pub recorded_at: SystemTime,
    /// When a person acknowledged it.
    pub acknowledged_at: Option<SystemTime>,
    /// The hole.
    pub hole: Hole,
}

/// A subscription as `orgstream status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionStatus {
    /// Its key.
    pub key: SubscriptionKey,
    /// `connecting`, `live`, …
    pub state: String,
    /// Why, and the cure.
    pub detail: Option<String>,
    /// When the state was written.
    pub state_at: Option<SystemTime>,
    /// Process that holds it.
    pub holder: Option<String>,
    /// Epoch of the last change of hands.
    pub epoch: i64,
    /// Where it stands.
    pub position: Option<ReplayId>,
    /// When the position was last written.
    pub position_at: Option<SystemTime>,
    /// The last moment with a live stream and nothing unfinished.
    pub caught_up_at: Option<SystemTime>,
    /// Events received, in all.
    pub received: u64,
    /// Events finished, in all.
    pub finished: u64,
    /// Open dead letters.
    pub parked: u64,
    /// Holes not acknowledged.
    pub holes: u64,
}

/// Which dead letters to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Of one subscription.
    pub subscription: Option<String>,
    /// Of one handler.
    pub handler: Option<String>,
    /// For one reason.
    pub reason: Option<String>,
    /// In one state; `None` is any.
    pub state: Option<String>,
    /// At most so many, oldest first; 0 is none.
    pub limit: u32,
}

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
         more: call it `{old}` again to keep its position, or set `start` to begin anew under the new name"
    )]
    RenameSuspected {
        /// New name.
        name: String,
        /// Name in the store.
        old: String,
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

/// Keeps what must survive. Every call is bounded in time and may be retried.
#[async_trait]
pub trait Store: CredentialVault + Send + Sync {
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

    /// Takes a subscription over under a new epoch, creating its row at first. `configured` names every
    /// subscription of the configuration, and `start_is_explicit` says that the configuration names
    /// where to begin: both decide whether a new name is a rename (design 3.1, rule 4).
    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError>;

    /// Records that a stream is about to begin at LATEST, so that a crash before its first response is
    /// seen as a hole ([`TakenOver::begun_without_position`]).
    async fn mark_begun(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Records the first replay ID that came on a stream that began at LATEST, so that a restart before
    /// the first position loses no more than that one ([`TakenOver::begun_with`]). The first one stays.
    async fn mark_first(&self, lease: &Lease, first: &ReplayId) -> Result<(), StoreError>;

    /// Writes progress, in one transaction; refused where the lease's epoch has passed.
    async fn save_progress(&self, lease: &Lease, progress: &Progress) -> Result<(), StoreError>;

    /// Writes a state for people to see; refused where the epoch has passed.
    async fn report_state(&self, lease: &Lease, report: &StateReport) -> Result<(), StoreError>;

    /// Parks an event; parking the same one again changes nothing while it is open, and opens it again
    /// where a person had resolved it. Gives its number.
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError>;

    /// Records a hole and gives its number. What a restart records again is the same hole: a `lost` one
    /// that begins at the same place as one whose end is not known yet or is
    /// the same, a `gap` that the same event told of.
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError>;

    /// Fills in the end of a subscription's open `lost` holes.
    async fn close_holes(&self, lease: &Lease, to: &ReplayId) -> Result<(), StoreError>;

    /// A schema's JSON text, where it is known.
    async fn load_schema(&self, id: &SchemaId) -> Result<Option<Arc<str>>, StoreError>;

    /// Keeps a schema's JSON text.
    async fn save_schema(&self, id: &SchemaId, json: &str) -> Result<(), StoreError>;

    /// Every subscription in the store.
    async fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, StoreError>;

    /// Parked events, oldest first.
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError>;

    /// One parked event.
    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError>;

    /// Holes, newest first.
    async fn holes(&self, open_only: bool) -> Result<Vec<StoredHole>, StoreError>;

    /// Closes connections; later calls are refused.
    async fn close(&self);
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
            Ok(Arc::new(postgres::PostgresStore::open(config, cipher)?))
        }
        #[cfg(feature = "sqlite")]
        Some("sqlite") => Ok(Arc::new(sqlite::SqliteStore::open(config, cipher)?)),
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
