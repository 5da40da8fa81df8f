//! The bound on what is received and above the low-water mark, shared by the reader, which asks for
//! more, and the delivery, which lets go (design 3.1, rule 10).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use super::credits::Room;

/// An event is taken to be at least so large when room in bytes is turned into events to ask for.
const SMALLEST_EVENT: usize = 64 << 10;

/// Events and bytes in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    max_events: usize,
    max_bytes: usize,
    held: Mutex<Held>,
    let_go: Notify,
}

#[derive(Debug)]
struct Held {
    events: usize,
    bytes: usize,
    /// The largest event lately seen; sinks slowly.
    largest: usize,
    /// What is on its way to the delivery: events, and beginnings of streams.
    under_way: usize,
    /// Events that the org still owes us.
    owed: u32,
    /// When the event was received that waits for its schema, and holds up all behind it.
    undecoded_since: Option<SystemTime>,
    /// Before that the stream's silence tells nothing.
    tells_from: Option<Instant>,
    /// From then on the stream is silent for too long.
    silent_from: Option<Instant>,
}

impl Held {
    fn arrived(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn grow(&mut self, bytes: usize, whole: usize) {
        self.bytes += bytes;
        let sunk = self.largest - self.largest / 64;
        self.largest = sunk.max(whole).max(SMALLEST_EVENT);
    }
}

impl InFlight {
    pub(super) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events: max_events.max(1),
            max_bytes,
            held: Mutex::new(Held {
                events: 0,
                bytes: 0,
                largest: SMALLEST_EVENT,
                under_way: 0,
                owed: 0,
                undecoded_since: None,
                tells_from: None,
                silent_from: None,
            }),
            let_go: Notify::new(),
        }
    }

    /// Takes the received events of a response in, each of so many bytes.
    pub(super) fn take(&self, sizes: impl IntoIterator<Item = usize>) {
        let mut held = self.held();
        for bytes in sizes {
            held.events += 1;
            held.under_way += 1;
            held.grow(bytes, bytes);
        }
    }

    /// An event, or the beginning of a stream, is on its way to the delivery.
    pub(super) fn sent(&self) {
        self.held().under_way += 1;
    }

    /// It has come to the delivery.
    pub(super) fn arrived(&self) {
        self.held().arrived();
    }

    /// Events have come to the delivery, each of which holds so many bytes more than it was taken in with, its decoded
    /// form, and now is so large.
    pub(super) fn arrived_decoded(&self, sizes: impl IntoIterator<Item = (usize, usize)>) {
        let mut held = self.held();
        for (bytes, whole) in sizes {
            held.arrived();
            held.grow(bytes, whole);
        }
    }

    /// What has not come to the delivery yet.
    pub(super) fn under_way(&self) -> usize {
        self.held().under_way
    }

    /// The reader says how many events the org still owes us: none while there is no stream.
    pub(super) fn owe(&self, outstanding: u32) {
        self.held().owed = outstanding;
    }

    /// Events that the org still owes us.
    pub(super) fn owed(&self) -> u32 {
        self.held().owed
    }

    /// The reader says from when on the silence of its stream tells that there is nothing, and from when on it is
    /// silent for too long if nothing comes; never, where nothing is owed.
    pub(super) fn silent_from(&self, tells_from: Option<Instant>, too_long: Option<Instant>) {
        let mut held = self.held();
        held.tells_from = tells_from;
        held.silent_from = too_long;
    }

    /// An open stream from which nothing comes says that there is nothing: it is open for a moment, and not silent for
    /// longer than the org may be.
    pub(super) fn tells(&self, now: Instant) -> bool {
        let held = self.held();
        held.tells_from.is_none_or(|from| from <= now)
            && held.silent_from.is_none_or(|at| at >= now)
    }

    /// Adds what an event holds beyond what it was taken in with: its decoded form. `whole` is its size now.
    pub(super) fn grow(&self, bytes: usize, whole: usize) {
        self.held().grow(bytes, whole);
    }

    /// The decoder says what waits for a schema, and when nothing does any more.
    pub(super) fn undecoded_since(&self, since: Option<SystemTime>) {
        self.held().undecoded_since = since;
    }

    /// When the event was received that waits for its schema.
    pub(super) fn waits_for_schema_since(&self) -> Option<SystemTime> {
        self.held().undecoded_since
    }

    /// Lets events go and wakes the reader.
    pub(super) fn release(&self, events: usize, bytes: usize) {
        if events == 0 {
            return;
        }
        {
            let mut held = self.held();
            held.events = held.events.saturating_sub(events);
            held.bytes = held.bytes.saturating_sub(bytes);
        }
        self.let_go.notify_one();
    }

    /// What the buffer can take now.
    pub(super) fn room(&self) -> Room {
        let held = self.held();
        let by_bytes = self.max_bytes.saturating_sub(held.bytes) / held.largest;
        Room {
            free: self.max_events.saturating_sub(held.events).min(by_bytes),
            capacity: self.max_events.min(self.max_bytes / held.largest).max(1),
            empty: held.events == 0,
        }
    }

    /// Events and bytes in flight.
    pub(super) fn held_now(&self) -> (usize, usize) {
        let held = self.held();
        (held.events, held.bytes)
    }

    /// Ends when something was let go since the last call.
    pub(super) async fn let_go(&self) {
        self.let_go.notified().await;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Plain numbers: a panic elsewhere cannot leave them half written.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_in_events_and_in_bytes() {
        let in_flight = InFlight::new(10, 4 * SMALLEST_EVENT);
        assert_eq!(in_flight.room().free, 4);
        in_flight.take([100]);
        assert_eq!(in_flight.room().free, 3);
        in_flight.take([2 * SMALLEST_EVENT]);
        let room = in_flight.room();
        assert_eq!((room.free, room.capacity, room.empty), (0, 2, false));
        in_flight.release(2, 100 + 2 * SMALLEST_EVENT);
        assert!(in_flight.room().empty);
        assert!(in_flight.room().free >= 1);
    }

    #[test]
    fn a_large_event_makes_later_requests_smaller_for_a_while_only() {
        let in_flight = InFlight::new(1000, 100 * SMALLEST_EVENT);
        in_flight.take([10 * SMALLEST_EVENT]);
        in_flight.release(1, 10 * SMALLEST_EVENT);
        assert_eq!(in_flight.room().free, 10);
        for _ in 0..1000 {
            in_flight.take([1]);
            in_flight.release(1, 1);
        }
        assert_eq!(in_flight.room().free, 100);
    }
}
