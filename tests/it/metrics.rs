//! What the metrics say while things happen.

use std::time::Duration;

use serde_json::json;

use crate::support::metrics::METRICS;
use crate::support::{Daemon, Emulator, Metrics, Receiver, Store, account_update, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str) = ("subscription", "accounts");

fn config(org: &Emulator, store: &Store, handler: &str) -> String {
    format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\n{handler}\n",
        org.salesforce(),
        store.url
    )
}

fn webhook(url: &str) -> String {
    format!(
        "type = \"webhook\"\nurl = \"{url}\"\nretry = {{ initial = \"20ms\", max = \"100ms\" }}"
    )
}

#[tokio::test]
async fn events_are_counted_from_their_arrival_to_their_end() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Every third event is refused for good.
    let receiver = Receiver::start(|_, event| {
        if event["data"]["Name"].as_str().unwrap().starts_with("bad") {
            422
        } else {
            200
        }
    })
    .await;
    let daemon = Daemon::run_with(&config(&org, &store, &webhook(&receiver.url())), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    let events: Vec<_> = (0..6)
        .map(|i| {
            let name = if i % 3 == 0 { "bad" } else { "good" };
            account_update(&record(i), name)
        })
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let handled = [OURS, ("outcome", "handled")];
    let parked = [OURS, ("outcome", "parked")];
    metrics
        .until("orgstream_events_finished_total", &handled, |n| n == 4.0)
        .await;
    metrics
        .until("orgstream_events_finished_total", &parked, |n| n == 2.0)
        .await;
    assert_eq!(
        metrics
            .value("orgstream_events_received_total", &[OURS])
            .await,
        Some(6.0)
    );
    let by_handler = [OURS, ("handler", "out"), ("reason", "rejected")];
    assert_eq!(
        metrics
            .value("orgstream_events_parked_total", &by_handler)
            .await,
        Some(2.0)
    );
    metrics
        .until("orgstream_in_flight_events", &[OURS], |n| n == 0.0)
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |n| n == 0.0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn lag_grows_while_a_webhook_is_down_and_falls_to_zero_after() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let receiver = Receiver::start(move |_, _| {
        if is_up.load(std::sync::atomic::Ordering::SeqCst) {
            200
        } else {
            503
        }
    })
    .await;
    let daemon = Daemon::run_with(&config(&org, &store, &webhook(&receiver.url())), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    let lag = metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag > 0.5)
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |now| now > lag + 0.5)
        .await;
    metrics
        .until("orgstream_handler_retries_total", &[OURS], |n| n >= 2.0)
        .await;
    assert_eq!(
        metrics
            .value("orgstream_events_parked_total", &[OURS])
            .await,
        Some(0.0),
        "a handler that is down parks nothing"
    );
    up.store(true, std::sync::atomic::Ordering::SeqCst);
    receiver.accepts(1).await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn the_state_follows_the_stream_and_reconnects_are_counted_by_reason() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let daemon = Daemon::run_with(&config(&org, &store, "type = \"log\""), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    let reconnects = |reason: &'static str| [OURS, ("reason", reason)];
    assert_eq!(
        metrics.value("orgstream_reconnects_total", &[OURS]).await,
        None
    );

    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1}))
        .await;
    metrics
        .until("orgstream_reconnects_total", &reconnects("ended"), |n| {
            n == 1.0
        })
        .await;
    metrics.state("accounts", "live").await;
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"}))
        .await;
    org.post("/connections/drop", &json!({})).await;
    metrics
        .until(
            "orgstream_reconnects_total",
            &reconnects("unavailable"),
            |n| n >= 2.0,
        )
        .await;
    metrics.state("accounts", "reconnecting").await;
    metrics
        .until("orgstream_credits_outstanding", &[OURS], |n| n == 0.0)
        .await;
    // One state at a time.
    assert_eq!(
        metrics.value("orgstream_stream_state", &[OURS]).await,
        Some(1.0)
    );
    // While the stream is not live, lag counts from when it last was.
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag > 0.5)
        .await;
    org.clear_faults().await;
    metrics.state("accounts", "live").await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    let credits = metrics
        .until("orgstream_credits_outstanding", &[OURS], |n| n > 0.0)
        .await;
    assert!(credits <= 100.0);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        metrics.value("orgstream_stream_state", &[OURS]).await,
        Some(1.0)
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_counted_and_the_rest_goes_on() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run_with(&config(&org, &store, "type = \"log\""), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    // There before the first: from nothing to one is what an alert sees of it.
    let undecodable = [OURS, ("reason", "undecodable")];
    metrics
        .until("orgstream_decode_failures_total", &undecodable, |n| {
            n == 0.0
        })
        .await;
    for (name, label) in [
        ("orgstream_holes_total", ("kind", "lost")),
        ("orgstream_events_parked_total", ("reason", "exhausted")),
        ("orgstream_lease_changes_total", ("change", "lost")),
    ] {
        assert_eq!(metrics.value(name, &[OURS, label]).await, Some(0.0));
    }
    let refused = [("outcome", "refused")];
    metrics
        .until("orgstream_token_refreshes_total", &refused, |n| n == 0.0)
        .await;
    org.fault(json!({"rpc": "Subscribe", "kind": "corrupt_payload", "times": 1}))
        .await;
    org.publish(
        ACCOUNTS,
        &[
            account_update(&record(1), "broken"),
            account_update(&record(2), "whole"),
        ],
    )
    .await;
    daemon.handled(1).await;
    metrics
        .until("orgstream_decode_failures_total", &[OURS], |n| n == 1.0)
        .await;
    metrics
        .until(
            "orgstream_events_parked_total",
            &[OURS, ("reason", "undecodable")],
            |n| n == 1.0,
        )
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

/// A gauge that is NaN is not a number that a test could wait for by comparing.
async fn is_nan(metrics: &Metrics, name: &str) {
    metrics.until(name, &[OURS], f64::is_nan).await;
}

#[tokio::test]
async fn an_idle_subscription_has_no_lag_and_hears_keepalives() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 60_000})).await;
    let store = Store::sqlite();
    let daemon = Daemon::run_with(&config(&org, &store, "type = \"log\""), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    // Nothing came yet, so that silence counts from the stream's beginning; and there is no position that could leave
    // the bus.
    metrics
        .until("orgstream_last_message_timestamp_seconds", &[OURS], |at| {
            at > 0.0
        })
        .await;
    is_nan(&metrics, "orgstream_position_kept_seconds").await;
    is_nan(&metrics, "orgstream_dead_letters_oldest_timestamp_seconds").await;

    org.settings(json!({"keepalive_ms": 100})).await;
    org.post("/connections/drop", &json!({})).await;
    let now = || {
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs_f64()
    };
    let asked = now();
    let heard = metrics
        .until(
            "orgstream_last_message_timestamp_seconds",
            &[OURS],
            |heard| heard > asked,
        )
        .await;
    assert!(heard <= now());
    metrics
        .until("orgstream_position_kept_seconds", &[OURS], |kept| {
            kept > 70.0 * 3600.0
        })
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    assert_eq!(
        metrics
            .value("orgstream_events_received_total", &[OURS])
            .await,
        Some(0.0)
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_stream_that_is_silent_from_its_beginning_lags_however_often_it_is_opened_again() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 100})).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "silence", "after_events": 0}))
        .await;
    let store = Store::sqlite();
    let limit = "silence_limit = \"1s\"\n[store]";
    let text = config(&org, &store, "type = \"log\"").replace("[store]", limit);
    let daemon = Daemon::run_with(&text, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "live").await;
    // Within the time in which a quiet topic may be silent, nothing is wrong.
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    let last_message = "orgstream_last_message_timestamp_seconds";
    let opened_at = metrics.until(last_message, &[OURS], |at| at > 0.0).await;
    let reconnects = "orgstream_reconnects_total";
    metrics
        .until(reconnects, &[OURS, ("reason", "silent")], |n| n >= 2.0)
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag > 2.0)
        .await;
    metrics.state("accounts", "live").await;
    assert!(metrics.value("orgstream_lag_seconds", &[OURS]).await > Some(2.0));
    assert_eq!(metrics.value(last_message, &[OURS]).await, Some(opened_at));
    org.clear_faults().await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    let heard_at = metrics.value(last_message, &[OURS]).await;
    assert!(heard_at > Some(opened_at));
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_stream_that_never_opened_lags_although_nothing_has_arrived_since_the_start() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"}))
        .await;
    let daemon = Daemon::run_with(&config(&org, &store, "type = \"log\""), &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("accounts", "reconnecting").await;
    let lag = metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag > 0.5)
        .await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |now| now > lag + 0.5)
        .await;
    org.clear_faults().await;
    metrics.state("accounts", "live").await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_restart_after_a_long_stop_lags_by_the_age_of_what_it_has_still_to_finish() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let text = config(&org, &store, "type = \"log\"");
    let mut first = Daemon::run(&text);
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    first.handled(1).await;
    assert_eq!(first.stop().await.1, 0);
    // The org is away when it comes back: what it misses meanwhile is at least as old as its last moment.
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"}))
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let daemon = Daemon::run_with(&text, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag >= 2.0)
        .await;
    org.clear_faults().await;
    metrics
        .until("orgstream_lag_seconds", &[OURS], |lag| lag == 0.0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}
