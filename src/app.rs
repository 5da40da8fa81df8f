//! The only place that names concrete types and wires them together.

mod allocation;
mod housekeeping;
mod measuring;
mod posting;
mod schemas;
mod start;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::avro::{SchemaCache, SchemaShelf};
use crate::config::{
    Checks, Config, ConfigError, Env, HandlerConfig, HandlerProblem, Loaded, MAX_HANDLERS,
    ProcessEnv, SalesforceConfig, StoreConfig, SubscriptionConfig, Subscriptions, needs_encryption,
};
use crate::handler::{Handler, HandlerConfigError, Registry};
use crate::salesforce::auth::{
    Authenticator, CredentialVault, Session, TokenSource, check_private_key,
};
use crate::salesforce::limits::Limits;
use crate::salesforce::pubsub::{PubSub, PubSubError};
use crate::store::{self, Refused, Store, StoreError};
use crate::subscription::{Samples, Shared, State};
use crate::telemetry::{self, metrics};
use crate::worker;

use allocation::Allocation;
use measuring::Measuring;
use posting::Posting;
use schemas::{BusSource, StoreShelf};
use start::Waiting;

/// How long closing the store may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Why the daemon ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A configuration that can never work; the process exits with 78.
    #[error("{0}")]
    Config(String),
    /// The metrics port is taken.
    #[error(transparent)]
    Metrics(#[from] telemetry::ServeError),
    /// The store belongs to another org.
    #[error("{0}")]
    OtherOrg(StoreError),
    /// A task of ours panicked.
    #[error("a task of subscription `{subscription}` ended by a bug: {reason}")]
    Bug {
        /// Which subscription.
        subscription: String,
        /// What the task said. In the text, so not also a cause: causes are printed after it.
        reason: tokio::task::JoinError,
    },
}

impl From<HandlerConfigError> for RunError {
    fn from(error: HandlerConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

/// Loads the configuration with everything checked that can be checked without I/O to other systems.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub fn load_config(
    path: Option<&Path>,
    subscriptions: Subscriptions,
    env: &dyn Env,
    registry: &Registry,
) -> Result<Loaded, ConfigError> {
    let handler = |config: &HandlerConfig, store: Option<&StoreConfig>| {
        handler_problems(registry, config, store)
    };
    let checks = Checks {
        private_key: &check_private_key,
        handler: &handler,
    };
    crate::config::load(path, subscriptions, env, &checks)
}

/// Loads the subscriptions, with their handlers checked as by [`load_config`], and where the store is. The other
/// sections are not looked at.
///
/// # Errors
///
/// [`ConfigError`], with all problems at once.
pub(crate) fn load_handlers(
    path: Option<&Path>,
    env: &dyn Env,
    registry: &Registry,
) -> Result<(Vec<SubscriptionConfig>, StoreConfig), ConfigError> {
    let handler = |config: &HandlerConfig, store: Option<&StoreConfig>| {
        handler_problems(registry, config, store)
    };
    let checks = Checks {
        handler: &handler,
        ..Checks::NONE
    };
    crate::config::load_handlers(path, env, &checks)
}

/// Why a handler that writes within the store's transactions cannot work with this store.
fn no_transactions(
    handler: &dyn Handler,
    config: &HandlerConfig,
    store: &StoreConfig,
) -> Option<String> {
    (handler.transactional().is_some() && !store.is_postgres()).then(|| {
        format!(
            "a handler of type `{}` writes into the store's database, which has to be Postgres: set `store.url` \
             (DATABASE_URL) to a postgres:// URL, or `database_url` of the handler, where it has that key, to write to \
             another database",
            config.kind
        )
    })
}

/// Why a handler that hands on whole payloads cannot work with what it is configured to be shown.
fn no_payload(handler: &dyn Handler, config: &HandlerConfig) -> Option<HandlerProblem> {
    (handler.takes_payload() && config.fields.hides()).then(|| HandlerProblem {
        key: Some("fields".to_owned()),
        message: "hides a part of events from a handler that hands on their bytes as they came, with all fields in \
                  them: take it away, or have the handler hand on JSON"
            .to_owned(),
    })
}

fn handler_problems(
    registry: &Registry,
    config: &HandlerConfig,
    store: Option<&StoreConfig>,
) -> Vec<HandlerProblem> {
    match registry.build(config) {
        Ok(handler) => store
            .and_then(|store| no_transactions(&*handler, config, store))
            .map(|message| HandlerProblem { key: None, message })
            .into_iter()
            .chain(no_payload(&*handler, config))
            .collect(),
        Err(HandlerConfigError::Options { problems, .. }) => problems
            .iter()
            .map(|problem| HandlerProblem {
                key: Some(problem.key().to_owned()),
                message: problem.to_string(),
            })
            .collect(),
        Err(other) => vec![HandlerProblem {
            key: None,
            message: other.to_string(),
        }],
    }
}

/// A connection to an org: the session that is shared, and the bus.
#[derive(Clone)]
pub(crate) struct Org {
    /// The session that every call carries.
    pub(crate) tokens: Arc<dyn TokenSource>,
    /// The event bus.
    pub(crate) bus: PubSub,
}

impl Org {
    /// Prepares sign-in and a lazy channel; sends nothing. Within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// A configuration that can never work.
    pub(crate) fn prepare(
        config: &SalesforceConfig,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, PubSubError> {
        let tokens: Arc<dyn TokenSource> = Arc::new(Authenticator::new(config, vault)?);
        let bus = PubSub::connect(config, tokens.clone())?;
        Ok(Self { tokens, bus })
    }

    /// Begins no sign-in any more that could lose a refresh token, and sees the one under way through, for
    /// at most `limit`. To be called before the store is closed.
    pub(crate) async fn close(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.tokens.close())
            .await
            .is_err()
        {
            error!(
                "a sign-in did not end in time, and the new refresh token may be lost with it: if the next sign-in is \
                 refused, authorise the app again and set `salesforce.refresh_token`"
            );
        }
    }

    /// The schema cache in front of this org: memory, store, folder, then GetSchema.
    pub(crate) fn schemas(&self, store: Option<Arc<dyn Store>>, dir: &Path) -> SchemaCache {
        let shelf = store.map(|store| Arc::new(StoreShelf(store)) as Arc<dyn SchemaShelf>);
        SchemaCache::new(
            Arc::new(BusSource(self.bus.clone())),
            shelf,
            Some(dir.to_owned()),
        )
    }
}

/// The daemon: runs every configured subscription until `stop` is cancelled.
///
/// # Errors
///
/// Only what no waiting can mend: a configuration that can never work, a taken metrics port, another
/// org's store, or a bug. A database or an org that is away is waited for.
pub async fn run(
    config: Config,
    registry: &Registry,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut handlers = Vec::new();
    for subscription in &config.subscriptions {
        if subscription.handlers.len() > MAX_HANDLERS {
            return Err(RunError::Config(format!(
                "subscription `{}` has more than {MAX_HANDLERS} handlers",
                subscription.name
            )));
        }
        if subscription.hides() && config.store.encryption_key.is_none() {
            let why = needs_encryption(&subscription.name);
            return Err(RunError::Config(format!(
                "store.encryption_key (ORGSTREAM_ENCRYPTION_KEY) is missing; {why}"
            )));
        }
        let build = |handler: &HandlerConfig| {
            let built = registry.build(handler)?;
            if let Some(problem) = no_payload(&*built, handler) {
                let why = format!("handler `{}`: `fields` {}", handler.name, problem.message);
                return Err(RunError::Config(why));
            }
            match no_transactions(&*built, handler, &config.store) {
                Some(why) => Err(RunError::Config(why)),
                None => Ok(built),
            }
        };
        let built: Result<Vec<Arc<dyn Handler>>, _> =
            subscription.handlers.iter().map(build).collect();
        handlers.push(built?);
    }
    let identity = identity();
    // Before anything that counts.
    let measuring = Measuring::begin(&config, &identity.name).await?;
    for subscription in &config.subscriptions {
        let handlers = subscription.handlers.iter().map(|one| one.name.as_str());
        metrics::begin_to_count(&subscription.name, handlers);
    }
    let to_close: Vec<Arc<dyn Handler>> = handlers.iter().flatten().cloned().collect();
    let states = States::new(&config);
    let asked_at = asked_at(&stop);
    let waiting = Waiting {
        states: &states,
        stop: &stop,
        passing: config.salesforce.reconnect,
        mendable: config.salesforce.blocked_retry,
    };
    let Some(store) = open_store(&config, &waiting).await? else {
        return Ok(());
    };
    let org = Org::prepare(&config.salesforce, Some(vault(store.clone())))
        .map_err(|error| RunError::Config(error.to_string()))?;
    let watched = config.clone();
    let posting = Posting {
        store: store.clone(),
        recorder: measuring.recorder().cloned(),
        holder: identity.holder.clone(),
        samples: Samples::default(),
    };
    let samples = posting.samples.clone();
    let work = async {
        let lease = config.store.lease;
        let waits_for = || states.cannot_begin(&watched);
        let start = sign_in(&org, &store, &waiting);
        let session = match worker::live_while(&store, &identity, lease, waits_for, start).await {
            Ok(Some(session)) => session,
            ended => {
                worker::retire(&store, &identity.holder).await;
                return ended.map(|_| ());
            }
        };
        let ready = Ready {
            store: store.clone(),
            org: org.clone(),
            session,
            identity: identity.clone(),
            samples,
        };
        let pruning = housekeeping::prune(store.clone(), config.retention.clone());
        tokio::select! {
            result = run_subscriptions(config, handlers, ready, &states, stop.clone()) => result,
            never = pruning => match never {},
        }
    };
    let result = tokio::select! {
        result = work => result,
        never = posting.run() => match never {},
        never = housekeeping::watch_positions(store.as_ref(), &watched, &identity.holder) => match never {},
    };
    let spent = asked_at.get().map_or(Duration::ZERO, Instant::elapsed);
    let left = STOP_LIMIT.saturating_sub(spent);
    tokio::join!(
        org.close(left),
        close_handlers(&to_close, left),
        measuring.end()
    );
    // Politeness only, and a store that hangs must not hold the exit up.
    let _ = tokio::time::timeout(CLOSE_LIMIT, store.close()).await;
    result
}

/// Lets every handler end in order, all at the same time.
async fn close_handlers(handlers: &[Arc<dyn Handler>], limit: Duration) {
    let closing = handlers.iter().map(|handler| handler.close(limit));
    // What takes longer is dropped, and ends with the process.
    let _ = tokio::time::timeout(limit, join_all(closing)).await;
}

/// How long a stop may take: platforms kill 30 s after they ask, and the log's last lines want time too. The
/// drain takes at most 16 s of it, the last write, the last sample and giving the leases back 5 s more; a sign-in under way and
/// handlers that end are then given all that is left, 3 s at least and the whole where nothing was in flight.
const STOP_LIMIT: Duration = Duration::from_secs(24);

/// When `stop` was cancelled, once it is.
fn asked_at(stop: &CancellationToken) -> Arc<OnceLock<Instant>> {
    let asked_at = Arc::new(OnceLock::new());
    let (stop, noted) = (stop.clone(), asked_at.clone());
    tokio::spawn(async move {
        stop.cancelled().await;
        // Nobody else sets it.
        let _ = noted.set(Instant::now());
    });
    asked_at
}

/// What must be there before any subscription can begin.
struct Ready {
    store: Arc<dyn Store>,
    org: Org,
    session: Arc<Session>,
    identity: store::Worker,
    samples: Samples,
}

/// Who this process is to the others.
fn identity() -> store::Worker {
    store::Worker {
        holder: uuid::Uuid::new_v4().to_string(),
        name: worker::name(ProcessEnv.var("DYNO")),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    }
}

/// Opens the store and brings its tables up to date; waits for it where it is away. `None` where told to
/// stop meanwhile.
async fn open_store(
    config: &Config,
    waiting: &Waiting<'_>,
) -> Result<Option<Arc<dyn Store>>, RunError> {
    let opened = waiting
        .until("open the store", || store::open(&config.store))
        .await?;
    let Some(store) = opened else { return Ok(None) };
    let migrated = waiting
        .until("migrate the store", || store.migrate())
        .await?;
    Ok(migrated.map(|_| store))
}

/// Signs in, and binds the store to the org; waits for whatever is away. `None` where told to stop
/// meanwhile.
async fn sign_in(
    org: &Org,
    store: &Arc<dyn Store>,
    waiting: &Waiting<'_>,
) -> Result<Option<Arc<Session>>, RunError> {
    let session = waiting.until("sign in", || org.tokens.session()).await?;
    let Some(session) = session else {
        return Ok(None);
    };
    let bound = waiting
        .until("bind the store to the org", || {
            store.bind_org(&session.org_id)
        })
        .await?;
    Ok(bound.map(|()| session))
}

/// The store as the place where a rotated refresh token is kept.
fn vault(store: Arc<dyn Store>) -> Arc<dyn CredentialVault> {
    store
}

/// Each subscription's state, published as a metric whenever it changes.
struct States(Vec<(String, watch::Sender<State>)>);

impl States {
    fn new(config: &Config) -> Self {
        let states = config.subscriptions.iter().map(|subscription| {
            let (sender, mut seen) = watch::channel(State::Connecting);
            let name = subscription.name.clone();
            tokio::spawn(async move {
                loop {
                    metrics::stream_state(&name, seen.borrow_and_update().name());
                    if seen.changed().await.is_err() {
                        return;
                    }
                }
            });
            (subscription.name.clone(), sender)
        });
        Self(states.collect())
    }

    /// What this worker waits for, as others are told of it.
    fn cannot_begin(&self, config: &Config) -> Vec<Refused> {
        let topics = config.subscriptions.iter().map(|one| one.topic.to_string());
        let waiting = self.0.iter().zip(topics);
        let refused = waiting.filter_map(|((name, state), topic)| {
            let state = state.borrow();
            Some(Refused {
                name: name.clone(),
                topic,
                why: format!("it cannot begin yet: {}", state.detail()?),
            })
        });
        refused.collect()
    }

    fn all(&self, state: &State) {
        for (_, sender) in &self.0 {
            sender.send_replace(state.clone());
        }
    }
}

async fn run_subscriptions(
    config: Config,
    handlers: Vec<Vec<Arc<dyn Handler>>>,
    ready: Ready,
    states: &States,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let schemas = ready
        .org
        .schemas(Some(ready.store.clone()), &config.schemas_dir);
    let limits = Limits::new(&config.salesforce, ready.org.tokens.clone())
        .map_err(|error| RunError::Config(error.to_string()))?;
    let allocation = Allocation {
        store: ready.store.clone(),
        limits: limits.clone(),
        org_id: ready.session.org_id.clone(),
        interval: config.salesforce.limits_interval,
    };
    let entries = config
        .subscriptions
        .into_iter()
        .zip(handlers)
        .zip(&states.0);
    let setup = worker::Setup {
        shared: Shared {
            limits,
            bus: ready.org.bus,
            store: ready.store,
            schemas: Arc::new(schemas),
            salesforce: config.salesforce,
            org_id: ready.session.org_id.clone(),
            host: ready.session.host().to_owned(),
            samples: ready.samples,
        },
        identity: ready.identity,
        lease: config.store.lease,
        entries: entries
            .map(|((config, handlers), (_, shown_state))| worker::Entry {
                config,
                handlers,
                shown_state: shown_state.clone(),
            })
            .collect(),
    };
    let ended = tokio::select! {
        ended = worker::run(setup, stop) => ended,
        never = allocation.watch() => match never {},
    };
    ended.map_err(|bug| RunError::Bug {
        subscription: bug.subscription.unwrap_or_else(|| "?".to_owned()),
        reason: bug.reason,
    })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::handler::{BatchAnswer, EventBatch, Options};

    /// Hands on what came off the bus.
    struct Raw;

    #[async_trait]
    impl Handler for Raw {
        async fn handle(&self, _: &EventBatch) -> BatchAnswer {
            BatchAnswer::HANDLED
        }

        fn takes_payload(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_handler_of_whole_payloads_cannot_be_shown_a_part_of_them() {
        let mut registry = Registry::builtin();
        registry.register("raw", |config| {
            Options::new(config).finish(Some(()))?;
            Ok(Arc::new(Raw))
        });
        let mut config = HandlerConfig::new("raw");
        assert_eq!(handler_problems(&registry, &config, None), []);
        config.fields.mask = vec!["Phone".to_owned()];
        let problems = handler_problems(&registry, &config, None);
        assert_eq!(problems[0].key.as_deref(), Some("fields"));
        assert!(problems[0].message.contains("hand on JSON"));
        config.kind = "log".to_owned();
        assert_eq!(handler_problems(&registry, &config, None), []);
    }

    /// A program that embeds the daemon spawns it: this compiles, and never runs.
    #[expect(dead_code, reason = "to be compiled")]
    fn the_daemon_can_be_spawned(config: Config, registry: Registry, stop: CancellationToken) {
        tokio::spawn(async move { run(config, &registry, stop).await });
    }
}
