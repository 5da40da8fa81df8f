//! The alert rules: over metrics that there are, each with a section of docs/OPERATING.md, and each tested with
//! promtool to fire and to clear.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{expressions, text, yaml};
use crate::support::daemon::project;
use crate::support::server::find;

const RULES: &str = "deploy/prometheus/orgstream.rules.yml";
const RULE_TESTS: &str = "deploy/prometheus/orgstream.rules.test.yml";
const CONFIG: &str = "deploy/prometheus/prometheus.yml";

fn alerts() -> Vec<Value> {
    let rules = yaml(RULES);
    let groups = rules["groups"].as_array().unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

/// Runs promtool in `folder`; fails with what it says.
fn promtool(folder: &Path, arguments: &[&str]) {
    let Some(promtool) = find("promtool", "ORGSTREAM_REQUIRE_PROMTOOL") else {
        return;
    };
    let output = Command::new(promtool)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

#[test]
fn every_alert_is_over_metrics_that_there_are() {
    let alerts = alerts();
    assert!(alerts.len() > 20);
    for alert in &alerts {
        expressions::check(alert["expr"].as_str().unwrap());
    }
}

/// Prometheus is told one name of the job, and the rules look for it.
#[test]
fn the_rules_look_for_the_job_that_is_scraped() {
    let config = yaml(CONFIG);
    let job = &config["scrape_configs"][0];
    assert_eq!(config["rule_files"][0], "orgstream.rules.yml");
    assert_eq!(job["metrics_path"], "/metrics");
    assert_eq!(job["authorization"]["type"], "Bearer");
    let wanted = format!("up{{job=\"{}\"}}", job["job_name"].as_str().unwrap());
    let rules = text(RULES);
    assert!(rules.contains(&wanted), "{wanted}");
}

#[test]
fn every_alert_says_what_to_do() {
    let guide = text("docs/OPERATING.md");
    let headings: BTreeSet<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = name(&alert).to_owned();
        assert!(
            ["warning", "critical"].contains(&alert["labels"]["severity"].as_str().unwrap()),
            "{name}"
        );
        for key in ["summary", "description"] {
            assert!(alert["annotations"][key].is_string(), "{key} of {name}");
        }
        let anchor = format!("docs/OPERATING.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], anchor);
        assert!(
            headings.contains(name.as_str()),
            "docs/OPERATING.md has no section {name}"
        );
        let section = guide.split(&format!("\n### {name}\n")).nth(1).unwrap();
        let section = section.split("\n#").next().unwrap();
        for part in ["**Means.**", "**Look.**", "**Do.**", "**Clears**"] {
            assert!(section.contains(part), "{part} of {name}");
        }
        assert!(names.insert(name.clone()), "{name} twice");
    }
    for heading in headings
        .iter()
        .filter(|heading| heading.starts_with("Orgstream"))
    {
        assert!(
            names.contains(*heading),
            "docs/OPERATING.md has a section {heading}, and there is no such alert"
        );
    }
}

/// A test for each alert sees it fire, and sees it silent at a later time.
#[test]
fn every_alert_is_seen_to_fire_and_to_clear() {
    let tests = yaml(RULE_TESTS);
    let minutes = |text: &Value| -> u64 {
        text.as_str()
            .unwrap()
            .strip_suffix('m')
            .unwrap()
            .parse()
            .unwrap()
    };
    let (mut fired, mut cleared) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().unwrap() {
        let mut at = None;
        for look in test["promql_expr_test"].as_array().into_iter().flatten() {
            let alert = look["expr"]
                .as_str()
                .unwrap()
                .split('"')
                .nth(1)
                .unwrap()
                .to_owned();
            let fires = !look["exp_samples"].as_array().unwrap().is_empty();
            if fires {
                at = Some(minutes(&look["eval_time"]));
                fired.insert(alert);
            } else if at.is_some_and(|at| at < minutes(&look["eval_time"])) {
                cleared.insert(alert);
            }
        }
        for series in test["input_series"].as_array().unwrap() {
            let series = series["series"].as_str().unwrap();
            if series.starts_with("orgstream_") {
                expressions::check_series(series);
            }
        }
    }
    let all: BTreeSet<String> = alerts()
        .iter()
        .map(|alert| name(alert).to_owned())
        .collect();
    assert_eq!(fired, all);
    assert_eq!(cleared, all);
}

#[test]
fn promtool_takes_the_rules_and_their_tests_pass() {
    let folder = project().join("deploy/prometheus");
    promtool(&folder, &["check", "rules", "orgstream.rules.yml"]);
    promtool(&folder, &["test", "rules", "orgstream.rules.test.yml"]);
}

#[test]
fn promtool_takes_the_example_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("orgstream.token");
    fs::write(&token, "a token").unwrap();
    let config = text(CONFIG);
    let there = "/etc/prometheus/orgstream.token";
    assert!(config.contains(there));
    let config = config.replace(there, &token.display().to_string());
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    fs::write(folder.path().join("orgstream.rules.yml"), text(RULES)).unwrap();
    promtool(folder.path(), &["check", "config", "prometheus.yml"]);
}
