//! What a daemon's metrics endpoint says.

use super::{Daemon, eventually};

/// Makes a daemon serve metrics on a free port; for `Daemon::run_with`.
pub(crate) const METRICS: (&str, &str) = ("ORGSTREAM_METRICS_ADDR", "127.0.0.1:0");

/// The metrics endpoint of a daemon that was started with [`METRICS`].
pub(crate) struct Metrics {
    url: String,
}

impl Metrics {
    /// Finds the port in the daemon's log.
    pub(crate) async fn of(daemon: &Daemon) -> Self {
        let line = daemon.logged(&["metrics served"]).await;
        let addr = line
            .split_whitespace()
            .find_map(|field| field.strip_prefix("addr="))
            .unwrap();
        Self {
            url: format!("http://{addr}/metrics"),
        }
    }

    /// The whole text.
    pub(crate) async fn text(&self) -> String {
        let answer = reqwest::get(&self.url).await.unwrap();
        assert!(answer.status().is_success());
        answer.text().await.unwrap()
    }

    /// The sum of all series of a metric whose labels hold these pairs; `None` where there is no such
    /// series.
    pub(crate) async fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let text = self.text().await;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")))
            .filter(|line| {
                labels
                    .iter()
                    .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
            })
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until the metric's value is as the test wants it, and gives it.
    pub(crate) async fn until(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
    ) -> f64 {
        let what = format!("{name} {labels:?}");
        eventually(&what, async || {
            self.value(name, labels)
                .await
                .filter(|value| wanted(*value))
        })
        .await
    }

    /// Waits for a subscription's stream to be in a state.
    pub(crate) async fn state(&self, subscription: &str, state: &str) {
        let labels = [("subscription", subscription), ("state", state)];
        self.until("orgstream_stream_state", &labels, |value| value == 1.0)
            .await;
    }
}
