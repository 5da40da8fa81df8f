//! What an error means, where several modes see it.

use crate::handler::Answer;

/// The database that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The store's.
    Store,
    /// One that the handler names.
    Elsewhere,
}

impl Side {
    /// The key that its URL stands under.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Store => "store.url",
            Self::Elsewhere => "database_url",
        }
    }
}

/// The answer to a text that cannot be kept, if that is what this SQLSTATE says.
pub(super) fn character(code: &str) -> Option<Answer> {
    // An untranslatable character; a character that the encoding does not have.
    matches!(code, "22P05" | "22021").then(|| Answer::Reject {
        reason: format!(
            "a text of it has a character that Postgres cannot keep, U+0000 most likely (SQLSTATE {code})"
        ),
    })
}
