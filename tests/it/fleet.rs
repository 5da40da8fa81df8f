//! Fleets that are not all of one piece: workers whose configurations differ, subscriptions that have no
//! position yet, that were renamed, or that rest.

use std::collections::BTreeMap;
use std::time::Duration;

use orgstream::store::SubscriptionStatus;
use serde_json::{Value, json};

use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, LOG, Metrics, Store, account_update, configured, eventually, names, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// These subscriptions, all to one topic.
fn config(org: &Emulator, store: &Store, subscriptions: &[&str], start: &str) -> String {
    let subscriptions: String = subscriptions
        .iter()
        .map(|name| {
            format!(
                "[[subscription]]\nname = \"{name}\"\ntopic = \"{ACCOUNTS}\"\nstart = \"{start}\"\n{LOG}"
            )
        })
        .collect();
    let store = &store.url;
    let org = org.salesforce();
    format!("{org}\n[store]\nurl = \"{store}\"\nlease = \"3s\"\n{subscriptions}")
}

fn worker(config: &str, name: &'static str) -> Daemon {
    Daemon::run_with(config, &[("DYNO", name), METRICS])
}

/// One without: a dyno is refused SQLite.
fn lone(config: &str) -> Daemon {
    Daemon::run_with(config, &[METRICS])
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

async fn said(args: &[&str], config: &str) -> (i32, String, String) {
    Daemon::output(args, config, &BTreeMap::new()).await
}

/// Waits until so many subscriptions are live, and gives how many each worker runs.
async fn loads(store: &Store, count: usize) -> BTreeMap<String, usize> {
    eventually("all are live", async || {
        let all = store.subscriptions().await;
        let live = |one: &&SubscriptionStatus| one.held && one.state == "live";
        let live: Vec<_> = all.iter().filter(live).collect();
        let mut loads = BTreeMap::new();
        for one in &live {
            *loads.entry(one.worker.clone()?).or_default() += 1;
        }
        (live.len() == count).then_some(loads)
    })
    .await
}

#[tokio::test]
async fn workers_whose_configurations_differ_leave_no_subscription_to_nobody() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let left = config(&org, &store, &["s0", "s1", "s2"], "earliest");
    let right = config(&org, &store, &["s3"], "earliest");
    let workers = [
        worker(&right, "right.1"),
        worker(&right, "right.2"),
        worker(&left, "left.1"),
    ];
    let loads = loads(&store, 4).await;
    assert_eq!(
        (loads.get("left.1"), loads.len()),
        (Some(&3), 2),
        "{loads:?}"
    );
    for worker in workers {
        assert_eq!(worker.stop().await.1, 0);
    }
}

#[tokio::test]
async fn what_began_at_latest_is_handed_over_once_it_has_a_position_and_nothing_is_lost() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = config(&org, &store, &["s0", "s1"], "latest");
    let first = worker(&config, "worker.1");
    loads(&store, 2).await;
    let second = worker(&config, "worker.2");
    first.logged(&["living workers", "workers=2"]).await;
    publish(&org, "one").await;
    let handled = |daemon: &Daemon| names(&daemon.events()).len();
    eventually("an event in both", async || {
        (handled(&first) + handled(&second) >= 2).then_some(())
    })
    .await;
    eventually("an even share", async || {
        (loads(&store, 2).await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(store.holes().await.len(), 0);
    assert_eq!((handled(&first), handled(&second)), (2, 0));
    assert_eq!(first.stop().await.1, 0);
    assert_eq!(second.stop().await.1, 0);
}

async fn a_renamed_subscription_is_not_begun_anew(store: Store) {
    let org = Emulator::start().await;
    let old = config(&org, &store, &["accounts"], "earliest");
    let daemon = lone(&old);
    publish(&org, "one").await;
    store
        .until("accounts", "one finished", |one| one.finished == 1)
        .await;
    for (name, why) in [
        ("accounts", "called that already"),
        ("New", "cannot be the name"),
    ] {
        let (code, _, text) = said(&["rename", "accounts", name], &old).await;
        assert!(code == 1 && text.contains(why), "{text}");
    }
    let (code, _, text) = said(&["rename", "accounts", "customers"], &old).await;
    assert_eq!(code, 0, "{text}");
    // Its configuration says where `accounts` begins: that is no leave to begin it once more.
    daemon
        .logged(&[
            "subscription cannot begin",
            "orgstream rename customers accounts",
        ])
        .await;
    let status = eventually("what is refused", async || {
        let (code, out, _) = said(&["status", "--json"], &old).await;
        let status: Value = serde_json::from_str(&out).unwrap();
        (code == 1 && status[1]["state"] == "refused").then_some(status)
    })
    .await;
    assert_eq!(status[0]["name"], "customers");
    let worker = status[1]["refused"][0]["worker"].as_str().unwrap();
    let (_, out, err) = said(&["status"], &old).await;
    assert!(out.contains("refused"), "{out}");
    assert!(
        err.contains(&format!("accounts is refused to {worker}")),
        "{err}"
    );
    assert_eq!(names(&daemon.stop().await.0), ["one"]);
    assert_eq!(store.subscriptions().await.len(), 1);
}

#[tokio::test]
async fn a_worker_that_has_the_old_name_of_a_renamed_subscription_does_not_begin_it_anew_on_sqlite()
{
    a_renamed_subscription_is_not_begun_anew(Store::sqlite()).await;
}

#[tokio::test]
async fn a_worker_that_has_the_old_name_of_a_renamed_subscription_does_not_begin_it_anew_on_postgres()
 {
    if let Some(store) = Store::postgres().await {
        a_renamed_subscription_is_not_begun_anew(store).await;
    }
}

#[tokio::test]
async fn a_paused_position_that_comes_near_to_leaving_the_bus_is_told_and_its_lag_shown() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let short = "retention = \"6s\"\nretention_warning = \"5s\"\n";
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let config = configured(&org, &store, short, subscription, LOG);
    let mut daemon = lone(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(said(&["pause", "accounts"], &config).await.0, 0);
    assert_eq!(daemon.stop().await.1, 0);
    eventually("a position that is too old", async || {
        let (_, _, err) = said(&["status"], &config).await;
        err.contains("lost already").then_some(())
    })
    .await;
    let daemon = lone(&config);
    daemon.logged(&["paused by a person"]).await;
    daemon.logged(&["may be lost already", "accounts"]).await;
    let metrics = Metrics::of(&daemon).await;
    let labels = [("subscription", "accounts")];
    metrics
        .until("orgstream_position_kept_seconds", &labels, |left| {
            left < 0.0
        })
        .await;
    metrics
        .until("orgstream_lag_seconds", &labels, |lag| lag > 5.0)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_is_shown_from_afar_of_a_name_ends_with_the_name() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let short = "retention = \"1h\"\nretention_warning = \"4s\"\n";
    let named = |name, start| configured(&org, &store, short, (name, ACCOUNTS, start), LOG);
    // One that says where it begins would not wait for the rename.
    let (old, new) = (named("old", "start = \"earliest\""), named("new", ""));
    let mut daemon = lone(&old);
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    let daemon = lone(&new);
    let metrics = Metrics::of(&daemon).await;
    let lag = "orgstream_lag_seconds";
    let labels = [("subscription", "old")];
    metrics.until(lag, &labels, |lag| lag > 0.0).await;
    let (code, _, text) = said(&["rename", "old", "new"], &new).await;
    assert_eq!(code, 0, "{text}");
    metrics.until(lag, &labels, f64::is_nan).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_fleet_that_is_dead_is_told_by_status_and_programs_get_json_where_nothing_was_chosen() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org, &store, &["accounts"], "earliest");
    let daemon = lone(&config);
    loads(&store, 1).await;
    let (code, _, err) = said(&["status"], &config).await;
    assert_eq!(code, 0, "{err}");
    daemon.kill();
    crate::support::within(Duration::from_secs(20), "its end", async || {
        let (code, out, _) = said(&["status", "--json"], &config).await;
        let status: Value = serde_json::from_str(&out).unwrap();
        (code == 1 && status[0]["state"] == "waiting for a worker").then_some(())
    })
    .await;
    let (code, out, _) = said(&["dead-letters", "retry", "--all", "--json"], &config).await;
    let outcome: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &outcome["handled"]), (0, &json!([])));
    let args = ["dead-letters", "discard", "--all", "--json"];
    let (code, out, _) = said(&args, &config).await;
    let outcome: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &outcome["discarded"]), (0, &json!([])));
}
