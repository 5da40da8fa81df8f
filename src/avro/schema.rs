//! A writer schema, parsed once.

use std::fmt;
use std::sync::Arc;

use apache_avro::Schema as Avro;
use serde_json::Value as Json;

use super::bitmap::FieldSet;
use super::canonical;
use super::decode::{self, DecodeFailure};
use super::encode::{self, EncodeError};
use super::plan::Plan;
use crate::event::{Decoded, SchemaId, SmolStr};

/// Longest schema text that is parsed, in bytes. A real one has about 100 bytes for each field.
const MAX_TEXT: usize = 4 << 20;

/// Text that is not an Avro schema of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Longer than any event's schema could be.
    #[error("its text has {0} bytes, more than the {MAX_TEXT} that are read")]
    TooLong(usize),
    /// Not JSON, or nested deeper than 128 levels.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// JSON, but not a schema.
    #[error("not valid Avro: {0}")]
    NotAvro(String),
    /// A schema, but of something else than an event.
    #[error("its outermost type is not a record, so it describes no event")]
    NotARecord,
}

/// A writer schema compiled for decoding. Parse once, then share in an [`Arc`]: parsing costs as much as
/// hundreds of decodes.
pub struct Schema {
    json: Box<str>,
    avro: Avro,
    record_name: Arc<str>,
    fingerprint: SchemaId,
    plan: Plan,
}

impl Schema {
    /// Parses a schema as GetSchema answers it.
    ///
    /// Time and memory are bounded for any text: nesting by the JSON parser's limit of 128 levels.
    pub fn parse(json: &str) -> Result<Self, SchemaError> {
        if json.len() > MAX_TEXT {
            return Err(SchemaError::TooLong(json.len()));
        }
        let mut text: Json =
            serde_json::from_str(json).map_err(|error| SchemaError::NotJson(error.to_string()))?;
        keep_what_decoding_needs(&mut text)?;
        let avro = Avro::parse(&text).map_err(|error| not_avro(&error))?;
        let Avro::Record(record) = &avro else {
            return Err(SchemaError::NotARecord);
        };
        Ok(Self {
            json: json.into(),
            record_name: record.name.name().into(),
            fingerprint: canonical::fingerprint(&avro),
            plan: Plan::compile(record)?,
            avro,
        })
    }

    /// The text it was parsed from.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Name of the record without its namespace: `AccountChangeEvent`, `Order__e`.
    pub fn record_name(&self) -> &Arc<str> {
        &self.record_name
    }

    /// The ID that the platform gives such a schema: base64url, without padding, of the MD5 of Avro's
    /// Parsing Canonical Form (facts 4.2).
    pub fn fingerprint(&self) -> SchemaId {
        self.fingerprint.clone()
    }

    /// Decodes one payload.
    ///
    /// Time and memory are bounded by the payload's size, whatever its bytes are.
    #[expect(clippy::result_large_err, reason = "what decodes is as large")]
    pub fn decode(&self, payload: &[u8]) -> Result<Decoded, DecodeFailure> {
        decode::decode(&self.plan, &self.record_name, payload)
    }

    /// The value of one of the event's own fields as text, for the `key` of a platform event: text
    /// itself, numbers digit for digit. `None` where the field is unknown, has no value or does not decode.
    pub fn key_text(&self, payload: &[u8], field: &str) -> Option<SmolStr> {
        decode::key_text(&self.plan, payload, field)
    }

    /// True for the name of a field, or of a component of one: `Phone`, `BillingAddress.City`.
    pub fn has_field(&self, name: &str) -> bool {
        let plan = &self.plan;
        let mut fields = Some(plan.root());
        name.split('.').all(|part| {
            let mut numbers = fields.take().unwrap_or_default();
            let found = numbers.find(|number| *plan.field(*number).name == *part);
            fields = found.and_then(|number| plan.compound(plan.field(number).node));
            found.is_some()
        })
    }

    /// Encodes a JSON object as one binary datum of this schema.
    ///
    /// Unions are given unwrapped, a nullable field may be left out, bytes and fixed are hexadecimal
    /// text, and NaN and the infinities are strings: just as decoding writes them.
    pub fn encode_json(&self, value: &Json) -> Result<Vec<u8>, EncodeError> {
        encode::encode(&self.avro, value)
    }

    /// Field names (`Phone`, `BillingAddress.Street`) as the bitmap array of a change event.
    pub fn bitmap(&self, names: &[String]) -> Result<Vec<String>, EncodeError> {
        let mut set = FieldSet::default();
        for name in names {
            let slot = self.plan.slots.find(name);
            set.insert(slot.ok_or_else(|| EncodeError::UnknownField(name.clone()))?);
        }
        Ok(self.plan.slots.write(&set))
    }
}

/// Takes out of a schema's text all that says nothing about the bytes: documentation, defaults, aliases,
/// logical types. What is left is what a decoder must understand, so nothing else can make a schema
/// unreadable, such as a default that does not fit its type.
fn keep_what_decoding_needs(json: &mut Json) -> Result<(), SchemaError> {
    const NEEDED: [&str; 8] = [
        "name",
        "namespace",
        "type",
        "fields",
        "symbols",
        "items",
        "values",
        "size",
    ];
    match json {
        Json::Array(items) => items.iter_mut().try_for_each(keep_what_decoding_needs),
        Json::Object(object) => {
            object.retain(|key, _| NEEDED.contains(&key.as_str()));
            // The parser would take these for references by a name that is a keyword.
            let kind = object.get("type").and_then(Json::as_str);
            let part = match kind {
                Some("record") => Some("fields"),
                Some("enum") => Some("symbols"),
                Some("fixed") => Some("size"),
                _ => None,
            };
            if let (Some(kind), Some(part)) = (kind, part)
                && !object.contains_key(part)
            {
                return Err(SchemaError::NotAvro(format!("{kind} without `{part}`")));
            }
            object.values_mut().try_for_each(keep_what_decoding_needs)
        }
        _ => Ok(()),
    }
}

/// The parser's words, which may quote the text, cut to a length that fits a log line.
fn not_avro(error: &apache_avro::Error) -> SchemaError {
    SchemaError::NotAvro(error.to_string().chars().take(200).collect())
}

impl Schema {
    /// The components of a compound field, such as `BillingAddress.Street`, where null is how the field
    /// says that all of them are null; empty for any other field. A name that may be plain text instead
    /// (facts 4.4) is no such field: its null is its own.
    pub(crate) fn nulled_components(&self, field: &str) -> Vec<&str> {
        let slots = &self.plan.slots;
        let position = slots.find(field).filter(|_| !field.contains('.'));
        let number = position.map(|position| self.plan.root().start + position);
        match number.map(|number| self.plan.field(number).node) {
            Some(node) if !self.plan.may_be_text(node) => {
                let components = position.map(|position| slots.components(position));
                let components = components.unwrap_or_default();
                components.map(|slot| slots.name(slot)).collect()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("record_name", &self.record_name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Schema, SchemaError> {
        Schema::parse(text)
    }

    #[test]
    fn text_that_describes_no_event_is_refused_with_the_reason() {
        let cases = [
            ("", "not JSON"),
            ("<html>503</html>", "not JSON"),
            ("42", "not valid Avro"),
            (r#""string""#, "type is not a record"),
            (
                r#"{"type":"expanded-record","name":"X","fields":[]}"#,
                "not valid Avro",
            ),
            (r#"{"type":"record","name":"X"}"#, "record without `fields`"),
            (
                r#"{"type":"record","name":"X","fields":[{"name":"A","type":"Unknown"}]}"#,
                "not valid Avro",
            ),
            (
                r#"{"type":"record","name":"X","fields":[
                    {"name":"A","type":{"type":"fixed","name":"F","size":1}},
                    {"name":"B","type":{"type":"fixed","name":"F","size":2}}]}"#,
                "type F is defined twice",
            ),
        ];
        for (text, reason) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn hostile_text_is_refused_quickly() {
        let deep = r#"{"type":"array","items":"#.repeat(100_000);
        assert!(matches!(parse(&deep), Err(SchemaError::NotJson(_))));
        let long = " ".repeat(MAX_TEXT + 1);
        assert!(matches!(parse(&long), Err(SchemaError::TooLong(_))));
        // A type named `record` would let every later definition without fields copy it whole.
        let mut doubling = r#""int""#.to_owned();
        for _ in 0..30 {
            doubling = format!(
                r#"{{"type":"record","name":"record","fields":[{{"name":"a","type":{doubling}}},
                   {{"name":"b","type":{{"type":"record","name":"x"}}}}]}}"#
            );
        }
        assert!(parse(&doubling).is_err());
    }

    #[test]
    fn the_deepest_text_that_is_read_does_not_exhaust_the_stack() {
        let arrays = r#"{"type":"array","items":"#;
        let nested = |levels: usize| {
            let items = format!("{}\"int\"{}", arrays.repeat(levels), "}".repeat(levels));
            parse(&format!(
                r#"{{"type":"record","name":"X","fields":[{{"name":"A","type":{items}}}]}}"#
            ))
        };
        let schema = nested(124).unwrap();
        assert!(schema.decode(&[2; 1000]).is_err());
        assert!(nested(125).is_err());
        let mut records = r#""int""#.to_owned();
        for level in 0..41 {
            records = format!(
                r#"{{"type":"record","name":"R{level}","fields":[{{"name":"A","type":{records}}}]}}"#
            );
        }
        assert!(parse(&records).unwrap().decode(&[2]).is_ok());
    }

    #[test]
    fn defaults_and_logical_types_cannot_make_a_schema_unreadable() {
        let schema = parse(
            r#"{"type":"record","name":"X","fields":[
                {"name":"A","type":"string","default":null},
                {"name":"B","type":{"type":"bytes","logicalType":"decimal","precision":"x"}},
                {"name":"C","type":{"type":"int","logicalType":"date"},"doc":"Data:DateOnly"}]}"#,
        )
        .unwrap();
        let plain = parse(
            r#"{"type":"record","name":"X","fields":[{"name":"A","type":"string"},
                {"name":"B","type":"bytes"},{"name":"C","type":"int"}]}"#,
        )
        .unwrap();
        assert_eq!(schema.fingerprint(), plain.fingerprint());
    }

    #[test]
    fn names_are_full_in_the_canonical_form_however_they_are_written() {
        let short = parse(
            r#"{"type":"record","name":"X","namespace":"n","fields":[
                {"name":"A","type":["null",{"type":"record","name":"P","fields":[]}]},
                {"name":"B","type":["null","P"]},
                {"name":"C","type":{"type":"enum","name":"E","namespace":"","symbols":["S"]}}]}"#,
        )
        .unwrap();
        assert_eq!(
            canonical::canonical_form(&short.avro),
            concat!(
                r#"{"name":"n.X","type":"record","fields":["#,
                r#"{"name":"A","type":["null",{"name":"n.P","type":"record","fields":[]}]},"#,
                r#"{"name":"B","type":["null","n.P"]},"#,
                r#"{"name":"C","type":{"name":"E","type":"enum","symbols":["S"]}}]}"#
            )
        );
    }
}
