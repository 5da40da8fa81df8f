//! What is parked with one write. Pure.

use std::collections::{HashSet, VecDeque};

use super::Named;
use crate::store::{DeadLetter, PART};
use crate::subscription::held::{Place, Ticket};
use crate::subscription::lanes::Origin;
use crate::subscription::tracker::HandlerSet;

/// Letters that are written in one transaction; a unit goes however many events it has.
pub(in crate::subscription) const BATCH: usize = 50;

/// Events that are parked, or to be: one, or all of a unit.
#[derive(Debug)]
pub(in crate::subscription) struct Parked {
    /// Where each came from.
    pub(in crate::subscription) places: Vec<Origin>,
    /// The handlers they are parked for; `None` for all of them.
    pub(in crate::subscription) handlers: Option<HandlerSet>,
    /// A name in this process for each letter, or for each that moves.
    pub(in crate::subscription) tickets: Vec<Ticket>,
    pub(in crate::subscription) letters: Vec<DeadLetter>,
    /// Where the letters are open already: their numbers. They go behind all others.
    moves: Vec<i64>,
    /// Numbers of letters that go behind these.
    pub(in crate::subscription) behind: Vec<i64>,
}

impl Parked {
    /// Events with a new letter each.
    pub(in crate::subscription) fn new(
        places: Vec<Origin>,
        handlers: Option<HandlerSet>,
        tickets: Vec<Ticket>,
        letters: Vec<DeadLetter>,
    ) -> Self {
        Self {
            places,
            handlers,
            tickets,
            letters,
            moves: Vec::new(),
            behind: Vec::new(),
        }
    }

    /// Events whose letters go behind all others.
    pub(in crate::subscription) fn moving(
        places: Vec<Origin>,
        handlers: Option<HandlerSet>,
        named: Vec<Named>,
    ) -> Self {
        let (tickets, moves) = named.into_iter().unzip();
        Self {
            moves,
            ..Self::new(places, handlers, tickets, Vec::new())
        }
    }

    /// Its letters were open already.
    pub(in crate::subscription) fn moves(&self) -> bool {
        !self.moves.is_empty()
    }
}

/// Takes what may be written next, together. There is `room` for so many more letters; `place` says where such
/// letters belong, and is told whether nothing decided before is still to be written.
pub(in crate::subscription) fn next_batch(
    waiting: &mut VecDeque<Parked>,
    room: usize,
    place: impl Fn(&[Ticket], Origin, bool) -> Place,
) -> Vec<Parked> {
    let mut batch: Vec<Parked> = Vec::new();
    let mut count = 0;
    let mut moved: HashSet<i64> = HashSet::new();
    while let Some(next) = waiting.front_mut() {
        let letters = next.letters.len();
        // A unit is parked whole or not at all: one that is larger than all the room still goes.
        let fits = count + letters <= BATCH.min(room) || (count == 0 && room > 0);
        // What moves goes behind all of the batch.
        let full = count > 0 && count + next.moves.len() > BATCH;
        if full || (letters > 0 && (!fits || !moved.is_empty())) {
            break;
        }
        let (mut to, mut behind) = (None, next.moves.clone());
        // The events of a unit follow each other, whatever is left out between them.
        let first = next.places.first().copied().unwrap_or(Origin::Replay(0));
        match place(&next.tickets, first, batch.is_empty()) {
            Place::Last => {}
            Place::At(place) => to = Some(place),
            Place::Before(others) => behind.extend(others),
            Place::Unknown if batch.is_empty() => {}
            Place::Unknown => break,
        }
        // What moves twice does so one time after the other: where it goes then depends on where it went first.
        if behind.iter().any(|id| moved.contains(id)) {
            break;
        }
        moved.extend(&behind);
        next.behind = behind;
        for letter in &mut next.letters {
            letter.place = to;
        }
        count += letters.max(next.behind.len());
        batch.extend(waiting.pop_front());
    }
    batch
}

/// Has these letters of a unit be a part of it by themselves.
pub(in crate::subscription) fn name_part(letters: &mut [DeadLetter]) {
    let name = letters.first().and_then(|first| {
        let unit = first.unit.as_deref()?;
        let unit = unit.strip_prefix(PART).unwrap_or(unit);
        Some(format!("{PART}{unit}:{}", first.identity))
    });
    for letter in letters {
        letter.unit.clone_from(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_for_two_of_a_queue_does_so_one_time_after_the_other() {
        let moving = |ticket: Ticket| {
            let id = i64::try_from(ticket).unwrap();
            Parked::moving(vec![Origin::Live(ticket)], None, vec![(ticket, id)])
        };
        let mut waiting: VecDeque<Parked> = [1, 2, 3, 4].into_iter().map(moving).collect();
        // 9 goes behind the first and behind the third of them; nothing does behind the others.
        let place = |tickets: &[Ticket], _, _| match tickets {
            [1 | 3] => Place::Before(vec![9]),
            _ => Place::Last,
        };
        let mut next = || -> Vec<Vec<i64>> {
            let batch = next_batch(&mut waiting, 10, place);
            batch.into_iter().map(|parked| parked.behind).collect()
        };
        assert_eq!(next(), [vec![1, 9], vec![2]]);
        assert_eq!(next(), [vec![3, 9], vec![4]]);
        assert!(next().is_empty());
    }
}
