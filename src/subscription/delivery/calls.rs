//! Calls of handlers, and what becomes of the events they answered for.

use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinError;
use tracing::{info, warn};

use super::parked::Moment;
use super::{Delivery, end_of_task};
use crate::subscription::calling::{Call, CallEnd};
use crate::subscription::handler_run::{Health, Verdict};
use crate::subscription::held::Slot;
use crate::subscription::lanes::{CallId, Next, Origin, Waiting};
use crate::subscription::observe::Outcome;
use crate::subscription::parking::dead_letters;
use crate::subscription::tracker::HandlerSet;

/// A finished call of a handler.
pub(super) struct Called {
    handler: usize,
    call: CallId,
    end: CallEnd,
    took: Duration,
}

impl Delivery {
    pub(super) fn call_handlers(&mut self) {
        let now = Instant::now();
        // Somebody else may have begun where our time is up: nothing more is handed out.
        if !self.assignment.clock.holds() {
            return;
        }
        for index in 0..self.runs.len() {
            loop {
                let letters = &self.letters;
                let held = |waiting: &Waiting| letters.is_held(index, waiting);
                let (call, batch, looks) = match self.runs[index].next_call(now, &held) {
                    Some(Next::Call(call, batch)) => (call, batch, false),
                    Some(Next::Look(call, batch)) => (call, batch, true),
                    Some(Next::Aside(units)) => {
                        self.set_aside(index, units);
                        continue;
                    }
                    None => break,
                };
                let made = Call::new(
                    self.handlers[index].clone(),
                    self.runs[index].name.clone(),
                    self.store.clone(),
                    self.lease.clone(),
                    &batch,
                    self.ordering,
                    |event| self.forms.given(index, event),
                );
                let made = if looks { made.only_looks(&batch) } else { made };
                self.time_hand_over(&batch, now);
                self.with_handlers.insert((index, call), batch);
                self.calls.spawn(async move {
                    let began = Instant::now();
                    Called {
                        handler: index,
                        call,
                        end: made.make().await,
                        took: began.elapsed(),
                    }
                });
            }
        }
    }

    /// Takes the end of a call in. False where another worker has taken over.
    #[must_use]
    pub(super) fn called(&mut self, called: Result<Called, JoinError>) -> bool {
        let called = called.unwrap_or_else(|error| end_of_task(error));
        if called.end == CallEnd::Fenced {
            return false;
        }
        let Some(batch) = self.with_handlers.remove(&(called.handler, called.call)) else {
            return true;
        };
        let now = Instant::now();
        let run = &mut self.runs[called.handler];
        let (name, bit) = (run.name.clone(), run.bit);
        let stale = batch.iter().any(|w| self.replays.is_stale(w.origin));
        let answered = match called.end {
            CallEnd::Answered(answer) => run.answered(now, called.call, batch, answer),
            CallEnd::Unheard(why) => run.unheard(now, called.call, batch, why),
            CallEnd::Looked(finished) => run.looked(now, called.call, batch, finished),
            CallEnd::Fenced => return false,
        };
        if stale {
            // What a handler wants again of a replay that was withdrawn meanwhile.
            run.forget(|origin| self.replays.is_stale(origin));
        }
        let handled = answered
            .done
            .iter()
            .filter(|(_, verdict)| *verdict == Verdict::Handled);
        let handled = handled.map(|(waiting, _)| waiting.unit.events().len());
        self.observer
            .handler_call(called.handler, called.took, handled.sum(), answered.again);
        if let Some(health) = answered.health {
            self.tell(&name, &health);
        }
        let mut handled = Vec::with_capacity(answered.done.len());
        for (waiting, verdict) in answered.done {
            if let Verdict::Park { reason, .. } = &verdict {
                let events = waiting.unit.events().len();
                self.observer
                    .handler_gave_up(called.handler, reason, events);
            }
            match verdict {
                verdict if matches!(waiting.origin, Origin::Letter { .. }) => {
                    self.finished(handled.drain(..), Some(bit), Outcome::Handled);
                    self.letter_answered(called.handler, &waiting, verdict);
                }
                Verdict::Handled => handled.extend(waiting.places()),
                Verdict::Park { reason, error } => {
                    self.finished(handled.drain(..), Some(bit), Outcome::Handled);
                    let letters = dead_letters(&waiting, &name, reason, &error);
                    let slot = Slot::Handler(called.handler);
                    let places = waiting.places().collect();
                    self.park(places, Some((slot, bit)), letters, Moment::InTurn);
                }
            }
        }
        self.finished(handled, Some(bit), Outcome::Handled);
        self.show_state();
        true
    }

    fn tell(&self, handler: &str, health: &Health) {
        let subscription = &self.lease.key.name;
        match health {
            Health::Down(error) => warn!(
                subscription,
                handler, error, "handler fails for all: held back, nothing is parked"
            ),
            Health::Up => info!(subscription, handler, "handler succeeds again"),
            Health::Stopped(why) => warn!(subscription, handler, error = why, "handler stopped"),
        }
    }

    /// Handlers have finished the events of these places. What becomes of a letter is the store's to say.
    pub(super) fn finished(
        &mut self,
        places: impl IntoIterator<Item = Origin>,
        handlers: Option<HandlerSet>,
        outcome: Outcome,
    ) {
        let now = Instant::now();
        let (mut finished, mut took) = (0, Alike::NONE);
        for place in places {
            let seq = match place {
                Origin::Live(seq) => seq,
                Origin::Replay(seq) => {
                    let parked = outcome == Outcome::Parked;
                    self.replays.finished(seq, handlers, parked);
                    continue;
                }
                Origin::Letter { .. } => continue,
            };
            let last = match handlers {
                Some(handlers) => self.tracker.finish(seq, handlers),
                None => self.tracker.finish_for_all(seq),
            };
            self.position.changed();
            if last {
                finished += 1;
                let observer = &self.observer;
                took.add(self.legs.finished(seq, now), |took, events| {
                    observer.done(took, events);
                });
            }
        }
        took.add(None, |took, events| self.observer.done(took, events));
        self.observer.finished(outcome, finished);
        self.position.finished(finished);
    }

    /// Notes which events off the stream are given to a handler for the first time.
    fn time_hand_over(&mut self, batch: &[Waiting], now: Instant) {
        let (legs, observer) = (&mut self.legs, &self.observer);
        let wall = SystemTime::now();
        let mut received = Alike::NONE;
        let tell = |received_at, events| observer.handed_over(received_at, wall, events);
        for waiting in batch.iter().filter(|waiting| waiting.attempts == 0) {
            for (place, event) in waiting.places().zip(waiting.unit.events()) {
                if let Origin::Live(seq) = place
                    && legs.handed_over(seq, now)
                {
                    received.add(Some(event.received_at), tell);
                }
            }
        }
        received.add(None, tell);
    }
}

/// Values of which neighbours are often the same, so that they are told of together.
struct Alike<T> {
    value: Option<T>,
    count: usize,
}

impl<T: PartialEq> Alike<T> {
    const NONE: Self = Self {
        value: None,
        count: 0,
    };

    /// Takes the next value, and tells of those before where it is another, or none.
    fn add(&mut self, value: Option<T>, tell: impl FnOnce(T, usize)) {
        if value.is_some() && value == self.value {
            self.count += 1;
            return;
        }
        if let Some(before) = std::mem::replace(&mut self.value, value) {
            tell(before, self.count);
        }
        self.count = 1;
    }
}
