//! The session of each call, and what the org's answers say about it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{PubSubError, Recovery, Rpc};
use crate::salesforce::auth::{AuthError, Session, TokenSource};

/// Gives calls the shared session, and tells its source what became of it.
///
/// A refusal without a code (`PERMISSION_DENIED`) can mean a dead session as well as a user who may not
/// see this one topic or schema. The second must not take the session from all other streams again and
/// again, so it is remembered since when each call is refused: only a session from before that can be the
/// cause, and is replaced once.
#[derive(Clone)]
pub(super) struct Sessions {
    tokens: Arc<dyn TokenSource>,
    /// By call and by the topic or schema that it names; as many as the org refuses.
    refused_since: Arc<Mutex<HashMap<(Rpc, String), Instant>>>,
}

impl Sessions {
    pub(super) fn new(tokens: Arc<dyn TokenSource>) -> Self {
        Self {
            tokens,
            refused_since: Arc::default(),
        }
    }

    pub(super) fn tokens(&self) -> &Arc<dyn TokenSource> {
        &self.tokens
    }

    /// The session that everybody uses now.
    pub(super) async fn current(&self) -> Result<Arc<Session>, AuthError> {
        self.tokens.session().await
    }

    /// The call about `about` succeeded.
    pub(super) fn accepted(&self, rpc: Rpc, about: &str, session: &Arc<Session>) {
        self.refused_since().remove(&(rpc, about.to_owned()));
        self.tokens.accepted(session);
    }

    /// The call about `about` failed. True where the session may be the cause; then it has been reported,
    /// and a new one may be the answer.
    pub(super) fn failed(
        &self,
        rpc: Rpc,
        about: &str,
        session: &Arc<Session>,
        error: &PubSubError,
    ) -> bool {
        match error.recovery() {
            Recovery::SignInAgain => {
                self.tokens.invalidate(session);
                true
            }
            Recovery::SignInAgainOnce => {
                let since = *self
                    .refused_since()
                    .entry((rpc, about.to_owned()))
                    .or_insert_with(Instant::now);
                let suspect = session.obtained_at < since;
                if suspect {
                    self.tokens.doubt(session);
                }
                suspect
            }
            _ => false,
        }
    }

    fn refused_since(&self) -> MutexGuard<'_, HashMap<(Rpc, String), Instant>> {
        self.refused_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
