//! What a worker says of itself: its posted metrics tell of a subscription what its row does not, as of some seconds
//! ago.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tracing::debug;

use super::Subscription;
use super::text::since;
use crate::store::Snapshot;
use crate::telemetry::exposition::Exposition;
use crate::telemetry::metrics::{IN_FLIGHT_EVENTS, LAG, Metric};

/// How old what a worker posted may be to tell of now. It posts every 15 s.
pub(crate) const FRESH: Duration = Duration::from_secs(60);

/// What a living worker posted.
pub(crate) struct Posted {
    /// Its name.
    pub(crate) worker: String,
    /// Random for each start of its process.
    pub(crate) holder: String,
    /// When.
    pub(crate) at: SystemTime,
    /// Its metrics; `None` for what another release posts and this one does not understand.
    pub(crate) metrics: Option<Exposition>,
}

impl Posted {
    /// As the store has it.
    pub(super) fn of(snapshot: Snapshot) -> Self {
        let metrics = Exposition::parse(&snapshot.body);
        if let Err(error) = &metrics {
            debug!(
                worker = snapshot.worker,
                error = error as &dyn std::error::Error,
                "metrics of a worker cannot be read"
            );
        }
        Self {
            worker: snapshot.worker,
            holder: snapshot.holder,
            at: snapshot.at,
            metrics: metrics.ok(),
        }
    }

    /// A gauge of a subscription, where it is a number.
    fn gauge(&self, metric: &Metric, subscription: &str) -> Option<f64> {
        let samples = &self.metrics.as_ref()?.family(metric.name)?.samples;
        let ours = samples
            .iter()
            .find(|sample| sample.label("subscription") == Some(subscription))?;
        Some(ours.value).filter(|value| value.is_finite())
    }
}

/// Adds to each subscription what the worker that runs it has posted.
///
/// The row tells since when a subscription may be behind as of its last write, which on a quiet topic is some minutes ago;
/// its worker knows better. Both are true, so the shorter counts: what had caught up when the worker posted is behind
/// since then at the most. With the worker, its figures go, and the row's are left.
pub(super) fn add(subscriptions: &mut [Subscription], posted: &[Posted], now: SystemTime) {
    let posted: BTreeMap<&str, &Posted> = posted
        .iter()
        .map(|posted| (posted.holder.as_str(), posted))
        .collect();
    for one in subscriptions.iter_mut().filter(|one| one.held) {
        let of_owner = one.holder.as_deref().and_then(|holder| posted.get(holder));
        let Some(of_owner) = of_owner else { continue };
        if let Some(lag) = of_owner.gauge(&LAG, &one.name) {
            let then = Duration::try_from_secs_f64(lag).unwrap_or_default();
            let most = since(of_owner.at, now).saturating_add(then);
            one.lag = Some(one.lag.map_or(most, |lag| lag.min(most)));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a gauge of whole numbers; what is none counts as the nearest"
        )]
        let in_flight = of_owner
            .gauge(&IN_FLIGHT_EVENTS, &one.name)
            .map(|count| count as u64);
        // Of one that posts no more nobody knows what it has.
        one.in_flight = in_flight.filter(|_| since(of_owner.at, now) <= FRESH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{overview, status};

    const OWNER: &str = "0f9d5c1e-1111-4222-8333-444455556666";

    fn snapshot(holder: &str, seconds: u64, body: &str) -> Snapshot {
        Snapshot {
            holder: holder.to_owned(),
            worker: "worker.1".to_owned(),
            version: "0".to_owned(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            body: body.to_owned(),
        }
    }

    fn body(lag: &str) -> String {
        let (lags, events) = (LAG.name, IN_FLIGHT_EVENTS.name);
        format!(
            "# TYPE {lags} gauge\n{lags}{{subscription=\"orders\"}} {lag}\n\
             # TYPE {events} gauge\n{events}{{subscription=\"orders\"}} 3\n"
        )
    }

    /// Lag and events in flight at 300 s of `orders`, which had caught up at 95 s by its row.
    fn seen(snapshots: &[Snapshot]) -> (u64, Option<u64>) {
        let mut all = overview(&[status()], 300, &[&[]]);
        let posted: Vec<Posted> = snapshots.iter().cloned().map(Posted::of).collect();
        add(&mut all.subscriptions, &posted, all.at);
        let one = &all.subscriptions[0];
        (one.lag.unwrap_or_default().as_secs(), one.in_flight)
    }

    #[test]
    fn a_quiet_subscription_is_behind_since_its_worker_posted_and_not_since_its_last_write() {
        assert_eq!(seen(&[]), (205, None));
        assert_eq!(seen(&[snapshot(OWNER, 290, &body("0"))]), (10, Some(3)));
        assert_eq!(seen(&[snapshot(OWNER, 290, &body("20"))]), (30, Some(3)));
    }

    #[test]
    fn figures_of_others_and_what_is_not_understood_or_unknown_count_for_nothing() {
        assert_eq!(seen(&[snapshot("another", 290, &body("0"))]), (205, None));
        assert_eq!(seen(&[snapshot(OWNER, 290, "what is {this")]), (205, None));
        assert_eq!(seen(&[snapshot(OWNER, 290, &body("NaN"))]).0, 205);
        // One that posts no more says less than the row.
        assert_eq!(seen(&[snapshot(OWNER, 20, &body("0"))]), (205, None));
    }
}
