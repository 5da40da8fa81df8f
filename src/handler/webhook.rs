//! The `webhook` handler: each event, or each transaction, as one HTTP POST.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_lc_rs::digest;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};

use super::registry::HandlerConfigError;
use super::{Answer, BatchAnswer, EventBatch, Handler, Options, Retry, retry_after};
use crate::config::HandlerConfig;
use crate::event::Event;

/// Structured content mode of the CloudEvents HTTP binding.
const ONE_EVENT: HeaderValue =
    HeaderValue::from_static("application/cloudevents+json; charset=utf-8");

/// Its batched content mode.
const SEVERAL_EVENTS: HeaderValue =
    HeaderValue::from_static("application/cloudevents-batch+json; charset=utf-8");

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that the handler or the connection sets; `headers` may not.
const OWN_HEADERS: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::HOST,
    IDEMPOTENCY_KEY,
];

/// How much of an answer's body is read, and for how long, so that its connection can be used again.
/// What it says is of no interest.
const DRAINED_BYTES: usize = 64 << 10;
const DRAINED_FOR: Duration = Duration::from_millis(500);

/// Posts each event in the structured mode of CloudEvents, with its identity as `Idempotency-Key`, and the
/// events of a transaction together in the batched mode, with a key made of all identities: they share one
/// answer.
///
/// Options: `url`; `headers`, a table whose values may be secrets; `timeout` of a whole call (30 s);
/// `connect_timeout` (10 s). Redirects are not followed. Answers mean (design 3.1, rule 5):
///
/// - 2xx: handled.
/// - 400, 413, 415, 422: rejected; the event itself is the trouble.
/// - all others, and no answer in time: retry, after `Retry-After` where there is one.
///
/// Reasons name scheme, host and port of `url` and no more of it: path and query may hold secrets.
pub struct WebhookHandler {
    client: Client,
    url: Url,
    timeouts: Timeouts,
}

#[derive(Debug, Clone, Copy)]
struct Timeouts {
    whole: Duration,
    connect: Duration,
}

impl WebhookHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let url = options
            .required_text("url", "the http:// or https:// address to post events to")
            .and_then(|text| read_url(&mut options, &text));
        let headers = options.secret_table("headers");
        let headers = read_headers(&mut options, &headers);
        let timeouts = Timeouts {
            whole: options.duration("timeout", Duration::from_secs(30)),
            connect: options.duration("connect_timeout", Duration::from_secs(10)),
        };
        let url = options.finish(url)?;
        let client = client(&url, headers, timeouts).map_err(|error| {
            HandlerConfigError::setup(config, format!("no HTTP client: {}", chain(&error)))
        })?;
        Ok(Self {
            client,
            url,
            timeouts,
        })
    }

    /// One request for all of these events, and one answer.
    async fn post(&self, events: &[Arc<Event>]) -> Answer {
        let (content_type, body, key) = match events {
            [event] => (
                ONE_EVENT,
                event.cloud_event().to_json(),
                event.identity().as_str().to_owned(),
            ),
            events => {
                let batch: Vec<_> = events.iter().map(|event| event.cloud_event()).collect();
                (
                    SEVERAL_EVENTS,
                    serde_json::to_vec(&batch),
                    batch_key(events),
                )
            }
        };
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                return Answer::Reject {
                    reason: format!("cannot be written as CloudEvents JSON: {error}"),
                };
            }
        };
        let response = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, content_type)
            .header(IDEMPOTENCY_KEY, key)
            .body(body)
            .send()
            .await;
        match response {
            Ok(mut response) => {
                let answer = self.read_answer(response.status(), response.headers());
                drain(&mut response).await;
                answer
            }
            Err(error) => Answer::Retry(Retry::because(self.why_none(&error))),
        }
    }

    fn read_answer(&self, status: StatusCode, headers: &HeaderMap) -> Answer {
        let reason = || {
            let (host, hint) = (self.host(), hint(status));
            format!("{host} answered {status}{hint}")
        };
        match status.as_u16() {
            200..=299 => Answer::Handled,
            400 | 413 | 415 | 422 => Answer::Reject { reason: reason() },
            _ => Answer::Retry(Retry {
                reason: reason(),
                after: headers
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| retry_after::parse(value, SystemTime::now())),
            }),
        }
    }

    /// Why there was no answer.
    fn why_none(&self, error: &reqwest::Error) -> String {
        let host = self.host();
        if error.is_timeout() && error.is_connect() {
            format!("no connection to {host} within {:?}", self.timeouts.connect)
        } else if error.is_timeout() {
            format!("no answer from {host} within {:?}", self.timeouts.whole)
        } else {
            format!("no answer from {host}: {}", chain(error))
        }
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
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Handler for WebhookHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        BatchAnswer::All(self.post(&batch.events).await)
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
        drain(&mut response).await;
        match status.as_u16() {
            // Many receivers know POST only: 403, 404 and 405 say nothing about events here.
            401 | 407 | 502..=504 => Err(format!(
                "{} answered {status} to an OPTIONS request{}",
                self.host(),
                hint(status)
            )),
            _ => Ok(()),
        }
    }
}

/// The same for the same events, and for no others.
fn batch_key(events: &[Arc<Event>]) -> String {
    let mut digest = digest::Context::new(&digest::SHA256);
    for event in events {
        digest.update(event.identity().as_str().as_bytes());
        digest.update(b"\n");
    }
    hex::encode(digest.finish())
}

fn client(url: &Url, headers: HeaderMap, timeouts: Timeouts) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeouts.whole)
        .connect_timeout(timeouts.connect)
        // Else a dead HTTP/2 connection would take every retry along.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(10));
    if is_loopback(url) {
        builder = builder.no_proxy(); // another machine's loopback is not meant
    }
    builder.build()
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

fn read_url(options: &mut Options<'_>, text: &str) -> Option<Url> {
    let reason = match Url::parse(text) {
        Err(error) => format!("is not an address ({error}): expected http:// or https://"),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            "must begin with http:// or https://".to_owned()
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "must not hold a user name or password: send them in `headers`, \
             as Authorization = \"Basic …\""
                .to_owned()
        }
        Ok(url) => return Some(url),
    };
    options.invalid("url", reason);
    None
}

fn read_headers(options: &mut Options<'_>, texts: &BTreeMap<String, SecretString>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(texts.len());
    for (name, value) in texts {
        let key = format!("headers.{name}");
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            options.invalid(key, "is not the name of a header");
            continue;
        };
        if OWN_HEADERS.contains(&name) {
            options.invalid(key, "is set by orgstream itself: leave it out");
            continue;
        }
        match HeaderValue::from_str(value.expose_secret()) {
            Ok(mut value) => {
                value.set_sensitive(true);
                if headers.insert(name, value).is_some() {
                    options.invalid(key, "is given twice, in different case");
                }
            }
            Err(_) => options.invalid(
                key,
                "must be ASCII on one line; a variable behind it may end with a newline",
            ),
        }
    }
    headers
}

/// Reads a bounded part of the body away.
async fn drain(response: &mut reqwest::Response) {
    let drained = async {
        let mut read = 0;
        while read < DRAINED_BYTES {
            match response.chunk().await {
                Ok(Some(chunk)) => read += chunk.len(),
                Ok(None) | Err(_) => break,
            }
        }
    };
    // The answer is known; a body that is late costs its connection and nothing else.
    let _ = tokio::time::timeout(DRAINED_FOR, drained).await;
}

/// What to do about a status, where that is likely.
fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => " (redirects are not followed: set `url` to where it leads)",
        401 | 403 => " (look at `headers`)",
        404 | 405 | 410 => " (look at `url`)",
        407 => " (look at the proxy's credentials)",
        _ => "",
    }
}

/// The causes of an error, without the address it went to; bounded, on one line.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
