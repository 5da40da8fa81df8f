//! The Grafana dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use orgstream::telemetry::metrics::{ALL, stored};
use serde_json::{Value, json};

use super::{expressions, text};
use crate::support::server::find;

fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/grafana/orgstream.json")).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

/// Every expression, variables of Grafana's replaced by something of their kind.
fn expressions_of(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard)
        .into_iter()
        .flat_map(|panel| panel["targets"].as_array())
        .flatten();
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let queries = annotations
        .iter()
        .chain(targets)
        .filter_map(|one| one["expr"].as_str());
    queries
        .map(|query| query.replace("$__rate_interval", "5m"))
        .collect()
}

#[test]
fn every_panel_is_over_metrics_that_there_are() {
    let dashboard = dashboard();
    let all = expressions_of(&dashboard);
    assert!(all.len() > 40);
    for expression in &all {
        expressions::check(expression);
    }
}

/// What is not on it was left out on purpose.
#[test]
fn the_dashboard_shows_what_there_is() {
    let shown = expressions_of(&dashboard()).join("\n");
    let left_out = [
        "orgstream_append_skipped_total",
        "orgstream_caught_up_timestamp_seconds",
        "orgstream_dead_letters_open", // shown as the store knows it
        "orgstream_dead_letters_resolved_total",
        "orgstream_deliveries_allocated",
        "orgstream_deliveries_exhausted_timestamp_seconds",
        "orgstream_deliveries_remaining",
        "orgstream_ignored_bitmap_bits_total",
        "orgstream_position_kept_seconds",
        "orgstream_process_open_fds",
        "orgstream_schema_fetches_total",
        "orgstream_stored_caught_up_timestamp_seconds",
        "orgstream_stored_epoch",
        "orgstream_stored_held",
        "orgstream_stream_state",
    ];
    let missing: Vec<&str> = ALL
        .iter()
        .chain(stored::ALL)
        .map(|metric| metric.name)
        .filter(|name| !shown.contains(name) && !left_out.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "neither shown nor left out on purpose: {missing:?}"
    );
}

#[test]
fn panels_have_a_place_of_their_own_and_one_source_of_data() {
    let dashboard = dashboard();
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is another's"
        );
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(
            place("x") + place("w") <= 24,
            "{title} is wider than the page"
        );
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"], source, "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"], source, "{title}");
            assert!(
                target["expr"].as_str().unwrap().contains("job=\"$job\""),
                "{title}"
            );
        }
    }
}

/// A variable in an expression is one that the page lets its reader choose.
#[test]
fn every_variable_is_one_of_the_page() {
    let dashboard = dashboard();
    let list = dashboard["templating"]["list"].as_array().unwrap();
    let names: BTreeSet<&str> = list
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from(["datasource", "dyno", "job", "subscription"])
    );
    for variable in list {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inside = query.strip_prefix("label_values(").unwrap();
            let (metric, label) = inside.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            expressions::check(metric);
            assert!(["job", "subscription", "dyno"].contains(&label), "{query}");
        }
    }
    for expression in expressions_of(&dashboard) {
        for used in expression.split('$').skip(1) {
            let end = used.find(|c: char| !c.is_ascii_lowercase()).unwrap();
            assert!(names.contains(&used[..end]), "{expression}");
        }
    }
}

/// As rules, for promtool reads no dashboards.
#[test]
fn every_expression_is_promql() {
    let Some(promtool) = find("promtool", "ORGSTREAM_REQUIRE_PROMTOOL") else {
        return;
    };
    let rules: Vec<Value> = expressions_of(&dashboard())
        .into_iter()
        .enumerate()
        .map(|(index, expr)| json!({"record": format!("panel:{index}"), "expr": expr}))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("panels.yml");
    // JSON is YAML.
    let groups = json!({"groups": [{"name": "panels", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    let output = Command::new(promtool)
        .args(["check", "rules"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
