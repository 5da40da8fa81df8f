//! Positions that come near to leaving the bus, what a run from EARLIEST may cost, and what the store deletes:
//! said or done in time, and seen in the commands.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::stream::{ACCOUNTS, accounts, publish};
use crate::support::metrics::METRICS;
use crate::support::{Daemon, Emulator, Hook, Metrics, Store, configured, webhook};

/// So short that a test sees a position come near to its end.
const SHORT: &str = "retention = \"20s\"\nretention_warning = \"18s\"\n";

async fn output(config: &str, args: &[&str]) -> (i32, String, String) {
    Daemon::output(args, config, &BTreeMap::new()).await
}

#[tokio::test]
async fn a_position_that_comes_near_to_leaving_the_bus_is_told_in_log_metrics_and_status() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|event, _| {
        if event["data"]["Name"] == "stuck" {
            503.into()
        } else {
            200.into()
        }
    })
    .await;
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let config = configured(&org, &store, SHORT, subscription, &webhook(&hook.url(), ""));
    let daemon = Daemon::run_with(&config, &[METRICS]);
    publish(&org, "one").await;
    hook.accepts(1).await;
    store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    let metrics = Metrics::of(&daemon).await;
    let labels = [("subscription", "accounts")];
    let kept = metrics
        .until("orgstream_position_kept_seconds", &labels, |_| true)
        .await;
    assert!(kept <= 20.0, "{kept}");
    publish(&org, "stuck").await;
    daemon
        .logged(&["about to leave the time", "accounts"])
        .await;
    let (code, out, err) = output(&config, &["status"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("KEPT") && err.contains("unless the position moves"),
        "{out}{err}"
    );
    let told = |daemon: &Daemon| {
        let lines = daemon.log();
        lines
            .iter()
            .filter(|line| line.contains("about to leave"))
            .count()
    };
    assert_eq!(told(&daemon), 1, "once an hour");
    daemon.kill();

    // After an outage that was too long, at once.
    let config = config.replace(SHORT, "retention = \"2s\"\nretention_warning = \"1s\"\n");
    crate::support::within(Duration::from_secs(10), "its end", async || {
        let (_, _, err) = output(&config, &["status"]).await;
        err.contains("lost already").then_some(())
    })
    .await;
    let daemon = Daemon::run_with(&config, &[METRICS]);
    daemon.logged(&["may be lost already", "accounts"]).await;
    let metrics = Metrics::of(&daemon).await;
    metrics
        .until("orgstream_position_kept_seconds", &labels, |left| {
            left < 0.0
        })
        .await;
    daemon.kill();
}

#[tokio::test]
async fn a_position_that_comes_near_to_leaving_the_bus_is_told_while_nobody_can_sign_in() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, SHORT, "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    org.fault(json!({"rpc": "Token", "kind": "error", "code": "inactive_user"}))
        .await;
    let daemon = Daemon::run(&config);
    daemon
        .logged(&["about to leave the time", "accounts"])
        .await;
    daemon.kill();
}

#[tokio::test]
async fn a_keepalive_keeps_the_position_of_a_quiet_topic_from_leaving_the_bus() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"keepalive_ms": 500})).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    let first = store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    // What happens elsewhere on the bus moves its line on.
    org.post("/bus/skip", &json!({"places": 5})).await;
    let later = store
        .until("accounts", "a later position", |s| {
            s.position != first.position
        })
        .await;
    assert!(later.position_time > first.position_time, "{later:?}");
    assert_eq!(daemon.stop().await.1, 0);
}

/// The line that says what beginning at EARLIEST may cost.
async fn cost(org: &Emulator, store: &Store) -> String {
    let daemon = Daemon::run(&accounts(org, store, "", "start = \"earliest\""));
    daemon.logged(&["stream open"]).await;
    let line = daemon.logged(&["beginning at EARLIEST"]).await;
    assert_eq!(daemon.stop().await.1, 0);
    line
}

#[tokio::test]
async fn a_run_from_earliest_says_what_is_left_of_the_allocation_where_the_org_tells() {
    let org = Emulator::start().await;
    publish(&org, "one").await;
    org.settings(json!({"delivery_limit": 700})).await;
    let line = cost(&org, &Store::sqlite()).await;
    assert!(
        line.contains("deliveries_left=700 daily_deliveries=700"),
        "{line}"
    );
    for (limits, status) in [("forbidden", "403"), ("missing", "404")] {
        org.settings(json!({"limits": limits})).await;
        let line = cost(&org, &Store::sqlite()).await;
        assert!(
            line.contains("not_known=") && line.contains(status),
            "{line}"
        );
        assert!(!line.contains("deliveries_left"), "{line}");
    }
}

#[tokio::test]
async fn a_run_from_earliest_that_would_use_up_the_allocation_is_warned_of() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"earliest\"";
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    // As though a hundred had come in an hour.
    let mut other = sqlx::SqliteConnection::connect(&store.url).await.unwrap();
    sqlx::raw_sql(
        "insert into position_mark (org_id, subscription, at, position, received) \
         select org_id, subscription, at - 3600000, position, received - 100 from position_mark",
    )
    .execute(&mut other)
    .await
    .unwrap();
    other.close().await.unwrap();
    org.post("/bus/expire", &json!({})).await;
    org.settings(json!({"delivery_limit": 5000})).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    let line = daemon
        .logged(&["beginning at EARLIEST", "level=warn"])
        .await;
    assert!(
        line.contains("expected_events=7200 deliveries_left=4999"),
        "{line}"
    );
    // And goes on.
    publish(&org, "two").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn holes_are_listed_and_acknowledged_by_command() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    let gap = json!({"ChangeEventHeader": {"entityName": "Account", "changeType": "GAP_UPDATE",
                                           "recordIds": ["0015g0000000001AAA"]}});
    org.publish(ACCOUNTS, &[gap]).await;
    daemon.handled(2).await;
    store
        .until("accounts", "two finished", |s| s.finished == 2)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
    // One that may still grow.
    org.post("/bus/expire", &json!({})).await;
    let stopped = config.replace(
        "\"earliest\"",
        "\"earliest\"\non_expired_replay_id = \"stop\"",
    );
    let daemon = Daemon::run(&stopped);
    daemon.logged(&["subscription blocked"]).await;
    crate::support::eventually("two holes", async || {
        (store.holes().await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);

    let (code, out, err) = output(&config, &["status"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(
        err.contains("2 holes") && err.contains("orgstream holes list --subscription accounts"),
        "{err}"
    );
    let (code, out, _) = output(&config, &["holes", "list"]).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("hole 2: lost (expired_replay_id), subscription accounts"),
        "{out}"
    );
    assert!(out.contains("records 0015g0000000001AAA\n"), "{out}");
    let (_, out, _) = output(
        &config,
        &["holes", "list", "--json", "--subscription", "accounts"],
    )
    .await;
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&listed[0]["may_grow"], &listed[1]["record_count"]),
        (&json!(true), &json!(1))
    );
    let (_, out, err) = output(&config, &["holes", "list", "--limit", "1"]).await;
    assert!(
        !out.contains("hole 1") && err.contains("--limit"),
        "{out}{err}"
    );

    let (code, out, err) = output(&config, &["holes", "ack", "2", "9"]).await;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(
        err.contains("hole 2 of accounts is left") && err.contains("no hole 9"),
        "{err}"
    );
    let (code, out, err) = output(&config, &["holes", "ack", "--all"]).await;
    assert_eq!((code, out.as_str()), (0, "hole 1 acknowledged"), "{err}");
    assert!(err.contains("--open-ended"), "{err}");
    let (code, out, _) = output(&config, &["holes", "ack", "1"]).await;
    assert_eq!((code, out.as_str()), (0, ""), "twice is once");
    let (code, out, _) = output(&config, &["holes", "ack", "2", "--open-ended", "--json"]).await;
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &done["acknowledged"]), (0, &json!([2])));
    let (_, out, err) = output(&config, &["holes", "list"]).await;
    assert!(out.is_empty() && err.contains("no holes"), "{out}{err}");
    let (_, out, _) = output(&config, &["holes", "list", "--all"]).await;
    assert!(
        out.contains("acknowledged 0 s ago") || out.contains("acknowledged 1 s ago"),
        "{out}"
    );
    assert_eq!(output(&config, &["holes", "ack"]).await.0, 2);
}

#[tokio::test]
async fn a_worker_deletes_what_is_done_with_for_long() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    assert_eq!(output(&config, &["migrate"]).await.0, 0);
    let mut other = sqlx::SqliteConnection::connect(&store.url).await.unwrap();
    sqlx::raw_sql(
        "insert into hole (org_id, subscription, kind, reason, record_ids, record_count, explanation, \
         recorded_at, acknowledged_at) values ('o', 'gone', 'gap', 'overflow', '[]', 0, 'old', 0, 1), \
         ('o', 'gone', 'gap', 'overflow', '[]', 0, 'open', 0, null)",
    )
    .execute(&mut other)
    .await
    .unwrap();
    other.close().await.unwrap();
    let daemon = Daemon::run(&config);
    daemon
        .logged(&["deleted what is done with", "holes=1"])
        .await;
    let left = store.holes().await;
    assert_eq!((left.len(), left[0].hole.explanation.as_str()), (1, "open"));
    assert_eq!(daemon.stop().await.1, 0);
}
