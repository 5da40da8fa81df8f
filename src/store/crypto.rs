//! Encryption of what the store keeps secret, under `ORGSTREAM_ENCRYPTION_KEY`.
//!
//! AES-256-GCM with a random nonce; the key is derived from the variable's text with HKDF-SHA256. A
//! sealed value is one version byte, the 12-byte nonce, the ciphertext and the 16-byte tag. The context
//! (what the value is, and for whom) is authenticated but not stored: a value moved to another row does
//! not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use secrecy::{ExposeSecret, SecretString};

/// Layout and derivation as described above. A change of either takes the next number.
const VERSION: u8 = 1;

/// HKDF does not slow a guesser down, so a text that can be guessed is refused.
const LEAST_KEY_CHARACTERS: usize = 16;

/// Why a secret could not be sealed or opened; the texts name the cure and never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CryptoError {
    /// The variable holds too little.
    #[error(
        "ORGSTREAM_ENCRYPTION_KEY is shorter than {LEAST_KEY_CHARACTERS} characters: set it to a long \
         random text, for example the output of `openssl rand -base64 32`"
    )]
    WeakKey,
    /// The value does not open under this key and context.
    #[error(
        "it does not open under ORGSTREAM_ENCRYPTION_KEY: set the variable to the text it had when the \
         value was stored"
    )]
    WrongKey,
    /// A value that a later version wrote, or no sealed value at all.
    #[error("it was not written by this version of orgstream")]
    UnknownFormat,
    /// The cryptographic library refused.
    #[error("encryption failed")]
    Failed,
}

/// Seals and opens values under one key.
pub(super) struct Cipher {
    key: RandomizedNonceKey,
}

impl Cipher {
    /// Derives the key from the variable's text.
    pub(super) fn new(text: &SecretString) -> Result<Self, CryptoError> {
        let text = text.expose_secret().trim();
        if text.chars().count() < LEAST_KEY_CHARACTERS {
            return Err(CryptoError::WeakKey);
        }
        let mut key = [0; 32];
        Salt::new(HKDF_SHA256, b"orgstream store")
            .extract(text.as_bytes())
            .expand(&[b"aes-256-gcm v1"], &AES_256_GCM)
            .and_then(|okm| okm.fill(&mut key))
            .and_then(|()| RandomizedNonceKey::new(&AES_256_GCM, &key))
            .map(|key| Self { key })
            .map_err(|Unspecified| CryptoError::Failed)
    }

    /// Encrypts `secret`; only the same `context` opens it again.
    pub(super) fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut body = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context), &mut body)
            .map_err(|Unspecified| CryptoError::Failed)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what [`Cipher::seal`] gave.
    pub(super) fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (nonce, body) = sealed
            .strip_prefix(&[VERSION])
            .and_then(|rest| rest.split_first_chunk::<NONCE_LEN>())
            .ok_or(CryptoError::UnknownFormat)?;
        let mut body = body.to_vec();
        let secret = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context),
                &mut body,
            )
            .map_err(|Unspecified| CryptoError::WrongKey)?
            .len();
        body.truncate(secret);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher(text: &str) -> Cipher {
        Cipher::new(&text.into()).unwrap()
    }

    #[test]
    fn a_sealed_value_opens_under_the_same_key_and_context() {
        let sealed = cipher("correct horse battery")
            .seal("token of a", b"5Aep")
            .unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"5Aep"));
        let opened = cipher(" correct horse battery\n").open("token of a", &sealed);
        assert_eq!(opened.unwrap(), b"5Aep");
    }

    #[test]
    fn the_same_value_is_never_sealed_alike_twice() {
        let cipher = cipher("correct horse battery");
        assert_ne!(cipher.seal("a", b"x"), cipher.seal("a", b"x"));
    }

    #[test]
    fn another_key_another_context_and_a_changed_byte_are_refused() {
        let sealed = cipher("correct horse battery").seal("a", b"x").unwrap();
        let wrong = Err(CryptoError::WrongKey);
        assert_eq!(cipher("wrong horse battery").open("a", &sealed), wrong);
        assert_eq!(cipher("correct horse battery").open("b", &sealed), wrong);
        for at in 1..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(cipher("correct horse battery").open("a", &changed), wrong);
        }
    }

    #[test]
    fn text_that_was_never_sealed_is_refused() {
        for given in [&b""[..], b"\x01", b"\x01short", b"5Aep861..."] {
            let opened = cipher("correct horse battery").open("a", given);
            assert_eq!(opened, Err(CryptoError::UnknownFormat), "{given:?}");
        }
    }

    #[test]
    fn a_short_key_is_refused_with_a_cure() {
        let error = Cipher::new(&"secret".into()).err().unwrap();
        assert!(error.to_string().contains("openssl rand"));
    }
}
