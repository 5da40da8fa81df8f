//! `orgstream emulator`: the local org alone.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::emulator::{DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Emulator, EmulatorConfig, sample};

/// Arguments of `orgstream emulator`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Print one line of JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let config = EmulatorConfig {
        host: arguments.host,
        ..EmulatorConfig::default()
    };
    let emulator = Emulator::start(config)
        .await
        .map_err(|error| Failure::Failed(error.into()))?;
    sample::add_topics(&emulator).map_err(|error| Failure::Failed(anyhow::anyhow!(error)))?;
    println!(
        "{}",
        serde_json::json!({
            "pubsub_endpoint": emulator.pubsub_url(),
            "login_url": emulator.login_url(),
            "admin_url": emulator.admin_url(),
            "org_id": emulator.org_id().as_str(),
            "client_id": DEFAULT_CLIENT_ID,
            "client_secret": DEFAULT_CLIENT_SECRET,
        })
    );
    let stop = CancellationToken::new();
    super::run::on_signal(stop.clone())?;
    stop.cancelled().await;
    emulator.stop().await;
    Ok(ExitCode::SUCCESS)
}
