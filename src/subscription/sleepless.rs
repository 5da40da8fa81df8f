//! A clock that goes on while the machine sleeps. `Instant` does not: on Linux it is CLOCK_MONOTONIC, which
//! stands still while a laptop is closed or a virtual machine is suspended, and meanwhile a lease runs out by
//! the database's clock.

use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME counts the time asleep (clock_gettime(2)); elsewhere CLOCK_MONOTONIC does, or there is
/// nothing better.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A moment, counted from some beginning that is the same for all moments of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// By the clock that goes on while the machine sleeps.
    pub fn now() -> Self {
        let time = clock_gettime(CLOCK);
        // Neither is ever negative.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_the_one_that_counts_the_time_asleep() {
        let before = Moment::now();
        // The time since boot, time asleep included (proc(5)).
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let after = Moment::now();
        let hundredth = Duration::from_millis(20);
        let uptime = Moment(Duration::from_secs_f64(uptime));
        assert!(before - hundredth <= uptime && uptime <= after + hundredth);
        assert!(before <= after);
    }
}
