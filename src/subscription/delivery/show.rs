//! What people see of a subscription: gauges and its state.

use std::time::{Duration, SystemTime};

use tracing::info;

use super::Delivery;
use crate::subscription::handler_run::HandlerRun;
use crate::subscription::state::State;

impl Delivery {
    pub(super) fn tick(&mut self) {
        let (events, bytes) = self.in_flight.held_now();
        self.observer.in_flight(events, bytes);
        let held = &self.letters.held;
        self.observer.letters_open(held.stored(), held.oldest());
        for (index, run) in self.runs.iter().enumerate() {
            self.observer.handler_down(index, run.down().is_some());
        }
        let seq = self.tracker.next_seq();
        self.letters.held.it_is(SystemTime::now(), seq);
        let hears = self.hears();
        let oldest = self
            .tracker
            .oldest_unfinished()
            .or_else(|| self.in_flight.waits_for_schema_since());
        let behind_since = self.caught_up_at.unwrap_or(self.behind_since);
        let since = match (oldest, hears) {
            (oldest, true) => oldest,
            (Some(oldest), false) => Some(oldest.min(behind_since)),
            (None, false) => Some(behind_since),
        };
        let lag = since.map_or(Duration::ZERO, |since| since.elapsed().unwrap_or_default());
        self.observer.lag(lag);
        let place = self.tracker.position_time();
        let oldest = self.tracker.oldest_unfinished();
        let kept = self.age.look(place, oldest, &self.lease.key);
        self.observer.position_kept(kept.unwrap_or(f64::NAN));
        self.show_state();
    }

    /// The stream's state, unless a handler has stopped the subscription or takes nothing (rule 12), or the
    /// store takes nothing.
    pub(super) fn show_state(&mut self) {
        let stopped = self.runs.iter().find_map(HandlerRun::stopped);
        let down = || {
            self.runs.iter().find_map(|run| {
                let why = run.down()?;
                let name = &run.name;
                Some(format!(
                    "handler `{name}` fails for all events, which are held until it takes them: {why}"
                ))
            })
        };
        let stream = self.stream_state.borrow().clone();
        let full = self.letters.full(&self.lease.key.name);
        let why = match stream {
            // Paused because the buffer is full of what that handler does not take.
            State::Live | State::Paused => stopped.map(str::to_owned).or(full).or_else(down),
            _ => stopped.map(str::to_owned).or(full),
        };
        let state = why.map_or(stream, |detail| State::Blocked { detail });
        self.position.show(&state);
        // Not for the store itself: by the time it could take this, it is over.
        let trouble = self.assignment.clock.trouble();
        let state = match (trouble, self.position.failing(), state) {
            (Some(detail), ..) => State::Blocked { detail },
            (None, Some(why), State::Live) => State::Blocked {
                detail: format!("events are handled, but the position cannot be stored: {why}"),
            },
            (None, _, state) => state,
        };
        if *self.shown_state.borrow() == state {
            return;
        }
        let overruled = *self.stream_state.borrow() != state;
        // The reader logs what the stream's own state is.
        if std::mem::replace(&mut self.overruled, overruled) || overruled {
            info!(
                subscription = self.lease.key.name,
                topic = %self.lease.key.topic,
                state = state.name(),
                detail = state.detail(),
                "subscription {state}"
            );
        }
        self.shown_state.send_replace(state);
    }
}
