use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use super::*;

#[test]
fn names_are_unique_and_follow_the_rules() {
    let legal = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut names = HashSet::new();
    for metric in ALL.iter().chain(stored::ALL) {
        let name = metric.name;
        assert!(names.insert(name), "{name} twice");
        assert!(name.starts_with("orgstream_") && legal(name), "{name}");
        assert!(metric.labels.iter().all(|label| legal(label)), "{name}");
        let unique: HashSet<_> = metric.labels.iter().collect();
        assert_eq!(unique.len(), metric.labels.len(), "{name}");
        let counter = metric.kind == Kind::Counter;
        assert_eq!(name.ends_with("_total"), counter, "{name}");
        let base = name.strip_suffix("_total").unwrap_or(name);
        if metric.unit == Unit::Seconds {
            assert!(base.ends_with("_seconds"), "{name}");
        }
        if metric.unit == Unit::Bytes {
            assert!(base.ends_with("_bytes"), "{name}");
        }
        if let Kind::Histogram(bounds) = metric.kind {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{name}");
        }
        assert!(metric.help.ends_with('.'), "{name}");
    }
}

/// A row of the document, without what a bad value means.
fn row(metric: &Metric) -> [String; 4] {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    let kind = match metric.unit {
        Unit::Seconds => format!("{kind}, seconds"),
        Unit::Bytes => format!("{kind}, bytes"),
        _ => kind.to_owned(),
    };
    let labels: Vec<String> = (metric.labels.iter())
        .map(|label| format!("`{label}`"))
        .collect();
    [
        format!("`{}`", metric.name),
        kind,
        labels.join(", "),
        metric.help.to_owned(),
    ]
}

/// The rows of the tables under a heading, as cells.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_document_lists_every_metric_as_it_is() {
    let document = document();
    for (heading, table) in [
        ("From each worker", ALL),
        ("From `orgstream web`", stored::ALL),
    ] {
        let rows = rows(&document, heading);
        let mut documented: BTreeMap<&str, &[String]> = (rows.iter())
            .map(|cells| (cells[0].as_str(), cells.as_slice()))
            .collect();
        assert_eq!(documented.len(), rows.len(), "a metric twice");
        for metric in table {
            let wanted = row(metric);
            let cells = documented.remove(wanted[0].as_str());
            assert!(
                cells.is_some_and(|cells| cells.len() == 5
                    && cells[..4] == wanted
                    && !cells[4].is_empty()),
                "docs/METRICS.md says of it: {cells:?}, and ought to say\n| {} | what a bad value means |",
                wanted.join(" | ")
            );
        }
        assert!(
            documented.is_empty(),
            "docs/METRICS.md lists what there is not: {documented:?}"
        );
    }
}

#[test]
fn the_document_lists_the_values_of_labels() {
    let documented: Vec<_> = rows(&document(), "Values of labels");
    let wanted: Vec<Vec<String>> = (VALUES.iter())
        .map(|(name, label, words)| {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            vec![
                format!("`orgstream_{name}`"),
                format!("`{label}`"),
                words.join(", "),
            ]
        })
        .collect();
    for wanted in &wanted {
        assert!(
            documented.contains(wanted),
            "docs/METRICS.md lacks\n| {} |",
            wanted.join(" | ")
        );
    }
    assert_eq!(documented.len(), wanted.len(), "docs/METRICS.md lists more");
}

#[test]
fn values_are_of_labels_that_exist() {
    for (name, label, words) in VALUES {
        let name = format!("orgstream_{name}");
        let metric = ALL.iter().find(|metric| metric.name == name);
        assert!(
            metric.is_some_and(|metric| metric.labels.contains(label)),
            "{name} {label}"
        );
        let unique: HashSet<_> = words.iter().collect();
        assert_eq!(unique.len(), words.len(), "{name} {label}");
    }
    let states = VALUES.iter().find(|(name, ..)| *name == "stream_state");
    assert_eq!(states.unwrap().2, STREAM_STATES);
}
