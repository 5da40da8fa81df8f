//! Posts what this worker sees to the store, where `orgstream web` finds it: on many platforms nobody can reach a
//! worker. Nothing waits for it: one call at a time, each bounded by five seconds, and what could not be posted goes
//! along with the next.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::info;

use crate::store::{Store, StoreError};
use crate::subscription::Samples;
use crate::telemetry::Recorder;

/// By then this worker has most often said that it lives; one that has not posts nothing.
const FIRST: Duration = Duration::from_secs(1);

/// How often, give or take a tenth, so that workers that were started together do not post together.
const EVERY: Duration = Duration::from_secs(15);

/// What is posted, and where.
pub(super) struct Posting {
    pub(super) store: Arc<dyn Store>,
    /// None where a program that embeds the daemon records metrics itself.
    pub(super) recorder: Option<Recorder>,
    pub(super) holder: String,
    pub(super) samples: Samples,
}

impl Posting {
    /// Posts, until it is dropped.
    pub(super) async fn run(self) -> Infallible {
        let mut failing = false;
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = EVERY.mul_f64(0.9 + 0.2 * fastrand::f64());
            match self.post().await {
                Ok(()) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => info!(
                    error = %error,
                    "metrics and samples could not be posted to the store; `orgstream web` shows older ones until they can"
                ),
                Err(_) => {}
            }
        }
    }

    async fn post(&self) -> Result<(), StoreError> {
        if let Some(recorder) = &self.recorder {
            let body = recorder.render();
            self.store.post_snapshot(&self.holder, &body).await?;
        }
        for (lease, seen) in self.samples.running() {
            let sample = seen.take(SystemTime::now());
            match self.store.post_sample(&lease, &sample).await {
                // Whoever runs the subscription will hear of it too.
                Ok(()) | Err(StoreError::Fenced { .. }) => {}
                Err(error) => {
                    seen.put_back(&sample);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
