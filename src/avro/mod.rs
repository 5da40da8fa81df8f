//! Avro: schemas compiled once to a decode plan, change-event bitmaps, and the schema cache.
//!
//! A [`Schema`] is parsed once and then shared. Decoding goes straight from the payload's bytes to the
//! JSON text that handlers receive, without a tree between them; encoding, which only `publish` and the
//! emulator need, goes through the apache-avro crate and so is an independent check on the decoder.

mod bitmap;
mod cache;
mod canonical;
mod change;
mod datum;
mod decode;
mod encode;
mod folder;
mod header;
mod plan;
mod schema;

pub use bitmap::BitmapError;
pub use cache::{SchemaCache, SchemaShelf, SchemaSource, SchemaUnavailable};
pub use datum::DecodeReason;
pub use decode::{DecodeError, DecodeFailure};
pub use encode::EncodeError;
pub use header::peek_header;
pub use schema::{Schema, SchemaError};

#[cfg(test)]
mod tests;
