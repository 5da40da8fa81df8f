//! Where a stream begins that does not go on at the position, in the model: after a rewind; or at the earliest event,
//! where the position was lost while nobody ran, and the bus has forgotten events of open letters. What is younger than
//! those is known by the commit times.

use std::time::Duration;

use super::*;

/// Later than everything.
pub(super) fn far() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)
}

impl Model {
    /// Commit times grow in whole seconds; some events have none, and some no number either.
    pub(super) fn next_commit(&self, which: usize) -> Option<Commit> {
        let seconds = |commit: &Commit| commit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let before = self
            .bus
            .iter()
            .rev()
            .find_map(|event| event.commit.as_ref());
        let last = before.map_or(Duration::ZERO, seconds);
        let at = last + Duration::from_secs(u64::from(which.is_multiple_of(3)));
        (!which.is_multiple_of(7)).then(|| Commit {
            at: SystemTime::UNIX_EPOCH + at,
            number: (!which.is_multiple_of(4)).then_some(self.bus.len() as i64),
        })
    }

    pub(super) fn change(&self, event: usize) -> Option<Change> {
        let event = &self.bus[event];
        let records = event.records.clone();
        event.commit.map(|commit| Change { commit, records })
    }

    /// The bus keeps nothing before this event any more, and with that the position is lost.
    pub(super) fn forget(&mut self, which: usize) {
        let keeps = self.bus.len() - which.min(self.bus.len());
        if keeps <= self.position {
            return;
        }
        for event in 0..keeps {
            let is_kept = self.rows.iter().any(|row| row.open && row.event == event);
            self.bus[event].forgotten = true;
            self.bus[event].settled |= !is_kept;
        }
        (self.position, self.lost) = (keeps, true);
        self.marks.clear();
        self.start();
    }

    pub(super) fn rewind(&mut self, which: usize) {
        if self.saving.is_some() {
            self.save(0);
        }
        let old = self.position;
        let earliest = self.bus.iter().take_while(|event| event.forgotten).count();
        self.position = (which % (old + 1)).max(earliest);
        self.bus.iter_mut().for_each(|event| event.given_up = false);
        for row in &mut self.rows {
            if row.open && !row.ahead && self.position != old {
                (row.ahead, row.until) = (true, Some(old));
            } else if !row.open {
                (row.ahead, row.until) = (false, None);
            }
        }
        self.marks.clear();
        self.start();
    }

    /// True where nothing tells that this event is younger than one whose letter is open and which the bus has
    /// forgotten, or where the two were parked and had not come by once more before it forgot both.
    pub(super) fn nobody_knew(&self, older: usize, event: usize) -> bool {
        let is_sure = |older: &Published, event: &Published| {
            let commits = older.commit.zip(event.commit);
            commits.is_some_and(|(older, event)| older.is_before(&event))
        };
        let (older, event) = (&self.bus[older], &self.bus[event]);
        older.forgotten && (event.forgotten || !is_sure(older, event))
    }

    /// As [`Model::nobody_knew`], at the moment at which an event of the stream has its turn: nor has anything before it
    /// told.
    pub(super) fn nobody_knows(&self, older: usize, event: usize) -> bool {
        let before = self.events.iter().position(|one| *one == Some(event));
        let mut told = self.events[..before.unwrap_or(0)].iter();
        let told = told.any(|one| match *one {
            Some(one) => self.share(older, one) && !self.nobody_knew(older, one),
            // A keepalive.
            None => true,
        });
        !told && self.nobody_knew(older, event)
    }
}
