//! What comes off the stream of the model, until it is in the lanes or parked: as in the delivery's `arrivals`, `grouping`,
//! `groups` and `parked`.

use super::*;

impl Model {
    /// A transaction with an event for each set of records.
    pub(super) fn publish(&mut self, which: usize, records: &[BTreeSet<RecordHash>]) {
        let transaction = self.bus.last().map_or(0, |last| last.transaction + 1);
        let commit = self.next_commit(which);
        for (number, records) in records.iter().enumerate() {
            self.bus.push(Published {
                transaction,
                records: records.iter().copied().collect(),
                undecodable: match number {
                    0 => which.is_multiple_of(5),
                    _ => (which + 7 * number).is_multiple_of(13),
                },
                settled: false,
                given_up: false,
                commit,
                forgotten: false,
            });
        }
    }

    pub(super) fn bring(&mut self) {
        let seq = self.live.len() as Seq;
        let event = self.begins + self.events.iter().flatten().count();
        if event >= self.bus.len() {
            return;
        }
        self.events.push(Some(event));
        let identity = Self::identity(event);
        let awaited = !self.held.awaited(&identity).is_empty();
        self.held.brought(seq, &identity);
        let at = Self::place_on_bus(event + 1);
        let change = self.change(event);
        self.held.live_at(seq, Some(&at), change.as_ref());
        let finished = self.finished.remove(&event) && !awaited;
        self.live.push(match finished {
            true => Live::Finished,
            false => Live::Waits,
        });
        let last = self.open.last().map(|last| self.event_of(*last));
        if last.is_some_and(|last| self.bus[last].transaction != self.bus[event].transaction) {
            self.close(false);
        }
        self.open.push(seq);
        if !self.kind.groups {
            self.close(false);
        }
    }

    /// The stream has caught up.
    pub(super) fn keepalive(&mut self) {
        let brought = self.events.iter().flatten().count();
        if self.begins + brought == self.bus.len() {
            self.finished.clear();
            self.close(false);
            self.held.all_came_by(self.live.len() as Seq);
            self.events.push(None);
            self.live.push(Live::Finished);
        }
    }

    /// A transaction grows too large, or the stream breaks within it.
    pub(super) fn break_off(&mut self, which: usize) {
        if self.kind.parts && which.is_multiple_of(2) {
            self.close(true);
        }
    }

    /// Nothing more comes of the open transaction, as far as is known.
    fn close(&mut self, partial: bool) {
        let Some(first) = self.open.first().copied() else {
            return;
        };
        let group = std::mem::take(&mut self.open);
        let event = self.event_of(first);
        let before = event
            .checked_sub(1)
            .map(|before| self.bus[before].transaction);
        let partial = partial || before == Some(self.bus[event].transaction);
        let last = group.len() - 1;
        self.joined.extend(&group[..last]);
        for seq in group.iter().copied() {
            if self.held.is_settled(0, seq) {
                self.live[seq as usize] = Live::Finished;
            }
        }
        let is_left = |seq: &Seq| self.live[*seq as usize] == Live::Waits;
        let is_whole = group.iter().all(is_left);
        // A letter that the handler has already would keep its place behind younger ones.
        let is_new = is_whole
            && !group.iter().any(|seq| {
                let identity = Self::identity(self.event_of(*seq));
                self.held.awaited(&identity).contains(&MINE)
            });
        let stretches = group.chunk_by(|one, next| is_left(one) == is_left(next));
        let stretches = stretches.filter(|stretch| is_left(&stretch[0]));
        for stretch in stretches.map(<[Seq]>::to_vec).collect::<Vec<_>>() {
            let waiting = self.waiting(stretch, partial || !is_whole);
            if waiting
                .events
                .iter()
                .all(|event| !self.bus[*event].undecodable)
            {
                self.lanes.insert(waiting.origin, waiting);
                continue;
            }
            let slot = match is_new {
                true => Slot::Everyone,
                false => MINE,
            };
            let bus = &self.bus;
            let behind = waiting.events.iter().map(|event| !bus[*event].undecodable);
            let behind: Vec<bool> = behind.collect();
            self.park_again(slot, &waiting, &behind, Moment::OnArrival);
        }
    }

    fn letters_of(&self, slot: Slot, waiting: &Waiting, behind: &[bool]) -> Vec<DeadLetter> {
        let each = waiting.events.iter().zip(behind);
        let letter = |(event, behind): (&usize, &bool)| {
            self.dead_letter(*event, slot, *behind, waiting.name())
        };
        each.map(letter).collect()
    }

    /// As `Delivery::park_new`.
    pub(super) fn park_again(
        &mut self,
        slot: Slot,
        waiting: &Waiting,
        behind: &[bool],
        moment: Moment,
    ) {
        let letters = self.letters_of(slot, waiting, behind);
        let open = letters
            .iter()
            .map(|letter| self.held.open(slot, &letter.identity));
        let open: Vec<Option<Ticket>> = open.collect();
        let places = waiting.places.iter().map(|seq| Origin::Live(*seq));
        let places: Vec<Origin> = places.collect();
        if open.iter().all(Option::is_none) {
            return self.park(slot, places, letters, moment);
        }
        for ticket in open.iter().flatten() {
            assert!(self.held.is_known_ahead(*ticket, slot), "the store knows");
        }
        let events = places.into_iter().zip(letters).zip(open);
        let events = events.map(|((origin, letter), open)| (origin, letter, open));
        let unit = waiting.name();
        for again in (self.held).brought_again(slot, unit.as_deref(), events.collect(), moment) {
            match again {
                Again::New { events, apart } => {
                    let (places, mut letters): (_, Vec<_>) = events.into_iter().unzip();
                    if apart {
                        name_part(&mut letters);
                    }
                    self.park(slot, places, letters, moment);
                }
                Again::Move(moving) => {
                    let (places, named): (Vec<_>, _) = moving.into_iter().unzip();
                    self.parking(&places);
                    self.parks.push_back(Parked::moving(places, None, named));
                }
                Again::Stay(origin) => {
                    let Origin::Live(seq) = origin else {
                        unreachable!("nothing else parks")
                    };
                    self.live[seq as usize] = Live::Finished;
                }
            }
        }
    }

    /// As `Delivery::park`.
    pub(super) fn park(
        &mut self,
        slot: Slot,
        places: Vec<Origin>,
        letters: Vec<DeadLetter>,
        moment: Moment,
    ) {
        self.parking(&places);
        let mut tickets = Vec::new();
        for (origin, letter) in places.iter().zip(&letters) {
            let Origin::Live(seq) = *origin else {
                unreachable!("nothing else parks")
            };
            tickets.push(self.held.insert(NewLetter {
                slot,
                identity: letter.identity.clone(),
                records: self.bus[self.event_of(seq)].records.clone(),
                unit: letter.unit.clone(),
                bytes: 1,
                behind: letter.reason == PARKED_BEHIND,
                since: moment.since(*origin),
                ahead: true,
                came: Some(seq),
                met: None,
                received_at: far(),
                commit: letter.commit,
                until: None,
            }));
        }
        self.parks
            .push_back(Parked::new(places, None, tickets, letters));
    }

    fn parking(&mut self, places: &[Origin]) {
        for place in places {
            if let Origin::Live(seq) = place {
                self.live[*seq as usize] = Live::Parks;
            }
        }
    }

    /// The handler refuses what it was given off the stream.
    pub(super) fn refuse(&mut self, waiting: &Waiting) {
        let letters = self.letters_of(MINE, waiting, &vec![false; waiting.events.len()]);
        let places = waiting.places.iter().map(|seq| Origin::Live(*seq));
        self.park(MINE, places.collect(), letters, Moment::InTurn);
    }

    /// The schema of a transaction is known by now.
    pub(super) fn decodes(&mut self, which: usize) {
        if self.bus.is_empty() {
            return;
        }
        let transaction = self.bus[which % self.bus.len()].transaction;
        self.bus
            .iter_mut()
            .filter(|event| event.transaction == transaction)
            .for_each(|event| event.undecodable = false);
    }
}
