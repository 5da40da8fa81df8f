//! Credits: never more than may be outstanding, never more than there is room for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, Hook, LOG, Store, account_update, configured, eventually, names, record,
    webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(org: &Emulator, store: &Store, subscription: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, &subscription),
        handlers,
    )
}

/// Numbered updates of a few records.
fn numbered(count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| account_update(&record(n % 5), &n.to_string()))
        .collect()
}

fn numbers(events: &[Value]) -> Vec<usize> {
    let mut numbers: Vec<usize> = names(events).iter().map(|n| n.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

async fn pending(org: &Emulator) -> u64 {
    org.state().await["streams"][0]["pending"]
        .as_u64()
        .unwrap_or(0)
}

#[tokio::test]
async fn credits_are_asked_for_in_chunks_before_they_run_out_and_never_beyond_a_hundred() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"events_per_response": 7})).await;
    let mut daemon = Daemon::run(&config(&org, &store, "", LOG));
    daemon.logged(&["stream open"]).await;
    // Fewer than were asked for first: the window is filled up again all the same.
    org.publish(ACCOUNTS, &numbered(60)).await;
    daemon.handled(60).await;
    eventually("a window filled again", async || {
        (pending(&org).await >= 75).then_some(())
    })
    .await;
    org.publish(ACCOUNTS, &numbered(1000)).await;
    let events = daemon.handled(1060).await;
    assert_eq!(events.len(), 1060);
    let state = org.state().await;
    assert_eq!(state["most_outstanding"], 100);
    let requests = state["fetch_requests"].as_u64().unwrap();
    assert!(
        requests <= 1060 / 25 + 2,
        "{requests} requests for 1060 events"
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_hanging_webhook_pauses_its_subscription_and_nothing_is_lost_when_it_wakes() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    org.settings(json!({"idle_close_ms": 300})).await;
    org.publish(ACCOUNTS, &numbered(90)).await;
    let config = config(
        &org,
        &store,
        "max_in_flight = 20",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    store
        .until("accounts", "state paused", |s| s.state == "paused")
        .await;
    let state = org.state().await;
    assert_eq!(state["deliveries"], 20);
    assert_eq!(state["fetch_requests"], 1);
    // It stays so: no other stream is opened.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let state = org.state().await;
    assert_eq!(state["calls"]["Subscribe"], 1);
    assert_eq!(state["streams"], json!([]));
    assert!(
        !daemon
            .log()
            .iter()
            .any(|line| line.contains("stream broke"))
    );

    hook.open();
    let accepted = hook.accepts(90).await;
    assert_eq!(numbers(&accepted), (0..90).collect::<Vec<_>>());
    for record_number in 0..5 {
        let of_record: Vec<usize> = accepted
            .iter()
            .filter(|event| event["subject"] == record(record_number).as_str())
            .map(|event| event["data"]["Name"].as_str().unwrap().parse().unwrap())
            .collect();
        assert!(of_record.is_sorted(), "{of_record:?}");
    }
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(org.state().await["deliveries"], 90);
}

#[tokio::test]
async fn an_idle_close_in_the_words_of_an_error_is_a_pause_too() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    org.settings(json!({"idle_close_ms": 200, "idle_close": {"status": 14}}))
        .await;
    org.publish(ACCOUNTS, &numbered(30)).await;
    let config = config(
        &org,
        &store,
        "max_in_flight = 10",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    store
        .until("accounts", "state paused", |s| s.state == "paused")
        .await;
    hook.open();
    assert_eq!(
        numbers(&hook.accepts(30).await),
        (0..30).collect::<Vec<_>>()
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_handler_that_is_down_is_told_also_when_the_buffer_is_full_of_what_it_does_not_take() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let well = Arc::new(AtomicBool::new(false));
    let answers = well.clone();
    let hook = Hook::start(move |_, _| match answers.load(Ordering::Relaxed) {
        true => 200.into(),
        false => 503.into(),
    })
    .await;
    org.settings(json!({"idle_close_ms": 200})).await;
    org.publish(ACCOUNTS, &numbered(30)).await;
    let config = config(
        &org,
        &store,
        "max_in_flight = 10",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream paused"]).await;
    let shown = store
        .until("accounts", "a handler that is down", |one| {
            one.state == "blocked"
        })
        .await;
    let detail = shown.detail.unwrap();
    assert!(detail.contains("fails for all events"), "{detail}");
    let (code, _, said) = Daemon::output(&["status"], &config, &BTreeMap::new()).await;
    assert!(code == 1 && said.contains("fails for all events"), "{said}");
    well.store(true, Ordering::Relaxed);
    store
        .until("accounts", "state live", |one| one.state == "live")
        .await;
    assert_eq!(hook.accepts(30).await.len(), 30);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_stream_without_credits_is_not_taken_for_a_dead_one() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    org.settings(json!({"keepalive_ms": 100})).await;
    org.publish(ACCOUNTS, &numbered(30)).await;
    let subscription = "start = \"earliest\"\nmax_in_flight = 10";
    let config = configured(
        &org,
        &store,
        "silence_limit = \"500ms\"",
        ("accounts", ACCOUNTS, subscription),
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    eventually("a full buffer", async || {
        (hook.came().len() >= 5).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(
        !daemon
            .log()
            .iter()
            .any(|line| line.contains("stream broke"))
    );
    hook.open();
    assert_eq!(
        numbers(&hook.accepts(30).await),
        (0..30).collect::<Vec<_>>()
    );
    assert_eq!(org.state().await["calls"]["Subscribe"], 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn the_bytes_in_flight_stay_within_their_bound() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::start(|_, _| 200.into()).await;
    let config = config(
        &org,
        &store,
        "max_in_flight_bytes = \"1MiB\"",
        &webhook(&hook.url(), ""),
    );
    let daemon = Daemon::run(&config);
    let long = "x".repeat(200_000);
    let large = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|n| account_update(&record(n), &format!("{n}{long}")))
            .collect()
    };
    // From these it learns how large events are.
    org.publish(ACCOUNTS, &large(20)).await;
    hook.accepts(20).await;
    hook.close();
    org.publish(ACCOUNTS, &large(30)).await;
    eventually("events in flight", async || {
        (hook.came().len() > 22 && pending(&org).await == 0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let delivered = org.state().await["deliveries"].as_u64().unwrap();
    // Five of them fill a MiB; one more where the memory of their size has faded a little.
    assert!((23..=26).contains(&delivered), "{delivered} delivered");
    hook.open();
    assert_eq!(hook.accepts(50).await.len(), 50);
    assert_eq!(daemon.stop().await.1, 0);
}
