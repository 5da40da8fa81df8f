//! What a subscription tells its metrics. Handles are made once, because some are touched for each event.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};

use crate::telemetry::metrics as m;

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

struct Handles {
    subscription: String,
    received: Counter,
    handled: Counter,
    parked: Counter,
    filtered: Counter,
    lag: Gauge,
    kept: Gauge,
    events: Gauge,
    bytes: Gauge,
    credits: Gauge,
    letters: Gauge,
}

impl Observer {
    pub(super) fn new(subscription: &str) -> Self {
        Self(Arc::new(Handles {
            subscription: subscription.to_owned(),
            received: m::EVENTS_RECEIVED.counter(&[subscription]),
            handled: m::EVENTS_FINISHED.counter(&[subscription, "handled"]),
            parked: m::EVENTS_FINISHED.counter(&[subscription, "parked"]),
            filtered: m::EVENTS_FINISHED.counter(&[subscription, "filtered"]),
            lag: m::LAG.gauge(&[subscription]),
            kept: m::POSITION_KEPT.gauge(&[subscription]),
            events: m::IN_FLIGHT_EVENTS.gauge(&[subscription]),
            bytes: m::IN_FLIGHT_BYTES.gauge(&[subscription]),
            credits: m::CREDITS_OUTSTANDING.gauge(&[subscription]),
            letters: m::DEAD_LETTERS_OPEN.gauge(&[subscription]),
        }))
    }

    /// For a side replay, whose events count like any others, but whose stream is not what the gauges show.
    pub(super) fn of_replay(&self) -> Self {
        Self(Arc::new(Handles {
            subscription: self.0.subscription.clone(),
            received: self.0.received.clone(),
            handled: self.0.handled.clone(),
            parked: self.0.parked.clone(),
            filtered: self.0.filtered.clone(),
            letters: Gauge::noop(),
            lag: Gauge::noop(),
            events: Gauge::noop(),
            bytes: Gauge::noop(),
            credits: Gauge::noop(),
            kept: Gauge::noop(),
        }))
    }

    pub(super) fn received(&self, events: usize) {
        self.0.received.increment(events as u64);
    }

    /// The same event came again after a reconnect, and was dropped because it is in flight already.
    pub(super) fn repeat(&self) {
        m::EVENTS_FINISHED
            .counter(&[&self.0.subscription, "repeat"])
            .increment(1);
    }

    pub(super) fn finished(&self, outcome: Outcome) {
        match outcome {
            Outcome::Handled => self.0.handled.increment(1),
            Outcome::Parked => self.0.parked.increment(1),
            Outcome::Filtered => self.0.filtered.increment(1),
        }
    }

    pub(super) fn parked(&self, handler: Option<&str>, reason: &str) {
        m::event_parked(&self.0.subscription, handler, reason);
    }

    /// So many dead letters are open no more: `handled` or `discarded`.
    pub(super) fn letters_resolved(&self, outcome: &'static str, count: usize) {
        if count > 0 {
            m::letters_resolved(&self.0.subscription, outcome, count as u64);
        }
    }

    /// So many dead letters are open.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn letters_open(&self, count: usize) {
        self.0.letters.set(count as f64);
    }

    pub(super) fn lag(&self, lag: Duration) {
        self.0.lag.set(lag.as_secs_f64());
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
        self.in_flight(0, 0);
        self.credits(0);
        self.position_kept(f64::NAN);
        self.letters_open(0);
    }

    pub(super) fn reconnect(&self, reason: &'static str) {
        m::reconnected(&self.0.subscription, reason);
    }

    pub(super) fn handler_call(&self, handler: &str, took: Duration, again: usize) {
        m::handler_answered(&self.0.subscription, handler, took);
        if again > 0 {
            m::handler_retries(&self.0.subscription, handler, again as u64);
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
