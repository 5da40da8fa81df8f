//! The right to run a subscription (design 3.1, rule 11).

use std::time::SystemTime;

use async_trait::async_trait;

use super::{FinishedAhead, StoreError, SubscriptionKey};
use crate::config::Start;
use crate::event::ReplayId;

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
    /// Where a rewind told it to begin, while it has no position: earliest or latest, whatever the
    /// configuration says.
    pub begin_from: Option<Start>,
    /// What each handler has finished above the position (design 3.1, rule 3).
    pub finished_ahead: Vec<FinishedAhead>,
    /// When the position was last written.
    pub position_at: Option<SystemTime>,
}

/// Who runs which subscription.
#[async_trait]
pub trait Leases: Send + Sync {
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
}
