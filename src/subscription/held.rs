//! Open dead letters, and the records they hold (design 3.1, rules 7 and 9). Pure.
//!
//! A letter of a handler holds its records for that handler, one that could not be decoded for all of
//! them. What shares a record with a letter parks behind it, and is handed over once nothing older of its
//! records is left. An event without a record holds nothing and is not held: a platform event without a
//! key, an event of a whole entity, and everything where `ordering` is not `record`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use super::lanes::{Origin, RecordHash, Records};
use super::tracker::Seq;
use crate::event::{Commit, EventIdentity, ReplayId};
use crate::store::{LetterSummary, Placed};

mod again;
mod ahead;
mod draw;
#[cfg(test)]
mod model;
mod place;
mod reach;
#[cfg(test)]
mod tests;
mod to_come;

pub(super) use again::{Again, Moment};
use ahead::Ahead;
pub(super) use draw::{Drawing, Drawn};
pub(super) use place::Place;
pub(super) use reach::Reach;
use to_come::ToCome;
pub(super) use to_come::{Change, comes_again};

/// Why an event is parked that nobody has refused.
pub(super) const PARKED_BEHIND: &str = "parked_behind";

/// Names a letter in this process, from the moment that its parking is decided.
pub(super) type Ticket = u64;

/// Whose letter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    /// Nobody could decode it.
    Everyone,
    /// That of the handler with this index.
    Handler(usize),
}

/// Order among letters: those that are not written yet come last, as they were decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    place: i64,
    id: i64,
    ticket: Ticket,
}

/// Which events of the stream are younger than a letter, and so held by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// All that are still to be handed over.
    Always,
    /// Those after this one: older ones may still be on their way to a handler.
    After(Seq),
    /// None yet: the stream begins before its event, after a restart or a rewind, and brings what is older
    /// first.
    ToCome,
}

/// How far a letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Decided, and not written yet.
    New,
    /// At rest.
    Open,
    /// At rest, and to be behind others; that is not written yet.
    Moving,
    /// Drawn, and being loaded.
    Loading,
    /// In the lanes of its handler, or with it.
    Underway,
    /// Handled; that is not written yet.
    Handled,
    /// Refused once more; that is not written yet.
    Refused,
}

/// What is known of a letter.
#[derive(Debug)]
struct Letter {
    slot: Slot,
    identity: EventIdentity,
    records: Records,
    unit: Option<String>,
    bytes: usize,
    /// Nobody has refused it: it goes as soon as nothing older is in its way.
    behind: bool,
    /// A person asked for another attempt.
    asked: bool,
    since: Since,
    /// The store knows that the live stream brings its event.
    ahead: bool,
    /// Where the live stream has brought its event.
    came: Option<Seq>,
    /// Where the side replay under way has met its event.
    met: Option<Seq>,
    received_at: SystemTime,
    /// When its event was committed, where that is known.
    commit: Option<Commit>,
    /// At the latest its event lies there.
    until: Option<ReplayId>,
    phase: Phase,
    /// It is being written behind others.
    goes_behind: bool,
    rank: Rank,
}

/// A letter to be, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct NewLetter {
    pub(super) slot: Slot,
    pub(super) identity: EventIdentity,
    /// Records it concerns, as [`super::lanes::Holding::records`] gives them.
    pub(super) records: Records,
    pub(super) unit: Option<String>,
    pub(super) bytes: usize,
    /// Parked behind another one.
    pub(super) behind: bool,
    pub(super) since: Since,
    /// Parked off the live stream.
    pub(super) ahead: bool,
    /// Where the live stream has brought its event.
    pub(super) came: Option<Seq>,
    /// Where a side replay has brought its event.
    pub(super) met: Option<Seq>,
    pub(super) received_at: SystemTime,
    /// When its event was committed, where that is known.
    pub(super) commit: Option<Commit>,
    /// At the latest its event lies there.
    pub(super) until: Option<ReplayId>,
}

/// What people know a letter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// Its number.
    Id(i64),
    /// It has no number yet.
    Event(EventIdentity),
}

/// The open letters of a subscription.
#[derive(Debug)]
pub(super) struct Held {
    /// Names of the handlers, by index.
    handlers: Vec<String>,
    letters: HashMap<Ticket, Letter>,
    by_record: HashMap<(Slot, RecordHash), BTreeSet<Rank>>,
    by_identity: HashMap<(Slot, EventIdentity), Ticket>,
    by_id: HashMap<i64, Ticket>,
    by_unit: HashMap<(Slot, String), BTreeSet<Rank>>,
    /// Letters that hold only what comes after an event.
    after: BTreeMap<Seq, Vec<Ticket>>,
    to_come: ToCome,
    /// What the side replay under way has not met.
    unmet: ToCome,
    pub(super) ahead: Ahead,
    /// How far the live stream is.
    reach: Reach,
    /// Events that the stream has brought, and whose letters were settled before their turn, for these.
    settled: BTreeMap<Seq, Vec<Slot>>,
    /// Letters of handlers that are configured no more, with when their events were received: they count, and
    /// hold nothing.
    foreign: HashMap<i64, SystemTime>,
    /// Letters of everyone.
    undecoded: usize,
    drawing: Drawing,
    next_ticket: Ticket,
}

impl Held {
    /// No letters yet, of these handlers.
    pub(super) fn new(handlers: Vec<String>, drawing: Drawing) -> Self {
        Self {
            handlers,
            letters: HashMap::new(),
            by_record: HashMap::new(),
            by_identity: HashMap::new(),
            by_id: HashMap::new(),
            by_unit: HashMap::new(),
            after: BTreeMap::new(),
            to_come: ToCome::default(),
            unmet: ToCome::default(),
            ahead: Ahead::default(),
            reach: Reach::default(),
            settled: BTreeMap::new(),
            foreign: HashMap::new(),
            undecoded: 0,
            drawing,
            next_ticket: 0,
        }
    }

    /// Open letters that are in the store.
    pub(super) fn stored(&self) -> usize {
        self.by_id.len() + self.foreign.len()
    }

    /// When the oldest event was received whose letter is open and in the store.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let stored = self.letters.values();
        let stored = stored.filter(|letter| letter.phase != Phase::New);
        let ours = stored.map(|letter| letter.received_at).min();
        let foreign = self.foreign.values().min().copied();
        ours.into_iter().chain(foreign).min()
    }

    /// True where nothing is held and nothing is to be known again.
    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty() && self.settled.is_empty()
    }

    /// Takes in a letter of the store. `records` are those it holds; `to_come` says that the stream is
    /// still to bring its event once more.
    pub(super) fn load(
        &mut self,
        summary: LetterSummary,
        records: Records,
        to_come: bool,
    ) -> Option<Ticket> {
        let id = summary.placed.id;
        let Some(slot) = self.slot(summary.handler.as_deref()) else {
            self.foreign.insert(id, summary.received_at);
            return None;
        };
        if let Some(ticket) = self.by_id.get(&id) {
            return Some(*ticket);
        }
        let ticket = self.insert(NewLetter {
            slot,
            identity: summary.identity,
            records,
            unit: summary.unit,
            bytes: usize::try_from(summary.bytes).unwrap_or(usize::MAX),
            behind: summary.reason == PARKED_BEHIND,
            since: if to_come {
                Since::ToCome
            } else {
                Since::Always
            },
            ahead: to_come,
            came: None,
            met: None,
            received_at: summary.received_at,
            commit: summary.commit,
            until: summary.until,
        });
        if let Some(letter) = self.letters.get_mut(&ticket) {
            letter.asked = summary.asked;
        }
        self.written(ticket, summary.placed);
        Some(ticket)
    }

    fn slot(&self, handler: Option<&str>) -> Option<Slot> {
        let Some(name) = handler else {
            return Some(Slot::Everyone);
        };
        let index = self.handlers.iter().position(|other| other == name);
        index.map(Slot::Handler)
    }

    /// Takes in a letter whose parking is decided: from now on it holds its records.
    pub(super) fn insert(&mut self, new: NewLetter) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let rank = Rank {
            place: i64::MAX,
            id: i64::MAX,
            ticket,
        };
        let key = (new.slot, new.identity.clone());
        self.by_identity.insert(key, ticket);
        let letter = Letter {
            slot: new.slot,
            identity: new.identity,
            records: new.records,
            unit: new.unit,
            bytes: new.bytes,
            behind: new.behind,
            asked: false,
            since: new.since,
            ahead: new.ahead,
            came: new.came,
            met: new.met,
            received_at: new.received_at,
            commit: new.commit,
            until: new.until,
            phase: Phase::New,
            goes_behind: false,
            rank,
        };
        match letter.since {
            Since::Always => {}
            Since::After(seq) => self.after.entry(seq).or_default().push(ticket),
            Since::ToCome => self.to_come.insert(ticket, &letter),
        }
        self.undecoded += usize::from(letter.slot == Slot::Everyone);
        self.index(&letter);
        self.letters.insert(ticket, letter);
        ticket
    }

    /// It is in the store. Where it was there already, under another ticket, the two become one.
    pub(super) fn written(&mut self, ticket: Ticket, placed: Placed) {
        if let Some(twin) = self.by_id.get(&placed.id).copied()
            && twin != ticket
        {
            let known = self.letters.get(&ticket);
            let known = known.map(|new| (new.ahead, new.came, new.met));
            let (ahead, came, met) = known.unwrap_or_default();
            self.remove(ticket);
            if let Some(met) = met {
                self.met(twin, met);
            }
            if let Some(letter) = self.letters.get_mut(&twin) {
                letter.ahead |= ahead;
                letter.came = letter.came.or(came);
                let key = (letter.slot, letter.identity.clone());
                self.by_identity.insert(key, twin);
            }
            return;
        }
        let Some(mut letter) = self.letters.remove(&ticket) else {
            return;
        };
        self.unindex(&letter);
        letter.rank = Rank {
            place: placed.place,
            id: placed.id,
            ticket,
        };
        letter.phase = Phase::Open;
        self.index(&letter);
        self.letters.insert(ticket, letter);
        self.by_id.insert(placed.id, ticket);
        self.consider(ticket);
    }

    fn index(&mut self, letter: &Letter) {
        for record in &letter.records {
            let key = (letter.slot, *record);
            self.by_record.entry(key).or_default().insert(letter.rank);
        }
        if let Some(unit) = &letter.unit {
            let key = (letter.slot, unit.clone());
            self.by_unit.entry(key).or_default().insert(letter.rank);
        }
    }

    fn unindex(&mut self, letter: &Letter) {
        for record in &letter.records {
            remove_from(&mut self.by_record, &(letter.slot, *record), letter.rank);
        }
        if let Some(unit) = &letter.unit {
            remove_from(&mut self.by_unit, &(letter.slot, unit.clone()), letter.rank);
        }
    }

    /// It is no longer open: its records are free for what is next.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let Some(letter) = self.letters.remove(&ticket) else {
            return;
        };
        self.unindex(&letter);
        self.undecoded -= usize::from(letter.slot == Slot::Everyone);
        let key = (letter.slot, letter.identity.clone());
        if self.by_identity.get(&key) == Some(&ticket) {
            self.by_identity.remove(&key);
        }
        if self.by_id.get(&letter.rank.id) == Some(&ticket) {
            self.by_id.remove(&letter.rank.id);
        }
        self.to_come.remove(ticket, &letter);
        self.unmet.remove(ticket, &letter);
        let seq = match letter.since {
            Since::After(seq) => Some(seq),
            Since::Always | Since::ToCome => letter.came,
        };
        if let Some(seq) = seq
            && let Some(tickets) = self.after.get_mut(&seq)
        {
            tickets.retain(|other| *other != ticket);
        }
        self.let_go(&letter);
    }

    /// What people know it by.
    pub(super) fn known(&self, ticket: Ticket) -> Option<Known> {
        let letter = self.letters.get(&ticket)?;
        Some(match letter.phase {
            Phase::New => Known::Event(letter.identity.clone()),
            _ => Known::Id(letter.rank.id),
        })
    }

    /// Its place among the letters, once it is written.
    pub(super) fn place(&self, ticket: Ticket) -> Option<i64> {
        let letter = self.letters.get(&ticket)?;
        (letter.phase != Phase::New).then_some(letter.rank.place)
    }

    /// True where the stream is still to bring the event of a letter once more, or has brought what is behind
    /// it but not had its turn, or may bring one that could not be read.
    pub(super) fn awaits_some(&self) -> bool {
        !self.to_come.is_empty() || !self.after.is_empty() || self.undecoded > 0
    }

    /// Letters whose events the live stream is still to bring once more.
    pub(super) fn to_come_count(&self) -> usize {
        self.to_come.len()
    }

    /// True where there is an event that could not be decoded for anyone.
    pub(super) fn has_undecoded(&self) -> bool {
        self.undecoded > 0
    }

    /// The open letter of this event for a handler, or for all of them.
    pub(super) fn open(&self, slot: Slot, identity: &EventIdentity) -> Option<Ticket> {
        let of = |slot| self.by_identity.get(&(slot, identity.clone())).copied();
        of(slot).or_else(|| of(Slot::Everyone))
    }

    /// The oldest letter that an event has to park behind, for a handler.
    pub(super) fn holder(
        &self,
        slot: Slot,
        records: &[RecordHash],
        origin: Origin,
    ) -> Option<Ticket> {
        let holds = |rank: &&Rank| {
            let letter = self.letters.get(&rank.ticket);
            letter.is_some_and(|letter| letter.holds(origin))
        };
        let of_record = |record: &RecordHash| {
            let mine = self.by_record.get(&(slot, *record));
            let all = self.by_record.get(&(Slot::Everyone, *record));
            let oldest = |set: Option<&BTreeSet<Rank>>| set?.iter().find(holds).copied();
            oldest(mine).into_iter().chain(oldest(all)).min()
        };
        let oldest = records.iter().filter_map(of_record).min();
        oldest.map(|rank| rank.ticket)
    }

    /// Everything before this event of the stream is finished.
    pub(super) fn passed(&mut self, low_water: Seq) {
        while let Some(entry) = self.settled.first_entry()
            && *entry.key() < low_water
        {
            entry.remove();
        }
        while let Some(entry) = self.after.first_entry()
            && *entry.key() < low_water
        {
            let (seq, tickets) = entry.remove_entry();
            for ticket in tickets {
                self.no_longer_to_come(ticket, Since::Always, seq);
                if let Some(letter) = self.letters.get_mut(&ticket) {
                    letter.since = Since::Always;
                }
                self.consider(ticket);
            }
        }
    }

    /// Takes in what a person changed in the store; gives the letters that are no longer open, which then
    /// have to be removed. `records` gives what a letter holds; letters that the store has and this does
    /// not are taken in, too.
    pub(super) fn sync(
        &mut self,
        open: Vec<LetterSummary>,
        records: impl Fn(&LetterSummary) -> Records,
    ) -> Vec<Ticket> {
        let ids: HashSet<i64> = open.iter().map(|summary| summary.placed.id).collect();
        self.foreign.retain(|id, _| ids.contains(id));
        let gone = self.by_id.iter().filter(|(id, _)| !ids.contains(id));
        let mut gone: Vec<Ticket> = gone.map(|(_, ticket)| *ticket).collect();
        gone.sort_unstable();
        for summary in open {
            let asked = summary.asked;
            let Some(ticket) = self.by_id.get(&summary.placed.id).copied() else {
                let records = records(&summary);
                self.load(summary, records, false);
                continue;
            };
            let Some(letter) = self.letters.get_mut(&ticket) else {
                continue;
            };
            // Where an answer waits to be written, that is newer than what was read.
            if !matches!(letter.phase, Phase::Handled | Phase::Refused) {
                letter.asked = asked;
                self.consider(ticket);
            }
        }
        gone
    }
}

fn remove_from<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<Rank>>, key: &K, rank: Rank) {
    if let Some(set) = map.get_mut(key) {
        set.remove(&rank);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
