//! The refresh token flow (facts 8.3). Where the app rotates refresh tokens, each is good for one use:
//! the new one is stored before anything else is done with the answer, and one process at a time refreshes.

use std::sync::atomic::{AtomicBool, Ordering};
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

/// Longer than one request and the attempts to store its result can take. The right is taken anew before
/// each further request.
const LOCK_TTL: Duration = Duration::from_secs(120);
/// How long storing a rotated token is tried; with the request's own limit, well below `LOCK_TTL`.
const SAVE_FOR: Duration = Duration::from_secs(45);
const FIRST_SAVE_PAUSE: Duration = Duration::from_millis(100);
/// How often a right that somebody else has is asked for again.
const LOCK_POLL: Duration = Duration::from_millis(250);

pub(super) struct RefreshToken {
    client: LoginClient,
    configured: SecretString,
    /// Never absent: whoever refreshes without it can rotate the token away from under a daemon, and keeps
    /// what it got instead for as long as it runs.
    vault: Arc<dyn CredentialVault>,
    /// Names the credential in the vault.
    key: String,
    /// Random for each start of a process.
    holder: String,
    unsaved: Mutex<Option<Unsaved>>,
    /// No request begins any more.
    closing: AtomicBool,
}

/// A rotated token that could not be stored.
#[derive(Clone)]
struct Unsaved {
    token: SecretString,
    /// What was stored when it was received. Where something else is by now, that is the newer one.
    replaces: Option<SecretString>,
}

impl RefreshToken {
    pub(super) fn new(
        login: &Origin,
        client_id: &str,
        client_secret: Option<&SecretString>,
        refresh_token: &SecretString,
        vault: Option<Arc<dyn CredentialVault>>,
    ) -> Result<Self, Failure> {
        let vault = vault.ok_or_else(|| {
            Failure::refused(
                "`auth = refresh_token` needs a store, because the org may replace the token with each use",
                "Configure one (`store.url` or DATABASE_URL)",
            )
        })?;
        Ok(Self {
            client: login_client(login, client_id, client_secret)?,
            configured: refresh_token.clone(),
            vault,
            key: vault_key(login, client_id),
            holder: Uuid::new_v4().to_string(),
            unsaved: Mutex::default(),
            closing: AtomicBool::new(false),
        })
    }

    /// Must run to its end once begun: between the answer and its storing lies the only copy of the
    /// new token. The caller runs it in a task of its own.
    pub(super) async fn grant(&self, http: &LoginHttp) -> Result<TokenAnswer, Failure> {
        let stored = self.lock().await?;
        let result = self.grant_locked(http, stored).await;
        // With a token that could not be stored, the right is kept until it lapses: whoever took it
        // would present the token that died by the rotation, and so revoke the living one.
        if self.unsaved().is_none()
            && let Err(error) = self.vault.unlock(&self.key, &self.holder).await
        {
            tracing::warn!(%error, "the right to refresh the token could not be given back; it lapses by itself");
        }
        result
    }

    /// From now on no request begins; one that has been sent is seen through.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    async fn grant_locked(
        &self,
        http: &LoginHttp,
        mut stored: Option<SecretString>,
    ) -> Result<TokenAnswer, Failure> {
        if let Some(unsaved) = self.unsaved() {
            if same(stored.as_ref(), unsaved.replaces.as_ref()) {
                self.save(&unsaved.token, stored.as_ref()).await?;
                stored = Some(unsaved.token);
                self.keep_right(stored.as_ref()).await?;
            } else {
                self.set_unsaved(None);
            }
        }
        let token = stored.clone().unwrap_or_else(|| self.configured.clone());
        let (token, answer) = match self.refresh(http, &token).await {
            Ok(answer) => (token, answer),
            // Only a token known to be dead gives way to the configured one, which may be a new one
            // that a person set, but also the first of a chain: to present that one revokes the chain.
            Err(failure) if failure.kind == Kind::DeadToken && differ(&token, &self.configured) => {
                self.keep_right(stored.as_ref()).await?;
                let answer = self
                    .refresh(http, &self.configured)
                    .await
                    .map_err(|second| match second.kind {
                        Kind::DeadToken => failure,
                        _ => second,
                    })?;
                if rotated(&answer, &self.configured).is_none() {
                    self.save(&self.configured, stored.as_ref()).await?;
                }
                (self.configured.clone(), answer)
            }
            Err(failure) => return Err(failure),
        };
        if let Some(rotated) = rotated(&answer, &token) {
            self.save(&rotated, stored.as_ref()).await?;
        }
        Ok(answer)
    }

    async fn refresh(
        &self,
        http: &LoginHttp,
        token: &SecretString,
    ) -> Result<TokenAnswer, Failure> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        let token = Token::new(token.expose_secret().to_owned());
        self.client
            .exchange_refresh_token(&token)
            .request_async(http)
            .await
            .map_err(failure)
    }

    /// Waits for the right to refresh, for as long as its holder can have it, and reads the token that
    /// the holder left.
    async fn lock(&self) -> Result<Option<SecretString>, Failure> {
        let begun = Instant::now();
        loop {
            if self.closing.load(Ordering::SeqCst) {
                return Err(stopping());
            }
            match self.try_lock().await? {
                Some(stored) => return Ok(stored.refresh_token),
                None if begun.elapsed() < LOCK_TTL => tokio::time::sleep(LOCK_POLL).await,
                None => {
                    return Err(Failure::passing(
                        "another process has had the right to refresh the token for two minutes",
                    ));
                }
            }
        }
    }

    async fn try_lock(&self) -> Result<Option<StoredCredential>, Failure> {
        self.vault
            .lock(&self.key, &self.holder, LOCK_TTL)
            .await
            .map_err(|error| unavailable(&error))
    }

    /// Takes the right anew, before a further request, which may take as long as the first. Fails where
    /// it was lost meanwhile, even if it is free again: then another process has used the token up.
    async fn keep_right(&self, stored: Option<&SecretString>) -> Result<(), Failure> {
        match self.try_lock().await? {
            Some(now) if same(now.refresh_token.as_ref(), stored) => Ok(()),
            _ => Err(Failure::passing(
                "another process has taken the right to refresh the token meanwhile",
            )),
        }
    }

    /// Stores a token in place of `stored`, trying again for a while, unless the right is lost. Until that
    /// succeeds the token is kept in memory, and is what the next refresh begins with.
    async fn save(
        &self,
        token: &SecretString,
        stored: Option<&SecretString>,
    ) -> Result<(), Failure> {
        self.set_unsaved(Some(Unsaved {
            token: token.clone(),
            replaces: stored.cloned(),
        }));
        let begun = Instant::now();
        let mut pause = FIRST_SAVE_PAUSE;
        loop {
            match self.vault.save(&self.key, &self.holder, token).await {
                Ok(()) => {
                    self.set_unsaved(None);
                    return Ok(());
                }
                Err(error @ VaultError::Failed(_)) if begun.elapsed() + pause < SAVE_FOR => {
                    tracing::warn!(%error, "the new refresh token could not be stored; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    tracing::error!(%error, "the new refresh token is not stored");
                    return Err(unavailable(&error));
                }
            }
        }
    }

    fn unsaved(&self) -> Option<Unsaved> {
        self.unsaved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_unsaved(&self, token: Option<Unsaved>) {
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

fn stopping() -> Failure {
    Failure::passing("orgstream is stopping")
}

fn same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(ExposeSecret::expose_secret) == other.map(ExposeSecret::expose_secret)
}

fn differ(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() != other.expose_secret()
}

/// A name that tells nothing: consumer keys are not secret, but need not stand in tables.
fn vault_key(login: &Origin, client_id: &str) -> String {
    let text = format!("{login}\n{client_id}");
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}
