//! `orgstream handler-test`: does a handler keep its contract?

mod redirect;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use serde_json::Value;
use tokio::process::Command;

use self::redirect::StandardOutput;
use super::Failure;
use super::connect::{JsonFlag, schemas_dir};
use super::output::{note, print, print_json};
use crate::app;
use crate::config::{HandlerConfig, ProcessEnv, StoreConfig, SubscriptionConfig, parse_duration};
use crate::conformance::{self, ConformanceError, FarSide, MOST_EVENTS, Report, Script};
use crate::handler::Registry;

/// How long the command of --received may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// Find out what a handler gets wrong, with test events.
///
/// Runs a configured handler through a script, as the daemon would call it: many records side by side, the same
/// events again, as many in a call as it takes, one of the largest size, odd and bad ones among sound ones, calls
/// that are dropped in the middle, and kills. Says what the handler got wrong, what would be right, and how to mend
/// it. Handlers of your own daemon are tested by your own program: every command of it knows them.
///
/// It sends real test events to the real other side, so it says what it is about to do and asks first. Their `id`
/// begins with `orgstreamtest-`, they come from the organization 00D000000000000EAA, and their records begin with
/// 000: no org has any of these. No position moves, and the org is not called.
///
/// The handler's word is not proof. With --received, a command that prints what has arrived, oldest first and in
/// any form that holds the events' `id`, it is compared with what is there: nothing lost in a kill, and each record
/// in order.
///
/// A handler that writes within transactions of the store is called within real ones, which are rolled back;
/// with --commit they are kept.
///
/// What the handler writes to standard output goes to standard error here, so that standard output has the result
/// alone. Exits with 1 if anything is wrong.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream handler-test fulfilment\n  orgstream handler-test accounts/fulfilment --yes --json\n  orgstream handler-test program --yes --received 'cat events.jsonl'\n  orgstream handler-test rows --commit --received \"psql $DATABASE_URL -Atc 'select id from orgstream_events order by number'\"\n  orgstream handler-test orders --event '{\"Status__c\": \"Shipped\"}' --bad '{\"Status__c\": \"?\"}'"
)]
pub(super) struct HandlerTestArgs {
    /// The handler: SUBSCRIPTION/HANDLER, or the name of either where that names one handler
    #[arg(value_name = "HANDLER")]
    name: String,
    /// Do not ask for confirmation on a terminal
    #[arg(long, short)]
    yes: bool,
    /// A shell command that prints what has arrived at the other side, oldest first
    #[arg(long, value_name = "COMMAND")]
    received: Option<String>,
    /// Fields of an event that the handler takes, if it does not take any event
    #[arg(long, value_name = "JSON|@FILE", allow_hyphen_values = true)]
    event: Option<String>,
    /// Fields of an event that the handler must reject
    #[arg(long, value_name = "JSON|@FILE", allow_hyphen_values = true)]
    bad: Option<String>,
    /// How long a call may take before it counts as hanging
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// How long a handler is tried that asks for retries alone
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    patience: Duration,
    /// Commit the transactions of a handler that writes to the store's database
    #[arg(long)]
    commit: bool,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(path: Option<&Path>, args: HandlerTestArgs) -> Result<ExitCode, Failure> {
    // What a handler prints belongs elsewhere: standard output is for the result. The first handlers are built
    // when the configuration is checked.
    let standard_output = StandardOutput::to_standard_error()?;
    let registry = super::registry();
    let (subscriptions, store) = app::load_handlers(path, &ProcessEnv, registry)?;
    let (subscription, handler) = find(&subscriptions, &args.name)?;
    let script = script(&args, store)?;
    if !confirmed(subscription, handler, &args)? {
        note("nothing was sent");
        return Ok(ExitCode::FAILURE);
    }
    let report = test(registry, subscription, handler, &script).await?;
    drop(standard_output);
    if args.output.json {
        print_json(&report)?;
    } else {
        print(&report.to_string())?;
        note(&told(&report, args.received.is_some()));
    }
    Ok(ExitCode::from(u8::from(!report.is_sound())))
}

async fn test(
    registry: &Registry,
    subscription: &SubscriptionConfig,
    handler: &HandlerConfig,
    script: &Script,
) -> Result<Report, Failure> {
    let tested = conformance::run(registry, subscription, handler, script).await;
    tested.map_err(|error| match error {
        ConformanceError::Handler(_) | ConformanceError::NoStore => {
            Failure::Config(error.to_string())
        }
        other => Failure::Failed(other.into()),
    })
}

/// The one handler of this name.
fn find<'a>(
    subscriptions: &'a [SubscriptionConfig],
    name: &str,
) -> Result<(&'a SubscriptionConfig, &'a HandlerConfig), Failure> {
    let all = || {
        let handlers = |one: &'a SubscriptionConfig| one.handlers.iter().map(move |h| (one, h));
        subscriptions.iter().flat_map(handlers)
    };
    let named: Vec<_> = match name.split_once('/') {
        Some((subscription, handler)) => all()
            .filter(|(s, h)| s.name == subscription && h.name == handler)
            .collect(),
        None => {
            let handlers: Vec<_> = all().filter(|(_, h)| h.name == name).collect();
            match handlers.is_empty() {
                true => all().filter(|(s, _)| s.name == name).collect(),
                false => handlers,
            }
        }
    };
    let names = |of: &[(&SubscriptionConfig, &HandlerConfig)]| {
        let names: Vec<String> = of
            .iter()
            .map(|(s, h)| format!("{}/{}", s.name, h.name))
            .collect();
        names.join(", ")
    };
    match named.as_slice() {
        [one] => Ok(*one),
        [] => {
            let all: Vec<_> = all().collect();
            Err(anyhow::anyhow!(
                "the configuration has no handler `{name}`; it has {}",
                names(&all)
            )
            .into())
        }
        several => Err(anyhow::anyhow!(
            "`{name}` names several handlers: {}; say which",
            names(several)
        )
        .into()),
    }
}

fn script(args: &HandlerTestArgs, store: StoreConfig) -> Result<Script, Failure> {
    let far_side = |command: &String| Arc::new(Printed(command.clone())) as Arc<dyn FarSide>;
    Ok(Script {
        call_limit: args.timeout,
        patience: args.patience,
        sound: fields("--event", args.event.as_deref())?,
        bad: fields("--bad", args.bad.as_deref())?,
        schemas: Some(schemas_dir()),
        far_side: args.received.as_ref().map(far_side),
        store: Some(store),
        commit: args.commit,
        ..Script::default()
    })
}

/// The fields of an event, given as they are or as @FILE.
fn fields(option: &str, given: Option<&str>) -> Result<Option<Value>, Failure> {
    let Some(given) = given else { return Ok(None) };
    let text = match given.strip_prefix('@') {
        None => given.to_owned(),
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("{option}: cannot read {file}: {error}"))?,
    };
    let fields = serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{option} is not JSON: {error}"))?;
    Ok(Some(fields))
}

/// Says what is about to happen, and asks a person at a terminal; anybody else has to have said --yes.
fn confirmed(
    subscription: &SubscriptionConfig,
    handler: &HandlerConfig,
    args: &HandlerTestArgs,
) -> Result<bool, Failure> {
    note(&format!(
        "Sends up to {MOST_EVENTS} test events of {topic}, each several times, to handler `{handler}` of type {kind} \
         as configured for `{subscription}`, and through it to whatever it writes to. Their id begins with \
         orgstreamtest-, their organization is 00D000000000000EAA.",
        topic = subscription.topic,
        handler = handler.name,
        kind = handler.kind,
        subscription = subscription.name,
    ));
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        note("say --yes where nobody can be asked");
        return Ok(false);
    }
    note("Go on? [y/N]");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(anyhow::Error::from)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The last word to a person.
fn told(report: &Report, looked: bool) -> String {
    let verdict = match report.is_sound() {
        true if looked => "nothing wrong was found",
        true => {
            "nothing wrong was found in its answers; --received would show whether they are true"
        }
        false => "something is wrong: see above",
    };
    format!(
        "{verdict}. What is left of the test at the other side has `{}` in its id",
        report.mark
    )
}

/// What a shell command prints.
struct Printed(String);

#[async_trait]
impl FarSide for Printed {
    async fn received(&self) -> Result<Vec<String>, String> {
        let output = Command::new("sh")
            .args(["-c", &self.0])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LOOK_LIMIT, output).await;
        let output = output
            .map_err(|_| {
                let limit = LOOK_LIMIT.as_secs();
                format!("the command of --received did not end within {limit} s")
            })?
            .map_err(|error| format!("the command of --received cannot be started: {error}"))?;
        if !output.status.success() {
            let status = output.status;
            return Err(format!("the command of --received ended with {status}"));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriptions() -> Vec<SubscriptionConfig> {
        let of = |name: &str, handlers: &[&str]| {
            let mut one = SubscriptionConfig::new(name, "Account".parse().unwrap());
            one.handlers = handlers
                .iter()
                .map(|kind| HandlerConfig::new(*kind))
                .collect();
            one
        };
        vec![of("accounts", &["log", "webhook"]), of("orders", &["log"])]
    }

    #[test]
    fn a_handler_is_found_by_whatever_names_one() {
        let all = subscriptions();
        for (name, found) in [
            ("accounts/log", "accounts/log"),
            ("webhook", "accounts/webhook"),
            ("orders", "orders/log"),
        ] {
            let (subscription, handler) = find(&all, name).ok().unwrap();
            assert_eq!(format!("{}/{}", subscription.name, handler.name), found);
        }
        for (name, why) in [
            ("log", "several handlers: accounts/log, orders/log"),
            (
                "accounts",
                "several handlers: accounts/log, accounts/webhook",
            ),
            ("nobody", "no handler `nobody`; it has accounts/log,"),
            ("orders/webhook", "no handler"),
        ] {
            let Err(Failure::Failed(error)) = find(&all, name) else {
                panic!("{name} was found");
            };
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_command_prints_is_what_has_arrived_unless_it_fails() {
        let printed = |command: &str| Printed(command.to_owned());
        assert_eq!(
            printed("echo a; echo b").received().await.unwrap(),
            ["a", "b"]
        );
        let error = printed("echo a; exit 3").received().await.unwrap_err();
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
