//! Why streams end, and what that asks for.

use std::time::Duration;

use crate::event::Topic;
use crate::salesforce::pubsub::{PubSubError, Recovery};

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Break {
    #[error(transparent)]
    Call(#[from] PubSubError),
    #[error("the stream was silent for {}", humantime(.0))]
    Silent(Duration),
    #[error("the server ended the stream")]
    Ended,
    #[error("this user may not subscribe to {0}")]
    CannotSubscribe(Topic),
}

impl Break {
    pub(super) fn recovery(&self) -> Recovery {
        match self {
            Self::Call(error) => error.recovery(),
            Self::Silent(_) | Self::Ended => Recovery::Reconnect,
            Self::CannotSubscribe(_) => Recovery::Block,
        }
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Silent(_) => "silent",
            Self::Ended => "ended",
            Self::CannotSubscribe(_) => "blocked",
        }
    }

    /// Salesforce's name of the call that failed, where the answer tells it.
    pub(super) fn rpc_id(&self) -> Option<&str> {
        match self {
            Self::Call(error) => error.rpc_id(),
            Self::Silent(_) | Self::Ended | Self::CannotSubscribe(_) => None,
        }
    }

    pub(super) fn cure(&self) -> Option<&'static str> {
        match self {
            Self::Call(error) => error.cure(),
            Self::CannotSubscribe(_) => Some(
                "Give the user Read on the platform event, or View All Records on the object and Change \
                 Data Capture for it, in a permission set",
            ),
            _ => None,
        }
    }

    /// What happened and what to change, each said once: some errors' own text holds their cure.
    pub(super) fn with_cure(&self, cure: Option<&str>) -> String {
        let text = self.to_string();
        match cure {
            Some(cure) => format!("{}. {cure}", text.trim_end_matches('.')),
            None => text,
        }
    }
}

fn humantime(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::salesforce::auth::AuthError;

    #[test]
    fn what_blocks_names_its_cure_once() {
        let refused = Break::from(PubSubError::from(AuthError::Refused {
            reason: "invalid_client".to_owned(),
            cure: "Copy the consumer key".to_owned(),
        }));
        assert_eq!(
            refused.with_cure(refused.cure()),
            "sign-in refused: invalid_client. Copy the consumer key"
        );
        let forbidden = Break::CannotSubscribe("/event/Order__e".parse().unwrap());
        let said = forbidden.with_cure(forbidden.cure());
        assert!(said.contains("/event/Order__e. Give the user"), "{said}");
    }
}
