//! A few figures as lines of the log, in the form that Heroku's log metrics have and add-ons draw: `source=` for the
//! dyno, `sample#name=` for a value at that moment, `count#name=` for how many since the line before.
//!
//! They go to standard error by themselves and not as log records: in the quotes of logfmt, or in JSON, nobody
//! would find them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::Recorder;
use super::exposition::Exposition;
use super::metrics::{self, Metric};

/// Values at this moment, by the name in the line.
const SAMPLES: [(&str, &Metric); 3] = [
    ("lag_seconds", &metrics::LAG),
    ("in_flight_events", &metrics::IN_FLIGHT_EVENTS),
    ("dead_letters_open", &metrics::DEAD_LETTERS_OPEN),
];

/// What is counted since the line before.
const COUNTS: [(&str, &Metric); 4] = [
    ("events_received", &metrics::EVENTS_RECEIVED),
    ("events_finished", &metrics::EVENTS_FINISHED),
    ("events_parked", &metrics::EVENTS_PARKED),
    ("holes", &metrics::HOLES),
];

/// Writes lines with figures.
pub struct LogSamples {
    every: Duration,
    recorder: Recorder,
    /// What is before the figures.
    source: String,
    /// What was counted up to the last line, by subscription and name in the line.
    before: HashMap<(String, &'static str), f64>,
}

impl LogSamples {
    /// `worker` is the name of this process.
    pub fn new(every: Duration, recorder: Recorder, worker: &str) -> Self {
        Self {
            every,
            recorder,
            source: word(worker),
            before: HashMap::new(),
        }
    }

    /// Writes until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first comes at once, when nothing is known yet.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            match Exposition::parse(&self.recorder.render()) {
                // Whoever closed standard error does not read.
                Ok(exposition) => {
                    let lines = self.lines(&exposition);
                    let _ = std::io::stderr().lock().write_all(lines.as_bytes());
                }
                Err(error) => warn!(error = %error, "no figures for the log"),
            }
        }
    }

    /// One line for each subscription that runs here, one for the process.
    fn lines(&mut self, exposition: &Exposition) -> String {
        let mut text = String::new();
        let held = exposition.family(metrics::LEASE_HELD.name);
        let held = held.iter().flat_map(|family| &family.samples);
        // What runs elsewhere has a line there; of what runs nowhere this worker knows no more than others.
        let here = held.filter(|sample| sample.value > 0.0);
        for subscription in here.filter_map(|sample| sample.label("subscription")) {
            let _ = write!(text, "source={}", self.source);
            let name = word(subscription);
            for (figure, metric) in SAMPLES {
                if let Some(value) = sum(exposition, metric, subscription) {
                    let value = (value * 1000.0).round() / 1000.0;
                    let _ = write!(text, " sample#orgstream.{name}.{figure}={value}");
                }
            }
            for (figure, metric) in COUNTS {
                let now = sum(exposition, metric, subscription).unwrap_or(0.0);
                let key = (subscription.to_owned(), figure);
                let before = self.before.insert(key, now).unwrap_or(0.0);
                let count = (now - before).max(0.0);
                let _ = write!(text, " count#orgstream.{name}.{figure}={count}");
            }
            text.push('\n');
        }
        if let Some(memory) = sum(exposition, &metrics::PROCESS_MEMORY, "") {
            let _ = writeln!(
                text,
                "source={} sample#orgstream.memory_bytes={memory}",
                self.source
            );
        }
        text
    }
}

/// All of a metric's series of a subscription together, whatever their other labels; `None` where there is none.
fn sum(exposition: &Exposition, metric: &Metric, subscription: &str) -> Option<f64> {
    let samples = exposition.family(metric.name)?.samples.iter();
    let its = samples.filter(|sample| sample.label("subscription").unwrap_or("") == subscription);
    let mut values = its
        .map(|sample| sample.value)
        .filter(|value| !value.is_nan());
    let first = values.next()?;
    Some(values.fold(first, |sum, value| sum + value))
}

/// A name without what would end it in such a line.
fn word(name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    name.chars()
        .map(|c| if legal(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_figures_of_what_runs_here_and_counts_since_the_line_before() {
        let mut log = LogSamples::new(
            Duration::from_secs(60),
            Recorder::install().unwrap(),
            "worker.1",
        );
        let mut now = Exposition::default();
        now.record(&metrics::LAG, &["accounts"], 1.234_56);
        now.record(&metrics::LEASE_HELD, &["accounts"], 1.0);
        // Nobody runs it: its lag is known from afar.
        now.record(&metrics::LAG, &["elsewhere"], 70.0);
        now.record(&metrics::LEASE_HELD, &["elsewhere"], 0.0);
        now.record(&metrics::IN_FLIGHT_EVENTS, &["accounts"], 3.0);
        now.record(&metrics::EVENTS_RECEIVED, &["accounts"], 10.0);
        now.record(&metrics::EVENTS_RECEIVED, &["elsewhere"], 7.0);
        now.record(&metrics::EVENTS_FINISHED, &["accounts", "handled"], 4.0);
        now.record(&metrics::EVENTS_FINISHED, &["accounts", "parked"], 1.0);
        now.record(&metrics::PROCESS_MEMORY, &[], 41_000_000.0);
        assert_eq!(
            log.lines(&now),
            "source=worker.1 sample#orgstream.accounts.lag_seconds=1.235 \
             sample#orgstream.accounts.in_flight_events=3 count#orgstream.accounts.events_received=10 \
             count#orgstream.accounts.events_finished=5 count#orgstream.accounts.events_parked=0 \
             count#orgstream.accounts.holes=0\nsource=worker.1 sample#orgstream.memory_bytes=41000000\n"
        );
        let mut later = Exposition::default();
        later.record(&metrics::LAG, &["accounts"], 0.0);
        later.record(&metrics::LEASE_HELD, &["accounts"], 1.0);
        later.record(&metrics::EVENTS_RECEIVED, &["accounts"], 12.0);
        let line = log.lines(&later);
        assert!(
            line.contains(" count#orgstream.accounts.events_received=2 "),
            "{line}"
        );
        assert!(!line.contains("memory"), "{line}");
    }

    #[test]
    fn names_cannot_break_a_line() {
        assert_eq!(word("my host=x:12\n"), "my_host_x:12_");
    }
}
