//! An event as CloudEvents 1.0 JSON: one mapping, used by every handler (design 4.3).

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde::ser::{Error as _, SerializeMap};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ChangeType, Event};

/// A view of an [`Event`] that serialises as a CloudEvents JSON object.
#[derive(Debug, Clone, Copy)]
pub struct CloudEvent<'a> {
    event: &'a Event,
}

impl<'a> CloudEvent<'a> {
    pub(super) fn new(event: &'a Event) -> Self {
        Self { event }
    }

    /// `com.salesforce.cdc.Account.update.v1` or `com.salesforce.event.Order__e.v1`.
    pub fn type_name(&self) -> String {
        match &self.event.decoded.header {
            Some(header) => format!(
                "com.salesforce.cdc.{}.{}.v1",
                header.entity_name,
                type_suffix(&header.change_type)
            ),
            None => format!("com.salesforce.event.{}.v1", self.event.decoded.record_name),
        }
    }

    /// The record the event is about: the first one it names, or the value of the `key` field.
    pub fn subject(&self) -> Option<&'a str> {
        self.event
            .record_ids()
            .first()
            .map(String::as_str)
            .or(self.event.key.as_deref())
    }

    /// `//<my-domain host>/<org id><topic>`; `/<org id><topic>` where the host is not known.
    pub fn source(&self) -> String {
        let source = &self.event.source;
        if source.host.is_empty() {
            return format!("/{}{}", source.org_id, source.topic);
        }
        format!("//{}/{}{}", source.host, source.org_id, source.topic)
    }

    /// The whole object as one line of JSON text, without a newline.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

fn type_suffix(change_type: &ChangeType) -> String {
    change_type.symbol().to_ascii_lowercase()
}

/// A time as RFC 3339 text in UTC, from 1970 to the end of the year 9999; what lies outside is moved
/// to the nearer end, because commit times come from outside and may be anything.
pub fn rfc3339(time: SystemTime) -> String {
    let since_1970 = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i128::try_from(since_1970.as_nanos())
        .ok()
        .and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

impl CloudEvent<'_> {
    /// Shows each attribute, in the order of the JSON object, by its name: everything but `data`, which is
    /// [`Decoded::data`](super::Decoded::data). Ends with the first error that `show` gives.
    ///
    /// For what carries attributes beside the data, as headers do.
    pub fn each_attribute<E>(
        &self,
        mut show: impl FnMut(&'static str, Attribute<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        use Attribute::{Boolean, Integer, Text};
        let event = self.event;
        show("specversion", Text("1.0"))?;
        show("id", Text(event.identity().as_str()))?;
        show("source", Text(&self.source()))?;
        show("type", Text(&self.type_name()))?;
        if let Some(subject) = self.subject() {
            show("subject", Text(subject))?;
        }
        show("time", Text(&rfc3339(event.occurred_at())))?;
        show("datacontenttype", Text("application/json"))?;
        let schema = format!("urn:salesforce:avro:{}", event.raw.schema_id);
        show("dataschema", Text(&schema))?;
        show("topic", Text(event.source.topic.as_str()))?;
        if let Some(replay_id) = &event.raw.replay_id {
            show("replayid", Text(&replay_id.to_string()))?;
        }
        show("orgid", Text(event.source.org_id.as_str()))?;
        if let Some(key) = self.subject() {
            show("partitionkey", Text(key))?;
        }
        show("eventuuid", Text(&event.raw.id))?;
        show("epoch", Integer(event.epoch))?;
        if event.replayed {
            show("replayed", Boolean(true))?;
        }
        if event.partial {
            show("partial", Boolean(true))?;
        }
        Ok(())
    }
}

/// The value of an attribute. Its text is what CloudEvents calls the canonical string representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Attribute<'a> {
    /// Any text.
    Text(&'a str),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Boolean(bool),
}

impl fmt::Display for Attribute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(truth) => truth.fmt(f),
        }
    }
}

impl Serialize for CloudEvent<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data: &RawValue =
            serde_json::from_slice(&self.event.decoded.data).map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(None)?;
        self.each_attribute(|name, value| map.serialize_entry(name, &value))?;
        map.serialize_entry("data", data)?;
        map.end()
    }
}
