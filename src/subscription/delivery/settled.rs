//! Letters that are settled elsewhere: by a person, or in a handler's own transaction. An event whose letter is, and
//! which the stream brings once more, is not handed over.

use super::Delivery;
use super::grouping::Group;
use crate::store::LetterSummary;
use crate::subscription::held::{Known, Slot};
use crate::subscription::lanes::{Origin, Waiting};
use crate::subscription::parking::Move;

impl Delivery {
    /// Takes in which letters are open, and has those counted that are not any more.
    pub(super) fn looked(&mut self, open: Vec<LetterSummary>) {
        let holding = self.letters.holding;
        let held = &mut self.letters.held;
        let gone = held.sync(open, |summary| holding.records(&summary.record_ids));
        let known = gone.iter().filter_map(|ticket| held.known(*ticket));
        let ids = known.filter_map(|known| match known {
            Known::Id(id) => Some(id),
            Known::Event(_) => None,
        });
        let ids: Vec<i64> = ids.collect();
        if !ids.is_empty() {
            self.letters.parking.write(Move::Count(ids));
        }
        for ticket in &gone {
            if let Some((slot, identity)) = held.settle(*ticket) {
                let of_slot =
                    self.runs.iter().enumerate().filter(|(index, _)| {
                        slot == Slot::Everyone || slot == Slot::Handler(*index)
                    });
                let bits = of_slot.fold(0, |all, (_, run)| all | run.bit);
                *self.finished_before.entry(identity).or_insert(0) |= bits;
            }
        }
    }

    /// What comes off a stream parks behind what holds it; but an event whose letter a person has settled since it
    /// came is finished by that.
    pub(super) fn set_live_aside(&mut self, handler: usize, waiting: Waiting) {
        let held = &self.letters.held;
        let is_settled = |place: Origin| match place {
            Origin::Live(seq) => held.is_settled(handler, seq),
            Origin::Replay(_) | Origin::Letter { .. } => false,
        };
        let settled: Vec<Origin> = waiting
            .places()
            .filter(|place| is_settled(*place))
            .collect();
        if settled.is_empty() && self.letters.is_held(handler, &waiting) {
            return self.park_behind(handler, &waiting);
        }
        // What is left of a transaction; or what stood behind an event that has gone by that.
        let left = match settled.is_empty() {
            true => vec![waiting],
            false => waiting.without(&settled, self.ordering),
        };
        for waiting in left {
            self.runs[handler].put_back(waiting);
        }
        let bit = self.runs[handler].bit;
        for place in settled {
            self.parked(place, Some(bit));
        }
    }

    /// An event whose letter was settled while its transaction was collected is finished by that.
    pub(super) fn leave_settled(&mut self, group: &mut Group) {
        if self.letters.held.is_empty() {
            return;
        }
        let places = group.places();
        for (seq, member) in places.into_iter().zip(&mut group.members) {
            let runs = self.runs.iter().enumerate();
            let settled = runs.filter(|(index, _)| self.letters.held.is_settled(*index, seq));
            let bits = settled.fold(0, |all, (_, run)| all | run.bit);
            if bits != 0 {
                member.finished |= bits;
                self.parked(Origin::Live(seq), Some(bits));
            }
        }
    }
}
