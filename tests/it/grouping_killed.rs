//! `kill -9` under load with transactions grouped: each comes out whole, and the position is never inside one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde_json::json;

use crate::grouping::{ALL, accepted, config, events, name, position, told, transaction, whole};
use crate::support::{Daemon, Emulator, Hook, Reply, Store, eventually, webhook};

#[tokio::test]
async fn killed_under_load_every_transaction_comes_whole_from_sqlite() {
    killed_under_load(Store::sqlite()).await;
}

#[tokio::test]
async fn killed_under_load_every_transaction_comes_whole_from_postgres() {
    if let Some(store) = Store::postgres().await {
        killed_under_load(store).await;
    }
}

async fn killed_under_load(store: Store) {
    let seed = std::env::var("ORGSTREAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("ORGSTREAM_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let org = Emulator::start().await;
    org.settings(json!({"events_per_response": 3})).await;
    let hook = Hook::start(|_, attempt| {
        Reply::from(if attempt == 0 && fastrand::u8(..6) == 0 {
            503
        } else {
            200
        })
    })
    .await;
    let config = config(&org, &store, ALL, "", &webhook(&hook.url(), "")).replacen(
        "[[subscription]]",
        "lease = \"2s\"\n[[subscription]]",
        1,
    );
    let mut sizes = BTreeMap::new();
    let mut ends = BTreeSet::new();
    for _ in 0..8 {
        let daemon = Daemon::run(&config);
        // The lease of the one that was killed holds for a while.
        daemon.logged(&["subscription taken over"]).await;
        let until = std::time::Instant::now() + Duration::from_millis(random.u64(200..1500));
        while std::time::Instant::now() < until {
            let (key, size) = (format!("t{}", sizes.len()), random.usize(1..10));
            let places = transaction(&org, &key, size).await;
            ends.extend(places.last().cloned());
            sizes.insert(key, size);
            tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
        }
        daemon.kill();
        if let Some(position) = position(&store).await {
            assert!(ends.contains(&position), "{position} is inside");
        }
    }
    let daemon = Daemon::run(&config);
    let all: BTreeSet<String> = sizes.iter().map(|(key, size)| whole(key, *size)).collect();
    eventually("every transaction", async || {
        let seen: BTreeSet<String> = accepted(&hook).into_iter().collect();
        assert!(seen.is_subset(&all), "{:?}", seen.difference(&all));
        (seen == all).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
    // Per record, first requests follow the order of publishing.
    let mut newest: HashMap<String, usize> = HashMap::new();
    let mut seen = BTreeSet::new();
    for request in hook.accepted() {
        if !seen.insert(told(&request)) {
            continue;
        }
        for event in events(&request) {
            let name = name(&event);
            let number: usize = name[1..].split('.').next().unwrap().parse().unwrap();
            let record = event["subject"].as_str().unwrap().to_owned();
            let before = newest.insert(record, number);
            assert!(
                before.is_none_or(|before| before <= number),
                "{name} after {before:?}"
            );
        }
    }
    println!("{} transactions, {} calls", all.len(), hook.calls().len());
}
