//! Any text as a schema, and the bytes behind its first line break as a payload of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::avro::Schema;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
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
