//! Any bytes as a payload whose schema is not to be had: what is taken for a header is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::avro::peek_header;
use orgstream_fuzz::{SAMPLES, Sample, seed};

fuzz_target!(
    init: seed(SAMPLES.iter().take(2).flat_map(Sample::payloads)),
    |payload: &[u8]| {
        if let Some(header) = peek_header(payload) {
            assert!(!header.entity_name.is_empty() && !header.record_ids.is_empty());
            assert!(header.record_ids.iter().all(|id| (4..=18).contains(&id.len())));
            let names = [&header.nulled_fields, &header.diff_fields, &header.changed_fields];
            let size: usize = names.iter().flat_map(|names| names.iter()).map(str::len).sum();
            assert!(size <= payload.len());
        }
    }
);
