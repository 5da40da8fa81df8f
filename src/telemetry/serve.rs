//! The metrics endpoint.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::recorder::{Recorder, RecorderError};

/// How long a scrape may take to end when the server stops.
const STOP: Duration = Duration::from_secs(2);
/// Prometheus text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on: most often another process has the port.
    #[error(
        "cannot serve metrics on {addr}: {reason}; set ORGSTREAM_METRICS_ADDR to an address and port \
         that are free"
    )]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system says. In the text, so not also a cause: causes are printed after it.
        reason: io::Error,
    },
    /// Something else in this process already records metrics.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
}

/// A server of `/metrics` (Prometheus text format) and `/healthz`. Ends when dropped.
#[derive(Debug)]
pub struct MetricsServer {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl MetricsServer {
    /// Where it listens; with the port that the operating system chose where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops listening; scrapes that are under way have two seconds to end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts to record metrics and serves them on `addr`. What was counted before is lost, so this comes
/// before anything is started that counts.
///
/// # Errors
///
/// The port is taken, or another recorder is installed.
pub async fn serve(addr: SocketAddr) -> Result<MetricsServer, ServeError> {
    let listen = |reason| ServeError::Listen { addr, reason };
    let listener = TcpListener::bind(addr).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let recorder = Recorder::install()?;

    let stop = CancellationToken::new();
    let server = axum::serve(listener, router(recorder))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "metrics are not served any more"
            );
        }
    });
    Ok(MetricsServer { addr, stop, task })
}

fn router(recorder: Recorder) -> Router {
    let text = async move || ([(CONTENT_TYPE, TEXT)], recorder.render());
    Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(async || "ok\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition::Exposition;
    use crate::telemetry::metrics::{self, Kind};

    const ANY_PORT: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// Records every metric of the table, and calls what decides the value of a label.
    fn record_everything() {
        for metric in metrics::ALL
            .iter()
            .filter(|one| !one.name.contains("_process_"))
        {
            let values = vec!["x"; metric.labels.len()];
            match metric.kind {
                Kind::Counter => metric.counter(&values).increment(1),
                Kind::Gauge => metric.gauge(&values).set(1.0),
                Kind::Histogram(_) => metric.histogram(&values).record(1.0),
            }
        }
        metrics::event_parked("accounts", None, "undecodable");
        metrics::stream_state("accounts", "connecting");
        metrics::stream_state("accounts", "live");
        metrics::HANDLER_TIME
            .histogram(&["accounts", "log"])
            .record(1.0);
    }

    async fn get_text(addr: SocketAddr, path: &str) -> (u16, String, String) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client
            .get(format!("http://{addr}{path}"))
            .send()
            .await
            .unwrap();
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.map(|kind| kind.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        (
            status,
            kind.unwrap_or_default(),
            response.text().await.unwrap(),
        )
    }

    #[tokio::test]
    async fn every_metric_of_the_table_can_be_scraped_once_it_is_recorded() {
        let server = serve(ANY_PORT).await.unwrap();
        record_everything();
        let (status, kind, text) = get_text(server.addr(), "/metrics").await;
        assert_eq!((status, kind.as_str()), (200, TEXT));
        let read = Exposition::parse(&text).unwrap();
        for metric in metrics::ALL {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            let name = metric.name;
            for line in [
                format!("# HELP {name} {}", metric.help),
                format!("# TYPE {name} {kind}"),
            ] {
                assert!(text.lines().any(|read| read == line), "{line}\n{text}");
            }
            let sample = &read.family(name).unwrap().samples[0];
            for label in metric.labels {
                assert!(sample.label(label).is_some(), "{name} {label}");
            }
        }
        for line in [
            "orgstream_stream_state{subscription=\"accounts\",state=\"live\"} 1",
            "orgstream_stream_state{subscription=\"accounts\",state=\"connecting\"} 0",
            "orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"log\",le=\"1\"} 1",
            "orgstream_handler_seconds_bucket{subscription=\"accounts\",handler=\"log\",le=\"0.5\"} 0",
            "orgstream_events_parked_total{subscription=\"accounts\",handler=\"\",reason=\"undecodable\"} 1",
        ] {
            assert!(text.lines().any(|read| read == line), "{line}\n{text}");
        }
        assert_eq!(get_text(server.addr(), "/healthz").await.2, "ok\n");
        assert_eq!(get_text(server.addr(), "/else").await.0, 404);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_it_and_a_stopped_server_frees_it() {
        let server = serve(ANY_PORT).await.unwrap();
        let addr = server.addr();
        let error = serve(addr).await.unwrap_err();
        assert!(matches!(&error, ServeError::Listen { addr: named, .. } if *named == addr));
        assert!(error.to_string().contains(&addr.to_string()));
        // An idle connection does not hold the end up.
        let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
        server.stop().await;
        drop(idle);
        assert!(tokio::net::TcpStream::connect(addr).await.is_err());
    }
}
