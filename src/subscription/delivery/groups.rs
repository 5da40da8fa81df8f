//! Groups on their way from the stream to the handlers, or to the dead letters.

use std::time::{Duration, Instant};

use super::Delivery;
use super::grouping::{Group, Member, What};
use crate::store::DeadLetter;
use crate::subscription::credits::Credits;
use crate::subscription::decoder::Undecodable;
use crate::subscription::held::Slot;
use crate::subscription::lanes::Origin;
use crate::subscription::parking::dead_letter;
use crate::subscription::state::State;
use crate::subscription::tracker::HandlerSet;

/// A timer that fires later than this was not looked at: the process itself was stopped.
const STOPPED: Duration = Duration::from_secs(1);

impl Delivery {
    /// Hands groups over that are complete, and has the position stay before the one that is not.
    pub(super) fn hand_on(&mut self, groups: Vec<Group>) {
        for group in groups {
            self.tracker.join(group.first, group.members.len());
            match group.undecodable() {
                Some(undecodable) => self.park_group(&group, &behind(undecodable)),
                None => {
                    for (index, run) in self.runs.iter_mut().enumerate() {
                        for (seq, unit) in group.units(run.bit) {
                            run.put(Origin::Live(seq), unit, self.ordering);
                        }
                        self.letters.came_by(Slot::Handler(index), &group, run.bit);
                    }
                }
            }
        }
        self.tracker.open_from(self.grouping.open_from());
    }

    /// Closes a transaction that nothing else closes, once its wait is over.
    pub(super) fn close_group(&mut self, now: Instant) {
        let Some(due) = self.grouping.due().filter(|due| *due <= now) else {
            return;
        };
        match self.silence(due, now) {
            Silence::Over => {
                let groups = self.grouping.close(false);
                self.hand_on(groups);
            }
            Silence::Full => {
                let groups = self.grouping.close(true);
                self.hand_on(groups);
            }
            Silence::Ours => self.grouping.wait_again(now),
        }
    }

    /// What it says about the open transaction that nothing has come for it until `due`.
    fn silence(&self, due: Instant, now: Instant) -> Silence {
        let unread = self.in_flight.under_way() > 0 || now.duration_since(due) > STOPPED;
        let owed = self.in_flight.owed() > 0;
        // With nothing asked for and no room to ask, nothing comes until something is let go; and with
        // nothing else before it, that has to be this.
        let full = !owed && Credits::first(self.in_flight.room()).is_none();
        let alone = (self.grouping.open_from()).is_some_and(|first| self.tracker.is_first(first));
        if unread {
            Silence::Ours
        } else if full && alone {
            Silence::Full
        } else if owed && *self.stream_state.borrow() == State::Live {
            Silence::Over
        } else {
            Silence::Ours
        }
    }

    /// Parks all of a group for all handlers: without one of its events none is handed over.
    fn park_group(&mut self, group: &Group, behind: &str) {
        // All of it was parked before a restart.
        if group
            .members
            .iter()
            .all(|member| self.tracker.is_all(member.finished))
        {
            self.letters.came_by(Slot::Everyone, group, HandlerSet::MAX);
            return;
        }
        let unit = group.name();
        let letter = |member: &Member| DeadLetter {
            unit: unit.clone(),
            ..match &member.what {
                What::Undecodable(event) => event.letter(),
                What::Event(event) => dead_letter(event, None, "parked_behind", behind, 0),
            }
        };
        let letters = group.members.iter().map(letter).collect();
        self.park_new(Origin::Live(group.first), None, letters);
    }
}

/// Why nothing came.
enum Silence {
    /// There is nothing: the transaction is whole.
    Over,
    /// There is no room for more of it.
    Full,
    /// It says nothing, because we did not ask, or have not looked.
    Ours,
}

fn behind(undecodable: &Undecodable) -> String {
    format!(
        "event {} of the same transaction cannot be decoded",
        undecodable.identity()
    )
}
