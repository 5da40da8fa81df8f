//! Parked events.

use super::bed::{BRIEF, Bed, Park, key, letter, take};
use crate::store::{DeadLetter, DeadLetterFilter};

fn everything() -> DeadLetterFilter {
    DeadLetterFilter {
        limit: 100,
        ..DeadLetterFilter::default()
    }
}

pub(super) async fn a_parked_event_is_kept_as_received(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let whole = letter("001A", Some("fulfilment"));
    let bare = DeadLetter {
        handler: None,
        reason: "undecodable".to_owned(),
        replay_id: None,
        payload: bytes::Bytes::new(),
        record_ids: Vec::new(),
        record_name: None,
        commit: None,
        replayed: true,
        ..letter("001B", None)
    };
    for letter in [whole, bare] {
        let id = store.park(&lease, &letter).await.unwrap();
        let stored = store.dead_letter(id).await.unwrap().unwrap();
        assert_eq!(stored.id, id);
        assert_eq!(stored.subscription, "accounts");
        assert_eq!(stored.topic, "/data/AccountChangeEvent");
        assert_eq!(stored.state, "open");
        assert!(stored.parked_at >= letter.received_at);
        assert_eq!(stored.letter, letter);
    }
    assert_eq!(store.dead_letter(i64::MAX).await.unwrap(), None);
}

pub(super) async fn parking_the_same_event_again_changes_nothing(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let first = letter("001A", Some("fulfilment"));
    let id = store.park(&lease, &first).await.unwrap();
    let again = DeadLetter {
        error: "500".to_owned(),
        attempts: 9,
        ..first.clone()
    };
    assert_eq!(store.park(&lease, &again).await.unwrap(), id);
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(stored.letter, first);
    // Another handler, all handlers, another record: other letters.
    for other in [
        letter("001A", Some("ledger")),
        letter("001A", None),
        letter("001B", Some("fulfilment")),
    ] {
        assert_ne!(store.park(&lease, &other).await.unwrap(), id);
        let id = store.park(&lease, &other).await.unwrap();
        assert_eq!(store.park(&lease, &other).await.unwrap(), id);
    }
    let all = store.dead_letters(&everything()).await.unwrap();
    assert_eq!(all.len(), 4);
}

pub(super) async fn a_resolved_event_that_fails_anew_is_open_again(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let first = letter("001A", Some("fulfilment"));
    let id = store.park(&lease, &first).await.unwrap();
    bed.execute("update orgstream.dead_letter set state = 'handled', resolved_at = parked_at")
        .await;
    let again = DeadLetter {
        error: "422".to_owned(),
        replayed: true,
        ..first
    };
    assert_eq!(store.park(&lease, &again).await.unwrap(), id);
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert!(stored.letter.place > Some(id), "it is the newest");
    let letter = DeadLetter {
        place: None,
        ..stored.letter
    };
    assert_eq!((stored.state.as_str(), letter), ("open", again));
}

pub(super) async fn the_events_of_a_unit_are_parked_together(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let unit = |name: &str, records: &[&str]| -> Vec<DeadLetter> {
        let letter = |record: &&str| DeadLetter {
            unit: Some(name.to_owned()),
            ..letter(record, Some("fulfilment"))
        };
        records.iter().map(letter).collect()
    };
    let first = unit("transaction:1", &["001A", "001B"]);
    store.park_all(&lease, &first).await.unwrap();
    store.park_all(&lease, &first).await.unwrap();
    let stored = store.dead_letters(&everything()).await.unwrap();
    let letters: Vec<DeadLetter> = stored.into_iter().map(|stored| stored.letter).collect();
    assert_eq!(letters, first, "each once, in order");
    let configured = [lease.key.name.clone()];
    let taken = store.take_over(&lease.key, "worker", BRIEF, &configured, false);
    taken.await.unwrap();
    let late = unit("transaction:2", &["001C", "001D"]);
    assert!(store.park_all(&lease, &late).await.is_err());
    let stored = store.dead_letters(&everything()).await.unwrap();
    assert_eq!(stored.len(), 2);
}

pub(super) async fn filters_and_limits_choose_the_oldest_first(bed: &Bed) {
    let store = bed.ready().await;
    let accounts = take(&*store).await;
    let contacts = key("contacts", "Contact");
    let configured = ["accounts".to_owned(), "contacts".to_owned()];
    let contacts = store.take_over(&contacts, "worker", BRIEF, &configured, false);
    let contacts = contacts.await.unwrap().lease;
    for (lease, record, handler, reason) in [
        (&accounts, "001A", Some("ledger"), "rejected"),
        (&contacts, "003A", Some("ledger"), "exhausted"),
        (&accounts, "001B", None, "undecodable"),
        (&accounts, "001C", Some("mail"), "rejected"),
    ] {
        let letter = DeadLetter {
            reason: reason.to_owned(),
            ..letter(record, handler)
        };
        store.park(lease, &letter).await.unwrap();
    }
    bed.execute("update orgstream.dead_letter set state = 'discarded' where handler = 'mail'")
        .await;
    let some = |text: &str| Some(text.to_owned());
    for (subscription, handler, reason, state, limit, expected) in [
        (
            None,
            None,
            None,
            None,
            9,
            &["001A", "003A", "001B", "001C"][..],
        ),
        (None, None, None, None, 2, &["001A", "003A"]),
        (
            some("accounts"),
            None,
            None,
            None,
            9,
            &["001A", "001B", "001C"],
        ),
        (None, some("ledger"), None, None, 9, &["001A", "003A"]),
        (None, None, some("exhausted"), None, 9, &["003A"]),
        (None, None, None, some("open"), 9, &["001A", "003A", "001B"]),
        (
            some("accounts"),
            None,
            some("rejected"),
            some("open"),
            9,
            &["001A"],
        ),
        (some("nobody"), None, None, None, 9, &[]),
    ] {
        let filter = DeadLetterFilter {
            subscription,
            handler,
            reason,
            state,
            limit,
            ..DeadLetterFilter::default()
        };
        let found = store.dead_letters(&filter).await.unwrap();
        let records: Vec<_> = found
            .iter()
            .map(|d| d.letter.record_ids[0].as_str())
            .collect();
        assert_eq!(records, expected, "{filter:?}");
    }
}

pub(super) async fn parked_events_are_listed_in_pages_from_either_end_and_without_payloads(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut ids = Vec::new();
    for record in ["001A", "001B", "001C", "001D", "001E"] {
        let parked = letter(record, Some("fulfilment"));
        ids.push(store.park(&lease, &parked).await.unwrap());
    }
    for newest_first in [false, true] {
        let one = DeadLetterFilter {
            id: Some(ids[2]),
            newest_first,
            bare: true,
            limit: 9,
            ..DeadLetterFilter::default()
        };
        let found = store.dead_letters(&one).await.unwrap();
        assert!(found.len() == 1 && found[0].id == ids[2], "{found:?}");
    }
    for newest_first in [false, true] {
        let mut listed = Vec::new();
        loop {
            let filter = DeadLetterFilter {
                behind: listed.last().copied(),
                newest_first,
                bare: true,
                limit: 2,
                ..DeadLetterFilter::default()
            };
            let page = store.dead_letters(&filter).await.unwrap();
            assert!(page.iter().all(|one| one.letter.payload.is_empty()));
            assert!(page.iter().all(|one| one.unreadable.is_none()));
            if page.is_empty() {
                break;
            }
            listed.extend(page.iter().map(|one| one.id));
        }
        if newest_first {
            listed.reverse();
        }
        assert_eq!(listed, ids);
    }
    let whole = store.dead_letters(&everything()).await.unwrap();
    assert!(whole.iter().all(|one| !one.letter.payload.is_empty()));
}

pub(super) async fn text_that_no_database_likes_is_kept_readable(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let given = DeadLetter {
        event_uuid: "a\0b'; drop table x; --".to_owned(),
        error: "ünïcödé \0 \u{1f980}".to_owned(),
        record_ids: vec!["0\0".to_owned(), "\"[]{},\\".to_owned()],
        ..letter("001A", Some("it's"))
    };
    let id = store.park(&lease, &given).await.unwrap();
    let stored = store.dead_letter(id).await.unwrap().unwrap().letter;
    assert_eq!(stored.error, "ünïcödé \u{fffd} \u{1f980}");
    assert_eq!(stored.event_uuid, "a\u{fffd}b'; drop table x; --");
    assert_eq!(stored.record_ids[1], "\"[]{},\\");
    assert_eq!(stored.payload, given.payload);
    assert_eq!(store.park(&lease, &given).await.unwrap(), id);
}
