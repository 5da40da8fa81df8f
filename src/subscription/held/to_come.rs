//! Letters whose events the stream is still to bring once more, after a restart or a rewind, or that a side
//! replay has not met: what comes before such an event on the bus is older than its letter, and is not held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use super::{Held, Letter, Reach, Since, Slot, Ticket};
use crate::event::{ChangeEventHeader, Commit, EventIdentity, ReplayId};
use crate::store::LetterSummary;
use crate::subscription::lanes::{Holding, RecordMap, Records};
use crate::subscription::tracker::Seq;

/// How far the clock of this machine may be behind that of the org.
const SKEW: Duration = Duration::from_secs(60);

/// The bus keeps events for three days; what was received so long ago is gone whatever the clocks say. As in
/// the store, which asks the same when letters are loaded.
const FORGOTTEN: Duration = Duration::from_secs(4 * 24 * 3600);

/// Letters that a stream has not passed, by what tells that it has although their events do not come: the bus
/// keeps them no more, or they lie before the beginning.
#[derive(Debug, Default)]
pub(super) struct ToCome {
    by_time: BTreeSet<(SystemTime, Ticket)>,
    by_place: HashMap<ReplayId, Vec<Ticket>>,
    /// Of change events, by each of their records and the commit time; with the commit's number.
    by_record: RecordMap<BTreeMap<(SystemTime, Ticket), Option<i64>>>,
    /// The stream is at a place of [`ToCome::by_place`]; several events may share it.
    at_place: Option<ReplayId>,
}

/// A change that a stream brings.
#[derive(Debug, Clone)]
pub(in crate::subscription) struct Change {
    pub(in crate::subscription) commit: Commit,
    /// Those of its records whose order is kept.
    pub(in crate::subscription) records: Records,
}

impl Change {
    /// The change that a header describes, received then; none of a platform event.
    pub(in crate::subscription) fn of(
        header: Option<&ChangeEventHeader>,
        received_at: SystemTime,
        holding: Holding,
    ) -> Option<Self> {
        let header = header?;
        Some(Self {
            commit: header.commit(received_at)?,
            records: holding.records(&header.record_ids),
        })
    }
}

impl ToCome {
    pub(super) fn insert(&mut self, ticket: Ticket, letter: &Letter) {
        self.by_time.insert((letter.received_at, ticket));
        if let Some(place) = &letter.until {
            let tickets = self.by_place.entry(place.clone()).or_default();
            tickets.push(ticket);
        }
        if let Some(commit) = letter.commit {
            for record in &letter.records {
                let of_record = self.by_record.entry(*record).or_default();
                of_record.insert((commit.at, ticket), commit.number);
            }
        }
    }

    /// False where it was not there.
    pub(super) fn remove(&mut self, ticket: Ticket, letter: &Letter) -> bool {
        if let Some(place) = &letter.until
            && let Some(tickets) = self.by_place.get_mut(place)
        {
            tickets.retain(|other| *other != ticket);
            if tickets.is_empty() {
                self.by_place.remove(place);
            }
        }
        if let Some(commit) = letter.commit {
            for record in &letter.records {
                if let Some(of_record) = self.by_record.get_mut(record) {
                    of_record.remove(&(commit.at, ticket));
                    if of_record.is_empty() {
                        self.by_record.remove(record);
                    }
                }
            }
        }
        self.by_time.remove(&(letter.received_at, ticket))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_time.len()
    }

    fn received_before(&self, then: SystemTime) -> Vec<Ticket> {
        let older = self.by_time.range(..(then, Ticket::MIN));
        older.map(|(_, ticket)| *ticket).collect()
    }

    fn all(&self) -> Vec<Ticket> {
        self.by_time.iter().map(|(_, ticket)| *ticket).collect()
    }

    /// The stream brings an event of this place: gives the letters whose events lie before it.
    fn passed(&mut self, place: Option<&ReplayId>, change: Option<&Change>) -> Vec<Ticket> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut passed = Vec::new();
        if let Some(place) = place {
            if let Some(before) = self.at_place.take_if(|before| before != place) {
                passed.extend(self.by_place.get(&before).into_iter().flatten());
            }
            if self.by_place.contains_key(place) {
                self.at_place = Some(place.clone());
            }
        }
        if let Some(change) = change {
            passed.extend(self.committed_before(change));
            // What was received before another event was committed lies before that.
            let sure = change.commit.at.checked_sub(SKEW);
            passed.extend(sure.into_iter().flat_map(|sure| self.received_before(sure)));
        }
        passed
    }

    /// Those that share a record with this change and were committed before it: the bus has the changes of a record
    /// in that order. Where it had not, a letter would hold an event that is older: that one is parked behind it,
    /// seen and handed over in its time, and when the letter's own event comes, the letter moves behind it. To wait
    /// instead would let a younger one pass, which nothing mends.
    fn committed_before(&self, change: &Change) -> Vec<Ticket> {
        let mut before = Vec::new();
        for record in &change.records {
            let of_record = self.by_record.get(record).into_iter();
            let until = of_record.flat_map(|all| all.range(..=(change.commit.at, Ticket::MAX)));
            let earlier = until.filter(|((at, _), number)| {
                let commit = Commit {
                    at: *at,
                    number: **number,
                };
                commit.is_before(&change.commit)
            });
            before.extend(earlier.map(|((_, ticket), _)| *ticket));
        }
        before
    }
}

/// True where a stream that resumes after this place is still to bring the event of a letter.
pub(in crate::subscription) fn comes_again(
    summary: &LetterSummary,
    resume_after: Option<&ReplayId>,
) -> bool {
    // It lies there, or before.
    let places = [&summary.replay_id, &summary.until];
    let here = |place: &ReplayId| Some(place) == resume_after;
    summary.to_come && !places.into_iter().flatten().any(here)
}

impl Since {
    /// This place and all after it.
    fn from(seq: Seq) -> Self {
        seq.checked_sub(1).map_or(Self::Always, Self::After)
    }
}

impl Held {
    /// The live stream brings an event: the letters of it have their order by that.
    pub(in crate::subscription) fn brought(&mut self, seq: Seq, identity: &EventIdentity) {
        self.ahead.brought(seq, identity);
        if self.letters.is_empty() {
            return;
        }
        for slot in self.slots() {
            let ticket = self.by_identity.get(&(slot, identity.clone()));
            let Some(ticket) = ticket.copied() else {
                continue;
            };
            let Some(letter) = self.letters.get_mut(&ticket) else {
                continue;
            };
            if letter.came.is_some() {
                continue;
            }
            letter.came = Some(seq);
            if letter.since == Since::ToCome {
                self.after.entry(seq).or_default().push(ticket);
                if letter.ahead {
                    self.ahead.at(seq, letter.rank.id);
                }
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let handlers = (0..self.handlers.len()).map(Slot::Handler);
        handlers.chain([Slot::Everyone])
    }

    /// The live stream brings an event at this place of the bus.
    pub(in crate::subscription) fn live_at(
        &mut self,
        seq: Seq,
        place: Option<&ReplayId>,
        change: Option<&Change>,
    ) {
        for ticket in self.to_come.passed(place, change) {
            self.will_not_come(ticket, seq);
        }
    }

    /// The stream has caught up, or begins at LATEST, at this place: what it has not brought again by now it
    /// never will.
    pub(in crate::subscription) fn all_came_by(&mut self, seq: Seq) {
        for ticket in self.to_come.all() {
            self.will_not_come(ticket, seq);
        }
        self.reach = Reach::Unknown;
        self.ahead.all_brought(seq);
    }

    /// It is this time: what was received so long ago that the bus keeps it no more will not come. On a topic that is
    /// never silent, of events without a commit time, nothing else may tell.
    pub(in crate::subscription) fn it_is(&mut self, now: SystemTime, seq: Seq) {
        let Some(forgotten) = now.checked_sub(FORGOTTEN) else {
            return;
        };
        for ticket in self.to_come.received_before(forgotten) {
            self.will_not_come(ticket, seq);
        }
    }

    /// The live stream has brought the event of a letter once more, and it is decided that it is parked: from now on
    /// it holds what is younger by `since`.
    pub(in crate::subscription) fn came_by(&mut self, ticket: Ticket, since: Since, seq: Seq) {
        self.no_longer_to_come(ticket, since, seq);
        if let Some(letter) = self.letters.get_mut(&ticket) {
            letter.came.get_or_insert(seq);
        }
    }

    /// The stream is at this place, and has not brought the event of this letter: it lies before the beginning, or
    /// the bus has forgotten it. One that it has brought has its turn still.
    fn will_not_come(&mut self, ticket: Ticket, seq: Seq) {
        if self.letters.get(&ticket).is_some_and(Letter::is_unseen) {
            self.no_longer_to_come(ticket, Since::from(seq), seq);
        }
    }

    pub(super) fn no_longer_to_come(&mut self, ticket: Ticket, since: Since, seq: Seq) {
        let Some(letter) = self.letters.get_mut(&ticket) else {
            return;
        };
        if !self.to_come.remove(ticket, letter) {
            return;
        }
        letter.since = since;
        if letter.came.is_none() {
            if let Since::After(seq) = since {
                self.after.entry(seq).or_default().push(ticket);
            }
            if letter.ahead {
                self.ahead.at(seq, letter.rank.id);
            }
        }
        self.consider(ticket);
    }

    /// True where the store knows that the live stream brings the event of this letter, which is of `slot`, or
    /// where that makes no difference.
    pub(in crate::subscription) fn is_known_ahead(&self, ticket: Ticket, slot: Slot) -> bool {
        let letter = self.letters.get(&ticket);
        letter.is_none_or(|letter| letter.ahead || letter.slot != slot)
    }

    /// The slots of letters of this event that the stream is still to bring once more.
    pub(in crate::subscription) fn awaited(&self, identity: &EventIdentity) -> Vec<Slot> {
        if self.to_come.is_empty() {
            return Vec::new();
        }
        let is_awaited = |slot: &Slot| {
            let ticket = self.by_identity.get(&(*slot, identity.clone()));
            let letter = ticket.and_then(|ticket| self.letters.get(ticket));
            letter.is_some_and(|letter| letter.since == Since::ToCome)
        };
        self.slots().filter(is_awaited).collect()
    }

    /// A person has settled this letter, which is no more. Its event must not be handed over any more: where the
    /// stream is still to bring it once more, gives whose letter it was and of which event; where that has come and
    /// waits for its turn, [`Held::is_settled`] says so.
    pub(in crate::subscription) fn settle(
        &mut self,
        ticket: Ticket,
    ) -> Option<(Slot, EventIdentity)> {
        let letter = self.letters.get(&ticket)?;
        let (slot, identity, id) = (letter.slot, letter.identity.clone(), letter.rank.id);
        let (came, to_come) = (letter.came, letter.since == Since::ToCome);
        self.remove(ticket);
        match came {
            _ if !to_come => None,
            Some(seq) => {
                self.settled.entry(seq).or_default().push(slot);
                None
            }
            None => {
                self.ahead.settled(identity.clone(), id);
                Some((slot, identity))
            }
        }
    }

    /// True where the letter that a handler had of the event at this place was settled since that came: it is not
    /// to be handed over in its turn.
    pub(in crate::subscription) fn is_settled(&self, handler: usize, seq: Seq) -> bool {
        let is_its = |slot: &Slot| *slot == Slot::Everyone || *slot == Slot::Handler(handler);
        let slots = self.settled.get(&seq);
        slots.is_some_and(|slots| slots.iter().any(is_its))
    }

    /// True where something is to be known again by what a stream brings.
    pub(in crate::subscription) fn awaits_events(&self) -> bool {
        !self.to_come.is_empty() || self.ahead.awaits()
    }

    /// A side replay begins, or goes on: what it brings comes after `before`, and it has met these letters, by
    /// their numbers, and no others.
    pub(in crate::subscription) fn replay_begins(&mut self, met: &[i64], before: Seq) {
        self.unmet = ToCome::default();
        for (ticket, letter) in &mut self.letters {
            letter.met = None;
            self.unmet.insert(*ticket, letter);
        }
        for id in met {
            if let Some(ticket) = self.by_id.get(id).copied() {
                self.met(ticket, before);
            }
        }
    }

    /// The numbers of the letters that the side replay has met before this place.
    pub(in crate::subscription) fn met_before(&self, seq: Seq) -> Vec<i64> {
        let met = |ticket: &Ticket| {
            let letter = self.letters.get(ticket);
            letter.is_some_and(|letter| letter.met.is_some_and(|met| met < seq))
        };
        let met = self.by_id.iter().filter(|(_, ticket)| met(ticket));
        met.map(|(id, _)| *id).collect()
    }

    /// A side replay brings an event at this place of the bus.
    pub(in crate::subscription) fn replay_at(
        &mut self,
        seq: Seq,
        place: Option<&ReplayId>,
        change: Option<&Change>,
    ) {
        for ticket in self.unmet.passed(place, change) {
            self.met(ticket, seq.saturating_sub(1));
        }
    }

    /// Where a side replay brought the event of a letter, if it did.
    pub(in crate::subscription) fn met_at(&self, ticket: Ticket) -> Option<Seq> {
        self.letters.get(&ticket)?.met
    }

    /// A side replay brings the event of a letter: it holds what the replay brings after this place.
    pub(in crate::subscription) fn met(&mut self, ticket: Ticket, seq: Seq) {
        if let Some(letter) = self.letters.get_mut(&ticket) {
            self.unmet.remove(ticket, letter);
            letter.met.get_or_insert(seq);
        }
    }
}
