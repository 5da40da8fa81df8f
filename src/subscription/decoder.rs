//! The decoder: from payload bytes to an event, in stream order (design 3.1, rule 9).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::forms::Forms;
use super::in_flight::InFlight;
use super::observe::Observer;
use super::reader::Arrival;
use crate::avro::{DecodeFailure, Schema, SchemaCache, SchemaUnavailable, peek_header};
use crate::config::BackoffConfig;
use crate::event::{
    ChangeEventHeader, Event, EventIdentity, RawEvent, ReplayId, SchemaId, SmolStr, Source,
};
use crate::store::DeadLetter;

/// What the decoder hands on, in stream order.
#[derive(Debug)]
pub(super) enum Item {
    /// A decoded event.
    Event(Arc<Event>),
    /// An event that no handler can be given.
    Undecodable(Box<Undecodable>),
    /// Nothing new up to this place, when that came.
    Keepalive(ReplayId, SystemTime),
    /// The position stays before what comes next until this tells that a hole before it is stored.
    Pinned(oneshot::Receiver<()>),
    /// From here on the bus knows the places that come.
    NewPlaces,
    /// Events under an incomplete replay ID come again. `continues` where the stream begins just after
    /// the last place known.
    Resumed { continues: bool },
}

/// An event that could not be decoded.
#[derive(Debug)]
pub(super) struct Undecodable {
    pub(super) raw: RawEvent,
    pub(super) received_at: SystemTime,
    /// The change header, where at least that could be read.
    pub(super) header: Option<ChangeEventHeader>,
    /// `undecodable`, `schema_refused` or `schema_unavailable`.
    pub(super) reason: &'static str,
    /// For a person.
    pub(super) error: String,
    /// Off the stream of a side replay.
    pub(super) replayed: bool,
}

impl Undecodable {
    /// What tells it from every other event, as far as it can be read.
    pub(super) fn identity(&self) -> EventIdentity {
        let header = self.header.as_ref();
        match header.and_then(|header| header.record_ids.first()) {
            Some(record_id) => self.raw.identity(Some(record_id)),
            None => self.raw.identity_unread(),
        }
    }

    /// As a dead letter: nobody was given it.
    pub(super) fn letter(&self) -> DeadLetter {
        let header = self.header.as_ref();
        DeadLetter {
            identity: self.identity(),
            handler: None,
            reason: self.reason.to_owned(),
            error: self.error.clone(),
            attempts: 0,
            event_uuid: self.raw.id.to_string(),
            replay_id: self.raw.replay_id.clone(),
            schema_id: self.raw.schema_id.clone(),
            payload: self.raw.payload.clone(),
            record_ids: header
                .map(|header| header.record_ids.iter().map(SmolStr::to_string).collect())
                .unwrap_or_default(),
            record_name: None,
            unit: None,
            place: None,
            received_at: self.received_at,
            commit: header.and_then(|header| header.commit(self.received_at)),
            ahead: false,
            replayed: self.replayed,
            sealed: false,
        }
    }
}

/// Pauses between attempts to get a schema that cannot be had just now.
const SCHEMA_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(30),
};

/// Makes events of payloads: of those that arrive, and of those that were parked.
#[derive(Debug, Clone)]
pub(super) struct EventMaker {
    pub(super) source: Arc<Source>,
    pub(super) epoch: i64,
    /// True for the stream of a side replay.
    pub(super) replayed: bool,
    /// Field that orders platform events.
    pub(super) key: Option<String>,
    /// What handlers are shown of events.
    pub(super) forms: Arc<Forms>,
}

impl EventMaker {
    /// Decodes with the schema that wrote the payload; gives that back where it does not decode.
    pub(super) fn make(
        &self,
        schema: &Schema,
        raw: RawEvent,
        received_at: SystemTime,
    ) -> Result<Arc<Event>, Box<(RawEvent, DecodeFailure)>> {
        let decoded = match schema.decode(&raw.payload) {
            Ok(decoded) => decoded,
            Err(failure) => return Err(Box::new((raw, failure))),
        };
        let key = match (&self.key, &decoded.header) {
            (Some(field), None) => schema.key_text(&raw.payload, field),
            _ => None,
        };
        self.forms
            .look_at(schema, &raw.schema_id, decoded.header.as_deref());
        Ok(Arc::new(Event {
            source: self.source.clone(),
            raw,
            shown: self.forms.of(&decoded),
            known_as: OnceLock::new(),
            decoded,
            received_at,
            epoch: self.epoch,
            replayed: self.replayed,
            partial: false,
            key,
        }))
    }
}

/// Everything the decoder needs.
pub(super) struct Decoder {
    pub(super) subscription: String,
    pub(super) maker: EventMaker,
    /// How long a schema that cannot be had just now holds everything up.
    pub(super) schema_wait: Duration,
    pub(super) schemas: Arc<SchemaCache>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) observer: Observer,
    pub(super) stop: CancellationToken,
    /// Since when a schema could not be had: the wait is for the schema, not for each of its events.
    pub(super) missing: HashMap<SchemaId, Instant>,
    /// That of the last event: the next one's, most often.
    pub(super) last_schema: Option<(SchemaId, Arc<Schema>)>,
}

impl Decoder {
    /// Runs until the arrivals end, or until it is told to stop while it waits for a schema.
    pub(super) async fn run(
        mut self,
        mut arrivals: mpsc::UnboundedReceiver<Vec<Arrival>>,
        items: mpsc::UnboundedSender<Vec<Item>>,
    ) {
        while let Some(batch) = arrivals.recv().await {
            let mut out = Vec::with_capacity(batch.len());
            let mut used_again = 0;
            for arrival in batch {
                let item = match arrival {
                    Arrival::Keepalive { id, received_at } => Item::Keepalive(id, received_at),
                    Arrival::Pinned(stored) => Item::Pinned(stored),
                    Arrival::NewPlaces => Item::NewPlaces,
                    Arrival::Resumed { continues } => Item::Resumed { continues },
                    Arrival::Event { raw, received_at } => match &self.last_schema {
                        Some((id, schema)) if *id == raw.schema_id => {
                            used_again += 1;
                            self.decode_with(schema, raw, received_at)
                        }
                        _ => match self.decode(raw, received_at, &mut out, &items).await {
                            Some(item) => item,
                            None => return,
                        },
                    },
                };
                out.push(item);
            }
            self.schemas.used_again(used_again);
            if items.send(out).is_err() {
                return; // the delivery has ended
            }
        }
    }

    /// `None` where it was told to stop while it waited.
    async fn decode(
        &mut self,
        raw: RawEvent,
        received_at: SystemTime,
        ready: &mut Vec<Item>,
        items: &mpsc::UnboundedSender<Vec<Item>>,
    ) -> Option<Item> {
        let schema = tokio::select! {
            biased; // what is in memory is decoded even while stopping
            schema = self.schemas.get(&raw.schema_id) => schema,
            () = self.stop.cancelled() => return None,
        };
        let schema = match schema {
            Ok(schema) => Ok(schema),
            Err(SchemaUnavailable::Later(_)) => {
                // What came before need not wait for this one's schema.
                let _ = items.send(std::mem::take(ready));
                self.in_flight.undecoded_since(Some(received_at));
                let schema = self.wait_for_schema(&raw.schema_id).await;
                self.in_flight.undecoded_since(None);
                schema?
            }
            Err(SchemaUnavailable::Refused(error)) => Err(("schema_refused", error)),
        };
        Some(match schema {
            Ok(schema) => {
                let id = raw.schema_id.clone();
                let item = self.decode_with(&schema, raw, received_at);
                self.last_schema = Some((id, schema));
                item
            }
            Err((reason, error)) => {
                let header = peek_header(&raw.payload);
                self.undecodable(raw, received_at, header, reason, error)
            }
        })
    }

    /// A schema that cannot be had just now is a barrier, for so long as is configured; after that its
    /// events get one attempt each.
    async fn wait_for_schema(
        &mut self,
        id: &SchemaId,
    ) -> Option<Result<Arc<Schema>, (&'static str, String)>> {
        let began = *self.missing.entry(id.clone()).or_insert_with(Instant::now);
        let mut backoff = Backoff::new(SCHEMA_RETRY);
        loop {
            let pause = backoff
                .next_pause()
                .min(self.schema_wait.saturating_sub(began.elapsed()));
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            let schema = tokio::select! {
                schema = self.schemas.get(id) => schema,
                () = self.stop.cancelled() => return None,
            };
            match schema {
                Ok(schema) => {
                    self.missing.remove(id);
                    info!(
                        subscription = self.subscription,
                        schema_id = %id,
                        waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                        "schema came"
                    );
                    return Some(Ok(schema));
                }
                Err(SchemaUnavailable::Refused(error)) => {
                    return Some(Err(("schema_refused", error)));
                }
                Err(SchemaUnavailable::Later(error)) if began.elapsed() >= self.schema_wait => {
                    return Some(Err(("schema_unavailable", error)));
                }
                Err(SchemaUnavailable::Later(error)) => warn!(
                    subscription = self.subscription,
                    schema_id = %id,
                    error,
                    "schema cannot be had now; events wait for it"
                ),
            }
        }
    }

    fn decode_with(&self, schema: &Schema, raw: RawEvent, received_at: SystemTime) -> Item {
        match self.maker.make(schema, raw, received_at) {
            Ok(event) => {
                self.observer.ignored_bits(event.decoded.ignored_bits);
                Item::Event(event)
            }
            Err(failed) => {
                let (raw, failure) = *failed;
                let error = failure.error.to_string();
                self.undecodable(raw, received_at, failure.header, "undecodable", error)
            }
        }
    }

    fn undecodable(
        &self,
        raw: RawEvent,
        received_at: SystemTime,
        header: Option<ChangeEventHeader>,
        reason: &'static str,
        error: String,
    ) -> Item {
        self.observer.decode_failure(reason);
        warn!(
            subscription = self.subscription,
            topic = %self.maker.source.topic(),
            replay_id = raw.replay_id.as_ref().map(tracing::field::display),
            schema_id = %raw.schema_id,
            reason,
            error,
            "event cannot be decoded: it is parked with its bytes"
        );
        Item::Undecodable(Box::new(Undecodable {
            raw,
            received_at,
            header,
            reason,
            error,
            replayed: self.maker.replayed,
        }))
    }
}
