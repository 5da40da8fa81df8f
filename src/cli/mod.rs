//! The command line: one file for each command. Events and answers go to standard output, logs to
//! standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.

mod check;
mod config;
mod connect;
mod control;
mod dead_letters;
mod demo;
#[cfg(test)]
mod documents;
mod emulator;
mod handler_test;
mod holes;
mod interrupt;
mod migrate;
mod output;
mod publish;
mod replay;
mod run;
mod schema;
mod status;
mod support_bundle;
mod tail;
mod top;
mod topics;
mod web;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

use crate::app::RunError;
use crate::config::{ConfigError, Env as _, ProcessEnv};
use crate::handler::Registry;
use crate::telemetry::{self, LogFilter, LogSettings};

/// Streams a Salesforce org's Platform Events and Change Data Capture to your handlers.
#[derive(Debug, Parser)]
#[command(name = "orgstream", version, about, disable_help_subcommand = true)]
struct Cli {
    /// Configuration file. Without it: ORGSTREAM_CONFIG (a path, or the TOML itself), then
    /// ./orgstream.toml, then the environment alone.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

// A command's help is the documentation of its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: every configured subscription
    ///
    /// Signs in, streams each topic from its stored position, and hands every event to its handlers. Brings the
    /// store's tables up to date first.
    ///
    /// Several daemons on one Postgres share the subscriptions: each runs in one place, those of a daemon that is
    /// killed move to the others within `store.lease` (15 s), and those of one that is stopped at once.
    ///
    /// A database, an org or a handler that is away is waited for, and so is whatever a person has to mend: the
    /// subscription then shows as blocked, here in the log, in `orgstream status` and in the metrics. It ends
    /// only for a configuration that can never work (exit code 78), or a taken metrics port or another org's
    /// store (1).
    ///
    /// SIGTERM or Ctrl-C finishes what is in flight, stores the position and exits with 0 within 25 seconds; a
    /// second one stops at once.
    Run,
    Check(check::CheckArgs),
    HandlerTest(Box<handler_test::HandlerTestArgs>),
    Web(web::WebArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Replay(replay::ReplayArgs),
    Holes(holes::HolesArgs),
    Pause(control::PauseArgs),
    Resume(control::ResumeArgs),
    Rename(control::RenameArgs),
    Tail(tail::TailArgs),
    Publish(publish::PublishArgs),
    Topics(topics::TopicsArgs),
    Schema(schema::SchemaArgs),
    Config(config::ConfigArgs),
    SupportBundle(support_bundle::SupportBundleArgs),
    /// Create or update the store's tables
    Migrate,
    Emulator(Box<emulator::EmulatorArgs>),
    Demo(demo::DemoArgs),
}

impl Command {
    /// Commands that answer and end, or whose output a person watches: only warnings are worth a log line.
    fn is_quiet(&self) -> bool {
        !matches!(
            self,
            Self::Run | Self::Web(_) | Self::Migrate | Self::Emulator(_)
        )
    }

    /// Draws over the whole terminal: a log line on the same one would be lost, and spoil the picture.
    fn takes_the_terminal(&self) -> bool {
        matches!(self, Self::Top(_)) && io::stderr().is_terminal()
    }
}

/// What a command ends with.
pub(crate) enum Failure {
    /// Exit code 78.
    Config(String),
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Nobody reads standard output any more, as after `| head`: done.
    OutputClosed,
}

impl Failure {
    /// What it says to a person.
    fn text(&self) -> String {
        match self {
            Self::Config(text) => text.clone(),
            Self::Failed(error) => format!("{error:#}"),
            Self::OutputClosed => "standard output is closed".to_owned(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Config(text) => Self::Config(text),
            other => Self::Failed(other.into()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    main_with(Registry::builtin())
}

/// The types of handlers. Set once, before any command runs: a process has one command line.
static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// The types of handlers that the configuration may name.
fn registry() -> &'static Registry {
    REGISTRY.get_or_init(Registry::builtin)
}

/// As [`main`], with handlers of one's own: a whole `orgstream`, of which every command knows them.
///
/// ```no_run
/// use std::sync::Arc;
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
/// fn main() -> std::process::ExitCode {
///     let mut registry = Registry::builtin();
///     registry.register("count", |config| {
///         Options::new(config).finish(Some(()))?; // no keys of its own
///         Ok(Arc::new(Count))
///     });
///     orgstream::cli::main_with(registry)
/// }
/// ```
pub fn main_with(registry: Registry) -> ExitCode {
    if REGISTRY.set(registry).is_err() {
        return fail("the command line was begun twice");
    }
    let cli = Cli::parse();
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return fail("TLS was set up twice");
    }
    init_logs(&cli.command);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let result = runtime.block_on(dispatch(cli));
    // A call into another system that does not end must not hold the exit up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Config(text)) => {
            say(&text);
            ExitCode::from(ConfigError::EXIT_CODE)
        }
        Err(Failure::Failed(error)) => fail(&format!("{error:#}")),
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let config = cli.config.as_deref();
    match cli.command {
        Command::Run => run::run(config).await,
        Command::Check(args) => check::run(config, args).await,
        Command::HandlerTest(args) => handler_test::run(config, *args).await,
        Command::Web(args) => web::run(config, args).await,
        Command::Status(args) => status::run(config, args).await,
        Command::Top(args) => top::run(config, args).await,
        Command::DeadLetters(args) => dead_letters::run(config, args).await,
        Command::Replay(args) => replay::run(config, args).await,
        Command::Holes(args) => holes::run(config, args).await,
        Command::Pause(args) => control::pause(config, args).await,
        Command::Resume(args) => control::resume(config, args).await,
        Command::Rename(args) => control::rename(config, args).await,
        Command::Tail(args) => tail::run(config, args).await,
        Command::Publish(args) => publish::run(config, args).await,
        Command::Topics(args) => topics::run(config, args).await,
        Command::Schema(args) => schema::run(config, args).await,
        Command::Config(args) => config::run(config, args),
        Command::SupportBundle(args) => support_bundle::run(config, args).await,
        Command::Migrate => migrate::run(config).await,
        Command::Emulator(args) => emulator::run(*args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}

/// Logs as the environment asks for them; without a word from it, a quiet command logs warnings only.
fn init_logs(command: &Command) {
    let mut settings = LogSettings::from_env(|name| ProcessEnv.raw(name));
    let asked = ["ORGSTREAM_LOG", "RUST_LOG"].map(|name| ProcessEnv.var(name));
    if command.takes_the_terminal() {
        settings.filter = LogFilter::nothing();
    } else if command.is_quiet() && asked.iter().all(Option::is_none) {
        settings.filter = LogFilter::warnings();
    }
    // Fails only if an embedding program has set logs up already.
    let _ = telemetry::init(settings.format, settings.filter);
    for problem in settings.problems {
        tracing::warn!("{problem}");
    }
}

fn fail(text: &str) -> ExitCode {
    say(text);
    ExitCode::FAILURE
}

/// The last words of a command that failed. Not a log line: a person at a terminal reads them.
#[expect(clippy::print_stderr, reason = "the one place that speaks to a person")]
fn say(text: &str) {
    eprintln!("orgstream: {text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_takes_arguments_shows_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let plain = ["run", "migrate"].contains(&name.as_str());
            let help = command.render_long_help().to_string();
            assert!(plain || help.contains("Example"), "{name}: {help}");
            // The paragraphs of its documentation, not the first line alone.
            let about = command.get_long_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            assert!(plain || about.contains("\n\n"), "{name}: {about}");
        }
    }
}
