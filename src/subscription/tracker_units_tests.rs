//! Units: the position rests at the end of one and nowhere else (design 3.1, rule 14).

use proptest::prelude::*;

use super::tests::{NOON, ahead, event, id};
use super::*;

#[test]
fn the_position_rests_at_the_last_event_of_a_unit_and_at_none_before() {
    let mut tracker = Tracker::new(false, 1);
    let of = |name: &str| Tracked {
        transaction: Some("t".into()),
        ..event(name)
    };
    let before = tracker.push_event(event("before"), Some(id(1)), 0);
    let a = tracker.push_event(of("a"), Some(id(2)), 1);
    tracker.open_from(Some(a));
    tracker.finish(before, 1);
    assert_eq!(tracker.advance().events, 1, "the unit is not whole yet");
    assert!(tracker.is_first(a));
    let b = tracker.push_event(of("b"), Some(id(3)), 0);
    tracker.join(a, 2);
    tracker.open_from(None);
    tracker.push_event(event("after"), Some(id(4)), 0);
    tracker.advance();
    assert_eq!(tracker.position(), Some(&id(1)));
    assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
    tracker.finish(b, 1);
    tracker.advance();
    assert_eq!(tracker.position(), Some(&id(3)));
    assert_eq!(tracker.transaction(), Some("t"));
    assert_eq!(ahead(&tracker), []);
}

#[test]
fn on_a_channel_the_position_remembers_the_transaction_of_an_id_that_was_completed_later() {
    let mut tracker = Tracker::new(true, 1);
    let of = |name: &str| Tracked {
        transaction: Some("t".into()),
        ..event(name)
    };
    let a = tracker.push_event(of("a"), Some(id(2)), 0);
    tracker.finish(a, 1);
    tracker.advance();
    tracker.push_event(event("b"), Some(id(3)), 0);
    assert_eq!(tracker.position(), Some(&id(2)));
    assert_eq!(tracker.transaction(), Some("t"));
    tracker.finish(1, 1);
    tracker.push_keepalive(id(4), NOON);
    tracker.advance();
    assert_eq!(tracker.transaction(), None);
}

proptest! {
    /// Units one after the other, the last of them open: the position is at the last event of one, all
    /// events up to there are finished, and what is finished above it is remembered.
    #[test]
    fn the_position_is_never_inside_a_unit(
        channel: bool,
        sizes in proptest::collection::vec(1usize..5, 1..12),
        finish in proptest::collection::vec((0usize..40, 0u32..2), 0..120),
    ) {
        let mut tracker = Tracker::new(channel, 2);
        let mut finished: Vec<HandlerSet> = Vec::new();
        let mut finish = finish.into_iter();
        let mut ends = vec![0];
        for size in sizes {
            let first = finished.len();
            for _ in 0..size {
                let seq = finished.len();
                tracker.push_event(event(&format!("e{seq}")), Some(id(seq as u64 + 1)), 0);
                finished.push(0);
                tracker.open_from(Some(first as Seq));
                for (which, handler) in finish.by_ref().take(3) {
                    if let Some(set) = finished.get_mut(which) {
                        *set |= 1 << handler;
                        tracker.finish(which as Seq, 1 << handler);
                    }
                }
                tracker.advance();
                let position = tracker.position().map_or(0, |p| {
                    u64::from_be_bytes(p.as_bytes()[2..10].try_into().unwrap()) as usize
                });
                prop_assert!(ends.contains(&position), "{} is inside", position);
                prop_assert!(finished[..position].iter().all(|set| *set == 0b11));
                let expected: Vec<_> = (position..finished.len())
                    .filter(|at| finished[*at] != 0)
                    .map(|at| (format!("e{at}"), finished[at]))
                    .collect();
                prop_assert_eq!(ahead(&tracker), expected);
            }
            tracker.join(first as Seq, size);
            tracker.open_from(None);
            ends.push(first + size);
        }
    }
}
