//! A small model of a subscription around [`Held`]: a bus, a store, a handler, people; with crashes, writes that reach the
//! store late, rewinds, letters that are passed on and opened again, and transactions that are handed over, parked and
//! tried again as one. Whatever happens, an event is handed over for the first time only after all that is older and
//! shares a record with it is handled or discarded, the events of a transaction are in their order, nothing parks behind
//! what is younger, and nothing is forgotten.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::store::{DeadLetter, PART, SettledAhead};
use crate::subscription::parking::{Named, Parked, name_part, next_batch};

mod forgotten;
mod lanes;
mod letters;
mod rest;
mod store;
mod stream;

use forgotten::far;
use lanes::Waiting;
use store::{Change as Written, Row};

const MINE: Slot = Slot::Handler(0);

#[derive(Debug, Clone)]
struct Published {
    /// The events of a transaction follow each other.
    transaction: usize,
    records: Records,
    undecodable: bool,
    /// Handled or discarded at least once, or forgotten by the bus before it was kept anywhere.
    settled: bool,
    /// Its letter was discarded, and the process knows. Nobody may be handed it, unless a rewind brings it once more.
    given_up: bool,
    commit: Option<Commit>,
    forgotten: bool,
}

/// What is known of an event off the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    /// For its transaction to be whole, or in the lanes, or with the handler.
    Waits,
    /// Left the lanes, and is to be parked.
    Parks,
    Finished,
}

/// What comes in transactions, and what happens to them.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// They are handed over as one.
    groups: bool,
    /// The stream may break within one, or it grows too large.
    parts: bool,
}

struct Model {
    kind: Kind,
    bus: Vec<Published>,
    rows: Vec<Row>,
    next: i64,
    /// So many events of the bus are at or below the stored position.
    position: usize,
    /// Stored as finished above it.
    marks: HashSet<usize>,
    /// The position is lost: whoever begins does so at the earliest event.
    lost: bool,
    // A process.
    held: Held,
    begins: usize,
    live: Vec<Live>,
    /// The events of those places; keepalives have none.
    events: Vec<Option<usize>>,
    /// Places after which the position does not rest.
    joined: HashSet<Seq>,
    /// The places of the transaction that is collected.
    open: Vec<Seq>,
    lanes: BTreeMap<Origin, Waiting>,
    with_handler: Vec<Waiting>,
    in_lanes: HashMap<Origin, Vec<Ticket>>,
    /// To be parked.
    parks: VecDeque<Parked>,
    /// What becomes of letters, to be written before that.
    changes: VecDeque<Written>,
    /// A write that is under way.
    writing: Option<Written>,
    /// A write of the position that is under way.
    saving: Option<store::Position>,
    loading: Vec<Drawn>,
    put_off: Vec<Ticket>,
    /// Discarded or settled before a restart, and not to be handed over when it comes again.
    finished: HashSet<usize>,
}

impl Model {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            bus: vec![],
            rows: vec![],
            next: 0,
            position: 0,
            marks: HashSet::new(),
            lost: false,
            held: Held::new(vec!["h0".to_owned()], Drawing::default()),
            begins: 0,
            live: vec![],
            events: vec![],
            joined: HashSet::new(),
            open: vec![],
            lanes: BTreeMap::new(),
            with_handler: vec![],
            in_lanes: HashMap::new(),
            parks: VecDeque::new(),
            changes: VecDeque::new(),
            writing: None,
            saving: None,
            loading: vec![],
            put_off: vec![],
            finished: HashSet::new(),
        }
    }

    fn identity(event: usize) -> EventIdentity {
        EventIdentity::from_stored(&event.to_string())
    }

    fn place_on_bus(event: usize) -> ReplayId {
        format!("{event:08x}").parse().unwrap()
    }

    fn event_of(&self, seq: Seq) -> usize {
        self.events[usize::try_from(seq).unwrap()].unwrap()
    }

    fn event_of_ticket(&self, ticket: Ticket) -> usize {
        self.held.letters[&ticket].event()
    }

    fn share(&self, one: usize, other: usize) -> bool {
        let records = &self.bus[other].records;
        self.bus[one].records.iter().any(|r| records.contains(r))
    }

    /// The process is gone; what was on its way to the store may have come there. A new one begins at the stored position.
    fn crash(&mut self, which: usize) {
        if let Some(written) = self.writing.take()
            && which.is_multiple_of(2)
        {
            self.store(&written);
        }
        if let Some(position) = self.saving.take()
            && which.is_multiple_of(3)
        {
            self.store_position(&position);
        }
        self.start();
    }

    fn start(&mut self) {
        let own = Self::new(self.kind);
        let old = std::mem::replace(self, own);
        *self = Self {
            bus: old.bus,
            rows: old.rows,
            next: old.next,
            position: old.position,
            begins: old.position,
            finished: old.marks.clone(),
            marks: old.marks,
            lost: old.lost,
            ..Self::new(self.kind)
        };
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| (row.place, row.id));
        for row in rows {
            let summary = self.summary(&row);
            if row.open {
                let resume_after = (!self.lost).then(|| Self::place_on_bus(self.position));
                let to_come = comes_again(&summary, resume_after.as_ref());
                if summary.to_come && !to_come {
                    self.held.ahead.never(row.id);
                }
                let records = self.bus[row.event].records.clone();
                self.held.load(summary, records, to_come);
            } else if row.ahead {
                let settled = SettledAhead {
                    id: row.id,
                    handler: None,
                    identity: summary.identity,
                };
                self.held.ahead.settled(settled.identity, settled.id);
                self.finished.insert(row.event);
                self.bus[row.event].given_up |= row.discarded;
            }
        }
    }

    /// One move of the game.
    fn step(&mut self, what: u8, which: usize, records: &[BTreeSet<RecordHash>]) {
        match what {
            0..4 => self.publish(which, records),
            4..10 => self.bring(),
            10..14 => self.hand_over(which),
            14..17 => self.answer(which, true),
            17..20 => self.answer(which, false),
            20..26 => self.write(which),
            26 | 27 => self.save(which),
            28 => self.crash(which),
            29 if which.is_multiple_of(3) => self.rewind(which / 3),
            29 => self.keepalive(),
            30 | 31 => self.person(which, false),
            32 => self.person(which, true),
            33 => self.draw(),
            34 | 35 => self.load(which),
            36 if which.is_multiple_of(8) => self.forget(which / 8),
            36 => self.break_off(which),
            _ => self.decodes(which),
        }
    }
}

impl Letter {
    fn event(&self) -> usize {
        self.identity.as_str().parse().unwrap()
    }
}

/// Moves of the game: which, a number that chooses, and the records of events.
type Script = Vec<(u8, usize, Vec<BTreeSet<RecordHash>>)>;

fn script(sizes: RangeInclusive<usize>) -> impl Strategy<Value = Script> {
    let records = proptest::collection::btree_set(0u64..4, 1..3);
    let records = proptest::collection::vec(records, sizes);
    proptest::collection::vec((0u8..38, 0usize..64, records), 1..220)
}

fn play(kind: Kind, script: &Script) {
    let mut model = Model::new(kind);
    for (what, which, records) in script {
        model.step(*what, *which, records);
    }
    model.come_to_rest();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn through_crashes_and_rewinds_every_letter_holds_what_is_younger_and_nothing_older(
        script in script(1..=1),
    ) {
        play(Kind { groups: false, parts: false }, &script);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn through_crashes_and_rewinds_transactions_are_handed_over_in_order_and_in_theirs(
        script in script(1..=4),
    ) {
        play(Kind { groups: true, parts: false }, &script);
    }

    #[test]
    fn through_crashes_and_rewinds_parts_of_transactions_are_handed_over_in_order_and_in_theirs(
        script in script(1..=4),
    ) {
        play(Kind { groups: true, parts: true }, &script);
    }
}
