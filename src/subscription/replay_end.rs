//! Where a side replay ends (design 3.1, rule 13). Replay IDs are opaque, so that it has caught up with the
//! live stream is known only by meeting it: one stream brings what the other has brought. Pure.

use std::collections::{HashSet, VecDeque};
use std::time::SystemTime;

use crate::event::ReplayId;

/// Replay IDs that are remembered until the live stream has brought its first event: with more between
/// the two, the replay is ahead by so many events that the quiet of a keepalive ends it.
const REMEMBERED: usize = 10_000;

/// What to do with an event that a side replay brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Hand it over.
    Take,
    /// Hand it over; there is nothing after it.
    TakeLast,
    /// It is not part of the replay, nor is what follows.
    Over,
}

/// What a side replay is compared with.
#[derive(Debug, Default)]
pub(super) struct ReplayEnd {
    /// Several events may carry one replay ID.
    channel: bool,
    /// It ends with any of these: what was asked for, and where the live stream stood when it began.
    last: Vec<ReplayId>,
    /// It ends before what was committed after this.
    to_time: Option<SystemTime>,
    /// It ends before this: from there on the live stream hands everything over by itself.
    before: Option<ReplayId>,
    /// One of `last` has come; what follows under it is part of the replay.
    reached: Option<ReplayId>,
    first: Option<ReplayId>,
    /// What came lately, while `before` is not known.
    seen: HashSet<ReplayId>,
    seen_in_order: VecDeque<ReplayId>,
}

impl ReplayEnd {
    pub(super) fn new(channel: bool, to_time: Option<SystemTime>) -> Self {
        Self {
            channel,
            to_time,
            ..Self::default()
        }
    }

    /// It ends with this one, if it comes.
    pub(super) fn ends_with(&mut self, id: ReplayId) {
        if !self.last.contains(&id) {
            self.last.push(id);
        }
    }

    /// It ends before this one, if it comes.
    pub(super) fn ends_before(&mut self, id: ReplayId) {
        self.before = Some(id);
    }

    /// Places that it ends with.
    pub(super) fn last(&self) -> &[ReplayId] {
        &self.last
    }

    /// The place that it ends before, once that is known.
    pub(super) fn before(&self) -> Option<&ReplayId> {
        self.before.as_ref()
    }

    /// True where it would begin at its end.
    pub(super) fn is_at(&self, place: &ReplayId) -> bool {
        self.last.contains(place)
    }

    /// The replay brought an event.
    pub(super) fn sees(
        &mut self,
        id: Option<&ReplayId>,
        committed_at: Option<SystemTime>,
    ) -> Sight {
        let late = |to| committed_at.is_some_and(|at| at > to);
        if self.to_time.is_some_and(late) {
            return Sight::Over;
        }
        let Some(id) = id else { return Sight::Take };
        if self.before.as_ref() == Some(id) {
            return Sight::Over;
        }
        if self.reached.as_ref().is_some_and(|reached| reached != id) {
            return Sight::Over;
        }
        self.first.get_or_insert_with(|| id.clone());
        if self.before.is_none() {
            self.remember(id);
        }
        if !self.last.contains(id) {
            return Sight::Take;
        }
        self.reached = Some(id.clone());
        if self.channel {
            Sight::Take
        } else {
            Sight::TakeLast
        }
    }

    /// The live stream brought an event, and from here on hands everything over by itself. True where the replay has had
    /// it already: they have met.
    pub(super) fn live_brought(&mut self, id: &ReplayId) -> bool {
        let met = self.seen.contains(id) || self.first.as_ref() == Some(id);
        if self.before.is_none() {
            self.before = Some(id.clone());
            self.seen = HashSet::new();
            self.seen_in_order = VecDeque::new();
        }
        met
    }

    fn remember(&mut self, id: &ReplayId) {
        if self.seen.insert(id.clone()) {
            self.seen_in_order.push_back(id.clone());
        }
        if self.seen_in_order.len() > REMEMBERED
            && let Some(oldest) = self.seen_in_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(n: u32) -> ReplayId {
        format!("{n:08x}").parse().unwrap()
    }

    fn see(end: &mut ReplayEnd, n: u32) -> Sight {
        end.sees(Some(&id(n)), None)
    }

    #[test]
    fn it_ends_with_the_place_that_was_asked_for() {
        let mut end = ReplayEnd::new(false, None);
        end.ends_with(id(2));
        assert_eq!(see(&mut end, 1), Sight::Take);
        assert_eq!(see(&mut end, 2), Sight::TakeLast);
        assert!(end.is_at(&id(2)) && !end.is_at(&id(1)));
    }

    #[test]
    fn on_a_channel_everything_under_the_last_replay_id_is_part_of_it() {
        let mut end = ReplayEnd::new(true, None);
        end.ends_with(id(2));
        for n in [1, 2, 2] {
            assert_eq!(see(&mut end, n), Sight::Take);
        }
        assert_eq!(end.sees(None, None), Sight::Take);
        assert_eq!(see(&mut end, 3), Sight::Over);
    }

    #[test]
    fn it_ends_before_what_was_committed_later() {
        let to = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        let mut end = ReplayEnd::new(false, Some(to));
        assert_eq!(end.sees(Some(&id(1)), Some(to)), Sight::Take);
        let late = to + Duration::from_millis(1);
        assert_eq!(end.sees(Some(&id(2)), Some(late)), Sight::Over);
    }

    #[test]
    fn it_ends_where_the_live_stream_began_to_hand_over_by_itself() {
        let mut end = ReplayEnd::new(false, None);
        assert_eq!(see(&mut end, 1), Sight::Take);
        assert!(!end.live_brought(&id(7)));
        assert!(!end.live_brought(&id(8)));
        assert_eq!(end.before(), Some(&id(7)));
        assert_eq!(see(&mut end, 6), Sight::Take);
        assert_eq!(see(&mut end, 7), Sight::Over);
    }

    #[test]
    fn a_replay_that_is_ahead_by_a_hair_is_met_by_the_live_stream() {
        let mut end = ReplayEnd::new(false, None);
        for n in [6, 7, 8] {
            assert_eq!(see(&mut end, n), Sight::Take);
        }
        assert!(end.live_brought(&id(7)), "had already");
    }

    #[test]
    fn a_replay_that_begins_ahead_of_the_live_stream_is_met_at_its_first_event() {
        let mut end = ReplayEnd::new(false, None);
        end.ends_before(id(3));
        for n in [6, 7] {
            assert_eq!(see(&mut end, n), Sight::Take);
        }
        assert!(!end.live_brought(&id(4)));
        assert!(end.live_brought(&id(6)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut end = ReplayEnd::new(false, None);
        for n in 0..u32::try_from(2 * REMEMBERED).unwrap() {
            assert_eq!(see(&mut end, n), Sight::Take);
        }
        assert_eq!(end.seen.len(), REMEMBERED);
        assert_eq!(end.seen_in_order.len(), REMEMBERED);
    }
}
