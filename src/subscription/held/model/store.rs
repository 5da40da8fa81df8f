//! The store of the model, and what the process does with it: one write of letters at a time, and the position.

use super::*;

/// A row of `dead_letter`.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) event: usize,
    pub(super) everyone: bool,
    pub(super) unit: Option<String>,
    pub(super) place: i64,
    pub(super) id: i64,
    pub(super) open: bool,
    pub(super) discarded: bool,
    pub(super) behind: bool,
    pub(super) asked: bool,
    pub(super) ahead: bool,
    pub(super) until: Option<usize>,
}

/// A write of letters.
#[derive(Debug)]
pub(super) enum Change {
    Park(Vec<Parked>),
    Resolve(Vec<Named>),
    /// With whether they only wait behind others.
    ParkAgain(Vec<Named>, bool),
    PassOn(Vec<(Named, DeadLetter)>),
    Look,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Done {
    placed: Vec<Placed>,
    moved: Vec<Placed>,
    /// Not all were open any more.
    gone: bool,
}

/// A position to be stored.
#[derive(Debug)]
pub(super) struct Position {
    after: usize,
    letters: Vec<i64>,
    marks: HashSet<usize>,
}

impl Model {
    fn number(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn row(&mut self, id: i64) -> &mut Row {
        self.rows.iter_mut().find(|row| row.id == id).unwrap()
    }

    pub(super) fn is_open(&self, id: i64) -> bool {
        self.rows.iter().any(|row| row.id == id && row.open)
    }

    pub(super) fn summary(&self, row: &Row) -> LetterSummary {
        let reason = if row.behind {
            PARKED_BEHIND
        } else {
            "rejected"
        };
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
            reason: reason.to_owned(),
            error: String::new(),
            record_ids: vec![],
            unit: row.unit.clone(),
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

    pub(super) fn dead_letter(
        &self,
        event: usize,
        slot: Slot,
        behind: bool,
        unit: Option<String>,
    ) -> DeadLetter {
        let reason = if behind { PARKED_BEHIND } else { "rejected" };
        DeadLetter {
            identity: Self::identity(event),
            handler: (slot != Slot::Everyone).then(|| "h0".to_owned()),
            reason: reason.to_owned(),
            error: String::new(),
            attempts: 0,
            event_uuid: String::new(),
            replay_id: None,
            schema_id: crate::event::SchemaId::new(""),
            payload: bytes::Bytes::new(),
            record_ids: vec![],
            record_name: None,
            unit,
            place: None,
            received_at: far(),
            commit: self.bus[event].commit,
            ahead: true,
            replayed: false,
            sealed: false,
        }
    }

    /// The next write begins, or the one under way is done.
    pub(super) fn write(&mut self, which: usize) {
        self.follow();
        if let Some(change) = self.writing.take() {
            let done = self.store(&change);
            self.written(change, done);
            self.in_order();
            return;
        }
        self.writing = self.changes.pop_front().or_else(|| {
            // There is little room at times.
            let room = [1, 2, 4, usize::MAX][which % 4];
            let held = &self.held;
            let place = |tickets: &[Ticket], origin, first| held.place_of(tickets, origin, first);
            let batch = next_batch(&mut self.parks, room, place);
            let behind = batch.iter().flat_map(|parked| &parked.behind);
            behind.for_each(|id| self.held.goes_behind(*id));
            (!batch.is_empty()).then_some(Change::Park(batch))
        });
    }

    /// What the store does.
    pub(super) fn store(&mut self, change: &Change) -> Done {
        let mut done = Done::default();
        match change {
            Change::Park(batch) => {
                for letter in batch.iter().flat_map(|parked| &parked.letters) {
                    done.placed.push(self.park_row(letter, false));
                }
                for id in batch.iter().flat_map(|parked| &parked.behind).copied() {
                    let place = self.number();
                    if self.is_open(id) {
                        self.row(id).place = place;
                        done.moved.push(Placed { place, id });
                    }
                }
            }
            Change::Resolve(named) => {
                for (_, id) in named
                    .iter()
                    .filter(|(_, id)| self.is_open(*id))
                    .copied()
                    .collect::<Vec<_>>()
                {
                    self.row(id).open = false;
                }
            }
            Change::ParkAgain(named, behind) => {
                for (_, id) in named {
                    if self.is_open(*id) {
                        let row = self.row(*id);
                        (row.asked, row.behind) = (false, *behind);
                    }
                }
            }
            Change::PassOn(all) => {
                done.gone = !all.iter().all(|((_, id), _)| self.is_open(*id));
                if done.gone {
                    return done;
                }
                let of = |row: &&Row| all.iter().any(|((_, id), _)| *id == row.id);
                let first = self.rows.iter().filter(of);
                // As the store orders them.
                let first = first.min_by_key(|row| (!row.ahead, row.until.is_none(), row.until));
                let (ahead, until) = first.map(|row| (row.ahead, row.until)).unwrap();
                for ((_, id), _) in all {
                    self.row(*id).open = false;
                }
                for (_, letter) in all {
                    let placed = self.park_row(letter, true);
                    let row = self.row(placed.id);
                    (row.ahead, row.until) = (ahead, until);
                    done.placed.push(placed);
                }
                for ((_, id), _) in all {
                    let row = self.row(*id);
                    (row.ahead, row.until) = (false, None);
                }
            }
            Change::Look => {}
        }
        done
    }

    fn park_row(&mut self, letter: &DeadLetter, asked: bool) -> Placed {
        let number = self.number();
        let place = letter.place.unwrap_or(number);
        let event = letter.identity.as_str().parse().unwrap();
        let everyone = letter.handler.is_none();
        let row = Row {
            event,
            everyone,
            unit: letter.unit.clone(),
            place,
            id: number,
            open: true,
            discarded: false,
            behind: letter.reason == PARKED_BEHIND,
            asked,
            ahead: letter.ahead,
            until: None,
        };
        let same = |row: &&mut Row| row.event == event && row.everyone == everyone;
        match self.rows.iter_mut().find(same) {
            Some(old) if old.open => {
                assert!(!letter.ahead, "{event} is parked twice");
                Placed {
                    place: old.place,
                    id: old.id,
                }
            }
            Some(old) => {
                *old = Row { id: old.id, ..row };
                Placed { place, id: old.id }
            }
            None => {
                self.rows.push(row);
                Placed { place, id: number }
            }
        }
    }

    /// What the process makes of it.
    fn written(&mut self, change: Change, done: Done) {
        match change {
            Change::Park(batch) => {
                done.moved
                    .into_iter()
                    .for_each(|placed| self.held.moved(placed));
                let mut placed = done.placed.into_iter();
                for parked in batch {
                    for (ticket, origin) in parked.tickets.iter().zip(&parked.places) {
                        let Origin::Live(seq) = *origin else {
                            unreachable!("nothing else parks")
                        };
                        if parked.moves() {
                            self.held.has_moved(*ticket);
                        } else {
                            let placed = placed.next().unwrap();
                            self.held.written(*ticket, placed);
                            self.held.ahead.at(seq, placed.id);
                        }
                        self.live[seq as usize] = Live::Finished;
                    }
                }
            }
            Change::Resolve(named) => {
                named
                    .iter()
                    .for_each(|(ticket, _)| self.held.remove(*ticket));
            }
            Change::ParkAgain(named, _) => {
                for (ticket, id) in named {
                    match self.is_open(id) {
                        true => self.held.rests(ticket),
                        false => self.held.remove(ticket),
                    }
                }
            }
            Change::PassOn(all) if done.gone => {
                let tickets = all.into_iter().map(|((ticket, _), _)| ticket);
                self.look_again(&tickets.collect::<Vec<_>>());
            }
            Change::PassOn(all) => {
                for (((_, id), _), own) in all.iter().zip(&done.placed) {
                    self.held.ahead.follow(*id, [own.id].into_iter());
                }
                for own in &done.placed {
                    let row = self.row(own.id).clone();
                    let summary = LetterSummary {
                        to_come: false,
                        asked: true,
                        ..self.summary(&row)
                    };
                    let records = self.bus[row.event].records.clone();
                    self.held.load(summary, records, false);
                }
                all.iter()
                    .for_each(|((ticket, _), _)| self.held.remove(*ticket));
            }
            Change::Look => self.looked(),
        }
    }

    /// Tells the letters how far the stream is finished.
    pub(super) fn follow(&mut self) -> usize {
        let unfinished = self.live.iter().position(|live| *live != Live::Finished);
        let open = self
            .open
            .first()
            .map(|first| usize::try_from(*first).unwrap());
        let low = unfinished.unwrap_or(self.live.len());
        let low = open.map_or(low, |open| low.min(open));
        self.held.passed(low as Seq);
        low
    }

    /// A write of the position begins, or the one under way reaches the store.
    pub(super) fn save(&mut self, which: usize) {
        if let Some(position) = self.saving.take() {
            return self.store_position(&position);
        }
        let low = self.follow();
        // It never rests within a unit.
        let rests = |to: &usize| *to == 0 || !self.joined.contains(&(*to as Seq - 1));
        let passed = (0..=low).rev().find(rests).unwrap();
        let letters = self.held.ahead.pass(passed as Seq);
        let events = self.events[..passed].iter().flatten().count();
        // What is finished a moment later is not stored with it.
        let marked = self.events.iter().zip(&self.live).skip(passed);
        let marked = marked.filter(|(_, live)| **live == Live::Finished && which.is_multiple_of(2));
        self.saving = Some(Position {
            after: self.begins + events,
            letters,
            marks: marked.filter_map(|(event, _)| *event).collect(),
        });
    }

    pub(super) fn store_position(&mut self, position: &Position) {
        (self.position, self.lost) = (position.after, false);
        self.marks.clone_from(&position.marks);
        let passed = self
            .rows
            .iter()
            .filter(|row| position.letters.contains(&row.id));
        let passed: HashSet<usize> = passed.map(|row| row.event).collect();
        for row in self
            .rows
            .iter_mut()
            .filter(|row| passed.contains(&row.event))
        {
            (row.ahead, row.until) = (false, None);
        }
    }
}
