//! What is to be seen of workers and subscriptions without asking a worker: in the store, and in the log.

use std::time::{Duration, SystemTime};

use orgstream::event::OrgId;
use orgstream::store::{AllocationReading, Sample, Snapshot, StateChange};
use serde_json::json;

use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, LOG, Metrics, Store, account_update, configured, eventually, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn accounts(org: &Emulator, store: &Store, salesforce: &str) -> String {
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    configured(org, store, salesforce, subscription, LOG)
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

async fn org_id(store: &Store) -> OrgId {
    let opened = store.opened().await;
    let bound = opened.bound_org().await;
    opened.close().await;
    bound.unwrap().unwrap()
}

async fn snapshots(store: &Store) -> Vec<Snapshot> {
    let opened = store.opened().await;
    let found = opened.snapshots().await;
    opened.close().await;
    found.unwrap_or_default()
}

/// Names of the workers that show a snapshot, once these are all that do.
async fn shown(store: &Store, names: &[&str]) -> Vec<Snapshot> {
    eventually(&format!("snapshots of {names:?}"), async || {
        let found = snapshots(store).await;
        let workers: Vec<_> = found.iter().map(|one| one.worker.as_str()).collect();
        (workers == names).then_some(found)
    })
    .await
}

/// Oldest first.
async fn changes(store: &Store) -> Vec<StateChange> {
    let org_id = org_id(store).await;
    let opened = store.opened().await;
    let found = opened.state_changes(&org_id, Some("accounts"), 100).await;
    opened.close().await;
    let mut found = found.unwrap();
    found.reverse();
    found
}

/// Waits until there are changes to these states in a row, at the end.
async fn changed(store: &Store, states: &[&str]) -> Vec<StateChange> {
    eventually(&format!("changes to {states:?}"), async || {
        let found = changes(store).await;
        let named: Vec<_> = found.iter().map(|one| one.state.as_str()).collect();
        named.ends_with(states).then_some(found)
    })
    .await
}

#[tokio::test]
async fn a_killed_worker_shows_no_metrics_once_its_time_is_up_and_one_that_ends_at_once() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = accounts(&org, &store, "").replace("[store]\n", "[store]\nlease = \"3s\"\n");
    let first = Daemon::run_with(&config, &[("DYNO", "worker.1")]);
    let second = Daemon::run_with(&config, &[("DYNO", "worker.2")]);
    let both = shown(&store, &["worker.1", "worker.2"]).await;
    for one in &both {
        assert!(one.body.contains("# TYPE orgstream_build_info gauge"));
        assert!(one.body.contains("orgstream_stream_state{"), "{}", one.body);
        assert_eq!(one.version, env!("CARGO_PKG_VERSION"));
    }
    second.kill();
    shown(&store, &["worker.1"]).await;
    assert_eq!(first.stop().await.1, 0);
    assert_eq!(snapshots(&store).await, []);
}

#[tokio::test]
async fn samples_of_lag_and_events_are_kept_by_the_minute() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let before = SystemTime::now() - Duration::from_secs(60);
    let mut daemon = Daemon::run(&accounts(&org, &store, ""));
    publish(&org, "one").await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    let key = eventually("the subscription", async || {
        store.subscription("accounts").await
    });
    let key = key.await.key;
    let samples: Vec<Sample> = eventually("a sample with both events", async || {
        let opened = store.opened().await;
        let found = opened.samples(&key.org_id, before).await.unwrap();
        let found = found.get("accounts").cloned().unwrap_or_default();
        opened.close().await;
        let received: u64 = found.iter().map(|one| one.received).sum();
        (received == 2).then_some(found)
    })
    .await;
    assert!(samples.iter().any(|one| one.lag.is_some()), "{samples:?}");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_reconnect_and_a_block_are_kept_and_logged_with_the_name_of_the_call() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, ""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    let live = changed(&store, &["live"]).await;
    assert_eq!(live[0].replay_id, None, "it began at earliest");
    // Back within the second between two writes.
    org.fault(
        json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable", "times": 1, "after_events": 0}),
    )
    .await;
    let found = changed(&store, &["reconnecting", "live"]).await;
    let [.., broken, back] = &found[..] else {
        panic!("{found:?}");
    };
    let rpc_id = broken.rpc_id.as_deref().unwrap();
    let place = broken.replay_id.as_ref().unwrap();
    assert_eq!(back.replay_id.as_ref(), Some(place));
    let detail = broken.detail.as_deref().unwrap();
    assert!(detail.contains("service.unavailable"), "{detail}");
    let fields = [format!("rpc_id={rpc_id}"), format!("replay_id={place}")];
    let line = daemon
        .logged(&["state=reconnecting", &fields[0], &fields[1]])
        .await;
    assert!(line.contains("subscription=accounts"), "{line}");
    assert!(line.contains(&format!("topic={ACCOUNTS}")), "{line}");

    org.fault(json!({
        "rpc": "Subscribe", "kind": "error", "times": 1, "after_events": 0,
        "code": "topic.meta.permission", "status": 7,
    }))
    .await;
    let found = changed(&store, &["blocked", "live"]).await;
    let blocked = &found[found.len() - 2];
    let rpc_id = blocked.rpc_id.as_deref().unwrap();
    let field = format!("rpc_id={rpc_id}");
    daemon
        .logged(&["state=blocked", "level=warn", &field])
        .await;
    // The call that opened the stream told its name with its first response.
    publish(&org, "two").await;
    daemon.handled(2).await;
    eventually("the name of the open stream's call", async || {
        changes(&store).await.pop().and_then(|last| last.rpc_id)
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
    let last = changes(&store).await.pop().unwrap();
    assert_eq!(last.state, "stopped");
    assert!(last.worker.is_some());
}

async fn readings(store: &Store) -> Vec<AllocationReading> {
    let org_id = org_id(store).await;
    let opened = store.opened().await;
    let found = opened.allocation(&org_id, SystemTime::UNIX_EPOCH).await;
    opened.close().await;
    found.unwrap()
}

#[tokio::test]
async fn one_of_two_workers_asks_for_the_orgs_deliveries_and_both_show_them() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    org.settings(json!({"delivery_limit": 700})).await;
    let config = accounts(&org, &store, "limits_interval = \"3s\"\n");
    let workers =
        ["worker.1", "worker.2"].map(|name| Daemon::run_with(&config, &[("DYNO", name), METRICS]));
    for worker in &workers {
        let metrics = Metrics::of(worker).await;
        eventually("the deliveries in the metrics", async || {
            let text = metrics.text().await;
            let both = text.contains("\norgstream_deliveries_allocated 700\n")
                && text.contains("\norgstream_deliveries_remaining 700\n");
            both.then_some(())
        })
        .await;
    }
    let found = eventually("three readings", async || {
        Some(readings(&store).await).filter(|found| found.len() >= 3)
    })
    .await;
    for pair in found.windows(2) {
        let apart = pair[1].at.duration_since(pair[0].at).unwrap();
        assert!(apart > Duration::from_secs(2), "{found:?}");
    }
    for worker in workers {
        assert_eq!(worker.stop().await.1, 0);
    }
}

#[tokio::test]
async fn an_org_that_does_not_show_its_limits_is_told_of_once() {
    let org = Emulator::start().await;
    org.settings(json!({"limits": "forbidden"})).await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "limits_interval = \"200ms\"\n");
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    let what = "how much is left of the org's event deliveries is not known";
    let line = daemon.logged(&[what]).await;
    assert!(line.contains("View Setup and Configuration"), "{line}");
    // Ten times what would pass between two questions.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let log = daemon.log();
    let said = log.iter().filter(|line| line.contains(what)).count();
    assert_eq!(said, 1);
    assert_eq!(readings(&store).await, []);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_reading_of_another_clock_s_future_keeps_nobody_from_asking() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "limits_interval = \"1s\"\n");
    let daemon = Daemon::run(&config);
    let bound = async || {
        let opened = store.opened().await;
        let bound = opened.bound_org().await;
        opened.close().await;
        bound.ok().flatten()
    };
    let org_id = eventually("the org", bound).await;
    let opened = store.opened().await;
    let ahead = AllocationReading {
        at: SystemTime::now() + Duration::from_secs(3600),
        max: 10_000,
        remaining: 10_000,
    };
    opened.record_allocation(&org_id, &ahead).await.unwrap();
    opened.close().await;
    let before = readings(&store).await.len();
    eventually("newer readings", async || {
        (readings(&store).await.len() >= before + 2).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_a_worker_sees_after_its_last_post_is_posted_as_it_stops() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, ""));
    eventually("the first post", async || {
        (!snapshots(&store).await.is_empty()).then_some(())
    })
    .await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    let key = store.subscriptions().await.remove(0).key;
    let opened = store.opened().await;
    let samples = opened
        .samples(&key.org_id, SystemTime::UNIX_EPOCH)
        .await
        .unwrap();
    let samples = &samples[&key.name];
    opened.close().await;
    assert_eq!(samples.iter().map(|one| one.received).sum::<u64>(), 1);
}
