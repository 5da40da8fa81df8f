//! What a daemon's metrics say after traffic, faults and a hand-over is what the table of metrics promises.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use orgstream::telemetry::exposition::{Exposition, Family, FamilyKind};
use orgstream::telemetry::metrics::{self, Kind, Metric};
use serde_json::json;

use crate::letters::{ACCOUNTS, Refusing, letters, open};
use crate::support::metrics::METRICS;
use crate::support::server::find;
use crate::support::{
    Daemon, Emulator, Hook, LOG, Metrics, Reply, Store, account_update, configured, eventually,
    record,
};

/// Metrics that this test does not bring about, and where they are seen.
const ELSEWHERE: [(&str, &str); 6] = [
    ("store_errors_total", "src/store/measured.rs"),
    ("append_skipped_total", "needs Postgres: tests/it/append.rs"),
    (
        "ignored_bitmap_bits_total",
        "needs a schema that is not its events'",
    ),
    ("deliveries_allocated", "needs a reading of the limits"),
    ("deliveries_remaining", "needs a reading of the limits"),
    (
        "deliveries_exhausted_timestamp_seconds",
        "needs a reading of the limits",
    ),
];

const OURS: (&str, &str) = ("subscription", "accounts");

fn hook(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[subscription.handler]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"{url}\"\n\
         retry = {{ attempts = 3, initial = \"20ms\", max = \"100ms\" }}\n{more}\n"
    )
}

/// Runs until everything in the table that can be brought about has been, and gives the text of each moment that
/// matters.
async fn eventful(org: &Emulator, store: &Store) -> Vec<Exposition> {
    let refusing = Refusing::start().await;
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let flaky = Hook::start(move |_, _| {
        let up = is_up.load(std::sync::atomic::Ordering::SeqCst);
        Reply::from(if up { 200 } else { 503 })
    })
    .await;
    let handlers = [
        hook("refusing", &refusing.hook.url(), ""),
        hook("flaky", &flaky.url(), ""),
        hook("deletes", &flaky.url(), "change = \"delete\""),
        LOG.to_owned(),
    ];
    let config = configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, "start = \"earliest\""),
        &handlers.concat(),
    );
    let daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    let mut seen = Vec::new();
    let mut look = async || seen.push(Exposition::parse(&metrics.text().await).unwrap());
    look().await;

    // One handler refuses, one is down, and an event has no content.
    let names = ["bad", "good", "bad", "good", "good"];
    let events: Vec<_> = (names.iter().enumerate())
        .map(|(number, name)| account_update(&record(number), name))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let gap = json!({"ChangeEventHeader": {
        "entityName": "Account", "recordIds": [record(9)], "changeType": "GAP_UPDATE"}});
    org.publish(ACCOUNTS, &[gap]).await;
    let down = [OURS, ("handler", "flaky")];
    metrics
        .until("orgstream_handler_down", &down, |down| down == 1.0)
        .await;
    look().await;
    up.store(true, std::sync::atomic::Ordering::SeqCst);
    metrics
        .until("orgstream_handler_down", &down, |down| down == 0.0)
        .await;

    // The stream breaks, and what comes next cannot be decoded.
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1}))
        .await;
    metrics
        .until("orgstream_reconnects_total", &[OURS], |n| n >= 1.0)
        .await;
    metrics.state("accounts", "live").await;
    org.fault(json!({"rpc": "Subscribe", "kind": "corrupt_payload", "times": 1}))
        .await;
    org.publish(ACCOUNTS, &[account_update(&record(20), "broken")])
        .await;
    metrics
        .until("orgstream_dead_letters_open", &[OURS], |n| n == 3.0)
        .await;
    look().await;

    // A person mends what was refused.
    refusing.mend();
    let bad = open(store, 3).await;
    for id in &bad[..2] {
        let (code, _, error) = letters(&config, &["retry", &id.to_string()]).await;
        assert_eq!(code, 0, "{error}");
    }
    metrics
        .until("orgstream_dead_letters_resolved_total", &[OURS], |n| {
            n == 2.0
        })
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    look().await;

    // A person pauses the subscription, which gives the lease back.
    let (code, _, error) = Daemon::output(&["pause", "accounts"], &config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{error}");
    let released = [OURS, ("change", "released")];
    metrics
        .until("orgstream_lease_changes_total", &released, |n| n == 1.0)
        .await;
    look().await;
    assert_eq!(daemon.stop().await.1, 0);
    seen
}

fn promised(family: &Family) -> &'static Metric {
    let known = metrics::ALL
        .iter()
        .find(|metric| metric.name == family.name);
    known.unwrap_or_else(|| panic!("{} is not in the table", family.name))
}

/// A family is as the table has it.
fn check(family: &Family) {
    let metric = promised(family);
    let kind = match metric.kind {
        Kind::Counter => FamilyKind::Counter,
        Kind::Gauge => FamilyKind::Gauge,
        Kind::Histogram(_) => FamilyKind::Histogram,
    };
    assert_eq!(family.kind, kind, "{}", family.name);
    assert_eq!(family.help.as_deref(), Some(metric.help), "{}", family.name);
    let words = |label: &str| {
        let mut all = metrics::VALUES.iter();
        all.find(|(name, of, _)| format!("orgstream_{name}") == metric.name && *of == label)
            .map(|(_, _, words)| *words)
    };
    for sample in &family.samples {
        let labels: Vec<&str> = sample.labels.iter().map(|(name, _)| &**name).collect();
        let bound = labels.iter().filter(|label| **label == "le").count();
        assert_eq!(bound, usize::from(sample.suffix == "_bucket"), "{sample:?}");
        let ours: Vec<&str> = labels.into_iter().filter(|label| *label != "le").collect();
        assert_eq!(ours, metric.labels, "{}", family.name);
        for (label, value) in &sample.labels {
            let known = match label.as_str() {
                "subscription" => value == "accounts",
                "handler" => ["refusing", "flaky", "deletes", "out", ""].contains(&&**value),
                "version" => value == env!("CARGO_PKG_VERSION"),
                "commit" => value.bytes().all(|b| b.is_ascii_hexdigit()),
                "le" => value.parse::<f64>().is_ok(),
                "operation" | "reason" if words(label).is_none() => {
                    value.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                }
                other => words(other).unwrap().contains(&&**value),
            };
            assert!(known, "{} {label}=\"{value}\"", family.name);
        }
    }
}

#[tokio::test]
async fn after_traffic_faults_and_a_pause_the_metrics_are_those_of_the_table() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let seen = eventful(&org, &store).await;
    let mut names = BTreeSet::new();
    for moment in &seen {
        for family in moment.families() {
            check(family);
            names.insert(family.name.clone());
        }
    }
    let missing: Vec<&str> = (metrics::ALL.iter())
        .filter(|metric| !names.contains(metric.name))
        .map(|metric| metric.name)
        .filter(|name| !ELSEWHERE.iter().any(|(one, _)| name.ends_with(one)))
        .collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");

    let last = seen.last().unwrap();
    let value = |name: &str, label: (&str, &str)| {
        let family = last.family(&format!("orgstream_{name}")).unwrap();
        let mut samples = family.samples.iter();
        let sample =
            samples.find(|one| one.label(label.0) == Some(label.1) && one.suffix != "_bucket");
        sample.unwrap_or_else(|| panic!("{name} {label:?}")).value
    };
    let handled = |handler| {
        let family = last.family("orgstream_handler_events_total").unwrap();
        let is_it = |sample: &&orgstream::telemetry::exposition::Sample| {
            sample.label("handler") == Some(handler) && sample.label("outcome") == Some("handled")
        };
        family.samples.iter().find(is_it).unwrap().value
    };
    // Five updates and a gap event; two of them only at their second attempt, as dead letters.
    assert_eq!(handled("flaky"), 6.0);
    assert_eq!(handled("refusing"), 6.0);
    let filtered = value("events_finished_total", ("outcome", "filtered"));
    assert_eq!(filtered, 0.0, "each has a handler that wants it");
    // What does not run here any more hides nothing of what runs elsewhere.
    assert!(value("lag_seconds", OURS).is_nan());
    assert!(value("last_message_timestamp_seconds", OURS).is_nan());
    assert!(value("position_kept_seconds", OURS).is_nan());
    assert!(value("dead_letters_oldest_timestamp_seconds", OURS).is_nan());
    assert_eq!(value("lease_held", OURS), 0.0);
    assert_eq!(value("in_flight_events", OURS), 0.0);
    assert_eq!(value("handler_down", ("handler", "flaky")), 0.0);
    promtool(&last.to_string());
}

/// Prometheus' own judgement of names and text, where its tool is installed.
fn promtool(text: &str) {
    let Some(promtool) = find("promtool", "ORGSTREAM_REQUIRE_PROMTOOL") else {
        return;
    };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    command.stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut tool = command.spawn().unwrap();
    let mut input = tool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let said = tool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && words.trim().is_empty(), "{words}");
}

/// A sample of a histogram's count.
async fn leg(metrics: &Metrics, leg: &str) -> (f64, f64) {
    let labels = [OURS, ("leg", leg)];
    let count = metrics
        .value("orgstream_lag_leg_seconds_count", &labels)
        .await;
    let sum = metrics
        .value("orgstream_lag_leg_seconds_sum", &labels)
        .await;
    (count.unwrap_or(0.0), sum.unwrap_or(0.0))
}

#[tokio::test]
async fn the_time_that_a_slow_handler_takes_is_in_its_leg_and_in_no_other() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let gate = Hook::closed().await;
    let config = configured(
        &org,
        &store,
        "",
        ("accounts", ACCOUNTS, "start = \"earliest\""),
        &hook("out", &gate.url(), ""),
    );
    let daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    let began = std::time::Instant::now();
    org.publish(
        ACCOUNTS,
        &[
            account_update(&record(1), "one"),
            account_update(&record(2), "two"),
        ],
    )
    .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag > 1.5)
        .await;
    gate.open();
    eventually("both stored", async || {
        (leg(&metrics, "position").await.0 == 2.0).then_some(())
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    let (events, handler) = leg(&metrics, "handler").await;
    assert_eq!(events, 2.0);
    assert!(
        handler > 1.0 && handler <= 2.0 * took,
        "{handler} of {took}"
    );
    for (name, most) in [
        ("bus", took),
        ("wait", 1.5),
        ("position", 2.0 * took - handler),
    ] {
        let (events, seconds) = leg(&metrics, name).await;
        assert_eq!(events, 2.0, "{name}");
        assert!(
            (0.0..=most).contains(&seconds),
            "{name}: {seconds} of {took}"
        );
    }
    assert_eq!(daemon.stop().await.1, 0);
}
