//! What a Subscribe stream brings, read off the wire: from a frame's bytes straight to a [`FetchBatch`].
//!
//! A response holds up to a hundred events, and all that generated code would make of one is taken apart again at once.
//! So what responses look like is read here; what looks otherwise (headers, fields that are new to us, bytes that are no
//! response) goes through the generated types, which alone say what is right.

use bytes::{Buf as _, Bytes};
use bytestring::ByteString;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::FetchBatch;
use super::proto::{ConsumerEvent, FetchRequest, FetchResponse};
use crate::event::{RawEvent, ReplayId, SchemaId};

// Keys of the fields (number and wire type) in `proto/pubsub_api.proto`.
const RESPONSE_EVENT: u8 = 0x0a;
const RESPONSE_LATEST_REPLAY_ID: u8 = 0x12;
const RESPONSE_RPC_ID: u8 = 0x1a;
const RESPONSE_PENDING: u8 = 0x20;
const CONSUMER_EVENT: u8 = 0x0a;
const CONSUMER_REPLAY_ID: u8 = 0x12;
const PRODUCER_ID: u8 = 0x0a;
const PRODUCER_SCHEMA_ID: u8 = 0x12;
const PRODUCER_PAYLOAD: u8 = 0x1a;

/// How Subscribe is spoken.
#[derive(Debug, Default)]
pub(super) struct SubscribeCodec;

impl Codec for SubscribeCodec {
    type Encode = FetchRequest;
    type Decode = FetchBatch;
    type Encoder = ProstEncoder<FetchRequest>;
    type Decoder = Responses;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Responses::default()
    }
}

/// Reads the responses of one stream.
#[derive(Debug, Default)]
pub(super) struct Responses {
    /// The schema of the event that came last: most often that of the next, too.
    last_schema: Option<SchemaId>,
}

impl Decoder for Responses {
    type Item = FetchBatch;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<FetchBatch>, Status> {
        let frame = source.copy_to_bytes(source.remaining());
        self.read(frame).map(Some)
    }
}

impl Responses {
    /// The events' IDs and payloads are slices of the frame: it stays in memory for as long as one of them does. An
    /// event is let go of in the order of the stream, so that this is one frame more than what is in flight.
    pub(super) fn read(&mut self, frame: Bytes) -> Result<FetchBatch, Status> {
        if let Some(batch) = self.read_plain(&frame) {
            return Ok(batch);
        }
        let response = FetchResponse::decode(frame);
        let response = response.map_err(|error| Status::internal(error.to_string()))?;
        Ok(FetchBatch {
            events: (response.events.into_iter())
                .map(|event| self.generated(event))
                .collect(),
            latest_replay_id: ReplayId::from_wire(&response.latest_replay_id),
            pending_num_requested: owed(response.pending_num_requested),
            rpc_id: response.rpc_id,
        })
    }

    /// An event without a body is kept: it cannot be decoded, is parked, and so is not lost.
    pub(super) fn generated(&mut self, event: ConsumerEvent) -> RawEvent {
        let body = event.event.unwrap_or_default();
        RawEvent {
            id: body.id.into(),
            schema_id: self.schema_id(&body.schema_id),
            payload: body.payload,
            replay_id: ReplayId::from_wire(&event.replay_id),
        }
    }

    /// `None` for anything but the fields that every response has.
    pub(super) fn read_plain(&mut self, frame: &Bytes) -> Option<FetchBatch> {
        let mut batch = FetchBatch {
            events: Vec::new(),
            latest_replay_id: None,
            pending_num_requested: 0,
            rpc_id: String::new(),
        };
        let mut rest = Fields(frame);
        while let Some(key) = rest.key() {
            match key {
                RESPONSE_EVENT => {
                    let event = self.event(frame, rest.bytes()?)?;
                    if batch.events.is_empty() {
                        // The others are about as long.
                        let left = rest.0.len() / (frame.len() - rest.0.len());
                        batch
                            .events
                            .reserve(left.min(super::MAX_OUTSTANDING as usize) + 1);
                    }
                    batch.events.push(event);
                }
                RESPONSE_LATEST_REPLAY_ID => {
                    batch.latest_replay_id = ReplayId::from_wire(rest.bytes()?);
                }
                RESPONSE_RPC_ID => batch.rpc_id = rest.text()?.to_owned(),
                // An int32 is sent as 64 bits and read as the lower half of them.
                RESPONSE_PENDING => batch.pending_num_requested = owed(rest.varint()? as i32),
                _ => return None,
            }
        }
        Some(batch)
    }

    fn event(&mut self, frame: &Bytes, bytes: &[u8]) -> Option<RawEvent> {
        let (mut body, mut replay_id) = (None, None);
        let mut rest = Fields(bytes);
        while let Some(key) = rest.key() {
            match key {
                // What is sent in two pieces is to be merged.
                CONSUMER_EVENT if body.is_none() => body = Some(rest.bytes()?),
                CONSUMER_REPLAY_ID => replay_id = ReplayId::from_wire(rest.bytes()?),
                _ => return None,
            }
        }
        let (mut id, mut schema_id, mut payload) = (&[][..], "", &[][..]);
        let mut rest = Fields(body.unwrap_or_default());
        while let Some(key) = rest.key() {
            match key {
                PRODUCER_ID => id = rest.bytes()?,
                PRODUCER_SCHEMA_ID => schema_id = rest.text()?,
                PRODUCER_PAYLOAD => payload = rest.bytes()?,
                _ => return None,
            }
        }
        Some(RawEvent {
            id: ByteString::try_from(frame.slice_ref(id)).ok()?,
            schema_id: self.schema_id(schema_id),
            payload: frame.slice_ref(payload),
            replay_id,
        })
    }

    fn schema_id(&mut self, text: &str) -> SchemaId {
        match &self.last_schema {
            Some(last) if last.as_str() == text => last.clone(),
            _ => self.last_schema.insert(SchemaId::new(text)).clone(),
        }
    }
}

/// Less than nothing is nothing.
pub(super) fn owed(pending_num_requested: i32) -> u32 {
    u32::try_from(pending_num_requested).unwrap_or(0)
}

/// The fields of a message that are not read yet. `None` where the bytes are no message, or one that is written in an
/// unusual way.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's key; `None` at the end. Those of our fields are all of one byte.
    fn key(&mut self) -> Option<u8> {
        let (key, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*key)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        // Nine groups of seven bits; a tenth, which a negative number has, is left to the generated code.
        for at in 0..9 {
            let byte = *self.0.get(at)?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
#[path = "responses_tests.rs"]
mod tests;
