//! An event as CloudEvents 1.0 JSON: one mapping, used by every handler (design 4.3).

use std::convert::Infallible;
use std::fmt;
use std::time::SystemTime;

use smol_str::SmolStr;
use time::OffsetDateTime;

use super::Event;
use super::source::Known;
use crate::json;

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
        self.with_type_name(|parts| parts.concat())
    }

    fn with_type_name<T>(&self, with: impl FnOnce(&[&str]) -> T) -> T {
        match &self.event.decoded.header {
            Some(header) => {
                let change = header.change_type.lowercase();
                let entity = &header.entity_name;
                with(&["com.salesforce.cdc.", entity, ".", &change, ".v1"])
            }
            None => {
                let record = &self.event.decoded.record_name;
                with(&["com.salesforce.event.", record, ".v1"])
            }
        }
    }

    /// The record the event is about: the first one it names, or the value of the `key` field.
    pub fn subject(&self) -> Option<&'a str> {
        self.event
            .record_ids()
            .first()
            .map(SmolStr::as_str)
            .or(self.event.key.as_deref())
    }

    /// `//<my-domain host>/<org id><topic>`; `/<org id><topic>` where the host is not known.
    pub fn source(&self) -> &'a str {
        &self.event.source.attributes.source.text
    }

    /// The whole object as JSON text, without a newline at its end. `data` stands in it as the decoder wrote it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::new();
        self.append_json(&mut json);
        json
    }

    /// Appends what [`CloudEvent::to_json`] gives.
    pub fn append_json(&self, json: &mut Vec<u8>) {
        json.reserve(self.event.decoded.data.len() + ATTRIBUTES_SIZE);
        json.push(b'{');
        let Ok(()) = self.attributes(&mut Members { json });
        json.extend_from_slice(b"\"data\":");
        json.extend_from_slice(&self.event.decoded.data);
        json.push(b'}');
    }

    /// Shows each attribute, in the order of the JSON object, by its name: everything but `data`, which is
    /// [`Decoded::data`](super::Decoded::data). Ends with the first error that `show` gives.
    ///
    /// For what carries attributes beside the data, as headers do.
    pub fn each_attribute<E>(
        &self,
        show: impl FnMut(&'static str, Attribute<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        // One buffer for all that has to be put together.
        let text = String::with_capacity(128);
        self.attributes(&mut Whole { show, text })
    }

    /// The one mapping: each attribute by its name, as what it is made of.
    #[inline]
    fn attributes<S: Show>(&self, to: &mut S) -> Result<(), S::Error> {
        use Value::{Boolean, Hex, Integer, Known, Text, Time};
        let event = self.event;
        let of_all = &event.source.attributes;
        to.show("specversion", Text(&["1.0"]))?;
        event.with_identity(|identity| to.show("id", Text(&[identity])))?;
        to.show("source", Known(&of_all.source))?;
        self.with_type_name(|parts| to.show("type", Text(parts)))?;
        if let Some(subject) = self.subject() {
            to.show("subject", Text(&[subject]))?;
        }
        to.show("time", Time(event.occurred_at()))?;
        to.show("datacontenttype", Text(&["application/json"]))?;
        let schema_id = event.raw.schema_id.as_str();
        to.show("dataschema", Text(&["urn:salesforce:avro:", schema_id]))?;
        to.show("topic", Known(&of_all.topic))?;
        if let Some(replay_id) = &event.raw.replay_id {
            to.show("replayid", Hex(replay_id.as_bytes()))?;
        }
        to.show("orgid", Known(&of_all.org_id))?;
        if let Some(key) = self.subject() {
            to.show("partitionkey", Text(&[key]))?;
        }
        to.show("eventuuid", Text(&[&event.raw.id]))?;
        to.show("epoch", Integer(event.epoch))?;
        if event.replayed {
            to.show("replayed", Boolean(true))?;
        }
        if event.partial {
            to.show("partial", Boolean(true))?;
        }
        Ok(())
    }
}

/// A time as RFC 3339 text in UTC, from 1970 to the end of the year 9999; what lies outside is moved
/// to the nearer end, because commit times come from outside and may be anything.
pub fn rfc3339(time: SystemTime) -> String {
    let mut text = Vec::with_capacity(30);
    put_rfc3339(&mut text, time);
    String::from_utf8(text).unwrap_or_default() // never: all of it is ASCII
}

/// Written digit by digit, because every event has one.
fn put_rfc3339(out: &mut Vec<u8>, time: SystemTime) {
    let since_1970 = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let second = i64::try_from(since_1970.as_secs()).ok();
    let second = second.and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
    let Some(at) = second else {
        out.extend_from_slice(b"9999-12-31T23:59:59Z");
        return;
    };
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put_digits(&mut text[..4], year.unsigned_abs());
    for (at, number) in [
        (5, month.into()),
        (8, day),
        (11, hour),
        (14, minute),
        (17, second),
    ] {
        put_digits(&mut text[at..at + 2], number.into());
    }
    let nanos = since_1970.subsec_nanos();
    put_digits(&mut text[20..29], nanos);
    let zeros = text[20..29]
        .iter()
        .rev()
        .take_while(|digit| **digit == b'0');
    let end = if nanos == 0 { 19 } else { 29 - zeros.count() };
    out.extend_from_slice(&text[..end]);
    out.push(b'Z');
}

fn put_digits(text: &mut [u8], mut number: u32) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
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

/// Whom attributes are shown to.
trait Show {
    type Error;

    fn show(&mut self, name: &'static str, value: Value<'_>) -> Result<(), Self::Error>;
}

/// Shows each value in one piece.
struct Whole<F> {
    show: F,
    text: String,
}

impl<E, F: FnMut(&'static str, Attribute<'_>) -> Result<(), E>> Show for Whole<F> {
    type Error = E;

    fn show(&mut self, name: &'static str, value: Value<'_>) -> Result<(), E> {
        (self.show)(name, value.whole(&mut self.text))
    }
}

/// Appends members of a JSON object, each with a comma behind it.
struct Members<'j> {
    json: &'j mut Vec<u8>,
}

impl Show for Members<'_> {
    type Error = Infallible;

    // Where the name is known, it and what is around it is copied without asking how long it is.
    #[inline(always)]
    fn show(&mut self, name: &'static str, value: Value<'_>) -> Result<(), Infallible> {
        self.json.push(b'"');
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
        value.append_json(self.json);
        self.json.push(b',');
        Ok(())
    }
}

/// What an attribute's value is made of, so that nothing is put together that is only to be written.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    /// Texts, one after the other.
    Text(&'a [&'a str]),
    /// A text that is known as JSON, too.
    Known(&'a Known),
    /// Bytes, as hexadecimal digits.
    Hex(&'a [u8]),
    Time(SystemTime),
    Integer(i64),
    Boolean(bool),
}

impl Value<'_> {
    /// In one piece, put together in `text` where that is needed.
    fn whole<'t>(&'t self, text: &'t mut String) -> Attribute<'t> {
        text.clear();
        match self {
            Self::Text([whole]) => return Attribute::Text(whole),
            Self::Text(parts) => parts.iter().for_each(|part| text.push_str(part)),
            Self::Known(known) => return Attribute::Text(&known.text),
            Self::Hex(bytes) => json::push_hex(text, bytes),
            Self::Time(time) => text.push_str(&rfc3339(*time)),
            Self::Integer(number) => return Attribute::Integer(*number),
            Self::Boolean(truth) => return Attribute::Boolean(*truth),
        }
        Attribute::Text(text)
    }

    #[inline(always)]
    fn append_json(self, out: &mut Vec<u8>) {
        match self {
            Self::Text(parts) => {
                out.push(b'"');
                parts.iter().for_each(|part| json::put_text(out, part));
                out.push(b'"');
            }
            Self::Known(known) => out.extend_from_slice(&known.json),
            Self::Hex(bytes) => json::put_hex(out, bytes),
            Self::Time(time) => {
                out.push(b'"');
                put_rfc3339(out, time);
                out.push(b'"');
            }
            Self::Integer(number) => json::put_integer(out, number),
            Self::Boolean(truth) => out.extend_from_slice(if truth { b"true" } else { b"false" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    proptest! {
        #[test]
        fn times_are_written_as_others_write_them(
            second in 0_u64..253_402_300_800,
            nanos in prop_oneof![0_u32..1_000_000_000, (0_u32..1000).prop_map(|ms| ms * 1_000_000), Just(0)],
        ) {
            let time = SystemTime::UNIX_EPOCH + Duration::new(second, nanos);
            let expected = OffsetDateTime::from(time).format(&Rfc3339).unwrap();
            prop_assert_eq!(rfc3339(time), expected);
        }
    }

    #[test]
    fn times_that_cannot_be_are_moved_to_the_nearer_end() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(
            rfc3339(epoch - Duration::from_secs(1)),
            "1970-01-01T00:00:00Z"
        );
        for later in [253_402_300_800, i64::MAX.unsigned_abs()] {
            assert_eq!(
                rfc3339(epoch + Duration::from_secs(later)),
                "9999-12-31T23:59:59Z"
            );
        }
    }
}
