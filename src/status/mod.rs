//! What an operator is shown, read from the store: each subscription with its state, its lag, what it needs
//! from a person and what to do about it, and the workers that live.
//!
//! All of it is decided here, so that `orgstream status`, `orgstream top` and the status page say the same in the
//! same words; they only render it. It needs no daemon: what the store holds is right, too, when every worker
//! is dead.

mod advice;
mod allocation;
mod posted;
mod subscription;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;
mod worker;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::event::{OrgId, rfc3339};
use crate::store::{AllocationReading, LivingWorker, Store, StoreError, SubscriptionStatus};

pub use allocation::Allocation;
pub(crate) use posted::{FRESH as POSTED_FRESH, Posted};
pub use subscription::{RefusedTo, STATES, Subscription, owner};
pub use worker::Worker;

/// How long the org's bus keeps an event, and how long before its end a person is told
/// ([`crate::config::load_bus_retention`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bus {
    /// How long it keeps an event.
    pub retention: Duration,
    /// How long before that is over a person is told.
    pub warning: Duration,
}

/// Everything that the store knows of subscriptions and workers, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// When it was read, by this machine's clock.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// The org that the store is bound to; `None` before its first use.
    pub org_id: Option<String>,
    /// Subscriptions by name; those that the store has not even begun to keep, because it refused them, come
    /// last.
    pub subscriptions: Vec<Subscription>,
    /// Workers that live, by name.
    pub workers: Vec<Worker>,
    /// What the org last said of its event deliveries; `None` where it has said nothing for a while.
    pub allocation: Option<Allocation>,
}

impl Overview {
    /// Reads it. `retention` is how long the bus keeps an event, `warning` how long before the end of that a
    /// person is told.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn read(
        store: &dyn Store,
        retention: Duration,
        warning: Duration,
    ) -> Result<Self, StoreError> {
        Ok(Seen::read(store, Bus { retention, warning })
            .await?
            .overview)
    }

    /// The same of what was read already, but for the allocation and what workers post.
    pub fn of(
        stored: &[SubscriptionStatus],
        living: Vec<LivingWorker>,
        org_id: Option<&OrgId>,
        bus: Bus,
        now: SystemTime,
    ) -> Self {
        let refused = refused(&living);
        let org_id = org_id.map(ToString::to_string);
        let to = |name: &str| refused.get(name).map_or(&[][..], |(_, to)| to);
        let fleet_lives = !living.is_empty();
        let mut subscriptions: Vec<Subscription> = stored
            .iter()
            .map(|one| Subscription::stored(one, to(&one.key.name), fleet_lives, bus, now))
            .collect();
        let known = |name: &String| stored.iter().any(|one| one.key.name == *name);
        let unknown = refused.iter().filter(|(name, _)| !known(name));
        subscriptions.extend(unknown.map(|(name, (topic, to))| {
            Subscription::unknown(name, topic, org_id.clone().unwrap_or_default(), to)
        }));
        Self {
            at: now,
            org_id,
            workers: living
                .into_iter()
                .map(|one| Worker::of(one, stored))
                .collect(),
            subscriptions,
            allocation: None,
        }
    }

    /// True where anything waits for a person: `orgstream status` then exits with 1.
    pub fn needs_a_person(&self) -> bool {
        self.subscriptions.iter().any(|one| one.needs_a_person)
    }

    /// The subscription of this name.
    pub fn subscription(&self, name: &str) -> Option<&Subscription> {
        self.subscriptions.iter().find(|one| one.name == name)
    }
}

/// What an overview is made of, for those that show more than it says.
pub(crate) struct Seen {
    /// What it says.
    pub(crate) overview: Overview,
    /// What living workers posted, by name.
    pub(crate) posted: Vec<Posted>,
    /// What was left of the allocation in the last 24 hours, oldest first.
    pub(crate) readings: Vec<AllocationReading>,
}

impl Seen {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn read(store: &dyn Store, bus: Bus) -> Result<Self, StoreError> {
        let subscriptions = store.subscriptions().await?;
        let org_id = store.bound_org().await?;
        let workers = store.workers().await?;
        let now = SystemTime::now();
        let mut overview = Overview::of(&subscriptions, workers, org_id.as_ref(), bus, now);
        let snapshots = lately(store.snapshots().await)?;
        let posted: Vec<Posted> = snapshots.into_iter().map(Posted::of).collect();
        posted::add(&mut overview.subscriptions, &posted, now);
        let mut readings = Vec::new();
        if let Some(org_id) = &org_id {
            let since = now.checked_sub(allocation::WINDOW).unwrap_or(now);
            readings = lately(store.allocation(org_id, since).await)?;
            overview.allocation = Allocation::of(&readings, now);
        }
        Ok(Self {
            overview,
            posted,
            readings,
        })
    }
}

/// What tables of an older release do not have yet is nothing: they have all the rest.
pub(crate) fn lately<T: Default>(read: Result<T, StoreError>) -> Result<T, StoreError> {
    match read {
        Err(StoreError::NotMigrated(_)) => Ok(T::default()),
        other => other,
    }
}

/// What is refused to workers, by name: the topic, and to whom.
fn refused(workers: &[LivingWorker]) -> BTreeMap<String, (String, Vec<RefusedTo>)> {
    let mut all: BTreeMap<String, (String, Vec<RefusedTo>)> = BTreeMap::new();
    for LivingWorker { worker, .. } in workers {
        for one in &worker.refused {
            let refused = all.entry(one.name.clone()).or_default();
            refused.0.clone_from(&one.topic);
            refused.1.push(RefusedTo {
                worker: worker.name.clone(),
                why: one.why.clone(),
            });
        }
    }
    all
}

/// As RFC 3339, UTC.
fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The same of a time that may not be known.
fn optional_time<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(rfc3339).serialize(serializer)
}

/// A length of time in seconds, where it is known.
fn seconds<S: Serializer>(length: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    length.map(|one| one.as_secs_f64()).serialize(serializer)
}
