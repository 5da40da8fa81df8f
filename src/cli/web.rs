//! `orgstream web`: the status page.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Failure;
use super::connect;
use super::run::on_signal;
use crate::config::{self, Env as _, ProcessEnv};
use crate::letters::shown::Configured;
use crate::status::Bus;
use crate::telemetry::Recorder;
use crate::web::{self, Settings};
use crate::worker;

/// Serve the status page, and metrics, of all workers
///
/// Reads the store, so one of it shows every worker: `/` is the status page, `/metrics` has what each worker posted
/// with the label `dyno`, and what the store itself tells, which is right when every worker is dead. `/healthz` says
/// whether the process lives, `/readyz` whether the database answers.
///
/// Everything but the last two needs the token in ORGSTREAM_WEB_TOKEN: as a Bearer token, as the password of basic
/// auth with any user name, or at the sign-in form. Make one with `openssl rand -hex 32`.
///
/// It listens on `web.addr` (ORGSTREAM_WEB_ADDR), else on the port in PORT on all addresses, as Heroku has it, else on
/// 127.0.0.1:8080. Behind a proxy of your own, set `web.behind_proxy` (ORGSTREAM_WEB_BEHIND_PROXY). It never signs in to the org. A database that is away is waited for, and pages say so.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ORGSTREAM_WEB_TOKEN=$(openssl rand -hex 32) orgstream web\n\nExits with 78 without a token, with 1 if the port is taken, and with 0 on SIGTERM or Ctrl-C."
)]
pub(super) struct WebArgs {}

pub(super) async fn run(path: Option<&Path>, WebArgs {}: WebArgs) -> Result<ExitCode, Failure> {
    let web = config::load_web(path, &ProcessEnv)?;
    let store = config::load_store(path, &ProcessEnv)?;
    let (retention, warning) = config::load_bus_retention(path, &ProcessEnv)?;
    let token = web.token.ok_or_else(no_token)?;
    // Before anything that counts. Without it `/metrics` has what the store and the workers tell.
    let _ = Recorder::install();
    let settings = Settings {
        addr: web.addr,
        token,
        bus: Bus { retention, warning },
        configured: Configured::load(path),
        name: worker::name(ProcessEnv.var("DYNO")),
        behind_proxy: web.behind_proxy,
    };
    info!(version = env!("CARGO_PKG_VERSION"), "orgstream web starts");
    let store = connect::store(&store).await?;
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    web::run(settings, store.clone(), stop)
        .await
        .map_err(anyhow::Error::from)?;
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

fn no_token() -> Failure {
    Failure::Config(
        "ORGSTREAM_WEB_TOKEN is not set; make one with `openssl rand -hex 32`".to_owned(),
    )
}
