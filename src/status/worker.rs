//! A worker, as people see it.

use std::time::SystemTime;

use serde::Serialize;

use super::time;
use crate::store::{LivingWorker, SubscriptionStatus};

/// A worker that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// The dyno, or host and process ID.
    pub name: String,
    /// Random for each start of the process.
    pub holder: String,
    /// Version of the program.
    pub version: String,
    /// When it first said that it lives, by the store's clock.
    #[serde(serialize_with = "time")]
    pub started_at: SystemTime,
    /// When it last did.
    #[serde(serialize_with = "time")]
    pub seen_at: SystemTime,
    /// Names of the subscriptions that it runs now.
    pub runs: Vec<String>,
    /// Names of the subscriptions that it can run.
    pub can_run: Vec<String>,
    /// Names of those of its configuration that it is not given.
    pub refused: Vec<String>,
}

impl Worker {
    pub(super) fn of(living: LivingWorker, stored: &[SubscriptionStatus]) -> Self {
        let (one, started_at, seen_at) = (living.worker, living.started_at, living.seen_at);
        let is_its =
            |row: &&SubscriptionStatus| row.held && row.holder.as_ref() == Some(&one.holder);
        Self {
            runs: stored
                .iter()
                .filter(is_its)
                .map(|row| row.key.name.clone())
                .collect(),
            started_at,
            seen_at,
            name: one.name,
            holder: one.holder,
            version: one.version,
            can_run: one.subscriptions,
            refused: one.refused.into_iter().map(|one| one.name).collect(),
        }
    }
}
