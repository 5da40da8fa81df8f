//! Calls of handlers, and what becomes of the events they answered for.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinError;
use tracing::{info, warn};

use super::{Delivery, end_of_task};
use crate::handler::{BatchAnswer, EventBatch};
use crate::store::DeadLetter;
use crate::subscription::handler_run::{Health, Verdict};
use crate::subscription::lanes::{CallId, Origin, Waiting};
use crate::subscription::observe::Outcome;
use crate::subscription::parking::dead_letters;
use crate::subscription::tracker::{HandlerSet, Seq};

/// A finished call of a handler.
pub(super) struct Called {
    handler: usize,
    call: CallId,
    answer: BatchAnswer,
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
                let events = batch.iter().flat_map(|waiting| waiting.unit.events());
                let events = EventBatch {
                    events: events.cloned().collect(),
                };
                self.with_handlers.insert((index, call), batch);
                let handler = self.handlers[index].clone();
                self.calls.spawn(async move {
                    let began = Instant::now();
                    // Within the block, for a handler may panic before it gives its future, too.
                    let answer = AssertUnwindSafe(async { handler.handle(&events).await })
                        .catch_unwind()
                        .await
                        .unwrap_or_else(|_| BatchAnswer::retry("the handler panicked"));
                    Called {
                        handler: index,
                        call,
                        answer,
                        took: began.elapsed(),
                    }
                });
            }
        }
    }

    pub(super) fn called(&mut self, called: Result<Called, JoinError>) {
        let called = called.unwrap_or_else(|error| end_of_task(error));
        let Some(batch) = self.with_handlers.remove(&(called.handler, called.call)) else {
            return;
        };
        let now = Instant::now();
        let run = &mut self.runs[called.handler];
        let (name, bit) = (run.name.clone(), run.bit);
        let answered = run.answered(now, called.call, batch, called.answer);
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
