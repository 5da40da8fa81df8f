//! Several daemons on one Postgres (design 3.1, rule 11): who runs what, and what moves when one is killed,
//! stopped, frozen, or cut off from the database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orgstream::store::SubscriptionStatus;
use serde_json::Value;

use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, Hook, LOG, Line, Metrics, Proxy, Store, account_update, eventually, names,
    record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Short enough for a test, long enough for a busy machine.
const LEASE: Duration = Duration::from_secs(3);

/// How much later than it should be something may be seen here.
const SLACK: Duration = Duration::from_secs(4);

/// Subscriptions `s0` to `s<count - 1>` to one topic, at the store behind `url`.
fn config(org: &Emulator, url: &str, count: usize, lease: Duration, handlers: &str) -> String {
    let subscriptions: String = (0..count)
        .map(|n| {
            format!(
                "[[subscription]]\nname = \"s{n}\"\ntopic = \"{ACCOUNTS}\"\nstart = \"earliest\"\n{handlers}"
            )
        })
        .collect();
    format!(
        "{}\n[store]\nurl = \"{url}\"\ntimeout = \"2s\"\nlease = \"{}ms\"\n{subscriptions}",
        org.salesforce(),
        lease.as_millis()
    )
}

/// A worker with a name.
fn worker(config: &str, name: &'static str) -> Daemon {
    Daemon::run_with(config, &[("DYNO", name), METRICS])
}

/// What each worker runs, once all of `count` subscriptions are live.
async fn owners(store: &Store, count: usize) -> Option<BTreeMap<String, Vec<String>>> {
    let all = store.subscriptions().await;
    let live = |one: &&SubscriptionStatus| one.held && one.state == "live";
    if all.iter().filter(live).count() < count {
        return None;
    }
    let mut owners = BTreeMap::<String, Vec<String>>::new();
    for one in all.into_iter().filter(|one| one.held) {
        owners.entry(one.worker?).or_default().push(one.key.name);
    }
    Some(owners)
}

/// Waits until all subscriptions are live and shared out as these numbers say, in any order.
async fn shared_out(store: &Store, shares: &[usize]) -> BTreeMap<String, Vec<String>> {
    let what = format!("subscriptions shared out as {shares:?}");
    eventually(&what, async || {
        let owners = owners(store, shares.iter().sum()).await?;
        let mut found: Vec<usize> = owners.values().map(Vec::len).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        (found == shares).then_some(owners)
    })
    .await
}

/// Waits until this worker runs all of `count` subscriptions.
async fn runs_all(store: &Store, worker: &str, count: usize) {
    eventually(&format!("{worker} runs all"), async || {
        let owners = owners(store, count).await?;
        (owners.len() == 1 && owners.contains_key(worker)).then_some(())
    })
    .await;
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

/// How often an event was handled, over all workers and subscriptions.
fn handled(daemons: &[&Daemon], name: &str) -> usize {
    let all = daemons.iter().flat_map(|daemon| names(&daemon.events()));
    all.filter(|seen| seen == name).count()
}

async fn handled_by_all(daemons: &[&Daemon], name: &str, count: usize) {
    eventually(&format!("{name} handled {count} times"), async || {
        (handled(daemons, name) >= count).then_some(())
    })
    .await;
    assert_eq!(handled(daemons, name), count, "{name}");
}

async fn workers_share_within_their_share(store: Store) {
    let org = Emulator::start().await;
    let config = config(&org, &store.url, 5, LEASE, LOG);
    let first = worker(&config, "worker.1");
    runs_all(&store, "worker.1", 5).await;
    let second = worker(&config, "worker.2");
    shared_out(&store, &[3, 2]).await;
    let third = worker(&config, "worker.3");
    let owners = shared_out(&store, &[2, 2, 1]).await;
    // Each in one place: one stream, one hand-over.
    eventually("five streams", async || {
        let streams = org.state().await["streams"].as_array().map(Vec::len);
        (streams == Some(5)).then_some(())
    })
    .await;
    publish(&org, "calm").await;
    handled_by_all(&[&first, &second, &third], "calm", 5).await;
    // Whoever does not run a subscription says so.
    let metrics = Metrics::of(&first).await;
    for n in 0..5 {
        let name = format!("s{n}");
        let ours = owners["worker.1"].contains(&name);
        let state = if ours { "live" } else { "elsewhere" };
        metrics.state(&name, state).await;
    }
    // And what one leaves the others take.
    assert_eq!(second.stop().await.1, 0);
    shared_out(&store, &[3, 2]).await;
    assert_eq!(third.stop().await.1, 0);
    runs_all(&store, "worker.1", 5).await;
    assert_eq!(first.stop().await.1, 0);
    let left = store.subscriptions().await;
    assert!(left.iter().all(|one| !one.held), "{left:?}");
}

#[tokio::test]
async fn three_workers_share_five_subscriptions_and_none_keeps_more_than_its_share() {
    if let Some(store) = Store::postgres().await {
        workers_share_within_their_share(store).await;
    }
}

#[tokio::test]
async fn workers_share_the_subscriptions_through_pgbouncer() {
    if let Some((_, pooled)) = Store::pgbouncer().await {
        workers_share_within_their_share(pooled).await;
    }
}

async fn a_killed_workers_subscriptions_move(store: Store) {
    let org = Emulator::start().await;
    let config = config(&org, &store.url, 4, LEASE, LOG);
    let first = worker(&config, "worker.1");
    let second = worker(&config, "worker.2");
    shared_out(&store, &[2, 2]).await;
    publish(&org, "before").await;
    handled_by_all(&[&first, &second], "before", 4).await;
    let seen = names(&first.events());
    first.kill();
    let killed_at = Instant::now();
    publish(&org, "after").await;
    runs_all(&store, "worker.2", 4).await;
    let took = killed_at.elapsed();
    assert!(took < LEASE + SLACK, "{took:?}");
    println!("moved after {took:?} with a lease of {LEASE:?}");
    eventually("what came meanwhile", async || {
        (handled(&[&second], "after") == 4).then_some(())
    })
    .await;
    // Handled before the kill, and perhaps once more: never lost.
    assert_eq!(seen.iter().filter(|name| *name == "before").count(), 2);
    assert_eq!(second.stop().await.1, 0);
}

#[tokio::test]
async fn a_killed_workers_subscriptions_move_within_the_lease_time() {
    if let Some(store) = Store::postgres().await {
        a_killed_workers_subscriptions_move(store).await;
    }
}

#[tokio::test]
async fn a_killed_workers_subscriptions_move_within_the_lease_time_through_pgbouncer() {
    if let Some((_, pooled)) = Store::pgbouncer().await {
        a_killed_workers_subscriptions_move(pooled).await;
    }
}

#[tokio::test]
async fn a_stopped_worker_hands_over_at_once_and_nothing_repeats() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    // So long that nothing here can be its end.
    let config = config(&org, &store.url, 2, Duration::from_secs(300), LOG);
    let first = worker(&config, "worker.1");
    runs_all(&store, "worker.1", 2).await;
    let second = worker(&config, "worker.2");
    shared_out(&store, &[1, 1]).await;
    publish(&org, "before").await;
    handled_by_all(&[&first, &second], "before", 2).await;
    let asked_at = Instant::now();
    let (events, code) = first.stop().await;
    assert_eq!(code, 0);
    runs_all(&store, "worker.2", 2).await;
    let took = asked_at.elapsed();
    assert!(took < SLACK + SLACK, "{took:?}");
    println!("handed over after {took:?}");
    publish(&org, "after").await;
    handled_by_all(&[&second], "after", 2).await;
    let before = names(&events).iter().filter(|n| *n == "before").count();
    assert_eq!(before + handled(&[&second], "before"), 2, "handled once");
    assert_eq!(second.stop().await.1, 0);
}

#[tokio::test]
async fn a_worker_that_wakes_up_late_hands_nothing_out_and_moves_no_position() {
    if let Some(store) = Store::postgres().await {
        a_worker_wakes_up_late(store).await;
    }
}

#[tokio::test]
async fn a_worker_that_wakes_up_late_moves_no_position_through_pgbouncer() {
    if let Some((_, pooled)) = Store::pgbouncer().await {
        a_worker_wakes_up_late(pooled).await;
    }
}

async fn a_worker_wakes_up_late(store: Store) {
    let org = Emulator::start().await;
    let hook = Hook::closed().await;
    let config = config(&org, &store.url, 1, LEASE, &webhook(&hook.url(), ""));
    let first = worker(&config, "worker.1");
    runs_all(&store, "worker.1", 1).await;
    // The first is with the handler, the second waits behind it.
    for name in ["one", "two"] {
        publish(&org, name).await;
    }
    let came = |name: &str| names(&hook.came()).iter().filter(|n| *n == name).count();
    eventually("a call that hangs", async || {
        (came("one") == 1).then_some(())
    })
    .await;
    first.signal("STOP");
    let second = worker(&config, "worker.2");
    runs_all(&store, "worker.2", 1).await;
    hook.open();
    publish(&org, "three").await;
    let settled = store
        .until("s0", "three finished", |one| one.finished == 3)
        .await;
    // Its call was answered while it slept: now it would hand out the next one.
    first.signal("CONT");
    first
        .logged(&["another worker runs this subscription now"])
        .await;
    assert_eq!((came("one"), came("two"), came("three")), (2, 1, 1));
    let status = store.subscription("s0").await.unwrap();
    assert_eq!(status.position, settled.position);
    assert_eq!((status.epoch, status.received), (settled.epoch, 3));
    // It is a worker like any other afterwards.
    assert_eq!(second.stop().await.1, 0);
    runs_all(&store, "worker.1", 1).await;
    publish(&org, "four").await;
    eventually("the next event", async || (came("four") == 1).then_some(())).await;
    assert_eq!(came("three"), 1);
    assert_eq!(first.stop().await.1, 0);
}

#[tokio::test]
async fn what_was_not_taken_meanwhile_goes_on_under_its_epoch_beside_what_was_lost() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = config(&org, &store.url, 2, LEASE, LOG);
    let first = worker(&config, "worker.1");
    runs_all(&store, "worker.1", 2).await;
    let epoch = |name: &'static str| {
        let store = &store;
        async move { store.subscription(name).await.unwrap().epoch }
    };
    let (lost, kept) = (epoch("s0").await, epoch("s1").await);
    first.signal("STOP");
    tokio::time::sleep(LEASE + Duration::from_millis(500)).await;
    store
        .execute(
            "update orgstream.subscription set holder = 'another', epoch = epoch + 1, \
             lease_until = now() + interval '3 seconds' where name = 's0'",
        )
        .await;
    first.signal("CONT");
    first
        .logged(&[
            "another worker runs this subscription now",
            "subscription=s0",
        ])
        .await;
    publish(&org, "one").await;
    eventually("the one that was kept", async || {
        (handled(&[&first], "one") >= 1).then_some(())
    })
    .await;
    assert_eq!(epoch("s1").await, kept);
    // The other one comes back when that lease has lapsed.
    runs_all(&store, "worker.1", 2).await;
    handled_by_all(&[&first], "one", 2).await;
    assert_eq!((epoch("s0").await, epoch("s1").await), (lost + 2, kept));
    assert_eq!(first.stop().await.1, 0);
}

#[tokio::test]
async fn a_database_that_hangs_longer_than_the_lease_stops_hand_outs_and_the_same_epoch_goes_on() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let (before, rest) = store.url.split_once('@').unwrap();
    let (target, name) = rest.split_once('/').unwrap();
    let proxy = Proxy::before(target.to_owned()).await;
    let url = format!("{before}@{}/{name}", proxy.addr);
    let org = Emulator::start().await;
    let config = config(&org, &url, 1, LEASE, LOG);
    let first = worker(&config, "worker.1");
    runs_all(&store, "worker.1", 1).await;
    // It looks at the same database, and waits for the first one's lease to lapse.
    let second = worker(&config, "worker.2");
    second.logged(&["living workers", "workers=2"]).await;
    let metrics = Metrics::of(&first).await;
    publish(&org, "one").await;
    handled_by_all(&[&first], "one", 1).await;
    let status = store
        .until("s0", "one finished", |one| one.finished == 1)
        .await;

    proxy.set(Line::Hang);
    first.logged(&["leases ran out"]).await;
    metrics.state("s0", "blocked").await;
    publish(&org, "two").await;
    // Longer than the lease by anybody's clock.
    tokio::time::sleep(LEASE).await;
    assert_eq!(handled(&[&first, &second], "two"), 0);

    proxy.set(Line::Carry);
    handled_by_all(&[&first, &second], "two", 1).await;
    let after = store
        .until("s0", "two finished", |one| one.finished == 2)
        .await;
    assert_eq!(after.epoch, status.epoch, "the owner was given the time");
    assert_eq!(after.worker.as_deref(), Some("worker.1"));
    metrics.state("s0", "live").await;
    let calls = org.state().await["calls"]["Subscribe"].clone();
    assert_eq!(calls, Value::from(1), "the stream stayed");
    assert_eq!(second.stop().await.1, 0);
    assert_eq!(first.stop().await.1, 0);
}
