//! What a handler is given of events: which of them ([`Filter`]), and what of each ([`Shape`]). Pure.

mod filter;
mod json;
#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::hmac;
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;

use self::json::{Object, Writer, plain_text};
use crate::config::{FieldsConfig, is_within};
use crate::event::Decoded;

pub use filter::Filter;

/// What stands in place of a hidden value.
pub const MASK: &str = "***";

/// The field that says what changed. It is no field of the record, and always shown.
const HEADER: &str = "ChangeEventHeader";

/// The event's data is no JSON object, so nothing of it can be shown. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its data is not what a decoded event's is, so that `fields` cannot be applied to it")]
pub struct NotShaped;

/// What of an event's fields a handler is given: some are left out, of some the value is hidden.
///
/// A field is named as the event's header names it: `Phone`, `BillingAddress.City`. A compound field's name
/// stands for all of its components. The header stays, less the names of fields that are left out.
#[derive(Clone)]
pub struct Shape {
    only: Option<Vec<String>>,
    without: Vec<String>,
    mask: Vec<String>,
    hash: Vec<String>,
    /// Without one, what is to be hashed is masked.
    key: Option<hmac::Key>,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// It depends on the component.
    Partly,
    Drop,
    Mask,
    Hash,
}

impl Shape {
    /// As configured; `None` where everything is shown.
    pub fn new(config: &FieldsConfig) -> Option<Self> {
        let key = |text: &str| hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        config.hides().then(|| Self {
            only: config.only.clone(),
            without: config.without.clone(),
            mask: config.mask.clone(),
            hash: config.hash.clone(),
            key: (config.hash_key.as_ref()).map(|text| key(text.expose_secret())),
        })
    }

    /// What the handler is given instead of this.
    ///
    /// # Errors
    ///
    /// Where the data is no JSON object.
    pub fn apply(&self, decoded: &Decoded) -> Result<Decoded, NotShaped> {
        let data = Object::parse(&decoded.data).ok_or(NotShaped)?;
        let mut out = Writer::with_capacity(decoded.data.len());
        let mut object = out.object();
        for (name, value) in &data.0 {
            match (&**name, &decoded.header) {
                (HEADER, Some(_)) => {
                    object.key(name);
                    self.header(value, object.out)?;
                }
                _ => self.field(name, name, value, &mut object)?,
            }
        }
        object.close();
        let mut header = decoded.header.clone();
        if let Some(header) = &mut header {
            for names in [
                &mut header.changed_fields,
                &mut header.nulled_fields,
                &mut header.diff_fields,
            ] {
                names.retain(|name| self.shows_name(name));
            }
        }
        Ok(Decoded {
            record_name: decoded.record_name.clone(),
            header,
            data: Bytes::from(out.into_bytes()),
            ignored_bits: decoded.ignored_bits,
        })
    }

    /// The fields that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let only = self.only.iter().flatten();
        let rest = [&self.without, &self.mask, &self.hash];
        only.chain(rest.into_iter().flatten()).map(String::as_str)
    }

    /// True where all of a field is shown as it is.
    pub fn keeps(&self, path: &str) -> bool {
        self.fate(path) == Fate::Keep
    }

    /// Writes a field, or leaves it out. `path` is its full name.
    fn field(
        &self,
        path: &str,
        name: &str,
        value: &RawValue,
        into: &mut json::ObjectWriter<'_>,
    ) -> Result<(), NotShaped> {
        let text = value.get();
        match self.fate(path) {
            Fate::Drop => {}
            _ if text == "null" => into.raw(name, text),
            Fate::Keep => into.raw(name, text),
            Fate::Mask => into.text(name, MASK),
            Fate::Hash => into.text(name, &self.hashed(path, value)?),
            // Its components have names of their own.
            Fate::Partly if text.starts_with('{') => {
                let components = Object::parse(text.as_bytes()).ok_or(NotShaped)?;
                let start = into.position();
                into.key(name);
                let mut inner = into.out.object();
                for (component, value) in &components.0 {
                    self.field(&format!("{path}.{component}"), component, value, &mut inner)?;
                }
                let empty = inner.close();
                // One of which nothing is left is left out itself.
                if empty && !components.0.is_empty() {
                    into.back_to(start);
                }
            }
            // A name that may come as one text, which holds what the components do.
            Fate::Partly => into.text(name, MASK),
        }
        Ok(())
    }

    /// What of a field's name stands in a list decides; what of a compound field stands there, about its
    /// components.
    fn fate(&self, path: &str) -> Fate {
        let named = |names: &[String]| names.iter().any(|name| is_within(path, name));
        let within = |names: &[String]| names.iter().any(|name| is_within(name, path));
        let kept = self.only.as_ref().is_none_or(|only| named(only));
        let partly = self.only.as_ref().is_some_and(|only| within(only));
        if named(&self.without) || (!kept && !partly) {
            Fate::Drop
        } else if named(&self.mask) {
            Fate::Mask
        } else if named(&self.hash) {
            Fate::Hash
        } else if !kept
            || [&self.without, &self.mask, &self.hash]
                .into_iter()
                .any(|n| within(n))
        {
            Fate::Partly
        } else {
            Fate::Keep
        }
    }

    /// True where the header may say that this field changed.
    fn shows_name(&self, path: &str) -> bool {
        self.fate(path) != Fate::Drop
    }

    /// The header as it was, less the names of fields that are left out, and the diffs of what is hidden.
    fn header(&self, value: &RawValue, out: &mut Writer) -> Result<(), NotShaped> {
        let header = Object::parse(value.get().as_bytes()).ok_or(NotShaped)?;
        let mut object = out.object();
        for (name, value) in &header.0 {
            match &**name {
                "changedFields" | "nulledFields" | "diffFields" => {
                    let names: Vec<String> =
                        serde_json::from_str(value.get()).map_err(|_| NotShaped)?;
                    object.texts(name, names.iter().filter(|name| self.shows_name(name)));
                }
                "diffs" => {
                    let diffs = Object::parse(value.get().as_bytes()).ok_or(NotShaped)?;
                    let start = object.position();
                    object.key(name);
                    let mut inner = object.out.object();
                    for (path, diff) in &diffs.0 {
                        match self.fate(path) {
                            Fate::Drop => {}
                            Fate::Keep => inner.raw(path, diff.get()),
                            // The hash of a diff would be no hash of the value.
                            Fate::Partly | Fate::Mask | Fate::Hash => inner.text(path, MASK),
                        }
                    }
                    if inner.close() {
                        object.back_to(start);
                    }
                }
                _ => object.raw(name, value.get()),
            }
        }
        object.close();
        Ok(())
    }

    /// HMAC-SHA256 of `<field>:<value>`, in hexadecimal. The value of a text is the text itself, of
    /// anything else its JSON.
    fn hashed(&self, path: &str, value: &RawValue) -> Result<String, NotShaped> {
        let Some(key) = &self.key else {
            return Ok(MASK.to_owned());
        };
        let text = plain_text(value).ok_or(NotShaped)?;
        let mut context = hmac::Context::with_key(key);
        context.update(path.as_bytes());
        context.update(b":");
        context.update(text.as_bytes());
        Ok(hex::encode(context.sign().as_ref()))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape")
            .field("only", &self.only)
            .field("without", &self.without)
            .field("mask", &self.mask)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}
