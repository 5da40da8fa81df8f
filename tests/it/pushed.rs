//! Metrics that the daemon brings to others by itself: OTLP push, and lines in the log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use prost::Message;

use crate::letters::{config, publish};
use crate::support::{Daemon, Emulator, LOG, Store, eventually};

#[derive(Clone, Default)]
struct Collector {
    came: Arc<Mutex<Vec<(HeaderMap, ExportMetricsServiceRequest)>>>,
}

impl Collector {
    async fn at(listener: tokio::net::TcpListener) -> Self {
        let collector = Self::default();
        let take = async |State(collector): State<Self>, headers: HeaderMap, body: Bytes| {
            let request = ExportMetricsServiceRequest::decode(body).unwrap();
            collector.came.lock().unwrap().push((headers, request));
        };
        let router = Router::new()
            .route("/v1/metrics", post(take))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// The newest value of a counter of `accounts`, summed over its other labels.
    fn counted(&self, name: &str) -> Option<f64> {
        let came = self.came.lock().unwrap();
        let (_, request) = came.last()?;
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let data = metrics
            .iter()
            .find(|metric| metric.name == name)?
            .data
            .clone();
        let Some(metric::Data::Sum(sum)) = data else {
            panic!("{data:?}");
        };
        let values = sum.data_points.iter().map(|point| match point.value {
            Some(number_data_point::Value::AsDouble(value)) => value,
            ref other => panic!("{other:?}"),
        });
        Some(values.sum())
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes
        .iter()
        .find(|one| one.key == key)?
        .value
        .clone()?;
    match value.value {
        Some(any_value::Value::StringValue(text)) => Some(text),
        _ => None,
    }
}

#[tokio::test]
async fn metrics_are_pushed_over_otlp_and_a_collector_that_is_away_costs_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // A port that nobody listens on yet.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = format!("http://{address}");
    let mut daemon = Daemon::run_with(
        &config(&org, &store, "", LOG),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=pl4nted-secret"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test",
            ),
            ("DYNO", ""),
            ("ORGSTREAM_LOG", "debug"),
        ],
    );
    publish(&org, 1, "one").await;
    daemon.handled(1).await;
    daemon
        .logged(&["metrics could not be pushed", &endpoint])
        .await;
    // It goes on handling, and says it once.
    publish(&org, 2, "two").await;
    daemon.handled(2).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let told = |daemon: &Daemon| {
        let log = daemon.log();
        let lines = log
            .iter()
            .filter(|line| line.contains("could not be pushed"));
        lines.count()
    };
    assert_eq!(told(&daemon), 1);

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let collector = Collector::at(listener).await;
    daemon.logged(&["metrics are pushed again"]).await;
    eventually("both events counted", async || {
        let counted = collector.counted("orgstream_events_received_total");
        (counted == Some(2.0)).then_some(())
    })
    .await;
    {
        let came = collector.came.lock().unwrap();
        let (headers, request) = came.last().unwrap();
        assert_eq!(headers["api-key"], "pl4nted-secret");
        let resource = request.resource_metrics[0].resource.as_ref().unwrap();
        let of = |key| text(&resource.attributes, key).unwrap();
        assert_eq!(of("service.name"), "orgstream");
        assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
        assert!(of("service.instance.id").ends_with(&format!(":{}", daemon.id())));
        assert_eq!(of("deployment.environment.name"), "test");
    }
    // What comes just before the end is pushed, too.
    publish(&org, 3, "three").await;
    daemon.handled(3).await;
    let log = daemon.log();
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(
        collector.counted("orgstream_events_received_total"),
        Some(3.0)
    );
    assert!(!log.iter().any(|line| line.contains("pl4nted")), "{log:?}");
}

#[tokio::test]
async fn a_wrong_variable_of_opentelemetry_is_a_configuration_error_that_names_it() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run_with(
        &config(&org, &store, "", LOG),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ],
    );
    assert_eq!(daemon.ended().await.code(), Some(78));
    let log = daemon.log().join("\n");
    assert!(
        log.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && log.contains("4318"),
        "{log}"
    );
}

#[tokio::test]
async fn figures_go_to_the_log_as_heroku_wants_them_and_only_where_asked() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let text = config(&org, &store, "", LOG);
    let mut daemon = Daemon::run_with(
        &text,
        &[
            ("ORGSTREAM_LOG_SAMPLES", "1s"),
            ("ORGSTREAM_LOG_FORMAT", "json"),
        ],
    );
    publish(&org, 1, "one").await;
    daemon.handled(1).await;
    let line = daemon
        .logged(&["count#orgstream.accounts.events_received=1"])
        .await;
    // The whole line, with nothing before it.
    assert!(line.starts_with("source="), "{line}");
    for part in [
        " sample#orgstream.accounts.lag_seconds=",
        " sample#orgstream.accounts.dead_letters_open=0",
        " count#orgstream.accounts.events_parked=0",
        " count#orgstream.accounts.holes=0",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    // What was counted is not counted again.
    daemon
        .logged(&["count#orgstream.accounts.events_received=0"])
        .await;
    daemon.logged(&[" sample#orgstream.memory_bytes="]).await;
    assert_eq!(daemon.stop().await.1, 0);

    let mut quiet = Daemon::run(&text);
    publish(&org, 2, "two").await;
    quiet.handled(1).await;
    assert!(!quiet.log().iter().any(|line| line.contains("sample#")));
    assert_eq!(quiet.stop().await.1, 0);
}
