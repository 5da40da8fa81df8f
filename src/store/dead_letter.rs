//! Parked events.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Lease, StoreError};
use crate::event::{EventIdentity, ReplayId, SchemaId};

/// How the name of a unit begins whose events may not be a whole transaction, and are handed over with
/// `partial` set.
pub const PART: &str = "part:";

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
    /// Dead letters of one handler and unit are handed over together: the events of a transaction. Of one
    /// that may not be whole, the unit's name begins with [`PART`].
    pub unit: Option<String>,
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

/// Parked events, kept until a person retries or discards them.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Parks an event; parking the same one again changes nothing while it is open, and opens it again
    /// where a person had resolved it. Gives its number.
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError>;

    /// As [`DeadLetters::park`], several together: all or none.
    async fn park_all(&self, lease: &Lease, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Parked events, oldest first.
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError>;

    /// One parked event.
    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError>;
}
