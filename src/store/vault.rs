//! What both stores share that keeps secrets: sealing, opening, and saying what is wrong.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};

use super::crypto::Cipher;
use super::{DeadLetter, StoreError};
use crate::salesforce::auth::{StoredCredential, VaultError};

/// Seals and opens refresh tokens and the payloads of dead letters; without a key it can do neither.
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

/// Whose dead letter it is, beside what the letter itself says.
#[derive(Clone, Copy)]
pub(super) struct LetterOf<'a> {
    pub(super) org_id: &'a str,
    pub(super) topic: &'a str,
}

impl Sealer {
    /// For the column `payload`.
    pub(super) fn seal_letter<'l>(
        &self,
        of: LetterOf<'_>,
        letter: &'l DeadLetter,
    ) -> Result<Cow<'l, [u8]>, StoreError> {
        if !letter.sealed {
            return Ok(Cow::Borrowed(&letter.payload));
        }
        let cipher = self
            .0
            .as_ref()
            .ok_or_else(|| StoreError::Config(NO_LETTER_KEY.to_owned()))?;
        let sealed = cipher.seal(&letter_context(of, letter), &letter.payload);
        sealed
            .map(Cow::Owned)
            .map_err(|error| StoreError::Config(format!("a parked event: {error}")))
    }

    /// Puts what was in the column `payload` into the letter; says why where it cannot be read.
    pub(super) fn open_letter(
        &self,
        of: LetterOf<'_>,
        letter: &mut DeadLetter,
        payload: Vec<u8>,
    ) -> Option<String> {
        if !letter.sealed {
            letter.payload = payload.into();
            return None;
        }
        let opened = match &self.0 {
            Some(cipher) => cipher
                .open(&letter_context(of, letter), &payload)
                .map_err(|error| format!("its bytes are encrypted, and cannot be read: {error}")),
            None => Err(NO_LETTER_KEY.to_owned()),
        };
        match opened {
            Ok(payload) => {
                letter.payload = payload.into();
                None
            }
            Err(why) => Some(why),
        }
    }
}

const NO_LETTER_KEY: &str = "parked events of this subscription are kept encrypted: set ORGSTREAM_ENCRYPTION_KEY, to \
                             the text it had when they were parked";

/// What a payload is sealed for: put into another row, it does not open. Without the subscription's name, which
/// can change.
fn letter_context(of: LetterOf<'_>, letter: &DeadLetter) -> String {
    let LetterOf { org_id, topic } = of;
    let handler = letter.handler.as_deref().unwrap_or_default();
    let identity = letter.identity.as_str();
    format!("orgstream dead letter of {org_id} {topic}\n{handler}\n{identity}")
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
