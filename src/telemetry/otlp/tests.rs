//! What is pushed, decoded by the messages of the published definitions, and how a collector's answers are taken.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap as Headers, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use secrecy::SecretString;

use super::*;
use crate::telemetry::metrics as table;

const TEXT: &str = "\
# HELP orgstream_events_received_total Events received from the bus.
# TYPE orgstream_events_received_total counter
orgstream_events_received_total{subscription=\"accounts\"} 3
# TYPE orgstream_lag_seconds gauge
orgstream_lag_seconds{subscription=\"accounts\"} 1.5
orgstream_lag_seconds{subscription=\"elsewhere\"} NaN
# TYPE orgstream_position_kept_seconds gauge
orgstream_position_kept_seconds{subscription=\"elsewhere\"} NaN
# TYPE orgstream_handler_seconds histogram
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"a\",le=\"0.5\"} 1
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"a\",le=\"1\"} 1
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"a\",le=\"+Inf\"} 3
orgstream_handler_seconds_sum{subscription=\"accounts\",handler=\"a\"} 4.5
orgstream_handler_seconds_count{subscription=\"accounts\",handler=\"a\"} 3
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"b\",le=\"0.5\"} 0
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"b\",le=\"1\"} 2
orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"b\",le=\"+Inf\"} 2
orgstream_handler_seconds_sum{subscription=\"accounts\",handler=\"b\"} 1.25
orgstream_handler_seconds_count{subscription=\"accounts\",handler=\"b\"} 2
";

fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    (attributes.iter())
        .map(|one| {
            let value = one.value.as_ref().and_then(|value| value.value.as_ref());
            let Some(any_value::Value::StringValue(text)) = value else {
                panic!("{one:?}");
            };
            (one.key.clone(), text.clone())
        })
        .collect()
}

/// What a collector reads of it.
fn read(body: &[u8]) -> (Vec<(String, String)>, Vec<Metric>) {
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    let [resource] = &request.resource_metrics[..] else {
        panic!("{request:?}");
    };
    let attributes = pairs(&resource.resource.as_ref().unwrap().attributes);
    let scope = resource.scope_metrics[0].scope.as_ref().unwrap();
    assert_eq!(
        (&*scope.name, &*scope.version),
        ("orgstream", env!("CARGO_PKG_VERSION"))
    );
    (attributes, resource.scope_metrics[0].metrics.clone())
}

fn seconds(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn counters_gauges_and_histograms_are_what_the_published_messages_say() {
    let exposition = Exposition::parse(TEXT).unwrap();
    let attributes = attributes(
        &[("service.name".to_owned(), "events".to_owned())],
        "worker.1",
    );
    let span = Span::new(seconds(10), seconds(20));
    let body = convert::request(&exposition, &attributes, span).encode_to_vec();
    let (attributes, metrics) = read(&body);
    let wanted = [
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", "worker.1"),
        ("service.name", "events"),
    ];
    assert_eq!(
        attributes,
        wanted.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    let shape: Vec<_> = (metrics.iter())
        .map(|metric| (metric.name.as_str(), metric.unit.as_str()))
        .collect();
    // Of what is not known there is no metric.
    assert_eq!(
        shape,
        [
            ("orgstream_events_received_total", ""),
            ("orgstream_handler_seconds", "s"),
            ("orgstream_lag_seconds", "s"),
        ]
    );
    assert_eq!(metrics[0].description, "Events received from the bus.");

    let Some(metric::Data::Sum(sum)) = &metrics[0].data else {
        panic!("{metrics:?}");
    };
    assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
    let point = &sum.data_points[0];
    assert_eq!(point.value, Some(number_data_point::Value::AsDouble(3.0)));
    assert_eq!(
        pairs(&point.attributes),
        [("subscription".to_owned(), "accounts".to_owned())]
    );
    let times = (point.start_time_unix_nano, point.time_unix_nano);
    assert_eq!(times, (10_000_000_000, 20_000_000_000));

    let Some(metric::Data::Gauge(gauge)) = &metrics[2].data else {
        panic!("{metrics:?}");
    };
    let values: Vec<_> = gauge.data_points.iter().map(|point| point.value).collect();
    assert_eq!(values, [Some(number_data_point::Value::AsDouble(1.5))]);
    assert_eq!(gauge.data_points[0].time_unix_nano, 20_000_000_000);

    let Some(metric::Data::Histogram(histogram)) = &metrics[1].data else {
        panic!("{metrics:?}");
    };
    assert_eq!(histogram.aggregation_temporality, 2);
    let [a, b] = &histogram.data_points[..] else {
        panic!("{histogram:?}");
    };
    assert_eq!(
        (a.count, a.sum, &a.bucket_counts[..]),
        (3, Some(4.5), &[1, 0, 2][..])
    );
    assert_eq!(
        (b.count, b.sum, &b.bucket_counts[..]),
        (2, Some(1.25), &[0, 2, 0][..])
    );
    assert_eq!(a.explicit_bounds, [0.5, 1.0]);
    assert_eq!(a.start_time_unix_nano, 10_000_000_000);
    assert_eq!(
        pairs(&b.attributes),
        [
            ("subscription".to_owned(), "accounts".to_owned()),
            ("handler".to_owned(), "b".to_owned())
        ]
    );
}

#[derive(Clone, Default)]
struct Collector {
    came: Arc<Mutex<Vec<(Headers, Bytes)>>>,
    answer: Arc<Mutex<(u16, Vec<u8>)>>,
}

impl Collector {
    async fn start(status: u16, body: &[u8]) -> (Self, OtlpConfig) {
        let collector = Self::default();
        *collector.answer.lock().unwrap() = (status, body.to_vec());
        let take = async |State(collector): State<Self>, headers: Headers, body: Bytes| {
            collector.came.lock().unwrap().push((headers, body));
            let (status, answer) = collector.answer.lock().unwrap().clone();
            (StatusCode::from_u16(status).unwrap(), answer)
        };
        let router = Router::new()
            .route("/v1/metrics", post(take))
            .with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/metrics", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = OtlpConfig {
            endpoint: endpoint.parse().unwrap(),
            headers: vec![(
                "authorization".parse().unwrap(),
                SecretString::from("Bearer s3cret".to_owned()),
            )],
            attributes: Vec::new(),
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(300),
        };
        (collector, config)
    }

    fn came(&self) -> Vec<(Headers, Bytes)> {
        self.came.lock().unwrap().clone()
    }
}

fn push(config: OtlpConfig) -> OtlpPush {
    OtlpPush::new(config, Recorder::install().unwrap(), "worker.1").unwrap()
}

#[tokio::test]
async fn the_recorder_is_pushed_with_the_headers_that_are_configured() {
    let (collector, config) = Collector::start(200, &[]).await;
    table::EVENTS_RECEIVED.counter(&["pushed"]).increment(7);
    assert_eq!(push(config).push().await, Ok(0));
    let (headers, body) = collector.came().remove(0);
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["authorization"], "Bearer s3cret");
    let (_, metrics) = read(&body);
    let received = metrics
        .iter()
        .find(|one| one.name == table::EVENTS_RECEIVED.name);
    let Some(metric::Data::Sum(sum)) = &received.unwrap().data else {
        panic!("{received:?}");
    };
    let its = (sum.data_points.iter()).find(|point| pairs(&point.attributes)[0].1 == "pushed");
    assert_eq!(
        its.unwrap().value,
        Some(number_data_point::Value::AsDouble(7.0))
    );
    assert!(metrics.iter().any(|one| one.name == table::BUILD_INFO.name));
}

#[tokio::test]
async fn a_refusal_a_silence_and_a_closed_port_are_errors_without_secrets() {
    let (collector, config) = Collector::start(403, b"no s3cret").await;
    assert_eq!(
        push(config.clone()).push().await,
        Err("HTTP 403".to_owned())
    );
    assert_eq!(collector.came().len(), 1);

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = |address| OtlpConfig {
        endpoint: format!("http://{address}/key-s3cret").parse().unwrap(),
        ..config.clone()
    };
    let silent_at = at(silent.local_addr().unwrap());
    let began = std::time::Instant::now();
    let error = push(silent_at).push().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "bounded");
    assert!(!error.contains("s3cret"), "{error}");
    let gone = silent.local_addr().unwrap();
    drop(silent);
    let error = push(at(gone)).push().await.unwrap_err();
    assert!(
        error.contains("refused") && !error.contains("s3cret"),
        "{error}"
    );
    assert!(!config.place().contains("s3cret"));
}

#[tokio::test]
async fn a_collector_that_takes_a_part_says_how_much_it_refused_and_nonsense_is_no_failure() {
    // ExportMetricsPartialSuccess with rejected_data_points = 5.
    let (_collector, config) = Collector::start(200, &[0x0a, 0x02, 0x08, 0x05]).await;
    assert_eq!(push(config).push().await, Ok(5));
    let (_collector, config) = Collector::start(200, b"<html>").await;
    assert_eq!(push(config).push().await, Ok(0));
}

#[tokio::test]
async fn it_pushes_in_its_interval_through_failures_and_once_more_at_the_end() {
    let (collector, config) = Collector::start(503, &[]).await;
    let stop = CancellationToken::new();
    let task = tokio::spawn(push(config).run(stop.clone()));
    let until = async |count: usize| {
        let came = async {
            while collector.came().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, came).await.expect("pushes");
    };
    until(2).await;
    collector.answer.lock().unwrap().0 = 200;
    until(4).await;
    stop.cancel();
    let before = collector.came().len();
    task.await.unwrap();
    assert!(collector.came().len() > before, "the last one");
}
