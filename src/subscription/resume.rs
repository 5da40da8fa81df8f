//! Where the stream resumes after a break, from memory (design 3.1, rule 1). Pure.

use std::time::SystemTime;

use crate::config::Start;
use crate::event::ReplayId;
use crate::salesforce::pubsub::ReplayFrom;

/// The last complete replay ID received, and where the subscription began.
#[derive(Debug, Clone)]
pub(super) struct Resume {
    channel: bool,
    begin: ReplayFrom,
    complete: Option<ReplayId>,
    /// On a channel: more events may follow under this one.
    incomplete: Option<ReplayId>,
    answered: bool,
    /// A hole was recorded, and nothing has come since.
    in_hole: bool,
    /// When what was last known was committed or received.
    known_at: Option<SystemTime>,
}

impl Resume {
    /// From the stored position and its time, else from where the subscription is to begin.
    pub(super) fn new(
        channel: bool,
        position: Option<ReplayId>,
        known_at: Option<SystemTime>,
        start: &Start,
    ) -> Self {
        Self {
            channel,
            begin: match start {
                Start::Latest => ReplayFrom::Latest,
                Start::Earliest => ReplayFrom::Earliest,
                Start::After(id) => ReplayFrom::After(id.clone()),
            },
            complete: position,
            incomplete: None,
            answered: false,
            in_hole: false,
            known_at,
        }
    }

    /// Where the next stream begins.
    pub(super) fn from(&self) -> ReplayFrom {
        match (&self.complete, &self.begin, &self.incomplete) {
            (Some(id), ..) => ReplayFrom::After(id.clone()),
            // Never LATEST again once something has come: all that lies between would be lost, where
            // this way only siblings of that one event can be.
            (None, ReplayFrom::Latest, Some(id)) => ReplayFrom::After(id.clone()),
            (None, begin, _) => begin.clone(),
        }
    }

    /// True where the next stream goes on where this one broke: nothing is missed between, though what came
    /// under an incomplete replay ID comes again.
    pub(super) fn continues(&self) -> bool {
        let begins_before_it = self.incomplete.is_some() && self.begin != ReplayFrom::Latest;
        self.complete.is_some() || begins_before_it
    }

    /// What would be lost, and has to be recorded, if the stream broke now and began again.
    pub(super) fn loses_on_break(&self) -> bool {
        self.complete.is_none() && self.begin == ReplayFrom::Latest
    }

    /// Begins somewhere else: the position is gone from the bus.
    pub(super) fn begin_again(&mut self, begin: ReplayFrom) {
        *self = Self {
            channel: self.channel,
            begin,
            complete: None,
            incomplete: None,
            answered: false,
            in_hole: self.in_hole,
            known_at: None,
        };
    }

    /// A hole begins after the last place known. False where one has begun already and nothing has come
    /// since: that is the same hole, however often the org is asked in it.
    pub(super) fn begin_hole(&mut self) -> bool {
        self.answered = false;
        !std::mem::replace(&mut self.in_hole, true)
    }

    /// The last place known, complete or not, to name where a hole begins: at least the one that it was told to
    /// begin after.
    pub(super) fn last_known(&self) -> Option<&ReplayId> {
        let begin = match &self.begin {
            ReplayFrom::After(id) => Some(id),
            ReplayFrom::Latest | ReplayFrom::Earliest => None,
        };
        let come = self.incomplete.as_ref().or(self.complete.as_ref());
        come.or(begin)
    }

    /// When the last place known was committed, or received.
    pub(super) fn known_at(&self) -> Option<SystemTime> {
        self.known_at
    }

    /// True for the first response since the beginning, or since a hole began: what ends an open hole.
    pub(super) fn first_answer(&mut self) -> bool {
        self.in_hole = false;
        !std::mem::replace(&mut self.answered, true)
    }

    /// An event came, or a batch of them whose last one was committed then.
    pub(super) fn saw_event(&mut self, replay_id: Option<&ReplayId>, at: SystemTime) {
        let Some(id) = replay_id else { return };
        self.known_at = Some(at);
        if !self.channel {
            self.complete = Some(id.clone());
        } else if self.incomplete.as_ref() != Some(id)
            && let Some(done) = self.incomplete.replace(id.clone())
        {
            self.complete = Some(done);
        }
    }

    pub(super) fn saw_keepalive(&mut self, replay_id: &ReplayId, received_at: SystemTime) {
        // Under the same replay ID it makes that place no younger.
        if self.complete.as_ref() != Some(replay_id) {
            self.known_at = Some(received_at);
        }
        self.complete = Some(replay_id.clone());
        self.incomplete = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: SystemTime = SystemTime::UNIX_EPOCH;

    fn id(text: &str) -> ReplayId {
        text.parse().unwrap()
    }

    #[test]
    fn a_stored_position_comes_before_the_configured_start() {
        let resume = Resume::new(false, Some(id("05")), None, &Start::Earliest);
        assert_eq!(resume.from(), ReplayFrom::After(id("05")));
        let resume = Resume::new(false, None, None, &Start::Earliest);
        assert_eq!(resume.from(), ReplayFrom::Earliest);
    }

    #[test]
    fn a_single_event_topic_resumes_after_the_last_event_received() {
        let mut resume = Resume::new(false, None, None, &Start::Latest);
        assert!(resume.loses_on_break());
        resume.saw_event(Some(&id("01")), NOON);
        resume.saw_event(None, NOON);
        assert_eq!(resume.from(), ReplayFrom::After(id("01")));
        assert!(!resume.loses_on_break());
    }

    #[test]
    fn a_channel_resumes_after_the_last_replay_id_that_was_followed_by_another() {
        let mut resume = Resume::new(true, Some(id("04")), None, &Start::Latest);
        resume.saw_event(Some(&id("05")), NOON);
        resume.saw_event(Some(&id("05")), NOON);
        assert_eq!(resume.from(), ReplayFrom::After(id("04")));
        resume.saw_event(Some(&id("06")), NOON);
        assert_eq!(resume.from(), ReplayFrom::After(id("05")));
        resume.saw_keepalive(&id("06"), NOON);
        assert_eq!(resume.from(), ReplayFrom::After(id("06")));
    }

    #[test]
    fn a_hole_begins_after_the_place_that_was_configured_where_nothing_has_come() {
        let start = Start::After(id("04"));
        let mut resume = Resume::new(true, None, None, &start);
        assert_eq!(resume.last_known(), Some(&id("04")));
        resume.saw_event(Some(&id("05")), NOON);
        assert_eq!(resume.last_known(), Some(&id("05")));
        resume.begin_again(ReplayFrom::Earliest);
        assert_eq!(resume.last_known(), None);
    }

    #[test]
    fn a_hole_is_one_hole_until_something_comes_and_that_ends_it() {
        let mut resume = Resume::new(false, Some(id("04")), None, &Start::Latest);
        assert!(resume.first_answer());
        assert!(!resume.first_answer());
        assert!(resume.begin_hole());
        assert!(!resume.begin_hole());
        resume.begin_again(ReplayFrom::Latest);
        assert!(!resume.begin_hole());
        assert!(resume.first_answer());
        assert!(resume.begin_hole());
    }

    #[test]
    fn a_stream_goes_on_where_it_broke_unless_it_begins_or_its_place_is_lost() {
        let mut resume = Resume::new(true, None, None, &Start::Earliest);
        assert!(!resume.continues(), "nobody knows what came before");
        resume.saw_event(Some(&id("05")), NOON);
        assert!(resume.continues(), "all of it comes again");
        resume.saw_event(Some(&id("06")), NOON);
        assert!(resume.continues());
        resume.begin_again(ReplayFrom::Earliest);
        assert!(!resume.continues());
        assert!(Resume::new(true, Some(id("04")), None, &Start::Latest).continues());
        let mut resume = Resume::new(true, None, None, &Start::Latest);
        resume.saw_event(Some(&id("05")), NOON);
        assert!(!resume.continues(), "siblings of it may be missed");
    }

    #[test]
    fn latest_is_never_asked_for_again_once_something_has_come() {
        let mut resume = Resume::new(true, None, None, &Start::Latest);
        assert_eq!(resume.from(), ReplayFrom::Latest);
        resume.saw_event(Some(&id("05")), NOON);
        assert_eq!(resume.from(), ReplayFrom::After(id("05")));
        assert!(resume.loses_on_break(), "siblings of it may be missed");
    }
}
