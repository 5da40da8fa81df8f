//! The `webhook` handler: events as HTTP POSTs.
//!
//! | file | what it does |
//! | --- | --- |
//! | `settings` | reads the options |
//! | `message` | puts events into headers and a body (CloudEvents) |
//! | `signature` | vouches for a message (Standard Webhooks) |
//! | `client` | certificates and connections |
//! | `address` | refuses to connect where it should not |
//! | `answer` | what an answer means |

mod address;
mod answer;
mod client;
mod message;
mod settings;
mod signature;

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use http::Method;
use reqwest::{Client, Url};

use super::registry::HandlerConfigError;
use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Retry};
use crate::config::HandlerConfig;
use address::LookUp;
use client::Timeouts;
use message::{Message, Mode};
use settings::Settings;
use signature::Signer;

/// Posts events as CloudEvents, each by itself or several together, with `Idempotency-Key` and, where there
/// are `signing_secrets`, the headers of Standard Webhooks. What comes in one batch shares one request and
/// its answer.
///
/// Answers mean (design 3.1, rule 5):
///
/// - 2xx: handled.
/// - 400, 413, 415, 422: rejected; the event itself is the trouble.
/// - all others, redirects among them, and no answer in time: retry, after `Retry-After` where there is one. It does not
///   count with 401, 407, 429, 507, 503 with `Retry-After`, and without a connection.
///
/// Connections are kept and used again. At most as many requests are under way as the subscription's
/// `concurrency` says. Reasons name scheme, host and port of `url` and no more of it: path and query may
/// hold secrets.
pub(super) struct WebhookHandler {
    client: Client,
    url: Url,
    mode: Mode,
    limits: BatchLimits,
    signer: Option<Signer>,
    timeouts: Timeouts,
}

impl WebhookHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        Self::with_look_up(config, address::system)
    }

    fn with_look_up(config: &HandlerConfig, look_up: LookUp) -> Result<Self, HandlerConfigError> {
        let Settings {
            url,
            mode,
            limits,
            headers,
            signer,
            timeouts,
            tls,
            guard,
        } = Settings::read(config)?;
        let client = client::client(guard, look_up, headers, timeouts, tls).map_err(|error| {
            HandlerConfigError::setup(config, format!("no HTTP client: {}", answer::chain(&error)))
        })?;
        Ok(Self {
            client,
            url,
            mode,
            limits,
            signer,
            timeouts,
        })
    }

    /// One request for all of these events, and one answer.
    async fn post(&self, batch: &EventBatch) -> Answer {
        let mut message = Message::new(self.mode, batch);
        if let Some(signer) = &self.signer {
            let now = SystemTime::now();
            signer.sign(&mut message.headers, &message.key, &message.body, now);
        }
        let response = self
            .client
            .post(self.url.clone())
            .headers(message.headers)
            .body(message.body)
            .send()
            .await;
        match response {
            Ok(mut response) => {
                let answer = answer::read(&self.host(), response.status(), response.headers());
                answer::drain(&mut response).await;
                answer
            }
            Err(error) => {
                let retry = Retry::because(self.why_none(&error));
                // Before there was a connection, it had nothing of the event.
                Answer::Retry(if error.is_connect() {
                    retry.uncounted()
                } else {
                    retry
                })
            }
        }
    }

    fn why_none(&self, error: &reqwest::Error) -> String {
        answer::why_none(&self.host(), self.timeouts, error)
    }

    /// Scheme, host and port.
    fn host(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

// By hand: path and query of the address may hold secrets.
impl fmt::Debug for WebhookHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookHandler")
            .field("host", &self.host())
            .field("mode", &self.mode)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Handler for WebhookHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        BatchAnswer::All(self.post(batch).await)
    }

    fn batch_limits(&self) -> BatchLimits {
        self.limits
    }

    /// Sends an OPTIONS request, which changes nothing at the other side and goes the way that events
    /// go: the same proxy, name look-up, certificates and headers.
    async fn check(&self) -> Result<(), String> {
        let mut response = self
            .client
            .request(Method::OPTIONS, self.url.clone())
            .send()
            .await
            .map_err(|error| self.why_none(&error))?;
        let status = response.status();
        answer::drain(&mut response).await;
        match status.as_u16() {
            // Many receivers know POST only: 403, 404 and 405 say nothing about events here.
            401 | 407 | 502..=504 => Err(format!(
                "{} answered {status} to an OPTIONS request{}",
                self.host(),
                answer::hint(status)
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
