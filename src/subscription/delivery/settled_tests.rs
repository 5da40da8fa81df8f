//! Events whose letters are settled while the stream brings them once more.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;

use super::testing::{Begin, Kept, begin, summary};
use super::*;
use crate::event::{ChangeEventHeader, Event};
use crate::handler::{BatchAnswer, EventBatch};
use crate::store::{DeadLetter, LetterSummary, SettledAhead};
use crate::subscription::decoder::Undecodable;
use crate::subscription::lanes::Records;
use crate::subscription::lanes::tests::event as change_event;
use crate::subscription::parking::Done;

/// Counts the calls that it gets, and answers none.
#[derive(Default)]
struct Silent(AtomicUsize);

#[async_trait]
impl Handler for Silent {
    async fn handle(&self, _: &EventBatch) -> BatchAnswer {
        self.0.fetch_add(1, Relaxed);
        std::future::pending().await
    }
}

/// A change event of a record, at this place of the bus.
pub(super) fn event(name: &str, place: &str, record: &str, transaction: &str) -> Event {
    let mut event = change_event(&[record]);
    let inner = Arc::make_mut(&mut event);
    inner.raw.id = name.into();
    inner.raw.replay_id = Some(place.parse().unwrap());
    let header = inner.decoded.header.as_deref_mut().unwrap();
    header.transaction_key = transaction.into();
    Arc::unwrap_or_clone(event)
}

/// Its open letter, which the stream is to bring the event of.
fn letter(identity: EventIdentity, id: i64, handler: Option<&str>, record: &str) -> LetterSummary {
    LetterSummary {
        handler: handler.map(str::to_owned),
        reason: "rejected".to_owned(),
        record_ids: vec![record.to_owned()],
        to_come: true,
        asked: false,
        ..summary(identity, id)
    }
}

async fn beginning(begins: Begin) -> (Delivery, Arc<Silent>, Kept) {
    let silent = Arc::new(Silent::default());
    let begins = Begin {
        handler: Some(silent.clone()),
        ..begins
    };
    let (delivery, kept) = begin(begins, None, &CancellationToken::new()).await;
    (delivery, silent, kept)
}

/// A turn of the loop, as far as it hands over and lets go; gives how many events were passed.
async fn turn(delivery: &mut Delivery) -> usize {
    delivery.call_handlers();
    tokio::task::yield_now().await;
    delivery.follow_letters();
    delivery.tracker.advance().events
}

#[tokio::test]
async fn an_event_whose_letter_is_discarded_before_its_turn_is_not_handed_over() {
    let (bad, next) = (event("bad", "01", "r", ""), event("next", "02", "r", ""));
    let ahead = event("a", "00", "r", "");
    let run = "log";
    for slot in [Some(run), None] {
        let begins = Begin {
            open: vec![letter(bad.identity(), 7, slot, "r")],
            ..Begin::default()
        };
        let (mut delivery, silent, _kept) = beginning(begins).await;
        assert_eq!(delivery.runs[0].name, run);
        // The first is with the handler, the others wait for it.
        delivery.take(Item::Event(Arc::new(ahead.clone())));
        assert_eq!(turn(&mut delivery).await, 0);
        delivery.take(Item::Event(Arc::new(bad.clone())));
        delivery.take(Item::Event(Arc::new(next.clone())));
        assert_eq!(turn(&mut delivery).await, 0);
        delivery.letters_written(Done::Looked(Vec::new()));
        let (call, mut waiting) = delivery.with_handlers.drain().next().unwrap();
        let handled = delivery.runs[0].answered(
            Instant::now(),
            call.1,
            std::mem::take(&mut waiting),
            BatchAnswer::HANDLED,
        );
        assert_eq!(handled.done.len(), 1);
        delivery.tracker.finish(0, 1);
        assert_eq!(turn(&mut delivery).await, 2, "{slot:?}");
        let with_handler: Vec<_> = delivery.with_handlers.values().flatten().collect();
        let ids: Vec<_> = with_handler
            .iter()
            .flat_map(|waiting| waiting.unit.events().iter().map(|event| &*event.raw.id))
            .collect();
        assert_eq!((ids, silent.0.load(Relaxed)), (vec!["next"], 2), "{slot:?}");
    }
}

#[tokio::test]
async fn an_event_that_could_not_be_read_when_its_letter_was_settled_is_known_by_that() {
    let bad = event("bad", "01", "r", "");
    let unread = bad.raw.identity_unread();
    assert_ne!(unread, bad.identity());
    for discarded in [false, true] {
        let begins = match discarded {
            // Before the restart.
            false => Begin {
                settled: vec![SettledAhead {
                    id: 7,
                    handler: None,
                    identity: unread.clone(),
                }],
                ..Begin::default()
            },
            // After it, and before the event comes.
            true => Begin {
                open: vec![letter(unread.clone(), 7, None, "r")],
                ..Begin::default()
            },
        };
        let (mut delivery, silent, _kept) = beginning(begins).await;
        if discarded {
            delivery.letters_written(Done::Looked(Vec::new()));
        }
        delivery.take(Item::Event(Arc::new(bad.clone())));
        assert_eq!(turn(&mut delivery).await, 1, "{discarded}");
        assert_eq!(silent.0.load(Relaxed), 0, "{discarded}");
    }
}

#[tokio::test]
async fn a_transaction_whose_letters_are_discarded_while_it_is_collected_is_not_parked_again() {
    let (one, other) = (event("a", "01", "r", "t"), event("b", "02", "s", "t"));
    let header: ChangeEventHeader = *other.decoded.header.clone().unwrap();
    let unreadable = Undecodable {
        raw: other.raw.clone(),
        received_at: SystemTime::now(),
        header: Some(header),
        reason: "undecodable",
        error: "no".to_owned(),
        replayed: false,
    };
    let unit = Some("transaction:t".to_owned());
    let open = [
        letter(one.identity(), 7, None, "r"),
        letter(unreadable.identity(), 8, None, "s"),
    ];
    let begins = Begin {
        open: open
            .map(|letter| LetterSummary {
                unit: unit.clone(),
                ..letter
            })
            .into(),
        groups: true,
        ..Begin::default()
    };
    let (mut delivery, silent, _kept) = beginning(begins).await;
    delivery.take(Item::Event(Arc::new(one)));
    delivery.take(Item::Undecodable(Box::new(unreadable)));
    delivery.letters_written(Done::Looked(Vec::new()));
    delivery.take(Item::Keepalive("03".parse().unwrap(), SystemTime::now()));
    assert_eq!(turn(&mut delivery).await, 2);
    assert_eq!(silent.0.load(Relaxed), 0);
    // All that was to be written is how they were settled.
    let written = delivery.letters.parking.done().await.unwrap();
    assert!(matches!(written, Done::Counted { .. }), "{written:?}");
    delivery.letters_written(written);
    turn(&mut delivery).await;
    assert!(delivery.letters.parking.is_idle());
}

#[tokio::test]
async fn what_is_open_no_more_is_counted_as_what_became_of_it() {
    let (mut delivery, _, _kept) = beginning(Begin::default()).await;
    let (store, lease) = (delivery.store.clone(), delivery.lease.clone());
    let mut open = Vec::new();
    for name in ["handled", "discarded"] {
        let event = event(name, "01", name, "");
        let letter = DeadLetter {
            ahead: false,
            ..crate::subscription::parking::dead_letter(&event, None, "rejected", "422", 1)
        };
        store.park_before(&lease, &[letter], &[]).await.unwrap();
    }
    for summary in store.open_letters(&lease).await.unwrap() {
        let ticket = delivery
            .letters
            .held
            .load(summary.clone(), Records::new(), false);
        assert!(ticket.is_some());
        open.push(summary.placed.id);
    }
    // One by a handler's own transaction, whose answer is still to be taken in.
    store.resolve(&lease, &open[..1]).await.unwrap();
    let selection = crate::store::LetterSelection {
        ids: open[1..].to_vec(),
        ..crate::store::LetterSelection::default()
    };
    assert_eq!(store.discard(&selection).await.unwrap(), open[1..]);
    delivery.letters_written(Done::Looked(Vec::new()));
    turn(&mut delivery).await;
    let counted = delivery.letters.parking.done().await.unwrap();
    let expected = matches!(
        counted,
        Done::Counted {
            handled: 1,
            discarded: 1
        }
    );
    assert!(expected, "{counted:?}");
}
