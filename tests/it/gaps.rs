//! Changes that come without their content: they reach the handlers, and are holes until a person has looked.

use orgstream::store::{HoleKind, StoredHole};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::stream::{ACCOUNTS, accounts, publish};
use crate::support::metrics::METRICS;
use crate::support::{Daemon, Emulator, Metrics, Store, eventually, names, record, texts};

fn change(change_type: &str, record_ids: &[&str]) -> Value {
    json!({"ChangeEventHeader": {
        "entityName": "Account", "recordIds": record_ids, "changeType": change_type}})
}

async fn publish_change(org: &Emulator, change_type: &str, record_ids: &[&str]) -> String {
    let published = org
        .publish(ACCOUNTS, &[change(change_type, record_ids)])
        .await;
    published["events"][0]["replay_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn holes(store: &Store, count: usize) -> Vec<StoredHole> {
    eventually(&format!("{count} holes"), async || {
        Some(store.holes().await).filter(|holes| holes.len() >= count)
    })
    .await
}

#[tokio::test]
async fn gap_overflow_and_wildcard_events_are_holes_and_reach_the_handlers() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let (one, two) = (record(1), record(2));
    let gap = publish_change(&org, "GAP_UPDATE", &[&one, &two]).await;
    publish_change(&org, "GAP_OVERFLOW", &["000000000000000AAA"]).await;
    publish_change(&org, "UPDATE", &["001*"]).await;
    let last = publish(&org, "whole").await;
    let events = daemon.handled(4).await;
    let types: Vec<_> = events
        .iter()
        .map(|event| {
            event["data"]["ChangeEventHeader"]["changeType"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(types, ["GAP_UPDATE", "GAP_OVERFLOW", "UPDATE", "UPDATE"]);

    let stored = holes(&store, 3).await;
    let reasons: Vec<_> = stored
        .iter()
        .map(|hole| hole.hole.reason.as_str())
        .collect();
    assert_eq!(reasons, ["wildcard", "overflow", "gap_event"]);
    for hole in &stored {
        assert_eq!(hole.hole.kind, HoleKind::Gap);
        assert_eq!(hole.hole.entity.as_deref(), Some("Account"));
        assert!(hole.hole.to_time.is_some() && hole.hole.to.is_none());
    }
    assert_eq!(stored[2].hole.record_ids, [one, two]);
    assert_eq!(stored[2].hole.from.as_ref().unwrap().to_string(), gap);
    let metrics = Metrics::of(&daemon).await;
    let labels = [("subscription", "accounts"), ("kind", "gap")];
    metrics
        .until("orgstream_holes_total", &labels, |count| count == 3.0)
        .await;
    let status = store
        .until("accounts", "the position past them", |s| {
            s.position.as_ref().is_some_and(|p| p.to_string() == last)
        })
        .await;
    assert_eq!(status.holes, 3);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn the_position_does_not_pass_a_gap_before_its_hole_is_stored_and_the_stream_goes_on() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let before = publish(&org, "before").await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    let at = |position: String| {
        move |s: &orgstream::store::SubscriptionStatus| {
            s.position
                .as_ref()
                .is_some_and(|p| p.to_string() == position)
        }
    };
    store
        .until("accounts", "a position", at(before.clone()))
        .await;
    let mut other = sqlx::SqliteConnection::connect(&store.url).await.unwrap();
    sqlx::raw_sql(
        "create trigger no_room before insert on hole begin select raise(abort, 'no room'); end",
    )
    .execute(&mut other)
    .await
    .unwrap();
    publish_change(&org, "GAP_UPDATE", &[&record(1)]).await;
    let last = publish(&org, "after").await;
    daemon.handled(3).await;
    daemon
        .logged(&["the store did not take a write", "record gaps"])
        .await;
    // The other events are finished, and their position is written every second.
    store
        .until("accounts", "both finished", |s| s.finished == 3)
        .await;
    assert!(at(before)(&store.subscription("accounts").await.unwrap()));
    // Killed now, the gap comes again, and only that: what was finished ahead does not.
    daemon.kill();
    let mut daemon = Daemon::run(&config);
    daemon
        .logged(&["the store did not take a write", "record gaps"])
        .await;
    sqlx::raw_sql("drop trigger no_room")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    assert_eq!(holes(&store, 1).await.len(), 1);
    store.until("accounts", "the last position", at(last)).await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    store.until("accounts", "the next position", at(next)).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("next".to_owned(), 0));
}

#[tokio::test]
async fn a_gap_that_comes_again_after_a_kill_is_the_same_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = crate::support::Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let handler = crate::support::webhook(&hook.url(), "");
    let config = crate::support::configured(&org, &store, "", subscription, &handler);
    publish_change(&org, "GAP_CREATE", &[&record(1)]).await;
    for run in 1..=3 {
        let daemon = Daemon::run(&config);
        eventually("a call that hangs", async || {
            (hook.came().len() >= run).then_some(())
        })
        .await;
        holes(&store, 1).await;
        daemon.kill();
    }
    hook.open();
    let daemon = Daemon::run(&config);
    hook.accepts(1).await;
    store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    assert_eq!(store.holes().await.len(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_gap_that_cannot_be_decoded_is_a_hole_and_a_dead_letter() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "code": "schema.validation.failed"}))
        .await;
    let daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    publish_change(&org, "GAP_DELETE", &[&record(7)]).await;
    let parked = store.parks(1).await;
    assert_eq!(parked[0].letter.reason, "schema_refused");
    let stored = holes(&store, 1).await;
    assert_eq!(stored[0].hole.record_ids, [record(7)]);
    assert_eq!(stored[0].hole.reason, "gap_event");
    store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    let (events, code) = daemon.stop().await;
    assert_eq!((texts(&events, "Name").len(), code), (0, 0));
}
