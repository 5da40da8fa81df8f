//! How long events spend on the legs of their way, once they are received: until a handler is given them, until all
//! handlers are done with them, and until a position that has passed them is stored. Pure: time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::tracker::Seq;

/// Events that the position has not passed in the store are remembered in so many groups. While the store is away
/// their number has no bound: groups grow together then, and the times within one become their mean.
const MAX_GROUPS: usize = 1024;

/// Finished as near to each other as this, neighbours are one group.
const NEAR: Duration = Duration::from_millis(2);

/// One event of which not everything is known yet.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// When a handler was first given it.
    handed_over: Option<Instant>,
    finished: Option<Instant>,
}

/// Neighbours that are finished and not passed by the position in the store.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The place behind the last of them.
    to: Seq,
    count: u64,
    /// When they were finished: the mean, in seconds since `Legs::began`.
    finished: f64,
}

/// The events of one subscription under one epoch.
#[derive(Debug)]
pub(super) struct Legs {
    began: Instant,
    /// The place of the first way.
    first: Seq,
    /// None for keepalives, and for events that were finished before they came.
    ways: VecDeque<Way>,
    unstored: VecDeque<Group>,
}

impl Legs {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            first: 0,
            ways: VecDeque::new(),
            unstored: VecDeque::new(),
        }
    }

    /// The event of this place is given to a handler. True where it is the first that is.
    pub(super) fn handed_over(&mut self, seq: Seq, now: Instant) -> bool {
        let Some(way) = self.way(seq) else {
            return false;
        };
        let is_first = way.handed_over.is_none();
        way.handed_over.get_or_insert(now);
        is_first
    }

    /// All handlers are done with the event of this place. Gives how long that took from the first hand-over, where
    /// there was one.
    pub(super) fn finished(&mut self, seq: Seq, now: Instant) -> Option<Duration> {
        let way = self.way(seq)?;
        way.finished = Some(now);
        Some(now.duration_since(way.handed_over?))
    }

    /// Everything before this place is finished and let go.
    pub(super) fn let_go(&mut self, low_water: Seq) {
        while self.first < low_water {
            let way = self.ways.pop_front();
            self.first = if way.is_some() {
                self.first + 1
            } else {
                low_water
            };
            if let Some(finished) = way.and_then(|way| way.finished) {
                self.wait_for_store(self.first, finished);
            }
        }
    }

    fn wait_for_store(&mut self, to: Seq, finished: Instant) {
        let finished = finished.duration_since(self.began).as_secs_f64();
        if let Some(last) = self.unstored.back_mut()
            && (finished - last.finished).abs() <= NEAR.as_secs_f64()
        {
            last.absorb(&Group {
                to,
                count: 1,
                finished,
            });
            return;
        }
        if self.unstored.len() >= MAX_GROUPS {
            self.condense();
        }
        self.unstored.push_back(Group {
            to,
            count: 1,
            finished,
        });
    }

    /// Half as many groups.
    fn condense(&mut self) {
        let mut condensed = VecDeque::with_capacity(MAX_GROUPS);
        while let Some(mut group) = self.unstored.pop_front() {
            if let Some(next) = self.unstored.pop_front() {
                group.absorb(&next);
            }
            condensed.push_back(group);
        }
        self.unstored = condensed;
    }

    /// The store has a position that has passed everything before this place. Gives how many events waited for that
    /// for how long.
    pub(super) fn stored(
        &mut self,
        passed_to: Seq,
        now: Instant,
    ) -> impl Iterator<Item = (u64, Duration)> {
        let now = now.duration_since(self.began).as_secs_f64();
        std::iter::from_fn(move || {
            // A group of which the position has passed a part waits for the rest.
            let group = self.unstored.pop_front_if(|group| group.to <= passed_to)?;
            let waited = Duration::try_from_secs_f64(now - group.finished).unwrap_or_default();
            Some((group.count, waited))
        })
    }

    fn way(&mut self, seq: Seq) -> Option<&mut Way> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        if index >= self.ways.len() {
            self.ways.resize_with(index + 1, Way::default);
        }
        self.ways.get_mut(index)
    }
}

impl Group {
    #[expect(clippy::cast_precision_loss, reason = "a mean of durations")]
    fn absorb(&mut self, next: &Self) {
        let count = self.count + next.count;
        self.finished += (next.finished - self.finished) * (next.count as f64 / count as f64);
        self.count = count;
        self.to = next.to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn stored(legs: &mut Legs, to: Seq, now: Instant) -> Vec<(u64, u128)> {
        legs.stored(to, now)
            .map(|(count, waited)| (count, (waited + MS / 2).as_millis()))
            .collect()
    }

    #[test]
    fn an_event_is_timed_from_its_first_hand_over_to_its_last_handler_to_the_store() {
        let t = Instant::now();
        let mut legs = Legs::new(t);
        assert!(legs.handed_over(0, t + 10 * MS));
        assert!(!legs.handed_over(0, t + 20 * MS), "another handler's");
        assert_eq!(legs.finished(0, t + 40 * MS), Some(30 * MS));
        legs.let_go(1);
        assert_eq!(stored(&mut legs, 0, t + 50 * MS), []);
        assert_eq!(stored(&mut legs, 1, t + 100 * MS), [(1, 60)]);
        assert_eq!(stored(&mut legs, 1, t + 200 * MS), []);
        assert_eq!(legs.finished(0, t + 300 * MS), None, "it is let go");
    }

    #[test]
    fn keepalives_and_what_was_finished_before_a_restart_are_not_timed() {
        let t = Instant::now();
        let mut legs = Legs::new(t);
        // 0 is a keepalive, 1 an event, 2 finished before, 3 filtered or parked on arrival.
        assert!(legs.handed_over(1, t));
        legs.finished(1, t + MS);
        assert_eq!(legs.finished(3, t + 50 * MS), None);
        legs.let_go(6);
        assert_eq!(legs.first, 6);
        assert_eq!(stored(&mut legs, 6, t + 101 * MS), [(1, 100), (1, 51)]);
    }

    #[test]
    fn what_was_finished_ahead_waits_from_then_on() {
        let t = Instant::now();
        let mut legs = Legs::new(t);
        legs.finished(1, t);
        legs.finished(0, t + 500 * MS);
        legs.let_go(2);
        assert_eq!(stored(&mut legs, 2, t + 600 * MS), [(1, 100), (1, 600)]);
    }

    #[test]
    fn however_long_the_store_is_away_memory_is_bounded_and_no_event_is_forgotten() {
        let t = Instant::now();
        let mut legs = Legs::new(t);
        let events = 20_000;
        for seq in 0..events {
            let now = t + 10 * MS * u32::try_from(seq).unwrap();
            legs.handed_over(seq, now);
            legs.finished(seq, now);
            legs.let_go(seq + 1);
            assert!(legs.unstored.len() <= MAX_GROUPS && legs.ways.len() <= 1);
        }
        let now = t + Duration::from_secs(200);
        let all: Vec<_> = legs.stored(events, now).collect();
        assert_eq!(all.iter().map(|(count, _)| count).sum::<u64>(), events);
        let sum: f64 = all
            .iter()
            .map(|(count, waited)| *count as f64 * waited.as_secs_f64())
            .sum();
        // 10 ms, 20 ms, … up to 200 s.
        let wanted = 0.01 * (events * (events + 1) / 2) as f64;
        assert!((sum - wanted).abs() < 1.0, "{sum} {wanted}");
    }
}
