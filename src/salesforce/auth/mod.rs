//! Signing in to an org.

mod access_token;
mod authenticator;
mod client_credentials;
mod errors;
mod http;
mod jwt;
mod key;
mod org;
mod refresh_token;
#[cfg(test)]
mod refresh_token_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::event::OrgId;

pub use authenticator::Authenticator;
pub use key::KeyError;

/// The token endpoint, on every login host (facts section 8).
const TOKEN_PATH: &str = "/services/oauth2/token";

/// Says whether a text is a private key that the JWT flow can sign with: PEM (PKCS#8 or PKCS#1), PEM with
/// `\n` for its line ends, or base64 of PEM; RSA, not encrypted, at least 2048 bits. The error names the
/// fault and the cure, and never repeats any of the text.
pub fn check_private_key(text: &str) -> Result<(), String> {
    key::parse(text)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// A signed-in session: what every Pub/Sub API call carries.
#[derive(Debug)]
pub struct Session {
    /// Opaque access token.
    pub access_token: SecretString,
    /// Scheme and host of the org, without a path or a trailing slash.
    pub instance_url: String,
    /// The org signed in to.
    pub org_id: OrgId,
    /// Names of what the token may be used for, where the login host told.
    pub scopes: Option<Vec<String>>,
    /// When this process received the token.
    pub obtained_at: Instant,
}

impl Session {
    /// Host of the instance URL, with a port where it names one.
    pub fn host(&self) -> &str {
        self.instance_url
            .split_once("://")
            .map_or(self.instance_url.as_str(), |(_, host)| host)
    }
}

/// Gives the session that all streams and calls share.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// The current session; signs in where there is none. Callers that ask at the same time share one
    /// sign-in, and its failure.
    async fn session(&self) -> Result<Arc<Session>, AuthError>;

    /// Says that the org refused this session. The next [`TokenSource::session`] signs in anew, unless
    /// somebody else already did.
    fn invalidate(&self, refused: &Arc<Session>);

    /// Says that the org refused a call for what may be this session's fault, or the call's own. The session
    /// is renewed where that can be done; it serves on where it cannot.
    fn doubt(&self, session: &Arc<Session>) {
        self.invalidate(session);
    }

    /// Says that the org took this session for a call.
    fn accepted(&self, _session: &Arc<Session>) {}

    /// Begins no sign-in any more whose outcome could be lost with the process, and ends once none is under
    /// way: a rotated refresh token is the only one of its kind until it is stored. To be bounded in time by
    /// the caller, before the store is closed.
    async fn close(&self) {}
}

/// Why signing in failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// Something that an administrator or operator has to change; retried slowly meanwhile.
    #[error("sign-in refused: {reason}. {cure}")]
    Refused {
        /// What the org said, without secrets.
        reason: String,
        /// What to change, and where.
        cure: String,
    },
    /// The login host could not be reached or answered with a temporary error.
    #[error("sign-in failed for now: {reason}")]
    Unavailable {
        /// What happened, without secrets.
        reason: String,
    },
}

/// Where a rotated refresh token is kept, so that it is stored before it is used and only one process
/// refreshes at a time.
#[async_trait]
pub trait CredentialVault: Send + Sync {
    /// Takes the right to refresh for at most `ttl`; `None` while another holder has it. Gives the
    /// stored refresh token, where one was ever stored under `key`.
    async fn lock(
        &self,
        key: &str,
        holder: &str,
        ttl: std::time::Duration,
    ) -> Result<Option<StoredCredential>, VaultError>;

    /// Stores a rotated refresh token; fails where `holder` has lost the right meanwhile.
    async fn save(&self, key: &str, holder: &str, token: &SecretString) -> Result<(), VaultError>;

    /// Gives the right back.
    async fn unlock(&self, key: &str, holder: &str) -> Result<(), VaultError>;
}

/// What the vault holds.
#[derive(Debug)]
pub struct StoredCredential {
    /// The latest refresh token, where one was stored.
    pub refresh_token: Option<SecretString>,
}

/// The vault failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// It cannot be reached, or cannot do what it should; the text says what to change where something has
    /// to be.
    #[error("credential store: {0}")]
    Failed(String),
    /// The holder's time was up, and nothing is stored.
    #[error(
        "credential store: the right to refresh was lost before the rotated refresh token could be stored: \
         another process may refresh now"
    )]
    LostRight,
}
