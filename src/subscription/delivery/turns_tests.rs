//! A delivery by itself: that it rests while there is nothing that it may do, and looks where it has to.

use std::sync::atomic::Ordering::Relaxed;

use super::testing::{Begin, Kept, begin, summary};
use super::*;
use crate::event::EventIdentity;
use crate::subscription::lanes::Records;
use crate::subscription::letter_loader::LoadedLetter;
use crate::subscription::parking::Done;
use crate::subscription::sleepless::Moment;

/// A delivery without handlers, whose stream brings nothing, and what has to outlive it.
async fn delivery(lease_until: Option<Moment>, stop: &CancellationToken) -> (Delivery, Kept) {
    begin(Begin::default(), lease_until, stop).await
}

/// Turns of the loop within a second and a half, letters being due to be looked at all the while.
async fn turns(mut delivery: Delivery) -> usize {
    delivery.letters.put_off([1]);
    let turns = delivery.turns.clone();
    // Until an item comes, which none does, nothing is drained.
    let (_items, coming) = mpsc::unbounded_channel();
    let limit = Duration::from_millis(1500);
    let ended = tokio::time::timeout(limit, Box::pin(delivery.run(coming))).await;
    assert!(ended.is_err(), "{ended:?}");
    turns.load(Relaxed)
}

#[tokio::test]
async fn while_no_letter_may_be_tried_the_delivery_does_not_turn_for_those_that_wait() {
    let now = Moment::now();
    let stopped = CancellationToken::new();
    stopped.cancel();
    for (until, stop) in [
        (None, CancellationToken::new()),
        (Some(now), CancellationToken::new()),
        (None, stopped),
    ] {
        let lapsed = until.is_some();
        let stops = stop.is_cancelled();
        let (delivery, _kept) = delivery(until, &stop).await;
        let turns = turns(delivery).await;
        assert!(
            turns < 50,
            "{turns} turns; lapsed {lapsed}, stopping {stops}"
        );
    }
}

#[tokio::test]
async fn a_letter_that_turns_out_to_be_settled_has_the_store_looked_at() {
    let stop = CancellationToken::new();
    let (mut delivery, _kept) = delivery(None, &stop).await;
    // What the store says of the first look, at the beginning.
    let one = summary(EventIdentity::from_stored("a"), 7);
    for lost in [true, false] {
        let ticket = delivery
            .letters
            .held
            .load(one.clone(), Records::new(), false);
        let ticket = ticket.unwrap();
        if lost {
            // Passed on, without an answer, and once more.
            delivery.letters_written(Done::PassedOn(vec![(ticket, 7)], None));
        } else {
            delivery.letters_loaded(Ok(vec![LoadedLetter::Gone(vec![ticket])]));
        }
        delivery.follow_letters();
        let looked = delivery.letters.parking.done().await.unwrap();
        assert!(matches!(looked, Done::Looked(_)), "{lost}");
        delivery.letters_written(looked);
        assert!(delivery.letters.held.is_empty(), "{lost}");
        delivery.follow_letters();
        let counted = delivery.letters.parking.done().await.unwrap();
        assert!(matches!(counted, Done::Counted { .. }), "{lost}");
    }
}
