//! A worker: one process that runs subscriptions, as many as are its share (design 3.1, rule 11).
//!
//! Workers do not know each other. Each says in the store that it lives, renews the leases it has, and
//! looks around once a second: what is free it takes, up to its share; what it has beyond that it hands
//! over. One task decides all of it and waits for nothing but news, so that neither a store that hangs nor a
//! subscription that ends slowly holds the others up.

mod presence;
mod pulse;
mod share;
mod slot;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config::SubscriptionConfig;
use crate::handler::Handler;
use crate::store::{
    Heartbeat, Lease, Refused, StoreError, Survey, Surveyed, TakenOver, Worker as Identity,
};
use crate::subscription::{self, Assignment, Ended, Moment, Shared, State, lease_clock};
use crate::telemetry::metrics;

pub use presence::{live_while, retire};
use pulse::{Pulse, Tidings, Told};
use share::Standing;
use slot::{Phase, Running, Slot};

/// How long a stop waits for answers to what the store was asked for.
const CLAIM_LIMIT: Duration = Duration::from_secs(1);

/// How long saying good-bye may take.
const RETIRE_LIMIT: Duration = Duration::from_millis(500);

/// How long the last heartbeat may take before that.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// A configured subscription, and what runs it.
pub struct Entry {
    /// What was configured.
    pub config: SubscriptionConfig,
    /// One for each of its handlers.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// Where its state is shown.
    pub shown_state: watch::Sender<State>,
}

/// Everything a worker needs.
pub struct Setup {
    /// What all subscriptions share.
    pub shared: Shared,
    /// Who this process is to the others.
    pub identity: Identity,
    /// How long a lease holds that is not renewed.
    pub lease: Duration,
    /// Every configured subscription.
    pub entries: Vec<Entry>,
}

/// A task panicked.
#[derive(Debug)]
pub struct Bug {
    /// Of which subscription; none where that is not known.
    pub subscription: Option<String>,
    /// What it said.
    pub reason: JoinError,
}

/// The name of this process for people: its dyno, else host and process ID.
pub fn name(dyno: Option<String>) -> String {
    dyno.unwrap_or_else(|| {
        // Where the kernel does not tell, the process ID has to do.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .or_else(|_| std::fs::read_to_string("/etc/hostname"))
            .unwrap_or_default();
        format!("{}:{}", host.trim(), std::process::id())
    })
}

/// Runs this worker's share of the subscriptions until `stop` is cancelled; then finishes what is in
/// flight, gives its leases back, and ends.
///
/// # Errors
///
/// A bug: one of the tasks panicked. The others were stopped in order.
pub async fn run(setup: Setup, stop: CancellationToken) -> Result<(), Bug> {
    Worker::new(setup, stop).run().await
}

/// What the store answered to a request to take a subscription over.
struct Claimed {
    place: usize,
    sent_at: Moment,
    result: Result<TakenOver, StoreError>,
}

type Finished = (usize, Result<Ended, JoinError>);

struct Worker {
    shared: Shared,
    identity: Identity,
    lease: Duration,
    configured: Vec<String>,
    slots: Vec<Slot>,
    pulse: Pulse,
    claims: JoinSet<Claimed>,
    running: JoinSet<Finished>,
    taken: u64,
    /// Living workers, by the last survey.
    workers: usize,
    /// Failed calls of the pulse in a row.
    failures: u32,
    /// Nothing may be handed out, and people were told.
    ran_out: bool,
    stop: CancellationToken,
    /// Leases of subscriptions that a bug ended: given back at the end.
    left: Vec<Lease>,
    /// When a stop gives up waiting for claims.
    claims_until: Option<Instant>,
    result: Result<(), Bug>,
}

impl Worker {
    fn new(setup: Setup, stop: CancellationToken) -> Self {
        let org_id = &setup.shared.org_id;
        let slots: Vec<Slot> = setup
            .entries
            .into_iter()
            .map(|entry| Slot::new(org_id, entry.config, entry.handlers, entry.shown_state))
            .collect();
        for slot in &slots {
            metrics::lease_not_held(&slot.key.name);
        }
        Self {
            configured: slots.iter().map(|slot| slot.key.name.clone()).collect(),
            pulse: Pulse::new(
                setup.shared.store.clone(),
                org_id.clone(),
                setup.identity.clone(),
                setup.lease,
                Instant::now(),
            ),
            slots,
            shared: setup.shared,
            identity: setup.identity,
            lease: setup.lease,
            claims: JoinSet::new(),
            running: JoinSet::new(),
            taken: 0,
            workers: 0,
            failures: 0,
            ran_out: false,
            stop,
            left: Vec::new(),
            claims_until: None,
            result: Ok(()),
        }
    }

    async fn run(mut self) -> Result<(), Bug> {
        info!(
            worker = self.identity.name,
            holder = self.identity.holder,
            "worker starts"
        );
        let stop = self.stop.clone();
        loop {
            let stopping = self.claims_until.is_some();
            if stopping && self.claims.is_empty() && self.running.is_empty() {
                break;
            }
            let slots = &self.slots;
            self.pulse
                .begin(Instant::now(), || tidings(slots), stopping);
            let wake = self.pulse.wake_at(stopping);
            tokio::select! {
                told = self.pulse.told() => match told {
                    Told::Beat(sent_at, Ok(beat)) => self.beaten(sent_at, &beat),
                    Told::Survey(Ok(survey)) => self.surveyed(&survey),
                    Told::Beat(_, Err(error)) | Told::Survey(Err(error)) => self.failed(&error),
                },
                Some(claimed) = self.claims.join_next() => match claimed {
                    Ok(claimed) => self.claimed(claimed),
                    Err(reason) if reason.is_cancelled() => {}
                    Err(reason) => self.bug(None, reason),
                },
                Some(finished) = self.running.join_next_with_id() => match finished {
                    Ok((_, (place, ended))) => self.finished(place, ended),
                    Err(reason) => match self.slots.iter().position(|slot| slot.is_run_by(reason.id())) {
                        Some(place) => self.finished(place, Err(reason)),
                        None => self.bug(None, reason),
                    },
                },
                () = sleep_until(wake) => {}
                () = sleep_until(self.claims_until), if !self.claims.is_empty() => {
                    // What the store gives us now runs out by itself.
                    self.claims.abort_all();
                }
                () = stop.cancelled(), if !stopping => {
                    self.claims_until = Some(Instant::now() + CLAIM_LIMIT);
                    // So that the others make room for what is let go.
                    self.pulse.hurry(Instant::now());
                }
            }
        }
        for lease in &self.left {
            subscription::release(&self.shared.store, lease).await;
        }
        self.retire().await;
        self.result
    }

    /// The others need not wait for this worker's share of the subscriptions any more.
    async fn retire(&mut self) {
        // A heartbeat that is dropped half way keeps its row locked, and the end would wait for that.
        let settled = tokio::time::timeout(SETTLE_LIMIT, self.pulse.settle()).await;
        if settled.is_err() {
            debug!("the last heartbeat was not answered in time");
        }
        let retire = self.shared.store.retire(&self.identity.holder);
        let why = match tokio::time::timeout(RETIRE_LIMIT, retire).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store did not answer within {RETIRE_LIMIT:?}"),
        };
        warn!(
            error = why,
            "the end of this worker could not be stored: it is counted as alive until its lease has run out"
        );
    }

    /// The lease holds that long by our clock, if the store was asked at `sent_at`: less by a margin, in
    /// which what was handed out just before may end.
    fn until(&self, sent_at: Moment) -> Option<Moment> {
        let holds = self.shared.store.leases_run_out();
        holds.then(|| sent_at + self.lease - self.lease / 5)
    }

    fn beaten(&mut self, sent_at: Moment, beat: &Heartbeat) {
        self.succeeded();
        let until = self.until(sent_at);
        for slot in &self.slots {
            // What was taken since was not asked about.
            let Some(running) = slot.running().filter(|one| one.taken_at <= sent_at) else {
                continue;
            };
            if beat.renewed.contains(&slot.key.name) {
                running.keeper.renewed(until);
            } else if beat.held.contains(&slot.key.name) {
                running
                    .keeper
                    .failed("another transaction keeps its row locked");
            } else {
                running.keeper.lost();
            }
        }
        self.look_at_the_clock();
    }

    /// The store did not answer, or refused.
    fn failed(&mut self, error: &StoreError) {
        self.failures = self.failures.saturating_add(1);
        let why = error.to_string();
        if self.failures == 1 {
            warn!(
                error = why,
                "the leases could not be looked after; tried again"
            );
        }
        for slot in &self.slots {
            if let Some(running) = slot.running() {
                running.keeper.failed(&why);
            } else if self.failures > 1 {
                slot.cannot_begin(&why);
            }
        }
        self.look_at_the_clock();
    }

    fn succeeded(&mut self) {
        if self.failures > 1 {
            info!("the leases are looked after again");
        }
        self.failures = 0;
    }

    /// Tells people when nothing is handed out any more, and when it goes on.
    fn look_at_the_clock(&mut self) {
        let mut running = self.slots.iter().filter_map(Slot::running);
        let ran_out = running.any(|one| !one.keeper.holds());
        if ran_out && !self.ran_out {
            warn!("leases ran out before they could be renewed: nothing is handed out under them");
        } else if self.ran_out && !ran_out {
            info!("the leases hold again");
        }
        self.ran_out = ran_out;
    }

    fn surveyed(&mut self, survey: &Survey) {
        self.succeeded();
        if self.stop.is_cancelled() {
            // What would be taken now would be let go at once.
            return;
        }
        let now = Instant::now();
        let rows: HashMap<&str, &Surveyed> = survey
            .subscriptions
            .iter()
            .map(|row| (row.name.as_str(), row))
            .collect();
        for slot in &mut self.slots {
            let row = rows.get(slot.key.name.as_str()).copied();
            slot.surveyed(row);
        }
        let standings: Vec<(&str, Standing)> = self
            .slots
            .iter()
            .map(|slot| (slot.key.name.as_str(), slot.standing(now)))
            .collect();
        let take_lapsed = self.pulse.may_take_lapsed(now);
        let plan = share::plan(&self.identity.holder, &standings, survey, take_lapsed);
        // It counts itself, whatever a survey saw of it.
        let others = survey.workers.iter();
        let others = others.filter(|peer| peer.holder != self.identity.holder);
        let workers = others.count() + 1;
        if workers != std::mem::replace(&mut self.workers, workers) {
            info!(
                workers,
                share = plan.share,
                "living workers that share the subscriptions"
            );
        }
        for place in plan.give_up {
            self.give_up(place);
        }
        for place in plan.claim {
            self.claim(place);
        }
        for slot in &mut self.slots {
            let row = rows.get(slot.key.name.as_str()).copied();
            slot.left(&self.identity.holder, row);
        }
    }

    /// Hands over: what is in flight is finished, the position written, the lease given back.
    fn give_up(&self, place: usize) {
        let slot = &self.slots[place];
        if let Some(running) = slot.running() {
            let subscription = slot.key.name.as_str();
            if slot.paused {
                info!(subscription, "finishing what is in flight, to pause");
            } else {
                info!(
                    subscription,
                    workers = self.workers,
                    "finishing what is in flight, to hand the subscription over to another worker"
                );
            }
            running.stop.cancel();
        }
    }

    fn claim(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        slot.phase = Phase::Claiming;
        let store = self.shared.store.clone();
        let (holder, lease) = (self.identity.holder.clone(), self.lease);
        let (key, explicit) = (slot.key.clone(), slot.config.start_is_explicit);
        let configured = self.configured.clone();
        self.claims.spawn(async move {
            let sent_at = Moment::now();
            let result = store.take_over(&key, &holder, lease, &configured, explicit);
            let result = result.await;
            Claimed {
                place,
                sent_at,
                result,
            }
        });
    }

    fn claimed(&mut self, claimed: Claimed) {
        let Claimed {
            place,
            sent_at,
            result,
        } = claimed;
        match result {
            Ok(taken) => self.begin(place, sent_at, taken),
            Err(error) => {
                debug!(
                    subscription = self.slots[place].key.name,
                    error = %error,
                    "not taken over"
                );
                let blocked_retry = self.shared.salesforce.blocked_retry;
                if self.slots[place].refused(&error, blocked_retry) {
                    // So that others count on this worker no more.
                    self.pulse.hurry(Instant::now());
                }
            }
        }
    }

    /// Runs what was taken over; gives it back at once where the worker stops meanwhile.
    fn begin(&mut self, place: usize, sent_at: Moment, taken: TakenOver) {
        let (keeper, clock) = lease_clock(self.until(sent_at));
        let slot = &mut self.slots[place];
        info!(
            subscription = slot.key.name,
            topic = %slot.key.topic,
            epoch = taken.lease.epoch,
            position = taken.position.as_ref().map(tracing::field::display),
            "subscription taken over"
        );
        let (ask, asked) = watch::channel(slot.asked);
        metrics::lease_taken(&slot.key.name);
        let stop = self.stop.child_token();
        self.taken += 1;
        let lease = taken.lease.clone();
        let run = subscription::run(
            self.shared.clone(),
            slot.config.clone(),
            slot.handlers.clone(),
            taken,
            Assignment { clock, asked },
            slot.shown.clone(),
            stop.clone(),
        );
        let task = self.running.spawn(async move { (place, run.await) });
        slot.begun(Running {
            keeper,
            ask,
            stop,
            taken_at: Moment::now(),
            since: self.taken,
            lease,
            task: task.id(),
        });
    }

    fn finished(&mut self, place: usize, ended: Result<Ended, JoinError>) {
        let stopping = self.stop.is_cancelled();
        let slot = &mut self.slots[place];
        let lease = slot.ended(stopping);
        let taken_over = matches!(ended, Ok(Ended::TakenOver));
        metrics::lease_ended(&slot.key.name, taken_over);
        match ended {
            Ok(Ended::Stopped) => {}
            Ok(Ended::TakenOver) => warn!(
                subscription = slot.key.name,
                "another worker runs this subscription now; this one goes on with the others"
            ),
            Err(reason) => {
                let subscription = slot.key.name.clone();
                // Not at once: something of it may still be with a handler.
                self.left.extend(lease);
                self.bug(Some(subscription), reason);
            }
        }
    }

    fn bug(&mut self, subscription: Option<String>, reason: JoinError) {
        error!(subscription, reason = %reason, "a task ended by a bug: stopping");
        self.stop.cancel();
        if self.result.is_ok() {
            self.result = Err(Bug {
                subscription,
                reason,
            });
        }
    }
}

/// What the others hear of this worker.
fn tidings(slots: &[Slot]) -> Tidings {
    let mut tidings = Tidings::default();
    for slot in slots {
        if slot.running().is_some() {
            tidings.running.push(slot.key.clone());
        }
        match slot.refused_because() {
            None => tidings.able.push(slot.key.name.clone()),
            Some(why) => tidings.refused.push(Refused {
                name: slot.key.name.clone(),
                topic: slot.key.topic.to_string(),
                why: why.to_owned(),
            }),
        }
    }
    tidings
}

/// Never ends where there is no time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
