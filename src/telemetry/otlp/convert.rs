//! From what the recorder wrote to OTLP's metrics. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::Unit;

use super::wire::{
    CUMULATIVE, Data, Gauge, Histogram, HistogramPoint, KeyValue, Metric, NumberPoint, Request,
    Resource, ResourceMetrics, Scope, ScopeMetrics, Sum,
};
use crate::telemetry::exposition::{Exposition, Family, FamilyKind, Sample};
use crate::telemetry::metrics as table;

/// When counting began, and now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: u64,
    now: u64,
}

impl Span {
    pub(super) fn new(start: SystemTime, now: SystemTime) -> Self {
        let nanoseconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        Self {
            start: nanoseconds(start),
            now: nanoseconds(now),
        }
    }
}

/// Everything of one process. Values that are not known (NaN) are left out.
pub(super) fn request(
    exposition: &Exposition,
    attributes: &[(String, String)],
    span: Span,
) -> Request {
    let attributes = attributes.iter();
    let metrics = exposition.families();
    Request {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: attributes
                    .map(|(key, value)| KeyValue::new(key, value))
                    .collect(),
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(Scope {
                    name: env!("CARGO_PKG_NAME").to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                metrics: metrics.filter_map(|family| metric(family, span)).collect(),
            }],
        }],
    }
}

/// `None` where nothing of it is known.
fn metric(family: &Family, span: Span) -> Option<Metric> {
    let data = match family.kind {
        FamilyKind::Counter => Data::Sum(Sum {
            data_points: numbers(family, span.start, span),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        FamilyKind::Gauge | FamilyKind::Untyped => Data::Gauge(Gauge {
            data_points: numbers(family, 0, span),
        }),
        FamilyKind::Histogram => Data::Histogram(Histogram {
            data_points: histograms(family, span),
            aggregation_temporality: CUMULATIVE,
        }),
        // The table has none.
        FamilyKind::Summary => return None,
    };
    let empty = match &data {
        Data::Gauge(gauge) => gauge.data_points.is_empty(),
        Data::Sum(sum) => sum.data_points.is_empty(),
        Data::Histogram(histogram) => histogram.data_points.is_empty(),
    };
    (!empty).then(|| Metric {
        name: family.name.clone(),
        description: family.help.clone().unwrap_or_default(),
        unit: unit(&family.name).to_owned(),
        data: Some(data),
    })
}

/// In the words of UCUM. A plain number has none: `1` would make readers call it a ratio.
fn unit(name: &str) -> &'static str {
    let metric = table::ALL.iter().find(|metric| metric.name == name);
    match metric.map(|metric| metric.unit) {
        Some(Unit::Seconds) => "s",
        Some(Unit::Bytes) => "By",
        _ => "",
    }
}

fn numbers(family: &Family, start: u64, span: Span) -> Vec<NumberPoint> {
    let known = (family.samples.iter()).filter(|sample| !sample.value.is_nan());
    known
        .map(|sample| NumberPoint {
            start_time_unix_nano: start,
            time_unix_nano: span.now,
            as_double: Some(sample.value),
            attributes: attributes(sample),
        })
        .collect()
}

fn attributes(sample: &Sample) -> Vec<KeyValue> {
    let labels = sample.labels.iter().filter(|(name, _)| name != "le");
    labels
        .map(|(name, value)| KeyValue::new(name, value))
        .collect()
}

/// One histogram of a family, while its lines are gathered.
struct Gathered {
    attributes: Vec<KeyValue>,
    /// Bounds, and how many observations are not above each; the last bound is infinite.
    buckets: Vec<(f64, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

fn histograms(family: &Family, span: Span) -> Vec<HistogramPoint> {
    let mut all: Vec<Gathered> = Vec::new();
    for sample in &family.samples {
        let attributes = attributes(sample);
        // Lines of one histogram follow each other.
        let found = all.iter().rposition(|one| one.attributes == attributes);
        let at = found.unwrap_or_else(|| {
            all.push(Gathered {
                attributes,
                buckets: Vec::new(),
                sum: None,
                count: None,
            });
            all.len() - 1
        });
        match sample.suffix {
            "_bucket" => {
                let bound = sample.label("le").and_then(|le| le.parse().ok());
                all[at].buckets.extend(bound.map(|le| (le, sample.value)));
            }
            "_sum" => all[at].sum = Some(sample.value),
            _ => all[at].count = Some(sample.value),
        }
    }
    all.into_iter().filter_map(|one| one.point(span)).collect()
}

impl Gathered {
    fn point(mut self, span: Span) -> Option<HistogramPoint> {
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = whole(self.count?);
        let mut before = 0;
        let mut bucket_counts: Vec<u64> = Vec::with_capacity(self.buckets.len() + 1);
        let mut explicit_bounds = Vec::with_capacity(self.buckets.len());
        for (bound, up_to) in self.buckets.iter().filter(|(bound, _)| bound.is_finite()) {
            let up_to = whole(*up_to);
            bucket_counts.push(up_to.saturating_sub(before));
            explicit_bounds.push(*bound);
            before = up_to;
        }
        bucket_counts.push(count.saturating_sub(before));
        Some(HistogramPoint {
            start_time_unix_nano: span.start,
            time_unix_nano: span.now,
            count,
            sum: self.sum,
            bucket_counts,
            explicit_bounds,
            attributes: self.attributes,
        })
    }
}

/// A count, which text has as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast stays within the range, and NaN is zero"
)]
fn whole(count: f64) -> u64 {
    count as u64
}
