//! Any text as a schema, and the bytes behind its first line break as a payload of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::avro::Schema;
use orgstream_fuzz::{SAMPLES, Sample, seed};
use serde_json::{Value, json};

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let (Some(text), payload) = (parts.next(), parts.next().unwrap_or_default()) else {
        return;
    };
    let Ok(schema) = std::str::from_utf8(text).map(Schema::parse) else {
        return;
    };
    if let Ok(schema) = schema {
        let _ = schema.fingerprint();
        if let Ok(decoded) = schema.decode(payload) {
            serde_json::from_slice::<Value>(&decoded.data).expect("the data is JSON");
        }
    }
});

/// Our schemas with an event each, and one with every type.
fn seeds() -> Vec<Vec<u8>> {
    let types = json!({"type": "record", "name": "X", "namespace": "n", "fields": [
        {"name": "A", "type": ["null", {"type": "record", "name": "L", "fields": [{"name": "N", "type": ["null", "n.L"]}]}]},
        {"name": "B", "type": {"type": "array", "items": {"type": "map", "values": ["double", "null", "float"]}}},
        {"name": "C", "type": {"type": "enum", "name": "E", "symbols": ["S", "T"]}},
        {"name": "D", "type": {"type": "fixed", "name": "F", "size": 2}},
        {"name": "E", "type": ["string", "L", "bytes"]},
        {"name": "F", "type": "boolean"}]});
    let datum = b"\x02\x02\x00\x02\x02\x02a\x02\x00\x00\x02ab\x02\x00\x01";
    let one = |text: &Value, datum: &[u8]| [text.to_string().as_bytes(), b"\n", datum].concat();
    let ours = |sample: &Sample| one(&sample.text, &sample.payloads()[0]);
    let mut seeds: Vec<_> = SAMPLES.iter().skip(2).map(ours).collect();
    seeds.push(one(&types, datum));
    seeds
}
