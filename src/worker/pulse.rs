//! When the store is asked: heartbeats, which renew the leases, and surveys, by which workers share the
//! subscriptions. One call at a time, each bounded by less than the lease can spare, and none of them
//! awaited anywhere else: a store that hangs stops nothing but itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::event::OrgId;
use crate::store::{
    Heartbeat, Refused, Store, StoreError, SubscriptionKey, Survey, Tenure, Worker as Identity,
};
use crate::subscription::Moment;

/// How often the worker looks around.
const SURVEY_EVERY: Duration = Duration::from_secs(1);

/// How long a row may stay locked before a heartbeat asks again.
const LOCKED_PAUSE: Duration = Duration::from_millis(250);

/// How often while another worker stops: what it lets go is taken at once.
const SURVEY_OFTEN: Duration = Duration::from_millis(200);

/// The least time from one survey to the next, and how long after its end a lease is looked at again.
const SURVEY_PAUSE: Duration = Duration::from_millis(50);

/// What a heartbeat says of this worker.
#[derive(Default)]
pub(super) struct Tidings {
    /// Leases to be renewed.
    pub(super) running: Vec<SubscriptionKey>,
    /// Names of what it can run.
    pub(super) able: Vec<String>,
    /// What it cannot begin.
    pub(super) refused: Vec<Refused>,
}

/// What the store said.
pub(super) enum Told {
    /// To a heartbeat that was sent at this moment.
    Beat(Moment, Result<Heartbeat, StoreError>),
    /// To a survey.
    Survey(Result<Survey, StoreError>),
}

/// The calls that are due, and the one under way.
pub(super) struct Pulse {
    store: Arc<dyn Store>,
    org_id: OrgId,
    identity: Identity,
    ttl: Duration,
    call: Option<BoxFuture<'static, Told>>,
    next_beat: Instant,
    /// When the last heartbeat was sent.
    beat_at: Instant,
    next_survey: Instant,
    /// The first heartbeat went through: this worker counts among the living.
    counted: bool,
    /// The last survey that was answered.
    surveyed_at: Option<Instant>,
    /// Leases that lapsed may be taken from then on.
    lapsed_from: Instant,
    /// Such time was given, and the store has not been there for long enough since to give it once more.
    gave_time: bool,
}

impl Pulse {
    pub(super) fn new(
        store: Arc<dyn Store>,
        org_id: OrgId,
        identity: Identity,
        ttl: Duration,
        now: Instant,
    ) -> Self {
        Self {
            store,
            org_id,
            identity,
            ttl,
            call: None,
            next_beat: now,
            beat_at: now,
            next_survey: now,
            counted: false,
            surveyed_at: None,
            lapsed_from: now,
            gave_time: false,
        }
    }

    /// Begins the next call if one is due and none is under way. `tell` gives what a heartbeat says.
    pub(super) fn begin(&mut self, now: Instant, tell: impl FnOnce() -> Tidings, stopping: bool) {
        if self.call.is_some() {
            return;
        }
        let store = self.store.clone();
        if now >= self.next_beat {
            self.beat_at = now;
            let ttl = self.ttl;
            // Before it is settled what it asks for: what is taken over from now on, also before the call below
            // is first looked at, was not asked about.
            let sent_at = Moment::now();
            let Tidings {
                running,
                able,
                refused,
            } = tell();
            let identity = Identity {
                subscriptions: able,
                refused,
                ..self.identity.clone()
            };
            self.call = Some(Box::pin(async move {
                let beat = store.heartbeat(&identity, ttl, &running, stopping).await;
                Told::Beat(sent_at, beat)
            }));
        } else if self.counted && !stopping && now >= self.next_survey {
            let (org_id, limit) = (self.org_id.clone(), self.ttl / 5);
            self.call = Some(Box::pin(async move {
                Told::Survey(store.survey(&org_id, limit).await)
            }));
        }
    }

    /// Waits for the call under way, which is bounded in time.
    pub(super) async fn settle(&mut self) {
        if let Some(call) = self.call.take() {
            call.await;
        }
    }

    /// The answer of the call under way; never ends where there is none. Cancel-safe.
    pub(super) async fn told(&mut self) -> Told {
        let Some(call) = &mut self.call else {
            return std::future::pending().await;
        };
        let told = call.await;
        self.call = None;
        let now = Instant::now();
        match &told {
            Told::Beat(_, Ok(beat)) => {
                self.counted = true;
                self.next_beat = if beat.renewed.len() < beat.held.len() {
                    // A row was locked by a write, which takes a moment.
                    now + (self.ttl / 20).min(LOCKED_PAUSE)
                } else {
                    self.beat_at + self.ttl / 5
                };
            }
            Told::Beat(_, Err(_)) => self.next_beat = now + (self.ttl / 10).min(SURVEY_EVERY),
            Told::Survey(Ok(survey)) => self.surveyed(now, survey),
            Told::Survey(Err(_)) => self.next_survey = now + SURVEY_EVERY,
        }
        told
    }

    fn surveyed(&mut self, now: Instant, survey: &Survey) {
        // Where the store was away from us, it was perhaps away from all: whoever has lapsed meanwhile is
        // given the time to renew, and goes on under the same epoch. Once: with a store that is away again and
        // again nobody would ever take over what a dead worker had.
        let away = SURVEY_EVERY * 2 + self.ttl / 5;
        let was_away = self
            .surveyed_at
            .is_some_and(|last| now.duration_since(last) > away);
        if was_away && !self.gave_time {
            self.lapsed_from = now + self.ttl / 5;
            self.gave_time = true;
        } else if !was_away && self.may_take_lapsed(now) {
            self.gave_time = false;
        }
        self.surveyed_at = Some(now);
        // A lease that is not renewed is found at the moment it runs out.
        let others = survey.subscriptions.iter().filter_map(|one| {
            let Tenure::Held { holder, rest } = &one.tenure else {
                return None;
            };
            (*holder != self.identity.holder).then_some(*rest + SURVEY_PAUSE)
        });
        let patient = self.lapsed_from.saturating_duration_since(now);
        let soonest = others.chain((!patient.is_zero()).then_some(patient)).min();
        let most = match survey.stopping {
            0 => SURVEY_EVERY,
            _ => SURVEY_OFTEN,
        };
        let pause = soonest.map_or(most, |rest| rest.min(most));
        self.next_survey = now + pause.max(SURVEY_PAUSE);
    }

    /// True where leases that lapsed may be taken.
    pub(super) fn may_take_lapsed(&self, now: Instant) -> bool {
        now >= self.lapsed_from
    }

    /// When [`Pulse::begin`] has something to do; `None` while a call is under way.
    pub(super) fn wake_at(&self, stopping: bool) -> Option<Instant> {
        match &self.call {
            Some(_) => None,
            None if stopping || !self.counted => Some(self.next_beat),
            None => Some(self.next_beat.min(self.next_survey)),
        }
    }

    /// The next heartbeat is due at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.next_beat = now;
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::store::{self, Footing, Surveyed};

    const TTL: Duration = Duration::from_secs(15);

    async fn pulse(now: Instant) -> Pulse {
        let config = StoreConfig::new("sqlite::memory:");
        let identity = Identity {
            holder: "me".to_owned(),
            name: "me.1".to_owned(),
            version: "0".to_owned(),
            subscriptions: Vec::new(),
            refused: Vec::new(),
        };
        let org_id = OrgId::parse("00D5g000004emu1EAA").unwrap();
        let store = store::open(&config).await.unwrap();
        Pulse::new(store, org_id, identity, TTL, now)
    }

    fn survey(holder: &str, rest: Duration) -> Survey {
        Survey {
            workers: Vec::new(),
            stopping: 0,
            subscriptions: vec![Surveyed {
                name: "orders".to_owned(),
                tenure: Tenure::Held {
                    holder: holder.to_owned(),
                    rest,
                },
                paused: false,
                asked: 0,
                footing: Footing::Placed,
            }],
        }
    }

    #[tokio::test]
    async fn a_worker_is_counted_before_it_looks_around() {
        let mut pulse = pulse(Instant::now()).await;
        pulse.begin(Instant::now(), Tidings::default, false);
        // The tables are not there yet.
        assert!(matches!(pulse.told().await, Told::Beat(_, Err(_))));
        pulse.begin(Instant::now(), Tidings::default, false);
        assert!(pulse.call.is_none(), "a survey is due, and has to wait");
        pulse.store.migrate().await.unwrap();
        pulse.begin(pulse.next_beat, Tidings::default, false);
        assert!(matches!(pulse.told().await, Told::Beat(_, Ok(_))));
        pulse.begin(Instant::now(), Tidings::default, false);
        assert!(matches!(pulse.told().await, Told::Survey(Ok(_))));
    }

    #[tokio::test]
    async fn what_is_taken_after_a_heartbeat_was_made_counts_as_taken_after_it_was_sent() {
        let mut pulse = pulse(Instant::now()).await;
        pulse.store.migrate().await.unwrap();
        let mut made_at = None;
        let tell = || {
            made_at = Some(Moment::now());
            Tidings::default()
        };
        pulse.begin(Instant::now(), tell, false);
        // Here a claim is answered, before the heartbeat is looked at.
        let taken_at = Moment::now();
        let Told::Beat(sent_at, Ok(_)) = pulse.told().await else {
            panic!("no heartbeat");
        };
        assert!(Some(sent_at) <= made_at);
        assert!(taken_at > sent_at);
    }

    #[tokio::test]
    async fn the_end_of_another_workers_lease_is_looked_at_when_it_comes() {
        let now = Instant::now();
        let mut pulse = pulse(now).await;
        let rest = Duration::from_millis(300);
        pulse.surveyed(now, &survey("other", rest));
        assert_eq!(pulse.next_survey, now + rest + SURVEY_PAUSE);
        pulse.surveyed(now, &survey("me", rest));
        assert_eq!(pulse.next_survey, now + SURVEY_EVERY);
        let leaving = Survey {
            stopping: 1,
            ..survey("other", TTL)
        };
        pulse.surveyed(now, &leaving);
        assert_eq!(pulse.next_survey, now + SURVEY_OFTEN);
    }

    #[tokio::test]
    async fn after_the_store_was_away_those_whose_lease_lapsed_meanwhile_are_given_time() {
        let now = Instant::now();
        let mut pulse = pulse(now).await;
        pulse.surveyed(now, &survey("other", TTL));
        let soon = now + Duration::from_secs(4);
        pulse.surveyed(soon, &survey("other", TTL));
        assert!(pulse.may_take_lapsed(soon));
        let late = soon + Duration::from_secs(6);
        pulse.surveyed(late, &survey("other", TTL));
        assert!(!pulse.may_take_lapsed(late));
        let patient = TTL / 5;
        // Looking on does not make it wait longer.
        pulse.surveyed(late + patient, &survey("other", TTL));
        assert!(pulse.may_take_lapsed(late + patient));
    }

    #[tokio::test]
    async fn a_store_that_is_away_again_and_again_does_not_keep_lapsed_leases_for_ever() {
        let mut now = Instant::now();
        let mut pulse = pulse(now).await;
        pulse.surveyed(now, &survey("other", TTL));
        let gap = Duration::from_secs(6);
        now += gap;
        pulse.surveyed(now, &survey("other", TTL));
        assert!(!pulse.may_take_lapsed(now), "time to renew");
        for _ in 0..3 {
            now += gap;
            pulse.surveyed(now, &survey("other", TTL));
            assert!(pulse.may_take_lapsed(now), "they had that time");
        }
        // Once the store was there for a while, its next absence counts as the first one did.
        now += Duration::from_secs(1);
        pulse.surveyed(now, &survey("other", TTL));
        now += gap;
        pulse.surveyed(now, &survey("other", TTL));
        assert!(!pulse.may_take_lapsed(now));
    }
}
