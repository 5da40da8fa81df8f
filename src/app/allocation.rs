//! Keeps an eye on the org's daily event deliveries: one of all workers asks the org, and each shows what was said.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use crate::event::OrgId;
use crate::salesforce::limits::{Limits, LimitsError};
use crate::store::{AllocationReading, Store, StoreError};
use crate::telemetry::metrics::{
    DELIVERIES_ALLOCATED, DELIVERIES_EXHAUSTED, DELIVERIES_REMAINING, seconds_since_1970,
};

/// How often the store is looked at; more often where the org is asked more often.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How often an org is asked that does not show its limits to this user.
const NOT_SHOWN_EVERY: Duration = Duration::from_secs(3600);

/// How far back readings are of use.
const READ_BACK: Duration = Duration::from_secs(3600);

/// Where so many readings in a row are missing, the last one says nothing of now.
const MISSING: u32 = 4;

/// Who asks, and where it is kept.
pub(super) struct Allocation {
    pub(super) store: Arc<dyn Store>,
    pub(super) limits: Limits,
    pub(super) org_id: OrgId,
    /// How often the org is asked.
    pub(super) interval: Duration,
}

/// Why the org did not tell, which is said once.
#[derive(Default)]
struct Trouble {
    said: Option<String>,
    /// The org is not asked before.
    not_before: Option<Instant>,
}

impl Allocation {
    /// Asks and shows, until it is dropped.
    pub(super) async fn watch(self) -> Infallible {
        let mut trouble = Trouble::default();
        let mut failing = false;
        let mut known = Vec::new();
        loop {
            match self.look(&mut trouble).await {
                Ok(readings) => {
                    failing = false;
                    known = readings;
                }
                Err(error) if !std::mem::replace(&mut failing, true) => info!(
                    error = %error,
                    "readings of the org's event deliveries could not be exchanged with the store"
                ),
                Err(_) => {}
            }
            show(self.fresh(&known));
            let pause = self.interval.min(LOOK_EVERY);
            tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }

    /// The readings that there are, and one more if it is time and this worker's turn.
    async fn look(&self, trouble: &mut Trouble) -> Result<Vec<AllocationReading>, StoreError> {
        let now = SystemTime::now();
        let back = READ_BACK.max(self.interval * MISSING);
        let since = now.checked_sub(back).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut readings = self.store.allocation(&self.org_id, since).await?;
        // The database's clock may be ahead of ours: no reason to wait until ours is there, for the database itself
        // tells whether it is time.
        let is_new = |one: &AllocationReading| {
            now.duration_since(one.at)
                .is_ok_and(|age| age < self.interval)
        };
        let may_ask = trouble.not_before.is_none_or(|at| Instant::now() >= at);
        if readings.last().is_some_and(is_new) || !may_ask {
            return Ok(readings);
        }
        let claimed = self.store.claim_allocation(&self.org_id, self.interval);
        if let Some(at) = claimed.await?
            && let Some(reading) = self.ask(trouble, at).await
        {
            self.store.record_allocation(&self.org_id, &reading).await?;
            readings.push(reading);
        }
        Ok(readings)
    }

    /// What the org says `at` this moment of the database's clock.
    async fn ask(&self, trouble: &mut Trouble, at: SystemTime) -> Option<AllocationReading> {
        let error = match self.limits.deliveries().await {
            Ok(deliveries) => {
                *trouble = Trouble::default();
                return Some(AllocationReading {
                    at,
                    max: deliveries.max,
                    remaining: deliveries.remaining,
                });
            }
            Err(error) => error,
        };
        let text = error.to_string();
        match error {
            LimitsError::NotShown(_) => {
                trouble.not_before = Some(Instant::now() + NOT_SHOWN_EVERY.max(self.interval));
                trouble.say(&text, || {
                    warn!(
                        error = text,
                        "how much is left of the org's event deliveries is not known; the org is asked again every hour"
                    );
                });
            }
            LimitsError::Unavailable(_) => trouble.say(&text, || {
                info!(
                    error = text,
                    "how much is left of the org's event deliveries is not known just now"
                );
            }),
        }
        None
    }

    /// The readings, where the last one says anything of now.
    fn fresh<'a>(&self, readings: &'a [AllocationReading]) -> &'a [AllocationReading] {
        let last = readings.last().map(|one| one.at);
        let age = last.map(|at| at.elapsed().unwrap_or_default());
        match age {
            Some(age) if age <= self.interval * MISSING => readings,
            _ => &[],
        }
    }
}

impl Trouble {
    /// Says what was not said last.
    fn say(&mut self, text: &str, say: impl FnOnce()) {
        if self.said.as_deref() != Some(text) {
            say();
            self.said = Some(text.to_owned());
        }
    }
}

/// Sets the gauges; what is not known is NaN, for zero would say that nothing is left.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn show(readings: &[AllocationReading]) {
    let last = readings.last();
    let count = |count: Option<u64>| count.map_or(f64::NAN, |count| count as f64);
    let exhausted = AllocationReading::exhausted_at(readings);
    for (metric, value) in [
        (&DELIVERIES_ALLOCATED, count(last.map(|one| one.max))),
        (&DELIVERIES_REMAINING, count(last.map(|one| one.remaining))),
        (
            &DELIVERIES_EXHAUSTED,
            exhausted.map_or(f64::NAN, seconds_since_1970),
        ),
    ] {
        metric.gauge(&[]).set(value);
    }
}
