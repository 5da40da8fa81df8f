//! Taking over, progress, fencing, status.

use std::time::{Duration, SystemTime};

use super::bed::{BRIEF, Bed, Park, hole, key, letter, now, org, replay, take};
use crate::config::Start;
use crate::event::{EventIdentity, OrgId};
use crate::store::{
    FinishedAhead, HoleFilter, HoleKind, Lease, Progress, Recent, StateReport, Store, StoreError,
    SubscriptionKey, TakenOver,
};

fn ahead(handler: &str, identity: &str) -> FinishedAhead {
    FinishedAhead {
        handler: handler.to_owned(),
        identity: EventIdentity::from_stored(identity),
    }
}

fn at(hex: &str) -> Progress {
    Progress {
        position: Some(replay(hex)),
        ..Progress::default()
    }
}

async fn again(store: &dyn Store, lease: &Lease) -> TakenOver {
    let configured = [lease.key.name.clone()];
    let taken = store.take_over(&lease.key, "next", BRIEF, &configured, false);
    taken.await.unwrap()
}

pub(super) async fn a_new_subscription_begins_without_a_position(bed: &Bed) {
    let store = bed.ready().await;
    let key = key("accounts", "Account");
    let configured = [key.name.clone()];
    let taken = store.take_over(&key, "worker", BRIEF, &configured, false);
    let taken = taken.await.unwrap();
    assert_eq!(taken.lease.key, key);
    assert_eq!(taken.lease.holder, "worker");
    assert_eq!(taken.position, None);
    assert_eq!(taken.position_at, None);
    assert!(!taken.begun_without_position);
    assert!(taken.finished_ahead.is_empty());
}

pub(super) async fn a_restart_before_the_first_position_is_told(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let taken = again(&*store, &lease).await;
    assert!(!taken.begun_without_position, "no stream was begun yet");
    store.mark_begun(&taken.lease).await.unwrap();
    let taken = again(&*store, &lease).await;
    assert!(taken.begun_without_position);
    assert_eq!(taken.begun_with, None);
    for first in ["0a", "0b"] {
        let first = replay(first);
        store.mark_first(&taken.lease, &first).await.unwrap();
    }
    let taken = again(&*store, &lease).await;
    assert!(taken.begun_without_position);
    assert_eq!(taken.begun_with, Some(replay("0a")), "the first one stays");
    let progress = at("0c");
    store.save_progress(&taken.lease, &progress).await.unwrap();
    let taken = again(&*store, &lease).await;
    assert!(!taken.begun_without_position);
    assert_eq!(taken.begun_with, None);
}

pub(super) async fn progress_survives_reopening_and_reaches_the_next_holder(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let before = now();
    let progress = Progress {
        position: Some(replay("00000000001104710000")),
        transaction: Some("0004e7a1-7c5e".to_owned()),
        finished_ahead: vec![ahead("fulfilment", "u:0b:001A")],
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    // Without a position, the one before stays.
    let progress = Progress {
        position: None,
        transaction: None,
        ..progress
    };
    store.save_progress(&lease, &progress).await.unwrap();
    store.close().await;

    let store = bed.open().await;
    let taken = again(&*store, &lease).await;
    assert!(taken.lease.epoch > lease.epoch);
    assert_eq!(taken.lease.holder, "next");
    assert_eq!(taken.position, Some(replay("00000000001104710000")));
    assert_eq!(taken.transaction.as_deref(), Some("0004e7a1-7c5e"));
    assert_eq!(taken.finished_ahead, [ahead("fulfilment", "u:0b:001A")]);
    // A keepalive is of no transaction.
    let keepalive = at("0c");
    store.save_progress(&taken.lease, &keepalive).await.unwrap();
    assert_eq!(again(&*store, &lease).await.transaction, None);
    let written = taken.position_at.unwrap();
    assert!(written >= before && written <= SystemTime::now() + Duration::from_secs(1));
}

pub(super) async fn each_write_replaces_what_was_finished_ahead(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    for set in [
        vec![ahead("a", "1"), ahead("a", "2"), ahead("b", "1")],
        // The same identity twice, as two writers of one set might name it.
        vec![ahead("a", "2"), ahead("b", "3"), ahead("b", "3")],
        vec![],
        vec![ahead("it's \"quoted\" \\ [0]", "u:0b")],
    ] {
        let progress = Progress {
            finished_ahead: set.clone(),
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
        let count = "select count(*) from orgstream.finished_ahead";
        let mut expected = set;
        expected.dedup();
        assert_eq!(bed.column::<i64>(count).await, [expected.len() as i64]);
    }
    let stored = again(&*store, &lease).await.finished_ahead;
    assert_eq!(stored, [ahead("it's \"quoted\" \\ [0]", "u:0b")]);
}

pub(super) async fn a_large_set_finished_ahead_is_written_and_emptied(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let set: Vec<_> = (0..5_000)
        .map(|n| ahead("handler", &n.to_string()))
        .collect();
    for range in [0..4_000, 1_000..5_000, 0..0] {
        let progress = Progress {
            finished_ahead: set[range.clone()].to_vec(),
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
        let count = "select count(*) from orgstream.finished_ahead";
        assert_eq!(bed.column::<i64>(count).await, [range.len() as i64]);
    }
}

pub(super) async fn a_holder_whose_epoch_has_passed_is_refused_everywhere(bed: &Bed) {
    let store = bed.ready().await;
    let old = take(&*store).await;
    store.save_progress(&old, &at("0a")).await.unwrap();
    let new = again(&*store, &old).await.lease;
    let report = StateReport {
        state: "live".to_owned(),
        ..StateReport::default()
    };
    let refusals = [
        store.save_progress(&old, &at("0b")).await,
        store.report_state(&old, &report).await,
        store.park(&old, &letter("001A", None)).await.map(drop),
        store
            .record_hole(&old, &hole(HoleKind::Lost, None))
            .await
            .map(drop),
        store.close_holes(&old, &replay("0b"), now()).await,
    ];
    for refusal in refusals {
        match refusal {
            Err(StoreError::Fenced { subscription, ours }) => {
                assert_eq!((subscription.as_str(), ours), ("accounts", old.epoch));
            }
            other => panic!("{other:?}"),
        }
    }
    // And nothing of it was written.
    assert_eq!(again(&*store, &new).await.position, Some(replay("0a")));
    assert!(
        store
            .holes(&HoleFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.subscriptions().await.unwrap()[0].parked, 0);
}

pub(super) async fn a_write_that_comes_late_never_overtakes_a_newer_one(bed: &Bed) {
    let first = bed.ready().await;
    let lease = take(&*first).await;
    // Writes are numbered from the clock on: one of a store that was opened before stands for a write
    // that was given up on its way.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = bed.open().await;
    second.save_progress(&lease, &at("0b")).await.unwrap();
    let late = first.save_progress(&lease, &at("0a")).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    second.close().await;
    let taken = again(&*first, &lease).await;
    assert_eq!(taken.position, Some(replay("0b")));
    // Under a new epoch the numbers begin anew.
    first.save_progress(&taken.lease, &at("0c")).await.unwrap();
}

pub(super) async fn a_name_whose_topic_changed_is_refused(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let changed = key("accounts", "Contact");
    let configured = [changed.name.clone()];
    // An explicit start says where to begin, not that the old position may go.
    match store
        .take_over(&changed, "worker", BRIEF, &configured, true)
        .await
    {
        Err(StoreError::TopicChanged {
            name,
            stored,
            given,
        }) => {
            assert_eq!(name, "accounts");
            assert_eq!(stored, "/data/AccountChangeEvent");
            assert_eq!(given, "/data/ContactChangeEvent");
        }
        result => panic!("{result:?}"),
    }
    // The one who runs it is not disturbed.
    store.save_progress(&lease, &at("0a")).await.unwrap();
}

pub(super) async fn a_rename_is_suspected_and_an_explicit_start_overrules_it(bed: &Bed) {
    let store = bed.ready().await;
    take(&*store).await;
    let new = key("customers", "Account");
    let both = ["accounts".to_owned(), "customers".to_owned()];
    match store
        .take_over(&new, "worker", BRIEF, &both[1..], false)
        .await
    {
        Err(StoreError::RenameSuspected { name, old, .. }) => {
            assert_eq!((name.as_str(), old.as_str()), ("customers", "accounts"));
        }
        result => panic!("{result:?}"),
    }
    let second = key("second", "Account");
    let all = [both[0].clone(), both[1].clone(), "second".to_owned()];
    // A second subscription to the same topic is none.
    store
        .take_over(&second, "worker", BRIEF, &all, false)
        .await
        .unwrap();
    store
        .take_over(&new, "worker", BRIEF, &both[1..], true)
        .await
        .unwrap();
    // What has begun is no rename ever after.
    store
        .take_over(&new, "worker", BRIEF, &both[1..], false)
        .await
        .unwrap();
}

pub(super) async fn taking_over_refuses_another_org(bed: &Bed) {
    let store = bed.ready().await;
    take(&*store).await;
    let other = SubscriptionKey {
        org_id: OrgId::parse("00D580000000002").unwrap(),
        ..key("accounts", "Account")
    };
    let refused = store.take_over(&other, "worker", BRIEF, &[], false).await;
    match refused {
        Err(StoreError::OtherOrg { stored, .. }) => assert_eq!(stored, org()),
        result => panic!("{result:?}"),
    }
}

pub(super) async fn workers_that_take_over_at_once_get_different_epochs(bed: &Bed) {
    let store = bed.ready().await;
    let mut workers = Vec::new();
    for _ in 0..8 {
        let store = store.clone();
        workers.push(tokio::spawn(async move { take(&*store).await.epoch }));
    }
    let mut epochs = Vec::new();
    for worker in workers {
        epochs.push(worker.await.unwrap());
    }
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3, 4, 5, 6, 7, 8]);
}

pub(super) async fn states_counters_and_open_work_are_shown(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let new = &store.subscriptions().await.unwrap()[0];
    assert_eq!((new.state.as_str(), new.state_at), ("new", None));
    let report = StateReport {
        state: "blocked".to_owned(),
        detail: Some("grant the permission".to_owned()),
        ..StateReport::default()
    };
    store.report_state(&lease, &report).await.unwrap();
    let caught_up_at = now();
    for received in [5, 2] {
        let progress = Progress {
            position: Some(replay("0a")),
            caught_up_at: (received == 5).then_some(caught_up_at),
            received,
            finished: 1,
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
    }
    let parked = letter("001A", Some("fulfilment"));
    store.park(&lease, &parked).await.unwrap();
    let lost = hole(HoleKind::Lost, Some("0a"));
    store.record_hole(&lease, &lost).await.unwrap();

    let all = store.subscriptions().await.unwrap();
    assert_eq!(all.len(), 1);
    let status = &all[0];
    assert_eq!(status.key, lease.key);
    assert_eq!(status.state, "blocked");
    assert_eq!(status.detail.as_deref(), Some("grant the permission"));
    assert!(status.state_at.is_some() && status.position_at.is_some());
    assert_eq!(status.holder.as_deref(), Some("worker"));
    assert_eq!(status.epoch, lease.epoch);
    assert_eq!(status.position, Some(replay("0a")));
    assert_eq!(status.caught_up_at, Some(caught_up_at));
    assert_eq!((status.received, status.finished), (7, 2));
    assert_eq!((status.parked, status.holes), (1, 1));
}

pub(super) async fn a_position_that_is_given_up_is_none_and_says_where_to_begin(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let position_time = now() - Duration::from_secs(60);
    let progress = Progress {
        position_time: Some(position_time),
        finished_ahead: vec![ahead("fulfilment", "u:0b:001A")],
        ..at("0a")
    };
    store.save_progress(&lease, &progress).await.unwrap();
    let taken = again(&*store, &lease).await;
    assert_eq!(taken.position_time, Some(position_time));
    assert_eq!(
        store.subscriptions().await.unwrap()[0].position_time,
        taken.position_time
    );
    assert_eq!(taken.lost_position, None);
    let mut lease = taken.lease;
    let mut lost = replay("0a");
    for (begin, begun) in [(Start::Latest, true), (Start::Earliest, false)] {
        let given_up = Progress {
            begin_from: Some(begin.clone()),
            unfinished: true,
            finished_ahead: progress.finished_ahead.clone(),
            ..Progress::default()
        };
        store.save_progress(&lease, &given_up).await.unwrap();
        // A later write without a position changes nothing about that.
        let unmoved = Progress {
            begin_from: None,
            ..given_up
        };
        store.save_progress(&lease, &unmoved).await.unwrap();
        store.mark_first(&lease, &replay("0c")).await.unwrap();
        let status = &store.subscriptions().await.unwrap()[0];
        assert_eq!((&status.position, status.position_time), (&None, None));
        let taken = again(&*store, &lease).await;
        assert_eq!((&taken.position, taken.position_time), (&None, None));
        assert_eq!(taken.begin_from, Some(begin));
        assert_eq!(taken.lost_position.as_ref(), Some(&lost));
        assert_eq!(taken.begun_without_position, begun);
        assert_eq!(taken.begun_with, Some(replay("0c")));
        assert_eq!(taken.finished_ahead, progress.finished_ahead);
        store.save_progress(&taken.lease, &at("0d")).await.unwrap();
        let taken = again(&*store, &lease).await;
        assert_eq!((taken.begin_from, taken.begun_with), (None, None));
        assert_eq!(
            (taken.position, taken.lost_position),
            (Some(replay("0d")), None)
        );
        lost = replay("0d");
        lease = taken.lease;
    }
}

pub(super) async fn how_many_events_came_lately_is_told_by_the_marks(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let hour = Duration::from_secs(3600);
    let lately = async |window| store.recent_events(&lease.key, window).await.unwrap();
    assert_eq!(lately(hour).await, None);
    let start = now() - 10 * hour;
    for (hours, received) in [(0, 7), (2, 100), (4, 20), (5, 30)] {
        let progress = Progress {
            marked_at: Some(start + hours * hour),
            received,
            ..at("0a")
        };
        store.save_progress(&lease, &progress).await.unwrap();
        if hours == 0 {
            assert_eq!(lately(hour).await, None, "one mark tells nothing");
        }
    }
    let recent = |events, hours| {
        Some(Recent {
            events,
            over: hours * hour,
        })
    };
    assert_eq!(lately(72 * hour).await, recent(150, 5));
    assert_eq!(lately(3 * hour).await, recent(50, 3));
    assert_eq!(lately(hour / 2).await, None);
    let other = key("others", "Account");
    assert_eq!(store.recent_events(&other, hour).await.unwrap(), None);
}

pub(super) async fn positions_are_marked_at_most_once_a_minute(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let start = now() - Duration::from_secs(600);
    let day = 86_400;
    for (seconds, marks) in [
        (0, 1),
        (30, 1),
        (59, 1),
        (61, 2),
        (62, 2),
        (400, 3),
        (9 * day, 3),
    ] {
        let progress = Progress {
            marked_at: Some(start + Duration::from_secs(seconds)),
            ..at("0a")
        };
        store.save_progress(&lease, &progress).await.unwrap();
        let count = "select count(*) from orgstream.position_mark";
        assert_eq!(bed.column::<i64>(count).await, [marks], "{seconds}");
    }
}
