//! Any text as the elements of `changedFields`: names come out, and their bitmap gives them again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orgstream::avro::Schema;
use serde_json::json;

static ACCOUNT: LazyLock<Schema> = LazyLock::new(|| {
    let json = include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc");
    Schema::parse(json).expect("a schema of ours")
});

fuzz_target!(|text: &str| {
    let Some(names) = changed_fields(text.lines().map(str::to_owned).collect()) else {
        return;
    };
    let bitmap = ACCOUNT.bitmap(&names).expect("decoded names are the schema's");
    assert_eq!(changed_fields(bitmap), Some(names));
});

/// What the decoder makes of these elements; `None` where they are no bitmap.
fn changed_fields(elements: Vec<String>) -> Option<Vec<String>> {
    let header = json!({"entityName": "Account", "recordIds": [], "changeType": "UPDATE",
        "changeOrigin": "", "transactionKey": "", "sequenceNumber": 1, "commitTimestamp": 0,
        "commitNumber": 0, "commitUser": "", "nulledFields": [], "diffFields": [],
        "changedFields": elements});
    let event = json!({"ChangeEventHeader": header});
    let payload = ACCOUNT.encode_json(&event).expect("the event is whole");
    let decoded = ACCOUNT.decode(&payload).ok()?;
    Some(decoded.header?.changed_fields)
}
