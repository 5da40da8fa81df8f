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

    /// The pause after one more failure: doubling from the first to the longest, and up to a half of it left to chance
    /// between these two, so that many workers do not come back together.
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

/// The pause after a number of earlier failures: never shorter than the first, nor longer than the longest.
pub(crate) fn pause(config: &BackoffConfig, earlier_failures: u32) -> Duration {
    let doubled = 1u32.checked_shl(earlier_failures.min(30));
    let full = config.initial.saturating_mul(doubled.unwrap_or(u32::MAX));
    let full = full.min(config.max);
    let least = (full / 2).max(config.initial.min(config.max));
    let most = full.max((least + least / 2).min(config.max));
    least + (most - least).mul_f64(fastrand::f64())
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
        let bounds = [
            (100, 150),
            (100, 200),
            (200, 400),
            (400, 800),
            (500, 1000),
            (500, 1000),
        ];
        for (least, most) in bounds {
            let pause = backoff.next_pause();
            assert!(pause >= Duration::from_millis(least), "{pause:?} {least}");
            assert!(pause <= Duration::from_millis(most), "{pause:?} {most}");
        }
        for _ in 0..100 {
            assert!(backoff.next_pause() <= Duration::from_secs(1));
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_millis(150));
    }
    #[test]
    fn a_pause_is_never_shorter_than_the_first_nor_longer_than_the_longest() {
        let minutes = |least: u64, most: u64| BackoffConfig {
            initial: Duration::from_secs(60 * least),
            max: Duration::from_secs(60 * most),
        };
        for (config, earlier) in [1, 5, 7]
            .into_iter()
            .flat_map(|most| (0..40).map(move |earlier| (minutes(1, most), earlier)))
            .chain([(minutes(9, 5), 3)])
        {
            let pause = pause(&config, earlier);
            assert!(pause >= config.initial.min(config.max), "{pause:?}");
            assert!(pause <= config.max, "{pause:?}");
        }
    }
}
