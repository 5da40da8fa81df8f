//! Snapshots, samples, state changes, readings of the allocation.

use std::time::{Duration, SystemTime};

use super::bed::{BRIEF, Bed, key, now, org, replay, take};
use crate::event::OrgId;
use crate::store::common::{from_ms, to_ms};
use crate::store::{AllocationReading, Lease, Sample, StateReport, Store, StoreError, Worker};

const LONG: Duration = Duration::from_secs(600);

fn worker(holder: &str) -> Worker {
    Worker {
        holder: holder.to_owned(),
        name: format!("{holder}.1"),
        version: "0.0.0".to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    }
}

async fn lives(store: &dyn Store, holder: &str) {
    let worker = worker(holder);
    store.heartbeat(&worker, LONG, &[], false).await.unwrap();
}

/// Holder and body of each.
async fn snapshots(store: &dyn Store) -> Vec<(String, String)> {
    let all = store.snapshots().await.unwrap();
    all.into_iter().map(|one| (one.holder, one.body)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(holder, body): &(&str, &str)| ((*holder).to_owned(), (*body).to_owned());
    expected.iter().map(owned).collect()
}

pub(super) async fn a_worker_shows_its_last_snapshot_while_it_lives(bed: &Bed) {
    let store = bed.ready().await;
    // Who has not said that it lives is nobody.
    store.post_snapshot("one", "a 1\n").await.unwrap();
    lives(&*store, "two").await;
    lives(&*store, "one").await;
    assert_eq!(snapshots(&*store).await, []);
    for (holder, body) in [("two", "b 1\n"), ("one", "a 1\n"), ("one", "a\0 2\n")] {
        store.post_snapshot(holder, body).await.unwrap();
    }
    let both = pairs(&[("one", "a\u{fffd} 2\n"), ("two", "b 1\n")]);
    assert_eq!(snapshots(&*store).await, both);
    let one = &store.snapshots().await.unwrap()[0];
    assert_eq!(
        (one.worker.as_str(), one.version.as_str()),
        ("one.1", "0.0.0")
    );
    let age = SystemTime::now().duration_since(one.at).unwrap_or_default();
    assert!(age < Duration::from_secs(60), "{age:?}");
    // A worker that was killed lives no more when its time is up; one that ended leaves nothing.
    bed.execute("update orgstream.worker set lives_until = started_at where holder = 'two'")
        .await;
    assert_eq!(snapshots(&*store).await, pairs(&[("one", "a\u{fffd} 2\n")]));
    store.retire("one").await.unwrap();
    assert_eq!(snapshots(&*store).await, []);
    let left = "select count(*) from orgstream.worker_snapshot where holder = 'one'";
    assert_eq!(bed.column::<i64>(left).await, [0]);
}

pub(super) async fn a_living_worker_tells_since_when_it_runs_and_when_it_was_seen(bed: &Bed) {
    let store = bed.ready().await;
    lives(&*store, "one").await;
    let first = store.workers().await.unwrap().remove(0);
    assert_eq!(first.seen_at, first.started_at);
    tokio::time::sleep(Duration::from_millis(5)).await;
    lives(&*store, "one").await;
    let second = store.workers().await.unwrap().remove(0);
    assert_eq!(second.started_at, first.started_at);
    assert!(second.seen_at > first.seen_at);
}

fn sample(at: SystemTime, lag: Option<u64>, received: u64, parked: u64) -> Sample {
    Sample {
        at,
        lag: lag.map(Duration::from_millis),
        received,
        parked,
    }
}

pub(super) async fn samples_of_one_minute_are_one_with_the_worst_lag_and_all_events(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let ms = to_ms(now());
    let minute = from_ms(ms - ms.rem_euclid(60_000));
    let second = Duration::from_secs(1);
    let next = minute + 60 * second;
    for given in [
        sample(next + 2 * second, None, 1, 0),
        sample(minute, None, 2, 1),
        sample(minute + 15 * second, Some(2_500), 3, 0),
        sample(minute + 30 * second, None, 5, 0),
        sample(minute + 59 * second, Some(800), 7, 2),
    ] {
        store.post_sample(&lease, &given).await.unwrap();
    }
    let other = key("contacts", "Contact");
    let configured = [other.name.clone()];
    let taken = store.take_over(&other, "worker", BRIEF, &configured, false);
    let given = sample(minute, Some(1), 4, 0);
    let others = taken.await.unwrap().lease;
    store.post_sample(&others, &given).await.unwrap();
    let all = vec![sample(minute, Some(2_500), 17, 3), sample(next, None, 1, 0)];
    let read = async |since| store.samples(&lease.key.org_id, since).await.unwrap();
    let both = [
        ("accounts".to_owned(), all.clone()),
        ("contacts".to_owned(), vec![given]),
    ];
    assert_eq!(read(minute).await, both.into());
    let later = [("accounts".to_owned(), all[1..].to_vec())];
    assert_eq!(read(minute + second).await, later.into());
    let nobody = OrgId::parse("00D000000000009AAA").unwrap();
    assert!(store.samples(&nobody, minute).await.unwrap().is_empty());
}

pub(super) async fn whoever_lost_the_lease_posts_no_sample_and_a_rename_takes_them_along(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let old = take(&*store).await;
    let given = sample(now(), Some(10), 1, 0);
    store.post_sample(&old, &given).await.unwrap();
    store
        .report_state(&old, &report("live", None))
        .await
        .unwrap();
    let new = take(&*store).await;
    let refused = store.post_sample(&old, &given).await.unwrap_err();
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    store.release(&new).await.unwrap();
    store.rename(&org(), "accounts", "clients").await.unwrap();
    let samples = store.samples(&org(), SystemTime::UNIX_EPOCH).await.unwrap();
    let names: Vec<&String> = samples.keys().collect();
    assert_eq!(names, ["clients"]);
    let changes = store.state_changes(&org(), Some("clients"), 10).await;
    assert_eq!(changes.unwrap().len(), 1);
}

fn report(state: &str, detail: Option<&str>) -> StateReport {
    StateReport {
        state: state.to_owned(),
        detail: detail.map(str::to_owned),
        ..StateReport::default()
    }
}

/// State, detail and epoch, newest first.
async fn changes(store: &dyn Store, name: Option<&str>) -> Vec<(String, Option<String>, i64)> {
    let all = store.state_changes(&org(), name, 100).await.unwrap();
    let short = all
        .into_iter()
        .map(|one| (one.state, one.detail, one.epoch));
    short.collect()
}

fn change(state: &str, detail: Option<&str>, lease: &Lease) -> (String, Option<String>, i64) {
    (state.to_owned(), detail.map(str::to_owned), lease.epoch)
}

pub(super) async fn a_state_is_kept_where_it_or_its_detail_or_the_owner_changes(bed: &Bed) {
    let store = bed.ready().await;
    let first = take(&*store).await;
    for given in [
        report("live", None),
        report("live", None),
        report("reconnecting", Some("silence")),
        report("reconnecting", Some("reset")),
        report("reconnecting", Some("reset")),
        report("live", None),
    ] {
        store.report_state(&first, &given).await.unwrap();
    }
    let second = take(&*store).await;
    let refused = store.report_state(&first, &report("stopped", None)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })));
    let live = report("live", None);
    store.report_state(&second, &live).await.unwrap();
    let expected = [
        change("live", None, &second),
        change("live", None, &first),
        change("reconnecting", Some("reset"), &first),
        change("reconnecting", Some("silence"), &first),
        change("live", None, &first),
    ];
    assert_eq!(changes(&*store, Some("accounts")).await, expected);
    assert_eq!(changes(&*store, None).await, expected);
    assert_eq!(changes(&*store, Some("contacts")).await, []);
    let newest = store.state_changes(&org(), None, 2).await.unwrap();
    assert_eq!(newest.len(), 2);
    assert_eq!(newest[0].epoch, second.epoch);
    let other = OrgId::parse("00D580000000002").unwrap();
    assert_eq!(store.state_changes(&other, None, 10).await.unwrap(), []);
}

pub(super) async fn a_state_change_names_the_call_the_place_and_the_worker(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    // `take` takes as this holder.
    lives(&*store, "worker").await;
    let given = StateReport {
        rpc_id: Some("1fc4-a".to_owned()),
        replay_id: Some(replay("00ff")),
        at: Some(now() - LONG),
        ..report("blocked", Some("no\0permission"))
    };
    store.report_state(&lease, &given).await.unwrap();
    let kept = store
        .state_changes(&org(), None, 1)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(kept.subscription, "accounts");
    assert_eq!(kept.state, "blocked");
    assert_eq!(kept.detail.as_deref(), Some("no\u{fffd}permission"));
    assert_eq!(kept.rpc_id.as_deref(), Some("1fc4-a"));
    assert_eq!(kept.replay_id, Some(replay("00ff")));
    assert_eq!(kept.worker.as_deref(), Some("worker.1"));
    assert_eq!(kept.epoch, lease.epoch);
    assert_eq!(kept.at, given.at.unwrap());
}

pub(super) async fn states_that_came_since_are_reported_together_and_the_last_one_stands(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let named = |name: &str| StateReport {
        rpc_id: Some(name.to_owned()),
        ..report("live", None)
    };
    let all = [
        report("live", None),
        report("reconnecting", Some("reset")),
        report("live", None),
        named("a"),
        named("b"),
    ];
    store.report_states(&lease, &all).await.unwrap();
    let expected = [
        change("live", None, &lease),
        change("reconnecting", Some("reset"), &lease),
        change("live", None, &lease),
    ];
    assert_eq!(changes(&*store, None).await, expected);
    let kept = store.state_changes(&org(), None, 3).await.unwrap();
    let names: Vec<_> = kept.iter().map(|one| one.rpc_id.as_deref()).collect();
    assert_eq!(names, [Some("a"), None, None]);
    let status = store.subscriptions().await.unwrap().remove(0);
    assert_eq!((status.state.as_str(), status.detail), ("live", None));
}

pub(super) async fn one_of_all_workers_is_told_to_ask_for_the_limits(bed: &Bed) {
    let store = bed.ready().await;
    let claim = async |store: &dyn Store, every| store.claim_allocation(&org(), every).await;
    assert_eq!(
        claim(&*store, BRIEF).await.unwrap(),
        None,
        "bound to no org"
    );
    store.bind_org(&org()).await.unwrap();
    let mut places = Vec::new();
    for _ in 0..4 {
        let store = bed.open().await;
        places.push(tokio::spawn(async move {
            store.claim_allocation(&org(), LONG).await.unwrap()
        }));
    }
    let mut told = 0;
    for place in places {
        told += usize::from(place.await.unwrap().is_some());
    }
    assert_eq!(told, 1);
    assert_eq!(claim(&*store, LONG).await.unwrap(), None);
    let soon = Duration::from_millis(2);
    tokio::time::sleep(soon).await;
    // Readings have this time, whatever the clocks of workers say.
    let at = claim(&*store, soon).await.unwrap().unwrap();
    let off = now().duration_since(at).unwrap_or_default();
    assert!(off < LONG, "{off:?}");
    let other = OrgId::parse("00D580000000002").unwrap();
    let claimed = store.claim_allocation(&other, BRIEF).await.unwrap();
    assert_eq!(claimed, None);
}

pub(super) async fn readings_of_the_allocation_are_read_oldest_first(bed: &Bed) {
    let store = bed.ready().await;
    let now = now();
    let reading = |seconds: u64, remaining| AllocationReading {
        at: now - Duration::from_secs(seconds),
        max: 10_000,
        remaining,
    };
    for given in [
        reading(0, 7),
        reading(600, 9),
        reading(300, 0),
        reading(300, 8),
    ] {
        store.record_allocation(&org(), &given).await.unwrap();
    }
    let read = async |seconds| {
        let since = now - Duration::from_secs(seconds);
        store.allocation(&org(), since).await.unwrap()
    };
    let all = [reading(600, 9), reading(300, 8), reading(0, 7)];
    assert_eq!(read(600).await, all);
    assert_eq!(read(599).await, all[1..]);
    let other = OrgId::parse("00D580000000002").unwrap();
    assert_eq!(store.allocation(&other, now - LONG).await.unwrap(), []);
}
