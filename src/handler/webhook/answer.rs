//! What answers mean, and what their lack does.

use std::error::Error;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{self, HeaderMap};
use rustls::{AlertDescription, CertificateError};

use super::super::{Answer, Retry, retry_after};
use super::client::Timeouts;
use crate::text::one_line;

/// How much of an answer's body is read, and for how long, so that its connection can be used again.
/// What it says is of no interest.
const DRAINED_BYTES: usize = 64 << 10;
const DRAINED_FOR: Duration = Duration::from_millis(500);

/// What a status means for the events that were posted (design 3.1, rule 5). `host` is for the reason.
pub(super) fn read(host: &str, status: StatusCode, headers: &HeaderMap) -> Answer {
    let reason = || format!("{host} answered {status}{}", hint(status));
    match status.as_u16() {
        200..=299 => Answer::Handled,
        400 | 413 | 415 | 422 => Answer::Reject { reason: reason() },
        status => {
            let after = headers
                .get(header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| retry_after::parse(value, SystemTime::now()));
            let retry = Retry {
                after,
                ..Retry::because(reason())
            };
            Answer::Retry(match status {
                // It says itself that it is not the event: who we are, how often we come, what room it has left.
                401 | 407 | 429 | 507 => retry.uncounted(),
                503 if after.is_some() => retry.uncounted(),
                _ => retry,
            })
        }
    }
}

/// What to do about a status, where that is likely.
pub(super) fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => " (redirects are not followed: set `url` to where it leads)",
        401 | 403 => " (look at `headers`, and at `signing_secrets` if it wants signatures)",
        404 | 405 | 410 => " (look at `url`)",
        407 => " (look at the proxy's credentials)",
        413 => " (let it take larger requests)",
        507 => " (it has no room left)",
        _ => "",
    }
}

/// Why there was no answer.
pub(super) fn why_none(host: &str, timeouts: Timeouts, error: &reqwest::Error) -> String {
    if error.is_timeout() && error.is_connect() {
        format!("no connection to {host} within {:?}", timeouts.connect)
    } else if error.is_timeout() {
        format!("no answer from {host} within {:?}", timeouts.whole)
    } else {
        let hint = match tls_error(error) {
            Some(error) => tls_hint(error),
            // With TLS 1.3 the client is done with its handshake before the server has looked at its
            // certificate, and what the server says of it may be lost with the connection.
            None if host.starts_with("https:") && !error.is_connect() => {
                " (one that wants another client certificate may hang up so: look at `client_cert`)"
            }
            None => "",
        };
        format!("no answer from {host}: {}{hint}", chain(error))
    }
}

/// The error of TLS behind an error, where there is one.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error names the source of what it wraps as its own, and so skips what it wraps.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn tls_hint(error: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            " (if its CA is one of your own, give it as `ca` or `ca_file`)"
        }
        AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure,
        ) => " (it may want a client certificate: look at `client_cert` and `client_key`)",
        InvalidMessage(_) => " (does it speak TLS? look at `url`)",
        _ => "",
    }
}

/// The causes of an error, without the address it went to; bounded, on one line.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    one_line(&text, 300)
}

/// Reads a bounded part of the body away.
pub(super) async fn drain(response: &mut reqwest::Response) {
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
