//! What is done with the process's metrics, beside what the store is given of them: a listener, push, lines in the
//! log. Each is off unless it is asked for.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::RunError;
use crate::config::Config;
use crate::telemetry::{self, LogSamples, MetricsServer, OtlpPush, Recorder};

/// How long the last push may hold the end of the process up.
const LAST_PUSH: Duration = Duration::from_secs(2);

/// The process's metrics and who is given them. Ends when dropped.
pub(super) struct Measuring {
    recorder: Option<Recorder>,
    /// Run until this is dropped.
    _tasks: Vec<AbortOnDropHandle<()>>,
    _server: Option<MetricsServer>,
    push: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Measuring {
    /// Begins to record, before anything that counts. `worker` is the name of this process.
    ///
    /// # Errors
    ///
    /// The port is taken, or the configuration can never work.
    pub(super) async fn begin(config: &Config, worker: &str) -> Result<Self, RunError> {
        // A program that embeds the daemon may have a recorder of its own, to which the metrics go then.
        let recorder = Recorder::install()
            .inspect_err(|error| warn!(error = %error, "metrics are not shown here"))
            .ok();
        let server = match config.metrics_addr {
            Some(addr) => {
                let server = telemetry::serve(addr).await?;
                info!(addr = %server.addr(), "metrics served");
                Some(server)
            }
            None => None,
        };
        let mut tasks = Vec::new();
        let mut push = None;
        if let Some(recorder) = &recorder {
            if let Some(every) = config.log_samples {
                let samples = LogSamples::new(every, recorder.clone(), worker).run();
                tasks.push(spawn(async move { match samples.await {} }));
            }
            if let Some(otlp) = &config.otlp {
                let pusher = OtlpPush::new(otlp.clone(), recorder.clone(), worker)
                    .map_err(|error| RunError::Config(error.to_string()))?;
                let stop = CancellationToken::new();
                push = Some((stop.clone(), tokio::spawn(pusher.run(stop))));
            }
        }
        Ok(Self {
            recorder,
            _tasks: tasks,
            _server: server,
            push,
        })
    }

    /// The recorder, where the process has one of ours.
    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Pushes what was counted last. Takes two seconds at most.
    pub(super) async fn end(mut self) {
        let Some((stop, task)) = self.push.take() else {
            return;
        };
        stop.cancel();
        let mut task = AbortOnDropHandle::new(task);
        // It bounds itself; this is for a machine that does not get to it.
        let _ = tokio::time::timeout(LAST_PUSH * 2, &mut task).await;
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        if let Some((stop, task)) = &self.push {
            stop.cancel();
            task.abort();
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
