//! What both stores' vaults share: sealing, opening, and saying what is wrong.

use secrecy::{ExposeSecret, SecretString};

use super::StoreError;
use super::crypto::Cipher;
use crate::salesforce::auth::{StoredCredential, VaultError};

/// Seals and opens refresh tokens; without a key it can do neither.
pub(super) struct Sealer(pub(super) Option<Cipher>);

impl Sealer {
    /// Fails where there is no key. To be asked before the right to refresh is given: whoever refreshes a
    /// token must be able to keep the one that replaces it.
    pub(super) fn ready(&self) -> Result<(), VaultError> {
        self.cipher().map(|_| ())
    }

    fn cipher(&self) -> Result<&Cipher, VaultError> {
        self.0.as_ref().ok_or_else(|| {
            VaultError::Failed(
                "refresh tokens are kept encrypted only: set ORGSTREAM_ENCRYPTION_KEY, to the text it had where \
                 one is stored already, else to a long random text such as `openssl rand -hex 32` prints"
                    .to_owned(),
            )
        })
    }

    /// For the column `ciphertext`.
    pub(super) fn seal(&self, key: &str, token: &SecretString) -> Result<Vec<u8>, VaultError> {
        let cipher = self.cipher()?;
        cipher
            .seal(&context(key), token.expose_secret().as_bytes())
            .map_err(|error| VaultError::Failed(error.to_string()))
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
            VaultError::Failed(format!(
                "a refresh token is stored under the key `{key}`, but cannot be read: {why}. Or delete \
                 that row of the table `credential` and configure a new refresh token"
            ))
        };
        let token = self
            .cipher()?
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

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}
