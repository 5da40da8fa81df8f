//! Everything at once on SQLite: broken streams, a failing webhook, kills. Every event is handled or parked,
//! and the events of a record in order. With Postgres, `tests/chaos` does more of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, record, webhook, within,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const SALES: &str = "/data/Sales__chn";
const RECORDS: usize = 12;
/// Updates published at most.
const MOST: usize = 1_000;

fn random() -> fastrand::Rng {
    let seed = std::env::var("ORGSTREAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("ORGSTREAM_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A channel on which updates of several accounts come as several events under one replay ID.
async fn org() -> Arc<Emulator> {
    let org = Emulator::start().await;
    org.post(
        "/channels",
        &json!({"channel": SALES, "members": [{"topic": ACCOUNTS, "enriched_fields": ["Industry"]}]}),
    )
    .await;
    org.settings(json!({"split_siblings": true, "keepalive_ms": 200, "idle_close_ms": 300}))
        .await;
    Arc::new(org)
}

/// Publishes numbered updates, some of them of several records, until told to stop; gives every pair of
/// record and number that has to come out.
async fn load(org: Arc<Emulator>, stop: Arc<AtomicBool>, seed: u64) -> BTreeSet<(String, usize)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut published = BTreeSet::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        if number == MOST {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let first = random.usize(..RECORDS - 3);
        let several = if random.u8(..3) == 0 { 3 } else { 1 };
        let records: Vec<String> = (first..first + several).map(record).collect();
        let mut event = account_update(&records[0], &number.to_string());
        event["ChangeEventHeader"]["recordIds"] = json!(records);
        let enriched: serde_json::Map<String, Value> = records
            .iter()
            .map(|record| (record.clone(), json!({"Industry": "Energy"})))
            .collect();
        let body = json!({"topic": ACCOUNTS, "events": [event], "enriched": enriched});
        org.post("/publish", &body).await;
        published.extend(records.into_iter().map(|record| (record, number)));
        number += 1;
        tokio::time::sleep(Duration::from_millis(random.u64(1..8))).await;
    }
    published
}

fn pair(event: &Value) -> (String, usize) {
    let number = event["data"]["Name"].as_str().unwrap().parse().unwrap();
    (event["subject"].as_str().unwrap().to_owned(), number)
}

/// One more kind of trouble with the org.
async fn trouble(org: &Emulator, random: &mut fastrand::Rng) {
    let after = random.u64(..40);
    let fault = match random.u8(..8) {
        0 => json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": after}),
        1 => json!({"rpc": "Subscribe", "kind": "end", "times": 1, "after_events": after}),
        2 => json!({"rpc": "Subscribe", "kind": "disconnect", "times": 1, "after_events": after}),
        3 => json!({"rpc": "Subscribe", "kind": "silence", "times": 1, "after_events": after}),
        4 => json!({"rpc": "Subscribe", "kind": "accept_then_fail", "times": 2,
                    "code": "service.unavailable"}),
        5 => json!({"rpc": "Subscribe", "kind": "error", "times": 1, "after_events": after,
                    "code": "service.unavailable"}),
        6 => {
            json!({"rpc": "GetSchema", "kind": "error", "times": 1, "code": "schema.api.unavailable"})
        }
        _ => {
            org.post("/tokens/expire", &json!({})).await;
            json!({"rpc": "Subscribe", "kind": "half_open", "times": 1, "after_events": after})
        }
    };
    org.fault(fault).await;
}

fn config(org: &Emulator, store: &Store, hook: &Hook) -> String {
    let timing = "silence_limit = \"600ms\"\nping_interval = \"300ms\"\nping_timeout = \"300ms\"";
    let subscription = ("sales", SALES, "start = \"earliest\"\nmax_in_flight = 60");
    let handlers = format!("{LOG}{}", webhook(&hook.url(), ""));
    configured(org, store, timing, subscription, &handlers)
}

/// A webhook that fails now and then, and refuses numbers that end in 77.
async fn hook() -> Hook {
    Hook::start(|event, attempt| {
        Reply::from(match pair(event).1 {
            number if number % 100 == 77 => 400,
            _ if attempt < 2 && fastrand::u8(..6) == 0 => 503,
            _ => 200,
        })
    })
    .await
}

/// Per record, first hand-overs follow the order of publishing.
fn assert_in_order(what: &str, events: &[Value]) {
    let mut seen = HashSet::new();
    let mut newest: HashMap<String, usize> = HashMap::new();
    for (record, number) in events.iter().map(pair) {
        if seen.insert((record.clone(), number)) {
            let before = newest.insert(record.clone(), number);
            assert!(
                before < Some(number),
                "{what}: {record}: {number} after {before:?}"
            );
        }
    }
}

#[tokio::test]
async fn every_event_is_handled_or_parked_whatever_fails_on_sqlite() {
    let store = Store::sqlite();
    let mut random = random();
    let org = org().await;
    let hook = hook().await;
    let config = config(&org, &store, &hook);
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(org.clone(), stop.clone(), random.u64(..)));
    let mut logged: Vec<Value> = Vec::new();
    for round in 0..6 {
        let daemon = Daemon::run(&config);
        // Where the one before it was killed, its lease holds for a while.
        daemon.logged(&["subscription taken over"]).await;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(random.u64(20..700))).await;
            trouble(&org, &mut random).await;
        }
        if round % 2 == 0 {
            logged.extend(daemon.kill());
        } else {
            let (events, code) = daemon.stop().await;
            assert_eq!(code, 0);
            logged.extend(events);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let before = logged.len();
    let published = load.await.unwrap();
    org.clear_faults().await;
    let daemon = Daemon::run(&config);
    let kept = |pair: &&(String, usize)| pair.1 % 100 != 77;
    let expected: BTreeSet<_> = published.iter().filter(kept).cloned().collect();
    let limit = Duration::from_secs(120);
    let give_up = ["dead-letters", "discard", "--reason", "rejected", "--yes"];
    within(limit, "every event at both handlers", async || {
        // What parked behind a refused event follows once that is given up.
        Daemon::output(&give_up, &config, &BTreeMap::new()).await;
        let accepted: BTreeSet<_> = hook.accepted().iter().map(pair).collect();
        let written: BTreeSet<_> = logged.iter().chain(&daemon.events()).map(pair).collect();
        (expected.is_subset(&accepted) && published.is_subset(&written)).then_some(())
    })
    .await;
    let refused = published.len() - expected.len();
    let parked = within(limit, "an end of every dead letter", async || {
        Daemon::output(&give_up, &config, &BTreeMap::new()).await;
        let parked = store.parked().await;
        let open = parked.iter().any(|letter| letter.state == "open");
        (!open).then_some(parked)
    })
    .await;
    let (events, code) = daemon.stop().await;
    assert_eq!(code, 0);
    logged.extend(events);
    let given_up = parked.iter().filter(|letter| letter.state == "discarded");
    assert_eq!(given_up.count(), refused, "each refused event once");
    assert_eq!(store.holes().await, []);
    assert_in_order("log", &logged);
    assert_in_order("webhook", &hook.accepted());
    println!(
        "{} events, of which {before} logged in trouble and {} more than once; {} accepted, {} parked",
        published.len(),
        logged.len() - published.len(),
        hook.accepted().len(),
        parked.len(),
    );
}
