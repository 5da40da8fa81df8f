//! What is shown is read from the store: the overview each time, what changes slowly or costs more only now and then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::picture::{Detail, Figures, MINUTES, Picture};
use crate::status::{Bus, Overview, Subscription, lately};
use crate::store::{DeadLetterFilter, HoleFilter, Sample, Store, StoreError};

/// How often charts are read: samples are posted every 15 seconds.
const SLOWLY: Duration = Duration::from_secs(10);

/// Over how long events are counted for a rate.
const RATE_OVER: Duration = Duration::from_secs(10);

/// How much of one subscription is listed.
const CHANGES: u32 = 50;
const LETTERS: u32 = 20;
const HOLES: u32 = 20;

/// Reads, and remembers what it takes to tell a rate.
pub(super) struct Reader {
    store: Arc<dyn Store>,
    bus: Bus,
    /// Events received by then, by subscription.
    counted: BTreeMap<String, VecDeque<(Instant, u64)>>,
    /// Lags by minute of each subscription, and when they were read.
    lags: BTreeMap<String, Vec<Option<f64>>>,
    lags_at: Option<Instant>,
}

impl Reader {
    pub(super) fn new(store: Arc<dyn Store>, bus: Bus) -> Self {
        Self {
            store,
            bus,
            counted: BTreeMap::new(),
            lags: BTreeMap::new(),
            lags_at: None,
        }
    }

    /// Looks once, at one subscription closely; the error is a text for people.
    pub(super) async fn read(&mut self, detail: Option<&str>) -> Result<Picture, String> {
        let read = self.look(detail).await;
        read.map_err(|error| error.to_string())
    }

    async fn look(&mut self, detail: Option<&str>) -> Result<Picture, StoreError> {
        let Bus { retention, warning } = self.bus;
        let overview = Overview::read(self.store.as_ref(), retention, warning).await?;
        if self.lags_at.is_none_or(|at| at.elapsed() >= SLOWLY) {
            self.lags = self.lags(&overview).await?;
            self.lags_at = Some(Instant::now());
        }
        let now = Instant::now();
        self.counted
            .retain(|name, _| overview.subscription(name).is_some());
        let mut figures = BTreeMap::new();
        for one in &overview.subscriptions {
            let counted = self.counted.entry(one.name.clone()).or_default();
            let of_one = Figures {
                rate: rate(counted, one.received, now),
                lags: self.lags.get(&one.name).cloned().unwrap_or_default(),
            };
            figures.insert(one.name.clone(), of_one);
        }
        let detail = match detail.and_then(|name| overview.subscription(name)) {
            Some(one) => Some(self.detail(one).await?),
            None => None,
        };
        Ok(Picture {
            overview,
            figures,
            detail,
        })
    }

    async fn lags(
        &self,
        overview: &Overview,
    ) -> Result<BTreeMap<String, Vec<Option<f64>>>, StoreError> {
        let now = overview.at;
        let minutes = Duration::from_secs(60 * MINUTES as u64);
        let since = now.checked_sub(minutes).unwrap_or(now);
        let keys = overview.subscriptions.iter().flat_map(|one| &one.key);
        // The store is bound to one org.
        let Some(org_id) = keys.map(|key| &key.org_id).next() else {
            return Ok(BTreeMap::new());
        };
        let samples = lately(self.store.samples(org_id, since).await)?;
        let charts = samples.into_iter();
        let charts = charts.map(|(name, samples)| (name, by_minute(&samples, now)));
        Ok(charts.collect())
    }

    async fn detail(&self, one: &Subscription) -> Result<Detail, StoreError> {
        let mut detail = Detail {
            name: one.name.clone(),
            ..Detail::default()
        };
        let Some(key) = &one.key else {
            return Ok(detail);
        };
        let name = Some(one.name.as_str());
        let changes = self.store.state_changes(&key.org_id, name, CHANGES).await;
        detail.changes = lately(changes)?;
        if one.parked > 0 {
            let filter = DeadLetterFilter {
                subscription: Some(one.name.clone()),
                state: Some("open".to_owned()),
                limit: LETTERS,
                bare: true,
                ..DeadLetterFilter::default()
            };
            detail.letters = self.store.dead_letters(&filter).await?;
        }
        if one.holes > 0 {
            let filter = HoleFilter {
                subscription: Some(one.name.clone()),
                open_only: true,
                limit: Some(HOLES),
                ..HoleFilter::default()
            };
            detail.holes = self.store.holes(&filter).await?;
        }
        Ok(detail)
    }
}

/// Events each second since about [`RATE_OVER`] ago. A count that fell (a row made anew) begins again.
fn rate(counted: &mut VecDeque<(Instant, u64)>, received: u64, now: Instant) -> Option<f64> {
    if counted.back().is_some_and(|(_, last)| *last > received) {
        counted.clear();
    }
    let is_old = |entry: Option<&(Instant, u64)>| {
        entry.is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER)
    };
    while is_old(counted.get(1)) {
        counted.pop_front();
    }
    let rate = counted.front().and_then(|(then, before)| {
        let over = now.duration_since(*then).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let came = received.saturating_sub(*before) as f64;
        (over > 0.0).then(|| came / over)
    });
    counted.push_back((now, received));
    rate
}

/// One value for each of the last minutes, oldest first; the last is the minute that has just begun.
fn by_minute(samples: &[Sample], now: SystemTime) -> Vec<Option<f64>> {
    let mut minutes = vec![None; MINUTES];
    let minute = |at: SystemTime| {
        let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH);
        since_1970.map_or(0, |since| since.as_secs() / 60)
    };
    for sample in samples {
        let back = usize::try_from(minute(now).saturating_sub(minute(sample.at)));
        let index = back.ok().and_then(|back| (MINUTES - 1).checked_sub(back));
        if let Some(slot) = index.and_then(|index| minutes.get_mut(index)) {
            *slot = sample.lag.map(|lag| lag.as_secs_f64());
        }
    }
    minutes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_from_the_second_look_on_over_the_last_seconds() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut counted = VecDeque::new();
        assert_eq!(rate(&mut counted, 100, at(0)), None);
        assert_eq!(rate(&mut counted, 120, at(2)), Some(10.0));
        // Long ago counts no more: 80 in the 10 s from the look at 2 s on.
        assert_eq!(rate(&mut counted, 200, at(12)), Some(8.0));
        assert_eq!(rate(&mut counted, 200, at(22)), Some(0.0));
        assert_eq!(rate(&mut counted, 3, at(24)), None, "another row");
        assert_eq!(rate(&mut counted, 5, at(26)), Some(1.0));
    }

    #[test]
    fn lags_stand_in_their_minutes_and_minutes_that_nobody_ran_are_left_out() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * 60 + 30);
        let sample = |minute: u64, lag: Option<u64>| Sample {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60),
            lag: lag.map(Duration::from_secs),
            received: 0,
            parked: 0,
        };
        let samples = [
            sample(20, Some(9)), // too long ago
            sample(41, Some(7)),
            sample(99, None),
            sample(100, Some(3)),
            sample(101, Some(4)), // the database's clock is ahead
        ];
        let lags = by_minute(&samples, now);
        assert_eq!(lags.len(), MINUTES);
        assert_eq!((lags[0], lags[58], lags[59]), (Some(7.0), None, Some(4.0)));
        assert_eq!(lags.iter().flatten().count(), 2);
    }
}
