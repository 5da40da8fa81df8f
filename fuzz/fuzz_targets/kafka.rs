//! Any bytes as a broker's answer, to everything that is asked of one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::handler::fuzzing::{kafka_answer, kafka_answers};
use orgstream_fuzz::seed;

fuzz_target!(init: seed(kafka_answers()), |answer: &[u8]| kafka_answer(answer));
