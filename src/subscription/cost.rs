//! What a run from EARLIEST may cost: said before it begins, as far as it can be known, and never in its way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use crate::salesforce::limits::{Deliveries, Limits};
use crate::store::{Recent, Store, SubscriptionKey};

/// How long the question may take, of the org and of the store.
const LIMIT: Duration = Duration::from_secs(5);

/// Marks nearer to each other say nothing about three days.
const SHORTEST_SPAN: Duration = Duration::from_secs(600);

/// Tells people once for each beginning at EARLIEST.
pub(super) struct EarliestCost {
    limits: Limits,
    store: Arc<dyn Store>,
    key: SubscriptionKey,
    /// How long the bus keeps an event.
    retention: Duration,
    told: bool,
}

impl EarliestCost {
    pub(super) fn new(
        limits: Limits,
        store: Arc<dyn Store>,
        key: SubscriptionKey,
        retention: Duration,
    ) -> Self {
        Self {
            limits,
            store,
            key,
            retention,
            told: false,
        }
    }

    /// The subscription is about to begin anew.
    pub(super) fn begins_anew(&mut self) {
        self.told = false;
    }

    /// Says what everything that the bus keeps may cost, in at most five seconds.
    pub(super) async fn tell(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let (deliveries, recent) = tokio::join!(
            timeout(LIMIT, self.limits.deliveries()),
            timeout(LIMIT, self.store.recent_events(&self.key, self.retention)),
        );
        let (left, allocation, unknown) = match deliveries {
            Ok(Ok(Deliveries { max, remaining })) => (Some(remaining), Some(max), None),
            Ok(Err(error)) => (None, None, Some(error.to_string())),
            Err(_) => (
                None,
                None,
                Some("the org did not answer in time".to_owned()),
            ),
        };
        // A store that fails says so elsewhere.
        let recent = recent.ok().and_then(Result::ok).flatten();
        let expected = recent.and_then(|recent| expected(recent, self.retention));
        let (subscription, topic) = (&self.key.name, &self.key.topic);
        let kept_hours = self.retention.as_secs() / 3600;
        if expected
            .zip(left)
            .is_some_and(|(expected, left)| expected > left)
        {
            warn!(
                subscription,
                %topic,
                expected_events = expected,
                deliveries_left = left,
                daily_deliveries = allocation,
                kept_hours,
                "beginning at EARLIEST: the org delivers everything again that it keeps, by what came lately more \
                 than its allocation still allows; every subscriber of the org will then have to wait"
            );
        } else {
            info!(
                subscription,
                %topic,
                expected_events = expected,
                deliveries_left = left,
                daily_deliveries = allocation,
                not_known = unknown,
                kept_hours,
                "beginning at EARLIEST: the org delivers everything again that it keeps, and each delivery counts \
                 against its daily allocation"
            );
        }
    }
}

/// How many events the bus keeps, if they came evenly.
fn expected(recent: Recent, retention: Duration) -> Option<u64> {
    if recent.over < SHORTEST_SPAN {
        return None;
    }
    let millis = recent.over.as_millis();
    let events = u128::from(recent.events) * retention.as_millis().max(millis) / millis;
    u64::try_from(events).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_lately_is_taken_to_have_come_evenly() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let recent = |events, over| Recent { events, over };
        assert_eq!(expected(recent(100, hours(36)), hours(72)), Some(200));
        assert_eq!(expected(recent(100, hours(80)), hours(72)), Some(100));
        assert_eq!(expected(recent(0, hours(1)), hours(72)), Some(0));
        assert_eq!(
            expected(recent(5, Duration::from_secs(60)), hours(72)),
            None
        );
        assert_eq!(
            expected(recent(u64::MAX, hours(1)), hours(72)),
            None,
            "no number is better than a wrong one"
        );
    }
}
