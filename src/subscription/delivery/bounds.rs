//! Whom a side replay is for, and where it ends.

use std::time::{Duration, SystemTime};

use super::Delivery;
use crate::event::ReplayId;
use crate::store::{ReplayArguments, ReplayProgress};
use crate::subscription::position::FinishedBefore;
use crate::subscription::replay_end::ReplayEnd;
use crate::subscription::tracker::HandlerSet;

impl Delivery {
    /// The handlers that are not named, where some are.
    pub(super) fn left_out(&self, named: &[String]) -> Result<HandlerSet, String> {
        if let Some(name) = named
            .iter()
            .find(|name| !self.runs.iter().any(|run| run.name == **name))
        {
            let known: Vec<_> = self.runs.iter().map(|run| run.name.as_str()).collect();
            return Err(format!(
                "there is no handler `{name}`; this subscription has {}",
                known.join(", ")
            ));
        }
        let others = self.runs.iter().filter(|run| !named.contains(&run.name));
        Ok(match named {
            [] => 0,
            _ => others.fold(0, |set, run| set | run.bit),
        })
    }

    /// At the latest it ends with what the live stream has brought when it begins, finished or not: of what is still
    /// on its way, some handlers may be done already. What is marked as finished from before a restart is among what
    /// the live stream is to bring, so that the end is known once all of that has come by.
    pub(super) fn end_of(
        &self,
        arguments: &ReplayArguments,
        progress: &ReplayProgress,
        wanted: HandlerSet,
    ) -> Result<ReplayEnd, String> {
        let channel = self.lease.key.topic.is_channel();
        let mut end = ReplayEnd::new(channel, arguments.to_time_ms.map(from_ms));
        for id in arguments.to.iter().chain(&progress.last) {
            end.ends_with(read(id)?);
        }
        if let Some(id) = &progress.before {
            end.ends_before(read(id)?);
        }
        let own = |id: &String| Some(id) == arguments.to.as_ref();
        let known = progress.before.is_some() || !progress.last.iter().all(own);
        if known || is_marked(&self.finished_before, wanted) {
            return Ok(end);
        }
        let replays = &self.replays;
        match &replays.last_live {
            Some(id) => end.ends_with(id.clone()),
            // The position may be a keepalive's, which no event carries: then only another keepalive would say
            // that the replay is there, minutes later.
            None => [&replays.resumed_after, &replays.resumed_event]
                .into_iter()
                .flatten()
                .for_each(|place| end.ends_with(place.clone())),
        }
        Ok(end)
    }

    /// True where nothing that came lies behind this place.
    pub(super) fn stands_at(&self, place: &ReplayId, wanted: HandlerSet) -> bool {
        self.tracker.has_passed_all()
            && self.tracker.position() == Some(place)
            && !is_marked(&self.finished_before, wanted)
    }
}

/// True where something that is still to come is finished for one of these handlers.
pub(super) fn is_marked(before: &FinishedBefore, handlers: HandlerSet) -> bool {
    before.values().any(|finished| finished & handlers != 0)
}

pub(super) fn read(id: &str) -> Result<ReplayId, String> {
    id.parse()
        .map_err(|error| format!("the command holds `{id}`: {error}"))
}

pub(super) fn to_ms(time: SystemTime) -> i64 {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since_1970.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    let since_1970 = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let time = SystemTime::UNIX_EPOCH.checked_add(since_1970);
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
