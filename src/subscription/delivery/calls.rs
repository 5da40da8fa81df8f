//! Calls of handlers, and what becomes of the events they answered for.

use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::task::JoinError;
use tracing::{info, warn};

use super::{Delivery, end_of_task};
use crate::store::DeadLetter;
use crate::subscription::calling::{Call, CallEnd};
use crate::subscription::handler_run::{Health, Verdict};
use crate::subscription::lanes::{CallId, Origin, Waiting};
use crate::subscription::observe::Outcome;
use crate::subscription::parking::dead_letters;
use crate::subscription::tracker::{HandlerSet, Seq};

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
        if !self.assignment.clock.holds(now) {
            return;
        }
        for index in 0..self.runs.len() {
            while let Some((call, batch)) = self.runs[index].next_call(now) {
                let made = Call::new(
                    self.handlers[index].clone(),
                    self.runs[index].name.clone(),
                    self.store.clone(),
                    self.lease.clone(),
                    &batch,
                );
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
        let CallEnd::Answered(answer) = called.end else {
            return false;
        };
        let Some(batch) = self.with_handlers.remove(&(called.handler, called.call)) else {
            return true;
        };
        let now = Instant::now();
        let run = &mut self.runs[called.handler];
        let (name, bit) = (run.name.clone(), run.bit);
        let answered = run.answered(now, called.call, batch, answer);
        self.observer
            .handler_call(&name, called.took, answered.again);
        if let Some(health) = answered.health {
            self.tell(&name, &health);
        }
        for (waiting, verdict) in answered.done {
            match verdict {
                Verdict::Handled => {
                    for seq in live(&waiting) {
                        self.finished(seq, Some(bit), Outcome::Handled);
                    }
                }
                Verdict::Park { reason, error } => {
                    let letters = dead_letters(&waiting, &name, reason, &error);
                    self.park(live(&waiting).start, Some(bit), letters);
                }
            }
        }
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

    pub(super) fn finished(&mut self, seq: Seq, handlers: Option<HandlerSet>, outcome: Outcome) {
        let last = match handlers {
            Some(handlers) => self.tracker.finish(seq, handlers),
            None => self.tracker.finish_for_all(seq),
        };
        if last {
            self.observer.finished(outcome);
            self.position.finished(1);
        }
        self.position.changed();
    }

    /// Parks events durably that follow each other in the tracker; only then are they finished, so that the
    /// position cannot pass them before.
    pub(super) fn park(
        &mut self,
        first: Seq,
        handlers: Option<HandlerSet>,
        letters: Vec<DeadLetter>,
    ) {
        for letter in &letters {
            self.observer
                .parked(letter.handler.as_deref(), &letter.reason);
        }
        self.parking.park(first, handlers, letters);
    }
}

/// The places in the tracker of a unit off the stream, where its events follow each other; none for another.
fn live(waiting: &Waiting) -> Range<Seq> {
    match waiting.origin {
        Origin::Live(first) => first..first + waiting.unit.events().len() as Seq,
        Origin::Letter { .. } | Origin::Replay(_) => 0..0,
    }
}
