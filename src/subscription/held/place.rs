//! Order among letters: where one belongs that is about to be written, and what has to move.

use std::collections::BTreeSet;

use super::{Held, Letter, Phase, Rank, Since, Slot, Ticket};
use crate::store::Placed;
use crate::subscription::lanes::Origin;

/// Where letters belong that are about to be written together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::subscription) enum Place {
    /// Behind all others.
    Last,
    /// Here, for a younger one was written before.
    At(i64),
    /// Behind all others, but these, which go behind them in this order.
    Before(Vec<i64>),
    /// Before or behind one that has to be written first.
    Unknown,
}

impl Held {
    /// Where these letters, of events of a stream, belong: before those that share a record with them and
    /// whose events come later, although they were parked first; behind all others. `first` says that
    /// nothing that was decided before is still to be written.
    ///
    /// Letters off a side replay go behind all others: older values follow newer ones there. Where the later event
    /// is still to come again nothing has to be done now: its letter moves behind these
    /// when it comes by ([`Held::is_misplaced`]).
    pub(in crate::subscription) fn place_of(
        &self,
        tickets: &[Ticket],
        origin: Origin,
        first: bool,
    ) -> Place {
        // What a side replay brings has no order to what the live stream brings meanwhile.
        if !matches!(origin, Origin::Live(_)) || self.after.is_empty() {
            return Place::Last;
        }
        let (mut older, mut later) = (BTreeSet::new(), BTreeSet::new());
        let (mut older_waits, mut later_waits, mut moves) = (false, false, false);
        for (number, ticket) in tickets.iter().enumerate() {
            let Some(letter) = self.letters.get(ticket) else {
                continue;
            };
            let origin = origin.plus(number);
            moves |= letter.phase == Phase::Moving;
            for rank in self.sharing(letter) {
                let Some(other) = self.letters.get(&rank.ticket) else {
                    continue;
                };
                if tickets.contains(&rank.ticket) {
                    continue;
                }
                let to_come = other.since == Since::ToCome;
                let is_before = to_come || other.is_before(origin);
                // What is to be written after these needs no place before it.
                let waits = matches!(other.phase, Phase::New | Phase::Moving);
                let waits = waits && (moves || rank.ticket < *ticket);
                older_waits |= waits && is_before;
                later_waits |= waits && !is_before;
                if to_come || self.is_placed(&rank) {
                    let side = if is_before { &mut older } else { &mut later };
                    side.insert(rank);
                }
            }
        }
        if !first && (later_waits || (older_waits && !later.is_empty())) {
            return Place::Unknown;
        }
        let Some(next) = later.first() else {
            return Place::Last;
        };
        let before = next.place.saturating_sub(1);
        // One that is open again has a number that may be less than that of another at the same place, of its unit too.
        let may_share = !moves && tickets.len() == 1;
        if may_share && older.last().is_none_or(|last| last.place < before) {
            return Place::At(before);
        }
        let own = tickets.iter().filter_map(|ticket| self.letters.get(ticket));
        older.extend(own.map(|letter| letter.rank));
        let waits = |other: &Letter| {
            let before = tickets.first().is_some_and(|own| other.rank.ticket < *own);
            matches!(other.phase, Phase::New | Phase::Moving) && (moves || before)
        };
        match self.with_followers(later, &older, waits) {
            // One that goes behind another, and not behind these, would be before that.
            (_, true) if !first => Place::Unknown,
            (moving, _) => Place::Before(moving),
        }
    }

    /// True where a letter whose event the stream has brought once more is before one of an event that is older
    /// and shares a record with it, or is of its unit: that may come in parts.
    pub(in crate::subscription) fn is_misplaced(&self, ticket: Ticket, origin: Origin) -> bool {
        let Some(letter) = self.letters.get(&ticket) else {
            return false;
        };
        // One that moves is behind this one once that is written.
        let behind = |rank: &Rank| {
            let other = self.letters.get(&rank.ticket);
            other.is_some_and(|other| {
                let moves = other.phase == Phase::Moving || other.goes_behind;
                (moves || *rank > letter.rank) && rank.ticket != ticket && other.is_before(origin)
            })
        };
        let mut sets = self.sets_of(letter).chain(self.unit_of(letter));
        letter.phase == Phase::Open && sets.any(|set| set.iter().rev().any(behind))
    }

    /// It is about to be written behind all others: its number, by which that is done; unless it is on its way.
    pub(in crate::subscription) fn moves(&mut self, ticket: Ticket) -> Option<i64> {
        let letter = self.letters.get_mut(&ticket)?;
        if letter.phase != Phase::Open {
            return None;
        }
        letter.phase = Phase::Moving;
        Some(letter.rank.id)
    }

    /// What it had to move for is written.
    pub(in crate::subscription) fn has_moved(&mut self, ticket: Ticket) {
        if let Some(letter) = self.letters.get_mut(&ticket)
            && letter.phase == Phase::Moving
        {
            letter.phase = Phase::Open;
            self.consider(ticket);
        }
    }

    /// It is being written behind others.
    pub(in crate::subscription) fn goes_behind(&mut self, id: i64) {
        let ticket = self.by_id.get(&id);
        if let Some(letter) = ticket.and_then(|ticket| self.letters.get_mut(ticket)) {
            letter.goes_behind = true;
        }
    }

    /// It is written there.
    pub(in crate::subscription) fn moved(&mut self, placed: Placed) {
        let Some(ticket) = self.by_id.get(&placed.id).copied() else {
            return;
        };
        // What had to wait for it need not any more.
        self.followers(ticket);
        let Some(mut letter) = self.letters.remove(&ticket) else {
            return;
        };
        self.unindex(&letter);
        letter.rank.place = placed.place;
        letter.goes_behind = false;
        self.index(&letter);
        self.letters.insert(ticket, letter);
        self.consider(ticket);
    }

    /// The letters of each of its records, itself among them, in the slots where their order to it matters.
    fn sets_of(&self, letter: &Letter) -> impl Iterator<Item = &BTreeSet<Rank>> {
        let handlers = match letter.slot {
            Slot::Everyone => (0..self.handlers.len()).map(Slot::Handler).collect(),
            own => vec![own],
        };
        let slots = handlers.into_iter().chain([Slot::Everyone]);
        let keys = slots.flat_map(|slot| letter.records.iter().map(move |record| (slot, *record)));
        keys.filter_map(|key| self.by_record.get(&key))
    }

    /// The letters of its unit, itself among them.
    fn unit_of(&self, letter: &Letter) -> Option<&BTreeSet<Rank>> {
        let unit = letter.unit.as_ref()?;
        self.by_unit.get(&(letter.slot, unit.clone()))
    }

    /// As [`Held::sets_of`], in one.
    fn sharing(&self, letter: &Letter) -> BTreeSet<Rank> {
        self.sets_of(letter).flatten().copied().collect()
    }

    /// False where its rank tells nothing: it is to be written, or moves when its event comes by if it has to.
    fn is_placed(&self, rank: &Rank) -> bool {
        let letter = self.letters.get(&rank.ticket);
        letter.is_some_and(|letter| {
            let moves = matches!(letter.phase, Phase::New | Phase::Moving);
            !moves && letter.since != Since::ToCome
        })
    }

    /// These, with all that waits behind one of them or is of one unit with it, in order; true where some of that is
    /// still to be written.
    fn with_followers(
        &self,
        mut moving: BTreeSet<Rank>,
        staying: &BTreeSet<Rank>,
        waits: impl Fn(&Letter) -> bool,
    ) -> (Vec<i64>, bool) {
        let mut some_wait = false;
        let mut unseen: Vec<Rank> = moving.iter().copied().collect();
        while let Some(rank) = unseen.pop() {
            let Some(letter) = self.letters.get(&rank.ticket) else {
                continue;
            };
            let sharing = self.sharing(letter);
            // Where one that moves is by now tells nothing.
            let moves = |one: &Rank| {
                let one = self.letters.get(&one.ticket);
                one.is_some_and(|one| one.phase == Phase::Moving)
            };
            let behind = sharing.iter().filter(|one| **one >= rank || moves(one));
            // A unit goes as a whole, where its first letter is: what is behind any of them is behind all.
            for one in behind.chain(self.unit_of(letter).into_iter().flatten()) {
                if staying.contains(one) {
                    continue;
                }
                if !self.is_placed(one) {
                    some_wait |= self.letters.get(&one.ticket).is_some_and(&waits);
                } else if moving.insert(*one) {
                    unseen.push(*one);
                }
            }
        }
        (moving.into_iter().map(|rank| rank.id).collect(), some_wait)
    }
}

impl Letter {
    /// True where the live stream may still bring its event.
    pub(super) fn is_unseen(&self) -> bool {
        self.came.is_none() && self.since == Since::ToCome
    }

    /// True where its event is older than one from there. What a stream has not brought, and is not to bring any
    /// more, lies before its beginning.
    fn is_before(&self, origin: Origin) -> bool {
        match origin {
            Origin::Live(_) if self.is_unseen() => false,
            Origin::Live(seq) => self.came.is_none_or(|came| came < seq),
            Origin::Letter { .. } | Origin::Replay(_) => self.holds(origin),
        }
    }

    /// True where an event from there is younger than this letter's.
    pub(super) fn holds(&self, origin: Origin) -> bool {
        match (origin, self.since) {
            (Origin::Letter { .. }, _) => false,
            (Origin::Replay(seq), _) => self.met.is_some_and(|met| seq > met),
            (Origin::Live(_), Since::Always) => true,
            (Origin::Live(seq), Since::After(since)) => seq > since,
            (Origin::Live(_), Since::ToCome) => false,
        }
    }
}
