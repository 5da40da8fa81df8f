//! Holes.

use super::bed::{Bed, hole, replay, take};
use crate::store::{Hole, HoleKind};

pub(super) async fn a_lost_hole_is_recorded_once_until_its_end_is_known(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let lost = hole(HoleKind::Lost, Some("0a"));
    let first = store.record_hole(&lease, &lost).await.unwrap();
    assert_eq!(store.record_hole(&lease, &lost).await.unwrap(), first);
    let from_nowhere = hole(HoleKind::Lost, None);
    let second = store.record_hole(&lease, &from_nowhere).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(
        store.record_hole(&lease, &from_nowhere).await.unwrap(),
        second
    );

    store.close_holes(&lease, &replay("0c")).await.unwrap();
    // The first end that was known is the right one.
    store.close_holes(&lease, &replay("0d")).await.unwrap();
    let third = store.record_hole(&lease, &lost).await.unwrap();
    assert_ne!(third, first);
    let ended = Hole {
        to: Some(replay("0e")),
        ..lost.clone()
    };
    assert_eq!(store.record_hole(&lease, &ended).await.unwrap(), third);
    assert_eq!(store.record_hole(&lease, &ended).await.unwrap(), third);

    let stored = store.holes(false).await.unwrap();
    let ends: Vec<_> = stored.iter().map(|h| (h.id, h.hole.to.clone())).collect();
    let expected = [
        (third, Some(replay("0e"))),
        (second, Some(replay("0c"))),
        (first, Some(replay("0c"))),
    ];
    assert_eq!(ends, expected);
    assert_eq!(stored[0].hole, ended);
    assert_eq!(stored[0].subscription, "accounts");

    bed.execute("update orgstream.hole set acknowledged_at = recorded_at where id = 1")
        .await;
    assert_eq!(store.holes(true).await.unwrap().len(), 2);
    let all = store.holes(false).await.unwrap();
    assert_eq!(all[2].acknowledged_at, Some(all[2].recorded_at));
}

pub(super) async fn a_gap_is_recorded_once_for_each_event_and_never_closed(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let gap = Hole {
        reason: "gap_event".to_owned(),
        entity: Some("Account".to_owned()),
        record_ids: vec!["001A".to_owned()],
        ..hole(HoleKind::Gap, Some("0a"))
    };
    let id = store.record_hole(&lease, &gap).await.unwrap();
    // The event comes again after a restart.
    assert_eq!(store.record_hole(&lease, &gap).await.unwrap(), id);
    // A sibling shares its replay ID.
    let sibling = Hole {
        record_ids: vec!["001B".to_owned()],
        ..gap.clone()
    };
    assert_ne!(store.record_hole(&lease, &sibling).await.unwrap(), id);
    store.close_holes(&lease, &replay("0c")).await.unwrap();
    let stored = store.holes(true).await.unwrap();
    let holes: Vec<_> = stored.into_iter().map(|stored| stored.hole).collect();
    assert_eq!(holes, [sibling, gap]);
}

pub(super) async fn a_gap_of_very_many_records_keeps_the_first_and_the_count(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let gap = Hole {
        record_ids: (0..3_000).map(|n| format!("001{n}")).collect(),
        ..hole(HoleKind::Gap, Some("0a"))
    };
    let id = store.record_hole(&lease, &gap).await.unwrap();
    assert_eq!(store.record_hole(&lease, &gap).await.unwrap(), id);
    let stored = store.holes(true).await.unwrap();
    assert_eq!(stored[0].hole.record_ids, gap.record_ids[..1_000]);
    let count = "select record_count from orgstream.hole";
    assert_eq!(bed.column::<i64>(count).await, [3_000]);
}
