//! What everyone is shown: one look at the store for all that ask at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::event::OrgId;
use crate::status::text::since;
use crate::status::{Bus, Overview, POSTED_FRESH, Posted, Seen, Subscription, lately};
use crate::store::{AllocationReading, Sample, Store, StoreError};
use crate::telemetry::exposition::Exposition;

/// How old a look may be for those that ask.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// How old samples may be: they change once a minute.
const HISTORY_FRESH: Duration = Duration::from_secs(20);

/// How long a look may take, and how long the samples, which are many: both are less than a page waits for a word.
const LIMIT: Duration = Duration::from_secs(5);
const HISTORY_LIMIT: Duration = Duration::from_secs(3);

/// How far back the charts go.
pub(super) const HISTORY: Duration = Duration::from_secs(6 * 60 * 60);

/// What is known, at one moment.
pub(super) struct Picture {
    /// Subscriptions and workers.
    pub(super) overview: Overview,
    /// What living workers posted, by name; without metrics where those are too old.
    pub(super) posted: Vec<Posted>,
    /// What was left of the allocation, oldest first.
    pub(super) readings: Vec<AllocationReading>,
}

/// Samples of each subscription, by name, oldest first.
#[derive(Default)]
pub(super) struct History(BTreeMap<String, Vec<Sample>>);

/// What somebody who asks is given.
#[derive(Clone, Default)]
pub(super) struct Look {
    /// The last picture that could be made; `None` where there was none yet.
    pub(super) picture: Option<Arc<Picture>>,
    /// Why there is no newer one.
    pub(super) away: Option<Away>,
    /// What charts show; nothing for those that do not ask for it.
    pub(super) history: Arc<History>,
}

/// Why the store tells nothing.
#[derive(Clone)]
pub(super) struct Away {
    /// In a few words.
    pub(super) what: &'static str,
    /// What it said.
    pub(super) why: Arc<str>,
}

impl Away {
    fn of(error: &StoreError) -> Self {
        Self {
            what: what(error),
            why: error.to_string().into(),
        }
    }
}

/// What is wrong with a store that gave this error, in a few words.
pub(super) fn what(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotMigrated(_) => "The database is not migrated",
        _ => "The database does not answer",
    }
}

/// Makes pictures, at most one at a time, and at most one in two seconds.
pub(super) struct Pictures(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    bus: Bus,
    held: Mutex<Held>,
    history: Mutex<HeldHistory>,
}

#[derive(Default)]
struct Held {
    looked_at: Option<Instant>,
    look: Look,
}

#[derive(Default)]
struct HeldHistory {
    read_at: Option<Instant>,
    history: Arc<History>,
}

impl Pictures {
    pub(super) fn new(store: Arc<dyn Store>, bus: Bus) -> Self {
        Self(Arc::new(Inner {
            store,
            bus,
            held: Mutex::default(),
            history: Mutex::default(),
        }))
    }

    /// How long the bus keeps what it has.
    pub(super) fn bus(&self) -> Bus {
        self.0.bus
    }

    /// What is known now. Takes five seconds at most, and a little longer where others wait for the same.
    pub(super) async fn look(&self) -> Look {
        let inner = self.0.clone();
        // In a task of its own: whoever asked may go away at any time, and the store is not to be left in the middle
        // of a transaction each time that somebody does.
        let looked = tokio::spawn(async move { inner.look().await }).await;
        looked.unwrap_or_else(|_| Look {
            away: Some(Away::of(&StoreError::Unavailable(
                "nobody looked".to_owned(),
            ))),
            ..Look::default()
        })
    }

    /// The same with what charts show. Where that cannot be read, it is what was read last.
    pub(super) async fn look_back(&self) -> Look {
        let mut look = self.look().await;
        let org_id = look.picture.as_ref().and_then(|picture| picture.org_id());
        let (inner, away) = (self.0.clone(), look.away.is_some());
        let read = tokio::spawn(async move { inner.history(org_id.filter(|_| !away)).await }).await;
        look.history = read.unwrap_or_default();
        look
    }

    /// After somebody changed something: who asks next is shown it.
    pub(super) async fn forget(&self) {
        self.0.held.lock().await.looked_at = None;
    }
}

impl Inner {
    async fn look(&self) -> Look {
        // Whoever waits here finds what the one before has seen.
        let mut held = self.held.lock().await;
        let fresh = |at: Instant| at.elapsed() < FRESH;
        if held.looked_at.is_some_and(fresh) {
            return held.look.clone();
        }
        let made = tokio::time::timeout(LIMIT, Seen::read(&*self.store, self.bus)).await;
        held.looked_at = Some(Instant::now());
        let was_away = held.look.away.is_some();
        match made.unwrap_or_else(|_| Err(too_slow())) {
            Ok(seen) => {
                if was_away {
                    info!("the store answers again");
                }
                held.look.picture = Some(Arc::new(Picture::of(seen)));
                held.look.away = None;
            }
            Err(error) => {
                if !was_away {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the store does not answer"
                    );
                }
                held.look.away = Some(Away::of(&error));
            }
        }
        held.look.clone()
    }

    /// Samples of this org's subscriptions; what was read last where it is none.
    async fn history(&self, org_id: Option<OrgId>) -> Arc<History> {
        let mut held = self.history.lock().await;
        let fresh = |at: Instant| at.elapsed() < HISTORY_FRESH;
        let Some(org_id) = org_id.filter(|_| !held.read_at.is_some_and(fresh)) else {
            return held.history.clone();
        };
        let back = std::time::SystemTime::now() - HISTORY;
        let read = tokio::time::timeout(HISTORY_LIMIT, self.store.samples(&org_id, back)).await;
        held.read_at = Some(Instant::now());
        match lately(read.unwrap_or_else(|_| Err(too_slow()))) {
            Ok(samples) => held.history = Arc::new(History(samples)),
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "the samples for the charts cannot be read"
            ),
        }
        held.history.clone()
    }
}

fn too_slow() -> StoreError {
    let limit = LIMIT.as_secs();
    StoreError::Unavailable(format!("the database did not answer within {limit} s"))
}

impl Picture {
    fn of(seen: Seen) -> Self {
        let mut posted = seen.posted;
        for one in &mut posted {
            if since(one.at, seen.overview.at) > POSTED_FRESH {
                one.metrics = None;
            }
        }
        Self {
            overview: seen.overview,
            posted,
            readings: seen.readings,
        }
    }

    fn org_id(&self) -> Option<OrgId> {
        OrgId::parse(self.overview.org_id.as_deref()?).ok()
    }

    /// The metrics of the worker that runs a subscription, where one does.
    pub(super) fn metrics_of_owner(&self, one: &Subscription) -> Option<&Exposition> {
        let holder = one.holder.as_ref().filter(|_| one.held)?;
        let posted = self.posted.iter().find(|posted| posted.holder == *holder)?;
        posted.metrics.as_ref()
    }
}

impl History {
    /// A subscription's samples.
    pub(super) fn samples(&self, name: &str) -> &[Sample] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}
