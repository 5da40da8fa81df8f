//! Putting events on the bus from within the org: from JSON, as transactions, or as captured bytes.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::bus::{NewEntry, StoredEvent, replay_id};
use super::change_events::{self, Defaults, EventError, is_change_event};
use super::oauth::USER_ID;
use super::org::{Org, State};
use super::topics::ServedSchema;
use crate::event::{SchemaId, Topic};

/// An event that is on the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its place, in hexadecimal.
    pub replay_id: String,
    /// Its ID.
    pub id: String,
}

/// Events to publish, as JSON.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishJson {
    /// The events' own topic, not a channel.
    pub topic: String,
    /// The events' fields. A change event may hold a partial `ChangeEventHeader` with field names.
    pub events: Vec<Value>,
    /// A version of the topic's schema; the newest by default.
    #[serde(default)]
    pub schema_id: Option<String>,
    /// Event IDs, in order; random UUIDs by default.
    #[serde(default)]
    pub ids: Vec<String>,
    /// By record ID, the values that channels add as enriched fields; null where left out.
    #[serde(default)]
    pub enriched: Map<String, Value>,
}

/// Change events of one transaction.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactionJson {
    /// Shared by the events; random by default.
    #[serde(default)]
    pub transaction_key: Option<String>,
    /// In order.
    pub events: Vec<TransactionEvent>,
}

/// One event of a transaction.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactionEvent {
    /// Its own topic.
    pub topic: String,
    /// Its fields.
    pub event: Value,
    /// Place in the transaction; by default one more than the event before. A jump is what a client
    /// sees where entities between are not selected.
    #[serde(default)]
    pub sequence_number: Option<i32>,
    /// Event ID; a random UUID by default.
    #[serde(default)]
    pub id: Option<String>,
    /// By record ID, the values that channels add as enriched fields; null where left out.
    #[serde(default)]
    pub enriched: Map<String, Value>,
}

/// Why nothing was published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not the name of a topic.
    #[error("{0}")]
    Topic(String),
    /// The org has no such topic.
    #[error("no topic {0}; give it a schema first")]
    NoTopic(String),
    /// The topic has no such schema, or the schema is not valid Avro.
    #[error("{topic} has no usable schema {schema_id}; add it first")]
    NoSchema {
        /// Of the request.
        topic: String,
        /// Asked for, or `at all`.
        schema_id: String,
    },
    /// An event does not fit its schema.
    #[error("event {index}: {reason}")]
    Event {
        /// From 0.
        index: usize,
        /// Which field, and why; never its value.
        reason: String,
    },
    /// A captured response that is none.
    #[error("not a captured FetchResponse: {0}")]
    Captured(String),
}

/// One event on its way to the bus.
struct Outline<'a> {
    topic: &'a str,
    schema_id: Option<&'a str>,
    id: Option<&'a String>,
    fields: &'a Value,
    enriched: &'a Map<String, Value>,
    transaction_key: String,
    sequence_number: i32,
}

impl Org {
    /// Publishes events of one topic; all or none.
    pub(super) fn publish_json(
        &self,
        request: &PublishJson,
    ) -> Result<Vec<Published>, PublishError> {
        let outlines = request
            .events
            .iter()
            .enumerate()
            .map(|(index, fields)| Outline {
                topic: &request.topic,
                schema_id: request.schema_id.as_deref(),
                id: request.ids.get(index),
                fields,
                enriched: &request.enriched,
                transaction_key: uuid::Uuid::new_v4().to_string(),
                sequence_number: 1,
            });
        self.publish_outlines(outlines)
    }

    /// Publishes a transaction; all or none, with nothing between.
    pub(super) fn publish_transaction(
        &self,
        request: &TransactionJson,
    ) -> Result<Vec<Published>, PublishError> {
        let key = request
            .transaction_key
            .clone()
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let mut sequence_number = 0;
        let outlines = request.events.iter().map(|event| {
            sequence_number = event.sequence_number.unwrap_or(sequence_number + 1);
            Outline {
                topic: &event.topic,
                schema_id: None,
                id: event.id.as_ref(),
                fields: &event.event,
                enriched: &event.enriched,
                transaction_key: key.clone(),
                sequence_number,
            }
        });
        self.publish_outlines(outlines)
    }

    fn publish_outlines<'a>(
        &self,
        outlines: impl Iterator<Item = Outline<'a>>,
    ) -> Result<Vec<Published>, PublishError> {
        let now_ms = self.clock.now_ms();
        let at = self.clock.now();
        self.change(|state| {
            let mut entries = Vec::new();
            for (index, outline) in outlines.enumerate() {
                entries.push(prepare(state, index, &outline, now_ms)?);
            }
            Ok(entries
                .into_iter()
                .map(|entry| append(state, entry, at))
                .collect())
        })
    }

    /// Puts events on the bus byte for byte; the topic comes to be where there was none.
    pub(super) fn publish_raw(
        &self,
        topic: &str,
        events: Vec<StoredEvent>,
    ) -> Result<Vec<Published>, PublishError> {
        let topic: Topic = topic
            .parse()
            .map_err(|error| PublishError::Topic(format!("{error}")))?;
        let at = self.clock.now();
        self.change(|state| {
            let topic = state.topics.offer(&topic).map_err(PublishError::Topic)?;
            Ok(events
                .into_iter()
                .map(|event| {
                    let entry = NewEntry {
                        topic: Arc::clone(&topic),
                        event,
                        siblings: Vec::new(),
                    };
                    append(state, entry, at)
                })
                .collect())
        })
    }
}

fn append(state: &mut State, entry: NewEntry, at: std::time::SystemTime) -> Published {
    let id = entry.event.id.clone();
    let position = state.bus.append(entry, at);
    Published {
        replay_id: hex::encode(replay_id(position)),
        id,
    }
}

/// Encodes one event, and what enriching channels deliver in its place.
fn prepare(
    state: &mut State,
    index: usize,
    outline: &Outline<'_>,
    now_ms: i64,
) -> Result<NewEntry, PublishError> {
    let served = schema_for(state, outline)?;
    let no_schema = || PublishError::NoSchema {
        topic: outline.topic.to_owned(),
        schema_id: served.id.as_str().to_owned(),
    };
    let schema = served.schema.as_ref().ok_or_else(no_schema)?;
    state.commits += 1;
    let defaults = Defaults {
        now_ms,
        transaction_key: outline.transaction_key.clone(),
        sequence_number: outline.sequence_number,
        // Nanoseconds since 1970, as newer orgs send it: beyond 2^53, and growing.
        commit_number: now_ms
            .saturating_mul(1_000_000)
            .saturating_add(state.commits),
        user_id: USER_ID.to_owned(),
    };
    let refuse = |error: EventError| PublishError::Event {
        index,
        reason: error.to_string(),
    };
    let new_id = || uuid::Uuid::new_v4().to_string();
    let id = outline.id.cloned().unwrap_or_else(new_id);
    let store = |payload: Vec<u8>, id: String| StoredEvent {
        id,
        schema_id: served.id.clone(),
        payload: payload.into(),
    };
    let payload = change_events::encode(schema, outline.fields, &defaults).map_err(refuse)?;
    let mut siblings = Vec::new();
    if is_change_event(schema) {
        for (channel, enriched_fields) in state.topics.enriching(outline.topic) {
            let payloads = change_events::enriched(
                schema,
                outline.fields,
                &enriched_fields,
                outline.enriched,
                &defaults,
            )
            .map_err(refuse)?;
            if !payloads.is_empty() {
                // The first one is the event itself; what is split off from it has an ID of its own.
                let ids = std::iter::once(id.clone()).chain(std::iter::repeat_with(new_id));
                let events = payloads.into_iter().zip(ids);
                let events = events.map(|(payload, id)| store(payload, id));
                siblings.push((channel, events.collect()));
            }
        }
    }
    Ok(NewEntry {
        topic: outline.topic.into(),
        event: store(payload, id),
        siblings,
    })
}

fn schema_for(state: &State, outline: &Outline<'_>) -> Result<Arc<ServedSchema>, PublishError> {
    let topic: Topic = outline
        .topic
        .parse()
        .map_err(|error| PublishError::Topic(format!("{error}")))?;
    if topic.is_channel() || topic.as_str() != outline.topic {
        return Err(PublishError::Topic(format!(
            "`{}` is not the full name of a topic that holds events",
            outline.topic
        )));
    }
    if state.topics.facts(outline.topic).is_none() {
        return Err(PublishError::NoTopic(outline.topic.to_owned()));
    }
    let schema = match outline.schema_id {
        Some(id) => state.topics.schema(&SchemaId::new(id)),
        None => state.topics.current_schema(outline.topic),
    };
    schema.ok_or_else(|| PublishError::NoSchema {
        topic: outline.topic.to_owned(),
        schema_id: outline.schema_id.unwrap_or("at all").to_owned(),
    })
}

/// The events of a captured FetchResponse, in either form that clients print it: protobuf JSON with
/// base64, or the .NET client's list with arrays of bytes.
pub fn captured_events(captured: &Value) -> Result<Vec<StoredEvent>, PublishError> {
    let member = |value: &Value, names: [&str; 3]| -> Value {
        names
            .iter()
            .find_map(|name| value.get(name).cloned())
            .unwrap_or_default()
    };
    let events = match captured {
        Value::Array(events) => events.clone(),
        _ => match member(captured, ["events", "Events", "results"]) {
            Value::Array(events) => events,
            _ => return Err(PublishError::Captured("it has no list of events".into())),
        },
    };
    let text = |value: Value, what: &str| match value {
        Value::String(text) => Ok(text),
        _ => Err(PublishError::Captured(format!("an event has no {what}"))),
    };
    events
        .iter()
        .map(|consumer| {
            let event = member(consumer, ["event", "Event", "producerEvent"]);
            Ok(StoredEvent {
                id: text(member(&event, ["id", "Id", "ID"]), "id")?,
                schema_id: SchemaId::new(&text(
                    member(&event, ["schemaId", "schema_id", "SchemaId"]),
                    "schema ID",
                )?),
                payload: bytes_of(&member(&event, ["payload", "Payload", "PAYLOAD"]))?,
            })
        })
        .collect()
}

/// Bytes as base64 text or as a list of numbers, signed ones too.
fn bytes_of(value: &Value) -> Result<Bytes, PublishError> {
    let wrong = || PublishError::Captured("an event's payload is neither base64 nor bytes".into());
    match value {
        Value::String(text) => BASE64_STANDARD
            .decode(text)
            .map(Bytes::from)
            .map_err(|_| wrong()),
        Value::Array(numbers) => numbers
            .iter()
            .map(|number| {
                let number = number.as_i64().filter(|n| (-128..256).contains(n));
                // Java prints bytes as signed numbers.
                number.map(|n| n.rem_euclid(256) as u8).ok_or_else(wrong)
            })
            .collect(),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_captured_responses_are_read() {
        let json = serde_json::json!({"events": [{"event":
            {"id": "a", "schemaId": "s", "payload": "AQI="}, "replayId": "AAAAAAAXkFAAAA=="}]});
        let dotnet = serde_json::json!([{"Event":
            {"Id": "a", "SchemaId": "s", "Payload": [1, 2], "Headers": []}, "ReplayId": [0, 1]}]);
        for captured in [json, dotnet] {
            let events = captured_events(&captured).unwrap();
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].payload.as_ref(), [1, 2]);
            assert_eq!(events[0].schema_id.as_str(), "s");
        }
        assert!(captured_events(&serde_json::json!({"x": 1})).is_err());
        let wrong = serde_json::json!([{"Event": {"Id": "a", "SchemaId": "s", "Payload": [256]}}]);
        assert!(captured_events(&wrong).is_err());
    }
}
