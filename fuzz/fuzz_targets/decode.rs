//! Any bytes as the payload of our own schemas: no panic, what decodes is JSON, and the header that is found without the
//! schema is the one that is read with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::avro::peek_header;
use orgstream_fuzz::{SAMPLES, Sample, seed};
use serde_json::Value;

fuzz_target!(
    init: seed(SAMPLES.iter().flat_map(Sample::payloads)),
    |payload: &[u8]| {
        let peeked = peek_header(payload);
        for Sample { schema, .. } in SAMPLES.iter() {
            if let Ok(decoded) = schema.decode(payload) {
                serde_json::from_slice::<Value>(&decoded.data).expect("the data is JSON");
                if let Some((header, peeked)) = decoded.header.zip(peeked.as_ref()) {
                    assert_eq!(header.record_ids, peeked.record_ids);
                    assert_eq!(header.commit_number, peeked.commit_number);
                }
            }
            let _ = schema.key_text(payload, "OrderNumber__c");
        }
    }
);
