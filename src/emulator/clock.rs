//! The org's clock, which a test may put forward or back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// The system clock and an offset.
#[derive(Debug, Default)]
pub(super) struct Clock {
    offset_ms: AtomicI64,
}

impl Clock {
    /// Now, by the org's clock.
    pub(super) fn now(&self) -> SystemTime {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        let distance = Duration::from_millis(offset.unsigned_abs());
        let now = SystemTime::now();
        let shifted = if offset < 0 {
            now.checked_sub(distance)
        } else {
            now.checked_add(distance)
        };
        shifted.unwrap_or(now)
    }

    /// Milliseconds since 1970, by the org's clock.
    pub(super) fn now_ms(&self) -> i64 {
        self.now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or_default()
    }

    /// How far it is ahead of the system clock; negative where it is behind.
    pub(super) fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Sets how far it is ahead.
    pub(super) fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}
