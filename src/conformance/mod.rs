//! Does a handler keep the contract of [`Handler`](crate::handler::Handler)? A script of test events that finds
//! out, behind `orgstream handler-test` and for tests of handlers of one's own.
//!
//! | file | what it does |
//! | --- | --- |
//! | `script` | the steps, and what is expected of each |
//! | `events` | makes test events, which can be told from an org's |
//! | `hand_over` | hands them over as the daemon's lanes do |
//! | `call` | builds, calls and kills a handler |
//! | `far_side` | looks at what has arrived |
//! | `report` | what was found, and how to mend it |

mod call;
mod events;
mod far_side;
mod hand_over;
mod report;
mod script;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::config::{HandlerConfig, StoreConfig, SubscriptionConfig};
use crate::handler::{HandlerConfigError, Registry};
use crate::store::StoreError;

pub use far_side::FarSide;
pub use report::{Finding, Mistake, Outcome, Report, Step, StepReport};

use call::{Instance, Within};
use events::Maker;
use far_side::View;
use report::Notebook;
use script::Run;

/// More events than a run ever makes.
pub const MOST_EVENTS: usize = 1500;

/// How the script runs, and what it is told about the handler.
#[derive(Clone)]
#[non_exhaustive]
pub struct Script {
    /// How long a call may take; 60 s. The daemon itself waits for ever.
    pub call_limit: Duration,
    /// How long a handler is tried that answers with retries alone; 30 s.
    pub patience: Duration,
    /// Fields of an event that the handler takes, where it does not take any event.
    pub sound: Option<Value>,
    /// Fields of an event that the handler must reject.
    pub bad: Option<Value>,
    /// Folder of schemas in which that of the topic is looked for; else one of ours stands in for it.
    pub schemas: Option<PathBuf>,
    /// What the handler writes to. Without it the script hears what the handler answers, and cannot tell
    /// whether it is true.
    pub far_side: Option<Arc<dyn FarSide>>,
    /// How long what is missing at the other side is looked for; 5 s.
    pub settle: Duration,
    /// The store, in whose transactions a [`TransactionalHandler`](crate::handler::TransactionalHandler) writes.
    pub store: Option<StoreConfig>,
    /// Commit those transactions where the handler has handled anything; else all are rolled back.
    pub commit: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            call_limit: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            sound: None,
            bad: None,
            schemas: None,
            far_side: None,
            settle: Duration::from_secs(5),
            store: None,
            commit: false,
        }
    }
}

/// The script could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConformanceError {
    /// The handler cannot be built.
    #[error(transparent)]
    Handler(#[from] HandlerConfigError),
    /// The handler's factory panicked.
    #[error("the handler's factory panicked: standard error has the place")]
    BuildPanicked,
    /// Test events cannot be made.
    #[error("{0}")]
    Events(String),
    /// The store cannot be opened.
    #[error("{0}")]
    Store(String),
    /// A transactional handler, and no store in Postgres.
    #[error(
        "the handler writes within transactions of the store, which has to be Postgres: set `store.url` (DATABASE_URL)"
    )]
    NoStore,
    /// The other side cannot be looked at.
    #[error("cannot look at what has arrived: {0}")]
    FarSide(String),
    /// The operating system gives no threads.
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
}

impl From<StoreError> for ConformanceError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Runs the script with a handler as a daemon of this subscription would have it.
///
/// It sends real test events to the handler's real other side, up to [`MOST_EVENTS`], each several times. Their `id`
/// begins with [`Report::mark`], they come from the organization `00D000000000000EAA`, and change records whose IDs
/// begin with `000`: no org has any of these.
///
/// The handler runs in a Tokio runtime of its own, which is ended in the middle of its work. Needs a runtime to be
/// called in.
///
/// ```
/// use std::sync::Arc;
/// use orgstream::config::{HandlerConfig, SubscriptionConfig};
/// use orgstream::conformance::{self, Mistake, Script};
/// use orgstream::handler::{BatchAnswer, EventBatch, Handler, Options, Registry, async_trait};
///
/// struct Count;
///
/// #[async_trait]
/// impl Handler for Count {
///     async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
///         tracing::info!(events = batch.events.len(), "counted");
///         BatchAnswer::HANDLED
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() {
/// let mut registry = Registry::builtin();
/// registry.register("count", |config| {
///     Options::new(config).finish(Some(()))?;
///     Ok(Arc::new(Count))
/// });
/// let subscription = SubscriptionConfig::new("accounts", "Account".parse().unwrap());
/// let report = conformance::run(&registry, &subscription, &HandlerConfig::new("count"), &Script::default())
///     .await
///     .unwrap();
/// assert!(report.is_sound(), "{report}");
/// # }
/// ```
///
/// # Errors
///
/// Why the script could not run. What the handler gets wrong is in the report.
pub async fn run(
    registry: &Registry,
    subscription: &SubscriptionConfig,
    handler: &HandlerConfig,
    script: &Script,
) -> Result<Report, ConformanceError> {
    let instance = Instance::start(registry, handler, None)?;
    if !instance.is_transactional() {
        return run_with(registry, subscription, handler, script, None, instance).await;
    }
    drop(instance);
    let config = script.store.clone().filter(StoreConfig::is_postgres);
    let config = config.ok_or(ConformanceError::NoStore)?;
    let within = Within::open(config, script.commit).await?;
    let instance = Instance::start(registry, handler, Some(within.clone()))?;
    let within = Some(within);
    run_with(registry, subscription, handler, script, within, instance).await
}

async fn run_with(
    registry: &Registry,
    subscription: &SubscriptionConfig,
    config: &HandlerConfig,
    script: &Script,
    within: Option<Within>,
    instance: Instance,
) -> Result<Report, ConformanceError> {
    let maker = Maker::new(
        subscription,
        script.schemas.as_deref(),
        script.sound.as_ref(),
        script.bad.as_ref(),
    )
    .map_err(ConformanceError::Events)?
    .shown_to(config);
    // What was rolled back is nowhere.
    let keeps = within.as_ref().is_none_or(|within| within.commit);
    let view = script
        .far_side
        .clone()
        .filter(|_| keeps)
        .map(|far_side| View {
            far_side,
            mark: maker.mark(),
            settle: script.settle,
        });
    let limits = instance.limits();
    let mut run = Run {
        registry,
        subscription,
        config,
        script,
        within,
        view,
        secrets: maker.secrets(),
        maker,
        notebook: Notebook::default(),
        longest: Duration::ZERO,
        limits,
        instance,
        step: Step::Ready,
        first: Vec::new(),
    };
    let done = run.steps().await;
    if let Some(within) = &run.within {
        within.close().await;
    }
    done.map(|()| run.report())
}
