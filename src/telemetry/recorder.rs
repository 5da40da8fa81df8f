//! What records the process's metrics, whoever asks for them: `/metrics`, the snapshots in the store, OTLP, and
//! the lines of the log.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::histograms::Histograms;
use super::metrics::{self as table, process};

/// Something else in this process already records metrics.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot record metrics: {reason}")]
pub struct RecorderError {
    /// What stands in the way.
    reason: String,
}

/// What is looked at when metrics are asked for; gone once it says false.
type Look = Box<dyn Fn() -> bool + Send>;

static LOOKS: Mutex<Vec<Look>> = Mutex::new(Vec::new());

/// Has gauges set by `look` whenever metrics are asked for, until it says false.
pub(crate) fn when_asked(look: impl Fn() -> bool + Send + 'static) {
    let mut looks = LOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    looks.push(Box::new(look));
}

fn asked() {
    let mut looks = LOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    looks.retain(|look| look());
}

/// The process's metrics. Clones are the same.
#[derive(Debug, Clone)]
pub struct Recorder {
    handle: PrometheusHandle,
    histograms: Arc<Histograms>,
}

impl Recorder {
    /// The process's recorder, installed at the first call. What was counted before is lost, so this comes
    /// before anything is started that counts.
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
        let numbers = PrometheusBuilder::new().build_recorder();
        let recorder = Self {
            handle: numbers.handle(),
            histograms: Arc::default(),
        };
        let histograms = recorder.histograms.clone();
        metrics::set_global_recorder(Both {
            numbers,
            histograms,
        })
        .map_err(|error| RecorderError {
            reason: error.to_string(),
        })?;
        table::describe_all();
        table::build_info();
        *installed = Some(recorder.clone());
        Ok(recorder)
    }

    /// Everything recorded so far, in Prometheus text format 0.0.4, with what the operating system says of
    /// this process just now. Some 100 microseconds.
    pub fn render(&self) -> String {
        asked();
        let mut text = self.handle.render();
        text.push_str(&self.histograms.exposition().to_string());
        text.push_str(&process::exposition().to_string());
        text
    }
}

/// Counters and gauges are the exporter's, histograms ours.
struct Both {
    numbers: PrometheusRecorder,
    histograms: Arc<Histograms>,
}

impl metrics::Recorder for Both {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.numbers.describe_counter(key, unit, help);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.numbers.describe_gauge(key, unit, help);
    }

    // The table says what they mean.
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.numbers.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.numbers.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.histograms.get(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_changes_without_a_word_is_looked_at_whenever_metrics_are_asked_for_until_it_is_gone() {
        let recorder = Recorder::install().unwrap();
        let looks = Arc::new(AtomicUsize::new(0));
        let seen = looks.clone();
        when_asked(move || seen.fetch_add(1, Ordering::SeqCst) < 1);
        for _ in 0..3 {
            recorder.render();
        }
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }
}
