//! Any text as metrics in the Prometheus text format: what is read is written so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orgstream::telemetry::exposition::Exposition;
use orgstream_fuzz::seed;

const SEEDS: [&str; 3] = [
    "# HELP a b \\\\ c\\n\n# TYPE a counter\na{x=\"1\",y=\"\\\"\\n\"} 3\n",
    "# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1e300\nh_count 2\n",
    "# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns_sum -Inf\ns_count 0\nu 1\n",
];

fuzz_target!(init: seed(SEEDS), |text: &str| {
    if let Ok(read) = Exposition::parse(text) {
        let mut labelled = read.clone();
        labelled.label("dyno", "worker.1");
        let written = read.to_string();
        // As text, for NaN is not itself.
        let again = Exposition::parse(&written).expect("what is written can be read");
        assert_eq!(again.to_string(), written);
        Exposition::parse(&labelled.to_string()).expect("what is written can be read");
    }
});
