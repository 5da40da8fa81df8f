//! The refresh token flow (facts 8.3). Where the app rotates refresh tokens, each is good for one use:
//! the new one is stored before anything else is done with the answer, and one process at a time refreshes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use oauth2::{RefreshToken as Token, TokenResponse};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::client_credentials::{LoginClient, failure, login_client};
use super::errors::{Failure, Kind};
use super::http::LoginHttp;
use super::org::TokenAnswer;
use super::{CredentialVault, StoredCredential, VaultError};
use crate::salesforce::Origin;

/// Longer than a refresh and the attempts to store its result can take.
const LOCK_TTL: Duration = Duration::from_secs(120);
/// How long storing a rotated token is tried; with the request's own limit, well below `LOCK_TTL`.
const SAVE_FOR: Duration = Duration::from_secs(45);
const FIRST_SAVE_PAUSE: Duration = Duration::from_millis(100);
/// How often a right that somebody else has is asked for again.
const LOCK_POLL: Duration = Duration::from_millis(250);

pub(super) struct RefreshToken {
    client: LoginClient,
    configured: SecretString,
    vault: Option<Arc<dyn CredentialVault>>,
    /// Names the credential in the vault.
    key: String,
    /// Random for each start of a process.
    holder: String,
    /// A rotated token that no vault holds: there is none, or it failed. Newer than any other.
    unsaved: Mutex<Option<SecretString>>,
}

impl RefreshToken {
    pub(super) fn new(
        login: &Origin,
        client_id: &str,
        client_secret: Option<&SecretString>,
        refresh_token: &SecretString,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client: login_client(login, client_id, client_secret)?,
            configured: refresh_token.clone(),
            vault,
            key: vault_key(login, client_id),
            holder: Uuid::new_v4().to_string(),
            unsaved: Mutex::default(),
        })
    }

    /// Must run to its end once begun: between the answer and its storing lies the only copy of the
    /// new token. The caller runs it in a task of its own.
    pub(super) async fn grant(&self, http: &LoginHttp) -> Result<TokenAnswer, Failure> {
        let Some(vault) = &self.vault else {
            return self.grant_without_vault(http).await;
        };
        let stored = self.lock(vault.as_ref()).await?;
        let result = self.grant_locked(http, vault.as_ref(), stored).await;
        // With a token that could not be stored, the right is kept until it lapses: whoever took it
        // would present the token that died by the rotation, and so revoke the living one.
        if self.unsaved().is_none()
            && let Err(error) = vault.unlock(&self.key, &self.holder).await
        {
            tracing::warn!(%error, "the right to refresh the token could not be given back; it lapses by itself");
        }
        result
    }

    async fn grant_without_vault(&self, http: &LoginHttp) -> Result<TokenAnswer, Failure> {
        let token = self.unsaved().unwrap_or_else(|| self.configured.clone());
        let answer = self.refresh(http, &token).await?;
        if let Some(rotated) = rotated(&answer, &token) {
            self.set_unsaved(Some(rotated));
            tracing::warn!(
                "the org has replaced the refresh token, and there is no store to keep the new one in: \
                 the next start will be refused; configure a store, or turn off refresh token rotation on the app"
            );
        }
        Ok(answer)
    }

    async fn grant_locked(
        &self,
        http: &LoginHttp,
        vault: &dyn CredentialVault,
        stored: StoredCredential,
    ) -> Result<TokenAnswer, Failure> {
        let unsaved = self.unsaved();
        if let Some(token) = &unsaved {
            self.save(vault, token).await?;
        }
        let token = unsaved
            .or(stored.refresh_token)
            .unwrap_or_else(|| self.configured.clone());
        let (token, answer) = match self.refresh(http, &token).await {
            Ok(answer) => (token, answer),
            // Only a token known to be dead gives way to the configured one, which may be a new one
            // that a person set, but also the first of a chain: to present that one revokes the chain.
            Err(failure) if failure.kind == Kind::DeadToken && differ(&token, &self.configured) => {
                let answer = self
                    .refresh(http, &self.configured)
                    .await
                    .map_err(|second| match second.kind {
                        Kind::DeadToken => failure,
                        _ => second,
                    })?;
                if rotated(&answer, &self.configured).is_none() {
                    self.save(vault, &self.configured).await?;
                }
                (self.configured.clone(), answer)
            }
            Err(failure) => return Err(failure),
        };
        if let Some(rotated) = rotated(&answer, &token) {
            self.save(vault, &rotated).await?;
        }
        Ok(answer)
    }

    async fn refresh(
        &self,
        http: &LoginHttp,
        token: &SecretString,
    ) -> Result<TokenAnswer, Failure> {
        let token = Token::new(token.expose_secret().to_owned());
        self.client
            .exchange_refresh_token(&token)
            .request_async(http)
            .await
            .map_err(failure)
    }

    /// Waits for the right to refresh, for as long as its holder can have it, and reads the token that
    /// the holder left.
    async fn lock(&self, vault: &dyn CredentialVault) -> Result<StoredCredential, Failure> {
        let begun = Instant::now();
        loop {
            match vault.lock(&self.key, &self.holder, LOCK_TTL).await {
                Ok(Some(stored)) => return Ok(stored),
                Ok(None) if begun.elapsed() < LOCK_TTL => tokio::time::sleep(LOCK_POLL).await,
                Ok(None) => {
                    return Err(Failure::passing(
                        "another process has had the right to refresh the token for two minutes",
                    ));
                }
                Err(error) => return Err(unavailable(&error)),
            }
        }
    }

    /// Stores a token, trying again for a while. Until that succeeds the token is kept in memory, and is
    /// what the next refresh begins with.
    async fn save(&self, vault: &dyn CredentialVault, token: &SecretString) -> Result<(), Failure> {
        self.set_unsaved(Some(token.clone()));
        let begun = Instant::now();
        let mut pause = FIRST_SAVE_PAUSE;
        loop {
            match vault.save(&self.key, &self.holder, token).await {
                Ok(()) => {
                    self.set_unsaved(None);
                    return Ok(());
                }
                Err(error) if begun.elapsed() + pause < SAVE_FOR => {
                    tracing::warn!(%error, "the new refresh token could not be stored; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(unavailable(&error)),
            }
        }
    }

    fn unsaved(&self) -> Option<SecretString> {
        self.unsaved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_unsaved(&self, token: Option<SecretString>) {
        *self.unsaved.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

fn unavailable(error: &VaultError) -> Failure {
    Failure::passing(error.to_string())
}

/// The refresh token that replaces the one used, where the answer holds another.
fn rotated(answer: &TokenAnswer, used: &SecretString) -> Option<SecretString> {
    let new = SecretString::from(answer.refresh_token()?.secret().as_str());
    (!new.expose_secret().is_empty() && differ(&new, used)).then_some(new)
}

fn differ(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() != other.expose_secret()
}

/// A name that tells nothing: consumer keys are not secret, but need not stand in tables.
fn vault_key(login: &Origin, client_id: &str) -> String {
    let text = format!("{login}\n{client_id}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}
