use proptest::prelude::*;

use super::*;
use crate::telemetry::metrics::stored;

const TEXT: &str = r#"# HELP orgstream_events_received_total Events received from the bus.
# TYPE orgstream_events_received_total counter
orgstream_events_received_total{subscription="accounts"} 3

# TYPE orgstream_lag_seconds gauge
orgstream_lag_seconds{subscription="a\"b\\c\nd"} NaN
orgstream_lag_seconds{subscription="orders"} inf

# HELP orgstream_handler_seconds Time \\ from
# TYPE orgstream_handler_seconds histogram
orgstream_handler_seconds_bucket{handler="log",le="0.5"} 1
orgstream_handler_seconds_bucket{handler="log",le="+Inf"} 2
orgstream_handler_seconds_sum{handler="log"} 1.25
orgstream_handler_seconds_count{handler="log"} 2

untold 1e3
"#;

#[test]
fn what_a_recorder_writes_is_read_family_by_family() {
    let parsed = Exposition::parse(TEXT).unwrap();
    let names: Vec<_> = parsed.families().map(|family| &*family.name).collect();
    assert_eq!(
        names,
        [
            "orgstream_events_received_total",
            "orgstream_handler_seconds",
            "orgstream_lag_seconds",
            "untold"
        ]
    );
    let received = parsed.family("orgstream_events_received_total").unwrap();
    assert_eq!(
        received.help.as_deref(),
        Some("Events received from the bus.")
    );
    assert_eq!(received.kind, FamilyKind::Counter);
    assert_eq!(received.samples[0].value, 3.0);
    let lag = parsed.family("orgstream_lag_seconds").unwrap();
    assert_eq!(lag.samples[0].label("subscription"), Some("a\"b\\c\nd"));
    assert!(lag.samples[0].value.is_nan());
    assert_eq!(lag.samples[1].value, f64::INFINITY);
    let handler = parsed.family("orgstream_handler_seconds").unwrap();
    let suffixes: Vec<_> = handler.samples.iter().map(|sample| sample.suffix).collect();
    assert_eq!(suffixes, ["_bucket", "_bucket", "_sum", "_count"]);
    assert_eq!(handler.samples[1].label("le"), Some("+Inf"));
    assert_eq!(handler.help.as_deref(), Some("Time \\ from"));
    let untold = parsed.family("untold").unwrap();
    assert_eq!(
        (untold.kind, untold.samples[0].value),
        (FamilyKind::Untyped, 1000.0)
    );
}

#[test]
fn two_processes_stand_beside_each_other_under_one_description() {
    let text = |dyno: &str, value: f64| {
        let mut exposition = Exposition::default();
        exposition.record(&metrics::LAG, &["accounts"], value);
        exposition.label("dyno", dyno);
        exposition
    };
    let mut all = text("worker.1", f64::NAN);
    all.merge(text("worker.2", 1.5));
    all.record(&stored::WORKERS_ALIVE, &[], 2.0);
    all.declare(&stored::UP);
    let written = all.to_string();
    let lines: Vec<_> = written.lines().collect();
    assert_eq!(
        lines,
        [
            &format!("# HELP orgstream_lag_seconds {}", metrics::LAG.help),
            "# TYPE orgstream_lag_seconds gauge",
            "orgstream_lag_seconds{subscription=\"accounts\",dyno=\"worker.1\"} NaN",
            "orgstream_lag_seconds{subscription=\"accounts\",dyno=\"worker.2\"} 1.5",
            &format!("# HELP orgstream_stored_up {}", stored::UP.help),
            "# TYPE orgstream_stored_up gauge",
            &format!(
                "# HELP orgstream_workers_alive {}",
                stored::WORKERS_ALIVE.help
            ),
            "# TYPE orgstream_workers_alive gauge",
            "orgstream_workers_alive 2",
        ]
    );
}

#[test]
fn a_label_that_is_there_is_replaced() {
    let mut exposition = Exposition::parse("up{dyno=\"of another\",a=\"b\"} 1\n").unwrap();
    exposition.label("dyno", "worker.1");
    assert_eq!(
        exposition.to_string(),
        "# TYPE up untyped\nup{a=\"b\",dyno=\"worker.1\"} 1\n"
    );
}

#[test]
fn a_family_that_another_release_knows_otherwise_is_left_out() {
    let mut ours = Exposition::parse("# TYPE x gauge\nx 1\n").unwrap();
    ours.merge(Exposition::parse("# TYPE x histogram\nx_count 1\nx_sum 2\n").unwrap());
    assert_eq!(ours.to_string(), "# TYPE x gauge\nx 1\n");
}

#[test]
fn what_is_not_the_format_is_an_error_that_names_the_line() {
    for wrong in [
        "orgstream_x",
        "orgstream_x ",
        "orgstream_x one",
        "orgstream_x 1 1700000000000", // a timestamp
        "1x 1",
        "x{a=\"b\" 1",
        "x{a=\"b} 1",
        "x{a=b} 1",
        "x{a} 1",
        "x{a:b=\"c\"} 1",
        "x{a=\"\\t\"} 1",
        "x{a=\"1\",a=\"2\"} 1",
        "x{a=\"1\"b=\"2\"} 1",
        "x{=\"1\"} 1",
        "# TYPE x odd",
        "# TYPE 1x gauge",
        "# HELP x \\t",
        "x 1\n# TYPE x gauge",
        "x 1\ny 1\nx 2",
        "# TYPE x gauge\nx 1\n# TYPE y gauge\ny 1\n# TYPE x gauge",
        "\u{0}",
    ] {
        let text = format!("# a comment\n{wrong}\n");
        let error = Exposition::parse(&text).unwrap_err();
        assert!(error.line >= 2, "{wrong:?}: {error}");
        let said = error.to_string();
        assert!(!said.contains("orgstream_x"), "{said}");
    }
    for fine in ["", "\n\n", "# EOF", "x{} 1", "x{a=\"b\",} -Inf", "x 1\nx 1"] {
        Exposition::parse(fine).unwrap();
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z_:][a-zA-Z0-9_:]{0,12}"
}

fn sample(kind: FamilyKind) -> impl Strategy<Value = Sample> {
    let labels = proptest::collection::btree_map("[a-z_][a-z0-9_]{0,5}", any::<String>(), 0..4);
    let suffix = proptest::sample::select(kind.suffixes());
    // NaN is not equal to itself; it has a test of its own.
    let value = any::<f64>().prop_filter("a number", |value| !value.is_nan());
    (labels, suffix, value).prop_map(|(labels, suffix, value)| Sample {
        suffix,
        labels: labels.into_iter().collect(),
        value,
    })
}

fn family() -> impl Strategy<Value = Family> {
    let kind = proptest::sample::select(&FamilyKind::ALL[..]);
    (name(), proptest::option::of(any::<String>()), kind).prop_flat_map(|(name, help, kind)| {
        let samples = proptest::collection::vec(sample(kind), 0..5);
        samples.prop_map(move |samples| Family {
            name: name.clone(),
            help: help.clone(),
            kind,
            samples,
        })
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(families in proptest::collection::vec(family(), 0..6)) {
        let written = Exposition {
            families: families.into_iter().map(|family| (family.name.clone(), family)).collect(),
        };
        let text = written.to_string();
        prop_assert_eq!(Exposition::parse(&text).unwrap(), written, "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = Exposition::parse(&text);
    }

    #[test]
    fn no_change_of_one_byte_makes_it_panic(at in 0..TEXT.len(), byte: u8) {
        let mut bytes = TEXT.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(exposition) = Exposition::parse(&String::from_utf8_lossy(&bytes)) {
            // What was understood can be written and read again.
            Exposition::parse(&exposition.to_string()).unwrap();
        }
    }
}
