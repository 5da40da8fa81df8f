//! Push of metrics over OTLP: HTTP with protobuf (opentelemetry.io, "OTLP Specification", OTLP/HTTP).
//!
//! What is pushed is what the recorder has at that moment, so nothing piles up where a collector is away, and
//! nothing is lost but points in between: counters are cumulative.

mod convert;
#[cfg(test)]
mod tests;
mod wire;

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use prost::Message;
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Recorder;
use super::exposition::Exposition;
use crate::config::OtlpConfig;
use crate::salesforce::tls;
use convert::Span;

/// How long the last push may take, while the process ends.
const LAST: Duration = Duration::from_secs(2);

/// An answer is a few bytes; what is longer is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Pushes the process's metrics to a collector.
pub struct OtlpPush {
    config: OtlpConfig,
    client: reqwest::Client,
    headers: HeaderMap,
    recorder: Recorder,
    attributes: Vec<(String, String)>,
    /// When counting began.
    began: SystemTime,
    /// The last push failed, and people were told.
    failing: bool,
    /// The collector refused a part once, and people were told.
    told_refused: bool,
}

/// Why nothing can be pushed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metrics cannot be pushed: {0}")]
pub struct OtlpError(String);

impl OtlpPush {
    /// Prepares the client; sends nothing. `worker` is the name of this process.
    ///
    /// # Errors
    ///
    /// TLS cannot be set up, or a header cannot be sent.
    pub fn new(config: OtlpConfig, recorder: Recorder, worker: &str) -> Result<Self, OtlpError> {
        let failed = |why: String| OtlpError(why);
        let tls = tls::client_config(crate::tls::usual_roots())
            .map_err(|error| failed(error.to_string()))?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(config.timeout)
            .user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION")));
        if config.is_loopback() {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| failed(error.to_string()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let value = HeaderValue::from_str(value.expose_secret());
            let mut value = value.map_err(|_| failed(format!("header {name} cannot be sent")))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        Ok(Self {
            attributes: attributes(&config.attributes, worker),
            config,
            client,
            headers,
            recorder,
            began: SystemTime::now(),
            failing: false,
            told_refused: false,
        })
    }

    /// Pushes in the configured interval until `stop`, and once more then, so that the end is seen.
    pub async fn run(mut self, stop: CancellationToken) {
        info!(
            endpoint = self.config.place(),
            interval_ms = u64::try_from(self.config.interval.as_millis()).unwrap_or(u64::MAX),
            "metrics are pushed"
        );
        let pause = self.config.interval;
        while stop
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_some()
        {
            self.push_and_tell().await;
        }
        // Whoever waits for the end has no time for a collector that does not answer.
        let _ = tokio::time::timeout(LAST, self.push_and_tell()).await;
    }

    async fn push_and_tell(&mut self) {
        match self.push().await {
            Ok(refused) => {
                if self.failing {
                    info!(endpoint = self.config.place(), "metrics are pushed again");
                }
                self.failing = false;
                if refused != 0 && !self.told_refused {
                    self.told_refused = true;
                    warn!(
                        endpoint = self.config.place(),
                        refused, "the collector refused some of the metrics"
                    );
                }
            }
            Err(why) if !self.failing => {
                self.failing = true;
                warn!(
                    endpoint = self.config.place(),
                    error = why,
                    "metrics could not be pushed; it is tried again at the next turn"
                );
            }
            Err(_) => {}
        }
    }

    /// Gives how many points the collector refused.
    async fn push(&self) -> Result<i64, String> {
        let body = self.body(SystemTime::now())?;
        let failed = |error: reqwest::Error| told(&error.without_url());
        let mut response = self
            .client
            .post(self.config.endpoint.to_string())
            .headers(self.headers.clone())
            .body(body)
            .send()
            .await
            .map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("HTTP {}", status.as_u16()));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > LONGEST_ANSWER {
                return Ok(0);
            }
            answer.extend_from_slice(&chunk);
        }
        // It took them, whatever it says about it.
        let answer = wire::Response::decode(answer.as_slice()).unwrap_or_default();
        Ok(answer
            .partial_success
            .map_or(0, |part| part.rejected_data_points))
    }

    fn body(&self, now: SystemTime) -> Result<Vec<u8>, String> {
        let text = self.recorder.render();
        let exposition = Exposition::parse(&text).map_err(|error| error.to_string())?;
        let span = Span::new(self.began, now);
        Ok(convert::request(&exposition, &self.attributes, span).encode_to_vec())
    }
}

/// What is said of this process, unless the configuration says otherwise.
fn attributes(configured: &[(String, String)], worker: &str) -> Vec<(String, String)> {
    let ours = [
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", worker),
    ];
    let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in ours.iter().chain(configured) {
        all.retain(|(other, _)| other != key);
        all.push((key.clone(), value.clone()));
    }
    all
}

/// An error with its causes, which name what is wrong.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
