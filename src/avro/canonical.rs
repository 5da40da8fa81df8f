//! Avro's Parsing Canonical Form and the schema ID that follows from it.

use apache_avro::Schema as Avro;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest as _, Md5};
use serde_json::Value as Json;

use crate::event::SchemaId;

/// base64url, without padding, of the MD5 of the canonical form (facts 4.2).
pub(super) fn fingerprint(schema: &Avro) -> SchemaId {
    let digest = Md5::digest(canonical_form(schema).as_bytes());
    SchemaId::new(&URL_SAFE_NO_PAD.encode(digest))
}

/// The schema in Avro's Parsing Canonical Form: full names, no attribute that decoding does not need,
/// `name`, `type`, `fields`, `symbols`, `items`, `values`, `size` in this order, no white space.
///
/// apache-avro has a function of this name that goes through JSON and panics on some input it
/// accepted before; this one walks the parsed schema, where nothing is left that could surprise it.
pub(super) fn canonical_form(schema: &Avro) -> String {
    let mut text = String::new();
    write(schema, &mut text);
    text
}

fn write(schema: &Avro, out: &mut String) {
    match schema {
        Avro::Array(array) => {
            out.push_str(r#"{"type":"array","items":"#);
            write(&array.items, out);
            out.push('}');
        }
        Avro::Map(map) => {
            out.push_str(r#"{"type":"map","values":"#);
            write(&map.types, out);
            out.push('}');
        }
        Avro::Union(union) => list(out, union.variants(), write),
        Avro::Record(record) => {
            named(out, &record.name.fullname(None), "record");
            out.push_str(r#","fields":"#);
            list(out, &record.fields, |field, out| {
                out.push_str(r#"{"name":"#);
                quote(out, &field.name);
                out.push_str(r#","type":"#);
                write(&field.schema, out);
                out.push('}');
            });
            out.push('}');
        }
        Avro::Enum(symbols) => {
            named(out, &symbols.name.fullname(None), "enum");
            out.push_str(r#","symbols":"#);
            list(out, &symbols.symbols, |symbol, out| quote(out, symbol));
            out.push('}');
        }
        Avro::Fixed(fixed) => {
            named(out, &fixed.name.fullname(None), "fixed");
            out.push_str(&format!(r#","size":{}}}"#, fixed.size));
        }
        Avro::Ref { name } => quote(out, &name.fullname(None)),
        simple => quote(out, primitive(simple)),
    }
}

/// The name of a type that has no parts. Logical types cannot occur: their attribute is taken out
/// before parsing, since it says nothing about the bytes.
fn primitive(schema: &Avro) -> &'static str {
    match schema {
        Avro::Boolean => "boolean",
        Avro::Int => "int",
        Avro::Long => "long",
        Avro::Float => "float",
        Avro::Double => "double",
        Avro::Bytes => "bytes",
        Avro::String => "string",
        _ => "null",
    }
}

fn named(out: &mut String, name: &str, kind: &str) {
    out.push_str(r#"{"name":"#);
    quote(out, name);
    out.push_str(r#","type":"#);
    quote(out, kind);
}

fn list<T>(out: &mut String, items: &[T], mut item: impl FnMut(&T, &mut String)) {
    out.push('[');
    for (i, each) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        item(each, out);
    }
    out.push(']');
}

fn quote(out: &mut String, text: &str) {
    out.push_str(&Json::from(text).to_string());
}
