//! Parking: an event that cannot be handled or decoded is kept as a dead letter, durably, before it counts
//! as finished.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::delivery::{end_of_task, unit_name};
use super::lanes::Waiting;
use super::tracker::{HandlerSet, Seq};
use crate::event::Event;
use crate::store::{DeadLetter, Lease, Store};
use crate::telemetry::metrics;

/// Events that are parked, or to be: one, or all of a unit.
#[derive(Debug)]
pub(super) struct Parked {
    /// Their places in the tracker.
    pub(super) seqs: Range<Seq>,
    /// The handlers it is parked for; `None` for all of them.
    pub(super) handlers: Option<HandlerSet>,
}

/// Events on their way to the store. One write at a time, so that dead letters are numbered in the order in
/// which events were given up.
pub(super) struct Parking {
    lease: Lease,
    store: Arc<dyn Store>,
    waiting: VecDeque<(Parked, Vec<DeadLetter>)>,
    /// At most one; it gives `None` where the store does not take it any more.
    writing: JoinSet<Option<Parked>>,
    abandon: CancellationToken,
}

impl Parking {
    pub(super) fn new(lease: Lease, store: Arc<dyn Store>) -> Self {
        Self {
            lease,
            store,
            waiting: VecDeque::new(),
            writing: JoinSet::new(),
            abandon: CancellationToken::new(),
        }
    }

    /// Parks events that follow each other in the tracker, all or none, however long the store is away.
    pub(super) fn park(
        &mut self,
        first: Seq,
        handlers: Option<HandlerSet>,
        letters: Vec<DeadLetter>,
    ) {
        for letter in &letters {
            warn!(
                subscription = self.lease.key.name,
                handler = letter.handler,
                identity = %letter.identity,
                replay_id = letter.replay_id.as_ref().map(tracing::field::display),
                reason = letter.reason,
                error = letter.error,
                "event parked"
            );
        }
        let seqs = first..first + letters.len() as Seq;
        self.waiting.push_back((Parked { seqs, handlers }, letters));
        self.write_next();
    }

    /// The next event that is stored; `None` where another worker has taken over. Never ends while there is
    /// nothing to park. Cancel-safe.
    pub(super) async fn done(&mut self) -> Option<Parked> {
        let Some(written) = self.writing.join_next().await else {
            return std::future::pending().await;
        };
        let parked = written.unwrap_or_else(|error| end_of_task(error))?;
        self.write_next();
        Some(parked)
    }

    /// True where nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_empty()
    }

    /// Gives up what is not stored yet: those events come again.
    pub(super) fn abandon(&self) {
        self.abandon.cancel();
    }

    fn write_next(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        let Some((parked, letters)) = self.waiting.pop_front() else {
            return;
        };
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let abandon = self.abandon.clone();
        let letters: Arc<[DeadLetter]> = letters.into();
        self.writing.spawn(async move {
            super::persist(&store, &lease, &abandon, "park an event", |store, lease| {
                let letters = letters.clone();
                async move {
                    let began = Instant::now();
                    let parked = store.park_all(&lease, &letters).await;
                    metrics::store_called("park", began.elapsed());
                    parked
                }
            })
            .await
            .then_some(parked)
        });
    }
}

/// The events of a unit as dead letters of one handler.
pub(super) fn dead_letters(
    waiting: &Waiting,
    handler: &str,
    reason: &str,
    error: &str,
) -> Vec<DeadLetter> {
    let unit = unit_name(&waiting.unit);
    let letter = |event: &Arc<Event>| DeadLetter {
        unit: unit.clone(),
        ..dead_letter(event, Some(handler), reason, error, waiting.attempts)
    };
    waiting.unit.events().iter().map(letter).collect()
}

/// An event by itself as a dead letter of one handler, or of all.
pub(super) fn dead_letter(
    event: &Event,
    handler: Option<&str>,
    reason: &str,
    error: &str,
    attempts: u32,
) -> DeadLetter {
    DeadLetter {
        identity: event.identity(),
        handler: handler.map(str::to_owned),
        reason: reason.to_owned(),
        error: error.to_owned(),
        attempts,
        event_uuid: event.raw.id.clone(),
        replay_id: event.raw.replay_id.clone(),
        schema_id: event.raw.schema_id.clone(),
        payload: event.raw.payload.clone(),
        record_ids: event.record_ids().to_vec(),
        record_name: Some(event.decoded.record_name.to_string()),
        unit: None,
        received_at: event.received_at,
    }
}
