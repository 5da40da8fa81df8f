//! Any bytes as a response of Subscribe: read without generated code, it is what generated code makes of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::salesforce::pubsub::fuzzing::{read_in_both_ways, sample_responses};
use orgstream_fuzz::seed;

fuzz_target!(
    init: seed(sample_responses()),
    |bytes: &[u8]| {
        let earlier = sample_responses();
        read_in_both_ways(&earlier[0], bytes);
    }
);
