//! JSON objects whose values are passed on as they are written, digit for digit.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object's members in their order, values as written.
pub(super) struct Object<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// `None` where it is no object.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// A member's name, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(32));
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The text of a text, and the JSON of anything else; `None` where it is neither.
pub(super) fn plain_text(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    if text.starts_with('"') {
        let Name(text) = serde_json::from_str(text).ok()?;
        return Some(text);
    }
    Some(Cow::Borrowed(text))
}

/// Appends JSON to a buffer.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Begins an object.
    pub(super) fn object(&mut self) -> ObjectWriter<'_> {
        self.0.push(b'{');
        ObjectWriter {
            begin: self.0.len(),
            out: self,
        }
    }

    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        // Kept for as long as the event is in flight.
        self.0.shrink_to_fit();
        self.0
    }

    fn text(&mut self, text: &str) {
        // Writing text to a vector cannot fail.
        let _ = serde_json::to_writer(&mut self.0, text);
    }
}

/// An object that is being written.
pub(super) struct ObjectWriter<'a> {
    pub(super) out: &'a mut Writer,
    begin: usize,
}

impl ObjectWriter<'_> {
    /// `"name":`, with a comma where it is not the first; its value is to follow.
    pub(super) fn key(&mut self, name: &str) {
        if self.out.0.len() > self.begin {
            self.out.0.push(b',');
        }
        self.out.text(name);
        self.out.0.push(b':');
    }

    /// A member whose value is JSON already.
    pub(super) fn raw(&mut self, name: &str, json: &str) {
        self.key(name);
        self.out.0.extend_from_slice(json.as_bytes());
    }

    /// A member whose value is a text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.key(name);
        self.out.text(text);
    }

    /// A member whose value is a list of texts.
    pub(super) fn texts<'t>(&mut self, name: &str, texts: impl Iterator<Item = &'t String>) {
        self.key(name);
        self.out.0.push(b'[');
        for (number, text) in texts.enumerate() {
            if number > 0 {
                self.out.0.push(b',');
            }
            self.out.text(text);
        }
        self.out.0.push(b']');
    }

    /// What is written so far, for [`ObjectWriter::back_to`].
    pub(super) fn position(&self) -> usize {
        self.out.0.len()
    }

    /// Takes back what was written since.
    pub(super) fn back_to(&mut self, position: usize) {
        self.out.0.truncate(position);
    }

    /// Ends it; true where it has no members.
    pub(super) fn close(self) -> bool {
        let empty = self.out.0.len() == self.begin;
        self.out.0.push(b'}');
        empty
    }
}
