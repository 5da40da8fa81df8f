//! What is kept for a while only.

use async_trait::async_trait;

use super::StoreError;
use crate::config::RetentionConfig;

/// Rows that one [`Retention::prune`] deletes of a table at most: no lock is held for long, and a table that
/// was never pruned does not make one huge transaction.
pub const PRUNE_PORTION: u32 = 1_000;

/// Changes of state that stay for each subscription, however old.
pub const STATE_CHANGES_KEPT: u32 = 20;

/// Changes of state that may stay for each subscription, however young.
pub const STATE_CHANGES_MOST: u32 = 500;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Resolved dead letters.
    pub dead_letters: u64,
    /// Acknowledged holes.
    pub holes: u64,
    /// Position marks.
    pub position_marks: u64,
    /// Samples of lag and events.
    pub samples: u64,
    /// Changes of state.
    pub state_changes: u64,
    /// Readings of the allocation.
    pub allocation: u64,
}

impl Pruned {
    /// True where a table may hold more of the same.
    pub fn is_full_portion(&self) -> bool {
        let deleted = [
            self.dead_letters,
            self.holes,
            self.position_marks,
            self.samples,
            self.state_changes,
            self.allocation,
        ];
        deleted.contains(&u64::from(PRUNE_PORTION))
    }
}

/// Deletes what nobody needs any more. Nothing that waits for a person is ever deleted.
#[async_trait]
pub trait Retention: Send + Sync {
    /// Deletes a portion of what is older than configured: resolved dead letters, acknowledged holes, position
    /// marks, samples, changes of state, readings of the allocation; at most [`PRUNE_PORTION`] rows of each.
    /// Several workers may do so at once.
    async fn prune(&self, retention: &RetentionConfig) -> Result<Pruned, StoreError>;
}
