//! A worker, as people see it.

use serde::Serialize;

use crate::store::{SubscriptionStatus, Worker as Living};

/// A worker that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// The dyno, or host and process ID.
    pub name: String,
    /// Random for each start of the process.
    pub holder: String,
    /// Version of the program.
    pub version: String,
    /// Names of the subscriptions that it runs now.
    pub runs: Vec<String>,
    /// Names of the subscriptions that it can run.
    pub can_run: Vec<String>,
    /// Names of those of its configuration that it is not given.
    pub refused: Vec<String>,
}

impl Worker {
    pub(super) fn of(one: Living, stored: &[SubscriptionStatus]) -> Self {
        let is_its =
            |row: &&SubscriptionStatus| row.held && row.holder.as_ref() == Some(&one.holder);
        Self {
            runs: stored
                .iter()
                .filter(is_its)
                .map(|row| row.key.name.clone())
                .collect(),
            name: one.name,
            holder: one.holder,
            version: one.version,
            can_run: one.subscriptions,
            refused: one.refused.into_iter().map(|one| one.name).collect(),
        }
    }
}
