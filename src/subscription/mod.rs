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
mod cost;
mod credits;
mod decoder;
mod delivery;
mod gaps;
mod handler_run;
mod held;
mod in_flight;
mod lanes;
mod lease_clock;
mod letter_loader;
mod lost;
#[cfg(test)]
mod marks_model;
mod observe;
mod parking;
mod position;
mod reader;
mod resume;
mod state;
mod tracker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::avro::SchemaCache;
use crate::config::{BackoffConfig, Group, SalesforceConfig, Start, SubscriptionConfig};
use crate::event::{OrgId, ReplayId, Source};
use crate::handler::Handler;
use crate::salesforce::limits::Limits;
use crate::salesforce::pubsub::PubSub;
use crate::store::{Lease, Store, StoreError, TakenOver};
use crate::telemetry::metrics;

pub use lease_clock::{LeaseClock, LeaseKeeper, lease_clock};
pub use state::State;

pub(crate) use age::{Kept, PositionAge};
pub(crate) use backoff::pause;

use backoff::Backoff;
use cost::EarliestCost;
use decoder::{Decoder, EventMaker};
use delivery::{Delivery, LettersSetup, Setup};
use handler_run::HandlerRun;
use in_flight::InFlight;
use letter_loader::LetterLoader;
use lost::lost_start;
use observe::Observer;
use reader::Reader;
use resume::Resume;

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(15),
};

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
    taken: TakenOver,
    mut assignment: Assignment,
    shown_state: watch::Sender<State>,
    stop: CancellationToken,
) -> Result<Ended, tokio::task::JoinError> {
    // Its own, so that losing this subscription stops no other.
    let (told, stop) = (stop.clone(), stop.child_token());
    let observer = Observer::new(&config.name);
    let begins = taken
        .begin_from
        .clone()
        .unwrap_or_else(|| config.start.clone());
    let mut resume_after = taken.position.clone();
    let mut expected = None;
    match begins {
        Start::Latest if taken.begun_without_position => {
            observer.hole("lost");
            let begun_at = taken.begun_at;
            record_lost_start(
                &shared,
                &taken.lease,
                begun_at,
                taken.begun_with.as_ref(),
                &stop,
            )
            .await;
            // Never LATEST again once something has come.
            resume_after = taken.begun_with;
        }
        Start::Earliest => expected = taken.begun_with,
        _ => {}
    }
    // Written before its time was kept, the position is at least as old as its row.
    let position_time = taken.position_time.or(taken.position_at);
    let position_time = position_time.filter(|_| resume_after.is_some());
    // What is said to be asked up to now is in what is read now.
    assignment.asked.borrow_and_update();
    let open_letters = keep_trying(
        &shared.store,
        &taken.lease,
        &stop,
        "open_letters",
        |store, lease| async move {
            let open = store.open_letters(&lease).await?;
            Ok((open, store.settled_ahead(&lease).await?))
        },
    );
    let Some((open, settled)) = open_letters.await else {
        shown_state.send_replace(State::Stopped);
        if !told.is_cancelled() {
            return Ok(Ended::TakenOver);
        }
        release(&shared.store, &taken.lease).await;
        return Ok(Ended::Stopped);
    };
    let maker = EventMaker {
        source: Arc::new(Source {
            org_id: shared.org_id.clone(),
            host: shared.host.clone(),
            topic: config.topic.clone(),
        }),
        epoch: taken.lease.epoch,
        key: config.key.clone(),
    };
    let letters = LettersSetup {
        open,
        settled,
        resume_after: resume_after.clone(),
        max_parked: config.max_parked,
        loader: LetterLoader {
            store: shared.store.clone(),
            schemas: shared.schemas.clone(),
            maker: maker.clone(),
        },
    };
    let in_flight = Arc::new(InFlight::new(
        config.max_in_flight,
        config.max_in_flight_bytes,
    ));
    let (stream_state, stream_state_seen) = watch::channel(State::Connecting);
    let (arrivals, arrivals_out) = mpsc::unbounded_channel();
    let (given_up, given_up_out) = mpsc::unbounded_channel();
    let (items, items_out) = mpsc::unbounded_channel();
    let reader = Reader {
        topic: config.topic.clone(),
        lease: taken.lease.clone(),
        bus: shared.bus.clone(),
        store: shared.store.clone(),
        salesforce: shared.salesforce.clone(),
        on_expired: config.on_expired_replay_id,
        resume: Resume::new(
            config.topic.is_channel(),
            resume_after,
            position_time,
            &begins,
        ),
        in_flight: in_flight.clone(),
        clock: assignment.clock.clone(),
        arrivals,
        state: stream_state,
        observer: observer.clone(),
        stop: stop.clone(),
        begun: false,
        given_up,
        expected,
        cost: EarliestCost::new(
            shared.limits.clone(),
            shared.store.clone(),
            taken.lease.key.clone(),
            shared.salesforce.retention,
        ),
    };
    let decoder = Decoder {
        subscription: config.name.clone(),
        maker: maker.clone(),
        schema_wait: config.schema_wait,
        schemas: shared.schemas.clone(),
        in_flight: in_flight.clone(),
        observer: observer.clone(),
        stop: stop.clone(),
        missing: HashMap::new(),
    };
    let runs = config.handlers.iter().enumerate().map(|(index, handler)| {
        let limits = handlers[index].batch_limits();
        let retry = shared.salesforce.blocked_retry;
        HandlerRun::new(index, handler, limits, config.concurrency, retry)
    });
    let lease = taken.lease;
    let delivery = Delivery::new(Setup {
        lease: lease.clone(),
        store: shared.store.clone(),
        ordering: config.ordering,
        group: (config.group == Group::Transaction).then_some(delivery::Limits {
            wait: config.group_wait,
            events: config.group_max_events,
        }),
        begins_after: taken.position.is_some().then_some(taken.transaction),
        handlers: runs.zip(handlers.iter().cloned()).collect(),
        finished_ahead: taken.finished_ahead,
        letters,
        behind_since: taken.position_at.unwrap_or_else(SystemTime::now),
        assignment,
        given_up: given_up_out,
        age: PositionAge::new(
            (
                shared.salesforce.retention,
                shared.salesforce.retention_warning,
            ),
            position_time,
        ),
        in_flight,
        stream_state: stream_state_seen,
        shown_state: shown_state.clone(),
        observer: observer.clone(),
        stop: stop.clone(),
    });
    let reader = tokio::spawn(reader.run());
    let decoder = tokio::spawn(decoder.run(arrivals_out, items));
    let ended = delivery.run(items_out).await;
    stop.cancel();
    reader.await?;
    decoder.await?;
    observer.ended();
    shown_state.send_replace(State::Stopped);
    Ok(match ended {
        delivery::Ended::Stopped => {
            release(&shared.store, &lease).await;
            Ended::Stopped
        }
        delivery::Ended::Fenced => Ended::TakenOver,
    })
}

/// Gives the lease back, so that another worker need not wait for its end. Politeness: one that cannot be
/// given back now runs out.
async fn release(store: &Arc<dyn Store>, lease: &Lease) {
    let began = Instant::now();
    let released = tokio::time::timeout(RELEASE_LIMIT, store.release(lease)).await;
    metrics::store_called("release", began.elapsed());
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

/// Records what a start at LATEST has lost that ended before it had a position.
async fn record_lost_start(
    shared: &Shared,
    lease: &Lease,
    begun_at: Option<SystemTime>,
    first: Option<&ReplayId>,
    stop: &CancellationToken,
) {
    let hole = lost_start(begun_at, first);
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
