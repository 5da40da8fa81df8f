//! `orgstream status`: each subscription, as the store knows it.

mod tables;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::output::{note, print, print_json, print_json_line};
use crate::config::{self, ProcessEnv};
use crate::status::{Bus, Overview};
use crate::store::Store;

/// Show each subscription: state, owner, lag, position, parked events, holes; and the workers.
///
/// Reads the store, where the daemon writes about once a second while something happens; it works
/// whether or not a daemon runs.
///
/// STATE is connecting, live, paused (its buffer is full), reconnecting, blocked or stopped, as its owner
/// wrote it; or where nobody runs it `waiting for a worker`, `refused`, where the store does not give it to
/// those that have it in their configuration, or `paused by a person`. OWNER is the worker that
/// runs it: its dyno, or host and process. LAG is how far it is behind, as that worker said some seconds ago, or else the
/// time since the stream was last live with nothing unfinished, or, where it never was, since what is at its position
/// happened; without a worker it grows, so a lag that keeps growing means
/// that the daemon is behind or gone. POSITION is the replay ID up to which every event is finished, AGE
/// the time since it was written. KEPT is how long the bus still keeps what follows it: a subscription that
/// stands still for longer loses events.
///
/// Workers that live come below, with the subscriptions that they run; then, on standard error, what needs a person
/// and what to do about it.
///
/// `--json` prints a list of the subscriptions, with the advice of each; with `--overview` an object that holds the
/// workers, too. `--watch` shows all of it again every 2 seconds, or as many as it is given: on a terminal in place, else
/// one block, or with `--json` one line, after another. It goes on while the database is away, and says so; Ctrl-C
/// ends it, with 0.
///
/// Exits with 1 if anything needs a person: a blocked subscription, a parked event, or a hole that nobody
/// has acknowledged, a position that is about to leave the bus, a subscription that is refused to a worker, or
/// one that nobody runs while no worker is alive. With `--subscription`, if that one does.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream status\n  orgstream status --json --subscription orders\n  orgstream status --watch 5"
)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: JsonFlag,
    /// With --json: one object, with the subscriptions, the workers and when it was read
    #[arg(long, requires = "json")]
    overview: bool,
    /// Only this subscription
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Show it again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
}

/// What is read, and from where.
struct Source<'a> {
    store: &'a dyn Store,
    bus: Bus,
    args: &'a StatusArgs,
}

impl Source<'_> {
    async fn overview(&self) -> Result<Overview, Failure> {
        let Bus { retention, warning } = self.bus;
        let mut overview = read(Overview::read(self.store, retention, warning).await)?;
        if let Some(name) = &self.args.subscription {
            overview.subscriptions.retain(|one| one.name == *name);
            if overview.subscriptions.is_empty() {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "no subscription is called `{name}`: `orgstream status` lists them"
                )));
            }
        }
        Ok(overview)
    }

    /// As JSON: indented, or for a reader of lines one of them.
    fn json(&self, overview: &Overview, lines: bool) -> Result<(), Failure> {
        match (self.args.overview, lines) {
            (false, false) => print_json(&overview.subscriptions),
            (false, true) => print_json_line(&overview.subscriptions),
            (true, false) => print_json(overview),
            (true, true) => print_json_line(overview),
        }
    }
}

pub(super) async fn run(path: Option<&Path>, args: StatusArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let (retention, warning) = config::load_bus_retention(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let source = Source {
        store: store.as_ref(),
        bus: Bus { retention, warning },
        args: &args,
    };
    let done = match args.watch {
        Some(seconds) => watch::run(&source, Duration::from_secs(seconds)).await,
        None => once(&source).await,
    };
    store.close().await;
    done
}

async fn once(source: &Source<'_>) -> Result<ExitCode, Failure> {
    let overview = source.overview().await?;
    if source.args.output.json {
        source.json(&overview, false)?;
    } else {
        if overview.subscriptions.is_empty() {
            note(tables::EMPTY);
        }
        print(&tables::text(&overview))?;
        for line in overview.subscriptions.iter().flat_map(|one| &one.advice) {
            note(line);
        }
    }
    Ok(ExitCode::from(u8::from(overview.needs_a_person())))
}
