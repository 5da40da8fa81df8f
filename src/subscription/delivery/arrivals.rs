//! What comes off the stream: into the tracker, and to every handler that has not finished it yet.

use std::sync::Arc;

use super::Delivery;
use crate::event::{Event, EventIdentity};
use crate::store::DeadLetter;
use crate::subscription::decoder::{Item, Undecodable};
use crate::subscription::lanes::{Origin, Unit};
use crate::subscription::tracker::Tracked;

impl Delivery {
    pub(super) fn take(&mut self, item: Item) {
        match item {
            Item::Event(event) => self.take_event(event),
            Item::Undecodable(event) => self.take_undecodable(*event),
            Item::Keepalive(id) => {
                self.repeats.clear();
                // The stream has caught up: what has not come again by now never will.
                self.finished_before.clear();
                self.tracker.push_keepalive(id);
            }
            Item::Resumed => self.repeats = self.tracker.incomplete_events(),
        }
    }

    /// True for an event that is in the tracker already, under a replay ID that was incomplete when the
    /// stream broke.
    fn is_repeat(&mut self, identity: &EventIdentity, size: usize) -> bool {
        let Some(left) = self.repeats.get_mut(identity).filter(|left| **left > 0) else {
            return false;
        };
        *left -= 1;
        self.in_flight.release(1, size);
        self.observer.repeat();
        true
    }

    fn take_event(&mut self, event: Arc<Event>) {
        let identity = event.identity();
        let (raw_size, size) = (event.raw.size(), event.size());
        if self.is_repeat(&identity, raw_size) {
            return;
        }
        self.replays.live_brought(event.raw.replay_id.as_ref());
        self.in_flight.grow(size - raw_size, size);
        let finished = self.finished_before.remove(&identity).unwrap_or(0);
        let tracked = Tracked {
            identity,
            occurred_at: event.occurred_at(),
            size,
        };
        let seq = self
            .tracker
            .push_event(tracked, event.raw.replay_id.clone(), finished);
        for run in self.runs.iter_mut().filter(|run| run.bit & finished == 0) {
            run.put(Origin::Live(seq), Unit::One(event.clone()), self.ordering);
        }
        self.position.received(1);
    }

    fn take_undecodable(&mut self, event: Undecodable) {
        let (size, replay_id) = (event.raw.size(), event.raw.replay_id.clone());
        let letter = undecodable_letter(event);
        if self.is_repeat(&letter.identity, size) {
            return;
        }
        self.replays.live_brought(replay_id.as_ref());
        let tracked = Tracked {
            identity: letter.identity.clone(),
            occurred_at: letter.received_at,
            size,
        };
        let seq = self.tracker.push_event(tracked, replay_id, 0);
        self.position.received(1);
        self.park(Origin::Live(seq), None, letter);
    }
}

/// An event that could not be decoded, as it is parked for all handlers.
pub(super) fn undecodable_letter(event: Undecodable) -> DeadLetter {
    let record_ids = event.header.map(|header| header.record_ids);
    let identity = match record_ids.iter().flatten().next() {
        Some(record_id) => event.raw.identity(Some(record_id)),
        None => event.raw.identity_unread(),
    };
    DeadLetter {
        identity,
        handler: None,
        reason: event.reason.to_owned(),
        error: event.error,
        attempts: 0,
        event_uuid: event.raw.id,
        replay_id: event.raw.replay_id,
        schema_id: event.raw.schema_id,
        payload: event.raw.payload,
        record_ids: record_ids.unwrap_or_default(),
        record_name: None,
        received_at: event.received_at,
    }
}
