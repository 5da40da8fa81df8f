//! Lost ground: what the reader does where a position is gone from the bus, or a start at LATEST dies, and the
//! holes that tell of it. One row for each lost position, however often the stream breaks in it.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::breaks::Break;
use super::notes::Note;
use super::reader::{Arrival, Reader, describe, slowly};
use crate::avro::peek_header;
use crate::config::{OnExpiredReplayId, Start};
use crate::event::{ChangeEventHeader, RawEvent, ReplayId};
use crate::salesforce::pubsub::{FetchBatch, ReplayFrom};
use crate::store::{Hole, HoleKind};

/// The position is given up: the bus does not know it any more, nor any place that came before. The delivery
/// stores that, in order with its other writes, so that a restart before anything is finished goes on from
/// what has come since and does not lose the same position again.
#[derive(Debug)]
pub(super) struct GivenUp {
    /// Where the stream begins instead: earliest or latest.
    pub(super) begin: Start,
    /// Events that came before are still to be finished.
    pub(super) unfinished: bool,
    /// Told once it is stored.
    pub(super) done: oneshot::Sender<()>,
}

const EXPIRED_CURE: &str = "Set on_expired_replay_id of this subscription to \"earliest\" (everything the bus still \
                            keeps) or \"latest\" and restart; the lost stretch is recorded as a hole";

impl Reader {
    /// The position is gone from the bus. Does what the configuration says, never anything else, and
    /// records the hole before it moves, or although it does not.
    pub(super) async fn reposition(&mut self, broken: &Break, backoff: &mut Backoff) -> Duration {
        let (from, begin) = match self.on_expired {
            OnExpiredReplayId::Earliest => (ReplayFrom::Earliest, Start::Earliest),
            OnExpiredReplayId::Latest => (ReplayFrom::Latest, Start::Latest),
            OnExpiredReplayId::Stop => {
                let pause = slowly(backoff, &self.salesforce.blocked_retry);
                self.blocked(broken, Some(EXPIRED_CURE), pause);
                // One that is not stored now is found again: the position stays.
                let _ = self.record_expiry().await;
                return pause;
            }
        };
        if self.resume.from() == from {
            // Not about a position at all: never loop without a pause.
            let pause = backoff.next_pause();
            self.reconnecting(broken, pause);
            return pause;
        }
        warn!(
            subscription = self.lease.key.name,
            topic = %self.topic,
            lost_after = self.resume.last_known().map(tracing::field::display),
            resume = %describe(&from),
            error = %broken,
            "the position is not on the bus any more: events after it may be lost, a hole is recorded"
        );
        if !self.record_expiry().await {
            // Told to stop. The position stays until the hole that names it is stored: whoever begins next finds
            // it lost once more.
            return Duration::ZERO;
        }
        let (done, stored) = oneshot::channel();
        // Where the delivery is gone, the stop token tells.
        let unfinished = self.in_flight.held_now().0 > 0;
        let _ = self.given_up.send(GivenUp {
            begin,
            unfinished,
            done,
        });
        tokio::select! {
            () = self.stop.cancelled() => return Duration::ZERO,
            _ = stored => {}
        }
        self.resume.begin_again(from);
        self.cost.begins_anew();
        self.expected = None;
        let _ = self.arrivals.send(vec![Arrival::NewPlaces]);
        backoff.next_pause()
    }

    /// False where the hole may not be stored, because it was told to stop meanwhile.
    #[must_use]
    async fn record_expiry(&mut self) -> bool {
        let age = self
            .resume
            .known_at()
            .map(|at| at.elapsed().unwrap_or_default());
        let why = match age {
            Some(age) if age < self.salesforce.retention => {
                "although it is younger than the time for which events are kept: the bus was probably reset, as \
                 when an org is moved or a sandbox updated"
            }
            Some(_) => "because it is older than the time for which events are kept",
            None => "because it is too old, or the bus was reset",
        };
        let explanation = format!(
            "the org does not know the stored replay ID any more, {why}: events published after it and before \
             the end of this hole were perhaps not handled; compare the records with the org"
        );
        self.record_hole("expired_replay_id", &explanation).await
    }

    /// A stream that began at LATEST broke before it had a place to resume from.
    pub(super) async fn record_broken_start(&mut self) {
        // Where that is not stored, the store knows still that a stream began without a position.
        let _ = self
            .record_hole(
                "latest_before_first_response",
                "the stream began at LATEST and broke before it had a place to resume from: what was published \
                 until the next one began was not delivered; compare the records with the org",
            )
            .await;
    }

    /// One row for each lost position, however often the stream breaks before it is found again. False where it
    /// may not be stored, because it was told to stop meanwhile.
    #[must_use]
    async fn record_hole(&mut self, reason: &str, explanation: &str) -> bool {
        if !self.resume.begin_hole() {
            // Whoever recorded it waited until it was stored, unless told to stop.
            return !self.stop.is_cancelled();
        }
        let hole = Hole {
            from: self.resume.last_known().cloned(),
            from_time: self.resume.known_at(),
            ..lost(reason, explanation)
        };
        self.observer.hole("lost");
        self.notes.written(Note::Lost(hole), &self.stop).await
    }

    /// The first response since the subscription began or a hole did. Its first place ends the hole; and until
    /// that event is finished there is no position, so it is kept as what a restart resumes after, or expects
    /// to see again.
    ///
    /// Gives what is to go before the response: where it shows that events were lost which no stored position
    /// tells of, the position must not pass it before that is stored.
    pub(super) fn first_came(
        &mut self,
        batch: &FetchBatch,
        received_at: SystemTime,
    ) -> Option<Arrival> {
        let event = batch.events.iter().find(|raw| raw.replay_id.is_some());
        let (place, at) = match event {
            Some(raw) => (raw.replay_id.clone(), self.happened_at(raw, received_at)),
            None => (batch.latest_replay_id.clone(), received_at),
        };
        let place = place?;
        let first = match self.resume.from() {
            ReplayFrom::Latest | ReplayFrom::Earliest => event.and(Some(place.clone())),
            ReplayFrom::After(_) => None,
        };
        let gone = self.expected.take().filter(|expected| *expected != place);
        let hole = gone.map(|expected| Hole {
            from: Some(expected),
            to: Some(place.clone()),
            to_time: Some(at),
            ..lost(
                "expired_replay_id",
                "an earlier run began at the earliest event that the bus kept, at the beginning of this hole, and \
                 ended before that one was finished: it and those that followed have left the bus since; compare \
                 the records with the org",
            )
        });
        let pinned = hole.map(|hole| {
            self.observer.hole("lost");
            Arrival::Pinned(self.notes.told(Note::Lost(hole)))
        });
        self.notes.add(Note::Came(place, at));
        if let Some(first) = first {
            self.notes.add(Note::First(first));
        }
        pinned
    }

    /// Looks whether the stream comes by a place that a rewind left from: then that one went back, and skipped
    /// nothing.
    pub(super) fn comes_by(&mut self, batch: &FetchBatch) {
        if self.rewound_from.is_empty() || self.replay.is_some() {
            return;
        }
        let keepalive = batch
            .latest_replay_id
            .iter()
            .filter(|_| batch.events.is_empty());
        let events = batch.events.iter().filter_map(|raw| raw.replay_id.as_ref());
        for place in events.chain(keepalive) {
            let Some(index) = self.rewound_from.iter().position(|from| from == place) else {
                continue;
            };
            let from = self.rewound_from.swap_remove(index);
            info!(
                subscription = self.lease.key.name,
                place = %from,
                "the stream has come by the place again that a rewind left from: nothing was skipped"
            );
            self.notes.add(Note::NothingSkipped(from));
        }
    }

    /// When an event was committed, as far as its payload tells without a schema; else when it was received.
    pub(super) fn happened_at(&self, raw: &RawEvent, received_at: SystemTime) -> SystemTime {
        if !self.topic.as_str().starts_with("/data/") {
            return received_at;
        }
        peek_header(&raw.payload)
            .as_ref()
            .and_then(ChangeEventHeader::committed_at)
            .map_or(received_at, |at| at.min(received_at))
    }
}

/// A stretch that was not seen, its bounds not known yet.
pub(super) fn lost(reason: &str, explanation: &str) -> Hole {
    Hole {
        kind: HoleKind::Lost,
        reason: reason.to_owned(),
        from: None,
        to: None,
        from_time: None,
        to_time: None,
        entity: None,
        record_ids: Vec::new(),
        explanation: explanation.to_owned(),
    }
}

/// What is lost where an earlier run gave its position up, and ended with what it had received before unfinished.
pub(super) fn lost_unfinished(position: ReplayId) -> Hole {
    Hole {
        from: Some(position),
        ..lost(
            "expired_replay_id",
            "the org did not know the position any more, and the run that found this ended before all that it had \
             received until then was finished: that was perhaps not handled and is not delivered again, nor is what \
             else had left the bus by then; compare the records with the org",
        )
    }
}

/// What is lost where an earlier run began at LATEST, at this time if it is known, and ended before it had a
/// position. What came after the first replay ID that it saw can be had again; that one itself cannot,
/// because nothing names the place before it.
pub(super) fn lost_start(begun_at: Option<SystemTime>, first: Option<&ReplayId>) -> Hole {
    let explanation = match first {
        None => {
            "an earlier run began at LATEST and ended before it had a position: what was published from \
             then until this run's first response was perhaps not handled; compare the records with the org"
        }
        Some(_) => {
            "an earlier run began at LATEST and ended before the first event it received was finished: \
             that event, at the end of this hole, is not delivered again, and all after it are"
        }
    };
    Hole {
        from_time: begun_at,
        to: first.cloned(),
        ..lost("latest_before_first_response", explanation)
    }
}
