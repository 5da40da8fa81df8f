//! Any text as the value of `Retry-After`: a pause of an hour at most, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::handler::fuzzing::retry_after;
use orgstream_fuzz::seed;

const SEEDS: [&str; 5] = [
    "120",
    "18446744073709551616",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:60 1994",
];

fuzz_target!(init: seed(SEEDS), |value: &str| retry_after(value));
