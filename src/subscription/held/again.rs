//! Events of a unit that are to be parked while some of them are parked already: a stream has brought them once more.

use super::{Held, Since, Slot, Ticket};
use crate::subscription::lanes::Origin;

/// When it is decided that a unit is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::subscription) enum Moment {
    /// It comes off the stream, and nobody can be given it. Older ones may still be on their way to the
    /// handlers: these are not behind it.
    OnArrival,
    /// It is its turn: what is older of its records is finished.
    InTurn,
}

impl Moment {
    pub(in crate::subscription) fn since(self, origin: Origin) -> Since {
        match (self, origin) {
            (Self::OnArrival, Origin::Live(seq)) => Since::After(seq),
            _ => Since::Always,
        }
    }
}

/// What becomes of events of a unit that follow each other; in this order.
#[derive(Debug)]
pub(in crate::subscription) enum Again<T> {
    /// They have no letters yet, and get some.
    New {
        events: Vec<(Origin, T)>,
        /// Others of the unit have letters of another unit: these are a part by themselves, or a unit would be between the
        /// events of another one, each of the two waiting for the other.
        apart: bool,
    },
    /// Their letters, by their numbers, go behind all others in this order. They are parked once that is written.
    Move(Vec<(Origin, (Ticket, i64))>),
    /// Its letter stays where it is: it is parked by that.
    Stay(Origin),
}

impl Held {
    /// Takes in that these events of a unit of this name are parked for a slot, each with the open letter it has. A letter
    /// stays where it is among the others, unless one of an older event was written meanwhile, or is to be.
    pub(in crate::subscription) fn brought_again<T>(
        &mut self,
        slot: Slot,
        unit: Option<&str>,
        events: Vec<(Origin, T, Option<Ticket>)>,
        moment: Moment,
    ) -> Vec<Again<T>> {
        let is_known = |ticket: &Ticket, origin: Origin| match origin {
            // Off a side replay, which brought the event while it was on its way here: the store does not
            // know that it comes again after a restart.
            Origin::Live(_) => self.is_known_ahead(*ticket, slot),
            // What is not written yet may never be: the replay's place must not pass it.
            Origin::Replay(_) => self.place(*ticket).is_some(),
            Origin::Letter { .. } => true,
        };
        let events: Vec<(Origin, T, Option<Ticket>)> = events
            .into_iter()
            .map(|(origin, event, open)| {
                let known = open.filter(|ticket| is_known(ticket, origin));
                (origin, event, known)
            })
            .collect();
        let known = events
            .iter()
            .filter_map(|(origin, _, known)| Some((*origin, (*known)?)));
        let known: Vec<(Origin, Ticket)> = known.collect();
        let of_unit = |ticket| {
            let letter = self.letters.get(&ticket);
            letter.is_some_and(|one| one.slot == slot && one.unit.as_deref() == unit)
        };
        let apart = !known.iter().all(|(_, ticket)| of_unit(*ticket));
        // A unit is in order by the places of its letters: what is known goes behind what is new before it.
        let mut moves = self.note_brought(&known, moment);
        let mut all: Vec<Again<T>> = Vec::with_capacity(events.len());
        for (origin, event, known) in events {
            let Some(ticket) = known else {
                moves |= matches!(origin, Origin::Live(_));
                match all.last_mut() {
                    Some(Again::New { events, .. }) => events.push((origin, event)),
                    _ => all.push(Again::New {
                        events: vec![(origin, event)],
                        apart,
                    }),
                }
                continue;
            };
            let Some(id) = moves.then(|| self.moves(ticket)).flatten() else {
                all.push(Again::Stay(origin));
                continue;
            };
            match all.last_mut() {
                Some(Again::Move(moving)) => moving.push((origin, (ticket, id))),
                _ => all.push(Again::Move(vec![(origin, (ticket, id))])),
            }
        }
        all
    }

    /// A stream has brought the events of these letters once more. Gives true where one of them is before the letter of
    /// an older event.
    fn note_brought(&mut self, known: &[(Origin, Ticket)], moment: Moment) -> bool {
        for (origin, ticket) in known.iter().copied() {
            match origin {
                Origin::Live(seq) => self.came_by(ticket, moment.since(origin), seq),
                Origin::Replay(seq) => self.met(ticket, seq),
                Origin::Letter { .. } => {}
            }
        }
        let mut known = known.iter().copied();
        known.any(|(origin, ticket)| {
            matches!(origin, Origin::Live(_)) && self.is_misplaced(ticket, origin)
        })
    }
}
