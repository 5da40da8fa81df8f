//! Whether what waits is handed over, or waits for more to be handed over with. Pure: time is passed in.
//!
//! A call of some handlers costs much, however little is in it: a transaction is half a dozen round trips and a commit.
//! With a call for whatever arrives while others are under way, such a handler gets by far more calls than it has to.

use std::time::{Duration, Instant};

/// How long events wait for others at most: about what a call of several hundred takes, and little for a handler
/// of which a call takes longer.
const LONGEST: Duration = Duration::from_millis(20);

/// How one handler's events wait for others. By default they do not.
#[derive(Debug, Default)]
pub(super) struct Gather {
    wanted: bool,
    /// Since when some wait.
    since: Option<Instant>,
}

impl Gather {
    /// While a call is under way, a batch has to be full; for a while.
    pub(super) fn wanted() -> Self {
        Self {
            wanted: true,
            since: None,
        }
    }

    /// Whether only a full batch is to be handed over, so many calls being under way.
    pub(super) fn only_full(&self, now: Instant, calls: usize) -> bool {
        let over = |since| now.duration_since(since) >= LONGEST;
        self.wanted && calls > 0 && !self.since.is_some_and(over)
    }

    /// Something could be handed over, and was left to wait for more.
    pub(super) fn left(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// What waited was handed over, or nothing waits for others.
    pub(super) fn is_over(&mut self) {
        self.since = None;
    }

    /// When it has waited long enough.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.since? + LONGEST;
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_waits_only_beside_a_call_and_not_for_long() {
        let now = Instant::now();
        let mut gather = Gather::wanted();
        assert!(!gather.only_full(now, 0));
        assert!(gather.only_full(now, 1));
        gather.left(now);
        let due = gather.due(now).unwrap();
        assert_eq!(due, now + LONGEST);
        // What comes later does not make the first wait longer.
        let later = now + LONGEST / 2;
        gather.left(later);
        assert_eq!(gather.due(later), Some(due));
        assert!(gather.only_full(later, 1));
        assert!(!gather.only_full(due, 1));
        assert_eq!(gather.due(due), None);
        gather.is_over();
        assert!(gather.only_full(due, 1));
        assert_eq!(gather.due(due), None);
    }

    #[test]
    fn nothing_waits_for_others_by_default() {
        assert!(!Gather::default().only_full(Instant::now(), 7));
    }
}
