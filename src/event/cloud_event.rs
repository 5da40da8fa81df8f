//! An event as CloudEvents 1.0 JSON: one mapping, used by every handler (design 4.3).

use std::convert::Infallible;
use std::fmt;
use std::io::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Event;

/// Bytes of JSON that the attributes of most events take.
pub(crate) const ATTRIBUTES_SIZE: usize = 768;

/// A view of an [`Event`] as a CloudEvents JSON object.
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
        let mut text = String::new();
        self.put_type_name(&mut text);
        text
    }

    fn put_type_name(&self, text: &mut String) {
        let parts: [&str; 4] = match &self.event.decoded.header {
            Some(header) => {
                let change = header.change_type.symbol();
                ["com.salesforce.cdc.", &header.entity_name, ".", change]
            }
            None => [
                "com.salesforce.event.",
                &self.event.decoded.record_name,
                "",
                "",
            ],
        };
        let [.., change] = parts;
        parts.iter().for_each(|part| text.push_str(part));
        let from = text.len() - change.len();
        if let Some(change) = text.get_mut(from..) {
            change.make_ascii_lowercase();
        }
        text.push_str(".v1");
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
        let mut text = String::new();
        self.put_source(&mut text);
        text
    }

    fn put_source(&self, text: &mut String) {
        let source = &self.event.source;
        if !source.host.is_empty() {
            text.push_str("//");
            text.push_str(&source.host);
        }
        text.push('/');
        text.push_str(source.org_id.as_str());
        text.push_str(source.topic.as_str());
    }

    /// The whole object as JSON text, without a newline at its end. `data` stands in it as the decoder wrote it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(self.event.decoded.data.len() + ATTRIBUTES_SIZE);
        self.append_json(&mut json);
        json
    }

    /// Appends what [`CloudEvent::to_json`] gives.
    pub fn append_json(&self, json: &mut Vec<u8>) {
        let mut before: &[u8] = b"{\"";
        let Ok(()) = self.each_attribute(|name, value| {
            json.extend_from_slice(before);
            json.extend_from_slice(name.as_bytes());
            json.extend_from_slice(b"\":");
            before = b",\"";
            value.append_json(json);
            Ok::<(), Infallible>(())
        });
        json.extend_from_slice(b",\"data\":");
        json.extend_from_slice(&self.event.decoded.data);
        json.push(b'}');
    }
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
        // One buffer for all that has to be put together.
        let mut text = String::with_capacity(128);
        show("specversion", Text("1.0"))?;
        show("id", Text(event.identity().as_str()))?;
        self.put_source(&mut text);
        show("source", Text(&text))?;
        text.clear();
        self.put_type_name(&mut text);
        show("type", Text(&text))?;
        if let Some(subject) = self.subject() {
            show("subject", Text(subject))?;
        }
        show("time", Text(&rfc3339(event.occurred_at())))?;
        show("datacontenttype", Text("application/json"))?;
        text.clear();
        text.push_str("urn:salesforce:avro:");
        text.push_str(event.raw.schema_id.as_str());
        show("dataschema", Text(&text))?;
        show("topic", Text(event.source.topic.as_str()))?;
        if let Some(replay_id) = &event.raw.replay_id {
            text.clear();
            replay_id.put_hex(&mut text);
            show("replayid", Text(&text))?;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Attribute<'_> {
    fn append_json(self, json: &mut Vec<u8>) {
        // Neither fails: the text is text, and a vector takes what it is given.
        let _ = match self {
            Self::Text(text) => serde_json::to_writer(json, text).map_err(Into::into),
            Self::Integer(number) => write!(json, "{number}"),
            Self::Boolean(truth) => write!(json, "{truth}"),
        };
    }
}
