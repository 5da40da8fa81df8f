//! Histograms that count on the spot. Those of the exporter keep each observation until they are asked for, eight
//! bytes at a time: with four legs for each event that is the most expensive thing that would happen to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Histogram, HistogramFn, Key};

use super::exposition::{Exposition, Sample};
use super::metrics::{self as table, Kind, Metric};

/// Every histogram of the process.
#[derive(Debug, Default)]
pub(super) struct Histograms {
    all: Mutex<HashMap<Key, (&'static Metric, Arc<Buckets>)>>,
}

impl Histograms {
    /// The histogram of this name and these labels. One that is not in the table has no bounds, and counts nothing.
    pub(super) fn get(&self, key: &Key) -> Histogram {
        let mut known = table::ALL.iter();
        let Some(metric) = known.find(|metric| metric.name == key.name()) else {
            return Histogram::noop();
        };
        let Kind::Histogram(bounds) = metric.kind else {
            return Histogram::noop();
        };
        let mut all = self.all();
        let (_, buckets) = all
            .entry(key.clone())
            .or_insert_with(|| (metric, Arc::new(Buckets::new(bounds))));
        Histogram::from_arc(buckets.clone())
    }

    /// All of them as they are now.
    pub(super) fn exposition(&self) -> Exposition {
        let mut exposition = Exposition::default();
        for (key, (metric, buckets)) in self.all().iter() {
            let labels = key.labels().map(|label| {
                let (name, value) = (label.key(), label.value());
                (name.to_owned(), value.to_owned())
            });
            exposition.extend(metric, buckets.samples(&labels.collect::<Vec<_>>()));
        }
        exposition
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Key, (&'static Metric, Arc<Buckets>)>> {
        // Every change is a single insert.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One histogram.
#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    /// Observations that are not above each bound and above the one before; one more for what is above all.
    counts: Box<[AtomicU64]>,
    /// The bits of a float.
    sum: AtomicU64,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0.0_f64.to_bits()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "the format has floats")]
    fn samples(&self, labels: &[(String, String)]) -> Vec<Sample> {
        let sample = |suffix, labels: Vec<_>, value| Sample {
            suffix,
            labels,
            value,
        };
        let bounds = self.bounds.iter().map(ToString::to_string);
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let mut count = 0;
        let mut samples: Vec<Sample> = (bounds.zip(&self.counts))
            .map(|(bound, here)| {
                count += here.load(Ordering::Relaxed);
                let labels = [labels, &[("le".to_owned(), bound)]].concat();
                sample("_bucket", labels, count as f64)
            })
            .collect();
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        samples.push(sample("_sum", labels.to_vec(), sum));
        samples.push(sample("_count", labels.to_vec(), count as f64));
        samples
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    #[expect(clippy::cast_precision_loss, reason = "the sum is a float")]
    fn record_many(&self, value: f64, count: usize) {
        if value.is_nan() {
            return;
        }
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(count as u64, Ordering::Relaxed);
        let more = value * count as f64;
        let add = |sum| Some((f64::from_bits(sum) + more).to_bits());
        let _ = self
            .sum
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use ::metrics::Label;

    use super::*;

    fn handler_time(all: &Histograms, handler: &str) -> Histogram {
        let labels = vec![
            Label::new("subscription", "accounts"),
            Label::new("handler", handler.to_owned()),
        ];
        all.get(&Key::from_parts(table::HANDLER_TIME.name, labels))
    }

    #[test]
    fn an_observation_counts_in_every_bucket_whose_bound_it_does_not_exceed() {
        let all = Histograms::default();
        let (log, hook) = (handler_time(&all, "log"), handler_time(&all, "hook"));
        log.record(0.001); // the first bound
        log.record(0.3);
        log.record_many(0.3, 2);
        log.record(1e9);
        log.record(f64::NAN);
        handler_time(&all, "log").record(-1.0); // the same one; a clock that went back
        hook.record(0.5);
        let exposition = all.exposition();
        let family = exposition.family(table::HANDLER_TIME.name).unwrap();
        let value = |handler, suffix, le: Option<&str>| {
            let mut samples = family.samples.iter();
            let found = samples.find(|one| {
                one.label("handler") == Some(handler)
                    && one.suffix == suffix
                    && one.label("le") == le
            });
            found.unwrap().value
        };
        assert_eq!(value("log", "_bucket", Some("0.001")), 2.0);
        assert_eq!(value("log", "_bucket", Some("0.25")), 2.0);
        assert_eq!(value("log", "_bucket", Some("0.5")), 5.0);
        assert_eq!(value("log", "_bucket", Some("60")), 5.0);
        assert_eq!(value("log", "_bucket", Some("+Inf")), 6.0);
        assert_eq!(value("log", "_count", None), 6.0);
        let sum = value("log", "_sum", None);
        assert!((sum - (1e9 + 0.901 - 1.0)).abs() < 1e-3, "{sum}");
        assert_eq!(value("hook", "_count", None), 1.0);
        // One histogram after the other.
        let text = exposition.to_string();
        assert_eq!(Exposition::parse(&text).unwrap(), exposition);
    }

    #[test]
    fn what_is_not_a_histogram_of_the_table_is_not_shown() {
        let all = Histograms::default();
        all.get(&Key::from_name("somebody_elses")).record(1.0);
        all.get(&Key::from_name(table::LAG.name)).record(1.0);
        assert_eq!(all.exposition(), Exposition::default());
    }

    #[test]
    fn observations_of_many_threads_are_all_counted() {
        let all = Histograms::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let log = handler_time(&all, "log");
                scope.spawn(move || (0..10_000).for_each(|_| log.record(0.5)));
            }
        });
        let exposition = all.exposition();
        let family = exposition.family(table::HANDLER_TIME.name).unwrap();
        let last: Vec<f64> = family
            .samples
            .iter()
            .rev()
            .take(2)
            .map(|one| one.value)
            .collect();
        assert_eq!(last, [40_000.0, 20_000.0]);
    }
}
