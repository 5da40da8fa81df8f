//! The loop from the stream to the handlers and back to the position.
//!
//! ```text
//! org --gRPC--> reader --> decoder --> delivery (lanes --> handlers --> tracker) --> store
//!                  ^ room in the buffer                      | let go
//!                  +-----------------------------------------+
//! ```
//!
//! Three tasks for each subscription. The reader never waits for a handler or the store, the
//! decoder keeps stream order, and the delivery owns everything about what is finished.

mod age;
mod backoff;
mod breaks;
mod calling;
mod changes;
mod cost;
mod credits;
mod decoder;
mod delivery;
mod forms;
mod gaps;
mod gather;
mod handler_run;
mod held;
mod in_flight;
mod lanes;
mod lease_clock;
mod legs;
mod letter_loader;
mod lost;
#[cfg(test)]
mod marks_model;
mod notes;
mod observe;
mod parking;
mod position;
mod quiet;
mod reader;
mod replay_end;
mod resume;
mod rewind;
mod samples;
mod sleepless;
mod state;
mod streams;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod testing;
mod tracker;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::avro::SchemaCache;
use crate::config::{BackoffConfig, SalesforceConfig, Start, SubscriptionConfig};
use crate::event::OrgId;
use crate::handler::Handler;
use crate::salesforce::limits::Limits;
use crate::salesforce::pubsub::PubSub;
use crate::store::{Hole, Lease, LetterSummary, SettledAhead, Store, StoreError, TakenOver};

pub use lease_clock::{LeaseClock, LeaseKeeper, lease_clock};
pub use samples::Samples;
pub use sleepless::Moment;
pub use state::State;

pub(crate) use age::{Kept, PositionAge};
pub(crate) use backoff::pause;
pub(crate) use lanes::Holding;

use backoff::Backoff;
use delivery::{Delivery, LettersSetup, Setup};
use forms::Forms;
use handler_run::HandlerRun;
use in_flight::InFlight;
use letter_loader::LetterLoader;
use lost::{lost_start, lost_unfinished};
use observe::Observer;
use resume::Resume;
use rewind::Rewound;
use streams::{Opening, Streams};

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(15),
};

/// How long posting the last sample before that may take.
const LAST_SAMPLE_LIMIT: Duration = Duration::from_millis(500);

/// How long giving a lease back may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// What all subscriptions of a process share.
#[derive(Clone)]
pub struct Shared {
    /// The org's event bus.
    pub bus: PubSub,
    /// Where positions are kept.
    pub store: Arc<dyn Store>,
    /// What is left of the org's allocations.
    pub limits: Limits,
    /// Compiled schemas.
    pub schemas: Arc<SchemaCache>,
    /// Timing of streams.
    pub salesforce: SalesforceConfig,
    /// The org signed in to.
    pub org_id: OrgId,
    /// Host of its instance URL.
    pub host: String,
    /// What the subscriptions see, for charts.
    pub samples: Samples,
}

/// What whoever keeps the leases tells a subscription while it runs.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Whether the lease holds.
    pub clock: LeaseClock,
    /// Grows whenever a person asks something of the owner ([`crate::store`], column `asked`): dead letters
    /// to retry, letters discarded, a replay.
    pub asked: watch::Receiver<i64>,
}

/// How a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop.
    Stopped,
    /// Another worker has taken it over.
    TakenOver,
}

/// Runs one subscription, which this process has taken over, until it is told to stop or another worker
/// takes it over. Told to stop, it finishes what is in flight, writes the last position, and lets the lease
/// go in the same breath.
///
/// # Errors
///
/// Where one of its tasks panicked, which is a bug: the process should end and say so.
pub async fn run(
    shared: Shared,
    config: SubscriptionConfig,
    handlers: Vec<Arc<dyn Handler>>,
    mut taken: TakenOver,
    assignment: Assignment,
    shown_state: watch::Sender<State>,
    stop: CancellationToken,
) -> Result<Ended, tokio::task::JoinError> {
    let names = config.handlers.iter().map(|handler| handler.name.as_str());
    let observer = Observer::new(&config.name, names);
    let mut lease = taken.lease.clone();
    let ended = loop {
        match rewind::carry_out(&shared, &lease, &stop).await {
            Rewound::Ready(Some(rewound)) => taken = *rewound,
            Rewound::Ready(None) => {}
            Rewound::Stopped(newest) => {
                lease = newest;
                break Ended::Stopped;
            }
            Rewound::Fenced => break Ended::TakenOver,
        }
        lease = taken.lease.clone();
        let stint = Stint {
            shared: &shared,
            config: &config,
            handlers: &handlers,
            assignment: assignment.clone(),
            shown_state: shown_state.clone(),
            observer: observer.clone(),
            told: stop.clone(),
            // Its own, so that losing this subscription stops no other.
            stop: stop.child_token(),
        };
        match stint.run(taken).await? {
            delivery::Ended::Stopped => break Ended::Stopped,
            delivery::Ended::Fenced => break Ended::TakenOver,
            delivery::Ended::RewindAsked if stop.is_cancelled() => break Ended::Stopped,
            delivery::Ended::RewindAsked => {
                taken = match rewind::found_again(&shared, &lease, &stop).await {
                    Rewound::Ready(Some(found)) => *found,
                    Rewound::Ready(None) | Rewound::Stopped(_) => break Ended::Stopped,
                    Rewound::Fenced => break Ended::TakenOver,
                };
            }
        }
    };
    observer.ended();
    shown_state.send_replace(State::Stopped);
    if ended == Ended::Stopped {
        post_last_sample(&shared.store, &lease, &observer).await;
        release(&shared.store, &lease).await;
    }
    Ok(ended)
}

/// What was seen since the last post: once the lease is given back, it cannot be added any more.
async fn post_last_sample(store: &Arc<dyn Store>, lease: &Lease, observer: &Observer) {
    let sample = observer.seen().take(SystemTime::now());
    let posted = tokio::time::timeout(LAST_SAMPLE_LIMIT, store.post_sample(lease, &sample)).await;
    // Charts miss some seconds.
    if !matches!(posted, Ok(Ok(()))) {
        debug!(
            subscription = lease.key.name,
            "the last sample could not be posted"
        );
    }
}

/// What the gauges say of a subscription that another worker runs.
pub(crate) fn shown_elsewhere(name: &str) {
    observe::not_from_here(name);
}

/// A subscription under one epoch.
struct Stint<'a> {
    shared: &'a Shared,
    config: &'a SubscriptionConfig,
    handlers: &'a [Arc<dyn Handler>],
    assignment: Assignment,
    shown_state: watch::Sender<State>,
    observer: Observer,
    /// Whoever runs it says that it is to stop.
    told: CancellationToken,
    stop: CancellationToken,
}

impl Stint<'_> {
    async fn run(self, taken: TakenOver) -> Result<delivery::Ended, tokio::task::JoinError> {
        let (shared, config, stop) = (self.shared, self.config, self.stop);
        let _sampled = shared.samples.begin(&taken.lease, self.observer.seen());
        let begins = taken.begin_from.as_ref().unwrap_or(&config.start);
        let mut resume_after = taken.position.clone();
        // After a rewind nobody knows what came just before.
        let known = taken.position.is_some() && taken.transaction.as_deref() != Some("");
        let mut expected = None;
        if let Some(position) = taken.lost_position {
            self.observer.hole("lost");
            record_lost(shared, &taken.lease, lost_unfinished(position), &stop).await;
        }
        match begins {
            Start::Latest if taken.begun_without_position => {
                self.observer.hole("lost");
                let hole = lost_start(taken.begun_at, taken.begun_with.as_ref());
                record_lost(shared, &taken.lease, hole, &stop).await;
                // Never LATEST again once something has come.
                resume_after = taken.begun_with;
            }
            Start::Earliest => expected = taken.begun_with,
            _ => {}
        }
        // Written before its time was kept, the position is at least as old as its row.
        let position_time = taken.position_time.or(taken.position_at);
        let position_time = position_time.filter(|_| resume_after.is_some());
        let mut assignment = self.assignment;
        // What is said to be asked up to now is in what is read now.
        assignment.asked.borrow_and_update();
        let (store, lease) = (&shared.store, &taken.lease);
        let letters = keep_trying(store, lease, &stop, "open_letters", read_letters);
        let Some((open, settled)) = letters.await else {
            return Ok(match self.told.is_cancelled() {
                true => delivery::Ended::Stopped,
                false => delivery::Ended::Fenced,
            });
        };
        let in_flight = Arc::new(InFlight::new(
            config.max_in_flight,
            config.max_in_flight_bytes,
        ));
        let forms = Arc::new(Forms::new(config));
        let streams = Streams {
            forms: forms.clone(),
            shared: shared.clone(),
            config: config.clone(),
            lease: taken.lease.clone(),
            clock: assignment.clock.clone(),
        };
        let letters = LettersSetup {
            open,
            settled,
            // At LATEST nothing comes that has come before.
            nothing_again: resume_after.is_none() && *begins == Start::Latest,
            resume_after: resume_after.clone(),
            resumed_at: position_time,
            max_parked: config.max_parked,
            sealed: config.hides(),
            loader: LetterLoader {
                store: shared.store.clone(),
                schemas: shared.schemas.clone(),
                maker: streams.maker(false),
            },
        };
        let (given_up, given_up_out) = mpsc::unbounded_channel();
        let stream = streams.open(Opening {
            resume: Resume::new(
                config.topic.is_channel(),
                resume_after.clone(),
                position_time,
                begins,
            ),
            given_up,
            expected,
            rewound_from: taken.rewound_from,
            in_flight: in_flight.clone(),
            observer: self.observer.clone(),
            replay: None,
            stop: stop.clone(),
        });
        let runs = config.handlers.iter().enumerate().map(|(index, handler)| {
            let limits = self.handlers[index].batch_limits();
            let retry = shared.salesforce.blocked_retry;
            let run = HandlerRun::new(index, handler, limits, config.concurrency, retry);
            match self.handlers[index].transactional() {
                Some(_) => run.wanting_few_calls(),
                None => run,
            }
        });
        let delivery = Delivery::new(Setup {
            lease: taken.lease,
            forms,
            store: shared.store.clone(),
            ordering: config.ordering,
            begins_after: known.then_some(taken.transaction),
            handlers: runs.zip(self.handlers.iter().cloned()).collect(),
            finished_ahead: taken.finished_ahead,
            behind_since: taken.position_at.unwrap_or_else(SystemTime::now),
            letters,
            assignment,
            streams,
            resumed_after: resume_after,
            resumed_event: taken.position_event,
            given_up: given_up_out,
            age: PositionAge::new(
                (
                    shared.salesforce.retention,
                    shared.salesforce.retention_warning,
                ),
                position_time,
            ),
            in_flight,
            stream_state: stream.state.clone(),
            stream_changes: stream.changes.clone(),
            shown_state: self.shown_state,
            observer: self.observer,
            stop: stop.clone(),
        });
        let (items, tasks) = stream.split();
        let ended = delivery.run(items).await;
        stop.cancel();
        tasks.ended().await?;
        Ok(ended)
    }
}

/// The letters that are open, and those that are settled although their events are still to come again.
async fn read_letters(store: Arc<dyn Store>, lease: Lease) -> Result<Letters, StoreError> {
    let open = store.open_letters(&lease).await?;
    Ok((open, store.settled_ahead(&lease).await?))
}

type Letters = (Vec<LetterSummary>, Vec<SettledAhead>);

/// Gives the lease back, so that another worker need not wait for its end. Politeness: one that cannot be
/// given back now runs out.
pub(crate) async fn release(store: &Arc<dyn Store>, lease: &Lease) {
    let released = tokio::time::timeout(RELEASE_LIMIT, store.release(lease)).await;
    let why = match released {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store did not answer within {RELEASE_LIMIT:?}"),
    };
    warn!(
        subscription = lease.key.name,
        error = why,
        "the lease could not be given back: another worker takes over once it has run out"
    );
}

/// Records what an earlier run has lost, which ended before it had a position.
async fn record_lost(shared: &Shared, lease: &Lease, hole: Hole, stop: &CancellationToken) {
    warn!(
        subscription = lease.key.name,
        "{}; a hole is recorded", hole.explanation
    );
    persist(
        &shared.store,
        lease,
        stop,
        "record a hole",
        |store, lease| {
            let hole = hole.clone();
            async move { store.record_hole(&lease, &hole).await.map(|_| ()) }
        },
    )
    .await;
}

/// Writes something that must be stored, however long the store is away. False where `stop` came first
/// or another worker has taken over.
async fn persist<F, Fut>(
    store: &Arc<dyn Store>,
    lease: &Lease,
    stop: &CancellationToken,
    what: &'static str,
    write: F,
) -> bool
where
    F: Fn(Arc<dyn Store>, Lease) -> Fut,
    Fut: Future<Output = Result<(), StoreError>>,
{
    let done = keep_trying(store, lease, stop, what, write).await;
    done.is_some()
}

/// The answer to a call that must be made, however long the store is away. `None` where `stop` came first
/// or another worker has taken over.
async fn keep_trying<T, F, Fut>(
    store: &Arc<dyn Store>,
    lease: &Lease,
    stop: &CancellationToken,
    what: &'static str,
    call: F,
) -> Option<T>
where
    F: Fn(Arc<dyn Store>, Lease) -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = Backoff::new(STORE_RETRY);
    loop {
        let error = tokio::select! {
            biased;
            result = call(store.clone(), lease.clone()) => match result {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            },
            () = stop.cancelled() => return None,
        };
        if matches!(error, StoreError::Fenced { .. }) {
            stop.cancel();
            return None;
        }
        let pause = backoff.next_pause();
        warn!(
            subscription = lease.key.name,
            what,
            error = %error,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "the store did not take a write; it is tried again"
        );
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
