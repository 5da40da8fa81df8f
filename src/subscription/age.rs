//! How near the position is to leaving the time for which the bus keeps events: said before it is lost.

use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::observe;
use crate::event::rfc3339;
use crate::store::{SubscriptionKey, SubscriptionStatus};

/// How often a person is told at most.
const TELL_AGAIN: Duration = Duration::from_secs(3600);

/// Watches the age of the place from which a restart would resume.
#[derive(Debug)]
pub(crate) struct PositionAge {
    /// How long the bus keeps an event.
    retention: Duration,
    /// How long before its end a person is told.
    warning: Duration,
    /// When the stored position was committed or received, until this process has one of its own.
    stored: Option<SystemTime>,
    told_at: Option<Instant>,
}

/// How long a place is still kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// When it leaves the bus.
    pub(crate) until: SystemTime,
    /// How long that is from now; `None` where it is over.
    pub(crate) left: Option<Duration>,
    /// How long ago it was over.
    pub(crate) gone: Duration,
}

impl Kept {
    /// Of an event or keepalive of this time.
    pub(crate) fn of(place: SystemTime, retention: Duration, now: SystemTime) -> Self {
        // A time that no clock can hold is as good as one in the far future.
        let until = place.min(now).checked_add(retention).unwrap_or(now);
        Self {
            until,
            left: until
                .duration_since(now)
                .ok()
                .filter(|left| !left.is_zero()),
            gone: now.duration_since(until).unwrap_or_default(),
        }
    }

    /// How many seconds are left; below zero, how many it is over.
    fn seconds(&self) -> f64 {
        self.left
            .map_or(-self.gone.as_secs_f64(), |left| left.as_secs_f64())
    }

    /// True where a person should be told.
    pub(crate) fn is_short(&self, warning: Duration) -> bool {
        self.left.is_none_or(|left| left <= warning)
    }
}

impl PositionAge {
    /// `stored` is the time of the stored position.
    pub(crate) fn new(
        (retention, warning): (Duration, Duration),
        stored: Option<SystemTime>,
    ) -> Self {
        Self {
            retention,
            warning,
            stored,
            told_at: None,
        }
    }

    /// The stored position was given up.
    pub(super) fn forget(&mut self) {
        self.stored = None;
    }

    /// Looks at the position's time, or where there is none yet at the oldest event that is not finished, and
    /// tells people where it is short of leaving the bus. Gives how many seconds it is kept from now, less than
    /// none where that is over; `None` where there is nothing to keep.
    pub(super) fn look(
        &mut self,
        position: Option<SystemTime>,
        oldest: Option<SystemTime>,
        key: &SubscriptionKey,
    ) -> Option<f64> {
        let place = position.or(self.stored).or(oldest)?;
        let kept = Kept::of(place, self.retention, SystemTime::now());
        self.tell(&kept, place, key, Instant::now());
        Some(kept.seconds())
    }

    /// Looks at a position that nobody works on, as the store has it.
    pub(crate) fn look_from_afar(&mut self, stored: &SubscriptionStatus) {
        let now = SystemTime::now();
        let since = |then| now.duration_since(then).unwrap_or_default();
        let place = stored.position_time.or(stored.position_at);
        let place = place.filter(|_| stored.position.is_some());
        let kept = place.and_then(|place| self.look(Some(place), None, &stored.key));
        observe::from_afar(&stored.key.name, stored.caught_up_at.map(since), kept);
    }

    /// True where people were told.
    fn tell(
        &mut self,
        kept: &Kept,
        place: SystemTime,
        key: &SubscriptionKey,
        now: Instant,
    ) -> bool {
        if !kept.is_short(self.warning) {
            self.told_at = None;
            return false;
        }
        let lately = |at| now.duration_since(at) < TELL_AGAIN;
        if self.told_at.is_some_and(lately) {
            return false;
        }
        self.told_at = Some(now);
        let (position_time, kept_until) = (rfc3339(place), rfc3339(kept.until));
        match kept.left {
            Some(left) => warn!(
                subscription = key.name,
                topic = %key.topic,
                position_time,
                kept_until,
                left_seconds = left.as_secs(),
                "the position is about to leave the time for which the bus keeps events: unless it moves before, \
                 events after it are lost"
            ),
            None => warn!(
                subscription = key.name,
                topic = %key.topic,
                position_time,
                kept_until,
                "the position is older than the time for which the bus keeps events: events after it may be lost \
                 already"
            ),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::OrgId;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key() -> SubscriptionKey {
        SubscriptionKey {
            org_id: OrgId::parse("00D58000000arpq").unwrap(),
            name: "accounts".to_owned(),
            topic: "Account".parse().unwrap(),
        }
    }

    #[test]
    fn a_position_is_kept_for_so_long_after_its_event_was_committed() {
        let now = SystemTime::now();
        let kept = Kept::of(now - HOUR, 72 * HOUR, now);
        assert_eq!(kept.left, Some(71 * HOUR));
        assert!(!kept.is_short(12 * HOUR) && kept.is_short(71 * HOUR));
        let gone = Kept::of(now - 73 * HOUR, 72 * HOUR, now);
        assert_eq!((gone.left, gone.gone), (None, HOUR));
        assert!(gone.is_short(HOUR));
        // A commit time from the future promises nothing.
        assert_eq!(
            Kept::of(now + 9 * HOUR, 72 * HOUR, now).left,
            Some(72 * HOUR)
        );
    }

    #[test]
    fn people_are_told_once_an_hour_and_anew_after_it_was_well() {
        let mut age = PositionAge::new((72 * HOUR, 12 * HOUR), None);
        let (now, at) = (SystemTime::now(), Instant::now());
        let young = Kept::of(now, age.retention, now);
        let old = Kept::of(now - 61 * HOUR, age.retention, now);
        assert!(!age.tell(&young, now, &key(), at));
        assert!(age.tell(&old, now, &key(), at));
        assert!(!age.tell(&old, now, &key(), at + HOUR - Duration::from_secs(1)));
        assert!(age.tell(&old, now, &key(), at + HOUR));
        assert!(!age.tell(&young, now, &key(), at + HOUR));
        assert!(age.tell(&old, now, &key(), at + HOUR));
    }
}
