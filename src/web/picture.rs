//! What everyone is shown: one look at the store for all that ask at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::event::OrgId;
use crate::status::text::since;
use crate::status::{Bus, Overview, Subscription};
use crate::store::{AllocationReading, Sample, Store, StoreError, SubscriptionKey};
use crate::telemetry::exposition::Exposition;
use crate::telemetry::metrics;

/// How old a look may be for those that ask.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// How old samples and readings may be: they change once a minute or less often.
const HISTORY_FRESH: Duration = Duration::from_secs(20);

/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(5);

/// How far back the charts go.
pub(super) const HISTORY: Duration = Duration::from_secs(6 * 60 * 60);

/// How far back readings of the allocation are of use: the org counts over this time.
const ALLOCATION: Duration = Duration::from_secs(24 * 60 * 60);

/// How old a worker's metrics may be. It posts them every 15 s.
pub(super) const SNAPSHOT_FRESH: Duration = Duration::from_secs(60);

/// What is known, at one moment.
pub(super) struct Picture {
    /// Subscriptions and workers.
    pub(super) overview: Overview,
    /// What living workers posted, by name.
    pub(super) snapshots: Vec<Seen>,
    /// What changes seldom.
    pub(super) history: Arc<History>,
}

/// What living workers posted.
pub(super) struct Seen {
    /// The worker's name.
    pub(super) worker: String,
    /// Random for each start of its process.
    pub(super) holder: String,
    /// When.
    pub(super) at: SystemTime,
    /// Its metrics; `None` where they are too old, or cannot be read.
    pub(super) metrics: Option<Exposition>,
}

/// Samples and readings.
#[derive(Default)]
pub(super) struct History {
    /// Of each subscription, by name, oldest first.
    pub(super) samples: BTreeMap<String, Vec<Sample>>,
    /// What is left of the allocation, oldest first.
    pub(super) allocation: Vec<AllocationReading>,
}

/// What somebody who asks is given.
#[derive(Clone)]
pub(super) struct Look {
    /// The last picture that could be made; `None` where there was none yet.
    pub(super) picture: Option<Arc<Picture>>,
    /// Why there is no newer one: the store did not answer.
    pub(super) away: Option<Arc<str>>,
}

/// Makes pictures, at most one at a time, and at most one in two seconds.
pub(super) struct Pictures {
    store: Arc<dyn Store>,
    bus: Bus,
    held: Mutex<Held>,
}

struct Held {
    looked_at: Option<Instant>,
    look: Look,
    history_at: Option<Instant>,
    history: Arc<History>,
}

impl Pictures {
    pub(super) fn new(store: Arc<dyn Store>, bus: Bus) -> Self {
        Self {
            store,
            bus,
            held: Mutex::new(Held {
                looked_at: None,
                look: Look {
                    picture: None,
                    away: None,
                },
                history_at: None,
                history: Arc::default(),
            }),
        }
    }

    /// How long the bus keeps what it has.
    pub(super) fn bus(&self) -> Bus {
        self.bus
    }

    /// What is known now. Takes five seconds at most, and a little longer where others wait for the same.
    pub(super) async fn look(&self) -> Look {
        // Whoever waits here finds what the one before has seen.
        let mut held = self.held.lock().await;
        let fresh = |at: Instant| at.elapsed() < FRESH;
        if held.looked_at.is_some_and(fresh) {
            return held.look.clone();
        }
        let made = tokio::time::timeout(LIMIT, self.make(&mut held)).await;
        held.looked_at = Some(Instant::now());
        let was_away = held.look.away.is_some();
        match made.unwrap_or_else(|_| Err(too_slow())) {
            Ok(picture) => {
                if was_away {
                    info!("the store answers again");
                }
                held.look = Look {
                    picture: Some(Arc::new(picture)),
                    away: None,
                };
            }
            Err(error) => {
                if !was_away {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the store does not answer"
                    );
                }
                held.look.away = Some(error.to_string().into());
            }
        }
        held.look.clone()
    }

    /// After somebody changed something: who asks next is shown it.
    pub(super) async fn forget(&self) {
        self.held.lock().await.looked_at = None;
    }

    async fn make(&self, held: &mut Held) -> Result<Picture, StoreError> {
        let Bus { retention, warning } = self.bus;
        let overview = Overview::read(&*self.store, retention, warning).await?;
        let old = |at: Instant| at.elapsed() >= HISTORY_FRESH;
        let names = overview.subscriptions.iter().map(|one| &one.name);
        let unknown = names
            .clone()
            .any(|name| !held.history.samples.contains_key(name));
        if held.history_at.is_none_or(old) || unknown {
            held.history = Arc::new(self.history(&overview).await?);
            held.history_at = Some(Instant::now());
        }
        let now = SystemTime::now();
        let snapshots = self.store.snapshots().await?.into_iter().map(|one| {
            let fresh = since(one.at, now) <= SNAPSHOT_FRESH;
            Seen {
                metrics: fresh.then(|| read(&one.worker, &one.body)).flatten(),
                worker: one.worker,
                holder: one.holder,
                at: one.at,
            }
        });
        Ok(Picture {
            snapshots: snapshots.collect(),
            history: held.history.clone(),
            overview,
        })
    }

    async fn history(&self, overview: &Overview) -> Result<History, StoreError> {
        let now = SystemTime::now();
        let mut history = History::default();
        for one in &overview.subscriptions {
            let samples = match &one.key {
                Some(key) => self.samples(key, now).await?,
                None => Vec::new(),
            };
            history.samples.insert(one.name.clone(), samples);
        }
        if let Some(org_id) = self.store.bound_org().await? {
            history.allocation = self.allocation(&org_id, now).await?;
        }
        Ok(history)
    }

    async fn samples(
        &self,
        key: &SubscriptionKey,
        now: SystemTime,
    ) -> Result<Vec<Sample>, StoreError> {
        self.store.samples(key, now - HISTORY).await
    }

    async fn allocation(
        &self,
        org_id: &OrgId,
        now: SystemTime,
    ) -> Result<Vec<AllocationReading>, StoreError> {
        self.store.allocation(org_id, now - ALLOCATION).await
    }
}

fn too_slow() -> StoreError {
    let limit = LIMIT.as_secs();
    StoreError::Unavailable(format!("the database did not answer within {limit} s"))
}

fn read(worker: &str, body: &str) -> Option<Exposition> {
    match Exposition::parse(body) {
        Ok(metrics) => Some(metrics),
        Err(error) => {
            warn!(
                worker,
                error = &error as &dyn std::error::Error,
                "metrics of a worker cannot be read"
            );
            None
        }
    }
}

impl Picture {
    /// How far a subscription is behind: as its owner knows it, who sees that nothing is outstanding on a quiet
    /// topic; else as the store does.
    pub(super) fn lag(&self, one: &Subscription) -> Option<Duration> {
        let own = self.metrics_of_owner(one);
        let own = own.and_then(|metrics| gauge(metrics, metrics::LAG.name, &one.name));
        own.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .or(one.lag)
    }

    /// The metrics of the worker that runs a subscription, where one does.
    pub(super) fn metrics_of_owner(&self, one: &Subscription) -> Option<&Exposition> {
        let holder = one.holder.as_ref().filter(|_| one.held)?;
        let seen = self.snapshots.iter().find(|seen| seen.holder == *holder)?;
        seen.metrics.as_ref()
    }

    /// A subscription's samples.
    pub(super) fn samples(&self, name: &str) -> &[Sample] {
        let samples = self.history.samples.get(name);
        samples.map_or(&[], Vec::as_slice)
    }
}

/// The value of a gauge for a subscription, where it is a number.
fn gauge(metrics: &Exposition, name: &str, subscription: &str) -> Option<f64> {
    let samples = &metrics.family(name)?.samples;
    let ours = samples
        .iter()
        .find(|sample| sample.label("subscription") == Some(subscription))?;
    Some(ours.value).filter(|value| value.is_finite())
}
