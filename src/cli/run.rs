//! `orgstream run`: the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Failure;
use crate::app;
use crate::config::{ProcessEnv, Subscriptions};

pub(super) async fn run(path: Option<&Path>) -> Result<ExitCode, Failure> {
    let registry = super::registry();
    let loaded = app::load_config(path, Subscriptions::Required, &ProcessEnv, registry)?;
    for warning in &loaded.warnings {
        warn!(place = %warning.place, "{}", warning.message);
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = %loaded.origin,
        subscriptions = loaded.config.subscriptions.len(),
        "orgstream starts"
    );
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    app::run(loaded.config, registry, stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// A terminal or a supervisor may send one request twice, to the process and to its group.
pub(super) const SAME_REQUEST: Duration = Duration::from_millis(200);

/// The first SIGTERM or SIGINT asks to stop; the second stops at once.
pub(super) fn on_signal(stop: CancellationToken) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Failed(error.into()));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut asked_at: Option<Instant> = None;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if asked_at.is_some_and(|at| at.elapsed() < SAME_REQUEST) {
                continue;
            }
            if asked_at.is_some() {
                warn!(
                    signal = name,
                    "stopping at once; what is in flight will come again"
                );
                std::process::exit(1);
            }
            info!(signal = name, "stopping: finishing what is in flight");
            asked_at = Some(Instant::now());
            stop.cancel();
        }
    });
    Ok(())
}
