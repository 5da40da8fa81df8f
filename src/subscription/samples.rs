//! What the subscriptions of this process have seen since it was last posted: for charts in `orgstream web`. Kept
//! where the gauges are set, and posted by whoever has the store to hand ([`Samples::running`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::store::{Lease, Sample};

/// What one subscription has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    lag: Option<Duration>,
    received: u64,
    parked: u64,
}

impl Seen {
    /// Its lag is this now.
    pub(super) fn lag(&self, lag: Duration) {
        let mut window = self.window();
        window.lag = window.lag.max(Some(lag));
    }

    /// So many more events were received.
    pub(super) fn received(&self, events: u64) {
        let mut window = self.window();
        window.received = window.received.saturating_add(events);
    }

    /// One more dead letter was made.
    pub(super) fn parked(&self) {
        let mut window = self.window();
        window.parked = window.parked.saturating_add(1);
    }

    /// What was seen since this was last asked, which ends now.
    pub(crate) fn take(&self, now: SystemTime) -> Sample {
        let Window {
            lag,
            received,
            parked,
        } = std::mem::take(&mut *self.window());
        Sample {
            at: now,
            lag,
            received,
            parked,
        }
    }

    /// It could not be posted: it counts for the next time.
    pub(crate) fn put_back(&self, sample: &Sample) {
        let mut window = self.window();
        window.lag = window.lag.max(sample.lag);
        window.received = window.received.saturating_add(sample.received);
        window.parked = window.parked.saturating_add(sample.parked);
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // Nothing that can panic is done under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The subscriptions that this process runs. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Samples(Arc<Mutex<Running>>);

type Running = HashMap<String, (Lease, Arc<Seen>)>;

impl Samples {
    /// A subscription runs under this lease, until the result is dropped.
    pub(super) fn begin(&self, lease: &Lease, seen: Arc<Seen>) -> Sampled {
        let entry = (lease.clone(), seen);
        self.all().insert(lease.key.name.clone(), entry);
        Sampled {
            samples: self.clone(),
            lease: lease.clone(),
        }
    }

    /// What runs now, under which lease.
    pub(crate) fn running(&self) -> Vec<(Lease, Arc<Seen>)> {
        self.all().values().cloned().collect()
    }

    fn all(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription that runs.
#[derive(Debug)]
pub(super) struct Sampled {
    samples: Samples,
    lease: Lease,
}

impl Drop for Sampled {
    fn drop(&mut self) {
        let mut all = self.samples.all();
        let name = &self.lease.key.name;
        if all.get(name).is_some_and(|(lease, _)| *lease == self.lease) {
            all.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::OrgId;
    use crate::store::SubscriptionKey;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sample_is_the_worst_lag_and_the_sum_since_the_last_one() {
        let seen = Seen::default();
        let now = SystemTime::now();
        assert_eq!(seen.take(now).lag, None);
        for lag in [2, 9, 0] {
            seen.lag(lag * SECOND);
        }
        seen.received(3);
        seen.received(4);
        seen.parked();
        let sample = Sample {
            at: now,
            lag: Some(9 * SECOND),
            received: 7,
            parked: 1,
        };
        assert_eq!(seen.take(now), sample);
        seen.lag(SECOND);
        seen.received(1);
        seen.put_back(&sample);
        let both = Sample {
            received: 8,
            ..sample
        };
        assert_eq!(seen.take(now), both);
        assert_eq!(seen.take(now).received, 0);
    }

    #[test]
    fn the_end_of_a_stint_takes_nothing_from_the_next() {
        let lease = |epoch| Lease {
            key: SubscriptionKey {
                org_id: OrgId::parse("00D58000000arpq").unwrap(),
                name: "accounts".to_owned(),
                topic: "Account".parse().unwrap(),
            },
            holder: "me".to_owned(),
            epoch,
        };
        let samples = Samples::default();
        let first = samples.begin(&lease(1), Arc::default());
        let second = samples.begin(&lease(2), Arc::default());
        drop(first);
        assert_eq!(samples.running()[0].0.epoch, 2);
        drop(second);
        assert!(samples.running().is_empty());
    }
}
