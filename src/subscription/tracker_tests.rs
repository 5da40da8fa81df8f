//! How far everything is finished.

use proptest::prelude::*;

use super::*;

pub(super) fn id(n: u64) -> ReplayId {
    format!("{n:020x}").parse().unwrap()
}

pub(super) const NOON: SystemTime = SystemTime::UNIX_EPOCH;

pub(super) fn event(name: &str) -> Tracked {
    Tracked {
        identity: Identity::Is(EventIdentity::from_stored(name)),
        occurred_at: SystemTime::UNIX_EPOCH,
        size: 10,
        transaction: None,
    }
}

pub(super) fn ahead(tracker: &Tracker) -> Vec<(String, HandlerSet)> {
    tracker
        .finished_ahead()
        .map(|(identity, handlers)| (identity.to_string(), handlers))
        .collect()
}

#[test]
fn the_position_moves_only_over_an_unbroken_run_of_finished_events() {
    let mut tracker = Tracker::new(false, 1);
    let a = tracker.push_event(event("a"), Some(id(1)), 0);
    let b = tracker.push_event(event("b"), Some(id(2)), 0);
    assert!(tracker.finish(b, 1));
    assert_eq!(tracker.advance(), Passed::default());
    assert_eq!(tracker.position(), None);
    assert_eq!(ahead(&tracker), [("b".to_owned(), 1)]);
    assert!(tracker.finish(a, 1));
    assert_eq!(tracker.advance().events, 2);
    assert_eq!(tracker.position(), Some(&id(2)));
    assert_eq!(ahead(&tracker), []);
    assert!(tracker.is_idle());
}

#[test]
fn an_event_is_finished_when_every_handler_has_finished_it() {
    let mut tracker = Tracker::new(false, 2);
    let a = tracker.push_event(event("a"), Some(id(1)), 0);
    assert!(!tracker.finish(a, 0b01));
    assert!(!tracker.finish(a, 0b01), "twice the same handler is once");
    assert_eq!(ahead(&tracker), [("a".to_owned(), 0b01)]);
    assert!(tracker.finish(a, 0b10));
}

#[test]
fn an_event_that_nobody_wants_is_finished_and_leaves_no_marks() {
    let mut tracker = Tracker::new(false, 2);
    let a = tracker.push_event(event("a"), Some(id(1)), 0);
    assert!(!tracker.leave_out(a, 0));
    let b = tracker.push_event(event("b"), Some(id(2)), 0);
    assert!(!tracker.leave_out(b, 0b01));
    let c = tracker.push_event(event("c"), Some(id(3)), 0);
    assert!(tracker.leave_out(c, 0b11));
    assert_eq!(tracker.finished_ahead().count(), 0);
    assert!(tracker.finish(b, 0b10));
    let marks: Vec<HandlerSet> = tracker.finished_ahead().map(|(_, set)| set).collect();
    assert_eq!(marks, [0b10], "of those that have handled it");
    assert!(tracker.finish(a, 0b11));
    assert_eq!(tracker.advance().events, 3);
    assert_eq!(tracker.position(), Some(&id(3)));
}

#[test]
fn what_a_handler_had_finished_before_a_restart_stays_finished() {
    let mut tracker = Tracker::new(false, 2);
    let a = tracker.push_event(event("a"), Some(id(1)), 0b10);
    assert!(tracker.finish(a, 0b01));
    tracker.push_event(event("b"), Some(id(2)), 0b11);
    assert_eq!(tracker.advance().events, 2);
    assert_eq!(tracker.position(), Some(&id(2)));
}

#[test]
fn a_keepalive_becomes_the_position_when_all_before_it_is_finished() {
    let mut tracker = Tracker::new(false, 1);
    let a = tracker.push_event(event("a"), Some(id(1)), 0);
    tracker.push_keepalive(id(9), NOON);
    tracker.advance();
    assert_eq!(tracker.position(), None);
    tracker.finish(a, 1);
    assert_eq!(tracker.advance().events, 1);
    assert_eq!(tracker.position(), Some(&id(9)));
}

#[test]
fn on_a_channel_a_replay_id_is_complete_once_a_different_one_follows() {
    let mut tracker = Tracker::new(true, 1);
    let a = tracker.push_event(event("a"), Some(id(5)), 0);
    tracker.finish(a, 1);
    assert_eq!(tracker.advance().events, 1);
    assert_eq!(tracker.position(), None, "a sibling may follow");
    assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
    let b = tracker.push_event(event("b"), Some(id(5)), 0);
    tracker.finish(b, 1);
    tracker.advance();
    assert_eq!(tracker.position(), None);
    assert_eq!(tracker.incomplete_events().len(), 2);
    tracker.push_event(event("c"), Some(id(6)), 0);
    assert_eq!(tracker.position(), Some(&id(5)));
    assert_eq!(ahead(&tracker), []);
    assert_eq!(tracker.incomplete_events().len(), 1);
}

#[test]
fn on_a_channel_a_keepalive_completes_what_came_before() {
    let mut tracker = Tracker::new(true, 1);
    let a = tracker.push_event(event("a"), Some(id(5)), 0);
    let b = tracker.push_event(event("b"), Some(id(5)), 0);
    tracker.finish(a, 1);
    tracker.advance();
    tracker.push_keepalive(id(7), NOON);
    tracker.advance();
    assert_eq!(tracker.position(), None, "b is unfinished");
    assert!(tracker.incomplete_events().is_empty());
    tracker.finish(b, 1);
    tracker.advance();
    assert_eq!(tracker.position(), Some(&id(7)));
}

#[test]
fn the_position_never_rests_on_an_event_without_a_replay_id() {
    let mut tracker = Tracker::new(false, 1);
    let a = tracker.push_event(event("a"), None, 0);
    tracker.finish(a, 1);
    assert_eq!(tracker.advance().events, 1);
    assert_eq!(tracker.position(), None);
    assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
    let b = tracker.push_event(event("b"), Some(id(1)), 0);
    tracker.finish(b, 1);
    tracker.advance();
    assert_eq!(tracker.position(), Some(&id(1)));
    assert_eq!(ahead(&tracker), []);
}

#[test]
fn a_pinned_event_keeps_the_position_before_it_although_it_is_finished() {
    let mut tracker = Tracker::new(false, 1);
    let a = tracker.push_event(event("a"), Some(id(1)), 0);
    tracker.pin(a);
    tracker.pin(a);
    assert!(tracker.finish(a, 1));
    tracker.unpin(a);
    assert_eq!(tracker.advance(), Passed::default());
    assert_eq!(ahead(&tracker), [("a".to_owned(), 1)]);
    tracker.unpin(a);
    assert_eq!(tracker.advance().events, 1);
    assert_eq!(tracker.position(), Some(&id(1)));
    tracker.unpin(a);
    tracker.pin(a);
}

#[test]
fn the_position_carries_the_time_of_its_event_or_keepalive() {
    let at = |seconds| NOON + std::time::Duration::from_secs(seconds);
    let occurred = |name, seconds| Tracked {
        occurred_at: at(seconds),
        ..event(name)
    };
    for channel in [false, true] {
        let mut tracker = Tracker::new(channel, 1);
        let a = tracker.push_event(occurred("a", 5), Some(id(1)), 0);
        tracker.finish(a, 1);
        tracker.advance();
        tracker.push_event(occurred("b", 6), Some(id(2)), 0);
        assert_eq!(tracker.position_time(), Some(at(5)), "{channel}");
        tracker.finish(a + 1, 1);
        tracker.advance();
        tracker.push_keepalive(id(3), at(9));
        tracker.advance();
        assert_eq!(tracker.position_time(), Some(at(9)), "{channel}");
        tracker.push_keepalive(id(3), at(99));
        tracker.advance();
        assert_eq!(tracker.position_time(), Some(at(9)), "the same place");
    }
}

#[test]
fn places_that_the_bus_has_forgotten_never_become_the_position() {
    for channel in [false, true] {
        let mut tracker = Tracker::new(channel, 1);
        let a = tracker.push_event(event("a"), Some(id(1)), 0);
        let b = tracker.push_event(event("b"), Some(id(2)), 0);
        tracker.finish(a, 1);
        tracker.advance();
        tracker.forget_places();
        assert_eq!(tracker.position(), None);
        // Still on its way through the decoder.
        let c = tracker.push_event(event("c"), Some(id(3)), 0);
        tracker.push_keepalive(id(4), NOON);
        tracker.finish(b, 1);
        tracker.finish(c, 1);
        assert_eq!(tracker.advance().events, 2);
        assert_eq!(tracker.position(), None, "{channel}");
        assert_eq!(tracker.finished_ahead().count(), 2);
        tracker.knows_places();
        let d = tracker.push_event(event("d"), Some(id(1)), 0);
        tracker.finish(d, 1);
        tracker.push_keepalive(id(2), NOON);
        tracker.advance();
        assert_eq!(tracker.position(), Some(&id(2)));
        assert_eq!(tracker.finished_ahead().count(), 0);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Event { new_id: bool },
    Keepalive,
    Finish { which: usize, handler: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<bool>().prop_map(|new_id| Step::Event { new_id }),
        Just(Step::Keepalive),
        (0usize..64, 0u32..2).prop_map(|(which, handler)| Step::Finish { which, handler }),
        (0usize..64, 0u32..2).prop_map(|(which, handler)| Step::Finish { which, handler }),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// Against a plain list of everything received: the position is the newest replay ID such that
    /// all events at or before it are finished and, on a channel, something has followed it; and
    /// whatever is finished above it is remembered.
    #[test]
    fn nothing_unfinished_is_ever_at_or_below_the_position(channel: bool, steps in steps()) {
        let mut tracker = Tracker::new(channel, 2);
        let mut events: Vec<(Seq, u64, HandlerSet)> = Vec::new();
        let mut completed = 0;
        let mut now = 1;
        for step in steps {
            match step {
                Step::Event { new_id } => {
                    // Only a channel repeats a replay ID.
                    if new_id || !channel {
                        now += 1;
                    }
                    // A keepalive before it carried `now`, and the bus never goes back to it.
                    if completed >= now {
                        now = completed + 1;
                    }
                    if channel {
                        completed = completed.max(now - 1);
                    } else {
                        completed = now;
                    }
                    let seq = tracker.push_event(event(&format!("e{}", events.len())), Some(id(now)), 0);
                    events.push((seq, now, 0));
                }
                Step::Keepalive => {
                    now += 1;
                    completed = now;
                    tracker.push_keepalive(id(now), NOON);
                }
                Step::Finish { which, handler } => {
                    if let Some((seq, _, finished)) = events.get_mut(which) {
                        *finished |= 1 << handler;
                        tracker.finish(*seq, 1 << handler);
                    }
                }
            }
            tracker.advance();
            let position = tracker.position().map_or(0, |p| {
                u64::from_be_bytes(p.as_bytes()[2..10].try_into().unwrap())
            });
            prop_assert!(position <= completed, "{} is not complete yet", position);
            for (_, at, finished) in &events {
                if *at <= position {
                    prop_assert_eq!(*finished, 0b11, "{} was passed unfinished", at);
                }
            }
            let expected: Vec<_> = events.iter().enumerate()
                .filter(|(_, (_, at, finished))| *at > position && *finished != 0)
                .map(|(i, (_, _, finished))| (format!("e{i}"), *finished))
                .collect();
            prop_assert_eq!(ahead(&tracker), expected);
            let unfinished = events.iter().filter(|(_, _, f)| *f != 0b11).count();
            prop_assert_eq!(tracker.is_idle(), unfinished == 0);
            prop_assert!(tracker.in_flight() <= events.len());
        }
    }
}

#[test]
fn the_newest_event_at_or_below_the_position_is_known_although_a_keepalive_moved_it_on() {
    for channel in [false, true] {
        let mut tracker = Tracker::new(channel, 1);
        tracker.push_keepalive(id(1), NOON);
        tracker.advance();
        assert_eq!(
            (tracker.position(), tracker.position_event()),
            (Some(&id(1)), None)
        );
        let a = tracker.push_event(event("a"), Some(id(2)), 0);
        tracker.push_keepalive(id(5), NOON);
        let b = tracker.push_event(event("b"), Some(id(6)), 0);
        tracker.finish(b, 1);
        tracker.advance();
        assert_eq!(tracker.position_event(), None, "it is not finished");
        tracker.finish(a, 1);
        tracker.advance();
        tracker.push_keepalive(id(9), NOON);
        tracker.advance();
        assert_eq!(tracker.position(), Some(&id(9)));
        assert_eq!(tracker.position_event(), Some(&id(6)));
        tracker.forget_places();
        assert_eq!(tracker.position_event(), None);
    }
}
