//! How many events to ask for, and when (facts 3.2; design 3.1, rule 10). Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::salesforce::pubsub::MAX_OUTSTANDING;

/// A request younger than this may not have reached the server when it wrote the response in hand.
const MAYBE_UNSEEN: Duration = Duration::from_secs(10);

/// Requests made within so short a time are remembered as one: a busy stream makes thousands a second.
const AT_ONCE: Duration = Duration::from_millis(100);

/// What the buffer can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Events that fit now, those outstanding included.
    pub(super) free: usize,
    /// Events that fit into an empty buffer; at least 1.
    pub(super) capacity: usize,
    /// True where nothing received is unfinished.
    pub(super) empty: bool,
}

/// The credit window of one stream: what was asked for and has not come.
#[derive(Debug)]
pub(super) struct Credits {
    outstanding: u32,
    /// Requests that may be unseen: when the first of those made at once was, and how much they asked for.
    asked: VecDeque<(Instant, u32)>,
    /// All that they asked for.
    unseen: u32,
}

impl Credits {
    /// A stream that was opened with a first request for `first` events.
    pub(super) fn opened(first: u32, now: Instant) -> Self {
        Self {
            outstanding: first,
            asked: VecDeque::from([(now, first)]),
            unseen: first,
        }
    }

    /// What to ask for in a stream's first request; `None` where it is not worth a stream yet.
    pub(super) fn first(room: Room) -> Option<u32> {
        let nothing = Self {
            outstanding: 0,
            asked: VecDeque::new(),
            unseen: 0,
        };
        nothing.wanted(room)
    }

    /// Events that the server still owes us, as far as we know; never more than it may be asked for.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Takes a response into account. The server's own count decides, plus what it cannot have seen yet:
    /// ours is an upper bound, and would stall if the server ever forgot a request.
    pub(super) fn received(&mut self, events: u32, pending: u32, now: Instant) {
        let ours = self.outstanding.saturating_sub(events);
        let is_seen = |at: Instant| now.duration_since(at) > MAYBE_UNSEEN + AT_ONCE;
        while let Some((_, amount)) = self.asked.pop_front_if(|(at, _)| is_seen(*at)) {
            self.unseen = self.unseen.saturating_sub(amount);
        }
        let pending = pending.min(MAX_OUTSTANDING);
        self.outstanding = pending.max(ours.min(pending.saturating_add(self.unseen)));
    }

    /// What to ask for now; `None` to wait. In chunks of a quarter of the window rather than one by one
    /// (the server objects to a request for each event), except where nothing else would ever come.
    pub(super) fn ask(&mut self, room: Room, now: Instant) -> Option<u32> {
        let amount = self.wanted(room)?;
        self.outstanding += amount;
        self.unseen = self.unseen.saturating_add(amount);
        match self.asked.back_mut() {
            Some((at, all)) if now.duration_since(*at) < AT_ONCE => *all += amount,
            _ => self.asked.push_back((now, amount)),
        }
        Some(amount)
    }

    fn wanted(&self, room: Room) -> Option<u32> {
        let window = u32::try_from(room.capacity)
            .unwrap_or(u32::MAX)
            .clamp(1, MAX_OUTSTANDING);
        let fits = u32::try_from(room.free)
            .unwrap_or(u32::MAX)
            .min(window)
            .saturating_sub(self.outstanding);
        let chunk = window.div_ceil(4);
        let starved = self.outstanding == 0 && room.empty;
        match fits {
            0 => starved.then_some(1),
            n => (n >= chunk || starved).then_some(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SubscriptionConfig;
    use proptest::prelude::*;

    fn room(free: usize) -> Room {
        Room {
            free,
            capacity: 1000,
            empty: free == 1000,
        }
    }

    #[test]
    fn asks_again_before_the_window_is_used_up() {
        let now = Instant::now();
        let mut credits = Credits::opened(100, now);
        credits.received(10, 90, now);
        assert_eq!(credits.ask(room(1000), now), None);
        credits.received(20, 70, now);
        assert_eq!(credits.ask(room(1000), now), Some(30));
        assert_eq!(credits.outstanding(), 100);
    }

    #[test]
    fn asks_for_nothing_while_the_buffer_is_full() {
        let now = Instant::now();
        let mut credits = Credits::opened(100, now);
        credits.received(100, 0, now);
        assert_eq!(credits.ask(room(0), now), None);
        assert_eq!(credits.ask(room(10), now), None, "one by one is too often");
        assert_eq!(credits.ask(room(40), now), Some(40));
    }

    /// Else a transaction of that size would never be seen to be over.
    #[test]
    fn asks_for_more_with_the_largest_transaction_in_flight() {
        for max_in_flight in 2..2000 {
            let mut config = SubscriptionConfig::new("a", "Account".parse().unwrap());
            config.max_in_flight = max_in_flight;
            let full = Room {
                free: max_in_flight - config.largest_group(),
                capacity: max_in_flight,
                empty: false,
            };
            assert!(Credits::first(full).is_some(), "{max_in_flight}");
        }
    }

    #[test]
    fn asks_for_one_where_an_empty_buffer_is_too_small_for_any() {
        let now = Instant::now();
        let tight = Room {
            free: 0,
            capacity: 1,
            empty: true,
        };
        assert_eq!(Credits::first(tight), Some(1));
        let mut credits = Credits::opened(1, now);
        credits.received(1, 0, now);
        assert_eq!(credits.ask(tight, now), Some(1));
    }

    #[test]
    fn a_request_that_the_server_forgot_does_not_stall_the_stream() {
        let now = Instant::now();
        let mut credits = Credits::opened(100, now);
        let later = now + Duration::from_secs(120);
        credits.received(0, 0, later);
        assert_eq!(credits.outstanding(), 0);
        assert_eq!(credits.ask(room(1000), later), Some(100));
    }

    proptest! {
        /// Against a server that sees requests late and answers in any portions.
        #[test]
        fn never_more_than_a_hundred_are_outstanding(
            steps in proptest::collection::vec((0u32..120, 0usize..1200, any::<bool>()), 1..200)
        ) {
            let now = Instant::now();
            let mut credits = Credits::opened(100, now);
            let (mut owed, mut unseen) = (100u32, 0u32);
            for (send, free, sees) in steps {
                if sees {
                    owed += std::mem::take(&mut unseen);
                }
                prop_assert!(owed + unseen <= MAX_OUTSTANDING);
                let sent = send.min(owed);
                owed -= sent;
                credits.received(sent, owed, now);
                prop_assert_eq!(credits.outstanding(), owed + unseen);
                if let Some(n) = credits.ask(room(free), now) {
                    unseen += n;
                }
            }
        }
    }
}
