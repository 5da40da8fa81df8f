//! `group = "transaction"`: change events of one transaction are handed over, tried again and parked as one
//! (rule 14).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, Hook, Reply, Store, account_update, configured, eventually, record, webhook,
};

pub(crate) const ALL: &str = "/data/ChangeEvents";
const SALES: &str = "/data/Sales__chn";
const ACCOUNTS: &str = "/data/AccountChangeEvent";
const CONTACTS: &str = "/data/ContactChangeEvent";

/// A subscription `all` of `topic` with transactions grouped; a wait that a busy machine does not exceed.
pub(crate) fn config(
    org: &Emulator,
    store: &Store,
    topic: &str,
    more: &str,
    handlers: &str,
) -> String {
    let wait = if more.contains("group_wait") {
        ""
    } else {
        "group_wait = \"3s\""
    };
    let subscription = format!("start = \"earliest\"\ngroup = \"transaction\"\n{wait}\n{more}");
    configured(org, store, "", ("all", topic, &subscription), handlers)
}

fn contact_update(record_number: usize, name: &str) -> Value {
    json!({
        "ChangeEventHeader": {"recordIds": [format!("003A0000{record_number:07}AAA")]},
        "Title": name,
    })
}

/// Publishes one transaction of so many events, named `<key>.0`, `<key>.1`, …, of accounts and, every
/// third, a contact; gives their replay IDs.
pub(crate) async fn transaction(org: &Emulator, key: &str, events: usize) -> Vec<String> {
    transaction_from(org, key, events, 0).await
}

/// The same, of records from this number on.
pub(crate) async fn transaction_from(
    org: &Emulator,
    key: &str,
    events: usize,
    first: usize,
) -> Vec<String> {
    let events: Vec<Value> = (0..events)
        .map(|n| {
            let (name, number) = (format!("{key}.{n}"), first + n);
            if n % 3 == 2 {
                json!({"topic": CONTACTS, "event": contact_update(number, &name)})
            } else {
                json!({"topic": ACCOUNTS, "event": account_update(&record(number), &name)})
            }
        })
        .collect();
    let body = json!({"transaction_key": key, "events": events});
    let answer = org.post("/transaction", &body).await;
    replay_ids(&answer)
}

fn replay_ids(answer: &Value) -> Vec<String> {
    let published = answer.as_array().or_else(|| answer["events"].as_array());
    published
        .unwrap_or_else(|| panic!("{answer}"))
        .iter()
        .map(|event| event["replay_id"].as_str().unwrap().to_owned())
        .collect()
}

/// The events of one request.
pub(crate) fn events(request: &Value) -> Vec<Value> {
    match request {
        Value::Array(events) => events.clone(),
        event => vec![event.clone()],
    }
}

pub(crate) fn name(event: &Value) -> String {
    let data = &event["data"];
    let name = data["Name"].as_str().or_else(|| data["Title"].as_str());
    name.unwrap_or("?").to_owned()
}

/// The names of a request's events with a space between, and `partial` where they say so.
pub(crate) fn told(request: &Value) -> String {
    let events = events(request);
    let mut words: Vec<String> = events.iter().map(name).collect();
    let partial = events[0]["partial"] == true;
    assert!(
        events
            .iter()
            .all(|event| (event["partial"] == true) == partial)
    );
    if partial {
        words.push("partial".to_owned());
    }
    words.join(" ")
}

/// The requests that were accepted.
pub(crate) fn accepted(hook: &Hook) -> Vec<String> {
    hook.accepted().iter().map(told).collect()
}

/// What [`told`] says of a whole transaction.
pub(crate) fn whole(key: &str, events: usize) -> String {
    let names: Vec<String> = (0..events).map(|n| format!("{key}.{n}")).collect();
    names.join(" ")
}

fn ok(_: &Value, _: usize) -> Reply {
    Reply::from(200)
}

pub(crate) async fn position(store: &Store) -> Option<String> {
    let found = store.subscription("all").await?;
    found.position.map(|id| id.to_string())
}

async fn position_is(store: &Store, replay_id: &str) {
    eventually("the position", async || {
        (position(store).await.as_deref() == Some(replay_id)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_events_of_a_transaction_are_one_call_whatever_their_objects_and_responses() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"events_per_response": 2})).await;
    let hook = Hook::start(ok).await;
    let daemon = Daemon::run(&config(&org, &store, ALL, "", &webhook(&hook.url(), "")));
    for (key, size) in [("a", 7), ("b", 1), ("c", 4)] {
        transaction(&org, key, size).await;
    }
    hook.accepts(3).await;
    let mut calls = accepted(&hook);
    calls.sort();
    assert_eq!(calls, [whole("a", 7), whole("b", 1), whole("c", 4)]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn the_last_transaction_is_over_with_a_keepalive_or_after_the_wait() {
    for (keepalive, wait) in [(200, "1h"), (120_000, "200ms")] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        org.settings(json!({"keepalive_ms": keepalive})).await;
        let hook = Hook::start(ok).await;
        let more = format!("group_wait = \"{wait}\"");
        let daemon = Daemon::run(&config(&org, &store, ALL, &more, &webhook(&hook.url(), "")));
        transaction(&org, "a", 3).await;
        hook.accepts(1).await;
        assert_eq!(accepted(&hook), [whole("a", 3)]);
        assert_eq!(daemon.stop().await.1, 0);
    }
}

#[tokio::test]
async fn a_stop_within_a_transaction_leaves_it_to_come_again_whole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(ok).await;
    let run = |wait| {
        let more = format!("group_wait = \"{wait}\"");
        config(&org, &store, ALL, &more, &webhook(&hook.url(), ""))
    };
    let daemon = Daemon::run(&run("1h"));
    let before = transaction(&org, "a", 2).await;
    transaction(&org, "b", 3).await;
    hook.accepts(1).await;
    position_is(&store, &before[1]).await;
    store
        .until("all", "all received", |status| status.received == 5)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(position(&store).await.as_deref(), Some(&*before[1]));
    assert_eq!(accepted(&hook), [whole("a", 2)]);
    let daemon = Daemon::run(&run("200ms"));
    hook.accepts(2).await;
    assert_eq!(accepted(&hook), [whole("a", 2), whole("b", 3)]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_stream_that_breaks_within_a_transaction_goes_on_with_it_also_between_siblings() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let enriched = json!({"topic": ACCOUNTS, "enriched_fields": ["Industry"]});
    org.post(
        "/channels",
        &json!({"channel": SALES, "members": [enriched]}),
    )
    .await;
    org.settings(json!({"split_siblings": true, "events_per_response": 1}))
        .await;
    // Three streams that end after two events each. Not resets, which lose what is not on its way yet: after
    // the first event alone there is no place to resume from.
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 3, "after_events": 2}))
        .await;
    // Three accounts in one event, which the channel splits into three under one replay ID.
    let mut three = account_update(&record(1), "a.1");
    three["ChangeEventHeader"]["recordIds"] = json!([record(1), record(2), record(3)]);
    let one = |record_number, name: &str| json!({"topic": ACCOUNTS, "event": account_update(&record(record_number), name)});
    let values: HashMap<String, Value> = (1..4)
        .map(|n| (record(n), json!({"Industry": "Energy"})))
        .collect();
    let events = json!([
        one(0, "a.0"),
        {"topic": ACCOUNTS, "event": three, "enriched": values},
        one(4, "a.2"),
    ]);
    org.post("/transaction", &json!({"events": events})).await;
    let hook = Hook::start(ok).await;
    let daemon = Daemon::run(&config(&org, &store, SALES, "", &webhook(&hook.url(), "")));
    hook.accepts(1).await;
    assert_eq!(accepted(&hook), ["a.0 a.1 a.1 a.1 a.2"]);
    assert_eq!(hook.calls().len(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rejected_transaction_is_parked_whole_and_the_others_go_on() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|request, _| {
        let bad = events(request).iter().any(|event| name(event) == "b.1");
        Reply::from(if bad { 422 } else { 200 })
    })
    .await;
    let daemon = Daemon::run(&config(&org, &store, ALL, "", &webhook(&hook.url(), "")));
    for (n, key) in ["a", "b", "c"].iter().enumerate() {
        transaction_from(&org, key, 3, 10 * n).await;
    }
    let parked = store.parks(3).await;
    hook.accepts(2).await;
    assert_eq!(accepted(&hook), [whole("a", 3), whole("c", 3)]);
    assert_eq!(hook.calls().len(), 3, "it was refused once, whole");
    assert_eq!(parked.len(), 3);
    for stored in &parked {
        let letter = &stored.letter;
        assert_eq!(letter.unit.as_deref(), Some("transaction:b"));
        assert_eq!(letter.reason, "rejected");
        assert_eq!(letter.handler.as_deref(), Some("hook"));
        assert_eq!(letter.attempts, 1);
    }
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_transaction_behind_a_parked_one_parks_whole_and_both_come_again_whole_after_a_retry() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_mended = mended.clone();
    let hook = Hook::start(move |request, _| {
        let mended = is_mended.load(std::sync::atomic::Ordering::Relaxed);
        let bad = events(request).iter().any(|event| name(event) == "a.1");
        Reply::from(if bad && !mended { 422 } else { 200 })
    })
    .await;
    let config = config(&org, &store, ALL, "", &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    transaction_from(&org, "a", 3, 0).await;
    // One of its records is held by `a`, so all of it waits, and holds `c`.
    transaction_from(&org, "b", 3, 1).await;
    transaction_from(&org, "c", 2, 2).await;
    transaction_from(&org, "d", 2, 20).await;
    let parked = store.parks(8).await;
    let units: BTreeSet<_> = parked.iter().map(|p| p.letter.unit.clone()).collect();
    assert_eq!(units.len(), 3, "{units:?}");
    hook.accepts(1).await;
    assert_eq!(accepted(&hook), [whole("d", 2)]);
    mended.store(true, std::sync::atomic::Ordering::Relaxed);
    let retry = ["dead-letters", "retry", "--reason", "rejected", "--no-wait"];
    let (code, _, said) = Daemon::output(&retry, &config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{said}");
    hook.accepts(4).await;
    let expected = [whole("d", 2), whole("a", 3), whole("b", 3), whole("c", 2)];
    assert_eq!(accepted(&hook), expected);
    store
        .until("all", "no dead letter open", |status| status.parked == 0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_transaction_that_fails_for_one_handler_comes_again_whole_and_to_no_other() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let good = Hook::start(ok).await;
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let failing = Hook::start(move |_, _| {
        let up = is_up.load(std::sync::atomic::Ordering::Relaxed);
        Reply::from(if up { 200 } else { 503 })
    })
    .await;
    let handlers = format!(
        "{}{}",
        webhook(&good.url(), "").replace("\"hook\"", "\"good\""),
        webhook(&failing.url(), "")
    );
    let config = config(&org, &store, ALL, "", &handlers);
    let daemon = Daemon::run(&config);
    transaction(&org, "a", 4).await;
    good.accepts(1).await;
    eventually("finished ahead of the position", async || {
        (store.finished_ahead().await == 4).then_some(())
    })
    .await;
    assert_eq!(position(&store).await, None);
    daemon.kill();
    up.store(true, std::sync::atomic::Ordering::Relaxed);
    let daemon = Daemon::run(&config);
    failing.accepts(1).await;
    assert_eq!(accepted(&failing), [whole("a", 4)]);
    // On a channel the position is where something has followed.
    transaction(&org, "b", 1).await;
    good.accepts(2).await;
    store
        .until("all", "a position", |status| status.position.is_some())
        .await;
    assert_eq!(accepted(&good), [whole("a", 4), whole("b", 1)]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_larger_transaction_comes_in_parts_after_a_kill_between_them_too() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = up.clone();
    let hook = Hook::start(move |request, _| {
        let up = is_up.load(std::sync::atomic::Ordering::Relaxed);
        let first = name(&events(request)[0]) == "a.0";
        Reply::from(if up || first { 200 } else { 503 })
    })
    .await;
    let more = "group_max_events = 3";
    let config = config(&org, &store, ALL, more, &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    let places = transaction(&org, "a", 5).await;
    position_is(&store, &places[2]).await;
    daemon.kill();
    up.store(true, std::sync::atomic::Ordering::Relaxed);
    // What is left would fit, and is a part all the same.
    let daemon = Daemon::run(&config);
    transaction(&org, "b", 3).await;
    hook.accepts(3).await;
    let parts = ["a.0 a.1 a.2 partial", "a.3 a.4 partial", &whole("b", 3)];
    let calls: BTreeSet<String> = accepted(&hook).into_iter().collect();
    assert_eq!(calls, parts.map(str::to_owned).into());
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_transaction_beyond_what_may_be_in_flight_comes_in_parts_instead_of_standing_still() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Room for a few of these events at a time, once it is known how large they are.
    let more = "max_in_flight_bytes = \"1MiB\"\ngroup_wait = \"200ms\"";
    org.settings(json!({"idle_close_ms": 300})).await;
    let hook = Hook::start(ok).await;
    let daemon = Daemon::run(&config(&org, &store, ALL, more, &webhook(&hook.url(), "")));
    let large: Vec<Value> = (0..20)
        .map(|n| {
            let mut event = account_update(&record(n), &format!("a.{n}"));
            event["Description"] = json!("x".repeat(100_000));
            json!({"topic": ACCOUNTS, "event": event})
        })
        .collect();
    org.post("/transaction", &json!({"events": large})).await;
    let calls = eventually("all twenty", async || {
        let calls = hook.accepted();
        let events: usize = calls.iter().map(|call| events(call).len()).sum();
        (events == 20).then_some(calls)
    })
    .await;
    assert!(calls.len() >= 2, "{:?}", accepted(&hook));
    let parts = accepted(&hook);
    assert!(
        parts.iter().all(|part| part.ends_with("partial")),
        "{parts:?}"
    );
    let all: Vec<String> = calls.iter().flat_map(events).map(|e| name(&e)).collect();
    assert_eq!(all.join(" "), whole("a", 20));
    transaction(&org, "b", 3).await;
    hook.accepts(calls.len() + 1).await;
    assert_eq!(accepted(&hook).last(), Some(&whole("b", 3)));
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_transaction_waits_while_the_stream_is_away() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"events_per_response": 1})).await;
    let hook = Hook::start(ok).await;
    let handlers = webhook(&hook.url(), "");
    let config = config(&org, &store, ALL, "group_wait = \"300ms\"", &handlers);
    let daemon = Daemon::run(&config);
    transaction(&org, "a", 2).await;
    hook.accepts(1).await;
    // The stream ends after the first event of `b`, and does not come back before it is let.
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"}))
        .await;
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1, "after_events": 3}))
        .await;
    transaction(&org, "b", 3).await;
    daemon.logged(&["stream broke"]).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(accepted(&hook), [whole("a", 2)]);
    org.clear_faults().await;
    hook.accepts(2).await;
    assert_eq!(accepted(&hook), [whole("a", 2), whole("b", 3)]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn an_event_that_cannot_be_decoded_parks_its_transaction_whole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(
        json!({"rpc": "Subscribe", "kind": "corrupt_payload", "times": 1, "after_events": 4}),
    )
    .await;
    for (n, key) in ["a", "b", "c"].iter().enumerate() {
        transaction_from(&org, key, 3, 10 * n).await;
    }
    let hook = Hook::start(ok).await;
    let daemon = Daemon::run(&config(&org, &store, ALL, "", &webhook(&hook.url(), "")));
    hook.accepts(2).await;
    let mut parked = store.parks(3).await;
    parked.sort_by_key(|stored| stored.id);
    let calls: BTreeSet<String> = accepted(&hook).into_iter().collect();
    let reasons: Vec<&str> = parked.iter().map(|p| p.letter.reason.as_str()).collect();
    println!("{calls:?} {reasons:?}");
    assert_eq!(calls, [whole("a", 3), whole("c", 3)].into());
    assert!(reasons.contains(&"undecodable"), "{reasons:?}");
    let behind = reasons.iter().filter(|r| **r == "parked_behind").count();
    assert_eq!(behind, 2, "{reasons:?}");
    for stored in &parked {
        assert_eq!(stored.letter.handler, None);
        assert_eq!(stored.letter.unit.as_deref(), Some("transaction:b"));
    }
    assert_eq!(daemon.stop().await.1, 0);
}
