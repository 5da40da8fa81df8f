//! Slows down those who guess the token.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Wrong tokens in a row from one address that are answered at once.
const BURST: u32 = 20;

/// How long until one more is.
const REFILL: Duration = Duration::from_secs(2);

/// How long the answer to one more is kept back, and how many such answers are at the same time: each has a connection.
const HELD_BACK: Duration = Duration::from_secs(1);
const HELD_BACK_MOST: usize = 32;

/// Addresses that are remembered.
const ADDRESSES: usize = 1024;

/// Counts wrong tokens by the address that they come from. Only wrong ones: a right one is always let in, or a
/// stranger could lock everybody out, with a few wrong ones from the same proxy or network. A token is too long to be
/// guessed at any speed that a server answers with.
#[derive(Debug)]
pub(super) struct Guesses {
    counted: Mutex<HashMap<IpAddr, Counted>>,
    held_back: Semaphore,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Wrong tokens that will still be answered at once.
    left: u32,
    refilled_at: Instant,
}

impl Guesses {
    /// Nobody has guessed yet.
    pub(super) fn new() -> Self {
        Self {
            counted: Mutex::default(),
            held_back: Semaphore::new(HELD_BACK_MOST),
        }
    }

    /// Keeps an answer back for a moment, where not too many are already.
    pub(super) async fn hold_back(&self) {
        if let Ok(_slot) = self.held_back.try_acquire() {
            tokio::time::sleep(HELD_BACK).await;
        }
    }

    /// A token was wrong. True where too many were lately.
    pub(super) fn wrong(&self, from: IpAddr, now: Instant) -> bool {
        let mut all = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let from = network(from);
        if !all.contains_key(&from) && all.len() >= ADDRESSES {
            make_room(&mut all, now);
        }
        let counted = all.entry(from).or_insert(Counted {
            left: BURST,
            refilled_at: now,
        });
        counted.refill(now);
        let too_many = counted.left == 0;
        if too_many {
            // Who goes on guessing waits on.
            counted.refilled_at = now;
        }
        counted.left = counted.left.saturating_sub(1);
        too_many
    }
}

impl Counted {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled_at);
        let more = u32::try_from(passed.as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if more >= BURST - self.left {
            self.left = BURST;
            self.refilled_at = now;
        } else {
            self.left += more;
            self.refilled_at += REFILL * more;
        }
    }
}

/// Forgets those that guess no more; where all do, the one that guessed least.
fn make_room(all: &mut HashMap<IpAddr, Counted>, now: Instant) {
    all.retain(|_, counted| {
        counted.refill(now);
        counted.left < BURST
    });
    if all.len() >= ADDRESSES {
        let least = all.iter().max_by_key(|(_, counted)| counted.left);
        if let Some(address) = least.map(|(address, _)| *address) {
            all.remove(&address);
        }
    }
}

/// Whom an address stands for: an IPv6 network has as many as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let first = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(first))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_guesses_has_to_wait_and_nobody_else_has() {
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let (guesses, now) = (Guesses::new(), Instant::now());
        for _ in 0..BURST {
            assert!(!guesses.wrong(one, now));
        }
        assert!(guesses.wrong(one, now));
        assert!(!guesses.wrong(other, now));
        // One more after a while, and no more than one.
        let later = now + REFILL;
        assert!(!guesses.wrong(one, later));
        assert!(guesses.wrong(one, later));
        // All of them after long.
        let much_later = later + REFILL * 1000;
        for _ in 0..BURST {
            assert!(!guesses.wrong(one, much_later));
        }
        assert!(guesses.wrong(one, much_later));
    }

    #[test]
    fn an_address_has_many_ways_to_be_written_and_a_network_many_addresses() {
        for (one, other, same) in [
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let (one, other) = (network(address(one)), network(address(other)));
            assert_eq!(one == other, same, "{one} {other}");
        }
    }

    #[test]
    fn strangers_take_no_more_room_than_there_is_and_who_guesses_most_is_remembered() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        let busy = address("10.0.0.1");
        for _ in 0..=BURST {
            guesses.wrong(busy, now);
        }
        for n in 0..5_000_u32 {
            let stranger = IpAddr::V4((0x0b00_0000 + n).into());
            assert!(!guesses.wrong(stranger, now));
        }
        assert!(guesses.counted.lock().unwrap().len() <= ADDRESSES);
        assert!(guesses.wrong(busy, now));
    }
}
