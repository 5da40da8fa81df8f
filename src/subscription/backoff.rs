//! Pauses that grow, with jitter, and shrink only after a calm spell. Pure.

use std::time::Duration;

use crate::config::BackoffConfig;

/// Consecutive failures and the pause after each.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    config: BackoffConfig,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(config: BackoffConfig) -> Self {
        Self {
            config,
            failures: 0,
        }
    }

    /// The pause after one more failure: doubling from the first to the longest, of which up to a half is
    /// left to chance so that many workers do not come back together.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = pause(&self.config, self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Failures since the last [`Backoff::reset`].
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// How long things must have gone well before trouble counts as new: as long as the longest pause, so
    /// that a server that accepts and then fails is not asked in a tight loop.
    pub(super) fn calm_spell(&self) -> Duration {
        self.config.max
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The pause after a number of earlier failures.
pub(crate) fn pause(config: &BackoffConfig, earlier_failures: u32) -> Duration {
    let full = config
        .initial
        .saturating_mul(
            1u32.checked_shl(earlier_failures.min(30))
                .unwrap_or(u32::MAX),
        )
        .min(config.max);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new(BackoffConfig {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(1),
        });
        for full in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next_pause();
            assert!(pause >= Duration::from_millis(full / 2), "{pause:?} {full}");
            assert!(pause <= Duration::from_millis(full), "{pause:?} {full}");
        }
        for _ in 0..100 {
            assert!(backoff.next_pause() <= Duration::from_secs(1));
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_millis(100));
    }
}
