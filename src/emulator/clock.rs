//! The org's clock, which a test may put forward or back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// How far the clock may be put ahead or back: 50 years, so that it stays between 1970 and what every
/// form of date can say.
const MAX_OFFSET_MS: i64 = 50 * 365 * 24 * 3600 * 1000;

/// An offset beyond what the clock can be put ahead or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the clock goes at most 50 years ({MAX_OFFSET_MS} ms) ahead or back; {0} ms is too far")]
pub struct ClockOutOfRange(pub i64);

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
    pub(super) fn set_offset_ms(&self, offset_ms: i64) -> Result<(), ClockOutOfRange> {
        if !(-MAX_OFFSET_MS..=MAX_OFFSET_MS).contains(&offset_ms) {
            return Err(ClockOutOfRange(offset_ms));
        }
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_leads_out_of_the_calendar_is_refused_and_changes_nothing() {
        let clock = Clock::default();
        for offset in [i64::MAX, i64::MIN, MAX_OFFSET_MS + 1, -MAX_OFFSET_MS - 1] {
            assert_eq!(clock.set_offset_ms(offset), Err(ClockOutOfRange(offset)));
            assert_eq!(clock.offset_ms(), 0);
        }
        for offset in [MAX_OFFSET_MS, -MAX_OFFSET_MS] {
            assert_eq!(clock.set_offset_ms(offset), Ok(()));
            assert!(clock.now_ms() > 0);
        }
    }
}
