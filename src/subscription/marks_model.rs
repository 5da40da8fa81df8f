//! A model of how marks that handlers make in their own transactions meet position writes that are made up
//! earlier and land later (design 3.1, rule 3): whatever the interleaving, a finished event is never without
//! a mark while the stored position is before it.

use std::collections::{BTreeSet, VecDeque};
use std::time::SystemTime;

use proptest::prelude::*;

use super::tracker::{Seq, Tracked, Tracker};
use crate::event::{EventIdentity, ReplayId};

/// What may happen next. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    /// The stream brings an event.
    Arrive,
    /// A handler's transaction commits, rows and mark; nobody has heard of it yet.
    Commit(usize),
    /// The delivery hears of it.
    Answer(usize),
    /// A position write is made up.
    Begin,
    /// It lands, and the delivery hears of it.
    Land,
    /// The delivery gives it up; it may land yet.
    GiveUp,
    /// One that was given up lands.
    LandLate(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Arrive),
        3 => any::<usize>().prop_map(Step::Commit),
        3 => any::<usize>().prop_map(Step::Answer),
        2 => Just(Step::Begin),
        2 => Just(Step::Land),
        1 => Just(Step::GiveUp),
        1 => any::<usize>().prop_map(Step::LandLate),
    ];
    prop::collection::vec(step, 1..200)
}

/// A position write on its way.
#[derive(Debug, Clone)]
struct Write {
    number: u64,
    position: Option<u64>,
    ahead: Vec<String>,
    passed: Vec<EventIdentity>,
}

/// What is stored.
#[derive(Debug, Default)]
struct Stored {
    last_write: u64,
    /// Up to and with the event of this number.
    position: Option<u64>,
    marks: BTreeSet<String>,
}

impl Stored {
    fn take(&mut self, write: &Write) {
        if write.number <= self.last_write {
            return;
        }
        self.last_write = write.number;
        self.position = write.position.or(self.position);
        for event in &write.passed {
            self.marks.remove(event.as_str());
        }
        self.marks.extend(write.ahead.iter().cloned());
    }
}

struct Model {
    tracker: Tracker,
    with_handler: Vec<Seq>,
    committed: Vec<Seq>,
    ever_committed: Vec<Seq>,
    forget: Vec<EventIdentity>,
    under_way: Option<Write>,
    given_up: VecDeque<Write>,
    writes: u64,
    stored: Stored,
}

impl Model {
    fn new(channel: bool) -> Self {
        let mut tracker = Tracker::new(channel, 1);
        tracker.tell_passed();
        Self {
            tracker,
            with_handler: Vec::new(),
            committed: Vec::new(),
            ever_committed: Vec::new(),
            forget: Vec::new(),
            under_way: None,
            given_up: VecDeque::new(),
            writes: 0,
            stored: Stored::default(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Arrive => self.arrive(),
            Step::Commit(n) if !self.with_handler.is_empty() => {
                let seq = self.with_handler.remove(n % self.with_handler.len());
                self.stored.marks.insert(name(seq));
                self.committed.push(seq);
                self.ever_committed.push(seq);
            }
            Step::Answer(n) if !self.committed.is_empty() => {
                let seq = self.committed.remove(n % self.committed.len());
                self.tracker.finish(seq, 1);
            }
            Step::Begin if self.under_way.is_none() => self.begin(),
            Step::Land => {
                if let Some(write) = self.under_way.take() {
                    self.stored.take(&write);
                }
            }
            Step::GiveUp => {
                if let Some(write) = self.under_way.take() {
                    self.forget.extend(write.passed.clone());
                    self.given_up.push_back(write);
                }
            }
            Step::LandLate(n) if !self.given_up.is_empty() => {
                let at = n % self.given_up.len();
                let write = self.given_up.remove(at);
                write.iter().for_each(|write| self.stored.take(write));
            }
            Step::Commit(_) | Step::Answer(_) | Step::Begin | Step::LandLate(_) => {}
        }
    }

    fn arrive(&mut self) {
        let seq = self.arrived();
        let event = Tracked {
            identity: super::tracker::Identity::Is(EventIdentity::from_stored(&name(seq))),
            occurred_at: SystemTime::UNIX_EPOCH,
            size: 1,
            transaction: None,
        };
        let pushed = self.tracker.push_event(event, Some(place(seq)), 0);
        assert_eq!(pushed, seq);
        self.with_handler.push(seq);
    }

    /// How many events came so far.
    fn arrived(&self) -> Seq {
        (self.with_handler.len() + self.ever_committed.len()) as Seq
    }

    fn begin(&mut self) {
        self.forget.extend(self.tracker.advance().identities);
        self.writes += 1;
        self.under_way = Some(Write {
            number: self.writes,
            position: self.tracker.position().map(number),
            ahead: self
                .tracker
                .finished_ahead()
                .map(|(identity, _)| identity.to_string())
                .collect(),
            passed: std::mem::take(&mut self.forget),
        });
    }

    /// Whoever took over now would hand no event over again whose rows are there.
    fn check(&self) {
        for seq in &self.ever_committed {
            let passed = self.stored.position.is_some_and(|at| *seq <= at);
            assert!(
                passed || self.stored.marks.contains(&name(*seq)),
                "event {seq} would be done again: {:?}",
                self.stored
            );
        }
    }

    /// Everything is finished and written.
    fn settle(&mut self) {
        while !self.with_handler.is_empty() {
            self.step(&Step::Commit(0));
        }
        while !self.committed.is_empty() {
            self.step(&Step::Answer(0));
        }
        self.step(&Step::Land);
        self.tracker
            .push_keepalive(place(self.arrived()), SystemTime::UNIX_EPOCH);
        self.step(&Step::Begin);
        self.step(&Step::Land);
    }
}

fn name(seq: Seq) -> String {
    format!("event-{seq}")
}

fn place(seq: Seq) -> ReplayId {
    format!("{seq:016x}").parse().unwrap()
}

fn number(place: &ReplayId) -> u64 {
    u64::from_str_radix(&place.to_string(), 16).unwrap()
}

proptest! {
    #[test]
    fn no_interleaving_of_commits_and_position_writes_loses_a_mark_or_leaves_one(
        channel in any::<bool>(),
        steps in steps(),
    ) {
        let mut model = Model::new(channel);
        for step in &steps {
            model.step(step);
            model.check();
        }
        model.settle();
        model.check();
        prop_assert!(model.stored.marks.is_empty(), "{:?}", model.stored);
    }
}
