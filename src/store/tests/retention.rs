//! What is kept for a while only.

use std::time::Duration;

use super::bed::{Bed, Park, hole, letter, now, org, take};
use crate::config::RetentionConfig;
use crate::store::{
    AllocationReading, Hole, HoleKind, PRUNE_PORTION, Progress, Pruned, STATE_CHANGES_KEPT,
    STATE_CHANGES_MOST, Sample, StateReport,
};

/// Everything older than an hour.
fn an_hour() -> RetentionConfig {
    let hour = Duration::from_secs(3600);
    RetentionConfig {
        dead_letters: hour,
        holes: hour,
        position_marks: hour,
        samples: hour,
        state_changes: hour,
        allocation: hour,
    }
}

/// A time in SQL, so many seconds ago: a timestamp for Postgres, milliseconds for SQLite.
fn ago(bed: &Bed, seconds: u64) -> String {
    let then = now() - Duration::from_secs(seconds);
    let ms = then
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    if bed.url.starts_with("sqlite") {
        ms.to_string()
    } else {
        format!("to_timestamp({ms} / 1000.0)")
    }
}

pub(super) async fn only_what_is_done_with_for_long_is_deleted(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    for (number, state, resolved) in [
        (1, "open", "null".to_owned()),
        (2, "handled", ago(bed, 60)),
        (3, "handled", ago(bed, 7200)),
        (4, "discarded", ago(bed, 7200)),
    ] {
        let record = format!("001{number}");
        let id = store.park(&lease, &letter(&record, None)).await.unwrap();
        bed.execute(&format!(
            "update orgstream.dead_letter set state = '{state}', resolved_at = {resolved} where id = {id}"
        ))
        .await;
    }
    for (from, acknowledged) in [
        ("0a", "null".to_owned()),
        ("0b", ago(bed, 60)),
        ("0c", ago(bed, 7200)),
    ] {
        let lost = hole(HoleKind::Lost, Some(from));
        let id = store.record_hole(&lease, &lost).await.unwrap();
        bed.execute(&format!(
            "update orgstream.hole set acknowledged_at = {acknowledged} where id = {id}"
        ))
        .await;
    }
    for minutes in [180, 90, 30, 10] {
        let progress = Progress {
            position: Some("0a".parse().unwrap()),
            marked_at: Some(now() - Duration::from_secs(minutes * 60)),
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
    }
    let pruned = store.prune(&an_hour()).await.unwrap();
    let expected = Pruned {
        dead_letters: 2,
        holes: 1,
        position_marks: 2,
        ..Pruned::default()
    };
    assert_eq!(pruned, expected);
    assert!(!pruned.is_full_portion());
    assert_eq!(store.prune(&an_hour()).await.unwrap(), Pruned::default());
    let left = "select id from orgstream.dead_letter order by id";
    assert_eq!(bed.column::<i64>(left).await, [1, 2]);
    let left = "select id from orgstream.hole order by id";
    assert_eq!(bed.column::<i64>(left).await, [1, 2]);
    let left = "select count(*) from orgstream.position_mark";
    assert_eq!(bed.column::<i64>(left).await, [2]);
    let status = &store.subscriptions().await.unwrap()[0];
    assert_eq!((status.parked, status.holes), (1, 1));
}

pub(super) async fn what_is_deleted_goes_in_portions(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let gap = Hole {
        record_ids: vec!["001A".to_owned()],
        ..hole(HoleKind::Gap, Some("0a"))
    };
    store.record_hole(&lease, &gap).await.unwrap();
    // Doubles the table eleven times.
    for _ in 0..11 {
        bed.execute(
            "insert into orgstream.hole (org_id, subscription, kind, reason, from_replay_id, record_ids, \
             record_count, explanation, recorded_at) select org_id, subscription, kind, reason, \
             from_replay_id, record_ids, record_count, explanation, recorded_at from orgstream.hole",
        )
        .await;
    }
    let acknowledged = ago(bed, 7200);
    bed.execute(&format!(
        "update orgstream.hole set acknowledged_at = {acknowledged}"
    ))
    .await;
    let portion = u64::from(PRUNE_PORTION);
    for expected in [portion, portion, 2_048 - 2 * portion] {
        let pruned = store.prune(&an_hour()).await.unwrap();
        assert_eq!(pruned.holes, expected);
        assert_eq!(pruned.is_full_portion(), expected == portion);
    }
}

pub(super) async fn what_was_observed_long_ago_is_deleted(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    for minutes in [180, 90, 30] {
        let at = now() - Duration::from_secs(minutes * 60);
        let sample = Sample {
            at,
            lag: None,
            received: 1,
            parked: 0,
        };
        store.post_sample(&lease, &sample).await.unwrap();
        let reading = AllocationReading {
            at,
            max: 10,
            remaining: 1,
        };
        store.record_allocation(&org(), &reading).await.unwrap();
    }
    let pruned = store.prune(&an_hour()).await.unwrap();
    let expected = Pruned {
        samples: 2,
        allocation: 2,
        ..Pruned::default()
    };
    assert_eq!(pruned, expected);
    assert_eq!(store.prune(&an_hour()).await.unwrap(), Pruned::default());
}

pub(super) async fn the_newest_changes_of_state_stay_and_never_too_many(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let change = async |state: &str| {
        let report = StateReport {
            state: state.to_owned(),
            ..StateReport::default()
        };
        store.report_state(&lease, &report).await.unwrap();
    };
    change("live").await;
    // Doubles the table eleven times.
    for _ in 0..11 {
        bed.execute(
            "insert into orgstream.state_change (org_id, subscription, at, state, epoch) \
             select org_id, subscription, at, state, epoch from orgstream.state_change",
        )
        .await;
    }
    let count = async || {
        bed.column::<i64>("select count(*) from orgstream.state_change")
            .await[0]
    };
    let most = u64::from(STATE_CHANGES_MOST);
    let portion = u64::from(PRUNE_PORTION);
    for expected in [portion, 2_048 - portion - most, 0] {
        let pruned = store.prune(&an_hour()).await.unwrap();
        assert_eq!(pruned.state_changes, expected);
    }
    assert_eq!(count().await, i64::from(STATE_CHANGES_MOST));
    let old = ago(bed, 7200);
    bed.execute(&format!("update orgstream.state_change set at = {old}"))
        .await;
    change("stopped").await;
    let kept = u64::from(STATE_CHANGES_KEPT);
    let pruned = store.prune(&an_hour()).await.unwrap();
    assert_eq!(pruned.state_changes, most + 1 - kept);
    let newest = store.state_changes(&org(), None, 1).await.unwrap();
    assert_eq!(newest[0].state, "stopped");
}
