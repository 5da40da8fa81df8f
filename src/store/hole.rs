//! What was missed, and how it is told.

use std::time::SystemTime;

use async_trait::async_trait;

use super::{Lease, StoreError};
use crate::event::ReplayId;

/// A stretch of the bus that was not seen, or records whose change came without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// `lost` or `gap`.
    pub kind: HoleKind,
    /// Why: `expired_replay_id`, `latest_before_first_response`, `skipped_by_rewind`,
    /// `perhaps_skipped_by_rewind`, `gap_event`, `overflow`, `wildcard`.
    pub reason: String,
    /// The last place known before it; `None` where there is none.
    pub from: Option<ReplayId>,
    /// The first place known after it; `None` until the next event or keepalive.
    pub to: Option<ReplayId>,
    /// When the last place known before it was committed or received: nothing older is missing.
    pub from_time: Option<SystemTime>,
    /// When what ended it was committed or received; of a gap, when the change was committed.
    pub to_time: Option<SystemTime>,
    /// Entity of a gap.
    pub entity: Option<String>,
    /// Records of a gap; of a stored one the first thousand.
    pub record_ids: Vec<String>,
    /// A sentence for a person.
    pub explanation: String,
}

/// Reason of a hole that a rewind leaves where nobody can tell whether it went back or on.
pub(super) const PERHAPS_SKIPPED: &str = "perhaps_skipped_by_rewind";

/// What such a hole says once that is known, and it went back.
pub(super) const NOTHING_SKIPPED: &str = "a person rewound the subscription from the beginning of this hole, and \
                                          the stream has come by that place again since: nothing was skipped";

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
    /// When a person acknowledged it, or a rewind proved to have skipped nothing.
    pub acknowledged_at: Option<SystemTime>,
    /// How many records the gap named.
    pub record_count: u64,
    /// The hole.
    pub hole: Hole,
}

impl StoredHole {
    /// True for a stretch that may still grow: nothing has come after it yet.
    pub fn is_open_ended(&self) -> bool {
        self.hole.kind == HoleKind::Lost && self.hole.to.is_none()
    }
}

/// Which holes to list or to acknowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoleFilter {
    /// Of one subscription.
    pub subscription: Option<String>,
    /// Only those that nobody has acknowledged.
    pub open_only: bool,
    /// Of these numbers.
    pub ids: Option<Vec<i64>>,
    /// At most so many, newest first; `None` for all.
    pub limit: Option<u32>,
}

/// Holes, shown until a person acknowledges them.
#[async_trait]
pub trait Holes: Send + Sync {
    /// Records a hole and gives its number. What is recorded again is the same hole:
    ///
    /// - A `gap` that the same event told of.
    /// - A `lost` one that begins at the same place and has no end yet, or the same. A position is lost only
    ///   once: where the end was known, nothing was finished since, and it is then as given, or open again.
    /// - A `lost` one from no place known (a start at LATEST), where one ends as it does: what it has to say
    ///   is added to that one's explanation.
    ///
    /// What a person has acknowledged stays as it is, and a new hole is recorded; unless it has no end yet and
    /// begins at the same place, for then it is lost still, and shown again. One that perhaps was skipped by a
    /// rewind and proved not to be is never the same.
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError>;

    /// Fills in the end of a subscription's open `lost` holes: the first place after them, and when it was
    /// committed or received.
    async fn close_holes(
        &self,
        lease: &Lease,
        to: &ReplayId,
        at: SystemTime,
    ) -> Result<(), StoreError>;

    /// Records the holes of changes that came without their content, all or none, as
    /// [`Holes::record_hole`] does each.
    async fn record_gaps(&self, lease: &Lease, gaps: &[Hole]) -> Result<(), StoreError>;

    /// A rewind has left from this place, and the stream has come by it again: nothing was skipped, and the
    /// hole that said that perhaps something was ([`TakenOver::rewound_from`](super::TakenOver::rewound_from))
    /// needs nobody's attention any more.
    async fn nothing_skipped(&self, lease: &Lease, from: &ReplayId) -> Result<(), StoreError>;

    /// Holes, newest first.
    async fn holes(&self, filter: &HoleFilter) -> Result<Vec<StoredHole>, StoreError>;

    /// Acknowledges open holes and gives the numbers of those that it changed, in order; `limit` and
    /// `open_only` do not matter. A hole that may still grow is left as it is, unless `open_ended` says that
    /// the person knows.
    async fn acknowledge_holes(
        &self,
        filter: &HoleFilter,
        open_ended: bool,
    ) -> Result<Vec<i64>, StoreError>;
}
