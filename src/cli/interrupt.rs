//! Ctrl-C for commands that have something to take back.

use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::output::note;
use super::run::SAME_REQUEST;

/// Ctrl-C, noticed from now on instead of ending the process half way. The second one ends it all the same:
/// what is to be taken back may hang too.
pub(super) struct Interrupt(CancellationToken);

impl Interrupt {
    pub(super) fn listen() -> Result<Self, Failure> {
        let mut signals =
            signal(SignalKind::interrupt()).map_err(|error| Failure::Failed(error.into()))?;
        let came = CancellationToken::new();
        let first = came.clone();
        tokio::spawn(async move {
            let mut at: Option<Instant> = None;
            while signals.recv().await.is_some() {
                match at {
                    None => {
                        at = Some(Instant::now());
                        first.cancel();
                    }
                    Some(at) if at.elapsed() < SAME_REQUEST => {}
                    Some(_) => {
                        note("ended half way: nothing more was taken back");
                        std::process::exit(1);
                    }
                }
            }
        });
        Ok(Self(came))
    }

    /// What comes of `work`; `None` where Ctrl-C came first, or had come.
    pub(super) async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(work).await
    }
}
