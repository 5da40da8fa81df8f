//! What becomes of open letters in the model: people, another attempt, and passing on.

use super::*;

impl Model {
    /// A person asks for another attempt at an open letter, or gives it up, with its unit. The process hears of it, and looks.
    pub(super) fn person(&mut self, which: usize, discard: bool) {
        let open: Vec<usize> = (0..self.rows.len())
            .filter(|row| self.rows[*row].open)
            .collect();
        let Some(row) = (!open.is_empty()).then(|| open[which % open.len()]) else {
            return;
        };
        if discard {
            let (named, unit) = (row, self.rows[row].unit.clone());
            let everyone = self.rows[row].everyone;
            for (number, row) in self.rows.iter_mut().enumerate() {
                let same = unit.is_some() && row.unit == unit && row.everyone == everyone;
                if row.open && (number == named || same) {
                    (row.open, row.discarded, row.asked) = (false, true, false);
                    self.bus[row.event].settled = true;
                }
            }
        } else {
            self.rows[row].asked = true;
        }
        self.look();
    }

    fn look(&mut self) {
        if !matches!(self.changes.back(), Some(Written::Look)) {
            self.changes.push_back(Written::Look);
        }
    }

    /// As `Delivery::looked`.
    pub(super) fn looked(&mut self) {
        let mut rows: Vec<Row> = self.rows.iter().filter(|row| row.open).cloned().collect();
        rows.sort_by_key(|row| (row.place, row.id));
        let open = rows.iter().map(|row| self.summary(row)).collect();
        let bus = &self.bus;
        let records = |summary: &LetterSummary| {
            let event: usize = summary.identity.as_str().parse().unwrap();
            bus[event].records.clone()
        };
        for ticket in self.held.sync(open, records) {
            let letter = &self.held.letters[&ticket];
            let (event, id) = (letter.event(), letter.rank.id);
            let discarded = self.rows.iter().any(|row| row.id == id && row.discarded);
            self.bus[event].given_up |= discarded;
            if self.held.settle(ticket).is_some() {
                self.finished.insert(event);
            }
        }
    }

    pub(super) fn look_again(&mut self, tickets: &[Ticket]) {
        tickets
            .iter()
            .for_each(|ticket| self.held.put_back(*ticket));
        self.put_off.extend(tickets);
        self.look();
    }

    /// Letters that may be tried are on their way.
    pub(super) fn draw(&mut self) {
        self.follow();
        for ticket in std::mem::take(&mut self.put_off) {
            self.held.consider(ticket);
        }
        if self.loading.is_empty() {
            self.loading = self.held.draw();
        }
    }

    /// What was drawn is loaded; as `LetterLoader::load_one` and `Delivery::letter_loaded`.
    pub(super) fn load(&mut self, which: usize) {
        for drawn in std::mem::take(&mut self.loading) {
            let tickets: Vec<Ticket> = drawn.letters.iter().map(|(ticket, _)| *ticket).collect();
            if !drawn
                .letters
                .iter()
                .all(|(_, placed)| self.is_open(placed.id))
            {
                self.look_again(&tickets);
                continue;
            }
            let named = drawn
                .letters
                .iter()
                .map(|(ticket, placed)| (*ticket, placed.id));
            let named: Vec<Named> = named.collect();
            // A letter that a person has settled just now may be gone here, and its row open again.
            let event = |id: i64| self.rows.iter().find(|row| row.id == id).unwrap().event;
            let unread = named
                .iter()
                .filter(|(_, id)| self.bus[event(*id)].undecodable);
            let unread: Vec<Named> = unread.copied().collect();
            if which.is_multiple_of(3) {
                for (_, id) in &unread {
                    let event = event(*id);
                    self.bus[event].undecodable = false;
                }
            } else if let Some(one) = unread.first().copied() {
                self.unit_undecodable(drawn.slot, one, named);
                continue;
            }
            match drawn.slot {
                Slot::Everyone => self.pass_on(named),
                Slot::Handler(_) => self.put_letters(&drawn.letters),
            }
        }
    }

    /// As `Delivery::unit_undecodable`.
    fn unit_undecodable(&mut self, slot: Slot, one: Named, mut all: Vec<Named>) {
        all.retain(|named| *named != one);
        self.held.refused(one.0);
        for (ticket, _) in &all {
            match slot {
                Slot::Everyone => self.held.waits_again(*ticket),
                Slot::Handler(_) => self.held.refused(*ticket),
            }
        }
        self.changes.push_back(Written::ParkAgain(vec![one], false));
        if !all.is_empty() {
            let behind = slot == Slot::Everyone;
            self.changes.push_back(Written::ParkAgain(all, behind));
        }
    }

    fn pass_on(&mut self, named: Vec<Named>) {
        let own = |(ticket, id): Named| {
            let row = self.rows.iter().find(|row| row.id == id).unwrap();
            let letter = DeadLetter {
                place: self.held.place(ticket),
                ahead: false,
                ..self.dead_letter(row.event, MINE, true, row.unit.clone())
            };
            ((ticket, id), letter)
        };
        let all = named.into_iter().map(own).collect();
        self.changes.push_back(Written::PassOn(all));
    }

    /// As `Delivery::letter_answered`.
    pub(super) fn letters_answered(&mut self, tickets: &[Ticket], accept: bool) {
        let named = tickets
            .iter()
            .filter_map(|ticket| match self.held.known(*ticket)? {
                Known::Id(id) => Some((*ticket, id)),
                Known::Event(_) => None,
            });
        let named: Vec<Named> = named.collect();
        for (ticket, _) in &named {
            match accept {
                true => self.held.handled(*ticket),
                false => self.held.refused(*ticket),
            }
        }
        self.changes.push_back(match accept {
            true => Written::Resolve(named),
            false => Written::ParkAgain(named, false),
        });
    }
}
