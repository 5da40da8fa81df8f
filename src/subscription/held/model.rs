//! A small model of a subscription around [`Held`]: a bus, a store, a handler, people; with crashes, positions
//! that are written late, rewinds, letters that are passed on and opened again. Whatever happens, an event is
//! handled for the first time only after all that is older and shares a record with it is handled or discarded,
//! it parks only behind what is older, and nothing is forgotten.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::store::SettledAhead;
use crate::subscription::lanes::Origin;

mod forgotten;
mod letters;

use forgotten::far;

const MINE: Slot = Slot::Handler(0);

#[derive(Debug, Clone)]
struct Published {
    records: Records,
    undecodable: bool,
    /// Handled or discarded at least once, or forgotten by the bus before it was kept anywhere.
    settled: bool,
    /// A person discarded its letter. Nobody may be handed it, unless a rewind brings it once more.
    given_up: bool,
    commit: Option<Commit>,
    forgotten: bool,
}

/// A row of `dead_letter`.
#[derive(Debug, Clone)]
struct Row {
    event: usize,
    everyone: bool,
    place: i64,
    id: i64,
    open: bool,
    behind: bool,
    asked: bool,
    ahead: bool,
    until: Option<usize>,
}

/// Something to be written.
struct Write {
    seq: Seq,
    tickets: Vec<Ticket>,
    moves: Option<i64>,
}

/// What is known of an event off the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    Waits,
    /// Left the lanes, and is to be parked.
    Parks,
    Finished,
}

struct Model {
    bus: Vec<Published>,
    rows: Vec<Row>,
    next: i64,
    /// So many events of the bus are at or below the stored position.
    position: usize,
    /// The position is lost: whoever begins does so at the earliest event.
    lost: bool,
    // A process.
    held: Held,
    begins: usize,
    live: Vec<Live>,
    /// The events of those places; keepalives have none.
    events: Vec<Option<usize>>,
    writes: VecDeque<Write>,
    /// A write of the position that is under way.
    saving: Option<(usize, Vec<i64>)>,
    letters: Vec<Ticket>,
    /// Discarded or settled before a restart, and not to be handed over when it comes again.
    finished: HashSet<usize>,
}

impl Model {
    fn new() -> Self {
        Self {
            bus: vec![],
            rows: vec![],
            next: 0,
            position: 0,
            lost: false,
            held: Held::new(vec!["h0".to_owned()], Drawing::default()),
            begins: 0,
            live: vec![],
            events: vec![],
            writes: VecDeque::new(),
            saving: None,
            letters: vec![],
            finished: HashSet::new(),
        }
    }

    fn number(&mut self) -> i64 {
        self.next += 1;
        self.next
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
        self.held.letters[&ticket]
            .identity
            .as_str()
            .parse()
            .unwrap()
    }

    fn share(&self, one: usize, other: usize) -> bool {
        let records = &self.bus[other].records;
        self.bus[one].records.iter().any(|r| records.contains(r))
    }

    /// A new process begins at the stored position.
    fn start(&mut self) {
        self.held = Held::new(vec!["h0".to_owned()], Drawing::default());
        self.begins = self.position;
        self.live.clear();
        self.events.clear();
        self.writes.clear();
        self.saving = None;
        self.letters.clear();
        self.finished.clear();
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
            }
        }
    }

    fn summary(&self, row: &Row) -> LetterSummary {
        LetterSummary {
            placed: Placed {
                place: row.place,
                id: row.id,
            },
            subscription: "s".to_owned(),
            topic: "/data/AccountChangeEvent".to_owned(),
            handler: (!row.everyone).then(|| "h0".to_owned()),
            identity: Self::identity(row.event),
            state: "open".to_owned(),
            reason: if row.behind {
                PARKED_BEHIND
            } else {
                "rejected"
            }
            .to_owned(),
            error: String::new(),
            record_ids: vec![],
            unit: None,
            asked: row.asked,
            replay_id: None,
            bytes: 1,
            // As late as can be: what was received tells nothing.
            received_at: far(),
            commit: self.bus[row.event].commit,
            to_come: row.ahead,
            until: row.until.map(Self::place_on_bus),
        }
    }

    fn bring(&mut self) {
        let seq = self.live.len() as Seq;
        let event = self.begins + self.events.iter().flatten().count();
        if event >= self.bus.len() {
            return;
        }
        self.events.push(Some(event));
        self.held.brought(seq, &Self::identity(event));
        let at = Self::place_on_bus(event + 1);
        let change = self.change(event);
        self.held.live_at(seq, Some(&at), change.as_ref());
        let awaited = !self.held.awaited(&Self::identity(event)).is_empty();
        let finished = self.finished.remove(&event) && !awaited;
        self.live.push(if finished {
            Live::Finished
        } else {
            Live::Waits
        });
        if !finished && self.bus[event].undecodable {
            self.park(seq, Slot::Everyone, false);
        }
    }

    /// The stream has caught up.
    fn keepalive(&mut self) {
        let seq = self.live.len() as Seq;
        let brought = self.events.iter().flatten().count();
        if self.begins + brought == self.bus.len() {
            self.finished.clear();
            self.held.all_came_by(seq);
            self.events.push(None);
            self.live.push(Live::Finished);
        }
    }

    fn park(&mut self, seq: Seq, slot: Slot, behind: bool) {
        let event = self.event_of(seq);
        let identity = Self::identity(event);
        let origin = Origin::Live(seq);
        self.live[seq as usize] = Live::Parks;
        let since = match slot {
            Slot::Everyone => Since::After(seq),
            Slot::Handler(_) => Since::Always,
        };
        if let Some(ticket) = self.held.open(slot, &identity) {
            assert!(
                self.held.is_known_ahead(ticket, slot),
                "the store knows: {event}"
            );
            self.held.came_by(ticket, since, seq);
            let moves = self.held.is_misplaced(ticket, origin);
            match moves.then(|| self.held.moves(ticket)) {
                Some(moves) => self.writes.push_back(Write {
                    seq,
                    tickets: vec![ticket],
                    moves,
                }),
                None => self.live[seq as usize] = Live::Finished,
            }
            return;
        }
        let ticket = self.held.insert(NewLetter {
            slot,
            identity,
            records: self.bus[event].records.clone(),
            unit: None,
            bytes: 1,
            behind,
            since,
            ahead: true,
            came: Some(seq),
            met: None,
            received_at: far(),
            commit: self.bus[event].commit,
            until: None,
        });
        self.writes.push_back(Write {
            seq,
            tickets: vec![ticket],
            moves: None,
        });
    }

    /// An event whose turn it is goes to the handler, or aside.
    fn hand_over(&mut self, which: usize, accept: bool) {
        let waits = |seq: &usize| self.live[*seq] == Live::Waits;
        let waiting: Vec<usize> = (0..self.live.len()).filter(waits).collect();
        let turn: Vec<usize> = waiting
            .iter()
            .copied()
            .filter(|seq| {
                let of = |seq: usize| self.event_of(seq as Seq);
                let older = waiting.iter().take_while(|other| *other < seq);
                !older
                    .into_iter()
                    .any(|other| self.share(of(*other), of(*seq)))
            })
            .collect();
        let Some(seq) = (!turn.is_empty()).then(|| turn[which % turn.len()] as Seq) else {
            return;
        };
        let event = self.event_of(seq);
        let holder = self
            .held
            .holder(MINE, &self.bus[event].records, Origin::Live(seq));
        if let Some(holder) = holder {
            let before = self.event_of_ticket(holder);
            assert!(
                before <= event,
                "{event} parks behind {before}, which is younger"
            );
        }
        let own = self.held.awaits_some() && self.held.open(MINE, &Self::identity(event)).is_some();
        if self.held.is_settled(0, seq) {
            self.live[seq as usize] = Live::Finished;
        } else if holder.is_some() || own {
            self.park(seq, MINE, true);
        } else if self.bus[event].given_up {
            panic!("{event} was given up, and is handed over");
        } else if accept {
            self.settle(event, true);
            self.live[seq as usize] = Live::Finished;
        } else {
            self.park(seq, MINE, false);
        }
    }

    fn settle(&mut self, event: usize, in_order: bool) {
        if in_order && !self.bus[event].settled {
            for older in 0..event {
                let before = !self.share(older, event) || self.bus[older].settled;
                assert!(
                    before || self.nobody_knows(older, event),
                    "{event} is handled before {older}"
                );
            }
        }
        self.bus[event].settled = true;
    }

    fn write(&mut self) {
        let Some(write) = self.writes.pop_front() else {
            return;
        };
        let mut moved: Vec<i64> = write.moves.into_iter().collect();
        let place = self
            .held
            .place_of(&write.tickets, Origin::Live(write.seq), true);
        if let (Some(_), Place::Before(others)) = (write.moves, &place) {
            moved.extend(others);
        }
        for ticket in write.tickets.iter().filter(|_| write.moves.is_none()) {
            let letter = &self.held.letters[ticket];
            let (everyone, behind) = (letter.slot == Slot::Everyone, letter.behind);
            let event = self.event_of_ticket(*ticket);
            let number = self.number();
            let to = match &place {
                Place::At(place) => *place,
                Place::Before(others) => {
                    moved.extend(others);
                    number
                }
                Place::Last | Place::Unknown => number,
            };
            let same = |row: &&mut Row| row.event == event && row.everyone == everyone;
            let id = match self.rows.iter_mut().find(same) {
                Some(row) => {
                    assert!(!row.open);
                    *row = Row {
                        place: to,
                        open: true,
                        behind,
                        asked: false,
                        ahead: true,
                        until: None,
                        ..*row
                    };
                    row.id
                }
                None => {
                    let row = Row {
                        event,
                        everyone,
                        place: to,
                        id: number,
                        open: true,
                        behind,
                        asked: false,
                        ahead: true,
                        until: None,
                    };
                    self.rows.push(row);
                    number
                }
            };
            self.held.written(*ticket, Placed { place: to, id });
            self.held.ahead.at(write.seq, id);
        }
        for id in moved {
            let place = self.number();
            if let Some(row) = self.rows.iter_mut().find(|row| row.id == id && row.open) {
                row.place = place;
                self.held.moved(Placed { place, id });
            }
        }
        for ticket in write.tickets.iter().filter(|_| write.moves.is_some()) {
            self.held.has_moved(*ticket);
        }
        self.live[write.seq as usize] = Live::Finished;
        self.in_order();
    }

    /// Letters that are written, and whose events have come and had their turn, are in bus order.
    fn in_order(&self) {
        let has_turn = |seq: Seq| self.live[usize::try_from(seq).unwrap()] == Live::Waits;
        let rests = |letter: &&Letter| {
            let rests = !matches!(letter.phase, Phase::New | Phase::Moving);
            rests && letter.since != Since::ToCome && !letter.came.is_some_and(has_turn)
        };
        let mut letters: Vec<&Letter> = self.held.letters.values().filter(rests).collect();
        letters.sort_by_key(|letter| letter.rank);
        let event = |letter: &Letter| letter.identity.as_str().parse::<usize>().unwrap();
        for (number, one) in letters.iter().enumerate() {
            for other in &letters[number..] {
                let (one, other) = (event(one), event(other));
                assert!(
                    one <= other || !self.share(one, other) || self.nobody_knew(other, one),
                    "{one} before {other}"
                );
            }
        }
    }

    /// A write of the position begins, or the one under way reaches the store.
    fn save(&mut self) {
        match self.saving.take() {
            Some((position, letters)) => {
                (self.position, self.lost) = (position, false);
                let passed = self.rows.iter().filter(|row| letters.contains(&row.id));
                let passed: HashSet<usize> = passed.map(|row| row.event).collect();
                for row in self
                    .rows
                    .iter_mut()
                    .filter(|row| passed.contains(&row.event))
                {
                    (row.ahead, row.until) = (false, None);
                }
            }
            None => {
                let unfinished = self.live.iter().position(|live| *live != Live::Finished);
                let passed = unfinished.unwrap_or(self.live.len());
                self.held.passed(passed as Seq);
                let letters = self.held.ahead.pass(passed as Seq);
                let events = self.events[..passed].iter().flatten().count();
                self.saving = Some((self.begins + events, letters));
            }
        }
    }

    /// One move of the game.
    fn step(&mut self, what: u8, which: usize, records: BTreeSet<RecordHash>) {
        match what {
            0..4 => self.bus.push(Published {
                records: records.into_iter().collect(),
                undecodable: which.is_multiple_of(5),
                settled: false,
                given_up: false,
                commit: self.next_commit(which),
                forgotten: false,
            }),
            4..9 => self.bring(),
            9..11 => self.hand_over(which, true),
            11..13 => self.hand_over(which, false),
            13..16 => self.write(),
            16 | 17 => self.save(),
            18 => self.start(),
            19 if which.is_multiple_of(3) => self.rewind(which / 3),
            19 => self.keepalive(),
            20 => self.person(which, false),
            21 => self.person(which, true),
            22 => self.draw(),
            23 if which.is_multiple_of(8) => self.forget(which / 8),
            _ => self.answer(which / 2, which.is_multiple_of(2)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn through_crashes_and_rewinds_every_letter_holds_what_is_younger_and_nothing_older(
        script in proptest::collection::vec(
            (0u8..26, 0usize..64, proptest::collection::btree_set(0u64..4, 1..3)), 1..160),
    ) {
        let mut model = Model::new();
        for (what, which, records) in script {
            model.step(what, which, records);
        }
        model.come_to_rest();
    }
}
