//! Signing in to an org.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::event::OrgId;

/// A signed-in session: what every Pub/Sub API call carries.
#[derive(Debug)]
pub struct Session {
    /// Opaque access token.
    pub access_token: SecretString,
    /// Scheme and host of the org, without a path or a trailing slash.
    pub instance_url: String,
    /// The org signed in to.
    pub org_id: OrgId,
    /// When this process received the token.
    pub obtained_at: Instant,
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
#[error("credential store: {0}")]
pub struct VaultError(pub String);
