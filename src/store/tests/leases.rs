//! Leases, workers, and what people do to a subscription.

use std::time::Duration;

use super::bed::{BRIEF, Bed, Park, hole, key, letter, org, replay, take};
use crate::event::EventIdentity;
use crate::store::{
    FinishedAhead, Footing, HoleKind, Lease, Peer, Progress, Refused, Renamed, Store, StoreError,
    SubscriptionKey, Surveyed, TakenOver, Tenure, Worker,
};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

fn worker(holder: &str) -> Worker {
    Worker {
        holder: holder.to_owned(),
        name: format!("{holder}.1"),
        version: "0.0.0".to_owned(),
        subscriptions: vec!["accounts".to_owned()],
        refused: Vec::new(),
    }
}

fn accounts() -> SubscriptionKey {
    key("accounts", "Account")
}

async fn claim(store: &dyn Store, holder: &str, ttl: Duration) -> Result<TakenOver, StoreError> {
    let configured = ["accounts".to_owned()];
    store
        .take_over(&accounts(), holder, ttl, &configured, false)
        .await
}

async fn lease(store: &dyn Store, holder: &str, ttl: Duration) -> Lease {
    claim(store, holder, ttl).await.unwrap().lease
}

async fn beat(store: &dyn Store, holder: &str, ttl: Duration) -> (Vec<String>, Vec<String>) {
    let beat = store
        .heartbeat(&worker(holder), ttl, &[accounts()], false)
        .await
        .unwrap();
    (beat.renewed, beat.held)
}

/// The row of `accounts` as a survey shows it.
async fn surveyed(store: &dyn Store) -> Surveyed {
    let survey = store.survey(&org(), LONG).await.unwrap();
    survey.subscriptions.into_iter().next().unwrap()
}

async fn workers(store: &dyn Store) -> usize {
    store.survey(&org(), LONG).await.unwrap().workers.len()
}

fn both(name: &str) -> (Vec<String>, Vec<String>) {
    (vec![name.to_owned()], vec![name.to_owned()])
}

fn neither() -> (Vec<String>, Vec<String>) {
    (Vec::new(), Vec::new())
}

/// With SQLite a lock on the file stands for all of this.
fn run_out(store: &dyn Store) -> bool {
    store.leases_run_out()
}

pub(super) async fn a_lease_keeps_others_out_until_it_runs_out_or_is_given_back(bed: &Bed) {
    let store = bed.ready().await;
    if !run_out(&*store) {
        return;
    }
    store
        .heartbeat(&worker("one"), LONG, &[], false)
        .await
        .unwrap();
    let first = lease(&*store, "one", LONG).await;
    match claim(&*store, "two", LONG).await {
        Err(StoreError::Held { subscription, by }) => {
            assert_eq!(
                (subscription.as_str(), by.as_deref()),
                ("accounts", Some("one.1"))
            );
        }
        other => panic!("{other:?}"),
    }
    // Who was refused has changed nothing, and the same holder may begin anew.
    store.mark_begun(&first).await.unwrap();
    let again = lease(&*store, "one", LONG).await;
    assert_eq!(again.epoch, first.epoch + 1);
    // An epoch that has passed gives nothing back.
    store.release(&first).await.unwrap();
    assert!(claim(&*store, "two", LONG).await.is_err());
    store.release(&again).await.unwrap();
    assert_eq!(surveyed(&*store).await.tenure, Tenure::Free);
    let second = lease(&*store, "two", BRIEF).await;
    assert_eq!(surveyed(&*store).await.tenure, Tenure::Lapsed);
    let third = lease(&*store, "three", LONG).await;
    assert_eq!(third.epoch, second.epoch + 1);
}

pub(super) async fn a_heartbeat_renews_what_is_still_the_holders_even_after_it_ran_out(bed: &Bed) {
    let store = bed.ready().await;
    let held = lease(&*store, "one", BRIEF).await;
    assert_eq!(beat(&*store, "one", LONG).await, both("accounts"));
    if run_out(&*store) {
        match surveyed(&*store).await.tenure {
            Tenure::Held { holder, rest } => {
                assert_eq!(holder, "one");
                assert!(rest > LONG - Duration::from_secs(60) && rest <= LONG);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        beat(&*store, "two", LONG).await,
        neither(),
        "not its own to renew"
    );
    store.release(&held).await.unwrap();
    let taken = lease(&*store, "two", LONG).await;
    assert_eq!(beat(&*store, "one", LONG).await, neither());
    // Given back while a heartbeat was on its way: it must not come back to life.
    store.release(&taken).await.unwrap();
    if run_out(&*store) {
        assert_eq!(beat(&*store, "two", LONG).await, neither());
        assert_eq!(surveyed(&*store).await.tenure, Tenure::Free);
    }
}

pub(super) async fn workers_are_counted_while_they_live_and_do_not_stop(bed: &Bed) {
    let store = bed.ready().await;
    if !run_out(&*store) {
        assert_eq!(workers(&*store).await, 0, "whoever looks counts itself");
        return;
    }
    assert_eq!(workers(&*store).await, 0, "an org without subscriptions");
    for holder in ["one", "two", "three"] {
        beat(&*store, holder, LONG).await;
    }
    assert_eq!(workers(&*store).await, 3);
    bed.execute("update orgstream.worker set lives_until = now() where holder = 'three'")
        .await;
    assert_eq!(workers(&*store).await, 2, "one has run out");
    let two = worker("two");
    store.heartbeat(&two, LONG, &[], true).await.unwrap();
    let survey = store.survey(&org(), LONG).await.unwrap();
    assert_eq!((survey.workers.len(), survey.stopping), (1, 1));
    for holder in ["one", "two"] {
        store.retire(holder).await.unwrap();
    }
    let survey = store.survey(&org(), LONG).await.unwrap();
    assert_eq!((survey.workers.len(), survey.stopping), (0, 0));
}

pub(super) async fn a_worker_that_is_dead_for_a_day_is_forgotten(bed: &Bed) {
    let store = bed.ready().await;
    for holder in ["old", "new"] {
        beat(&*store, holder, LONG).await;
    }
    // Times are milliseconds in one store and timestamps in the other.
    let past = if run_out(&*store) {
        "now() - interval '25 hours'"
    } else {
        "1"
    };
    bed.execute(&format!(
        "update orgstream.worker set lives_until = {past} where holder = 'old'"
    ))
    .await;
    beat(&*store, "new", LONG).await;
    let count = "select count(*) from orgstream.worker";
    assert_eq!(bed.column::<i64>(count).await, [1]);
    // One that wakes up is known again.
    beat(&*store, "old", LONG).await;
    assert_eq!(bed.column::<i64>(count).await, [2]);
}

pub(super) async fn what_a_person_paused_is_taken_by_nobody_until_it_is_resumed(bed: &Bed) {
    let store = bed.ready().await;
    assert!(!store.pause(&org(), "accounts").await.unwrap());
    let held = lease(&*store, "one", BRIEF).await;
    let before = surveyed(&*store).await;
    assert!(!before.paused);
    assert!(store.pause(&org(), "accounts").await.unwrap());
    // Its owner still writes what it finishes.
    store.mark_begun(&held).await.unwrap();
    let since = store.subscriptions().await.unwrap()[0].paused_at;
    assert!(since.is_some());
    assert!(store.pause(&org(), "accounts").await.unwrap());
    assert_eq!(store.subscriptions().await.unwrap()[0].paused_at, since);
    for holder in ["one", "two"] {
        let refused = claim(&*store, holder, LONG).await;
        assert!(
            matches!(refused, Err(StoreError::Paused { .. })),
            "{refused:?}"
        );
    }
    let paused = surveyed(&*store).await;
    assert!(paused.paused && paused.asked > before.asked);
    assert!(store.resume(&org(), "accounts").await.unwrap());
    let resumed = surveyed(&*store).await;
    assert!(!resumed.paused && resumed.asked > paused.asked);
    lease(&*store, "two", LONG).await;
    assert!(!store.resume(&org(), "nobody").await.unwrap());
}

pub(super) async fn a_rename_takes_everything_along_and_fences_the_old_owner(bed: &Bed) {
    let store = bed.ready().await;
    let old = take(&*store).await;
    let progress = Progress {
        position: Some(replay("0a")),
        marked_at: Some(super::bed::now()),
        finished_ahead: vec![FinishedAhead {
            handler: "hook".to_owned(),
            identity: EventIdentity::from_stored("u:0b"),
        }],
        ..Progress::default()
    };
    store.save_progress(&old, &progress).await.unwrap();
    store.park(&old, &letter("001A", None)).await.unwrap();
    let lost = hole(HoleKind::Lost, Some("0a"));
    store.record_hole(&old, &lost).await.unwrap();

    let renamed = store.rename(&org(), "accounts", "customers").await.unwrap();
    assert_eq!(renamed, Renamed::Done);
    let status = &store.subscriptions().await.unwrap()[0];
    assert_eq!(status.key.name, "customers");
    assert_eq!(status.position, Some(replay("0a")));
    assert_eq!((status.parked, status.holes), (1, 1));
    let mark = "select count(*) from orgstream.position_mark where subscription = 'customers'";
    assert_eq!(bed.column::<i64>(mark).await, [1]);
    let ahead = "select count(*) from orgstream.finished_ahead where subscription = 'customers'";
    assert_eq!(bed.column::<i64>(ahead).await, [1]);
    let late = store.save_progress(&old, &progress).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    // Nor under the new name, had it been told.
    let late = Lease {
        key: key("customers", "Account"),
        ..old
    };
    let late = store.save_progress(&late, &progress).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    // The new name is a rename no more; the old one is given up.
    let customers = ["customers".to_owned()];
    let new = key("customers", "Account");
    let taken = store.take_over(&new, "two", BRIEF, &customers, false);
    assert_eq!(taken.await.unwrap().position, Some(replay("0a")));
    let back = claim(&*store, "one", BRIEF).await;
    assert!(matches!(back, Err(StoreError::Renamed { .. })), "{back:?}");
}

pub(super) async fn a_rename_ends_its_own_pause_and_no_persons(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    store.release(&lease).await.unwrap();
    let org = org();
    let paused = async || store.subscriptions().await.unwrap()[0].paused_at.is_some();
    let rename = async |old: &str, new: &str| store.rename(&org, old, new).await.unwrap();
    // One that is left half way, and asked for once more.
    for _ in 0..2 {
        assert!(store.pause_to_rename(&org, "accounts").await.unwrap());
        assert!(paused().await);
    }
    assert_eq!(rename("accounts", "one").await, Renamed::Done);
    assert!(!paused().await);
    // Its answer may have been lost.
    assert_eq!(rename("accounts", "one").await, Renamed::Done);
    assert_eq!(rename("accounts", "two").await, Renamed::Unknown);
    // Nothing came of it.
    assert!(store.pause_to_rename(&org, "one").await.unwrap());
    assert!(store.resume_unrenamed(&org, "one").await.unwrap());
    assert!(!paused().await);
    assert!(!store.resume_unrenamed(&org, "one").await.unwrap());
    // A person had paused it before, or does so meanwhile.
    for before in [true, false] {
        store.resume(&org, "one").await.unwrap();
        if before {
            store.pause(&org, "one").await.unwrap();
        }
        store.pause_to_rename(&org, "one").await.unwrap();
        if !before {
            store.pause(&org, "one").await.unwrap();
        }
        assert!(!store.resume_unrenamed(&org, "one").await.unwrap());
        assert_eq!(rename("one", "other").await, Renamed::Done);
        assert!(paused().await, "{before}");
        assert_eq!(rename("other", "one").await, Renamed::Done);
        assert!(paused().await, "{before}");
    }
    assert!(!store.pause_to_rename(&org, "nobody").await.unwrap());
}

pub(super) async fn a_name_that_was_given_up_is_not_begun_anew_until_it_is_given_back(bed: &Bed) {
    let store = bed.ready().await;
    take(&*store).await;
    let rename = async |old: &str, new: &str| {
        let renamed = store.rename(&org(), old, new).await.unwrap();
        assert_eq!(renamed, Renamed::Done);
    };
    // As a worker asks whose configuration has the old name yet, and says where it begins.
    let begin = async |name: &str, topic: &str| {
        let configured = [name.to_owned()];
        let key = key(name, topic);
        store.take_over(&key, "one", BRIEF, &configured, true).await
    };
    rename("accounts", "customers").await;
    rename("customers", "clients").await;
    for name in ["accounts", "customers"] {
        match begin(name, "Account").await {
            Err(StoreError::Renamed { name: old, new, .. }) => {
                assert_eq!((old.as_str(), new.as_str()), (name, "clients"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.subscriptions().await.unwrap().len(), 1);
    // On another topic it cannot be meant.
    begin("customers", "Contact").await.unwrap();
    rename("clients", "accounts").await;
    begin("accounts", "Account").await.unwrap();
    let given_up = begin("clients", "Account").await;
    assert!(
        matches!(given_up, Err(StoreError::Renamed { .. })),
        "{given_up:?}"
    );
}

pub(super) async fn a_worker_tells_the_others_what_it_can_run_and_people_what_it_was_refused(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let mut one = worker("one");
    store.heartbeat(&one, LONG, &[], false).await.unwrap();
    one.subscriptions = vec!["accounts".to_owned(), "orders".to_owned()];
    one.refused = vec![Refused {
        name: "contacts".to_owned(),
        topic: "/data/ContactChangeEvent".to_owned(),
        why: "\"quoted\", and\nmore".to_owned(),
    }];
    store.heartbeat(&one, LONG, &[], false).await.unwrap();
    let living = store.workers().await.unwrap();
    assert_eq!(living.len(), 1);
    assert_eq!(living[0].worker, one);
    if run_out(&*store) {
        let survey = store.survey(&org(), LONG).await.unwrap();
        let peer = Peer {
            holder: "one".to_owned(),
            subscriptions: one.subscriptions.clone(),
        };
        assert_eq!(survey.workers, [peer]);
    }
    store.heartbeat(&one, LONG, &[], true).await.unwrap();
    assert_eq!(store.workers().await.unwrap(), []);
}

pub(super) async fn a_survey_tells_what_has_a_position_and_what_began_without_one(bed: &Bed) {
    let store = bed.ready().await;
    let held = lease(&*store, "one", LONG).await;
    assert_eq!(surveyed(&*store).await.footing, Footing::New);
    store.mark_begun(&held).await.unwrap();
    assert_eq!(surveyed(&*store).await.footing, Footing::Begun);
    let progress = Progress {
        position: Some(replay("0a")),
        ..Progress::default()
    };
    store.save_progress(&held, &progress).await.unwrap();
    assert_eq!(surveyed(&*store).await.footing, Footing::Placed);
}

pub(super) async fn a_rename_is_refused_while_a_worker_runs_it_or_the_name_is_taken(bed: &Bed) {
    let store = bed.ready().await;
    let rename = |old: &'static str, new: &'static str| {
        let store = store.clone();
        async move { store.rename(&org(), old, new).await }
    };
    let unknown = rename("accounts", "customers").await.unwrap();
    assert_eq!(unknown, Renamed::Unknown);
    beat(&*store, "one", LONG).await;
    let held = lease(&*store, "one", LONG).await;
    match rename("accounts", "customers").await {
        Err(StoreError::Held { by, .. }) => assert_eq!(by.as_deref(), Some("one.1")),
        other => panic!("{other:?}"),
    }
    store.release(&held).await.unwrap();
    let taken = rename("accounts", "accounts").await.unwrap();
    assert_eq!(taken, Renamed::NameTaken);
}

pub(super) async fn the_owner_is_shown_by_its_name_while_it_holds_the_lease(bed: &Bed) {
    let store = bed.ready().await;
    beat(&*store, "one", LONG).await;
    let held = lease(&*store, "one", LONG).await;
    let shown = || async { store.subscriptions().await.unwrap().remove(0) };
    let status = shown().await;
    assert!(status.held);
    assert_eq!(status.worker.as_deref(), Some("one.1"));
    store.release(&held).await.unwrap();
    let status = shown().await;
    assert!(!status.held);
    assert_eq!(status.holder.as_deref(), Some("one"), "kept for history");
}
