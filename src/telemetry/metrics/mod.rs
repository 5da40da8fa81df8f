//! Every metric: its name, labels and meaning in one table, and one function to record it.
//!
//! Functions do nothing until [`serve()`](super::serve()) or a recorder of one's own is there. Values of
//! labels come from small sets: names in the configuration, and words that the functions name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

/// How a metric's value behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations up to each of these bounds.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name, with prefix and base unit.
    pub name: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// How its value behaves.
    pub kind: Kind,
    /// What the value counts.
    pub unit: Unit,
    /// What it means, for `# HELP`.
    pub help: &'static str,
}

/// Makes a constant for each metric, and the table of all.
macro_rules! table {
    ($($(#[$attribute:meta])* $constant:ident = $name:literal, $kind:expr, $unit:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: concat!("orgstream_", $name),
                labels: &[$($label),*],
                kind: $kind,
                unit: Unit::$unit,
                help: $help,
            };
        )*

        /// Every metric of this table.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

pub mod process;
pub mod stored;
mod table;

pub use table::*;

impl Metric {
    fn labelled(&self, values: &[&str]) -> Vec<Label> {
        debug_assert_eq!(self.labels.len(), values.len(), "{}", self.name);
        self.labels
            .iter()
            .zip(values)
            .map(|(label, value)| Label::new(*label, (*value).to_owned()))
            .collect()
    }

    pub(crate) fn counter(&self, values: &[&str]) -> Counter {
        counter!(self.name, self.labelled(values))
    }

    pub(crate) fn gauge(&self, values: &[&str]) -> Gauge {
        gauge!(self.name, self.labelled(values))
    }

    pub(crate) fn histogram(&self, values: &[&str]) -> Histogram {
        histogram!(self.name, self.labelled(values))
    }
}

/// Gives the recorder the help text of every metric.
pub fn describe_all() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

/// States of a subscription's stream, in the words of the store and of `orgstream status`; `elsewhere` where
/// another worker runs it.
pub const STREAM_STATES: [&str; 7] = [
    "connecting",
    "live",
    "paused",
    "reconnecting",
    "blocked",
    "stopped",
    "elsewhere",
];

/// Counts an event parked; `handler` is `None` where it could not be decoded for anyone, `reason` the
/// dead letter's (`rejected`, `exhausted`, `undecodable`, …).
pub fn event_parked(subscription: &str, handler: Option<&str>, reason: &str) {
    EVENTS_PARKED
        .counter(&[subscription, handler.unwrap_or_default(), reason])
        .increment(1);
}

/// Counts dead letters that are open no more: `handled` or `discarded`.
pub fn letters_resolved(subscription: &str, outcome: &'static str, count: u64) {
    DEAD_LETTERS_RESOLVED
        .counter(&[subscription, outcome])
        .increment(count);
}

/// Sets the state of a stream, one of [`STREAM_STATES`].
pub fn stream_state(subscription: &str, state: &str) {
    for each in STREAM_STATES {
        let value = if each == state { 1.0 } else { 0.0 };
        STREAM_STATE.gauge(&[subscription, each]).set(value);
    }
}

/// Counts a reconnect; `reason` is a word for what ended the stream, never a message.
pub fn reconnected(subscription: &str, reason: &str) {
    RECONNECTS.counter(&[subscription, reason]).increment(1);
}

/// Counts events that a table had already.
pub fn append_skipped(subscription: &str, handler: &str, count: u64) {
    APPEND_SKIPPED
        .counter(&[subscription, handler])
        .increment(count);
}

/// Shows counters of a configured subscription at nothing: Prometheus sees a counter grow only from a value that it saw,
/// and the first event that cannot be decoded may be the only one. To be called before anything is posted or served, for
/// a worker may find what it counts in its first second.
pub fn begin_to_count<'a>(subscription: &str, handlers: impl IntoIterator<Item = &'a str>) {
    let begin = |metric: &Metric, values: &[&str]| metric.counter(values).increment(0);
    for (metric, name) in [
        (&DECODE_FAILURES, "decode_failures_total"),
        (&HOLES, "holes_total"),
        (&LEASE_CHANGES, "lease_changes_total"),
    ] {
        for word in words(name) {
            begin(metric, &[subscription, word]);
        }
    }
    // What cannot be decoded is parked for no handler.
    for reason in words("decode_failures_total") {
        begin(&EVENTS_PARKED, &[subscription, "", reason]);
    }
    for handler in handlers {
        for reason in ["rejected", "exhausted", "parked_behind"] {
            begin(&EVENTS_PARKED, &[subscription, handler, reason]);
        }
    }
}

/// The same of sign-ins.
pub fn begin_to_count_sign_ins() {
    for outcome in words("token_refreshes_total") {
        TOKEN_REFRESHES.counter(&[outcome]).increment(0);
    }
}

/// The words of a metric's label, by the metric's name without its prefix.
fn words(name: &str) -> &'static [&'static str] {
    let row = VALUES.iter().find(|(of, _, _)| *of == name);
    row.map_or(&[], |(_, _, words)| words)
}

/// Counts an event that cannot be decoded; `reason` is a word, never a message.
pub fn decode_failure(subscription: &str, reason: &'static str) {
    DECODE_FAILURES
        .counter(&[subscription, reason])
        .increment(1);
}

/// Counts a call of GetSchema: `fetched`, `unavailable` or `refused`.
pub fn schema_fetched(outcome: &'static str) {
    SCHEMA_FETCHES.counter(&[outcome]).increment(1);
}

/// Counts a write of a position: `written`, `failed` or `fenced`.
pub fn position_written(outcome: &'static str) {
    POSITION_WRITES.counter(&[outcome]).increment(1);
}

/// Records how long a call to the store took, and what it failed with, in one word; `operation` is the name of the
/// call.
pub fn store_called(operation: &'static str, took: Duration, failure: Option<&'static str>) {
    STORE_TIME.histogram(&[operation]).record(took);
    // From nothing on: a counter that appears with its first failure does not grow.
    STORE_ERRORS
        .counter(&[operation, "unavailable"])
        .increment(0);
    if let Some(kind) = failure {
        STORE_ERRORS.counter(&[operation, kind]).increment(1);
    }
}

/// Shows how a pool of connections to the store's database is used.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn store_connections(pool: &str, idle: usize, in_use: usize, max: usize) {
    STORE_CONNECTIONS.gauge(&[pool, "idle"]).set(idle as f64);
    STORE_CONNECTIONS
        .gauge(&[pool, "in_use"])
        .set(in_use as f64);
    STORE_CONNECTIONS_MAX.gauge(&[pool]).set(max as f64);
}

/// Counts a hole: `lost` or `gap`.
pub fn hole_recorded(subscription: &str, kind: &'static str) {
    HOLES.counter(&[subscription, kind]).increment(1);
}

/// A subscription's lease is not held by this process.
pub fn lease_not_held(subscription: &str) {
    LEASE_HELD.gauge(&[subscription]).set(0.0);
}

/// Counts a lease that this process took.
pub fn lease_taken(subscription: &str) {
    LEASE_HELD.gauge(&[subscription]).set(1.0);
    LEASE_CHANGES.counter(&[subscription, "taken"]).increment(1);
}

/// Counts a lease that this process gave back, or that another worker has taken over from it.
pub fn lease_ended(subscription: &str, taken_over: bool) {
    lease_not_held(subscription);
    let change = if taken_over { "lost" } else { "released" };
    LEASE_CHANGES.counter(&[subscription, change]).increment(1);
}

/// Counts a sign-in: `signed_in`, `refused` or `unavailable`. The first of these is when the token in use was
/// obtained.
pub fn token_refreshed(outcome: &'static str) {
    if outcome == "signed_in" {
        TOKEN_OBTAINED
            .gauge(&[])
            .set(seconds_since_1970(SystemTime::now()));
    }
    TOKEN_REFRESHES.counter(&[outcome]).increment(1);
}

/// A time as metrics give it.
pub fn seconds_since_1970(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// Counts bits of bitmaps that name no field.
pub fn bitmap_bits_ignored(bits: u32) {
    if bits > 0 {
        IGNORED_BITMAP_BITS.counter(&[]).increment(bits.into());
    }
}

/// The commit that this was built from, where whoever built it said so: `SOURCE_VERSION` is what Heroku's build
/// system sets.
pub const COMMIT: &str = match (
    option_env!("ORGSTREAM_COMMIT"),
    option_env!("SOURCE_VERSION"),
) {
    (Some(commit), _) | (None, Some(commit)) => commit,
    (None, None) => "",
};

/// Says which version runs.
pub fn build_info() {
    BUILD_INFO
        .gauge(&[env!("CARGO_PKG_VERSION"), COMMIT])
        .set(1.0);
}

#[cfg(test)]
mod tests;
