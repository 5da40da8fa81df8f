//! Slows down those who guess the token.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens that are looked at in a row, from all addresses together.
const BURST: u32 = 20;

/// How long until one more is.
const REFILL: Duration = Duration::from_secs(2);

/// Addresses that are remembered because they were let in.
const KNOWN: usize = 64;

/// Counts wrong tokens, from wherever they come: who guesses has many addresses. Where too many came, tokens are not
/// looked at for a moment, so that a guess says nothing; but for those from addresses that were let in before,
/// because else a stranger could lock everybody out. Sessions are not tokens, and go on.
#[derive(Debug)]
pub(super) struct Guesses(Mutex<Counted>);

#[derive(Debug)]
struct Counted {
    /// Wrong tokens that will still be looked at.
    left: u32,
    refilled_at: Instant,
    /// The latest last.
    known: VecDeque<IpAddr>,
}

impl Guesses {
    /// Nobody has guessed yet.
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Counted {
            left: BURST,
            refilled_at: now,
            known: VecDeque::new(),
        }))
    }

    /// Whether a token from this address is looked at now.
    pub(super) fn may_try(&self, from: IpAddr, now: Instant) -> bool {
        self.with(now, |counted| {
            counted.left > 0 || counted.known.contains(&from)
        })
    }

    /// A token was wrong. A known address that guesses is known no more.
    pub(super) fn failed(&self, from: IpAddr, now: Instant) {
        self.with(now, |counted| {
            counted.left = counted.left.saturating_sub(1);
            counted.known.retain(|known| *known != from);
        });
    }

    /// A token was right.
    pub(super) fn succeeded(&self, from: IpAddr, now: Instant) {
        self.with(now, |counted| {
            counted.known.retain(|known| *known != from);
            if counted.known.len() == KNOWN {
                counted.known.pop_front();
            }
            counted.known.push_back(from);
        });
    }

    fn with<T>(&self, now: Instant, look: impl FnOnce(&mut Counted) -> T) -> T {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(counted.refilled_at);
        let more = u32::try_from(passed.as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if more > 0 {
            counted.left = counted.left.saturating_add(more).min(BURST);
            counted.refilled_at += REFILL * more.min(BURST);
            if counted.left == BURST {
                counted.refilled_at = now;
            }
        }
        look(&mut counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN_ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn who_guesses_has_to_wait_and_who_was_let_in_before_has_not() {
        let now = Instant::now();
        let guesses = Guesses::new(now);
        guesses.succeeded(KNOWN_ONE, now);
        for _ in 0..BURST {
            assert!(guesses.may_try(STRANGER, now));
            guesses.failed(STRANGER, now);
        }
        assert!(!guesses.may_try(STRANGER, now));
        assert!(guesses.may_try(KNOWN_ONE, now));
        // One more after a while, and no more than one.
        let later = now + REFILL;
        assert!(guesses.may_try(STRANGER, later));
        guesses.failed(STRANGER, later);
        assert!(!guesses.may_try(STRANGER, later));
        // All of them after long.
        let much_later = later + REFILL * 1000;
        for _ in 0..BURST {
            assert!(guesses.may_try(STRANGER, much_later));
            guesses.failed(STRANGER, much_later);
        }
        assert!(!guesses.may_try(STRANGER, much_later));
        // A known address that begins to guess is a stranger.
        guesses.failed(KNOWN_ONE, much_later);
        assert!(!guesses.may_try(KNOWN_ONE, much_later));
    }
}
