//! Where a subscription stands, what is finished above it, and its state for people.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Lease, StoreError, SubscriptionKey};
use crate::config::Start;
use crate::event::{EventIdentity, ReplayId};

/// An event that a handler has finished although the position has not passed it yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FinishedAhead {
    /// Handler name.
    pub handler: String,
    /// Which event.
    pub identity: EventIdentity,
}

/// How much came lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recent {
    /// Events received.
    pub events: u64,
    /// Within this time.
    pub over: Duration,
}

/// What a subscription has achieved since its last write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The new position; `None` leaves it as it is.
    pub position: Option<ReplayId>,
    /// When the event at the position was committed, or the keepalive received.
    pub position_time: Option<SystemTime>,
    /// The newest event at or below the position, which may be a keepalive's; `None` where only keepalives
    /// were passed since the last write. Goes with `position`.
    pub position_event: Option<ReplayId>,
    /// The position was given up, and the stream begins here, at earliest or latest; counts where no new
    /// position is given.
    pub begin_from: Option<Start>,
    /// With `begin_from`: events received before are still to be finished, and are lost if the process ends
    /// ([`super::TakenOver::lost_position`]).
    pub unfinished: bool,
    /// Transaction key of the change event at the position; goes with `position`.
    pub transaction: Option<String>,
    /// What is finished above the position.
    pub finished_ahead: Vec<FinishedAhead>,
    /// What becomes of the rest that is stored. `None`: [`Progress::finished_ahead`] is the whole set and
    /// replaces it. Else only the marks of these events go, which the position has passed: handlers add marks
    /// in transactions of their own ([`Transactions`](super::Transactions)), and this write may have been
    /// made up before one of them and reach the store after it.
    pub passed: Option<Vec<EventIdentity>>,
    /// Dead letters whose events the position has passed: no stream that begins there brings them once more.
    pub letters_passed: Vec<i64>,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateReport {
    /// `connecting`, `live`, `paused`, `reconnecting`, `blocked`, `stopped`.
    pub state: String,
    /// Why, and the cure where a person has to act.
    pub detail: Option<String>,
    /// Salesforce's name of the call that failed or opened the stream.
    pub rpc_id: Option<String>,
    /// The stream begins after this place; `None` at earliest or latest.
    pub replay_id: Option<ReplayId>,
    /// When it came about, by the worker's clock; `None` is now.
    pub at: Option<SystemTime>,
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
    /// Process that holds the lease, or held it last.
    pub holder: Option<String>,
    /// True while the lease holds: that process runs it. False: it waits for a worker.
    pub held: bool,
    /// Name of that process, as long as it is remembered.
    pub worker: Option<String>,
    /// When a person paused it; `None` where it may run.
    pub paused_at: Option<SystemTime>,
    /// Epoch of the last change of hands.
    pub epoch: i64,
    /// Where it stands.
    pub position: Option<ReplayId>,
    /// When the position was last written.
    pub position_at: Option<SystemTime>,
    /// When the event at the position was committed, or the keepalive received.
    pub position_time: Option<SystemTime>,
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

/// Positions and states.
#[async_trait]
pub trait Positions: Send + Sync {
    /// Records that a stream is about to begin at LATEST, so that a crash before its first response is
    /// seen as a hole ([`super::TakenOver::begun_without_position`]).
    async fn mark_begun(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Records the first replay ID that came on a stream that began at LATEST, so that a restart before
    /// the first position loses no more than that one ([`super::TakenOver::begun_with`]). The first one stays.
    async fn mark_first(&self, lease: &Lease, first: &ReplayId) -> Result<(), StoreError>;

    /// Writes progress, in one transaction; refused where the lease's epoch has passed.
    async fn save_progress(&self, lease: &Lease, progress: &Progress) -> Result<(), StoreError>;

    /// Writes states for people to see, of which the last one stands; refused where the epoch has passed. Each
    /// whose state, detail or epoch are not those of the one before is kept as a
    /// [`StateChange`](super::StateChange) too, in the same transaction; one that only adds the name of a call
    /// adds it to that.
    async fn report_states(&self, lease: &Lease, reports: &[StateReport])
    -> Result<(), StoreError>;

    /// Writes one state.
    async fn report_state(&self, lease: &Lease, report: &StateReport) -> Result<(), StoreError> {
        self.report_states(lease, std::slice::from_ref(report))
            .await
    }

    /// How many events came over at most `window`, counted back from the newest position mark; `None` where
    /// there are not two marks to tell by.
    async fn recent_events(
        &self,
        key: &SubscriptionKey,
        window: Duration,
    ) -> Result<Option<Recent>, StoreError>;

    /// Every subscription in the store.
    async fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, StoreError>;
}
