//! The command line: one file for each command. Events and answers go to standard output, logs to
//! standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration.

mod emulator;
mod migrate;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::RunError;
use crate::config::ConfigError;
use crate::telemetry;

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

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: every configured subscription
    Run,
    /// Create or update the store's tables
    Migrate,
    /// Run a local org: Pub/Sub API, sign-in, and an admin API to publish and to cause trouble
    Emulator(emulator::Arguments),
}

/// What a command ends with.
pub(crate) enum Failure {
    /// Exit code 78.
    Config(String),
    /// Exit code 1.
    Failed(anyhow::Error),
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
    let cli = Cli::parse();
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return fail("TLS was set up twice");
    }
    let _ = telemetry::init_from_env(); // fails only if an embedding program has set logs up already
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
        Command::Migrate => migrate::run(config).await,
        Command::Emulator(arguments) => emulator::run(arguments).await,
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
