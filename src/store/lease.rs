//! The right to run a subscription (design 3.1, rule 11).

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{FinishedAhead, StoreError, SubscriptionKey};
use crate::config::Start;
use crate::event::{OrgId, ReplayId};

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
    /// Transaction key of the change event at the position ([`super::Progress::transaction`]).
    pub transaction: Option<String>,
    /// True where an earlier run was about to begin at LATEST ([`super::Positions::mark_begun`]) and left no
    /// position: what came between then and now is a hole.
    pub begun_without_position: bool,
    /// Where it has no position: the first replay ID that came on a stream that began at LATEST
    /// ([`super::Positions::mark_first`]). What came after it can still be had.
    pub begun_with: Option<ReplayId>,
    /// Where it has no position, because a rewind or an expired replay ID took it away: earliest or latest,
    /// whatever the configuration says.
    pub begin_from: Option<Start>,
    /// Where it has no position, because the bus does not know it any more: that position. What an earlier run
    /// had received after it and not finished is lost.
    pub lost_position: Option<ReplayId>,
    /// When its first stream was about to begin at LATEST, where that was recorded.
    pub begun_at: Option<SystemTime>,
    /// When the event at the position was committed, or the keepalive received.
    pub position_time: Option<SystemTime>,
    /// The newest event at or below the position ([`super::Progress::position_event`]), where it is known.
    pub position_event: Option<ReplayId>,
    /// What each handler has finished above the position (design 3.1, rule 3).
    pub finished_ahead: Vec<FinishedAhead>,
    /// When the position was last written.
    pub position_at: Option<SystemTime>,
    /// Where rewinds have left from of which nobody knows yet whether they skipped anything: a stream that
    /// brings such a place has skipped nothing ([`super::Holes::nothing_skipped`]).
    pub rewound_from: Vec<ReplayId>,
}

/// A process that runs subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Random for each start of the process.
    pub holder: String,
    /// The dyno, or host and process ID: for people.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Names of the subscriptions that it can run: those of its configuration that it was not refused.
    pub subscriptions: Vec<String>,
    /// Those of its configuration that it cannot begin.
    pub refused: Vec<Refused>,
}

/// A worker that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingWorker {
    /// Which.
    pub worker: Worker,
    /// When it first said that it lives.
    pub started_at: SystemTime,
    /// When it last did.
    pub seen_at: SystemTime,
}

/// A subscription that a worker has in its configuration, and that the store does not give it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Its topic, by that configuration.
    pub topic: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// What a heartbeat brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Names of the subscriptions whose lease is renewed.
    pub renewed: Vec<String>,
    /// Names of the subscriptions that are still this worker's, those included whose row another
    /// transaction has locked just now, so that they could not be renewed this time.
    pub held: Vec<String>,
}

/// Who may run a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenure {
    /// Nobody holds the lease: it was given back, or never taken.
    Free,
    /// The lease ran out: its holder is gone, or could not renew it.
    Lapsed,
    /// Somebody holds it.
    Held {
        /// The process.
        holder: String,
        /// How long it holds if it is not renewed.
        rest: Duration,
    },
}

/// A subscription's row, as those see it who share the subscriptions out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// The subscription's name.
    pub name: String,
    /// Who may run it.
    pub tenure: Tenure,
    /// A person paused it.
    pub paused: bool,
    /// Grows whenever a person asks something of the owner.
    pub asked: i64,
    /// What whoever takes it over next finds.
    pub footing: Footing,
}

/// Where a subscription would go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// Nowhere yet: it would begin as the configuration says, or a rewind.
    New,
    /// It began at LATEST and has no position: who takes it over begins at another LATEST, and what came
    /// in between is lost.
    Begun,
    /// At its position.
    Placed,
}

/// A worker that lives and does not stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Random for each start of the process.
    pub holder: String,
    /// Names of the subscriptions that it can run.
    pub subscriptions: Vec<String>,
}

/// Who there is, and what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Workers that live and do not stop, by holder.
    pub workers: Vec<Peer>,
    /// Workers that are stopping: what they run is free in a moment.
    pub stopping: usize,
    /// The rows of one org. A subscription that never ran has none.
    pub subscriptions: Vec<Surveyed>,
}

/// Who runs which subscription (design 3.1, rule 11).
///
/// A lease is a row with an end and an epoch, by the database's clock. With SQLite a lock on the file says
/// which process runs subscriptions, all of them: the end is kept for people to see and counts for nothing,
/// to a survey every subscription is free, and there is one worker.
#[async_trait]
pub trait Leases: Send + Sync {
    /// True where a lease runs out unless it is renewed; false where a lock of the operating system stands
    /// for it.
    fn leases_run_out(&self) -> bool;

    /// Takes a subscription over for `ttl` under a new epoch, creating its row at first. The same holder
    /// may take over again. `configured` names every subscription of the configuration, and
    /// `start_is_explicit` says that the configuration names where to begin: both decide whether a new name
    /// is a rename (design 3.1, rule 4). A name that a person gave up by a rename is
    /// refused in any case ([`StoreError::Renamed`]).
    ///
    /// # Errors
    ///
    /// [`StoreError::Held`] while another holder's lease has not run out, [`StoreError::Paused`] while a
    /// person keeps it paused; nothing has changed then.
    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        ttl: Duration,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError>;

    /// What a take-over would find, under the epoch that is held already.
    async fn taken(&self, lease: &Lease) -> Result<TakenOver, StoreError>;

    /// Says that a worker lives for another `ttl`, and renews the leases of `running` as far as they are
    /// still its own: one that ran out but was taken by nobody is renewed under its epoch. A worker that is
    /// `stopping` is counted among the living no more, so that the others make room for what it lets go.
    /// Bounded by a fifth of `ttl`, and waits for no other call; on SQLite, where no lease runs out, it waits its turn
    /// like all others.
    async fn heartbeat(
        &self,
        worker: &Worker,
        ttl: Duration,
        running: &[SubscriptionKey],
        stopping: bool,
    ) -> Result<Heartbeat, StoreError>;

    /// Looks at all workers, and at all subscriptions of an org. Bounded by `limit`, and waits for no other
    /// call but a heartbeat.
    async fn survey(&self, org_id: &OrgId, limit: Duration) -> Result<Survey, StoreError>;

    /// The workers that live, for people to see: by name.
    async fn workers(&self) -> Result<Vec<LivingWorker>, StoreError>;

    /// Gives a lease back, so that another worker may take over at once. One whose epoch has passed is left
    /// alone.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Forgets a worker that has ended.
    async fn retire(&self, holder: &str) -> Result<(), StoreError>;
}
