//! Groups on their way from the stream to the handlers, or to the dead letters.

use std::time::{Duration, Instant};

use super::Delivery;
use super::grouping::{Group, Grouping, Groups, Member, What};
use super::parked::Moment;
use crate::store::DeadLetter;
use crate::subscription::credits::Credits;
use crate::subscription::decoder::Undecodable;
use crate::subscription::held::{PARKED_BEHIND, Slot};
use crate::subscription::in_flight::InFlight;
use crate::subscription::lanes::Origin;
use crate::subscription::parking::dead_letter;
use crate::subscription::state::State;
use crate::subscription::tracker::{HandlerSet, Seq, Tracker};

/// A timer that fires later than this was not looked at: the process itself was stopped.
const STOPPED: Duration = Duration::from_secs(1);

impl Delivery {
    /// Hands groups over that are complete, and has the position stay before the one that is not.
    pub(super) fn hand_on(&mut self, groups: Groups) {
        for mut group in groups {
            self.tracker.join(group.first, group.members.len());
            self.leave_settled(&mut group);
            let whole = || group.is_new() && !self.is_parked_for_one(&group);
            match group.undecodable().filter(|_| whole()) {
                // Without one of its events none is handed over.
                Some(undecodable) => {
                    let behind = behind(undecodable);
                    let all = self
                        .runs
                        .iter()
                        .fold(0, |all: HandlerSet, run| all | run.bit);
                    if let Some(group) = group.wanted(|member| member.unwanted != all) {
                        let letters = letters_of(&group, &behind, None);
                        let places = group.places().into_iter().map(Origin::Live);
                        self.park_new(places.collect(), None, letters, Moment::OnArrival);
                    }
                }
                None => self.give(&group, Origin::Live),
            }
        }
        self.tracker.open_from(self.grouping.open_from());
    }

    /// True where a handler has a letter of its own of an event that the stream has brought once more: it keeps its order
    /// only where it comes by for that handler.
    fn is_parked_for_one(&self, group: &Group) -> bool {
        let held = &self.letters.held;
        let mut members = group.members.iter();
        members.any(|member| {
            let slots = held.awaited(&member.what.identity());
            slots.iter().any(|slot| *slot != Slot::Everyone)
        })
    }

    /// Gives each handler what it wants and has not finished of a group, or parks that where it cannot be decoded.
    pub(super) fn give(&mut self, group: &Group, origin: impl Fn(Seq) -> Origin) {
        for index in 0..self.runs.len() {
            let run = &mut self.runs[index];
            let (bit, slot) = (run.bit, Slot::Handler(index));
            let mut unread = Vec::new();
            for left in group.left_for(bit) {
                match (left.undecodable(), left.unit()) {
                    (Some(undecodable), _) => {
                        let letters = letters_of(&left, &behind(undecodable), Some(&run.name));
                        unread.push((left.places(), letters));
                    }
                    (None, Some(unit)) => {
                        // Without a filter there are none, and then nothing is allocated for them.
                        let places = left.places.as_ref();
                        let places = places
                            .map(|places| places.iter().map(|place| origin(*place)).collect());
                        run.put(origin(left.first), places, unit, self.ordering);
                    }
                    (None, None) => {}
                }
            }
            for (places, letters) in unread {
                let handler = Some((slot, bit));
                let places = places.into_iter().map(&origin).collect();
                self.park_new(places, handler, letters, Moment::OnArrival);
            }
        }
    }

    /// Closes a transaction that nothing else closes, once its wait is over.
    pub(super) fn close_group(&mut self, now: Instant) {
        let Some(due) = self.grouping.due().filter(|due| *due <= now) else {
            return;
        };
        let live = *self.stream_state.borrow() == State::Live;
        match silence(
            &self.grouping,
            &self.tracker,
            &self.in_flight,
            live,
            due,
            now,
        ) {
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
}

/// What it says about the open transaction of a stream that nothing has come for it until `due`.
pub(super) fn silence(
    grouping: &Grouping,
    tracker: &Tracker,
    in_flight: &InFlight,
    live: bool,
    due: Instant,
    now: Instant,
) -> Silence {
    let unread = in_flight.under_way() > 0 || now.duration_since(due) > STOPPED;
    let owed = in_flight.owed() > 0;
    // With nothing asked for and no room to ask, nothing comes until something is let go; and with
    // nothing else before it, that has to be this.
    let full = !owed && Credits::first(in_flight.room()).is_none();
    let alone = (grouping.open_from()).is_some_and(|first| tracker.is_first(first));
    if unread {
        Silence::Ours
    } else if full && alone {
        Silence::Full
    } else if owed && live {
        Silence::Over
    } else {
        Silence::Ours
    }
}

/// The dead letters of a group that cannot be handed over, because one of its events cannot be decoded: of
/// one handler, or of all.
fn letters_of(group: &Group, behind: &str, handler: Option<&str>) -> Vec<DeadLetter> {
    let unit = group.name();
    let letter = |member: &Member| DeadLetter {
        unit: unit.clone(),
        handler: handler.map(str::to_owned),
        ..match &member.what {
            What::Undecodable(event) => event.letter(),
            What::Event(event) => dead_letter(event, handler, PARKED_BEHIND, behind, 0),
        }
    };
    group.members.iter().map(letter).collect()
}

/// Why nothing came.
pub(super) enum Silence {
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
