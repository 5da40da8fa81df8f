//! How long nothing has come over a subscription's streams, all of them together: one that is opened anew again and
//! again and stays silent is no better than one that stays silent.

use std::time::{Duration, Instant};

/// For so long an open stream over which nothing came says nothing by that: one that is refused is open for a moment.
const SETTLED: Duration = Duration::from_secs(1);

/// Since when nothing came although something was owed, and until when that is as it should be.
#[derive(Debug)]
pub(super) struct Quiet {
    /// The longest silence that the org may keep.
    limit: Duration,
    /// Since when; `None` while nothing is owed.
    since: Option<Instant>,
    /// Until when.
    fine_until: Option<Instant>,
    /// When the present stream was opened, until something comes over it.
    unheard_since: Option<Instant>,
}

impl Quiet {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            fine_until: None,
            unheard_since: None,
        }
    }

    /// A stream was opened. It has its time until a first keepalive, if the ones before have not been silent for longer
    /// than one may be.
    pub(super) fn opened(&mut self, now: Instant) {
        self.unheard_since = Some(now);
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) <= self.limit {
            self.fine_until = Some(now + self.limit);
        }
    }

    /// Something came.
    pub(super) fn heard(&mut self, now: Instant) {
        self.since = Some(now);
        self.fine_until = Some(now + self.limit);
        self.unheard_since = None;
    }

    /// From when on the silence of the present stream tells that there is nothing; `None` where something came.
    pub(super) fn tells_from(&self) -> Option<Instant> {
        // It has to tell something before it counts as silent.
        Some(self.unheard_since? + SETTLED.min(self.limit / 4))
    }

    /// Until when the silence of an open stream is as it should be; `None` where there is no such time, because nothing
    /// is `owed`.
    pub(super) fn fine_until(&mut self, owed: bool, now: Instant) -> Option<Instant> {
        if !owed {
            self.since = None;
            self.fine_until = None;
        } else if self.since.is_none() {
            self.heard(now);
        }
        self.fine_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    /// When a stream of which nothing is heard counts as silent, in seconds, if it is opened at these.
    fn silent_from(opened: &[u64]) -> u64 {
        let start = Instant::now();
        let mut quiet = Quiet::new(LIMIT);
        let mut until = start;
        for at in opened {
            let now = start + Duration::from_secs(*at);
            quiet.opened(now);
            until = quiet.fine_until(true, now).unwrap();
        }
        until.duration_since(start).as_secs()
    }

    #[test]
    fn streams_that_are_opened_again_and_again_and_bring_nothing_are_silent_together() {
        assert_eq!(silent_from(&[0]), 300);
        // One that broke within its time, as any may: the next has its time too.
        assert_eq!(silent_from(&[0, 240]), 540);
        assert_eq!(silent_from(&[0, 240, 480, 720]), 540);
        assert_eq!(silent_from(&[0, 301, 602]), 300);
    }

    #[test]
    fn a_stream_tells_nothing_by_its_silence_before_it_was_open_for_a_moment() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut quiet = Quiet::new(LIMIT);
        quiet.opened(at(0));
        assert_eq!(quiet.tells_from(), Some(at(1000)));
        // It was refused at once.
        quiet.opened(at(500));
        assert_eq!(quiet.tells_from(), Some(at(1500)));
        quiet.heard(at(501));
        assert_eq!(quiet.tells_from(), None);
        quiet.opened(at(9000));
        assert_eq!(quiet.tells_from(), Some(at(10_000)));
    }

    #[test]
    fn what_comes_and_what_is_not_owed_end_a_silence() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut quiet = Quiet::new(LIMIT);
        quiet.opened(at(0));
        quiet.heard(at(1000));
        assert_eq!(quiet.fine_until(true, at(1000)), Some(at(1300)));
        assert_eq!(quiet.fine_until(false, at(1100)), None);
        // Asked again much later, on the same stream or on another one.
        assert_eq!(quiet.fine_until(true, at(9000)), Some(at(9300)));
        assert_eq!(quiet.fine_until(false, at(9100)), None);
        quiet.opened(at(20_000));
        assert_eq!(quiet.fine_until(true, at(20_000)), Some(at(20_300)));
    }
}
