//! Events that share a replay ID, have none, or come in odd order or size: none is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::stream::{ACCOUNTS, accounts, called, calls, publish};
use crate::support::{
    DEADLINE, Daemon, Emulator, LOG, Store, account_update, configured, eventually, names, record,
    within,
};

const SALES: &str = "/data/Sales__chn";

/// A channel that delivers an update of three accounts as three events under one replay ID, each in a
/// response of its own, after an event of one account.
async fn siblings(org: &Emulator) {
    org.post(
        "/channels",
        &json!({"channel": SALES, "members": [{"topic": ACCOUNTS, "enriched_fields": ["Industry"]}]}),
    )
    .await;
    org.settings(json!({"split_siblings": true, "events_per_response": 1}))
        .await;
    publish(org, "first").await;
    let records: Vec<String> = (1..4).map(record).collect();
    let mut event = account_update(&records[0], "three");
    event["ChangeEventHeader"]["recordIds"] = json!(records);
    let enriched: serde_json::Map<String, Value> = records
        .iter()
        .map(|record| (record.clone(), json!({"Industry": "Energy"})))
        .collect();
    org.post(
        "/publish",
        &json!({"topic": ACCOUNTS, "events": [event], "enriched": enriched}),
    )
    .await;
}

fn sales(org: &Emulator, store: &Store) -> String {
    let subscription = ("sales", SALES, "start = \"earliest\"");
    configured(org, store, "", subscription, LOG)
}

/// The records of the events named `three`, sorted: different records run side by side.
fn threes(events: &[Value]) -> Vec<String> {
    let mut records: Vec<String> = events
        .iter()
        .filter(|event| event["data"]["Name"] == "three")
        .map(|event| event["subject"].as_str().unwrap().to_owned())
        .collect();
    records.sort();
    records
}

#[tokio::test]
async fn a_break_between_events_of_one_replay_id_loses_and_repeats_none() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    siblings(&org).await;
    for delivered in [2, 2] {
        org.fault(
            json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": delivered}),
        )
        .await;
    }
    let mut daemon = Daemon::run(&sales(&org, &store));
    daemon.handled(4).await;
    called(&org, "Subscribe", 2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!(code, 0);
    assert_eq!(threes(&events), [record(1), record(2), record(3)]);
}

#[tokio::test]
async fn a_kill_between_events_of_one_replay_id_loses_none() {
    for wait_for_the_position in [true, false] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        siblings(&org).await;
        // The first and one of the three, then nothing more on this stream.
        org.fault(json!({"rpc": "Subscribe", "kind": "silence", "times": 1, "after_events": 2}))
            .await;
        let mut daemon = Daemon::run(&sales(&org, &store));
        daemon.handled(2).await;
        if wait_for_the_position {
            store
                .until("sales", "two events finished", |s| s.finished == 2)
                .await;
        }
        let mut seen = daemon.kill();
        let mut daemon = Daemon::run(&sales(&org, &store));
        daemon.handled(2).await;
        eventually("all three", async || {
            let mut all = threes(&seen);
            all.extend(threes(&daemon.events()));
            all.sort();
            all.dedup();
            (all.len() == 3).then_some(())
        })
        .await;
        let (events, code) = daemon.stop().await;
        assert_eq!(code, 0);
        seen.extend(events);
        if wait_for_the_position {
            assert_eq!(threes(&seen), [record(1), record(2), record(3)]);
        }
    }
}

#[tokio::test]
async fn a_response_beyond_four_megabytes_is_taken() {
    let org = Emulator::start().await;
    org.settings(json!({"max_response_bytes": 9_000_000})).await;
    let store = Store::sqlite();
    let long = "x".repeat(700_000);
    let events: Vec<Value> = (0..9)
        .map(|n| account_update(&record(n), &format!("{n}{long}")))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    daemon.handled(9).await;
    assert_eq!(calls(&org, "Subscribe").await, 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_response_too_large_to_take_comes_again_and_loses_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "Subscribe", "kind": "oversize", "times": 1}))
        .await;
    publish(&org, "one").await;
    publish(&org, "two").await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    daemon.handled(2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
    assert_eq!(calls(&org, "Subscribe").await, 2);
}

#[tokio::test]
async fn odd_replay_ids_lose_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"events_per_response": 2})).await;
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let mut published = 0;
    for kind in ["duplicate", "lower_replay_id", "missing_replay_id"] {
        for after_it in ["reset", "end"] {
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
            org.fault(json!({"rpc": "Subscribe", "kind": kind, "times": 1}))
                .await;
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
            org.fault(json!({"rpc": "Subscribe", "kind": after_it, "times": 1, "after_events": 0}))
                .await;
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
        }
    }
    org.fault(json!({"rpc": "Subscribe", "kind": "missing_replay_id", "times": 1}))
        .await;
    publish(&org, "last").await;
    eventually("the last", async || {
        names(&daemon.events())
            .contains(&"last".to_owned())
            .then_some(())
    })
    .await;
    let mut first = names(&daemon.stop().await.0);
    let mut seen = std::collections::HashSet::new();
    first.retain(|name| seen.insert(name.clone()));
    let mut expected: Vec<String> = (0..published).map(|n| n.to_string()).collect();
    expected.push("last".to_owned());
    assert_eq!(first, expected);
    // And what has no place of its own is not lost in a restart either.
    publish(&org, "more").await;
    daemon = Daemon::run(&config);
    eventually("the next", async || {
        names(&daemon.events())
            .contains(&"more".to_owned())
            .then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

/// Waits for the event that was published last of so many.
async fn last(daemon: &Daemon, published: usize) {
    let name = (published - 1).to_string();
    let began = Instant::now();
    within(DEADLINE, "the event", async || {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{name} is missing: {:?}\n{}",
            names(&daemon.events()),
            daemon.log().join("\n")
        );
        names(&daemon.events()).contains(&name).then_some(())
    })
    .await;
}

// ---- sessions ----
