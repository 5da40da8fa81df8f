//! The lanes of the model: units in the order of their origins, of which any may be next that shares no record with an
//! earlier one or with one that is with the handler.

use super::*;

/// A unit that waits for the handler, or is with it.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) origin: Origin,
    /// The place of each event; none of letters.
    pub(super) places: Vec<Seq>,
    pub(super) events: Vec<usize>,
    partial: bool,
    transaction: usize,
    pub(super) records: Records,
}

impl Waiting {
    /// What its dead letters have in common.
    pub(super) fn name(&self) -> Option<String> {
        let (key, first) = (self.transaction, self.events[0]);
        match self.partial {
            true => Some(format!("{PART}{key}:{first}")),
            false => (self.events.len() > 1).then(|| format!("transaction:{key}")),
        }
    }

    fn is_letters(&self) -> bool {
        matches!(self.origin, Origin::Letter { .. })
    }

    fn shares(&self, other: &Self) -> bool {
        let mut records = self.records.iter();
        records.any(|record| other.records.contains(record))
    }
}

impl Model {
    /// Events off the stream.
    pub(super) fn waiting(&self, places: Vec<Seq>, partial: bool) -> Waiting {
        let events = places.iter().map(|seq| self.event_of(*seq)).collect();
        Waiting {
            partial,
            ..self.unit(Origin::Live(places[0]), places, events)
        }
    }

    fn unit(&self, origin: Origin, places: Vec<Seq>, events: Vec<usize>) -> Waiting {
        let records = events
            .iter()
            .flat_map(|event| self.bus[*event].records.clone());
        Waiting {
            origin,
            places,
            partial: false,
            transaction: self.bus[events[0]].transaction,
            records: records.collect(),
            events,
        }
    }

    /// Letters that are loaded.
    pub(super) fn put_letters(&mut self, letters: &[(Ticket, Placed)]) {
        let Placed { place, id } = letters[0].1;
        let origin = Origin::Letter { place, id };
        let tickets: Vec<Ticket> = letters.iter().map(|(ticket, _)| *ticket).collect();
        let events: Vec<usize> = tickets
            .iter()
            .map(|one| self.event_of_ticket(*one))
            .collect();
        let name = self.held.letters[&tickets[0]].unit.as_deref();
        if let Some(key) = name.and_then(|name| name.strip_prefix("transaction:")) {
            let of = |event: &usize| self.bus[*event].transaction.to_string() == key;
            let whole: Vec<usize> = (0..self.bus.len()).filter(of).collect();
            assert_eq!(events, whole, "a part passes for a whole");
        }
        tickets
            .iter()
            .for_each(|ticket| self.held.in_lanes(*ticket));
        self.in_lanes.insert(origin, tickets);
        let waiting = self.unit(origin, vec![], events);
        self.lanes.insert(origin, waiting);
    }

    /// As `Letters::is_held`.
    fn is_held(&self, waiting: &Waiting) -> bool {
        if self.held.is_empty() && !waiting.is_letters() {
            return false;
        }
        if waiting.is_letters() {
            let tickets = self.in_lanes.get(&waiting.origin);
            return tickets.is_none_or(|tickets| self.held.must_wait(tickets));
        }
        let last = Origin::Live(*waiting.places.last().unwrap());
        let holder = self.held.holder(MINE, &waiting.records, last);
        if let Some(holder) = holder {
            let before = self.event_of_ticket(holder);
            let last = *waiting.events.last().unwrap();
            assert!(
                before <= last,
                "{:?} park behind {before}, which is younger",
                waiting.events
            );
        }
        let parked = |event: &usize| self.held.open(MINE, &Self::identity(*event)).is_some();
        let own = self.held.awaits_some() && waiting.events.iter().any(parked);
        let settled = |seq: &Seq| self.held.is_settled(0, *seq);
        holder.is_some() || own || waiting.places.iter().any(settled)
    }

    /// A unit whose turn it is goes to the handler, or aside.
    pub(super) fn hand_over(&mut self, which: usize) {
        let is_next = |one: &&Waiting| {
            let mut earlier = self.lanes.range(..one.origin).map(|(_, other)| other);
            !earlier.any(|other| other.shares(one))
                && !self.with_handler.iter().any(|other| other.shares(one))
        };
        let next: Vec<Origin> = self
            .lanes
            .values()
            .filter(is_next)
            .map(|one| one.origin)
            .collect();
        let Some(origin) = (!next.is_empty()).then(|| next[which % next.len()]) else {
            return;
        };
        let waiting = self.lanes.remove(&origin).unwrap();
        if self.is_held(&waiting) {
            return self.set_aside(waiting);
        }
        self.is_in_order(&waiting);
        self.with_handler.push(waiting);
    }

    /// As `Delivery::set_aside`.
    fn set_aside(&mut self, waiting: Waiting) {
        if waiting.is_letters() {
            let tickets = self.in_lanes.remove(&waiting.origin).unwrap_or_default();
            tickets
                .iter()
                .for_each(|ticket| self.held.put_back(*ticket));
            tickets
                .iter()
                .for_each(|ticket| self.held.consider(*ticket));
            return;
        }
        let settled = |seq: &Seq| self.held.is_settled(0, *seq);
        if !waiting.places.iter().any(settled) {
            let behind = vec![true; waiting.events.len()];
            return self.park_again(MINE, &waiting, &behind, Moment::InTurn);
        }
        let stretches = waiting
            .places
            .chunk_by(|one, next| settled(one) == settled(next));
        let left = stretches.filter(|stretch| !settled(&stretch[0]));
        let left: Vec<Waiting> = left.map(|left| self.waiting(left.to_vec(), true)).collect();
        let done: Vec<Seq> = waiting.places.iter().copied().filter(settled).collect();
        self.lanes
            .extend(left.into_iter().map(|one| (one.origin, one)));
        done.into_iter()
            .for_each(|seq| self.live[seq as usize] = Live::Finished);
    }

    /// Nothing older of their records is left, and the events of a unit are in their order.
    fn is_in_order(&self, waiting: &Waiting) {
        let events = &waiting.events;
        assert!(
            events.is_sorted(),
            "{events:?} are one unit and not in their order"
        );
        for (number, event) in events.iter().copied().enumerate() {
            assert!(
                waiting.is_letters() || !self.bus[event].given_up,
                "{event} was given up, and is handed over"
            );
            for older in (0..event).filter(|_| !self.bus[event].settled) {
                let before = !self.share(older, event)
                    || self.bus[older].settled
                    || events[..number].contains(&older);
                assert!(
                    before || self.nobody_knows(older, event),
                    "{event} is handed over before {older}"
                );
            }
        }
    }

    /// The handler answers for a unit that it has.
    pub(super) fn answer(&mut self, which: usize, accept: bool) {
        if self.with_handler.is_empty() {
            return;
        }
        let waiting = self.with_handler.remove(which % self.with_handler.len());
        if accept {
            waiting
                .events
                .iter()
                .for_each(|event| self.bus[*event].settled = true);
        }
        if waiting.is_letters() {
            let tickets = self.in_lanes.remove(&waiting.origin).unwrap_or_default();
            self.letters_answered(&tickets, accept);
        } else if accept {
            let places = waiting.places.iter();
            places.for_each(|seq| self.live[*seq as usize] = Live::Finished);
        } else {
            self.refuse(&waiting);
        }
    }
}
