//! Where a daemon goes on after a stop, a crash, a broken stream.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Daemon, Emulator, Store, account_update, eventually, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(org: &Emulator, store: &Store, start: &str) -> String {
    format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"{start}\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n",
        org.salesforce(),
        store.url
    )
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["data"]["Name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn resumes_after_the_last_handled_event() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org, &store, "earliest");
    org.publish(
        ACCOUNTS,
        &[
            account_update(&record(1), "one"),
            account_update(&record(1), "two"),
        ],
    )
    .await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events), code), (vec!["one", "two"], 0));

    org.publish(ACCOUNTS, &[account_update(&record(1), "three")])
        .await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events), code), (vec!["three"], 0));
}

#[tokio::test]
async fn a_restart_makes_no_get_schema_call_for_a_schema_seen_before() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org, &store, "earliest");
    for name in ["one", "two"] {
        org.publish(ACCOUNTS, &[account_update(&record(1), name)])
            .await;
        let mut daemon = Daemon::run(&config);
        daemon.handled(1).await;
        daemon.stop().await;
    }
    assert_eq!(org.state().await["calls"]["GetSchema"], 1);
}

#[tokio::test]
async fn a_broken_stream_loses_and_repeats_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&config(&org, &store, "earliest"));
    for round in 0..5 {
        let events: Vec<_> = (0..20)
            .map(|i| account_update(&record(i), &format!("{round}-{i}")))
            .collect();
        org.publish(ACCOUNTS, &events).await;
        daemon.handled((round + 1) * 20).await;
        let kind = ["end", "reset", "error"][round % 3];
        org.fault(
            json!({"rpc": "Subscribe", "kind": kind, "code": "service.unavailable", "times": 1}),
        )
        .await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((events.len(), code), (100, 0));
}

#[tokio::test]
async fn a_keepalive_moves_the_stored_position() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 100})).await;
    let store = Store::sqlite();
    let config = config(&org, &store, "latest");
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    // Another topic's events move the bus on.
    org.publish("/event/Order__e", &[json!({})]).await;
    let latest = org.state().await["latest_replay_id"].clone();
    let position = eventually("the keepalive's position in the store", async || {
        let (_, out, _) = Daemon::output(&["status", "--json"], &config, &Default::default()).await;
        let status: Value = serde_json::from_str(&out).ok()?;
        let position = status[0]["position"].clone();
        (position == latest).then_some(position)
    })
    .await;
    assert_eq!(position, latest);
    assert_eq!(daemon.stop().await.1, 0);
}
