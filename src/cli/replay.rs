//! `orgstream replay`: events that the bus still keeps, once more.

mod place;
mod plan;
mod watch;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::place::PlaceArg;
use self::plan::Plan;
use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::output::{NONE, Table, age, note, print, print_json};
use super::run::on_signal;
use crate::config::{self, Env as _, ProcessEnv};
use crate::store::{
    CommandKind, CommandState, ReplayArguments, Store, StoredCommand, SubscriptionStatus,
};

/// How many commands `--status` lists.
const LISTED: u32 = 20;

/// Hand events over again that the bus still keeps, up to three days back.
///
/// Without --to and --handler the live subscription is rewound: its worker finishes what is in flight, puts the
/// position there under a new epoch, and goes on from it for all handlers. To `latest` it skips what lies
/// between, which is recorded as a hole. So it does where the place lies ahead; because replay IDs cannot be
/// compared, every other rewind is a hole too until the stream has come by the old position again.
///
/// With --to or --handler it is a side replay: a second stream beside the live one, whose events are marked
/// `replayed` and take turns with live ones of the same record. The position does not move. It ends at --to, and
/// at the latest with what the live stream has brought when it begins. One side replay of a subscription runs at a time; more wait. Where
/// no event marks that end, it ends with the next keepalive of the bus, which comes within 270 seconds.
///
/// Older values will follow newer ones in either case. Every event counts once more against the org's delivery
/// allocation of rolling 24 hours, which all its subscribers share.
///
/// The subscription's worker carries it out, while it runs or at its next start; a worker that dies is
/// followed by another that goes on from where it was. Ctrl-C takes back what has not begun, stops a side replay,
/// and says where things stand.
///
/// A time stands for the position that the subscription had reached at that time, which the store notes about
/// once a minute: a few events before it come along. For change events it is their commit time, for platform
/// events the time they were received.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream replay accounts --from earliest --dry-run\n  orgstream replay accounts --from '2h ago'\n  orgstream replay accounts --from 2026-11-20T10:00:00Z --to 2026-11-20T11:00:00Z --handler fulfilment\n  orgstream replay accounts --from 00000000001204450000 --handler fulfilment --yes --no-wait\n  orgstream replay --status\n  orgstream replay --withdraw 7"
)]
pub(super) struct ReplayArgs {
    /// The subscription's name in the configuration
    #[arg(required_unless_present_any = ["status", "withdraw"])]
    name: Option<String>,
    /// Where to begin: earliest, latest, after a replay ID in hexadecimal, at a time (RFC 3339), or a span
    /// back such as `2h ago` or 2h-ago
    #[arg(
        long,
        value_name = "earliest|latest|REPLAY_ID|TIME",
        required_unless_present_any = ["status", "withdraw"],
    )]
    from: Option<PlaceArg>,
    /// Where to end: with a replay ID, with what was committed at a time (change events only), or latest
    #[arg(long, value_name = "REPLAY_ID|TIME|latest")]
    to: Option<PlaceArg>,
    /// Only for this handler; may be given several times
    #[arg(long = "handler", value_name = "NAME")]
    handlers: Vec<String>,
    /// Say what it would do, and do nothing
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    dry_run: bool,
    /// Do not ask for confirmation on a terminal
    #[arg(long, short)]
    yes: bool,
    /// Ask the worker and return at once
    #[arg(long)]
    no_wait: bool,
    /// List the last commands, of one subscription or of all
    #[arg(long, conflicts_with_all = ["from", "to", "handlers", "dry_run", "yes", "no_wait", "withdraw"])]
    status: bool,
    /// Take a command back by its number
    #[arg(
        long,
        value_name = "ID",
        conflicts_with_all = ["name", "from", "to", "handlers", "dry_run", "yes", "no_wait"],
    )]
    withdraw: Option<i64>,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(path: Option<&Path>, args: ReplayArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let done = if let Some(id) = args.withdraw {
        match watch::withdraw(store.as_ref(), id).await {
            Ok(command) => tell_withdrawn(&command, args.output.json),
            Err(failure) => Err(failure),
        }
    } else if args.status {
        list(store.as_ref(), &args).await
    } else {
        replay(path, store.as_ref(), &args).await
    };
    store.close().await;
    done
}

async fn replay(
    path: Option<&Path>,
    store: &dyn Store,
    args: &ReplayArgs,
) -> Result<ExitCode, Failure> {
    let one = subscription(store, args.name.as_deref().unwrap_or_default()).await?;
    let (kept, _) = config::load_bus_retention(path, &ProcessEnv)?;
    let plan = match plan::make(path, store, args, &one, kept).await? {
        Ok(plan) => plan,
        Err(usage) => {
            note(&format!("error: {usage}"));
            return Ok(ExitCode::from(2));
        }
    };
    if args.dry_run {
        if args.output.json {
            print_json(&plan)?;
        } else {
            print(&plan.text())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    note(plan.text().trim_end());
    if !args.yes && !confirmed()? {
        note("nothing was asked");
        return Ok(ExitCode::FAILURE);
    }
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    let id = ask(store, &one, &plan).await?;
    if let Some(hint) = nobody_there(&one) {
        note(&hint);
    }
    let command = if args.no_wait {
        read(store.command(id).await)?
    } else {
        Some(watch::follow(store, id, &stop).await?)
    };
    match command {
        Some(command) => tell(&command, args.output.json),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn subscription(store: &dyn Store, name: &str) -> Result<SubscriptionStatus, Failure> {
    let all = read(store.subscriptions().await)?;
    let known: Vec<String> = all.iter().map(|one| one.key.name.clone()).collect();
    all.into_iter()
        .find(|one| one.key.name == name)
        .ok_or_else(|| {
            let known = match known.as_slice() {
                [] => "no subscription yet: `orgstream run` makes them".to_owned(),
                known => known.join(", "),
            };
            Failure::Failed(anyhow::anyhow!(
                "the store knows no subscription `{name}`; it knows {known}"
            ))
        })
}

/// Asks a person at a terminal; anybody else has decided already.
fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    note("Go on? [y/N]");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(anyhow::Error::from)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn ask(store: &dyn Store, one: &SubscriptionStatus, plan: &Plan) -> Result<i64, Failure> {
    let kind = plan.command.unwrap_or(CommandKind::Rewind);
    let arguments = serde_json::to_value(&plan.arguments).map_err(anyhow::Error::from)?;
    let asked_by = ["USER", "DYNO"]
        .into_iter()
        .find_map(|name| ProcessEnv.var(name));
    let (org, name) = (&one.key.org_id, &one.key.name);
    let asked = store.ask(org, name, kind, &arguments, asked_by.as_deref());
    let id = read(asked.await)?.ok_or_else(|| {
        anyhow::anyhow!("subscription `{name}` is gone from the store: it was renamed meanwhile")
    })?;
    note(&format!("asked as command {id}"));
    Ok(id)
}

/// What to say where no worker runs it.
fn nobody_there(one: &SubscriptionStatus) -> Option<String> {
    let name = &one.key.name;
    if one.paused_at.is_some() {
        return Some(format!(
            "{name} is paused: it is carried out after `orgstream resume {name}`"
        ));
    }
    (!one.held).then(|| format!("no worker runs {name} now: it is carried out when one does"))
}

/// Says how a command ended.
fn tell(command: &StoredCommand, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&watch::shown(command))?;
    } else {
        note(&watch::epitaph(command));
    }
    Ok(match command.state {
        CommandState::Failed | CommandState::Withdrawn => ExitCode::FAILURE,
        CommandState::Asked | CommandState::Running | CommandState::Done => ExitCode::SUCCESS,
    })
}

/// As [`tell`], for whoever wanted it withdrawn.
fn tell_withdrawn(command: &StoredCommand, json: bool) -> Result<ExitCode, Failure> {
    tell(command, json)?;
    let late = command.state != CommandState::Withdrawn;
    if late && !json {
        note("it was over before");
    }
    Ok(ExitCode::from(u8::from(late)))
}

async fn list(store: &dyn Store, args: &ReplayArgs) -> Result<ExitCode, Failure> {
    let commands = read(store.commands(args.name.as_deref(), LISTED).await)?;
    if args.output.json {
        let shown: Vec<Value> = commands.iter().map(watch::shown).collect();
        print_json(&shown)?;
    } else if commands.is_empty() {
        note("nothing was asked yet");
    } else {
        print(&table(&commands, SystemTime::now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(commands: &[StoredCommand], now: SystemTime) -> String {
    let mut table = Table::new([
        "ID",
        "ASKED",
        "SUBSCRIPTION",
        "KIND",
        "FROM",
        "HANDLERS",
        "STATE",
        "DETAIL",
    ]);
    for command in commands {
        let arguments: Option<ReplayArguments> =
            serde_json::from_value(command.arguments.clone()).ok();
        let from = arguments.as_ref().map(|arguments| arguments.from.clone());
        let handlers = match arguments.map(|arguments| arguments.handlers) {
            Some(names) if !names.is_empty() => names.join(","),
            _ => "all".to_owned(),
        };
        let detail = match command.state {
            CommandState::Asked => NONE.to_owned(),
            CommandState::Running => watch::doing(&watch::progress_of(command)),
            CommandState::Withdrawn => watch::counts(&watch::progress_of(command)),
            CommandState::Done | CommandState::Failed => {
                command.outcome.clone().unwrap_or_else(|| NONE.to_owned())
            }
        };
        table.row([
            command.id.to_string(),
            format!("{} ago", age(Some(command.asked_at), now)),
            command.subscription.clone(),
            command.kind.name().to_owned(),
            from.unwrap_or_else(|| NONE.to_owned()),
            handlers,
            command.state.name().to_owned(),
            detail,
        ]);
    }
    table.text()
}
