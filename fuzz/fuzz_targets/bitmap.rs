//! Any text as the elements of `changedFields`: names come out, and their bitmap gives them again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orgstream::avro::Schema;
use orgstream_fuzz::seed;
use serde_json::{Value, json};

/// 70 fields, every tenth of which has components; the header has no more than it needs, so that encoding is quick.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let texts = json!({"type": "array", "items": "string"});
    let header = json!({"type": "record", "name": "H", "fields": [{"name": "changedFields", "type": texts}]});
    let mut fields = vec![json!({"name": "ChangeEventHeader", "type": header})];
    fields.extend((1..70).map(|number| {
        let components =
            (0..number).map(|n| json!({"name": format!("C{n}"), "type": ["null", "int"]}));
        let components: Vec<Value> = components.collect();
        let compound =
            json!({"type": "record", "name": format!("R{number}"), "fields": components});
        let of = if number % 10 == 0 {
            compound
        } else {
            json!("int")
        };
        json!({"name": format!("F{number}"), "type": ["null", of]})
    }));
    let schema = json!({"type": "record", "name": "XChangeEvent", "fields": fields});
    Schema::parse(&schema.to_string()).expect("a schema of ours")
});

const SEEDS: [&str; 3] = [
    "0x400002",
    "0x0\n10-0x3",
    "60-0x3FF\n0xFFFFFFFFFFFFFFFFFFFF",
];

fuzz_target!(init: seed(SEEDS), |text: &str| {
    let Some(names) = changed_fields(text.lines().map(str::to_owned).collect()) else {
        return;
    };
    let bitmap = SCHEMA.bitmap(&names).expect("decoded names are the schema's");
    assert_eq!(changed_fields(bitmap), Some(names));
});

/// What the decoder makes of these elements; `None` where they are no bitmap.
fn changed_fields(elements: Vec<String>) -> Option<Vec<String>> {
    let event = json!({"ChangeEventHeader": {"changedFields": elements}});
    let payload = SCHEMA.encode_json(&event).expect("the event is whole");
    let decoded = SCHEMA.decode(&payload).ok()?;
    let names = decoded.header?.changed_fields;
    Some(names.iter().map(str::to_owned).collect())
}
