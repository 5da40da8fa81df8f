//! The delivery: hands events to the handlers, tracks what is finished, parks what cannot be, and lets
//! the position follow. One task owns all of it, so nothing here is locked.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::decoder::{Item, Undecodable};
use super::handler_run::{HandlerRun, Health, Verdict};
use super::in_flight::InFlight;
use super::lanes::{CallId, Waiting};
use super::observe::{Observer, Outcome};
use super::parking::{Parking, dead_letter};
use super::position::{FinishedBefore, Position, Written};
use super::state::State;
use super::tracker::{HandlerSet, Seq, Tracked, Tracker};
use crate::config::Ordering;
use crate::event::{Event, EventIdentity};
use crate::handler::{BatchAnswer, EventBatch, Handler};
use crate::store::{DeadLetter, FinishedAhead, Lease, Store};

/// How long a stopping subscription may go on with what is in flight. With the last write after it, a
/// stop takes less than the 30 seconds that a dyno is given.
const DRAIN_LIMIT: Duration = Duration::from_secs(16);

/// How long the last write may take.
const LAST_WRITE_LIMIT: Duration = Duration::from_secs(3);

/// How often gauges are set.
const TICK: Duration = Duration::from_secs(1);

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Told to stop; the position is stored as far as the store could be reached.
    Stopped,
    /// Another worker has taken over.
    Fenced,
}

/// Everything a delivery needs.
pub(super) struct Setup {
    pub(super) lease: Lease,
    pub(super) store: Arc<dyn Store>,
    pub(super) ordering: Ordering,
    pub(super) handlers: Vec<(HandlerRun, Arc<dyn Handler>)>,
    pub(super) finished_ahead: Vec<FinishedAhead>,
    /// When the position was last written, else now.
    pub(super) behind_since: SystemTime,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) stream_state: watch::Receiver<State>,
    /// The subscription's state as people see it: the stream's, or that of a handler that stopped it.
    pub(super) shown_state: watch::Sender<State>,
    pub(super) observer: Observer,
    pub(super) stop: CancellationToken,
}

/// A finished call of a handler.
struct Called {
    handler: usize,
    call: CallId,
    answer: BatchAnswer,
    took: Duration,
}

pub(super) struct Delivery {
    lease: Lease,
    ordering: Ordering,
    runs: Vec<HandlerRun>,
    handlers: Vec<Arc<dyn Handler>>,
    tracker: Tracker,
    in_flight: Arc<InFlight>,
    finished_before: FinishedBefore,
    /// What comes again because the stream resumed before an incomplete replay ID.
    repeats: HashMap<EventIdentity, usize>,
    /// Batches with a handler.
    with_handlers: HashMap<(usize, CallId), Vec<Waiting>>,
    calls: JoinSet<Called>,
    parking: Parking,
    position: Position,
    stream_state: watch::Receiver<State>,
    shown_state: watch::Sender<State>,
    caught_up_at: Option<SystemTime>,
    /// Where lag counts from before the stream was ever caught up.
    behind_since: SystemTime,
    observer: Observer,
    stop: CancellationToken,
}

impl Delivery {
    pub(super) fn new(setup: Setup) -> Self {
        let (runs, handlers): (Vec<_>, Vec<_>) = setup.handlers.into_iter().unzip();
        let mut finished_before = FinishedBefore::new();
        for ahead in setup.finished_ahead {
            // A handler that is configured no more has nothing to skip.
            if let Some(run) = runs.iter().find(|run| run.name == ahead.handler) {
                *finished_before.entry(ahead.identity).or_insert(0) |= run.bit;
            }
        }
        let names = runs.iter().map(|run| (run.bit, run.name.clone())).collect();
        Self {
            tracker: Tracker::new(setup.lease.key.topic.is_channel(), runs.len()),
            position: Position::new(setup.lease.clone(), setup.store.clone(), names),
            ordering: setup.ordering,
            runs,
            handlers,
            in_flight: setup.in_flight,
            finished_before,
            repeats: HashMap::new(),
            with_handlers: HashMap::new(),
            calls: JoinSet::new(),
            parking: Parking::new(setup.lease.clone(), setup.store),
            lease: setup.lease,
            stream_state: setup.stream_state,
            shown_state: setup.shown_state,
            caught_up_at: None,
            behind_since: setup.behind_since,
            observer: setup.observer,
            stop: setup.stop,
        }
    }

    /// Runs until the items end and what is in flight is done, or the subscription is lost.
    pub(super) async fn run(mut self, mut items: mpsc::UnboundedReceiver<Vec<Item>>) -> Ended {
        let mut open = true;
        let mut drain_until = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.call_handlers();
            self.follow();
            if !open && self.is_drained() {
                break;
            }
            let wake = self.wake_at();
            tokio::select! {
                batch = items.recv(), if open => match batch {
                    Some(batch) => batch.into_iter().for_each(|item| self.take(item)),
                    None => open = false,
                },
                Some(called) = self.calls.join_next() => self.called(called),
                parked = self.parking.done() => match parked {
                    Some(parked) => {
                        self.finished(parked.seq, parked.handlers, Outcome::Parked);
                    }
                    None => return self.fenced(),
                },
                written = self.position.written() => {
                    if written == Written::Fenced {
                        return self.fenced();
                    }
                }
                () = sleep_until(wake) => {}
                _ = tick.tick() => self.tick(),
                () = self.stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + DRAIN_LIMIT);
                }
                () = sleep_until(drain_until), if drain_until.is_some() => {
                    warn!(
                        subscription = self.lease.key.name,
                        in_flight = self.in_flight.held_now().0,
                        "handlers did not finish in time: these events will come again"
                    );
                    break;
                }
            }
        }
        self.finish().await
    }

    // ---- in ----

    fn take(&mut self, item: Item) {
        match item {
            Item::Event(event) => self.take_event(event),
            Item::Undecodable(event) => self.take_undecodable(*event),
            Item::Keepalive(id) => {
                self.repeats.clear();
                // The stream has caught up: what has not come again by now never will.
                self.finished_before.clear();
                self.tracker.push_keepalive(id);
            }
            Item::Resumed => self.repeats = self.tracker.incomplete_events(),
        }
    }

    /// True for an event that is in the tracker already, under a replay ID that was incomplete when the
    /// stream broke.
    fn is_repeat(&mut self, identity: &EventIdentity, size: usize) -> bool {
        let Some(left) = self.repeats.get_mut(identity).filter(|left| **left > 0) else {
            return false;
        };
        *left -= 1;
        self.in_flight.release(1, size);
        self.observer.repeat();
        true
    }

    fn take_event(&mut self, event: Arc<Event>) {
        let identity = event.identity();
        let (raw_size, size) = (event.raw.size(), event.size());
        if self.is_repeat(&identity, raw_size) {
            return;
        }
        self.in_flight.grow(size - raw_size, size);
        let finished = self.finished_before.remove(&identity).unwrap_or(0);
        let tracked = Tracked {
            identity,
            occurred_at: event.occurred_at(),
            size,
        };
        let seq = self
            .tracker
            .push_event(tracked, event.raw.replay_id.clone(), finished);
        for run in self.runs.iter_mut().filter(|run| run.bit & finished == 0) {
            run.put(seq, event.clone(), self.ordering);
        }
        self.position.received(1);
    }

    fn take_undecodable(&mut self, event: Undecodable) {
        let record_ids = event.header.as_ref().map(|h| h.record_ids.clone());
        let identity = match record_ids.iter().flatten().next() {
            Some(record_id) => event.raw.identity(Some(record_id)),
            None => event.raw.identity_unread(),
        };
        if self.is_repeat(&identity, event.raw.size()) {
            return;
        }
        let tracked = Tracked {
            identity: identity.clone(),
            occurred_at: event.received_at,
            size: event.raw.size(),
        };
        let seq = self
            .tracker
            .push_event(tracked, event.raw.replay_id.clone(), 0);
        self.position.received(1);
        self.park(
            seq,
            None,
            DeadLetter {
                identity,
                handler: None,
                reason: event.reason.to_owned(),
                error: event.error,
                attempts: 0,
                event_uuid: event.raw.id,
                replay_id: event.raw.replay_id,
                schema_id: event.raw.schema_id,
                payload: event.raw.payload,
                record_ids: record_ids.unwrap_or_default(),
                record_name: None,
                received_at: event.received_at,
            },
        );
    }

    // ---- handlers ----

    fn call_handlers(&mut self) {
        let now = Instant::now();
        for index in 0..self.runs.len() {
            while let Some((call, batch)) = self.runs[index].next_call(now) {
                let events = EventBatch {
                    events: batch.iter().map(|waiting| waiting.event.clone()).collect(),
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

    fn called(&mut self, called: Result<Called, JoinError>) {
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
                Verdict::Handled => self.finished(waiting.seq, Some(bit), Outcome::Handled),
                Verdict::Park { reason, error } => {
                    let letter = dead_letter(&waiting, &name, reason, error);
                    self.park(waiting.seq, Some(bit), letter);
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

    fn finished(&mut self, seq: Seq, handlers: Option<HandlerSet>, outcome: Outcome) {
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

    // ---- dead letters ----

    /// Parks durably; only then is the event finished, so that the position cannot pass it before.
    fn park(&mut self, seq: Seq, handlers: Option<HandlerSet>, letter: DeadLetter) {
        self.observer
            .parked(letter.handler.as_deref(), &letter.reason);
        self.parking.park(seq, handlers, letter);
    }

    // ---- position ----

    /// Lets go what is finished and, when it is time, writes how far that is.
    fn follow(&mut self) {
        let passed = self.tracker.advance();
        self.in_flight.release(passed.events, passed.bytes);
        // What waits for its schema is not in the tracker yet.
        let idle = self.tracker.is_idle() && self.in_flight.held_now().0 == 0;
        if idle && *self.stream_state.borrow() == State::Live {
            self.caught_up_at = Some(SystemTime::now());
        }
        self.position.follow(
            &self.tracker,
            passed.occurred_at,
            self.caught_up_at,
            &self.finished_before,
        );
    }

    fn wake_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let handlers = self.runs.iter().filter_map(|run| run.wake_at(now));
        handlers.chain(self.position.wake_at()).min()
    }

    /// Nothing under way, and nothing that could be begun before the handlers' next attempt.
    fn is_drained(&self) -> bool {
        self.calls.is_empty() && self.parking.is_idle()
    }

    fn fenced(self) -> Ended {
        warn!(
            subscription = self.lease.key.name,
            epoch = self.lease.epoch,
            "another worker has taken this subscription over: this one lets it go"
        );
        self.parking.abandon();
        Ended::Fenced
    }

    async fn finish(mut self) -> Ended {
        self.parking.abandon();
        self.calls.abort_all();
        self.follow();
        let stopped = State::Stopped;
        let last = self.position.write_now(
            &self.tracker,
            self.caught_up_at,
            &self.finished_before,
            &stopped,
        );
        match tokio::time::timeout(LAST_WRITE_LIMIT, last).await {
            Ok(Written::Done) => info!(
                subscription = self.lease.key.name,
                position = self.tracker.position().map(tracing::field::display),
                unfinished = self.in_flight.held_now().0,
                "stopped"
            ),
            Ok(Written::Fenced) => return Ended::Fenced,
            Ok(Written::Failed) | Err(_) => warn!(
                subscription = self.lease.key.name,
                "stopped, but the store did not take the last position: the events since will come again"
            ),
        }
        Ended::Stopped
    }

    // ---- for people ----

    fn tick(&mut self) {
        let (events, bytes) = self.in_flight.held_now();
        self.observer.in_flight(events, bytes);
        let live = *self.stream_state.borrow() == State::Live;
        let oldest = self
            .tracker
            .oldest_unfinished()
            .or_else(|| self.in_flight.waits_for_schema_since());
        let behind_since = self.caught_up_at.unwrap_or(self.behind_since);
        let since = match (oldest, live) {
            (oldest, true) => oldest,
            (Some(oldest), false) => Some(oldest.min(behind_since)),
            (None, false) => Some(behind_since),
        };
        let lag = since.map_or(Duration::ZERO, |since| since.elapsed().unwrap_or_default());
        self.observer.lag(lag);
        self.show_state();
    }

    /// The stream's state, unless a handler has stopped the subscription or takes nothing (rule 12), or the
    /// store takes nothing.
    fn show_state(&mut self) {
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
        let why = match stream {
            State::Live => stopped.map(str::to_owned).or_else(down),
            _ => stopped.map(str::to_owned),
        };
        let state = why.map_or(stream, |detail| State::Blocked { detail });
        self.position.show(&state);
        // Not for the store itself: by the time it could take this, it is over.
        let state = match (self.position.failing(), state) {
            (Some(why), State::Live) => State::Blocked {
                detail: format!("events are handled, but the position cannot be stored: {why}"),
            },
            (_, state) => state,
        };
        self.shown_state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}

/// A task of ours ended without a result. Calls and parking catch what they can and are aborted only at the
/// end, so this is a bug: it must end the subscription, and with it the process, not stall it in silence.
pub(super) fn end_of_task(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => std::panic::resume_unwind(Box::new(error.to_string())),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
