//! What a subscription is doing, for people to see.

use std::fmt;

/// State of a subscription's stream.
///
/// ```text
///              +------------------ room again ------------------+
///              v                                                |
/// connecting ----> live ----> paused (buffer full, stream closed for idleness)
///   ^    |          |
///   |    |          | end, silence, error
///   |    v          v
///   |  blocked   reconnecting
///   |    | 1-5 min  | back-off
///   +----+----------+              any of them --SIGTERM--> stopped
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Signing in or opening the stream.
    Connecting,
    /// The stream is open.
    Live,
    /// The buffer is full and the stream is closed; it opens again when there is room.
    Paused,
    /// The stream broke; waiting to try again.
    Reconnecting {
        /// What happened.
        detail: String,
    },
    /// A person has to change something, in the org, in the store or at a handler's other end; tried again
    /// every few minutes.
    Blocked {
        /// What is wrong, and what to change where.
        detail: String,
    },
    /// Not running any more, or paused by a person.
    Stopped,
    /// Another worker runs it, or it is left to one. Never in the store, where the owner's state stands.
    Elsewhere,
}

impl State {
    /// Every name that [`State::name`] gives.
    pub const NAMES: [&'static str; 7] = [
        "connecting",
        "live",
        "paused",
        "reconnecting",
        "blocked",
        "stopped",
        "elsewhere",
    ];

    /// One word, as in the store and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Reconnecting { .. } => "reconnecting",
            Self::Blocked { .. } => "blocked",
            Self::Stopped => "stopped",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// Why, where there is a why.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Reconnecting { detail } | Self::Blocked { detail } => Some(detail),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
