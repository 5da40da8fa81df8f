//! The org's event deliveries, as people see them.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::text::since;
use super::time;
use crate::store::AllocationReading;

/// The org counts over this time: how far back readings are of use.
pub(super) const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Readings are made every five minutes; one that is older says nothing of now.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// What the org last said of its daily event deliveries, over all its subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Allocation {
    /// When it said so.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// Events that it may be delivered in 24 hours.
    pub max: u64,
    /// What is left of them.
    pub remaining: u64,
}

impl Allocation {
    /// The newest of these readings, oldest first, where it is fresh.
    pub(super) fn of(readings: &[AllocationReading], now: SystemTime) -> Option<Self> {
        let last = readings
            .last()
            .filter(|last| since(last.at, now) <= FRESH)?;
        Some(Self {
            at: last.at,
            max: last.max,
            remaining: last.remaining,
        })
    }

    /// What is used, in percent of what there is.
    pub fn used_percent(&self) -> u64 {
        let used = self.max.saturating_sub(self.remaining);
        match self.max {
            0 => 100,
            max => used.saturating_mul(100) / max,
        }
    }
}
