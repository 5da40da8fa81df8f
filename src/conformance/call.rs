//! A handler as the daemon has it, in a runtime of its own: to kill it is to end that runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ConformanceError;
use crate::config::{HandlerConfig, StoreConfig};
use crate::handler::{
    BatchAnswer, BatchLimits, EventBatch, Handler, Registry, TransactionalHandler, reason_of, sql,
};
use crate::store::{self, Store, StoreError, TransactionError, Work};

/// How long a handler's own check may take, as in `orgstream check`.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// How long closing the store may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Threads of a handler's runtime: some may be blocked by it, and the others still go on.
const THREADS: usize = 4;

/// What Tokio's timers round up to.
const TICK: Duration = Duration::from_millis(1);

/// How handlers are called that write within the store's transactions.
#[derive(Clone)]
pub(super) struct Within {
    config: StoreConfig,
    store: Arc<dyn Store>,
    /// Committed, where the handler has handled anything; else everything is rolled back.
    pub(super) commit: bool,
}

impl Within {
    /// Opens the store, and looks whether it answers.
    pub(super) async fn open(config: StoreConfig, commit: bool) -> Result<Self, StoreError> {
        let store = store::open(&config).await?;
        store.ping().await?;
        Ok(Self {
            config,
            store,
            commit,
        })
    }

    /// Opens it once more: the connections of a killed handler died with it.
    pub(super) async fn open_again(&mut self) -> Result<(), StoreError> {
        self.store = store::open(&self.config).await?;
        Ok(())
    }

    /// Closes its connections, as far as they can be in a moment.
    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.store.close()).await;
    }
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Came {
    Answer(BatchAnswer),
    Panic,
    /// Nothing, within the time that there is.
    Silence,
}

/// A call's end, and what else was seen of it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) came: Came,
    pub(super) took: Duration,
    /// Within a transaction: it is not that any more which it was before.
    pub(super) ended_transaction: bool,
    /// Within a transaction: a statement had failed and the handler went on.
    pub(super) failed_statement: bool,
}

/// A handler that was built, and what it runs in.
pub(super) struct Instance {
    runtime: Option<Runtime>,
    place: Handle,
    handler: Option<Arc<dyn Handler>>,
    within: Option<Within>,
}

impl Instance {
    /// Builds a handler as at the start of the daemon.
    pub(super) fn start(
        registry: &Registry,
        config: &HandlerConfig,
        within: Option<Within>,
    ) -> Result<Self, ConformanceError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("handler")
            .enable_all()
            .build()
            .map_err(ConformanceError::Runtime)?;
        let place = runtime.handle().clone();
        let mut instance = Self {
            runtime: Some(runtime),
            place,
            handler: None,
            within,
        };
        let built = {
            let _inside = instance.place.enter();
            catch_unwind(AssertUnwindSafe(|| registry.build(config)))
        };
        instance.handler = match built {
            Ok(built) => Some(built?),
            Err(_) => return Err(ConformanceError::BuildPanicked),
        };
        Ok(instance)
    }

    /// True where it writes within transactions of the store.
    pub(super) fn is_transactional(&self) -> bool {
        let handler = self.handler.as_ref();
        handler.is_some_and(|handler| handler.transactional().is_some())
    }

    /// How much it wants in one call; nothing where it panics over it.
    pub(super) fn limits(&self) -> BatchLimits {
        let limits = || self.handler.as_ref().map(|handler| handler.batch_limits());
        let limits = catch_unwind(AssertUnwindSafe(limits)).ok().flatten();
        limits.unwrap_or(BatchLimits {
            events: 0,
            bytes: 0,
        })
    }

    /// Its own look at the other side.
    pub(super) async fn check(&self) -> Result<(), String> {
        let Some(handler) = self.handler.clone() else {
            return Err("it has ended".to_owned());
        };
        let within = self.within.clone();
        let mut task = self.spawn(async move {
            match (handler.transactional(), within) {
                (Some(handler), Some(within)) => check_within(handler, &*within.store).await,
                _ => handler.check().await,
            }
        });
        match tokio::time::timeout(CHECK_LIMIT, &mut task.0).await {
            Ok(Ok(checked)) => checked,
            Ok(Err(_)) => Err("the check panicked".to_owned()),
            Err(_) => Err(format!("no answer within {} s", CHECK_LIMIT.as_secs())),
        }
    }

    /// Calls it, as often as is said within the same transaction; dropped, so is the call.
    pub(super) async fn call(&self, batch: EventBatch, times: usize, limit: Duration) -> Call {
        let began = Instant::now();
        let Some(handler) = self.handler.clone() else {
            return Call::of(Came::Silence, began);
        };
        let within = self.within.clone();
        let mut task = self.spawn(async move {
            match (handler.transactional(), within) {
                (Some(handler), Some(within)) => {
                    hand_over_within(handler, &within, &batch, times).await
                }
                _ => (handler.handle(&batch).await, Seen::default()),
            }
        });
        match tokio::time::timeout(limit, &mut task.0).await {
            Ok(Ok((answer, seen))) => Call {
                ended_transaction: seen.ended,
                failed_statement: seen.failed,
                ..Call::of(Came::Answer(answer), began)
            },
            Ok(Err(_)) => Call::of(Came::Panic, began),
            Err(_) => Call::of(Came::Silence, began),
        }
    }

    /// Calls it and drops the call after this time; true where it had not ended by then. Gives nothing where it
    /// cannot be dropped within `limit`, because it blocks its thread.
    pub(super) async fn drop_call(
        &self,
        batch: EventBatch,
        after: Duration,
        limit: Duration,
    ) -> Option<bool> {
        let handler = self.handler.clone()?;
        let within = self.within.clone();
        let mut task = self.spawn(async move {
            match (handler.transactional(), within) {
                (Some(handler), Some(within)) => {
                    drop(hand_over_within(handler, &within, &batch, 1).await);
                }
                _ => drop(handler.handle(&batch).await),
            }
        });
        wait(after).await;
        task.0.abort();
        let ended = tokio::time::timeout(limit, &mut task.0).await.ok()?;
        Some(ended.is_err_and(|error| error.is_cancelled()))
    }

    /// Ends it in order; false where that took longer than `limit` and a little more.
    pub(super) async fn close(&self, limit: Duration) -> bool {
        let Some(handler) = self.handler.clone() else {
            return true;
        };
        let mut task = self.spawn(async move { handler.close(limit).await });
        let ended = tokio::time::timeout(limit + limit / 5, &mut task.0);
        matches!(ended.await, Ok(Ok(())))
    }

    /// Ends everything that it does, in the middle of it, as a kill does. Its own drop code does not run yet,
    /// for that of a killed process never does.
    pub(super) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Kills it and drops what is left, with its connections: nobody is to meet them any more.
    pub(super) fn bury(&mut self) {
        self.kill();
        let handler = self.handler.take();
        // It may spawn, which needs a runtime, even one that has ended; and it may panic.
        let _inside = self.place.enter();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(handler)));
    }

    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task(self.place.spawn(work))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.bury();
    }
}

impl Call {
    fn of(came: Came, began: Instant) -> Self {
        Self {
            came,
            took: began.elapsed(),
            ended_transaction: false,
            failed_statement: false,
        }
    }
}

/// Waits exactly so long. A timer would be a millisecond late, which is all that many a call takes.
async fn wait(time: Duration) {
    let until = Instant::now() + time;
    if time > 10 * TICK {
        tokio::time::sleep(time).await;
    }
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

/// A task that ends when it is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a transaction showed beside the answer.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    ended: bool,
    failed: bool,
}

/// A transactional handler's own check, in a transaction that is rolled back.
async fn check_within(handler: &dyn TransactionalHandler, store: &dyn Store) -> Result<(), String> {
    let mut look = Look {
        handler,
        found: Ok(()),
    };
    match store.try_out(CHECK_LIMIT, &mut look).await {
        Ok(()) => look.found,
        Err(TransactionError::Work(error)) => Err(reason_of(&error)),
        Err(error) => Err(error.to_string()),
    }
}

struct Look<'a> {
    handler: &'a dyn TransactionalHandler,
    found: Result<(), String>,
}

#[async_trait]
impl Work for Look<'_> {
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        _: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        self.found = self.handler.check(connection).await;
        Ok(Vec::new())
    }
}

/// As the daemon calls it, without marks: no test event is the subscription's.
async fn hand_over_within(
    handler: &dyn TransactionalHandler,
    within: &Within,
    batch: &EventBatch,
    times: usize,
) -> (BatchAnswer, Seen) {
    let mut task = HandOver {
        handler,
        batch,
        times,
        answer: None,
        seen: Seen::default(),
    };
    let limit = handler.timeout();
    let done = match within.commit {
        true => within.store.transact_unmarked(limit, &mut task).await,
        false => within.store.try_out(limit, &mut task).await,
    };
    let answer = match done {
        Ok(()) => task.answer.unwrap_or(BatchAnswer::HANDLED),
        Err(TransactionError::Work(error)) => BatchAnswer::All(handler.answer_to(&error)),
        Err(error) => BatchAnswer::retry(error.to_string()),
    };
    (answer, task.seen)
}

struct HandOver<'a> {
    handler: &'a dyn TransactionalHandler,
    batch: &'a EventBatch,
    times: usize,
    answer: Option<BatchAnswer>,
    seen: Seen,
}

#[async_trait]
impl Work for HandOver<'_> {
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        _: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        let before = transaction_of(connection).await?;
        let mut handles = true;
        for _ in 0..self.times {
            if handles {
                let answer = self.handler.handle(connection, self.batch).await?;
                handles = handles_any(&answer);
                self.answer = Some(answer);
            }
        }
        match transaction_of(connection).await {
            Ok(now) => self.seen.ended = now != before,
            // It may well say so, as long as it does not say that anything is done.
            Err(_) if !handles => {}
            Err(error) => {
                let code = error.as_database_error().and_then(|error| error.code());
                self.seen.failed = code.as_deref() == Some("25P02");
                return Err(error);
            }
        }
        Ok(vec![handles])
    }
}

/// The number of the transaction that the connection is in.
async fn transaction_of(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sql::query_scalar("select txid_current()")
        .fetch_one(connection)
        .await
}

fn handles_any(answer: &BatchAnswer) -> bool {
    use crate::handler::Answer::Handled;
    match answer {
        BatchAnswer::All(answer) => *answer == Handled,
        BatchAnswer::Each(answers) => answers.contains(&Handled),
    }
}
