//! The low-water mark: how far every received event is finished (design 3.1, rules 1 to 3). Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::MAX_HANDLERS;
use crate::event::{EventIdentity, ReplayId};

/// An event's place in the stream as this process received it; grows by one.
pub(super) type Seq = u64;

/// One bit for each handler.
pub(super) type HandlerSet = u64;

/// Finished events without a place of their own that are remembered; beyond it they may be repeated
/// after a restart, which is allowed, instead of filling the memory.
const MAX_HELD: usize = 10_000;

#[derive(Debug)]
struct Entry {
    /// `None` for a keepalive.
    event: Option<Tracked>,
    /// When the event was committed or the keepalive received.
    at: SystemTime,
    replay_id: Option<ReplayId>,
    unfinished: HandlerSet,
    /// What else keeps the position before it, beside its handlers.
    pins: u32,
    /// The next one is of the same unit: the position does not rest here.
    joined: bool,
}

/// What the tracker remembers of an event.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    pub(super) identity: EventIdentity,
    /// Commit time, or time of receipt.
    pub(super) occurred_at: SystemTime,
    /// Bytes that it holds in memory.
    pub(super) size: usize,
    /// The transaction it is of, where it names one.
    pub(super) transaction: Option<Arc<str>>,
}

/// A place on the bus, and the transaction of the event there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) replay_id: ReplayId,
    /// When the event there was committed, or the keepalive received.
    pub(super) at: SystemTime,
    pub(super) transaction: Option<Arc<str>>,
}

/// What [`Tracker::advance`] let go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// Commit time of the newest event passed.
    pub(super) occurred_at: Option<SystemTime>,
    /// What the position has passed; always empty unless [`Tracker::tell_passed`] was called.
    pub(super) identities: Vec<EventIdentity>,
}

/// Every received event above the position, in stream order.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Several events may carry one replay ID, even across responses.
    channel: bool,
    all: HandlerSet,
    entries: VecDeque<Entry>,
    first: Seq,
    /// Everything before this one is at or below the position.
    passed_to: Seq,
    /// Entries from here on carry a replay ID that is not complete: more events may follow under it.
    incomplete_from: Seq,
    /// The incomplete replay ID.
    incomplete: Option<Place>,
    /// A unit begins here whose last event may not have come yet: nothing of it is let go.
    open_from: Option<Seq>,
    /// Finished events that left the queue although their replay ID is not complete yet.
    held: Vec<EventIdentity>,
    position: Option<Place>,
    /// What the position has passed since the last [`Tracker::advance`], where that is asked for.
    passed: Option<Vec<EventIdentity>>,
    /// Replay IDs that come in lead nowhere any more ([`Tracker::forget_places`]).
    forgets: bool,
}

impl Tracker {
    /// An empty tracker for a subscription with so many handlers.
    pub(super) fn new(channel: bool, handlers: usize) -> Self {
        Self {
            channel,
            all: all_of(handlers),
            entries: VecDeque::new(),
            first: 0,
            passed_to: 0,
            incomplete_from: 0,
            incomplete: None,
            open_from: None,
            held: Vec::new(),
            position: None,
            passed: None,
            forgets: false,
        }
    }

    /// Tells from now on which events the position has passed.
    pub(super) fn tell_passed(&mut self) {
        self.passed = Some(Vec::new());
    }

    /// Takes an event in; `finished` names the handlers that had finished it before a restart.
    pub(super) fn push_event(
        &mut self,
        event: Tracked,
        replay_id: Option<ReplayId>,
        finished: HandlerSet,
    ) -> Seq {
        let seq = self.next_seq();
        let replay_id = replay_id.filter(|_| !self.forgets);
        if let Some(id) = &replay_id {
            if !self.channel {
                self.incomplete_from = seq + 1;
            } else if self.incomplete.as_ref().map(|place| &place.replay_id) != Some(id) {
                self.complete_up_to(seq);
                self.incomplete = Some(Place {
                    replay_id: id.clone(),
                    at: event.occurred_at,
                    transaction: event.transaction.clone(),
                });
            }
        }
        self.entries.push_back(Entry {
            at: event.occurred_at,
            event: Some(event),
            replay_id,
            unfinished: self.all & !finished,
            pins: 0,
            joined: false,
        });
        seq
    }

    /// So many events from here on are one unit: the position rests at the last of them and at none before.
    /// To be told before any of them is let go.
    pub(super) fn join(&mut self, first: Seq, count: usize) {
        for seq in first..first + count.saturating_sub(1) as Seq {
            if let Some(entry) = self.entry_mut(seq) {
                entry.joined = true;
            }
        }
    }

    /// A unit begins at this place whose last event may not have come yet: the position stays before it.
    pub(super) fn open_from(&mut self, first: Option<Seq>) {
        self.open_from = first;
    }

    /// True where everything received before this place is finished.
    pub(super) fn is_first(&self, seq: Seq) -> bool {
        self.first == seq
    }

    /// Takes a keepalive in: a finished mark at its place in the stream.
    pub(super) fn push_keepalive(&mut self, replay_id: ReplayId, received_at: SystemTime) {
        if self.forgets {
            return;
        }
        let seq = self.next_seq();
        self.entries.push_back(Entry {
            event: None,
            at: received_at,
            replay_id: Some(replay_id),
            unfinished: 0,
            pins: 0,
            joined: false,
        });
        self.complete_up_to(seq + 1);
    }

    /// Keeps the position before an event, whatever its handlers say, until it is unpinned as often.
    pub(super) fn pin(&mut self, seq: Seq) {
        if let Some(entry) = self.entry_mut(seq) {
            entry.pins += 1;
        }
    }

    /// Takes one [`Tracker::pin`] back.
    pub(super) fn unpin(&mut self, seq: Seq) {
        if let Some(entry) = self.entry_mut(seq) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    /// The bus does not know the places any more that this subscription has come by: none of them may become
    /// the position, neither of what is in flight nor of what comes in until [`Tracker::knows_places`].
    pub(super) fn forget_places(&mut self) {
        for entry in &mut self.entries {
            entry.replay_id = None;
        }
        self.incomplete = None;
        self.incomplete_from = self.next_seq();
        self.position = None;
        self.forgets = true;
    }

    /// From here on the stream brings places that the bus knows.
    pub(super) fn knows_places(&mut self) {
        self.forgets = false;
    }

    /// A handler has finished an event. True where it was the last one to.
    pub(super) fn finish(&mut self, seq: Seq, handlers: HandlerSet) -> bool {
        let Some(entry) = self.entry_mut(seq) else {
            return false;
        };
        let before = entry.unfinished;
        entry.unfinished &= !handlers;
        before != 0 && entry.unfinished == 0
    }

    /// True for the set of all handlers.
    pub(super) fn is_all(&self, handlers: HandlerSet) -> bool {
        self.all & !handlers == 0
    }

    /// Every handler: for an event that is parked for all of them.
    pub(super) fn finish_for_all(&mut self, seq: Seq) -> bool {
        self.finish(seq, self.all)
    }

    /// Lets go what is finished up to the first event that is not.
    pub(super) fn advance(&mut self) -> Passed {
        let mut passed = Passed::default();
        while self.front_is_finished() {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            let mut complete = self.first < self.incomplete_from && !entry.joined;
            self.first += 1;
            if self.channel && complete {
                let next = self.entries.iter().find_map(|e| e.replay_id.as_ref());
                complete = next.is_none() || next != entry.replay_id.as_ref();
            }
            if let Some(event) = &entry.event {
                passed.events += 1;
                passed.bytes += event.size;
                passed.occurred_at = Some(event.occurred_at);
            }
            match (complete, entry.replay_id) {
                (true, Some(replay_id)) => {
                    // A keepalive under the same replay ID makes that place no younger.
                    let known = self.position.as_ref();
                    let known = known.filter(|place| place.replay_id == replay_id);
                    let at = known.map_or(entry.at, |place| place.at);
                    let (identity, transaction) = entry
                        .event
                        .map(|event| (event.identity, event.transaction))
                        .unzip();
                    self.move_to(Place {
                        at,
                        replay_id,
                        transaction: transaction.flatten(),
                    });
                    if let Some(passed) = &mut self.passed {
                        passed.extend(identity);
                    }
                }
                // No place of its own: it stays above the position until a later one passes.
                (true, None) | (false, _) if self.held.len() < MAX_HELD => {
                    self.held.extend(entry.event.map(|event| event.identity));
                }
                _ => {}
            }
        }
        if let Some(identities) = &mut self.passed {
            passed.identities = std::mem::take(identities);
        }
        passed
    }

    /// The place up to which everything is finished, once there is one.
    pub(super) fn position(&self) -> Option<&ReplayId> {
        self.position.as_ref().map(|place| &place.replay_id)
    }

    /// The transaction of the change event at the position.
    pub(super) fn transaction(&self) -> Option<&str> {
        self.position.as_ref()?.transaction.as_deref()
    }

    /// When the event at the position was committed, or the keepalive received.
    pub(super) fn position_time(&self) -> Option<SystemTime> {
        self.position.as_ref().map(|place| place.at)
    }

    /// Every event before this one is finished and let go.
    pub(super) fn low_water(&self) -> Seq {
        self.first
    }

    /// The position has passed every event before this one.
    pub(super) fn passed_to(&self) -> Seq {
        self.passed_to
    }

    /// The place that the next event or keepalive will have.
    pub(super) fn next_seq(&self) -> Seq {
        self.first + self.entries.len() as Seq
    }

    /// Received events that are not let go yet.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.entries.iter().filter(|e| e.event.is_some()).count()
    }

    /// The place of the first event that is not let go yet.
    pub(super) fn first_in_flight(&self) -> Option<&ReplayId> {
        let mut events = self.entries.iter().filter(|entry| entry.event.is_some());
        events.find_map(|entry| entry.replay_id.as_ref())
    }

    /// True where nothing received is unfinished.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest unfinished event happened.
    pub(super) fn oldest_unfinished(&self) -> Option<SystemTime> {
        self.entries
            .front()
            .and_then(|entry| entry.event.as_ref())
            .map(|event| event.occurred_at)
    }

    /// What is finished above the position: each event with the handlers that have finished it.
    pub(super) fn finished_ahead(&self) -> impl Iterator<Item = (&EventIdentity, HandlerSet)> {
        let held = self.held.iter().map(|identity| (identity, self.all));
        let queued = self.entries.iter().filter_map(|entry| {
            let finished = self.all & !entry.unfinished;
            let event = entry.event.as_ref()?;
            (finished != 0).then_some((&event.identity, finished))
        });
        held.chain(queued)
    }

    /// Events under the incomplete replay ID, which come again when the stream resumes before it. Counted,
    /// because nothing forbids two events of one identity.
    pub(super) fn incomplete_events(&self) -> HashMap<EventIdentity, usize> {
        let mut events = HashMap::new();
        let Some(incomplete) = &self.incomplete else {
            return events;
        };
        let from = usize::try_from(self.incomplete_from.saturating_sub(self.first)).unwrap_or(0);
        let queued = self.entries.iter().skip(from).filter_map(|entry| {
            let event = entry.event.as_ref()?;
            (entry.replay_id.as_ref() == Some(&incomplete.replay_id)).then_some(&event.identity)
        });
        // What is held is under the incomplete ID only if nothing complete is still queued before it.
        let held = self
            .held
            .iter()
            .filter(|_| self.first >= self.incomplete_from);
        for identity in held.chain(queued) {
            *events.entry(identity.clone()).or_insert(0) += 1;
        }
        events
    }

    fn front_is_finished(&self) -> bool {
        let closed = self.open_from.is_none_or(|open| self.first < open);
        closed
            && self
                .entries
                .front()
                .is_some_and(|entry| entry.unfinished == 0 && entry.pins == 0)
    }

    fn entry_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    /// Moves the position, past all that is held.
    fn move_to(&mut self, place: Place) {
        self.position = Some(place);
        self.passed_to = self.first;
        match &mut self.passed {
            Some(passed) => passed.append(&mut self.held),
            None => self.held.clear(),
        }
    }

    /// Everything before `seq` carries a complete replay ID now.
    fn complete_up_to(&mut self, seq: Seq) {
        let all_left = self.first >= self.next_seq();
        if all_left
            && !self.held.is_empty()
            && let Some(place) = self.incomplete.take()
        {
            self.move_to(place);
        }
        self.incomplete = None;
        self.incomplete_from = seq;
    }
}

fn all_of(handlers: usize) -> HandlerSet {
    match handlers {
        0 => 0,
        n if n >= MAX_HANDLERS => HandlerSet::MAX,
        n => (1 << n) - 1,
    }
}

#[cfg(test)]
#[path = "tracker_units_tests.rs"]
mod units_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn id(n: u64) -> ReplayId {
        format!("{n:020x}").parse().unwrap()
    }

    pub(super) const NOON: SystemTime = SystemTime::UNIX_EPOCH;

    pub(super) fn event(name: &str) -> Tracked {
        Tracked {
            identity: EventIdentity::from_stored(name),
            occurred_at: SystemTime::UNIX_EPOCH,
            size: 10,
            transaction: None,
        }
    }

    pub(super) fn ahead(tracker: &Tracker) -> Vec<(String, HandlerSet)> {
        tracker
            .finished_ahead()
            .map(|(identity, handlers)| (identity.to_string(), handlers))
            .collect()
    }

    #[test]
    fn the_position_moves_only_over_an_unbroken_run_of_finished_events() {
        let mut tracker = Tracker::new(false, 1);
        let a = tracker.push_event(event("a"), Some(id(1)), 0);
        let b = tracker.push_event(event("b"), Some(id(2)), 0);
        assert!(tracker.finish(b, 1));
        assert_eq!(tracker.advance(), Passed::default());
        assert_eq!(tracker.position(), None);
        assert_eq!(ahead(&tracker), [("b".to_owned(), 1)]);
        assert!(tracker.finish(a, 1));
        assert_eq!(tracker.advance().events, 2);
        assert_eq!(tracker.position(), Some(&id(2)));
        assert_eq!(ahead(&tracker), []);
        assert!(tracker.is_idle());
    }

    #[test]
    fn an_event_is_finished_when_every_handler_has_finished_it() {
        let mut tracker = Tracker::new(false, 2);
        let a = tracker.push_event(event("a"), Some(id(1)), 0);
        assert!(!tracker.finish(a, 0b01));
        assert!(!tracker.finish(a, 0b01), "twice the same handler is once");
        assert_eq!(ahead(&tracker), [("a".to_owned(), 0b01)]);
        assert!(tracker.finish(a, 0b10));
    }

    #[test]
    fn what_a_handler_had_finished_before_a_restart_stays_finished() {
        let mut tracker = Tracker::new(false, 2);
        let a = tracker.push_event(event("a"), Some(id(1)), 0b10);
        assert!(tracker.finish(a, 0b01));
        tracker.push_event(event("b"), Some(id(2)), 0b11);
        assert_eq!(tracker.advance().events, 2);
        assert_eq!(tracker.position(), Some(&id(2)));
    }

    #[test]
    fn a_keepalive_becomes_the_position_when_all_before_it_is_finished() {
        let mut tracker = Tracker::new(false, 1);
        let a = tracker.push_event(event("a"), Some(id(1)), 0);
        tracker.push_keepalive(id(9), NOON);
        tracker.advance();
        assert_eq!(tracker.position(), None);
        tracker.finish(a, 1);
        assert_eq!(tracker.advance().events, 1);
        assert_eq!(tracker.position(), Some(&id(9)));
    }

    #[test]
    fn on_a_channel_a_replay_id_is_complete_once_a_different_one_follows() {
        let mut tracker = Tracker::new(true, 1);
        let a = tracker.push_event(event("a"), Some(id(5)), 0);
        tracker.finish(a, 1);
        assert_eq!(tracker.advance().events, 1);
        assert_eq!(tracker.position(), None, "a sibling may follow");
        assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
        let b = tracker.push_event(event("b"), Some(id(5)), 0);
        tracker.finish(b, 1);
        tracker.advance();
        assert_eq!(tracker.position(), None);
        assert_eq!(tracker.incomplete_events().len(), 2);
        tracker.push_event(event("c"), Some(id(6)), 0);
        assert_eq!(tracker.position(), Some(&id(5)));
        assert_eq!(ahead(&tracker), []);
        assert_eq!(tracker.incomplete_events().len(), 1);
    }

    #[test]
    fn on_a_channel_a_keepalive_completes_what_came_before() {
        let mut tracker = Tracker::new(true, 1);
        let a = tracker.push_event(event("a"), Some(id(5)), 0);
        let b = tracker.push_event(event("b"), Some(id(5)), 0);
        tracker.finish(a, 1);
        tracker.advance();
        tracker.push_keepalive(id(7), NOON);
        tracker.advance();
        assert_eq!(tracker.position(), None, "b is unfinished");
        assert!(tracker.incomplete_events().is_empty());
        tracker.finish(b, 1);
        tracker.advance();
        assert_eq!(tracker.position(), Some(&id(7)));
    }

    #[test]
    fn the_position_never_rests_on_an_event_without_a_replay_id() {
        let mut tracker = Tracker::new(false, 1);
        let a = tracker.push_event(event("a"), None, 0);
        tracker.finish(a, 1);
        assert_eq!(tracker.advance().events, 1);
        assert_eq!(tracker.position(), None);
        assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
        let b = tracker.push_event(event("b"), Some(id(1)), 0);
        tracker.finish(b, 1);
        tracker.advance();
        assert_eq!(tracker.position(), Some(&id(1)));
        assert_eq!(ahead(&tracker), []);
    }

    #[test]
    fn a_pinned_event_keeps_the_position_before_it_although_it_is_finished() {
        let mut tracker = Tracker::new(false, 1);
        let a = tracker.push_event(event("a"), Some(id(1)), 0);
        tracker.pin(a);
        tracker.pin(a);
        assert!(tracker.finish(a, 1));
        tracker.unpin(a);
        assert_eq!(tracker.advance(), Passed::default());
        assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
        tracker.unpin(a);
        assert_eq!(tracker.advance().events, 1);
        assert_eq!(tracker.position(), Some(&id(1)));
        tracker.unpin(a);
        tracker.pin(a);
    }

    #[test]
    fn the_position_carries_the_time_of_its_event_or_keepalive() {
        let at = |seconds| NOON + std::time::Duration::from_secs(seconds);
        let occurred = |name, seconds| Tracked {
            occurred_at: at(seconds),
            ..event(name)
        };
        for channel in [false, true] {
            let mut tracker = Tracker::new(channel, 1);
            let a = tracker.push_event(occurred("a", 5), Some(id(1)), 0);
            tracker.finish(a, 1);
            tracker.advance();
            tracker.push_event(occurred("b", 6), Some(id(2)), 0);
            assert_eq!(tracker.position_time(), Some(at(5)), "{channel}");
            tracker.finish(a + 1, 1);
            tracker.advance();
            tracker.push_keepalive(id(3), at(9));
            tracker.advance();
            assert_eq!(tracker.position_time(), Some(at(9)), "{channel}");
            tracker.push_keepalive(id(3), at(99));
            tracker.advance();
            assert_eq!(tracker.position_time(), Some(at(9)), "the same place");
        }
    }

    #[test]
    fn places_that_the_bus_has_forgotten_never_become_the_position() {
        for channel in [false, true] {
            let mut tracker = Tracker::new(channel, 1);
            let a = tracker.push_event(event("a"), Some(id(1)), 0);
            let b = tracker.push_event(event("b"), Some(id(2)), 0);
            tracker.finish(a, 1);
            tracker.advance();
            tracker.forget_places();
            assert_eq!(tracker.position(), None);
            // Still on its way through the decoder.
            let c = tracker.push_event(event("c"), Some(id(3)), 0);
            tracker.push_keepalive(id(4), NOON);
            tracker.finish(b, 1);
            tracker.finish(c, 1);
            assert_eq!(tracker.advance().events, 2);
            assert_eq!(tracker.position(), None, "{channel}");
            assert_eq!(tracker.finished_ahead().count(), 2);
            tracker.knows_places();
            let d = tracker.push_event(event("d"), Some(id(1)), 0);
            tracker.finish(d, 1);
            tracker.push_keepalive(id(2), NOON);
            tracker.advance();
            assert_eq!(tracker.position(), Some(&id(2)));
            assert_eq!(tracker.finished_ahead().count(), 0);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Event { new_id: bool },
        Keepalive,
        Finish { which: usize, handler: u32 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            any::<bool>().prop_map(|new_id| Step::Event { new_id }),
            Just(Step::Keepalive),
            (0usize..64, 0u32..2).prop_map(|(which, handler)| Step::Finish { which, handler }),
            (0usize..64, 0u32..2).prop_map(|(which, handler)| Step::Finish { which, handler }),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Against a plain list of everything received: the position is the newest replay ID such that
        /// all events at or before it are finished and, on a channel, something has followed it; and
        /// whatever is finished above it is remembered.
        #[test]
        fn nothing_unfinished_is_ever_at_or_below_the_position(channel: bool, steps in steps()) {
            let mut tracker = Tracker::new(channel, 2);
            let mut events: Vec<(Seq, u64, HandlerSet)> = Vec::new();
            let mut completed = 0;
            let mut now = 1;
            for step in steps {
                match step {
                    Step::Event { new_id } => {
                        // Only a channel repeats a replay ID.
                        if new_id || !channel {
                            now += 1;
                        }
                        // A keepalive before it carried `now`, and the bus never goes back to it.
                        if completed >= now {
                            now = completed + 1;
                        }
                        if channel {
                            completed = completed.max(now - 1);
                        } else {
                            completed = now;
                        }
                        let seq = tracker.push_event(event(&format!("e{}", events.len())), Some(id(now)), 0);
                        events.push((seq, now, 0));
                    }
                    Step::Keepalive => {
                        now += 1;
                        completed = now;
                        tracker.push_keepalive(id(now), NOON);
                    }
                    Step::Finish { which, handler } => {
                        if let Some((seq, _, finished)) = events.get_mut(which) {
                            *finished |= 1 << handler;
                            tracker.finish(*seq, 1 << handler);
                        }
                    }
                }
                tracker.advance();
                let position = tracker.position().map_or(0, |p| {
                    u64::from_be_bytes(p.as_bytes()[2..10].try_into().unwrap())
                });
                prop_assert!(position <= completed, "{} is not complete yet", position);
                for (_, at, finished) in &events {
                    if *at <= position {
                        prop_assert_eq!(*finished, 0b11, "{} was passed unfinished", at);
                    }
                }
                let expected: Vec<_> = events.iter().enumerate()
                    .filter(|(_, (_, at, finished))| *at > position && *finished != 0)
                    .map(|(i, (_, _, finished))| (format!("e{i}"), *finished))
                    .collect();
                prop_assert_eq!(ahead(&tracker), expected);
                let unfinished = events.iter().filter(|(_, _, f)| *f != 0b11).count();
                prop_assert_eq!(tracker.is_idle(), unfinished == 0);
                prop_assert!(tracker.in_flight() <= events.len());
            }
        }
    }
}
