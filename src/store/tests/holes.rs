//! Holes.

use std::time::Duration;

use super::bed::{BRIEF, Bed, hole, key, now, replay, take};
use crate::store::{Hole, HoleFilter, HoleKind, Store, StoreError, StoredHole};

async fn all(store: &dyn Store) -> Vec<StoredHole> {
    store.holes(&HoleFilter::default()).await.unwrap()
}

async fn open(store: &dyn Store) -> Vec<StoredHole> {
    let filter = HoleFilter {
        open_only: true,
        ..HoleFilter::default()
    };
    store.holes(&filter).await.unwrap()
}

fn these(ids: &[i64]) -> HoleFilter {
    HoleFilter {
        ids: Some(ids.to_vec()),
        ..HoleFilter::default()
    }
}

pub(super) async fn a_lost_hole_is_recorded_once_until_its_end_is_known(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let began = now() - Duration::from_secs(60);
    let lost = Hole {
        from_time: Some(began),
        ..hole(HoleKind::Lost, Some("0a"))
    };
    let first = store.record_hole(&lease, &lost).await.unwrap();
    assert_eq!(store.record_hole(&lease, &lost).await.unwrap(), first);
    let elsewhere = hole(HoleKind::Lost, Some("0b"));
    let second = store.record_hole(&lease, &elsewhere).await.unwrap();
    assert_ne!(second, first);
    assert!(open(&*store).await.iter().all(StoredHole::is_open_ended));

    let ended = now();
    store
        .close_holes(&lease, &replay("0c"), ended)
        .await
        .unwrap();
    // The first end that was known is the right one.
    store
        .close_holes(&lease, &replay("0d"), now())
        .await
        .unwrap();
    let stored = all(&*store).await;
    let ends: Vec<_> = stored.iter().map(|h| (h.id, h.hole.to.clone())).collect();
    let end = Some(replay("0c"));
    assert_eq!(ends, [(second, end.clone()), (first, end.clone())]);
    let expected = Hole {
        to: end,
        to_time: Some(ended),
        ..lost
    };
    assert_eq!(stored[1].hole, expected);
    assert_eq!(stored[1].subscription, "accounts");
    assert!(!stored[1].is_open_ended());
}

pub(super) async fn a_position_that_is_lost_again_is_the_same_hole_whose_end_moves(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let lost = hole(HoleKind::Lost, Some("0a"));
    let id = store.record_hole(&lease, &lost).await.unwrap();
    for end in ["0c", "0d"] {
        store
            .close_holes(&lease, &replay(end), now())
            .await
            .unwrap();
        // Killed before anything was finished, and the position is gone still.
        assert_eq!(store.record_hole(&lease, &lost).await.unwrap(), id);
        assert!(all(&*store).await[0].is_open_ended());
    }
    let ended = Hole {
        to: Some(replay("0e")),
        ..lost.clone()
    };
    assert_eq!(store.record_hole(&lease, &ended).await.unwrap(), id);
    assert_eq!(all(&*store).await[0].hole.to, Some(replay("0e")));
    // What a person has acknowledged is not changed behind their back.
    let acknowledged = store.acknowledge_holes(&these(&[id]), false).await.unwrap();
    assert_eq!(acknowledged, [id]);
    assert_eq!(store.record_hole(&lease, &ended).await.unwrap(), id);
    assert!(open(&*store).await.is_empty());
    let another = store.record_hole(&lease, &lost).await.unwrap();
    assert_ne!(another, id);
    // Acknowledged without an end, and lost still.
    store
        .acknowledge_holes(&these(&[another]), true)
        .await
        .unwrap();
    assert_eq!(store.record_hole(&lease, &lost).await.unwrap(), another);
    let shown: Vec<_> = open(&*store).await.iter().map(|hole| hole.id).collect();
    assert_eq!(shown, [another]);
}

pub(super) async fn a_start_at_latest_that_dies_again_adds_to_the_hole_it_began_in(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let expired = hole(HoleKind::Lost, Some("0a"));
    let id = store.record_hole(&lease, &expired).await.unwrap();
    let died = |to: Option<&str>| Hole {
        reason: "latest_before_first_response".to_owned(),
        explanation: "It died.".to_owned(),
        to: to.map(replay),
        ..hole(HoleKind::Lost, None)
    };
    // Before anything came: the hole is open still.
    assert_eq!(store.record_hole(&lease, &died(None)).await.unwrap(), id);
    // After the first event, which ends the hole but was not finished; told twice.
    store
        .close_holes(&lease, &replay("0c"), now())
        .await
        .unwrap();
    for _ in 0..2 {
        let died = died(Some("0c"));
        assert_eq!(store.record_hole(&lease, &died).await.unwrap(), id);
    }
    let stored = all(&*store).await;
    assert_eq!(stored.len(), 1);
    let one = &stored[0].hole;
    assert_eq!(
        (&one.from, &one.to),
        (&Some(replay("0a")), &Some(replay("0c")))
    );
    assert_eq!(one.reason, "expired_replay_id");
    assert_eq!(one.explanation, format!("{} It died.", expired.explanation));
    // What dies much later is another.
    assert_ne!(store.record_hole(&lease, &died(None)).await.unwrap(), id);
    assert_eq!(all(&*store).await.len(), 2);
}

pub(super) async fn a_gap_is_recorded_once_for_each_event_and_never_closed(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let gap = Hole {
        reason: "gap_event".to_owned(),
        entity: Some("Account".to_owned()),
        record_ids: vec!["001A".to_owned()],
        to_time: Some(now()),
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
    store
        .close_holes(&lease, &replay("0c"), now())
        .await
        .unwrap();
    let stored = open(&*store).await;
    let holes: Vec<_> = stored.into_iter().map(|stored| stored.hole).collect();
    assert_eq!(holes, [sibling, gap.clone()]);
    // Acknowledged, it stays so when its event comes once more.
    store.acknowledge_holes(&these(&[id]), false).await.unwrap();
    assert_eq!(store.record_hole(&lease, &gap).await.unwrap(), id);
    assert_eq!(open(&*store).await.len(), 1);
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
    let stored = open(&*store).await;
    assert_eq!(stored[0].hole.record_ids, gap.record_ids[..1_000]);
    assert_eq!(stored[0].record_count, 3_000);
}

pub(super) async fn gaps_are_recorded_together_each_once(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let gap = |from: &str, entity: Option<&str>, records: &[&str]| Hole {
        reason: "gap_event".to_owned(),
        entity: entity.map(str::to_owned),
        record_ids: records.iter().map(|&id| id.to_owned()).collect(),
        to_time: Some(now()),
        ..hole(HoleKind::Gap, Some(from))
    };
    let known = gap("0a", Some("Account"), &["001A"]);
    let id = store.record_hole(&lease, &known).await.unwrap();
    store.acknowledge_holes(&these(&[id]), false).await.unwrap();
    let given = [
        gap("0c", Some("Account"), &["001C", "001\"B", "001A"]),
        known.clone(),
        gap("0b", None, &[]),
        gap("0c", Some("Account"), &["001C", "001\"B", "001A"]),
        gap("0c", Some("Contact"), &["001C"]),
    ];
    for _ in 0..2 {
        store.record_gaps(&lease, &given).await.unwrap();
        let holes: Vec<_> = open(&*store).await.into_iter().map(|h| h.hole).collect();
        assert_eq!(
            holes,
            [given[4].clone(), given[2].clone(), given[0].clone()],
            "in the order in which they came, what was acknowledged stays so"
        );
    }
    assert_eq!(all(&*store).await.len(), 4);
    store.record_gaps(&lease, &[]).await.unwrap();
    // All or none: a worker whose time is over adds nothing.
    take(&*store).await;
    let late = store.record_gaps(&lease, &[gap("0d", None, &[])]).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    assert_eq!(all(&*store).await.len(), 4);
}

pub(super) async fn holes_are_acknowledged_by_number_by_subscription_or_all(bed: &Bed) {
    let store = bed.ready().await;
    let accounts = take(&*store).await;
    let orders = key("orders", "Order__e");
    let configured = ["accounts".to_owned(), "orders".to_owned()];
    let taken = store.take_over(&orders, "worker", BRIEF, &configured, false);
    let orders = taken.await.unwrap().lease;
    let mut ids = Vec::new();
    for (lease, kind, from) in [
        (&accounts, HoleKind::Gap, "0a"),
        (&accounts, HoleKind::Lost, "0b"),
        (&orders, HoleKind::Gap, "0a"),
        (&orders, HoleKind::Gap, "0b"),
    ] {
        let hole = hole(kind, Some(from));
        ids.push(store.record_hole(lease, &hole).await.unwrap());
    }
    let filter = HoleFilter {
        subscription: Some("orders".to_owned()),
        limit: Some(1),
        ..HoleFilter::default()
    };
    let listed = store.holes(&filter).await.unwrap();
    assert_eq!(
        listed.iter().map(|hole| hole.id).collect::<Vec<_>>(),
        [ids[3]]
    );
    assert_eq!(store.holes(&these(&ids[1..3])).await.unwrap().len(), 2);

    let none = store
        .acknowledge_holes(&these(&[ids[1], 999]), false)
        .await
        .unwrap();
    assert!(
        none.is_empty(),
        "it has no end yet, or is not there: {none:?}"
    );
    let one = store
        .acknowledge_holes(&these(&ids[3..]), false)
        .await
        .unwrap();
    assert_eq!(one, ids[3..]);
    assert!(
        store
            .acknowledge_holes(&these(&ids[3..]), false)
            .await
            .unwrap()
            .is_empty()
    );
    let of_orders = store.acknowledge_holes(&filter, false).await.unwrap();
    assert_eq!(of_orders, ids[2..3]);
    let everything = HoleFilter::default();
    let rest = store.acknowledge_holes(&everything, false).await.unwrap();
    assert_eq!(rest, ids[..1]);
    assert_eq!(
        store.acknowledge_holes(&everything, true).await.unwrap(),
        ids[1..2]
    );
    assert!(open(&*store).await.is_empty());
    assert!(
        all(&*store)
            .await
            .iter()
            .all(|hole| hole.acknowledged_at.is_some())
    );
}
