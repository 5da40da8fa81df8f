//! What handlers are given, in which order, and what becomes of what they cannot handle.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, eventually, names,
    record, texts, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const ORDERS: &str = "/event/Order__e";

fn accounts(org: &Emulator, store: &Store, subscription: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, &subscription),
        handlers,
    )
}

fn orders(org: &Emulator, store: &Store, subscription: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    configured(org, store, "", ("orders", ORDERS, &subscription), handlers)
}

async fn publish(org: &Emulator, record_number: usize, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(record_number), name)])
        .await;
}

fn order(number: &str, status: &str) -> Value {
    json!({"OrderNumber__c": number, "Status__c": status})
}

fn is_named(event: &Value, name: &str) -> bool {
    event["data"]["Name"] == name
}

// ---- handlers that are down ----

#[tokio::test]
async fn a_webhook_that_is_down_holds_nobody_else_back_and_parks_nothing_across_a_kill_too() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let hook = Hook::start(move |_, _| {
        let up = is_up.load(std::sync::atomic::Ordering::Relaxed);
        Reply::from(if up { 200 } else { 503 })
    })
    .await;
    let handlers = format!("{LOG}{}", webhook(&hook.url(), ""));
    let config = accounts(&org, &store, "", &handlers);
    let mut expected: Vec<String> = Vec::new();
    let mut logged: Vec<Value> = Vec::new();
    for run in 0..3 {
        for n in 0..10 {
            let name = format!("{run}-{n}");
            publish(&org, 1, &name).await;
            expected.push(name);
        }
        let mut daemon = Daemon::run(&config);
        daemon.handled(10).await;
        daemon.logged(&["handler fails for all"]).await;
        let finished = i64::try_from(expected.len()).unwrap();
        eventually("what the log has finished", async || {
            (store.finished_ahead().await == finished).then_some(())
        })
        .await;
        logged.extend(daemon.kill());
    }
    assert_eq!(names(&logged), expected, "the log gets nothing twice");
    assert_eq!(store.parked().await, []);
    assert_eq!(names(&hook.accepted()), Vec::<String>::new());

    up.store(true, std::sync::atomic::Ordering::Relaxed);
    let daemon = Daemon::run(&config);
    assert_eq!(names(&hook.accepts(30).await), expected);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events), code), (vec![], 0));
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn a_webhook_that_cannot_be_reached_gets_everything_once_it_listens() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // An address where nobody listens any more.
    let gone = Hook::start(|_, _| 200.into()).await;
    let (addr, url) = (gone.addr, gone.url());
    drop(gone);
    let daemon = Daemon::run(&accounts(&org, &store, "", &webhook(&url, "")));
    for n in 0..5 {
        publish(&org, n, &n.to_string()).await;
    }
    daemon.logged(&["handler fails for all"]).await;
    let hook = Hook::start_at(addr, |_, _| 200.into()).await;
    let mut accepted = names(&hook.accepts(5).await);
    accepted.sort();
    assert_eq!(accepted, ["0", "1", "2", "3", "4"]);
    assert_eq!(store.parked().await, []);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, attempt| match attempt {
        0 => Reply {
            status: 429,
            retry_after: Some(1),
        },
        _ => 200.into(),
    })
    .await;
    publish(&org, 1, "one").await;
    let daemon = Daemon::run(&accounts(&org, &store, "", &webhook(&hook.url(), "")));
    hook.accepts(1).await;
    let calls = hook.calls();
    assert_eq!(calls.len(), 2);
    let waited = calls[1].came_at.duration_since(calls[0].came_at);
    assert!(waited >= Duration::from_millis(950), "{waited:?}");
    assert_eq!(daemon.stop().await.1, 0);
}

// ---- events that cannot be handled ----

#[tokio::test]
async fn a_rejected_event_is_parked_and_the_others_go_on() {
    for status in [400, 422] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        let hook = Hook::start(move |event, _| {
            Reply::from(if is_named(event, "bad") { status } else { 200 })
        })
        .await;
        for (n, name) in ["one", "bad", "two", "three"].iter().enumerate() {
            publish(&org, n, name).await;
        }
        let daemon = Daemon::run(&accounts(&org, &store, "", &webhook(&hook.url(), "")));
        let mut accepted = names(&hook.accepts(3).await);
        accepted.sort();
        assert_eq!(accepted, ["one", "three", "two"]);
        let parked = store.parks(1).await;
        assert_eq!(parked.len(), 1);
        let letter = &parked[0].letter;
        assert_eq!(letter.reason, "rejected");
        assert_eq!(letter.handler.as_deref(), Some("hook"));
        assert_eq!(letter.attempts, 1);
        assert_eq!(letter.record_ids, [record(1)]);
        assert!(!letter.payload.is_empty());
        assert!(
            letter.error.contains(&status.to_string()),
            "{}",
            letter.error
        );
        assert_eq!(daemon.stop().await.1, 0);
        assert_eq!(hook.calls().len(), 4);
        let status = store.subscription("accounts").await.unwrap();
        assert_eq!((status.finished, status.parked), (4, 1));
    }
}

#[tokio::test]
async fn an_event_that_fails_while_others_succeed_is_parked_after_its_attempts() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook =
        Hook::start(|event, _| Reply::from(if is_named(event, "bad") { 500 } else { 200 })).await;
    publish(&org, 1, "bad").await;
    publish(&org, 1, "behind").await;
    let daemon = Daemon::run(&accounts(&org, &store, "", &webhook(&hook.url(), "")));
    let mut others = 0;
    let parked = eventually("a parked event", async || {
        others += 1;
        publish(&org, 2, "other").await;
        Some(store.parked().await).filter(|parked| !parked.is_empty())
    })
    .await;
    assert_eq!(parked[0].letter.reason, "exhausted");
    assert!(parked[0].letter.attempts >= 3);
    // What waited for it waits behind it.
    let parked = store.parks(2).await;
    assert_eq!(parked[1].letter.reason, "parked_behind");
    let accepted = names(&hook.accepts(others).await);
    assert!(!accepted.contains(&"behind".to_owned()));
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await.len(), 2);
}

#[tokio::test]
async fn a_subscription_told_to_stop_at_a_failing_event_goes_on_when_it_is_mended() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_mended = mended.clone();
    let hook = Hook::start(move |event, _| {
        let mended = is_mended.load(std::sync::atomic::Ordering::Relaxed);
        Reply::from(if is_named(event, "bad") && !mended {
            500
        } else {
            200
        })
    })
    .await;
    publish(&org, 1, "bad").await;
    let stop = webhook(&hook.url(), "on_exhausted = \"stop\"");
    let daemon = Daemon::run(&accounts(&org, &store, "", &stop));
    let mut others = 0;
    eventually("state blocked", async || {
        others += 1;
        publish(&org, 2, "other").await;
        let status = store.subscription("accounts").await?;
        (status.state == "blocked").then_some(())
    })
    .await;
    mended.store(true, std::sync::atomic::Ordering::Relaxed);
    hook.accepts(others + 1).await;
    store
        .until("accounts", "state live", |s| s.state == "live")
        .await;
    assert_eq!(store.parked().await, []);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn payloads_that_cannot_be_decoded_are_parked_with_their_bytes_and_the_stream_goes_on() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let known = org
        .publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    assert_eq!(known["events"].as_array().unwrap().len(), 1);
    let schema_id = account_schema_id();
    let no_json = org
        .post(
            "/schemas",
            &json!({"schema": "this is not JSON", "schema_id": "bm90anNvbm5vdGpzb25ub3"}),
        )
        .await["schema_id"]
        .clone();
    let mut bytes: Vec<Vec<u8>> = Vec::new();
    for schema in [
        json!(schema_id),
        no_json,
        json!("dW5rbm93bnVua25vd251bm"),
        json!(""),
    ] {
        let random: Vec<u8> = (0..300).map(|_| fastrand::u8(..)).collect();
        org.post(
            "/raw",
            &json!({"topic": ACCOUNTS, "schema_id": schema, "payload": BASE64_STANDARD.encode(&random)}),
        )
        .await;
        bytes.push(random);
    }
    publish(&org, 1, "two").await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", LOG));
    daemon.handled(2).await;
    let parked = store.parks(4).await;
    let reasons: Vec<&str> = parked.iter().map(|p| p.letter.reason.as_str()).collect();
    let mut sorted = reasons.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "schema_refused",
            "schema_refused",
            "schema_refused",
            "undecodable"
        ]
    );
    for random in &bytes {
        let found = parked.iter().filter(|p| p.letter.payload == random[..]);
        assert_eq!(found.count(), 1);
    }
    let undecodable = parked.iter().find(|p| p.letter.reason == "undecodable");
    assert_eq!(undecodable.unwrap().letter.schema_id.as_str(), schema_id);
    assert!(
        parked
            .iter()
            .all(|p| p.letter.handler.is_none() && p.letter.replay_id.is_some())
    );
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
    let status = store.subscription("accounts").await.unwrap();
    assert_eq!((status.finished, status.parked), (6, 4));
}

/// The ID of our own Account schema, by the name of its file.
fn account_schema_id() -> String {
    let folder = crate::support::daemon::project().join("schemas");
    let file = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with("AccountChangeEvent."))
        .unwrap();
    file.split('.').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_parked_event_is_parked_once_however_often_the_daemon_is_killed() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // What comes first hangs, so that the position stays below the parked ones.
    let hook = Hook::start(|event, _| {
        Reply::from(match event["data"]["Name"].as_str() {
            Some("first") => 503,
            Some("bad") => 400,
            _ => 200,
        })
    })
    .await;
    publish(&org, 1, "first").await;
    publish(&org, 2, "bad").await;
    org.post(
        "/raw",
        &json!({"topic": ACCOUNTS, "schema_id": account_schema_id(), "payload": "AAAA"}),
    )
    .await;
    let config = accounts(&org, &store, "", &webhook(&hook.url(), ""));
    for run in 0..3 {
        publish(&org, 3, &format!("good {run}")).await;
        let daemon = Daemon::run(&config);
        let parked = store.parks(2).await;
        assert_eq!(parked.len(), 2, "{parked:?}");
        eventually("what came after", async || {
            names(&hook.accepted())
                .contains(&format!("good {run}"))
                .then_some(())
        })
        .await;
        daemon.kill();
    }
    let parked = store.parked().await;
    assert_eq!(parked.len(), 2, "{parked:?}");
    assert!(parked.iter().all(|p| p.state == "open"));
}

#[tokio::test]
async fn events_without_content_and_of_whole_entities_are_handed_over_in_their_place() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, attempt| Reply::from(if attempt == 0 { 503 } else { 200 })).await;
    let gap = |kind: &str, records: &[&str]| json!({"ChangeEventHeader": {"changeType": kind, "recordIds": records}});
    publish(&org, 1, "before").await;
    org.publish(ACCOUNTS, &[gap("GAP_UPDATE", &[&record(1)])])
        .await;
    publish(&org, 1, "between").await;
    org.publish(ACCOUNTS, &[gap("GAP_OVERFLOW", &["000000000000000AAA"])])
        .await;
    publish(&org, 1, "after").await;
    let daemon = Daemon::run(&accounts(&org, &store, "", &webhook(&hook.url(), "")));
    let accepted = hook.accepts(5).await;
    let kinds: Vec<String> = accepted
        .iter()
        .map(|event| {
            let kind = &event["data"]["ChangeEventHeader"]["changeType"];
            format!(
                "{} {}",
                kind.as_str().unwrap(),
                event["data"]["Name"].as_str().unwrap_or("")
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "UPDATE before",
            "GAP_UPDATE ",
            "UPDATE between",
            "GAP_OVERFLOW ",
            "UPDATE after"
        ]
    );
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

// ---- order ----

/// The order of a record's accepted events is that of publishing, and each is accepted once.
fn assert_in_order(accepted: &[Value], count: usize) {
    let numbers: Vec<usize> = names(accepted).iter().map(|n| n.parse().unwrap()).collect();
    let mut newest: HashMap<String, usize> = HashMap::new();
    for (event, number) in accepted.iter().zip(&numbers) {
        let header = &event["data"]["ChangeEventHeader"];
        for record in header["recordIds"].as_array().unwrap() {
            let record = record.as_str().unwrap().to_owned();
            let before = newest.insert(record.clone(), *number);
            assert!(
                before < Some(*number),
                "{record}: {number} after {before:?}"
            );
        }
    }
    let mut sorted = numbers;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn events_of_a_record_stay_in_order_whatever_fails_and_whatever_is_merged() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, attempt| {
        Reply::from(if attempt < 2 && fastrand::u8(..4) == 0 {
            503
        } else {
            200
        })
    })
    .await;
    let daemon = Daemon::run(&accounts(
        &org,
        &store,
        "concurrency = 8",
        &webhook(&hook.url(), ""),
    ));
    let count = 300;
    let mut events = Vec::new();
    for n in 0..count {
        let mut event = account_update(&record(fastrand::usize(..10)), &n.to_string());
        if fastrand::u8(..4) == 0 {
            let first = fastrand::usize(..8);
            let merged: Vec<String> = (first..first + 3).map(record).collect();
            event["ChangeEventHeader"]["recordIds"] = json!(merged);
        }
        events.push(event);
    }
    for events in events.chunks(40) {
        org.publish(ACCOUNTS, events).await;
    }
    assert_in_order(&hook.accepts(count).await, count);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(hook.accepted().len(), count);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn platform_events_without_a_key_come_in_bus_order() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, attempt| {
        Reply::from(if attempt < 2 && fastrand::u8(..4) == 0 {
            503
        } else {
            200
        })
    })
    .await;
    let expected: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let events: Vec<Value> = expected.iter().map(|n| order(n, "new")).collect();
    org.publish(ORDERS, &events).await;
    let daemon = Daemon::run(&orders(
        &org,
        &store,
        "concurrency = 8",
        &webhook(&hook.url(), ""),
    ));
    assert_eq!(texts(&hook.accepts(60).await, "OrderNumber__c"), expected);
    assert_eq!(daemon.stop().await.1, 0);
}

/// Fails the first attempt at the event with status `slow`, for a second.
fn slow_first(event: &Value, attempt: usize, field: &str) -> Reply {
    if event["data"][field] == "slow" && attempt == 0 {
        Reply {
            status: 503,
            retry_after: Some(1),
        }
    } else {
        Reply::from(200)
    }
}

#[tokio::test]
async fn platform_events_with_a_key_wait_for_those_of_their_key_only() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|event, attempt| slow_first(event, attempt, "Status__c")).await;
    let events = [
        order("A", "slow"),
        order("A", "a2"),
        order("B", "b1"),
        order("B", "b2"),
        order("A", "a3"),
    ];
    org.publish(ORDERS, &events).await;
    let config = orders(
        &org,
        &store,
        "key = \"OrderNumber__c\"",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    let accepted = texts(&hook.accepts(5).await, "Status__c");
    assert_eq!(accepted, ["b1", "b2", "slow", "a2", "a3"]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_strict_subscription_keeps_all_its_events_in_order() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|event, attempt| slow_first(event, attempt, "Name")).await;
    let expected = ["one", "slow", "two", "three"];
    for (n, name) in expected.iter().enumerate() {
        publish(&org, n, name).await;
    }
    let config = accounts(
        &org,
        &store,
        "ordering = \"strict\"",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    assert_eq!(names(&hook.accepts(4).await), expected);
    assert_eq!(daemon.stop().await.1, 0);
}
