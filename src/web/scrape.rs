//! `/metrics`: what every living worker posted, and what the store itself tells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::App;
use super::picture::{Look, Picture};
use crate::status::{Posted, STATES, Subscription};
use crate::store::AllocationReading;
use crate::telemetry::Recorder;
use crate::telemetry::exposition::Exposition;
use crate::telemetry::metrics::stored;

/// Prometheus text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The label that says which process gave a sample.
const PROCESS: &str = "dyno";

/// All of it.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let look = app.pictures.look().await;
    let mut all = own(&app.name);
    all.merge(of(&look));
    ([(CONTENT_TYPE, TEXT)], all.to_string()).into_response()
}

/// What this process knows of itself.
fn own(name: &str) -> Exposition {
    let recorded = Recorder::install().ok().map(|recorder| recorder.render());
    let parsed = recorded.and_then(|text| Exposition::parse(&text).ok());
    let mut own = parsed.unwrap_or_default();
    own.label(PROCESS, name);
    own
}

/// What the store tells, and the workers through it.
fn of(look: &Look) -> Exposition {
    let mut all = Exposition::default();
    let picture = look.picture.as_ref().filter(|_| look.away.is_none());
    let up = if picture.is_some() { 1.0 } else { 0.0 };
    all.record(&stored::UP, &[], up);
    let Some(picture) = picture else {
        return all;
    };
    record(&mut all, picture);
    for posted in newest(picture) {
        if let Some(metrics) = &posted.metrics {
            let mut metrics = metrics.clone();
            metrics.label(PROCESS, &posted.worker);
            all.merge(metrics);
        }
    }
    all
}

/// What workers posted, one of each name: a worker that was killed is counted among the living for a while, beside the
/// one that was started in its place under its name, and two of them would be the same series twice. The last that was
/// started counts.
fn newest(picture: &Picture) -> Vec<&Posted> {
    let workers = &picture.overview.workers;
    let began = |posted: &Posted| {
        let worker = workers.iter().find(|one| one.holder == posted.holder);
        (worker.map(|one| one.started_at), posted.at)
    };
    let mut newest: BTreeMap<&str, &Posted> = BTreeMap::new();
    for posted in &picture.posted {
        let known = newest.entry(&posted.worker).or_insert(posted);
        if began(posted) > began(known) {
            *known = posted;
        }
    }
    newest.into_values().collect()
}

/// What the store tells.
fn record(all: &mut Exposition, picture: &Picture) {
    for one in &picture.overview.subscriptions {
        // One that the store never began to keep has nothing but its state.
        if one.key.is_some() {
            record_subscription(all, one);
        }
        for state in STATES {
            all.record(&stored::STATE, &[&one.name, state], is(one.state == state));
        }
    }
    all.record(
        &stored::WORKERS_ALIVE,
        &[],
        number(picture.overview.workers.len() as u64),
    );
    for posted in newest(picture) {
        all.record(
            &stored::SNAPSHOT_TIME,
            &[&posted.worker],
            timestamp(Some(posted.at)),
        );
    }
    // A reading of an hour ago, when workers still lived or the org still told, says nothing of now.
    let readings = &picture.readings;
    if let Some(last) = readings
        .last()
        .filter(|_| picture.overview.allocation.is_some())
    {
        all.record(&stored::DELIVERIES_ALLOCATED, &[], number(last.max));
        all.record(&stored::DELIVERIES_REMAINING, &[], number(last.remaining));
        let exhausted = AllocationReading::exhausted_at(readings);
        all.record(&stored::DELIVERIES_EXHAUSTED, &[], timestamp(exhausted));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn record_subscription(all: &mut Exposition, one: &Subscription) {
    let name = [one.name.as_str()];
    for (metric, value) in [
        (
            &stored::LAG,
            one.lag.map_or(f64::NAN, |lag| lag.as_secs_f64()),
        ),
        (&stored::CAUGHT_UP, timestamp(one.caught_up_at)),
        (&stored::POSITION_KEPT, one.kept_seconds.unwrap_or(f64::NAN)),
        (&stored::DEAD_LETTERS_OPEN, number(one.parked)),
        (&stored::HOLES_OPEN, number(one.holes)),
        (&stored::HELD, is(one.held)),
        (&stored::EPOCH, one.epoch as f64),
        (&stored::PAUSED, is(one.paused_at.is_some())),
    ] {
        all.record(metric, &name, value);
    }
}

fn is(so: bool) -> f64 {
    if so { 1.0 } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn number(count: u64) -> f64 {
    count as f64
}

/// Seconds since 1970; not a number where it never was.
fn timestamp(at: Option<SystemTime>) -> f64 {
    let since = at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
    since.map_or(f64::NAN, |since| since.as_secs_f64())
}
