//! What records the process's metrics, whoever asks for them: `/metrics`, the snapshots in the store, OTLP, and
//! the lines of the log.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::MissedTickBehavior;

use super::metrics::{self, Kind, process};

/// How often histograms fold what was recorded, which grows until then: by eight bytes for each leg of each
/// event.
const UPKEEP: Duration = Duration::from_secs(1);

/// Something else in this process already records metrics.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot record metrics: {reason}")]
pub struct RecorderError {
    /// What stands in the way.
    reason: String,
}

/// The process's metrics. Clones are the same.
#[derive(Debug, Clone)]
pub struct Recorder {
    handle: PrometheusHandle,
}

impl Recorder {
    /// The process's recorder, installed at the first call. What was counted before is lost, so this comes
    /// before anything is started that counts. [`Recorder::keep_up`] has to run beside.
    ///
    /// # Errors
    ///
    /// Another recorder is installed.
    pub fn install() -> Result<Self, RecorderError> {
        static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);
        let mut installed = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &*installed {
            return Ok(recorder.clone());
        }
        let refused = |reason: String| RecorderError { reason };
        let mut builder = PrometheusBuilder::new();
        for metric in metrics::ALL {
            if let Kind::Histogram(bounds) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                    .map_err(|error| refused(error.to_string()))?;
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|error| refused(error.to_string()))?;
        metrics::describe_all();
        metrics::build_info();
        let recorder = Self { handle };
        *installed = Some(recorder.clone());
        Ok(recorder)
    }

    /// Everything recorded so far, in Prometheus text format 0.0.4, with what the operating system says of
    /// this process just now. Some 100 microseconds.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        text.push_str(&process::exposition().to_string());
        text
    }

    /// Folds what was recorded, until it is dropped: without that, memory grows.
    pub async fn keep_up(self) -> Infallible {
        let mut ticks = tokio::time::interval(UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}
