//! Where metrics are pushed to, and how often lines with figures are written.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{load_env, signed_in};
use crate::config::{Config, OtlpConfig};

fn loaded(pairs: &[(&str, &str)]) -> Result<Config, String> {
    let all = [&[("ORGSTREAM_TOPICS", "Account")], pairs].concat();
    match load_env(&signed_in(&all)) {
        Ok(loaded) => Ok(loaded.config),
        Err(error) => Err(error.to_string()),
    }
}

fn otlp(pairs: &[(&str, &str)]) -> OtlpConfig {
    loaded(pairs).unwrap().otlp.unwrap()
}

#[test]
fn nothing_is_pushed_or_written_unless_it_is_asked_for() {
    let config = loaded(&[("OTEL_SERVICE_NAME", "x")]).unwrap();
    assert!(config.otlp.is_none() && config.log_samples.is_none());
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    for off in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
    ] {
        let config = loaded(&[endpoint, off]).unwrap();
        assert!(config.otlp.is_none(), "{off:?}");
    }
}

#[test]
fn the_endpoint_for_everything_is_completed_and_the_one_for_metrics_is_not() {
    let base = |url| {
        otlp(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)])
            .endpoint
            .to_string()
    };
    assert_eq!(
        base("http://localhost:4318"),
        "http://localhost:4318/v1/metrics"
    );
    assert_eq!(
        base("https://a.example/otlp/"),
        "https://a.example/otlp/v1/metrics"
    );
    let both = otlp(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            "https://a.example/m?x=1",
        ),
    ]);
    assert_eq!(both.endpoint.to_string(), "https://a.example/m?x=1");
    assert_eq!(both.interval, Duration::from_secs(60));
    assert_eq!(both.timeout, Duration::from_secs(10));
}

#[test]
fn headers_attributes_and_times_are_read_as_the_specification_has_them() {
    let config = otlp(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=general"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
            "Authorization=Bearer%20s%2Ccret, x-team = ops ,",
        ),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=other,deployment.environment.name=production",
        ),
        ("OTEL_SERVICE_NAME", "events"),
    ]);
    let headers: Vec<_> = (config.headers.iter())
        .map(|(name, value)| (name.as_str(), value.expose_secret()))
        .collect();
    assert_eq!(
        headers,
        [("authorization", "Bearer s,cret"), ("x-team", "ops")]
    );
    assert_eq!(config.interval, Duration::from_secs(15));
    assert_eq!(config.timeout, Duration::from_millis(250));
    let attributes: Vec<_> = (config.attributes.iter())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        attributes,
        [
            ("deployment.environment.name", "production"),
            ("service.name", "events")
        ]
    );
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("s,cret") && !shown.contains("\"ops"),
        "{shown}"
    );
}

#[test]
fn what_is_wrong_is_named_by_its_variable_and_not_repeated() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    for (name, value, words) in [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "localhost:4318",
            "expected a URL",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "ftp://hidden",
            "expected a URL",
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            "http://u:hidden@a.example",
            "holds a user",
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf only"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
            "http/json",
            "http/protobuf only",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "hidden",
            "expected name=value",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "a b=hidden",
            "a name that no header",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "a=hidden%0A",
            "a value that no header",
        ),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=%FF", "not UTF-8"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "whole milliseconds"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "whole milliseconds"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=hidden", "expected name=value"),
        ("ORGSTREAM_LOG_SAMPLES", "60", "a duration"),
        ("ORGSTREAM_LOG_SAMPLES", "10ms", "1s or more"),
    ] {
        let error = loaded(&[endpoint, (name, value)]).unwrap_err();
        assert!(error.contains(name) && error.contains(words), "{error}");
        assert!(!error.contains("hidden"), "{error}");
    }
}

#[test]
fn lines_with_figures_are_asked_for_by_a_duration() {
    let config = loaded(&[("ORGSTREAM_LOG_SAMPLES", "60s")]).unwrap();
    assert_eq!(config.log_samples, Some(Duration::from_secs(60)));
}
