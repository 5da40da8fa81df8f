//! What comes off the stream: into the tracker, and to every handler that has not finished it yet.

use std::sync::Arc;
use std::time::Instant;

use super::Delivery;
use super::grouping::{Member, What, transaction};
use crate::event::{ChangeEventHeader, Event, EventIdentity};
use crate::subscription::decoder::{Item, Undecodable};
use crate::subscription::gaps::gap_of;
use crate::subscription::held::{Change, Slot};
use crate::subscription::observe::Outcome;
use crate::subscription::tracker::{HandlerSet, Seq, Tracked};

impl Delivery {
    /// Takes in what the decoder hands on at once.
    pub(super) fn take_all(&mut self, items: Vec<Item>) {
        let sizes = items.iter().filter_map(|item| match item {
            Item::Event(event) => Some((event.decoded_size(), event.size())),
            _ => None,
        });
        self.in_flight.arrived_decoded(sizes);
        let now = Instant::now();
        for item in items {
            self.take_one(item, now);
        }
    }

    fn take_one(&mut self, item: Item, now: Instant) {
        match item {
            Item::Event(event) => self.take_event(event, now),
            Item::Undecodable(event) => self.take_undecodable(*event, now),
            Item::Keepalive(id, received_at) => {
                self.repeats.clear();
                // The stream has caught up: what has not come again by now never will.
                let stale = self.finished_before.drain();
                self.position.forget(stale.map(|(identity, _)| identity));
                let over = self.grouping.close(false);
                self.hand_on(over);
                self.letters.held.all_came_by(self.tracker.next_seq());
                let seq = self.tracker.next_seq();
                self.tracker.push_keepalive(id, received_at);
                self.pin_next(seq);
            }
            Item::Pinned(stored) => self.pinned = Some(stored),
            Item::NewPlaces => {
                self.repeats.clear();
                self.tracker.knows_places();
            }
            Item::Resumed { continues } => {
                self.in_flight.arrived();
                self.repeats = self.tracker.incomplete_events();
                let broken = self.grouping.resumed(continues, now);
                self.hand_on(broken);
            }
        }
    }

    /// True for an event that is in the tracker already, under a replay ID that was incomplete when the
    /// stream broke.
    fn is_repeat(&mut self, what: &What, size: usize) -> bool {
        if !what.is_one_of(&mut self.repeats) {
            return false;
        }
        self.in_flight.release(1, size);
        self.observer.repeat();
        true
    }

    fn take_event(&mut self, event: Arc<Event>, now: Instant) {
        let (size, occurred_at) = (event.size(), event.occurred_at());
        let transaction = transaction(event.decoded.header.as_deref()).cloned();
        let what = What::Event(event);
        if self.is_repeat(&what, size) {
            return;
        }
        let tracked = Tracked {
            identity: what.to_track(),
            occurred_at,
            size,
            transaction,
        };
        self.track(tracked, what, now);
    }

    fn take_undecodable(&mut self, event: Undecodable, now: Instant) {
        self.in_flight.arrived();
        let (size, occurred_at) = (event.raw.size(), event.received_at);
        let transaction = transaction(event.header.as_ref()).cloned();
        let what = What::Undecodable(Arc::new(event));
        if self.is_repeat(&what, size) {
            return;
        }
        let tracked = Tracked {
            identity: what.to_track(),
            occurred_at,
            size,
            transaction,
        };
        self.track(tracked, what, now);
    }

    fn track(&mut self, tracked: Tracked, what: What, now: Instant) {
        let identity = self.knows_some().then(|| what.identity());
        let unread = identity.as_ref();
        let unread = unread.and_then(|identity| self.unread_name(identity, &what));
        // Those that it may be known by; none where nobody asks who it is.
        let names = || identity.iter().chain(&unread);
        let mut finished = 0;
        for name in names() {
            finished |= self.finished_before.remove(name).unwrap_or(0);
        }
        // A mark under that name is not forgotten with the event.
        self.position.forget(unread.clone());
        let replay_id = match &what {
            What::Event(event) => event.raw.replay_id.clone(),
            What::Undecodable(event) => event.raw.replay_id.clone(),
        };
        self.replays
            .live_brought(replay_id.as_ref(), finished, &self.finished_before);
        // What is parked waits for its turn once more, so that its letter holds what comes after, and not before.
        let parked = names().fold(0, |parked, name| parked | self.parked_before(name));
        let finished = finished & !parked;
        // So does what was parked for a handler that does not want it any more.
        let unwanted = match &what {
            What::Event(event) => self.forms.unwanted(event.decoded.header.as_deref()) & !parked,
            // Nobody can have left it out.
            What::Undecodable(_) => 0,
        };
        let header = match &what {
            What::Event(event) => event.decoded.header.as_deref(),
            What::Undecodable(event) => event.header.as_ref(),
        };
        let committed_at = header.and_then(ChangeEventHeader::committed_at);
        self.observer.came(what.received_at(), committed_at);
        let at = self.tracker.next_seq();
        let held = &mut self.letters.held;
        let commit = header.and_then(|header| header.commit(what.received_at()));
        commit.into_iter().for_each(|commit| held.reached(commit));
        let change = match held.to_come_count() {
            0 => None, // nobody asks
            _ => Change::of(header, what.received_at(), self.letters.holding),
        };
        names().for_each(|name| held.brought(at, name));
        held.live_at(at, replay_id.as_ref(), change.as_ref());
        let gap = header.and_then(|header| gap_of(header, replay_id.as_ref()));
        let seq = self.tracker.push_event(tracked, replay_id, finished);
        self.tell_left_out(unwanted & !finished);
        if self.tracker.leave_out(seq, unwanted) && finished == 0 {
            self.observer.finished(Outcome::Filtered, 1);
            self.position.finished(1);
            self.legs.finished(seq, now);
        }
        self.pin_next(seq);
        if let Some(hole) = gap {
            // Stored before the position passes the event.
            self.tracker.pin(seq);
            self.observer.hole("gap");
            self.gaps.record(seq, hole);
        }
        self.position.received(1);
        let member = Member {
            what,
            finished,
            unwanted,
        };
        let over = self.grouping.take(seq, member, now);
        self.hand_on(over);
    }

    /// Keeps the position before this place, where a hole before it is still to be stored.
    fn pin_next(&mut self, seq: Seq) {
        if let Some(stored) = self.pinned.take() {
            self.tracker.pin(seq);
            self.gaps.wait(seq, stored);
        }
    }

    /// True where an event that comes may be known by what it is.
    fn knows_some(&self) -> bool {
        let held = &self.letters.held;
        !self.finished_before.is_empty() || !held.is_empty() || held.awaits_events()
    }

    /// What an event was known by if nothing of it could be read before, where that is another identity and there
    /// is something to be known again.
    fn unread_name(&self, identity: &EventIdentity, what: &What) -> Option<EventIdentity> {
        if self.finished_before.is_empty() && !self.letters.held.awaits_events() {
            return None;
        }
        let unread = match what {
            What::Event(event) => event.raw.identity_unread(),
            What::Undecodable(event) => event.raw.identity_unread(),
        };
        (unread != *identity).then_some(unread)
    }

    /// Counts an event that these handlers do not want.
    fn tell_left_out(&self, handlers: HandlerSet) {
        if handlers == 0 {
            return;
        }
        for (index, run) in self.runs.iter().enumerate() {
            if run.bit & handlers != 0 {
                self.observer.handler_left_out(index);
            }
        }
    }

    /// The handlers for which this event was parked before a restart or a rewind.
    fn parked_before(&self, identity: &EventIdentity) -> HandlerSet {
        let slots = self.letters.held.awaited(identity).into_iter();
        let bits = slots.map(|slot| match slot {
            Slot::Everyone => HandlerSet::MAX,
            Slot::Handler(index) => self.runs[index].bit,
        });
        bits.fold(0, |all, bits| all | bits)
    }

    /// The handlers that do not want an event of a side replay, unless it is parked for them: then it has to meet its letter.
    pub(super) fn unwanted_of_replay(&self, event: &Event) -> HandlerSet {
        let unwanted = self.forms.unwanted(event.decoded.header.as_deref());
        if unwanted == 0 {
            return 0;
        }
        let (held, identity) = (&self.letters.held, event.identity());
        let is_parked = |slot: usize| held.open(Slot::Handler(slot), &identity).is_some();
        let parked = (self.runs.iter().enumerate()).filter(|(slot, _)| is_parked(*slot));
        unwanted & !parked.fold(0, |set, (_, run)| set | run.bit)
    }
}
