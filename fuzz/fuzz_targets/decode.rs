//! Any bytes as the payload of our own schemas: no panic, and what decodes is JSON.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orgstream::avro::{Schema, peek_header};
use serde_json::Value;

static SCHEMAS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    [
        include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc"),
        include_str!("../../schemas/ContactChangeEvent.YLPx_JMP2oGKutbVV-Aggw.avsc"),
        include_str!("../../schemas/Employee__ChangeEvent.yZ0OLSGnu2NSat-PAtzEhQ.avsc"),
        include_str!("../../schemas/Order__e.T2gsoDAd40J5FRpynIKZmQ.avsc"),
    ]
    .map(|json| Schema::parse(json).expect("a schema of ours"))
    .into()
});

fuzz_target!(|payload: &[u8]| {
    for schema in SCHEMAS.iter() {
        if let Ok(decoded) = schema.decode(payload) {
            serde_json::from_slice::<Value>(&decoded.data).expect("the data is JSON");
        }
        let _ = schema.key_text(payload, "OrderNumber__c");
    }
    let _ = peek_header(payload);
});
