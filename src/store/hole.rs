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
    /// Why: `expired_replay_id`, `latest_before_first_response`, `skipped_by_rewind`, `gap_event`, `overflow`, `wildcard`.
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

/// Holes, shown until a person acknowledges them.
#[async_trait]
pub trait Holes: Send + Sync {
    /// Records a hole and gives its number. What a restart records again is the same hole: a `lost` one
    /// that begins at the same place as one whose end is not known yet or is
    /// the same, a `gap` that the same event told of.
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError>;

    /// Fills in the end of a subscription's open `lost` holes.
    async fn close_holes(&self, lease: &Lease, to: &ReplayId) -> Result<(), StoreError>;

    /// Holes, newest first.
    async fn holes(&self, open_only: bool) -> Result<Vec<StoredHole>, StoreError>;
}
