//! What people see of workers and subscriptions without asking a worker: posted by those who run, read by
//! `orgstream web`, `orgstream status` and the support bundle.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Lease, StoreError};
use crate::event::{OrgId, ReplayId};
use crate::salesforce::forecast;
use crate::salesforce::limits::Deliveries;

/// How long a post may take: nothing waits for it, and it must not keep a connection from a position.
pub(super) const POST_LIMIT: Duration = Duration::from_secs(5);

/// The last metrics of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Random for each start of the process.
    pub holder: String,
    /// Its name for people: the dyno, or host and process ID.
    pub worker: String,
    /// Version of its program.
    pub version: String,
    /// When it was posted: so long ago as the database's clock says, by the clock of whoever reads it.
    pub at: SystemTime,
    /// Prometheus text format.
    pub body: String,
}

/// How a subscription was for a while, at most a minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Some moment of that minute; as read, the minute's start.
    pub at: SystemTime,
    /// The greatest lag that was seen; `None` where nobody could tell.
    pub lag: Option<Duration>,
    /// Events received.
    pub received: u64,
    /// Dead letters made.
    pub parked: u64,
}

/// A change of a subscription's state, or of the hands that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// Which subscription.
    pub subscription: String,
    /// When, by the worker's clock.
    pub at: SystemTime,
    /// `connecting`, `live`, `paused`, `reconnecting`, `blocked`, `stopped`.
    pub state: String,
    /// Why, and the cure where a person has to act.
    pub detail: Option<String>,
    /// Salesforce's name of the call that it came from, for their support.
    pub rpc_id: Option<String>,
    /// The stream began, or is to begin, after this place; `None` at earliest or latest.
    pub replay_id: Option<ReplayId>,
    /// Name of the worker that reported it.
    pub worker: Option<String>,
    /// Epoch under which it was reported.
    pub epoch: i64,
}

/// What the org said of its daily event deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocationReading {
    /// When, by the database's clock.
    pub at: SystemTime,
    /// Events that it may be delivered in 24 hours, over all its subscribers.
    pub max: u64,
    /// What is left of them.
    pub remaining: u64,
}

impl AllocationReading {
    /// When nothing will be left, by readings of one org, oldest first ([`forecast`]).
    pub fn exhausted_at(readings: &[Self]) -> Option<SystemTime> {
        let deliveries = |one: &Self| {
            let (max, remaining) = (one.max, one.remaining);
            (one.at, Deliveries { max, remaining })
        };
        let readings: Vec<_> = readings.iter().map(deliveries).collect();
        forecast::exhausted_at(&readings)
    }
}

/// Snapshots, samples, state changes, readings. Posts are bounded by five seconds, because nothing waits for
/// them; one that failed may have been stored.
///
/// State changes are written by [`report_state`](super::Positions::report_state), in the same transaction.
#[async_trait]
pub trait Observations: Send + Sync {
    /// Replaces the metrics of a worker. One that is not known (it has not said yet that it lives, or was
    /// forgotten) posts nothing, without an error.
    async fn post_snapshot(&self, holder: &str, body: &str) -> Result<(), StoreError>;

    /// The metrics of the workers that live, by worker and holder.
    async fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError>;

    /// Adds a sample to its minute: the greater lag, the sum of what was received and parked. Refused where
    /// the lease's epoch has passed.
    async fn post_sample(&self, lease: &Lease, sample: &Sample) -> Result<(), StoreError>;

    /// The minutes that began at `since` or later, oldest first, of each subscription of an org that has any, by its
    /// name. A minute in which nobody ran it is missing.
    async fn samples(
        &self,
        org_id: &OrgId,
        since: SystemTime,
    ) -> Result<BTreeMap<String, Vec<Sample>>, StoreError>;

    /// The last changes of state, newest first: of one subscription, or of all of an org.
    async fn state_changes(
        &self,
        org_id: &OrgId,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<StateChange>, StoreError>;

    /// The time, by the database's clock, for one of all workers that ask within `every`: that one asks the org for its
    /// limits now. None where the store is not bound to that org.
    async fn claim_allocation(
        &self,
        org_id: &OrgId,
        every: Duration,
    ) -> Result<Option<SystemTime>, StoreError>;

    /// Keeps a reading; one of the same moment is replaced.
    async fn record_allocation(
        &self,
        org_id: &OrgId,
        reading: &AllocationReading,
    ) -> Result<(), StoreError>;

    /// The readings made at `since` or later, oldest first.
    async fn allocation(
        &self,
        org_id: &OrgId,
        since: SystemTime,
    ) -> Result<Vec<AllocationReading>, StoreError>;
}
