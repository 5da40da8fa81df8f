//! Which letters may be tried now.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Held, Letter, Phase, Rank, Since, Slot, Ticket};
use crate::store::Placed;

/// How much may be on its way to one handler at the same time.
const MAX_EVENTS: usize = 64;

/// Bytes of payload of the same.
const MAX_BYTES: usize = 1 << 20;

/// What is drawn, and what may be next.
#[derive(Debug)]
pub(in crate::subscription) struct Drawing {
    max_events: usize,
    max_bytes: usize,
    /// Letters that may have become free to go; looked at closely when it is their turn.
    candidates: BTreeMap<Slot, BTreeSet<Rank>>,
    /// Events and bytes on their way.
    drawn: HashMap<Slot, (usize, usize)>,
}

impl Default for Drawing {
    fn default() -> Self {
        Self::bounded(MAX_EVENTS, MAX_BYTES)
    }
}

impl Drawing {
    /// With bounds of one's own. A unit goes however large it is, if nothing else is on its way.
    pub(in crate::subscription) fn bounded(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events,
            max_bytes,
            candidates: BTreeMap::new(),
            drawn: HashMap::new(),
        }
    }

    /// The oldest candidate of a slot, which is none any more.
    fn next(&mut self, slot: Slot) -> Option<Rank> {
        self.candidates.get_mut(&slot)?.pop_first()
    }

    fn may_go(&mut self, slot: Slot, ranks: impl IntoIterator<Item = Rank>) {
        self.candidates.entry(slot).or_default().extend(ranks);
    }

    fn fits(&self, slot: Slot, events: usize, bytes: usize) -> bool {
        let (drawn, held) = self.drawn.get(&slot).copied().unwrap_or_default();
        drawn == 0 || (drawn + events <= self.max_events && held + bytes <= self.max_bytes)
    }

    fn take(&mut self, letter: &Letter) {
        let (events, bytes) = self.drawn.entry(letter.slot).or_default();
        *events += 1;
        *bytes += letter.bytes;
    }

    fn give_back(&mut self, letter: &Letter) {
        if let Some((events, bytes)) = self.drawn.get_mut(&letter.slot) {
            *events = events.saturating_sub(1);
            *bytes = bytes.saturating_sub(letter.bytes);
        }
    }
}

/// Letters that are tried together: one, or those of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::subscription) struct Drawn {
    pub(in crate::subscription) slot: Slot,
    /// At least one, oldest first.
    pub(in crate::subscription) letters: Vec<(Ticket, Placed)>,
}

impl Held {
    /// Letters that may be tried now, oldest first: a person asked for it, or they only waited behind
    /// another one; and nothing older of their records is left but what is on its way before them.
    pub(in crate::subscription) fn draw(&mut self) -> Vec<Drawn> {
        let slots: Vec<Slot> = self.drawing.candidates.keys().copied().collect();
        let mut all = Vec::new();
        for slot in slots {
            self.draw_from(slot, &mut all);
        }
        all
    }

    fn draw_from(&mut self, slot: Slot, all: &mut Vec<Drawn>) {
        while let Some(rank) = self.drawing.next(slot) {
            let Some(members) = self.free_to_go(rank.ticket) else {
                continue;
            };
            let letters = members
                .iter()
                .filter_map(|one| self.letters.get(&one.ticket));
            let bytes = letters.map(|letter| letter.bytes).sum();
            if !self.drawing.fits(slot, members.len(), bytes) {
                self.drawing.may_go(slot, [rank]);
                return;
            }
            let mut letters = Vec::with_capacity(members.len());
            for member in &members {
                if let Some(letter) = self.letters.get_mut(&member.ticket) {
                    letter.phase = Phase::Loading;
                    self.drawing.take(letter);
                    let Rank { place, id, ticket } = *member;
                    letters.push((ticket, Placed { place, id }));
                }
            }
            for member in &members {
                self.followers(member.ticket);
            }
            all.push(Drawn { slot, letters });
        }
    }

    /// The letter with all of its unit, where nothing keeps them.
    pub(super) fn free_to_go(&self, ticket: Ticket) -> Option<Vec<Rank>> {
        let letter = self.letters.get(&ticket)?;
        let members: Vec<Rank> = match &letter.unit {
            Some(unit) => {
                // Never a part as if it were the whole.
                let undecoded = (Slot::Everyone, unit.clone());
                if letter.slot != Slot::Everyone && self.by_unit.contains_key(&undecoded) {
                    return None;
                }
                let unit = self.by_unit.get(&(letter.slot, unit.clone()))?;
                unit.iter().copied().collect()
            }
            None => vec![letter.rank],
        };
        let first = *members.first()?;
        // Of a unit that waits for one event to be decoded, that one has to be asked for.
        let mut all_behind = true;
        let mut wanted = false;
        for member in &members {
            let letter = self.letters.get(&member.ticket)?;
            if letter.phase != Phase::Open || letter.since != Since::Always {
                return None;
            }
            all_behind &= letter.behind;
            wanted |= letter.asked || (letter.behind && letter.slot != Slot::Everyone);
            let kept = |older: &Letter| {
                // It comes into the lanes before this one does.
                let loading = older.phase == Phase::Loading && older.is_before_in_lanes(first);
                !loading && !older.goes_before(first)
            };
            // It waits for nobody before it is decoded, and then in each handler's order.
            if letter.slot != Slot::Everyone && self.has_older(letter, &members, kept) {
                return None;
            }
        }
        (wanted || all_behind).then_some(members)
    }

    /// True where an older letter of a record of this one, which is none of `besides`, is as asked.
    fn has_older(&self, letter: &Letter, besides: &[Rank], is: impl Fn(&Letter) -> bool) -> bool {
        let older_in = |slot, record| {
            let set = self.by_record.get(&(slot, record));
            let older = set.into_iter().flat_map(|set| set.range(..letter.rank));
            older
                .filter(|rank| !besides.contains(rank))
                .filter_map(|rank| self.letters.get(&rank.ticket))
                .any(&is)
        };
        letter
            .records
            .iter()
            .any(|record| older_in(letter.slot, *record) || older_in(Slot::Everyone, *record))
    }

    /// True where these letters, on their way together, must not be handed over after all: an older one of
    /// their records came back, or a person wants no attempt any more.
    pub(in crate::subscription) fn must_wait(&self, tickets: &[Ticket]) -> bool {
        let letters = || tickets.iter().filter_map(|one| self.letters.get(one));
        if !letters().any(|letter| letter.asked || letter.behind) {
            return true;
        }
        let ranks: Vec<Rank> = letters().map(|letter| letter.rank).collect();
        let Some(first) = ranks.iter().min().copied() else {
            return true;
        };
        // One that is being loaded was refused and asked for again while these were in the lanes.
        let rests = |older: &Letter| !older.goes_before(first);
        tickets.iter().any(|ticket| {
            self.letters
                .get(ticket)
                .is_none_or(|letter| self.has_older(letter, &ranks, rests))
        })
    }

    /// It is loaded, and in the lanes of its handler.
    pub(in crate::subscription) fn in_lanes(&mut self, ticket: Ticket) {
        if let Some(letter) = self.letters.get_mut(&ticket)
            && letter.phase == Phase::Loading
        {
            letter.phase = Phase::Underway;
            // What was in the lanes before it had to leave them.
            self.followers(ticket);
        }
    }

    /// It is not on its way any more, untried or as if it were.
    pub(in crate::subscription) fn put_back(&mut self, ticket: Ticket) {
        self.leave(ticket, Phase::Open);
    }

    /// Handled: what is next may go after it, and its records are free once that is written.
    pub(in crate::subscription) fn handled(&mut self, ticket: Ticket) {
        self.leave(ticket, Phase::Handled);
        self.followers(ticket);
    }

    /// Refused once more: it holds its records until a person asks again.
    pub(in crate::subscription) fn refused(&mut self, ticket: Ticket) {
        if let Some(letter) = self.letters.get_mut(&ticket) {
            letter.asked = false;
            letter.behind = false;
        }
        self.leave(ticket, Phase::Refused);
    }

    /// It cannot go, because another one of its unit cannot, and nobody has refused it: it holds its records
    /// until a person asks again, or that one is given up.
    pub(in crate::subscription) fn waits_again(&mut self, ticket: Ticket) {
        if let Some(letter) = self.letters.get_mut(&ticket) {
            letter.asked = false;
            letter.behind = true;
        }
        self.leave(ticket, Phase::Refused);
    }

    /// That is written.
    pub(in crate::subscription) fn rests(&mut self, ticket: Ticket) {
        self.leave(ticket, Phase::Open);
        self.consider(ticket);
    }

    fn leave(&mut self, ticket: Ticket, phase: Phase) {
        let Some(letter) = self.letters.get_mut(&ticket) else {
            return;
        };
        if matches!(letter.phase, Phase::Loading | Phase::Underway) {
            self.drawing.give_back(letter);
        }
        letter.phase = phase;
    }

    /// It may be free to go.
    pub(in crate::subscription) fn consider(&mut self, ticket: Ticket) {
        let Some(letter) = self.letters.get(&ticket) else {
            return;
        };
        if letter.phase == Phase::Open {
            self.drawing.may_go(letter.slot, [letter.rank]);
        }
    }

    /// What comes next of its records may be free to go.
    pub(super) fn followers(&mut self, ticket: Ticket) {
        if let Some(letter) = self.letters.get(&ticket) {
            for (slot, next) in self.next_after(letter) {
                self.drawing.may_go(slot, next);
            }
        }
    }

    /// As [`Held::followers`], of one that is no longer there.
    pub(super) fn let_go(&mut self, letter: &Letter) {
        if matches!(letter.phase, Phase::Loading | Phase::Underway) {
            self.drawing.give_back(letter);
        }
        for (slot, next) in self.next_after(letter) {
            self.drawing.may_go(slot, next);
        }
    }

    fn next_after(&self, letter: &Letter) -> Vec<(Slot, Vec<Rank>)> {
        let slots: Vec<Slot> = match letter.slot {
            Slot::Everyone => (0..self.handlers.len()).map(Slot::Handler).collect(),
            own => vec![own],
        };
        let rests = |rank: &&Rank| {
            let letter = self.letters.get(&rank.ticket);
            letter.is_some_and(|letter| letter.phase == Phase::Open)
        };
        let next_in = |slot| {
            let mut next: Vec<Rank> = Vec::new();
            for record in &letter.records {
                let set = self.by_record.get(&(slot, *record));
                let after = set.into_iter().flat_map(|set| set.range(letter.rank..));
                next.extend(after.copied().find(|rank| rests(&rank)));
            }
            // What was kept because a part of its transaction could not be decoded.
            if let Some(unit) = &letter.unit {
                let unit = self.by_unit.get(&(slot, unit.clone()));
                next.extend(unit.into_iter().flatten().find(|rank| rests(rank)).copied());
            }
            (slot, next)
        };
        slots.into_iter().map(next_in).collect()
    }
}

impl Letter {
    /// True where the lanes keep it before letters that are in them where `first` is, the first of their unit, or where
    /// it has left them, handled.
    fn goes_before(&self, first: Rank) -> bool {
        let goes = match self.phase {
            Phase::Underway => self.is_before_in_lanes(first),
            Phase::Handled => true,
            _ => false,
        };
        goes && self.slot != Slot::Everyone
    }

    /// A unit is in the lanes where its first letter is: the others may be behind letters that it would overtake there.
    fn is_before_in_lanes(&self, first: Rank) -> bool {
        self.slot != Slot::Everyone && self.rank < first
    }
}
