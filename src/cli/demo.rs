//! `orgstream demo`: an org in memory, sample traffic, and the daemon, in one process.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use clap::Args;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Failure;
use super::emulator::per_second;
use super::output::{age, note};
use super::run::on_signal;
use crate::app;
use crate::config::{
    AuthConfig, Config, HandlerConfig, RetentionConfig, SalesforceConfig, Start, StoreConfig,
    SubscriptionConfig, WebConfig,
};
use crate::emulator::sample::{self, Traffic};
use crate::emulator::{
    DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Emulator, EmulatorConfig, Handle, PublishError,
    Settings,
};
use crate::event::Topic;
use crate::handler::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Registry};
use crate::store::{self, SubscriptionStatus};

/// How often a terminal is told how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Quiet topics move their positions every few seconds instead of every two minutes.
const KEEPALIVE_MS: u64 = 5_000;

/// How often the org is asked whether the daemon has opened its streams.
const STREAMS_LOOK: Duration = Duration::from_millis(50);

/// See it all work: an org in memory, sample traffic and the daemon.
///
/// Needs nothing installed. Starts the emulator, lets a small business happen in it (accounts and contacts change, orders come in),
/// and runs the daemon against it: three subscriptions with the `log` handler, positions in SQLite in a
/// temporary folder that is removed at the end. Events go to standard output, one CloudEvents JSON line
/// each; on a terminal, standard error tells what is happening. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream demo\n  orgstream demo --events 20 | jq '{type, subject, data}'"
)]
pub(super) struct DemoArgs {
    /// End after at least so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// How many things happen in a second
    #[arg(long, default_value = "2", value_name = "PER_SECOND", value_parser = per_second)]
    pace: f64,
}

pub(super) async fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    let folder = Folder::make()?;
    let emulator = Emulator::start(EmulatorConfig {
        settings: Settings {
            keepalive_ms: KEEPALIVE_MS,
            ..Settings::default()
        },
        ..EmulatorConfig::default()
    })
    .await
    .map_err(anyhow::Error::from)?;
    sample::add_topics(&emulator).map_err(anyhow::Error::msg)?;
    let config = configuration(&emulator, &folder.0)?;
    let store = config.store.clone();
    let progress = Arc::new(Progress::new(args.events, stop.clone()));
    let registry = registry(&progress);
    if let Some(seconds) = args.seconds {
        end_after(Duration::from_secs(seconds), stop.clone());
    }
    if io::stderr().is_terminal() {
        note(&introduction(&emulator));
        tokio::spawn(tell(store.clone(), progress.clone(), stop.clone()));
    }
    let traffic = tokio::spawn(traffic(
        emulator.clone(),
        config.subscriptions.len(),
        args.pace,
        stop.clone(),
    ));
    let result = tokio::select! {
        result = app::run(config, &registry, stop.clone()) => result,
        // What is in flight can never be handled then.
        () = progress.output_closed.cancelled() => return Err(Failure::OutputClosed),
    };
    stop.cancel();
    result?;
    if let Ok(Err(error)) = traffic.await {
        return Err(anyhow::Error::from(error).into());
    }
    note(&closing(&statuses(&store).await, &progress));
    emulator.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Sample traffic, once all streams are open: each kind of event is seen from the beginning.
async fn traffic(
    emulator: Handle,
    streams: usize,
    pace: f64,
    stop: CancellationToken,
) -> Result<(), PublishError> {
    while emulator.state().streams.len() < streams {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(STREAMS_LOOK) => {}
        }
    }
    Traffic::new(emulator, None).run(pace, stop).await
}

/// A folder for this run, for this user only; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, anyhow::Error> {
        let path = std::env::temp_dir().join(format!("orgstream-demo-{}", Uuid::new_v4()));
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt as _;
            builder.mode(0o700);
        }
        builder.create(&path).map_err(|error| {
            anyhow::anyhow!("cannot make the folder {}: {error}", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is a small file in the system's folder for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a person would have written in `orgstream.toml`.
fn configuration(emulator: &Emulator, folder: &Path) -> Result<Config, anyhow::Error> {
    let auth = AuthConfig::ClientCredentials {
        client_id: DEFAULT_CLIENT_ID.to_owned(),
        client_secret: DEFAULT_CLIENT_SECRET.into(),
    };
    let mut salesforce = SalesforceConfig::new(emulator.login_url(), auth);
    salesforce.pubsub_endpoint = emulator.pubsub_url().to_owned();
    let subscription = |(name, topic): (&str, &str)| {
        let topic: Topic = topic.parse()?;
        let mut subscription = SubscriptionConfig::new(name, topic);
        subscription.start = Start::Earliest;
        subscription.start_is_explicit = true;
        subscription.handlers = vec![HandlerConfig::new("log")];
        Ok::<_, anyhow::Error>(subscription)
    };
    let subscriptions = [
        ("accounts", sample::ACCOUNTS),
        ("contacts", sample::CONTACTS),
        ("orders", sample::ORDERS),
    ];
    Ok(Config {
        salesforce,
        store: StoreConfig::new(sqlite_url(&folder.join("orgstream.db"))),
        retention: RetentionConfig::default(),
        web: WebConfig::default(),
        subscriptions: subscriptions
            .into_iter()
            .map(subscription)
            .collect::<Result<_, _>>()?,
        metrics_addr: None,
        otlp: None,
        log_samples: None,
        schemas_dir: folder.join("schemas"),
    })
}

/// The URL of a file, whatever its path.
fn sqlite_url(path: &Path) -> String {
    let path = path.display().to_string();
    format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F"))
}

/// What has been handled, and when that is enough.
struct Progress {
    handled: AtomicU64,
    enough: u64,
    stop: CancellationToken,
    output_closed: CancellationToken,
}

impl Progress {
    fn new(enough: Option<u64>, stop: CancellationToken) -> Self {
        Self {
            handled: AtomicU64::new(0),
            enough: enough.unwrap_or(u64::MAX),
            stop,
            output_closed: CancellationToken::new(),
        }
    }

    fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    fn add(&self, events: usize) {
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        let before = self.handled.fetch_add(events, Ordering::Relaxed);
        if before.saturating_add(events) >= self.enough {
            self.stop.cancel();
        }
    }
}

/// The built-in handlers, with `log` counted.
fn registry(progress: &Arc<Progress>) -> Registry {
    let builtin = Registry::builtin();
    let progress = progress.clone();
    let mut registry = Registry::builtin();
    registry.register("log", move |config| {
        let log = builtin.build(config)?;
        let progress = progress.clone();
        Ok(Arc::new(Counted { log, progress }))
    });
    registry
}

/// The `log` handler, watched: it ends the demonstration when there was enough, or nobody reads.
struct Counted {
    log: Arc<dyn Handler>,
    progress: Arc<Progress>,
}

#[async_trait]
impl Handler for Counted {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let answer = self.log.handle(batch).await;
        let (handled, again) = match &answer {
            BatchAnswer::All(Answer::Handled) => (batch.events.len(), false),
            BatchAnswer::All(one) => (0, matches!(one, Answer::Retry(_))),
            BatchAnswer::Each(each) => (
                each.iter().filter(|one| **one == Answer::Handled).count(),
                each.iter().any(|one| matches!(one, Answer::Retry(_))),
            ),
        };
        self.progress.add(handled);
        if again {
            self.progress.output_closed.cancel();
        }
        answer
    }

    fn batch_limits(&self) -> BatchLimits {
        self.log.batch_limits()
    }
}

fn end_after(time: Duration, stop: CancellationToken) {
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        stop.cancel();
    });
}

fn introduction(emulator: &Emulator) -> String {
    format!(
        "A Salesforce org in memory is up, a small business is busy in it, and the daemon streams what happens.\n\
         \n\
         \x20 Pub/Sub API    {}\n\
         \x20 admin API      {}  (publish, cause trouble: docs/EMULATOR.md)\n\
         \x20 subscriptions  accounts and contacts (change events), orders (platform events)\n\
         \x20 below          each event as it is handled, one line of CloudEvents JSON\n\
         \n\
         Ctrl-C ends it.\n",
        emulator.pubsub_url(),
        emulator.admin_url()
    )
}

/// Tells every few seconds how it goes, in a line of its own between the events.
async fn tell(store: StoreConfig, progress: Arc<Progress>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
        let statuses = statuses(&store).await;
        let each: Vec<String> = statuses.iter().map(one_status).collect();
        note(&format!(
            "-- {} events handled; {}",
            progress.handled(),
            each.join("; ")
        ));
    }
}

fn one_status(one: &SubscriptionStatus) -> String {
    // The store's view of the lag: it is written with the position, so it is a second or more behind.
    let caught_up = match one.caught_up_at {
        Some(then) => format!("caught up {} ago", age(Some(then), SystemTime::now())),
        None => "not caught up yet".to_owned(),
    };
    let parked = match one.parked {
        0 => String::new(),
        parked => format!(", {parked} parked"),
    };
    format!("{} {}, {caught_up}{parked}", one.key.name, one.state)
}

/// What the store says; nothing where it does not answer, for these are words by the way.
async fn statuses(config: &StoreConfig) -> Vec<SubscriptionStatus> {
    let Ok(store) = store::open(config).await else {
        return Vec::new();
    };
    let statuses = store.subscriptions().await.unwrap_or_default();
    store.close().await;
    statuses
}

fn closing(statuses: &[SubscriptionStatus], progress: &Progress) -> String {
    let mut text = format!("\n{} events handled:\n", progress.handled());
    for one in statuses {
        let position = one
            .position
            .as_ref()
            .map_or_else(|| "none".to_owned(), ToString::to_string);
        text.push_str(&format!(
            "  {:<9} {:>5} received, {:>5} finished, {} parked, position {position}\n",
            one.key.name, one.received, one.finished, one.parked
        ));
    }
    text.push_str(
        "\nNext: `orgstream emulator` runs the org alone, to try a configuration against it.\n\
         For your own org, set SALESFORCE_* (README.md), then `orgstream check` and `orgstream run`.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_events_end_it() {
        let stop = CancellationToken::new();
        let progress = Progress::new(Some(3), stop.clone());
        progress.add(2);
        assert!(!stop.is_cancelled());
        progress.add(2);
        assert!(stop.is_cancelled());
        assert_eq!(progress.handled(), 4);
    }

    #[test]
    fn the_folder_is_gone_at_the_end() {
        let folder = Folder::make().unwrap();
        let path = folder.0.clone();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn any_path_becomes_a_url() {
        assert_eq!(
            sqlite_url(Path::new("/tmp/a%b?c/x.db")),
            "sqlite:///tmp/a%25b%3Fc/x.db"
        );
    }
}
