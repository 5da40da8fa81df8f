//! What is not there at the start is waited for, and people are told.

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{RunError, States};
use crate::config::BackoffConfig;
use crate::salesforce::auth::AuthError;
use crate::store::StoreError;
use crate::subscription::{self, State};

/// Waits for other systems at the start, and shows that it does.
pub(super) struct Waiting<'a> {
    pub(super) states: &'a States,
    pub(super) stop: &'a CancellationToken,
    /// Pauses where it may pass by itself.
    pub(super) passing: BackoffConfig,
    /// Pauses where a person has to act.
    pub(super) mendable: BackoffConfig,
}

/// What an error at the start means.
pub(super) enum AtStart {
    Passing,
    Mendable,
    Fatal(RunError),
}

pub(super) trait StartError: std::fmt::Display {
    fn class(self) -> (String, AtStart);
}

impl StartError for StoreError {
    fn class(self) -> (String, AtStart) {
        let text = self.to_string();
        let class = match self {
            Self::OtherOrg { .. } => AtStart::Fatal(RunError::OtherOrg(self)),
            Self::Config(_) => AtStart::Fatal(RunError::Config(text.clone())),
            Self::Unavailable(_) => AtStart::Passing,
            _ => AtStart::Mendable,
        };
        (text, class)
    }
}

impl StartError for AuthError {
    fn class(self) -> (String, AtStart) {
        let class = match self {
            Self::Refused { .. } => AtStart::Mendable,
            Self::Unavailable { .. } => AtStart::Passing,
        };
        (self.to_string(), class)
    }
}

impl Waiting<'_> {
    /// Not `impl AsyncFn`, of whose futures nobody can say that they are `Send`.
    pub(super) async fn until<T, E: StartError, F>(
        &self,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<Option<T>, RunError>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut failures = 0;
        loop {
            let error = tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                result = attempt() => match result {
                    Ok(value) => return Ok(Some(value)),
                    Err(error) => error,
                },
            };
            let (text, class) = error.class();
            let pause = match class {
                AtStart::Fatal(error) => return Err(error),
                AtStart::Passing => subscription::pause(&self.passing, failures),
                AtStart::Mendable => subscription::pause(&self.mendable, failures),
            };
            failures += 1;
            warn!(
                what,
                error = text,
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "cannot begin yet; it is tried again"
            );
            self.states.all(&State::Blocked { detail: text });
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
