//! What people do to a subscription as a whole (design 3.1, rules 4 and 13).

use async_trait::async_trait;

use super::StoreError;
use crate::event::OrgId;

/// What became of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// The subscription and all that belongs to it has the new name.
    Done,
    /// No subscription has the old name.
    Unknown,
    /// The new name has a position of its own.
    NameTaken,
}

/// Pausing, resuming, renaming. Each raises the row's `asked`, so that workers look at it anew.
#[async_trait]
pub trait Controls: Send + Sync {
    /// Keeps a subscription from running: whoever runs it finishes what is in flight and lets it go, and
    /// nobody takes it over. One that was paused before stays so since then. False where there is no such
    /// subscription.
    async fn pause(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError>;

    /// Lets a paused subscription run again. False where there is no such subscription.
    async fn resume(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError>;

    /// Gives a subscription another name, with its position, what is finished above it, its dead letters,
    /// holes, marks and commands, under a new epoch: nobody writes under the old name any more.
    ///
    /// # Errors
    ///
    /// [`StoreError::Held`] while a worker runs it.
    async fn rename(&self, org_id: &OrgId, old: &str, new: &str) -> Result<Renamed, StoreError>;
}
