//! What both stores' vaults share: sealing, opening, and saying what is wrong.

use secrecy::{ExposeSecret, SecretString};

use super::StoreError;
use super::crypto::Cipher;
use crate::salesforce::auth::{StoredCredential, VaultError};

/// Seals and opens refresh tokens; without a key it can do neither.
pub(super) struct Sealer(pub(super) Option<Cipher>);

impl Sealer {
    /// For the column `ciphertext`.
    pub(super) fn seal(&self, key: &str, token: &SecretString) -> Result<Vec<u8>, VaultError> {
        let cipher = self.0.as_ref().ok_or_else(|| {
            VaultError(
                "the org has rotated the refresh token, and the new one is stored encrypted only: set \
                 ORGSTREAM_ENCRYPTION_KEY to a long random text"
                    .to_owned(),
            )
        })?;
        cipher
            .seal(&context(key), token.expose_secret().as_bytes())
            .map_err(|error| VaultError(error.to_string()))
    }

    /// From the column `ciphertext`.
    pub(super) fn open(
        &self,
        key: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<StoredCredential, VaultError> {
        let Some(ciphertext) = ciphertext else {
            return Ok(StoredCredential {
                refresh_token: None,
            });
        };
        let unreadable = |why: String| {
            VaultError(format!(
                "a refresh token is stored under the key `{key}`, but cannot be read: {why}. Or delete \
                 that row of the table `credential` and configure a new refresh token"
            ))
        };
        let cipher = self.0.as_ref().ok_or_else(|| {
            unreadable("set ORGSTREAM_ENCRYPTION_KEY to the text it had when it was stored".into())
        })?;
        let token = cipher
            .open(&context(key), ciphertext)
            .map_err(|error| unreadable(error.to_string()))?;
        let token =
            String::from_utf8(token).map_err(|_| unreadable("it is not text".to_owned()))?;
        Ok(StoredCredential {
            refresh_token: Some(token.into()),
        })
    }
}

/// What a credential is sealed for: a value moved to another row does not open.
fn context(key: &str) -> String {
    format!("orgstream refresh token of {key}")
}

/// For a holder whose time was up.
pub(super) fn lost_right() -> VaultError {
    VaultError(
        "the right to refresh was lost before the rotated refresh token could be stored: another \
         process refreshes now"
            .to_owned(),
    )
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}
