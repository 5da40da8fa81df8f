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

    /// As [`Controls::pause`], for a rename under way: [`Controls::rename`] ends this pause. One by a person goes on.
    async fn pause_to_rename(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError>;

    /// Ends a pause by [`Controls::pause_to_rename`], of which nothing came. False where there is none.
    async fn resume_unrenamed(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError>;

    /// Lets a paused subscription run again. False where there is no such subscription.
    async fn resume(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError>;

    /// Gives a subscription another name, with its position, what is finished above it, its dead letters,
    /// holes, marks and commands, under a new epoch: nobody writes under the old name any more. Done once more, it
    /// changes nothing: the answer of the first may have been lost.
    ///
    /// # Errors
    ///
    /// [`StoreError::Held`] while a worker runs it.
    async fn rename(&self, org_id: &OrgId, old: &str, new: &str) -> Result<Renamed, StoreError>;
}
