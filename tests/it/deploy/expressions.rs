//! Expressions of PromQL that alert rules and the dashboard are made of, held against the table of metrics. Whether
//! they are PromQL at all is promtool's to say.

use std::collections::BTreeSet;

use orgstream::telemetry::metrics::{ALL, Kind, Metric, VALUES, stored};

/// Labels that Prometheus gives to whatever it scrapes.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// A metric as an expression names it.
struct Named<'a> {
    metric: &'static Metric,
    /// Computed from the store, so that no worker gave it.
    stored: bool,
    /// `_bucket`, or nothing.
    suffix: &'a str,
    /// What stands before it.
    before: &'a str,
    /// `label` and the value it is compared with.
    selector: Vec<(&'a str, &'a str)>,
}

impl Named<'_> {
    fn labels(&self) -> BTreeSet<&'static str> {
        let mut labels: BTreeSet<&'static str> = self.metric.labels.iter().copied().collect();
        labels.extend(SCRAPED);
        if !self.stored {
            labels.insert("dyno");
        }
        if self.suffix == "_bucket" {
            labels.insert("le");
        }
        labels
    }
}

fn lookup(name: &str) -> Option<(&'static Metric, bool, &str)> {
    let found = |wanted: &str, suffix| {
        let worker = ALL.iter().find(|metric| metric.name == wanted);
        let computed = stored::ALL.iter().find(|metric| metric.name == wanted);
        worker
            .map(|metric| (metric, false, suffix))
            .or(computed.map(|metric| (metric, true, suffix)))
    };
    found(name, "").or_else(|| {
        let suffix = ["_bucket", "_sum", "_count"]
            .into_iter()
            .find(|suffix| name.ends_with(suffix))?;
        let histogram = found(name.strip_suffix(suffix)?, suffix)?;
        matches!(histogram.0.kind, Kind::Histogram(_)).then_some(histogram)
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics of ours that an expression names.
fn named(expression: &str) -> Vec<Named<'_>> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("orgstream_") {
        let rest = &expression[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (metric, stored, suffix) = lookup(&rest[..end])
            .unwrap_or_else(|| panic!("no metric {} in: {expression}", &rest[..end]));
        let inside = rest[end..]
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next());
        let selector = inside
            .into_iter()
            .flat_map(|inside| inside.split(','))
            .map(|pair| {
                let name = pair.find(|c| !is_word(c)).unwrap();
                (&pair[..name], pair[name..].split('"').nth(1).unwrap())
            })
            .collect();
        let before = &expression[..at];
        found.push(Named {
            metric,
            stored,
            suffix,
            before,
            selector,
        });
    }
    found
}

/// Fails where an expression names a metric or a label that there is none of, or takes a counter for a gauge.
pub(super) fn check(expression: &str) {
    let all = named(expression);
    let mut labels = BTreeSet::new();
    for one in &all {
        check_labels(one, expression);
        let counts = one.metric.kind == Kind::Counter || one.suffix == "_bucket";
        let over_time = ["increase(", "rate("]
            .iter()
            .any(|function| one.before.ends_with(function));
        assert_eq!(counts, over_time, "{}: {expression}", one.metric.name);
        labels.extend(one.labels());
    }
    for list in expression.split(" by (").chain(expression.split(" on (")) {
        // The first piece has no list at its beginning.
        if std::ptr::eq(list.as_ptr(), expression.as_ptr()) || all.is_empty() {
            continue;
        }
        for label in list.split(')').next().unwrap().split(',').map(str::trim) {
            assert!(
                labels.contains(label),
                "nothing has the label {label}: {expression}"
            );
        }
    }
}

/// Fails where a series is none of ours, or has a label that it has not, or a value that the label never has.
pub(super) fn check_series(series: &str) {
    for one in &named(series) {
        check_labels(one, series);
    }
}

fn check_labels(one: &Named<'_>, expression: &str) {
    for (label, value) in &one.selector {
        assert!(
            one.labels().contains(label),
            "{} has no label {label}: {expression}",
            one.metric.name
        );
        check_value(one.metric, label, value);
    }
}

/// Words that a label may have, where the code has a list of them.
fn check_value(metric: &Metric, label: &str, value: &str) {
    let name = metric.name.strip_prefix("orgstream_").unwrap();
    let row = VALUES
        .iter()
        .find(|(of, with, _)| *of == name && *with == label);
    let words = match (name, label) {
        ("stored_state", "state") => &orgstream::status::STATES,
        _ => match row {
            Some((_, _, words)) => *words,
            None => return,
        },
    };
    for word in value.split('|').filter(|word| !word.starts_with('$')) {
        assert!(
            words.contains(&word),
            "{} has no {label} {word}",
            metric.name
        );
    }
}
