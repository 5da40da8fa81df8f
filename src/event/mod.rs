//! Events and the names around them: topics, replay IDs, schema IDs, identities. No I/O.
//!
//! Everything else in the crate speaks in these types; generated protobuf types and SQL rows stop
//! at the edges that produce them.

mod change;
mod cloud_event;
mod field_names;
mod ids;
mod shown;
mod source;
mod topic;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use aws_lc_rs::digest;
use bytes::Bytes;
pub use bytestring::ByteString;

pub use change::{ChangeEventHeader, ChangeType, Commit, RecordIds, is_entity_wide_id};
pub(crate) use cloud_event::ATTRIBUTES_SIZE;
pub use cloud_event::{Attribute, CloudEvent, rfc3339};
pub use field_names::FieldNames;
pub(crate) use field_names::{Bits, places};
pub use ids::{EventIdentity, InvalidId, OrgId, ReplayId, SchemaId};
pub use shown::Shown;
pub use smol_str::SmolStr;
pub use source::Source;
pub use topic::{InvalidTopic, Topic, TopicKind};

/// An event as it came off the bus: nothing decoded, nothing lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEvent {
    /// The publisher's own ID; usually a UUID, but a publisher may choose anything.
    pub id: ByteString,
    /// Names the schema that wrote the payload.
    pub schema_id: SchemaId,
    /// One binary Avro datum.
    pub payload: Bytes,
    /// The event's place on the bus. Rarely absent (facts section 10): such an event is handled, but
    /// the position never rests on it.
    pub replay_id: Option<ReplayId>,
}

impl RawEvent {
    /// Bytes that this event holds in memory, for the in-flight bound.
    pub fn size(&self) -> usize {
        self.payload.len() + self.id.len() + 128
    }

    /// What tells this event from every other, given its first record ID where that is known. The payload
    /// stands in for a place on the bus, where there is none.
    pub fn identity(&self, record_id: Option<&str>) -> EventIdentity {
        self.with_identity(record_id, EventIdentity::from_stored)
    }

    /// As [`RawEvent::identity`], for what only needs to see its text.
    fn with_identity<T>(&self, record_id: Option<&str>, then: impl FnOnce(&str) -> T) -> T {
        match &self.replay_id {
            Some(replay_id) => EventIdentity::with(&self.id, Some(replay_id), record_id, then),
            None => EventIdentity::with(&self.id, None, Some(&self.digest()), then),
        }
    }

    /// As [`RawEvent::identity`], for an event of which nothing could be read: siblings of one ID and one
    /// place on the bus differ in their payload at least.
    pub fn identity_unread(&self) -> EventIdentity {
        EventIdentity::new(&self.id, self.replay_id.as_ref(), Some(&self.digest()))
    }

    fn digest(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.payload);
        hex::encode(&digest.as_ref()[..16])
    }
}

/// What decoding adds to a [`RawEvent`].
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Name of the Avro record: `AccountChangeEvent`, `Order__e`. The only reliable type on a channel.
    pub record_name: Arc<str>,
    /// Present on change events.
    pub header: Option<Box<ChangeEventHeader>>,
    /// The CloudEvents `data` object as JSON text, by the rule of absence in the design (4.3): bitmaps
    /// are field names, unchanged fields are left out, fields set to null are null.
    pub data: Bytes,
    /// Bits of the header's bitmaps that name no field of the schema: ignored, but worth counting.
    pub ignored_bits: u32,
}

impl Decoded {
    /// Bytes that it holds in memory.
    pub(crate) fn size(&self) -> usize {
        let header = self.header.as_ref().map_or(0, |header| {
            512 + 48 * (header.record_ids.len() + header.changed_fields.len())
        });
        self.data.len() + header
    }
}

/// A decoded event on its way to the handlers.
#[derive(Debug, Clone)]
pub struct Event {
    /// Org and topic.
    pub source: Arc<Source>,
    /// As received; without its payload where that would tell more than [`Event::decoded`] shows, see
    /// [`Event::payload`].
    pub raw: RawEvent,
    /// As decoded, and as far as it is shown.
    pub decoded: Decoded,
    /// When this process received it.
    pub received_at: SystemTime,
    /// The lease epoch under which it was received, so that a receiver can refuse a stale worker.
    pub epoch: i64,
    /// True for an event that a replay brought back.
    pub replayed: bool,
    /// True where it was handed over with a part of its transaction, or with what may be a part of it.
    pub partial: bool,
    /// Value of the field that orders a platform event, where the subscription names one (`key`).
    pub key: Option<SmolStr>,
    /// How much of the event this is.
    pub shown: Shown,
    /// What it is known by, once somebody has asked.
    pub(crate) known_as: OnceLock<EventIdentity>,
}

impl Event {
    /// What tells this event from every other (design section 2).
    pub fn identity(&self) -> EventIdentity {
        match &self.shown {
            Shown::Part(identity) => identity.clone(),
            Shown::Whole | Shown::Forms(_) => self
                .known_as
                .get_or_init(|| self.raw.identity(self.first_record_id()))
                .clone(),
        }
    }

    /// Shows the text of [`Event::identity`], which is not kept if nobody has asked for it.
    fn with_identity<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        match (&self.shown, self.known_as.get()) {
            (Shown::Part(identity), _) | (_, Some(identity)) => then(identity.as_str()),
            _ => self.raw.with_identity(self.first_record_id(), then),
        }
    }

    fn first_record_id(&self) -> Option<&str> {
        self.record_ids().first().map(SmolStr::as_str)
    }

    /// The Avro datum as received; `None` where the handler is not shown all of the event's fields (`fields` in
    /// its configuration), of which the datum holds all. A handler that cannot do without says so by
    /// [`Handler::takes_payload`](crate::handler::Handler::takes_payload).
    pub fn payload(&self) -> Option<&Bytes> {
        match self.shown {
            Shown::Part(_) => None,
            Shown::Whole | Shown::Forms(_) => Some(&self.raw.payload),
        }
    }

    /// Bytes that this event holds in memory, decoded form included.
    pub fn size(&self) -> usize {
        self.raw.size() + self.decoded_size()
    }

    /// What its decoded form holds of them.
    pub(crate) fn decoded_size(&self) -> usize {
        self.decoded.size() + self.shown.size()
    }

    /// The record IDs a change event names; empty for platform events.
    pub fn record_ids(&self) -> &[SmolStr] {
        self.decoded
            .header
            .as_ref()
            .map_or(&[], |header| &header.record_ids)
    }

    /// When it happened: commit time of a change event, else the time of receipt.
    pub fn occurred_at(&self) -> SystemTime {
        self.decoded
            .header
            .as_ref()
            .and_then(|header| header.committed_at())
            .unwrap_or(self.received_at)
    }

    /// The event as CloudEvents JSON (design 4.3).
    pub fn cloud_event(&self) -> CloudEvent<'_> {
        CloudEvent::new(self)
    }
}
