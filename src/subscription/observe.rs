//! What a subscription tells its metrics. Handles are made once, because some are touched for each event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, Histogram};

use super::samples::Seen;
use crate::telemetry::metrics::{self as m, seconds_since_1970};

/// How an event left the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Handled,
    Parked,
    /// No handler wants it.
    Filtered,
}

/// One subscription's metrics; cheap to clone.
#[derive(Clone)]
pub(super) struct Observer(Arc<Handles>);

#[derive(Clone)]
struct Handles {
    subscription: String,
    /// What is posted to the store for charts.
    seen: Arc<Seen>,
    received: Counter,
    handled: Counter,
    parked: Counter,
    filtered: Counter,
    lag: Gauge,
    last_message: Gauge,
    /// That gauge tells something.
    heard: Arc<AtomicBool>,
    legs: Legs,
    kept: Gauge,
    events: Gauge,
    bytes: Gauge,
    credits: Gauge,
    letters: Gauge,
    oldest_letter: Gauge,
    /// In the order of the configuration.
    handlers: Vec<HandlerHandles>,
}

/// The legs of an event's way.
#[derive(Clone)]
struct Legs {
    bus: Histogram,
    wait: Histogram,
    handler: Histogram,
    position: Histogram,
}

#[derive(Clone)]
struct HandlerHandles {
    name: String,
    down: Gauge,
    time: Histogram,
    retries: Counter,
    handled: Counter,
    retried: Counter,
    filtered: Counter,
}

impl Legs {
    fn of(subscription: &str) -> Self {
        let leg = |leg| m::LAG_LEG.histogram(&[subscription, leg]);
        Self {
            bus: leg("bus"),
            wait: leg("wait"),
            handler: leg("handler"),
            position: leg("position"),
        }
    }

    fn none() -> Self {
        Self {
            bus: Histogram::noop(),
            wait: Histogram::noop(),
            handler: Histogram::noop(),
            position: Histogram::noop(),
        }
    }
}

impl HandlerHandles {
    fn of(subscription: &str, name: &str) -> Self {
        let events = |outcome| m::HANDLER_EVENTS.counter(&[subscription, name, outcome]);
        Self {
            name: name.to_owned(),
            down: m::HANDLER_DOWN.gauge(&[subscription, name]),
            time: m::HANDLER_TIME.histogram(&[subscription, name]),
            retries: m::HANDLER_RETRIES.counter(&[subscription, name]),
            handled: events("handled"),
            retried: events("retried"),
            filtered: events("filtered"),
        }
    }
}

impl Observer {
    /// Of a subscription that begins to run here, with the handlers of these names. What is not known yet is NaN,
    /// for zero would say that all is well, or that it is very bad.
    pub(super) fn new<'a>(subscription: &str, handlers: impl IntoIterator<Item = &'a str>) -> Self {
        let new = Self(Arc::new(Handles {
            subscription: subscription.to_owned(),
            seen: Arc::default(),
            received: m::EVENTS_RECEIVED.counter(&[subscription]),
            handled: m::EVENTS_FINISHED.counter(&[subscription, "handled"]),
            parked: m::EVENTS_FINISHED.counter(&[subscription, "parked"]),
            filtered: m::EVENTS_FINISHED.counter(&[subscription, "filtered"]),
            lag: m::LAG.gauge(&[subscription]),
            last_message: m::LAST_MESSAGE.gauge(&[subscription]),
            heard: Arc::default(),
            legs: Legs::of(subscription),
            kept: m::POSITION_KEPT.gauge(&[subscription]),
            events: m::IN_FLIGHT_EVENTS.gauge(&[subscription]),
            bytes: m::IN_FLIGHT_BYTES.gauge(&[subscription]),
            credits: m::CREDITS_OUTSTANDING.gauge(&[subscription]),
            letters: m::DEAD_LETTERS_OPEN.gauge(&[subscription]),
            oldest_letter: m::DEAD_LETTERS_OLDEST.gauge(&[subscription]),
            handlers: handlers
                .into_iter()
                .map(|name| HandlerHandles::of(subscription, name))
                .collect(),
        }));
        new.ended();
        new
    }

    /// For a side replay, whose events count like any others, but whose stream is not what the gauges show, and
    /// whose events are late because a person wants it so.
    pub(super) fn of_replay(&self) -> Self {
        Self(Arc::new(Handles {
            last_message: Gauge::noop(),
            heard: Arc::default(),
            legs: Legs::none(),
            letters: Gauge::noop(),
            oldest_letter: Gauge::noop(),
            lag: Gauge::noop(),
            events: Gauge::noop(),
            bytes: Gauge::noop(),
            credits: Gauge::noop(),
            kept: Gauge::noop(),
            ..(*self.0).clone()
        }))
    }

    pub(super) fn received(&self, events: usize) {
        self.0.received.increment(events as u64);
        self.0.seen.received(events as u64);
    }

    /// What was seen since it was last posted.
    pub(super) fn seen(&self) -> Arc<Seen> {
        self.0.seen.clone()
    }

    /// There is a stream since this time. Before anything came, that is what silence counts from.
    pub(super) fn listens(&self, since: SystemTime) {
        if !self.0.heard.swap(true, Ordering::Relaxed) {
            self.0.last_message.set(seconds_since_1970(since));
        }
    }

    /// The stream brought something at this time: events, or a keepalive.
    pub(super) fn heard(&self, at: SystemTime) {
        self.0.heard.store(true, Ordering::Relaxed);
        self.0.last_message.set(seconds_since_1970(at));
    }

    /// An event was received; `committed_at` is when the org committed it, which change events tell.
    pub(super) fn came(&self, received_at: SystemTime, committed_at: Option<SystemTime>) {
        if let Some(committed_at) = committed_at {
            // The two clocks differ: a little less than nothing is nothing.
            let took = received_at.duration_since(committed_at).unwrap_or_default();
            self.0.legs.bus.record(took);
        }
    }

    /// So many events that were received then are given to a handler for the first time.
    pub(super) fn handed_over(&self, received_at: SystemTime, now: SystemTime, events: usize) {
        let waited = now.duration_since(received_at).unwrap_or_default();
        self.0.legs.wait.record_many(waited, events);
    }

    /// All handlers are done with so many events, so long after their first hand-over.
    pub(super) fn done(&self, took: Duration, events: usize) {
        self.0.legs.handler.record_many(took, events);
    }

    /// A position that has passed so many events was stored so long after they were finished.
    pub(super) fn stored(&self, events: u64, waited: Duration) {
        let events = usize::try_from(events).unwrap_or(usize::MAX);
        self.0.legs.position.record_many(waited, events);
    }

    /// The same event came again after a reconnect, and was dropped because it is in flight already.
    pub(super) fn repeat(&self) {
        m::EVENTS_FINISHED
            .counter(&[&self.0.subscription, "repeat"])
            .increment(1);
    }

    pub(super) fn finished(&self, outcome: Outcome, events: u64) {
        match outcome {
            Outcome::Handled => self.0.handled.increment(events),
            Outcome::Parked => self.0.parked.increment(events),
            Outcome::Filtered => self.0.filtered.increment(events),
        }
    }

    pub(super) fn parked(&self, handler: Option<&str>, reason: &str) {
        m::event_parked(&self.0.subscription, handler, reason);
        self.0.seen.parked();
    }

    /// So many dead letters are open no more: `handled` or `discarded`.
    pub(super) fn letters_resolved(&self, outcome: &'static str, count: usize) {
        if count > 0 {
            m::letters_resolved(&self.0.subscription, outcome, count as u64);
        }
    }

    /// So many dead letters are open, and the event of the oldest was received then.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn letters_open(&self, count: usize, oldest: Option<SystemTime>) {
        self.0.letters.set(count as f64);
        let oldest = oldest.map_or(f64::NAN, seconds_since_1970);
        self.0.oldest_letter.set(oldest);
    }

    pub(super) fn lag(&self, lag: Duration) {
        self.0.lag.set(lag.as_secs_f64());
        self.0.seen.lag(lag);
    }

    /// How many seconds the bus still keeps what follows the position.
    pub(super) fn position_kept(&self, seconds: f64) {
        self.0.kept.set(seconds);
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn in_flight(&self, events: usize, bytes: usize) {
        self.0.events.set(events as f64);
        self.0.bytes.set(bytes as f64);
    }

    pub(super) fn credits(&self, outstanding: u32) {
        self.0.credits.set(f64::from(outstanding));
    }

    /// It does not run here any more: what its gauges said is another worker's to say. Zero would say that all
    /// is well.
    pub(super) fn ended(&self) {
        self.0.lag.set(f64::NAN);
        self.0.last_message.set(f64::NAN);
        self.0.heard.store(false, Ordering::Relaxed);
        self.in_flight(0, 0);
        self.credits(0);
        self.position_kept(f64::NAN);
        self.letters_open(0, None);
        for index in 0..self.0.handlers.len() {
            self.handler_down(index, false);
        }
    }

    pub(super) fn reconnect(&self, reason: &'static str) {
        m::reconnected(&self.0.subscription, reason);
    }

    /// A handler has answered after so long: so many events are handled, and so many are to be handed over again.
    pub(super) fn handler_call(
        &self,
        handler: usize,
        took: Duration,
        handled: usize,
        again: usize,
    ) {
        let Some(handles) = self.0.handlers.get(handler) else {
            return;
        };
        handles.time.record(took);
        handles.handled.increment(handled as u64);
        handles.retries.increment(again as u64);
        handles.retried.increment(again as u64);
    }

    /// A handler's events were given up for a reason, `rejected` or `exhausted`.
    pub(super) fn handler_gave_up(&self, handler: usize, reason: &'static str, events: usize) {
        if let Some(handles) = self.0.handlers.get(handler) {
            m::HANDLER_EVENTS
                .counter(&[&self.0.subscription, &handles.name, reason])
                .increment(events as u64);
        }
    }

    /// A handler does not want an event.
    pub(super) fn handler_left_out(&self, handler: usize) {
        if let Some(handles) = self.0.handlers.get(handler) {
            handles.filtered.increment(1);
        }
    }

    /// A handler fails for everything, or does not.
    pub(super) fn handler_down(&self, handler: usize, down: bool) {
        if let Some(handles) = self.0.handlers.get(handler) {
            handles.down.set(if down { 1.0 } else { 0.0 });
        }
    }

    pub(super) fn decode_failure(&self, reason: &'static str) {
        m::decode_failure(&self.0.subscription, reason);
    }

    pub(super) fn ignored_bits(&self, bits: u32) {
        m::bitmap_bits_ignored(bits);
    }

    pub(super) fn hole(&self, kind: &'static str) {
        m::hole_recorded(&self.0.subscription, kind);
    }
}

/// What the store says of a subscription that nobody runs: how long ago it was last caught up, and how long the bus
/// keeps what follows its position.
pub(super) fn from_afar(subscription: &str, lag: Option<Duration>, kept: Option<f64>) {
    if let Some(lag) = lag {
        m::LAG.gauge(&[subscription]).set(lag.as_secs_f64());
    }
    if let Some(kept) = kept {
        m::POSITION_KEPT.gauge(&[subscription]).set(kept);
    }
}

/// Another worker runs it, or none: what this one said from afar is not so any more.
pub(super) fn not_from_here(subscription: &str) {
    m::LAG.gauge(&[subscription]).set(f64::NAN);
    m::POSITION_KEPT.gauge(&[subscription]).set(f64::NAN);
}
