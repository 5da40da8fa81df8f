//! What can go wrong on the wire, and what to do about it: one table.

use std::fmt;

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

/// What to do about a failed call. Decided in one place, [`PubSubError::recovery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Passing trouble: back off, reconnect, resume from memory.
    Reconnect,
    /// As `Reconnect`, with a long pause: the org protects itself.
    ReconnectSlowly,
    /// Get a new access token and try again at once; back off if that is refused too.
    SignInAgain,
    /// The 24-hour delivery allocation is used up: stay away for long.
    WaitForAllocation,
    /// The position is not on the bus any more: do as `on_expired_replay_id` says, and record a hole.
    ApplyExpiredReplayPolicy,
    /// A person has to change something: state `blocked`, say the cure, try again slowly.
    Block,
}

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PubSubError {
    /// The org, or something on the way to it, answered with an error.
    #[error("{rpc} failed: {}{message}", .code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default())]
    Rpc {
        /// Which call.
        rpc: Rpc,
        /// gRPC status.
        status: tonic::Code,
        /// `error-code` trailer, without the prefix that all share.
        code: Option<String>,
        /// The platform's words.
        message: String,
        /// `rpc-id` trailer, for Salesforce's support.
        rpc_id: Option<String>,
    },
    /// Signing in failed.
    #[error(transparent)]
    Auth(#[from] crate::salesforce::auth::AuthError),
}
