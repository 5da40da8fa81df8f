//! What can go wrong on the wire, in words that a person can use. What to do about it: `recovery.rs`.

use std::error::Error;
use std::fmt;

use tonic::{Code, ConnectError, Status};

use super::recovery::{Recovery, Row, row};
use crate::salesforce::auth::AuthError;
use crate::text::one_line;

/// What all codes of the `error-code` trailer begin with (facts 6.2).
pub(super) const CODE_PREFIX: &str = "sfdc.platform.eventbus.grpc.";
/// The platform's words are cut here; a proxy's could be a web page.
const LONGEST_MESSAGE: usize = 500;

/// The Pub/Sub API's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// Subscribe.
    Subscribe,
    /// GetSchema.
    GetSchema,
    /// GetTopic.
    GetTopic,
    /// Publish.
    Publish,
}

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PubSubError {
    /// The org, or something on the way to it, answered with an error; or nothing answered.
    #[error("{rpc} failed: {}{message}", .code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default())]
    Rpc {
        /// Which call.
        rpc: Rpc,
        /// gRPC status.
        status: Code,
        /// `error-code` trailer, without the prefix that all share.
        code: Option<String>,
        /// The platform's words, or the transport's with the endpoint that could not be reached.
        message: String,
        /// `rpc-id` trailer, for Salesforce's support.
        rpc_id: Option<String>,
    },
    /// Signing in failed.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Nothing was sent, because it could never work: an endpoint without TLS, a CA file that cannot be
    /// read, a request beyond the platform's limits. The text says what to change.
    #[error("{0}")]
    Invalid(String),
}

impl PubSubError {
    /// Reads a gRPC status. `endpoint` is `host:port`, for messages.
    pub(super) fn from_status(rpc: Rpc, status: &Status, endpoint: &str) -> Self {
        let trailer = |key| {
            let value = status.metadata().get(key)?.to_str().ok()?.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let code = trailer("error-code").map(|code| {
            code.strip_prefix(CODE_PREFIX)
                .map(str::to_owned)
                .unwrap_or(code)
        });
        let (message, id_in_message) = split_rpc_id(status.message());
        let message = match status.source() {
            Some(cause) => transport_message(cause, endpoint),
            None if message.is_empty() => format!("gRPC status {:?}", status.code()),
            None => shown(message),
        };
        Self::Rpc {
            rpc,
            status: status.code(),
            code,
            message,
            rpc_id: trailer("rpc-id").or_else(|| id_in_message.map(str::to_owned)),
        }
    }

    /// A failure found on this side of the wire.
    pub(super) fn local(rpc: Rpc, status: Code, message: String) -> Self {
        Self::Rpc {
            rpc,
            status,
            code: None,
            message,
            rpc_id: None,
        }
    }

    /// What to do about it. By the `error-code` trailer where there is one that is known, else by the
    /// gRPC status, never by the text (facts 6.1). Never repositions without being told to by the one
    /// code that says the position is gone.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Rpc { .. } => self.row().recovery,
            Self::Auth(AuthError::Refused { .. }) | Self::Invalid(_) => Recovery::Block,
            Self::Auth(AuthError::Unavailable { .. }) => Recovery::Reconnect,
        }
    }

    /// A short, stable label, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Rpc { .. } => self.row().reason,
            Self::Auth(AuthError::Refused { .. }) => "auth_refused",
            Self::Auth(AuthError::Unavailable { .. }) => "auth_unavailable",
            Self::Invalid(_) => "configuration",
        }
    }

    /// What a person can change, and where, as one sentence; on every error whose recovery is
    /// [`Recovery::Block`] or may become it (a new sign-in that does not help), except those whose own text says it (signing in, and what was
    /// never sent).
    pub fn cure(&self) -> Option<&'static str> {
        match self {
            Self::Rpc { .. } => self.row().cure,
            Self::Auth(_) | Self::Invalid(_) => None,
        }
    }

    /// Salesforce's name of the failed call, for their support.
    pub fn rpc_id(&self) -> Option<&str> {
        match self {
            Self::Rpc { rpc_id, .. } => rpc_id.as_deref(),
            Self::Auth(_) | Self::Invalid(_) => None,
        }
    }

    fn row(&self) -> &'static Row {
        match self {
            Self::Rpc { status, code, .. } => row(code.as_deref(), *status),
            Self::Auth(_) | Self::Invalid(_) => row(None, Code::Unknown),
        }
    }
}

/// The platform ends its words with ` rpcId: <id>` (facts 2.2).
fn split_rpc_id(message: &str) -> (&str, Option<&str>) {
    match message.rsplit_once("rpcId:") {
        Some((words, id)) => (words.trim(), Some(id.trim()).filter(|id| !id.is_empty())),
        None => (message.trim(), None),
    }
}

/// A failure of the connection itself: what it was is in the innermost cause.
fn transport_message(outermost: &(dyn Error + 'static), endpoint: &str) -> String {
    let mut connecting = false;
    let mut innermost = outermost;
    loop {
        connecting |= innermost.is::<ConnectError>();
        match innermost.source() {
            Some(cause) => innermost = cause,
            None => break,
        }
    }
    let cause = innermost.to_string();
    let cause = match cause.split_once(" (os error ") {
        Some((words, _)) => lower_first(words),
        None => cause,
    };
    if connecting {
        format!("cannot reach {endpoint}: {}", shown(&cause))
    } else {
        format!("lost the connection to {endpoint}: {}", shown(&cause))
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

/// Fit for one line of a log.
fn shown(text: &str) -> String {
    one_line(text, LONGEST_MESSAGE)
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::*;

    fn status(code: Code, message: &str, trailers: &[(&'static str, &str)]) -> PubSubError {
        let mut metadata = MetadataMap::new();
        for (key, value) in trailers {
            metadata.insert(*key, value.parse().unwrap());
        }
        let status = Status::with_metadata(code, message, metadata);
        PubSubError::from_status(Rpc::Subscribe, &status, "bus.example:443")
    }

    fn parts(error: PubSubError) -> (Option<String>, String, Option<String>) {
        match error {
            PubSubError::Rpc {
                code,
                message,
                rpc_id,
                ..
            } => (code, message, rpc_id),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn trailers_are_read_and_the_message_is_trimmed() {
        let error = status(
            Code::InvalidArgument,
            "The Replay ID validation failed. rpcId: 1fc4-a",
            &[
                (
                    "error-code",
                    "sfdc.platform.eventbus.grpc.subscription.fetch.replayid.corrupted",
                ),
                ("rpc-id", "1fc4-b"),
            ],
        );
        assert_eq!(
            error.to_string(),
            "Subscribe failed: subscription.fetch.replayid.corrupted: The Replay ID validation failed."
        );
        let (_, _, rpc_id) = parts(error);
        assert_eq!(rpc_id.as_deref(), Some("1fc4-b"));
    }

    #[test]
    fn without_trailers_the_rpc_id_comes_from_the_message() {
        let (code, message, rpc_id) = parts(status(Code::Internal, "oops rpcId: 7f", &[]));
        assert_eq!(
            (code, message.as_str(), rpc_id.as_deref()),
            (None, "oops", Some("7f"))
        );
        let (_, message, rpc_id) = parts(status(Code::Internal, "", &[("error-code", " ")]));
        assert_eq!((message.as_str(), rpc_id), ("gRPC status Internal", None));
    }

    #[test]
    fn a_web_page_in_place_of_a_message_stays_short_and_on_one_line() {
        let (_, message, _) = parts(status(Code::Unavailable, &"<p>\n".repeat(1000), &[]));
        assert!(message.len() <= LONGEST_MESSAGE && !message.contains('\n'));
    }
}
