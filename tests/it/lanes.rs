//! Lanes, batches, and what bounds them (rules 5, 6, 8 and 10).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orgstream::handler::{Answer, BatchAnswer, Retry};
use serde_json::{Value, json};

use crate::support::inside::{BATCHES, Batches, Inside};
use crate::support::{
    Daemon, Emulator, Hook, Reply, Store, account_update, configured, eventually, names, record,
    texts, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const ORDERS: &str = "/event/Order__e";

fn accounts(org: &Emulator, store: &Store, subscription: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    let subscription = ("accounts", ACCOUNTS, &*subscription);
    configured(org, store, "", subscription, handlers)
}

fn orders(org: &Emulator, store: &Store, subscription: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    let subscription = ("orders", ORDERS, &*subscription);
    configured(org, store, "", subscription, handlers)
}

/// Updates numbered from 0, of so many records in turn.
fn numbered(count: usize, records: usize) -> Vec<Value> {
    (0..count)
        .map(|n| account_update(&record(n % records), &n.to_string()))
        .collect()
}

fn order(number: &str, status: &str) -> Value {
    json!({"OrderNumber__c": number, "Status__c": status})
}

fn reject() -> BatchAnswer {
    BatchAnswer::All(Answer::Reject {
        reason: "bad".to_owned(),
    })
}

// ---- batches (rule 6) ----

#[tokio::test]
async fn a_refused_batch_is_split_and_only_what_is_refused_alone_is_parked() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let batches = Batches::new(20, "Name", |names, _| {
        if names.iter().any(|name| name == "33" || name == "47") {
            reject()
        } else {
            BatchAnswer::HANDLED
        }
    });
    // Each of a record of its own: nothing waits behind what is parked.
    org.publish(ACCOUNTS, &numbered(60, 60)).await;
    let daemon = Inside::run(&accounts(&org, &store, "", BATCHES), &batches);
    let status = store
        .until("accounts", "all finished", |status| status.finished == 60)
        .await;
    assert_eq!(status.parked, 2);
    daemon.stop().await;
    let mut handled: HashMap<String, usize> = HashMap::new();
    let mut refused_alone = Vec::new();
    for call in batches.calls() {
        match call.answer {
            BatchAnswer::All(Answer::Handled) => {
                for name in call.names {
                    *handled.entry(name).or_default() += 1;
                }
            }
            _ if call.names.len() == 1 => refused_alone.extend(call.names),
            _ => {}
        }
    }
    refused_alone.sort();
    assert_eq!(refused_alone, ["33", "47"]);
    assert_eq!(handled.len(), 58);
    assert!(handled.values().all(|times| *times == 1), "{handled:?}");
    assert!(batches.calls().iter().any(|call| call.names.len() > 5));
    let parked = store.parked().await;
    assert!(parked.iter().all(|p| p.letter.reason == "rejected"));
}

#[tokio::test]
async fn what_a_batch_has_handled_never_repeats_and_records_stay_in_order_in_it() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Of each batch a random part is handled, in order up to there or not.
    let batches = Batches::new(10, "Name", |names, _| {
        BatchAnswer::Each(
            names
                .iter()
                .map(|_| match fastrand::u8(..3) {
                    0 => Answer::Retry(Retry::because("not now")),
                    _ => Answer::Handled,
                })
                .collect(),
        )
    });
    let count = 200;
    org.publish(ACCOUNTS, &numbered(count, 9)).await;
    let config = accounts(
        &org,
        &store,
        "concurrency = 4",
        &BATCHES.replace("attempts = 3", "attempts = 1000"),
    );
    let daemon = Inside::run(&config, &batches);
    store
        .until("accounts", "all finished", |status| status.finished == 200)
        .await;
    daemon.stop().await;
    let mut handled: HashMap<usize, usize> = HashMap::new();
    let mut first_given: HashMap<usize, Vec<usize>> = HashMap::new();
    for call in batches.calls() {
        let BatchAnswer::Each(answers) = call.answer else {
            panic!("{call:?}");
        };
        for (name, answer) in call.names.iter().zip(answers) {
            let number: usize = name.parse().unwrap();
            let given = first_given.entry(number % 9).or_default();
            if !given.contains(&number) {
                given.push(number);
            }
            if answer == Answer::Handled {
                *handled.entry(number).or_default() += 1;
            }
        }
    }
    assert_eq!(handled.len(), count);
    assert!(handled.values().all(|times| *times == 1), "{handled:?}");
    for numbers in first_given.values() {
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
    assert_eq!(batches.overlaps(), Vec::<String>::new());
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn no_record_is_with_two_calls_at_once_and_different_records_are() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let batches = Batches::new(3, "Name", |_, _| BatchAnswer::HANDLED);
    let mut events = numbered(300, 5);
    for (n, event) in events.iter_mut().enumerate().filter(|(n, _)| n % 11 == 0) {
        event["ChangeEventHeader"]["recordIds"] = json!([record(n % 5), record((n + 2) % 5)]);
    }
    for part in events.chunks(50) {
        org.publish(ACCOUNTS, part).await;
    }
    let daemon = Inside::run(&accounts(&org, &store, "", BATCHES), &batches);
    batches.gives(300).await;
    assert_eq!(batches.overlaps(), Vec::<String>::new());
    daemon.stop().await;
}

#[tokio::test]
async fn a_batch_that_fails_whole_is_split_before_anything_in_it_is_given_up() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let batches = Batches::new(10, "Name", |names, _| {
        if names.iter().any(|name| name == "bad") {
            BatchAnswer::retry("one of them is bad")
        } else {
            BatchAnswer::HANDLED
        }
    });
    let mut events = numbered(9, 9);
    events.push(account_update(&record(50), "bad"));
    org.publish(ACCOUNTS, &events).await;
    let daemon = Inside::run(&accounts(&org, &store, "", BATCHES), &batches);
    // While others succeed, its attempts count.
    let mut others = 0;
    eventually("a parked event", async || {
        org.publish(ACCOUNTS, &[account_update(&record(60 + others), "other")])
            .await;
        others += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        (!store.parked().await.is_empty()).then_some(())
    })
    .await;
    let total = 10 + others as u64;
    store
        .until("accounts", "all finished", |s| s.finished == total)
        .await;
    let parked = store.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].letter.reason, "exhausted");
    assert_eq!(parked[0].letter.record_ids, [record(50)]);
    daemon.stop().await;
}

// ---- orders (rules 6 and 8) ----

/// Fails the first attempt at the event `slow`, for a second.
fn slow_first(event: &Value, attempt: usize) -> Reply {
    if event["data"]["Name"] == "slow" && attempt == 0 {
        Reply {
            status: 503,
            retry_after: Some(1),
        }
    } else {
        Reply::from(200)
    }
}

#[tokio::test]
async fn without_order_an_event_waits_for_none_of_its_record() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(slow_first).await;
    for name in ["slow", "next", "last"] {
        org.publish(ACCOUNTS, &[account_update(&record(1), name)])
            .await;
    }
    let handlers = webhook(&hook.url(), "");
    let daemon = Daemon::run(&accounts(&org, &store, "ordering = \"none\"", &handlers));
    let accepted = names(&hook.accepts(3).await);
    assert_eq!(accepted[2], "slow", "{accepted:?}");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn parking_a_platform_event_without_a_key_holds_nothing_back() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|event, _| {
        let bad = event["data"]["Status__c"] == "bad";
        Reply::from(if bad { 422 } else { 200 })
    })
    .await;
    let events = [
        order("A", "1"),
        order("A", "bad"),
        order("A", "2"),
        order("B", "3"),
    ];
    org.publish(ORDERS, &events).await;
    let daemon = Daemon::run(&orders(&org, &store, "", &webhook(&hook.url(), "")));
    let accepted = texts(&hook.accepts(3).await, "Status__c");
    assert_eq!(accepted, ["1", "2", "3"]);
    assert_eq!(store.parks(1).await.len(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_strict_subscription_stops_at_an_event_that_fails_and_goes_on_in_order() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    let hook = Hook::start(move |event, _| {
        let bad = event["data"]["Name"] == "bad" && !is_mended.load(Ordering::Relaxed);
        Reply::from(if bad { 500 } else { 200 })
    })
    .await;
    let expected = ["one", "bad", "two", "three"];
    for (n, name) in expected.iter().enumerate() {
        org.publish(ACCOUNTS, &[account_update(&record(n), name)])
            .await;
    }
    let handlers = webhook(&hook.url(), "");
    let strict = accounts(&org, &store, "ordering = \"strict\"", &handlers);
    let daemon = Daemon::run(&strict);
    // Behind it nothing succeeds, so it looks like a handler that is down: held, not parked.
    store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    assert_eq!(names(&hook.accepted()), ["one"]);
    mended.store(true, Ordering::Relaxed);
    assert_eq!(names(&hook.accepts(4).await), expected);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

// ---- attempts and time (rule 5) ----

#[tokio::test]
async fn events_of_a_handler_that_is_down_are_parked_only_after_the_total_time() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, _| Reply::from(503)).await;
    org.publish(ACCOUNTS, &numbered(3, 3)).await;
    let handlers = webhook(&hook.url(), "").replace("attempts = 3", "attempts = 1, total = \"2s\"");
    let began = Instant::now();
    let daemon = Daemon::run(&accounts(&org, &store, "", &handlers));
    let parked = store.parks(3).await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(parked.iter().all(|p| p.letter.reason == "exhausted"));
    assert_eq!(daemon.stop().await.1, 0);
}

// ---- bounds (rule 10) ----

/// Megabytes that a process has in memory; `None` where the system does not tell.
fn memory(process: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes / 1024)
}

#[tokio::test]
async fn a_hanging_handler_costs_bounded_memory_and_no_event_and_work_goes_on_at_once() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let handlers = webhook(&hook.url(), "");
    let config = accounts(&org, &store, "max_in_flight_bytes = \"4MiB\"", &handlers);
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let before = memory(daemon.id());
    // 60 MB, of which it may hold a few.
    let long = "x".repeat(200_000);
    for first in (0..300).step_by(50) {
        let events: Vec<Value> = (first..first + 50)
            .map(|n| {
                let mut event = account_update(&record(n % 40), &n.to_string());
                event["Description"] = json!(long);
                event
            })
            .collect();
        org.publish(ACCOUNTS, &events).await;
    }
    eventually("a full buffer", async || {
        let state = org.state().await;
        (state["streams"][0]["pending"] == 0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let delivered = org.state().await["deliveries"].as_u64().unwrap();
    // At most as many as were thought to fit before their size was known.
    assert!(delivered <= 64, "{delivered} delivered");
    if let (Some(before), Some(after)) = (before, memory(daemon.id())) {
        assert!(after < before + 60, "{before} MB before, {after} MB after");
    }
    let opened = Instant::now();
    hook.open();
    hook.accepts(1).await;
    assert!(opened.elapsed() < Duration::from_secs(2));
    let mut accepted: Vec<usize> = names(&hook.accepts(300).await)
        .iter()
        .map(|name| name.parse().unwrap())
        .collect();
    accepted.sort_unstable();
    accepted.dedup();
    assert_eq!(accepted.len(), 300);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn events_larger_than_the_bound_come_one_at_a_time() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, _| Reply::from(200)).await;
    let long = "x".repeat(300_000);
    let events: Vec<Value> = (0..5)
        .map(|n| {
            let mut event = account_update(&record(n), &n.to_string());
            event["Description"] = json!(long);
            event
        })
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let handlers = webhook(&hook.url(), "");
    let config = accounts(&org, &store, "max_in_flight_bytes = \"64KiB\"", &handlers);
    let daemon = Daemon::run(&config);
    assert_eq!(names(&hook.accepts(5).await), ["0", "1", "2", "3", "4"]);
    assert_eq!(org.state().await["most_outstanding"], 1);
    assert_eq!(daemon.stop().await.1, 0);
}
