//! Any bytes as the output of a program: it is cut into lines the same however it comes, and each line is an answer or
//! is none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::handler::fuzzing::exec_output;
use orgstream_fuzz::seed;

const SEEDS: [&str; 4] = [
    "\u{3}{\"id\":\"e\",\"ok\":true}\n",
    "\u{7}{\"id\":\"e\",\"retry\":\"busy\",\"after\":0.5}\n\n",
    "\u{40}{\"id\":\"e\",\"reject\":\"a\\nb\",\"took\":3}\r\n{",
    "\u{1}{\"id\":\"e\",\"retry\":\"\",\"after\":1e300}\nx\n",
];

fuzz_target!(init: seed(SEEDS), |input: &[u8]| {
    if let Some((step, output)) = input.split_first() {
        exec_output(output, usize::from(*step).max(1));
    }
});
