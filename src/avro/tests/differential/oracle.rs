//! What is true: how apache-avro writes and reads a datum, and what JSON stands for what it read.

use std::collections::BTreeMap;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

pub(super) fn encode(schema: &str, value: Value) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    // Its own check refuses a record with a field of type null.
    let writer = GenericDatumWriter::builder(&schema).validate(false);
    let writer = writer.build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// As apache-avro reads it, if it does, with nothing left over.
pub(super) fn read(schema: &str, mut payload: &[u8]) -> Option<Value> {
    // A length that lies is to cost nothing.
    apache_avro::util::max_allocation_bytes(1 << 20);
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let value = reader.read_value(&mut payload).ok()?;
    payload.is_empty().then_some(value)
}

/// A value as JSON, and whether it is one: null and a record of nothing are none.
pub(super) fn oracle(value: &Value) -> (Json, bool) {
    let non_finite = |value: f64| json!(value.to_string().replace("inf", "Infinity"));
    let json = match value {
        Value::Null => return (Json::Null, false),
        Value::Union(_, value) => return oracle(value),
        Value::Record(fields) => {
            let object: Map<String, Json> = fields
                .iter()
                .map(|(name, value)| (name.clone(), oracle(value)))
                .filter(|(_, (_, present))| *present)
                .map(|(name, (json, _))| (name, json))
                .collect();
            let present = !object.is_empty();
            return (object.into(), present);
        }
        Value::Boolean(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Long(value) => json!(value),
        Value::Float(value) if !value.is_finite() => non_finite(f64::from(*value)),
        // Which of the shortest forms it is has its own test.
        Value::Float(value) => {
            let shortest = zmij::Buffer::new().format_finite(*value).parse::<f64>();
            json!(shortest.unwrap())
        }
        Value::Double(value) if !value.is_finite() => non_finite(*value),
        Value::Double(value) => json!(value),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => json!(hex::encode(bytes)),
        Value::String(text) | Value::Enum(_, text) => json!(text),
        Value::Array(items) => items.iter().map(|item| oracle(item).0).collect(),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| (key.clone(), oracle(value).0));
            Json::Object(entries.collect())
        }
        other => panic!("not generated: {other:?}"),
    };
    (json, true)
}

/// JSON text as a value, with every digit of its numbers: serde_json itself may read a double as its neighbour.
pub(super) fn exact(text: &[u8]) -> Json {
    let raw: &RawValue = serde_json::from_slice(text).unwrap();
    exact_value(raw)
}

fn exact_value(raw: &RawValue) -> Json {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let object: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let object = object.into_iter();
            Json::Object(object.map(|(key, raw)| (key, exact_value(raw))).collect())
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            items.into_iter().map(exact_value).collect()
        }
        Some(b'-' | b'0'..=b'9') if text.contains(['.', 'e', 'E']) => {
            json!(text.parse::<f64>().unwrap())
        }
        _ => serde_json::from_str(text).unwrap(),
    }
}

/// Equal; also in the sign of zero.
pub(super) fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) if one.is_f64() && other.is_f64() => {
            let bits = |number: &serde_json::Number| number.as_f64().unwrap().to_bits();
            bits(one) == bits(other)
        }
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

/// A datum written here, with arrays and maps in as many blocks as these say, some of them with their size: other
/// writers do that, and apache-avro does not.
pub(super) fn in_blocks(value: &Value, blocks: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, value, &mut blocks.iter().copied().cycle());
    out
}

fn put(out: &mut Vec<u8>, value: &Value, blocks: &mut dyn Iterator<Item = u8>) {
    match value {
        Value::Null => {}
        Value::Boolean(value) => out.push(u8::from(*value)),
        Value::Int(value) => put_long(out, (*value).into()),
        Value::Long(value) => put_long(out, *value),
        Value::Float(value) => out.extend(value.to_le_bytes()),
        Value::Double(value) => out.extend(value.to_le_bytes()),
        Value::Bytes(bytes) => put_bytes(out, bytes),
        Value::String(text) => put_bytes(out, text.as_bytes()),
        Value::Fixed(_, bytes) => out.extend(bytes),
        Value::Enum(at, _) => put_long(out, (*at).into()),
        Value::Union(at, value) => {
            put_long(out, (*at).into());
            put(out, value, blocks);
        }
        Value::Record(fields) => fields.iter().for_each(|(_, value)| put(out, value, blocks)),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| (None, item)).collect();
            put_items(out, &items, blocks);
        }
        Value::Map(entries) => {
            let entries: Vec<_> = entries
                .iter()
                .map(|(key, item)| (Some(key), item))
                .collect();
            put_items(out, &entries, blocks);
        }
        other => panic!("not generated: {other:?}"),
    }
}

fn put_items(
    out: &mut Vec<u8>,
    mut items: &[(Option<&String>, &Value)],
    blocks: &mut dyn Iterator<Item = u8>,
) {
    while !items.is_empty() {
        let how = blocks.next().unwrap_or(0);
        let (block, rest) = items.split_at(1 + usize::from(how / 2) % items.len());
        let mut bytes = Vec::new();
        for (key, value) in block {
            if let Some(key) = key {
                put_bytes(&mut bytes, key.as_bytes());
            }
            put(&mut bytes, value, blocks);
        }
        let count = i64::try_from(block.len()).unwrap();
        if how & 1 == 0 {
            put_long(out, count);
        } else {
            put_long(out, -count);
            put_long(out, i64::try_from(bytes.len()).unwrap());
        }
        out.extend(bytes);
        items = rest;
    }
    put_long(out, 0);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, i64::try_from(bytes.len()).unwrap());
    out.extend(bytes);
}

fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        out.push(zigzag.to_le_bytes()[0] | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag.to_le_bytes()[0]);
}
