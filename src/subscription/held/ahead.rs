//! Dead letters that the store takes for being ahead of the position: when the position passes their events,
//! the write of the position says so.

use std::collections::{BTreeMap, HashMap};

use crate::event::EventIdentity;
use crate::subscription::tracker::Seq;

/// Numbers of letters whose events the stored position has not passed.
#[derive(Debug, Default)]
pub(in crate::subscription) struct Ahead {
    /// By the place of their events in the stream.
    at: BTreeMap<Seq, Vec<i64>>,
    /// Settled before a restart; the stream has not brought their events again yet.
    settled: HashMap<EventIdentity, Vec<i64>>,
    /// To be told to the store.
    passed: Vec<i64>,
}

impl Ahead {
    /// The stream has brought the event of this letter at this place.
    pub(in crate::subscription) fn at(&mut self, seq: Seq, id: i64) {
        self.at.entry(seq).or_default().push(id);
    }

    /// A letter is not open any more, and its event is still to come again.
    pub(in crate::subscription) fn settled(&mut self, identity: EventIdentity, id: i64) {
        self.settled.entry(identity).or_default().push(id);
    }

    /// True where the stream is still to bring the event of a letter that is settled.
    pub(in crate::subscription) fn awaits(&self) -> bool {
        !self.settled.is_empty()
    }

    /// The event of this letter never comes again.
    pub(in crate::subscription) fn never(&mut self, id: i64) {
        self.passed.push(id);
    }

    /// The stream has brought an event.
    pub(in crate::subscription) fn brought(&mut self, seq: Seq, identity: &EventIdentity) {
        if let Some(ids) = self.settled.remove(identity) {
            self.at.entry(seq).or_default().extend(ids);
        }
    }

    /// What the stream has not brought by now it never will.
    pub(in crate::subscription) fn all_brought(&mut self, seq: Seq) {
        for (_, ids) in self.settled.drain() {
            self.at.entry(seq).or_default().extend(ids);
        }
    }

    /// These letters are in the place of another one.
    pub(in crate::subscription) fn follow(&mut self, id: i64, others: impl Iterator<Item = i64>) {
        match self.at.values_mut().find(|ids| ids.contains(&id)) {
            Some(ids) => ids.extend(others),
            None => self.passed.extend(others),
        }
    }

    /// The position has passed everything before this place: gives the letters of which that is to be stored.
    pub(in crate::subscription) fn pass(&mut self, passed_to: Seq) -> Vec<i64> {
        while let Some(entry) = self.at.first_entry()
            && *entry.key() < passed_to
        {
            self.passed.extend(entry.remove());
        }
        std::mem::take(&mut self.passed)
    }
}
