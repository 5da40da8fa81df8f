//! What becomes of open letters in the model: people, another attempt, passing on, and the end.

use super::*;

impl Model {
    /// A person asks for another attempt at an open letter, or gives it up.
    pub(super) fn person(&mut self, which: usize, discard: bool) {
        let open: Vec<usize> = (0..self.rows.len())
            .filter(|row| self.rows[*row].open)
            .collect();
        let Some(row) = (!open.is_empty()).then(|| open[which % open.len()]) else {
            return;
        };
        let row = &mut self.rows[row];
        let (id, event) = (row.id, row.event);
        let ticket = self.held.by_id.get(&id).copied();
        if !discard {
            row.asked = true;
            if let Some(letter) = ticket.and_then(|ticket| self.held.letters.get_mut(&ticket)) {
                letter.asked = true;
            }
            ticket
                .into_iter()
                .for_each(|ticket| self.held.consider(ticket));
            return;
        }
        row.open = false;
        self.bus[event].given_up = true;
        self.settle(event, false);
        if let Some(ticket) = ticket {
            if self.held.settle(ticket).is_some() {
                self.finished.insert(event);
            }
            self.letters.retain(|other| *other != ticket);
        }
    }

    pub(super) fn draw(&mut self) {
        for drawn in self.held.draw() {
            for (ticket, placed) in drawn.letters {
                if drawn.slot == Slot::Everyone {
                    self.pass_on(ticket, placed);
                } else {
                    self.held.in_lanes(ticket);
                    self.letters.push(ticket);
                }
            }
        }
        let held = &self.held;
        self.letters.sort_by_key(|ticket| held.letters[ticket].rank);
    }

    pub(super) fn pass_on(&mut self, ticket: Ticket, placed: Placed) {
        let number = self.number();
        let old = self
            .rows
            .iter_mut()
            .find(|row| row.id == placed.id)
            .unwrap();
        let own = Row {
            everyone: false,
            id: number,
            behind: true,
            asked: true,
            ..old.clone()
        };
        (old.open, old.ahead, old.until) = (false, false, None);
        self.bus[own.event].undecodable = false;
        let (event, mut own) = (own.event, own);
        // It may have one from before.
        let same = |row: &Row| row.event == event && !row.everyone;
        match self.rows.iter_mut().find(|row| same(row)) {
            Some(row) => {
                own.id = row.id;
                *row = own.clone();
            }
            None => self.rows.push(own.clone()),
        }
        self.held.ahead.follow(placed.id, [own.id].into_iter());
        let summary = LetterSummary {
            to_come: false,
            ..self.summary(&own)
        };
        let records = self.bus[event].records.clone();
        self.held.load(summary, records, false);
        self.held.remove(ticket);
    }

    /// A letter that is in the lanes is answered for.
    pub(super) fn answer(&mut self, which: usize, accept: bool) {
        if self.letters.is_empty() {
            return;
        }
        let number = which % self.letters.len();
        let ticket = self.letters[number];
        let event = self.event_of_ticket(ticket);
        let before = &self.letters[..number];
        if before
            .iter()
            .any(|other| self.share(self.event_of_ticket(*other), event))
        {
            return;
        }
        self.letters.remove(number);
        let id = self.held.letters[&ticket].rank.id;
        let row = self.rows.iter_mut().find(|row| row.id == id).unwrap();
        if self.held.must_wait(&[ticket]) {
            self.held.put_back(ticket);
        } else if accept {
            row.open = false;
            self.settle(event, true);
            self.held.handled(ticket);
            self.held.remove(ticket);
        } else {
            (row.asked, row.behind) = (false, false);
            self.held.refused(ticket);
            self.held.rests(ticket);
        }
    }

    /// Everything is accepted from now on, and asked for.
    pub(super) fn come_to_rest(&mut self) {
        for _ in 0..4 * (self.bus.len() + self.rows.len() + 4) {
            self.bring();
            self.hand_over(0, true);
            self.write();
            self.keepalive();
            self.save();
            (0..self.rows.len()).for_each(|which| self.person(which, false));
            self.draw();
            (0..self.letters.len()).for_each(|which| self.answer(which, true));
        }
        for (event, published) in self.bus.iter().enumerate() {
            assert!(
                published.settled,
                "{event} is forgotten: {:?}",
                self.held.letters
            );
        }
        assert!(
            self.rows.iter().all(|row| !row.open && !row.ahead),
            "{:?}",
            self.rows
        );
    }
}
