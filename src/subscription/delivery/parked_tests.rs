//! Letters of transactions whose events the stream brings once more.

use async_trait::async_trait;

use super::settled_tests::event;
use super::testing::{Begin, begin};
use super::*;
use crate::event::Event;
use crate::handler::{Answer, BatchAnswer, EventBatch};
use crate::store::DeadLetter;
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

#[tokio::test]
async fn where_one_letter_of_a_transaction_moves_behind_an_older_event_all_of_it_does_in_its_order()
{
    let begins = Begin {
        handler: Some(Arc::new(Refusing)),
        groups: true,
        ..Begin::default()
    };
    let (mut delivery, _kept) = begin(begins, None, &CancellationToken::new()).await;
    let older = event("older", "01", "s", "o");
    let unit = [
        event("a", "02", "r", "t"),
        event("b", "03", "s", "t"),
        event("c", "04", "u", "t"),
    ];
    let (store, lease) = (delivery.store.clone(), delivery.lease.clone());
    // Before a restart these were parked, and the older one was not.
    let letters = unit.clone().map(|event| of_unit(&event, "t"));
    store.park_before(&lease, &letters, &[]).await.unwrap();
    for summary in store.open_letters(&lease).await.unwrap() {
        let records = delivery.letters.holding.records(&summary.record_ids);
        delivery.letters.held.load(summary, records, true);
    }
    for event in [older].into_iter().chain(unit) {
        delivery.take(Item::Event(Arc::new(event)));
    }
    delivery.take(Item::Keepalive("05".parse().unwrap(), SystemTime::now()));
    rest(&mut delivery).await;
    assert_eq!(delivery.tracker.advance().events, 4);
    let open = store.open_letters(&lease).await.unwrap();
    let order: Vec<&str> = open.iter().map(|letter| letter.identity.as_str()).collect();
    assert_eq!(order, ["older:01:s", "a:02:r", "b:03:s", "c:04:u"]);
}
