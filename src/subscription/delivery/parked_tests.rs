//! Letters of transactions whose events the stream brings once more.

use async_trait::async_trait;

use super::settled_tests::event;
use super::testing::{Begin, begin};
use super::*;
use crate::event::Event;
use crate::handler::{Answer, BatchAnswer, EventBatch};
use crate::store::DeadLetter;
use crate::subscription::decoder::Undecodable;
use crate::subscription::parking::dead_letter;

/// Refuses all that it is given.
struct Refusing;

#[async_trait]
impl Handler for Refusing {
    async fn handle(&self, _: &EventBatch) -> BatchAnswer {
        BatchAnswer::All(Answer::Reject {
            reason: "422".to_owned(),
        })
    }
}

/// Hands over, parks and writes until nothing is under way.
async fn rest(delivery: &mut Delivery) {
    loop {
        delivery.call_handlers();
        delivery.follow_letters();
        if let Some(called) = delivery.calls.join_next().await {
            assert!(delivery.called(called));
        } else if !delivery.letters.parking.is_idle() {
            let written = delivery.letters.parking.done().await.unwrap();
            delivery.letters_written(written);
        } else {
            return;
        }
    }
}

fn of_unit(event: &Event, unit: &str) -> DeadLetter {
    DeadLetter {
        unit: Some(format!("transaction:{unit}")),
        ahead: true,
        ..dead_letter(event, Some("log"), "rejected", "422", 1)
    }
}

/// Letters that were parked before a restart.
async fn parked_before(delivery: &mut Delivery, letters: &[DeadLetter]) {
    let (store, lease) = (delivery.store.clone(), delivery.lease.clone());
    store.park_before(&lease, letters, &[]).await.unwrap();
    for summary in store.open_letters(&lease).await.unwrap() {
        let records = delivery.letters.holding.records(&summary.record_ids);
        delivery.letters.held.load(summary, records, true);
    }
}

async fn refusing() -> (Delivery, super::testing::Kept) {
    let begins = Begin {
        handler: Some(Arc::new(Refusing)),
        groups: true,
        ..Begin::default()
    };
    begin(begins, None, &CancellationToken::new()).await
}

/// Identity, handler and unit of the open letters, in order.
async fn open(delivery: &Delivery) -> Vec<String> {
    let open = delivery.store.open_letters(&delivery.lease).await.unwrap();
    open.into_iter()
        .map(|one| {
            let (handler, unit) = (one.handler.as_deref(), one.unit.as_deref());
            let unit = unit.unwrap_or("alone");
            format!("{} {} {unit}", one.identity, handler.unwrap_or("everyone"))
        })
        .collect()
}

#[tokio::test]
async fn a_handlers_own_letter_keeps_its_order_where_the_rest_of_its_transaction_cannot_be_decoded()
{
    let (mut delivery, _kept) = refusing().await;
    let older = event("older", "01", "r", "o");
    let (own, other) = (event("a", "02", "r", "t"), event("b", "03", "s", "t"));
    let of_part = DeadLetter {
        unit: Some("part:t:a".to_owned()),
        ..of_unit(&own, "t")
    };
    parked_before(&mut delivery, &[of_part]).await;
    delivery.take(Item::Event(Arc::new(older)));
    delivery.take(Item::Event(Arc::new(own)));
    delivery.take(Item::Undecodable(Box::new(Undecodable {
        header: other.decoded.header.as_deref().cloned(),
        raw: other.raw,
        received_at: SystemTime::now(),
        reason: "undecodable",
        error: "no".to_owned(),
        replayed: false,
    })));
    delivery.take(Item::Keepalive("04".parse().unwrap(), SystemTime::now()));
    rest(&mut delivery).await;
    assert_eq!(delivery.tracker.advance().events, 3);
    assert_eq!(
        open(&delivery).await,
        [
            "older:01:r log alone",
            "a:02:r log part:t:a",
            "b:03:s log part:transaction:t:b:03:s"
        ]
    );
}

#[tokio::test]
async fn a_transaction_parks_behind_a_letter_that_holds_no_more_than_its_later_events() {
    let (mut delivery, _kept) = refusing().await;
    let at = |mut event: Event, commit_timestamp: i64| {
        let header = event.decoded.header.as_deref_mut().unwrap();
        header.commit_timestamp = commit_timestamp;
        event
    };
    // The bus has forgotten it; the commit times tell so when the second event comes.
    let old = at(event("old", "01", "s", "o"), 1_000);
    parked_before(&mut delivery, &[of_unit(&old, "o")]).await;
    for (name, place, record) in [("a", "02", "r"), ("b", "03", "s")] {
        let event = at(event(name, place, record, "t"), 2_000);
        delivery.take(Item::Event(Arc::new(event)));
    }
    let next = event("c", "04", "u", "u");
    delivery.take(Item::Event(Arc::new(next)));
    delivery.call_handlers();
    assert_eq!(delivery.with_handlers.len(), 0, "nothing is handed over");
    rest(&mut delivery).await;
    let store = delivery.store.clone();
    let open = store.open_letters(&delivery.lease).await.unwrap();
    let reasons: Vec<&str> = open.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["rejected", "parked_behind", "parked_behind"]);
}

#[tokio::test]
async fn where_one_letter_of_a_transaction_moves_behind_an_older_event_all_of_it_does_in_its_order()
{
    let (mut delivery, _kept) = refusing().await;
    let older = event("older", "01", "s", "o");
    let unit = [
        event("a", "02", "r", "t"),
        event("b", "03", "s", "t"),
        event("c", "04", "u", "t"),
    ];
    // Before a restart these were parked, and the older one was not.
    let letters = unit.clone().map(|event| of_unit(&event, "t"));
    parked_before(&mut delivery, &letters).await;
    for event in [older].into_iter().chain(unit) {
        delivery.take(Item::Event(Arc::new(event)));
    }
    delivery.take(Item::Keepalive("05".parse().unwrap(), SystemTime::now()));
    rest(&mut delivery).await;
    assert_eq!(delivery.tracker.advance().events, 4);
    assert_eq!(
        open(&delivery).await,
        [
            "older:01:s log alone",
            "a:02:r log transaction:t",
            "b:03:s log transaction:t",
            "c:04:u log transaction:t"
        ]
    );
}
