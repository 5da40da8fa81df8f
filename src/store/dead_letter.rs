//! Parked events.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Lease, StoreError};
use crate::event::{Commit, EventIdentity, ReplayId, SchemaId};

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
    /// `rejected`, `exhausted`, `undecodable`, `schema_refused`, `schema_unavailable`, `parked_behind`; `unreadable`
    /// where it could not be read when it was no longer behind.
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
    /// Records it concerns, or the value of its key, so that later events of theirs can wait behind it.
    pub record_ids: Vec<String>,
    /// Avro record name, where it is known.
    pub record_name: Option<String>,
    /// Dead letters of one handler and unit are handed over together: the events of a transaction. Of one
    /// that may not be whole, the unit's name begins with [`PART`].
    pub unit: Option<String>,
    /// Order among the dead letters of one handler ([`Placed`]); `None` puts it behind all of them.
    pub place: Option<i64>,
    /// When it was received.
    pub received_at: SystemTime,
    /// When its change was committed: what tells it from younger ones of its records where the bus has forgotten it.
    /// `None` for a platform event, and where its header could not be read.
    pub commit: Option<Commit>,
    /// True where it is parked off the live stream: until the position passes its event, a stream that begins
    /// at the position brings that once more.
    pub ahead: bool,
    /// True for an event of a side replay: it says so when it is handed over once more, too.
    pub replayed: bool,
    /// True where its payload is kept encrypted, because a handler is not shown all of it.
    pub sealed: bool,
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
    /// When a person asked for another attempt that was not made yet.
    pub retry_asked_at: Option<SystemTime>,
    /// When it was handled or discarded.
    pub resolved_at: Option<SystemTime>,
    /// Why its payload, which is encrypted, cannot be read here; the letter's is empty then.
    pub unreadable: Option<String>,
    /// The event.
    pub letter: DeadLetter,
}

/// Where a dead letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placed {
    /// Order among the dead letters of one handler, oldest first; the number decides between equals.
    pub place: i64,
    /// Its number.
    pub id: i64,
}

/// What stands in the way of later events: an open dead letter, or what became of one, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterSummary {
    /// Its number, and its order.
    pub placed: Placed,
    /// Subscription it was parked for.
    pub subscription: String,
    /// Topic of that subscription.
    pub topic: String,
    /// The handler; `None` where it could not be decoded for anyone.
    pub handler: Option<String>,
    /// Which event.
    pub identity: EventIdentity,
    /// `open`, `handled` or `discarded`.
    pub state: String,
    /// Why it was parked.
    pub reason: String,
    /// What went wrong, for a person.
    pub error: String,
    /// Records it concerns, or the value of its key.
    pub record_ids: Vec<String>,
    /// What it is handed over with.
    pub unit: Option<String>,
    /// True where a person asked for another attempt that was not made yet.
    pub asked: bool,
    /// Place on the bus.
    pub replay_id: Option<ReplayId>,
    /// Bytes of payload.
    pub bytes: u64,
    /// When its event was received.
    pub received_at: SystemTime,
    /// When its change was committed, where that is known.
    pub commit: Option<Commit>,
    /// True where its event is above the stored position, so that the stream brings it once more, if the bus
    /// still keeps it.
    pub to_come: bool,
    /// The position that a rewind left, where that put the position before the event, or may have: at the
    /// latest the event lies there.
    pub until: Option<ReplayId>,
}

/// A letter that is not open any more although its event is still above the stored position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SettledAhead {
    /// Its number.
    pub id: i64,
    /// The handler; `None` for all of them.
    pub handler: Option<String>,
    /// Which event.
    pub identity: EventIdentity,
}

/// Open dead letters that a person means: those that all of these let through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterSelection {
    /// Of these numbers; empty is any.
    pub ids: Vec<i64>,
    /// Of one subscription.
    pub subscription: Option<String>,
    /// Of one handler.
    pub handler: Option<String>,
    /// For one reason.
    pub reason: Option<String>,
}

/// How another attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `rejected`, `exhausted`, `undecodable`, …
    pub reason: String,
    /// What went wrong, for a person; without payload or secrets.
    pub error: String,
    /// How often it was handed over this time.
    pub attempts: u32,
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
    /// Of this number.
    pub id: Option<i64>,
    /// Only those that come behind this number in the order of the list: the last one of the page before.
    pub behind: Option<i64>,
    /// The newest first, not the oldest.
    pub newest_first: bool,
    /// Without their payloads, which may be large: those are empty then.
    pub bare: bool,
    /// At most so many; 0 is none.
    pub limit: u32,
}

/// Parked events, kept until a person retries or discards them.
///
/// The owner of the subscription moves letters on under its lease. A person's calls need none: they change
/// open letters only, whoever comes first decides, and they make `subscription.asked` grow, so that the
/// owner looks anew.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Parks events in this order, all or none; parking the same one again changes nothing while it is open, and
    /// opens it again, behind all others, where it had been resolved. And these open ones, although they were parked
    /// earlier, go behind them in this order. Gives the places of the letters, and those that the others have now, if
    /// they are open.
    async fn park_before(
        &self,
        lease: &Lease,
        letters: &[DeadLetter],
        behind: &[i64],
    ) -> Result<(Vec<Placed>, Vec<Placed>), StoreError>;

    /// Every open letter of the subscription, oldest first.
    async fn open_letters(&self, lease: &Lease) -> Result<Vec<LetterSummary>, StoreError>;

    /// Letters handled or discarded although the position has not passed their events, which the stream will
    /// bring once more.
    async fn settled_ahead(&self, lease: &Lease) -> Result<Vec<SettledAhead>, StoreError>;

    /// These letters with their payloads, oldest first.
    async fn letters(&self, ids: &[i64]) -> Result<Vec<StoredDeadLetter>, StoreError>;

    /// These letters are handled. Gives those that were open until now.
    async fn resolve(&self, lease: &Lease, ids: &[i64]) -> Result<Vec<i64>, StoreError>;

    /// These letters were tried again, in vain: they stay open, for this reason now, and nobody's wish for
    /// another attempt is left. Gives those that were open until now; the others stay as they are.
    async fn park_again(
        &self,
        lease: &Lease,
        ids: &[i64],
        refusal: &Refusal,
    ) -> Result<Vec<i64>, StoreError>;

    /// Letters that could not be decoded for anyone, one or all of a unit, can be now: they count as handled,
    /// and each handler has letters of its own in their place, which ask for an attempt; the event of each is as far ahead as it was. All or nothing;
    /// nothing where one of them was not open any more, and then gives `None`.
    async fn pass_on(
        &self,
        lease: &Lease,
        ids: &[i64],
        letters: &[DeadLetter],
    ) -> Result<Option<Vec<Placed>>, StoreError>;

    /// Parked events in the order in which they are handed over, oldest first; or, newest first, by their numbers.
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError>;

    /// One parked event.
    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError>;

    /// Open letters that a person means, oldest first.
    async fn select_letters(
        &self,
        selection: &LetterSelection,
    ) -> Result<Vec<LetterSummary>, StoreError>;

    /// What became of these letters, oldest first.
    async fn letter_summaries(&self, ids: &[i64]) -> Result<Vec<LetterSummary>, StoreError>;

    /// A person asks for another attempt at open letters. Gives their numbers.
    async fn ask_retry(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError>;

    /// A person takes that back where the attempt was not made yet. Gives the numbers of those letters.
    async fn withdraw_retry(&self, ids: &[i64]) -> Result<Vec<i64>, StoreError>;

    /// A person gives open letters up, and with each all of its unit, for none of it is handed over without
    /// the rest. Gives their numbers.
    async fn discard(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError>;
}
