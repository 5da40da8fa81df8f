//! Signatures of the Standard Webhooks specification, 1.0.0: the symmetric scheme `v1`, HMAC-SHA256.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The message's ID: the same at every attempt.
pub(super) const ID: HeaderName = HeaderName::from_static("webhook-id");
/// Seconds since 1970 at which the attempt was made.
pub(super) const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// `v1,` and base64, once for each secret, with spaces between them.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const PREFIX: &str = "whsec_";

/// Bytes of a secret, by the specification.
const LENGTH: std::ops::RangeInclusive<usize> = 24..=64;

/// Secrets while one takes the place of another; more would only make the header long.
const MOST: usize = 8;

/// Other libraries take secrets with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Signs messages, with each of several secrets: a receiver accepts one that carries a signature by the secret
/// it knows, so that secrets can be changed on both sides in turn.
pub(super) struct Signer {
    keys: Vec<hmac::Key>,
}

impl Signer {
    /// Reads secrets in their usual form, `whsec_` and base64; `None` where there are none. The error reads
    /// on after the key and does not show a secret.
    pub(super) fn parse(secrets: &[String]) -> Result<Option<Self>, String> {
        if secrets.len() > MOST {
            return Err(format!("must be {MOST} secrets at most"));
        }
        let keys: Vec<hmac::Key> = secrets
            .iter()
            .map(|secret| key(secret))
            .collect::<Result<_, _>>()?;
        Ok((!keys.is_empty()).then_some(Self { keys }))
    }

    /// Adds the headers that vouch for a body sent now. `key` names the message: two with the same key are the
    /// same message.
    pub(super) fn sign(&self, headers: &mut HeaderMap, key: &str, body: &[u8], now: SystemTime) {
        let id = message_id(key);
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signatures = self.signatures(&id, seconds, body);
        let texts = [
            (ID, id),
            (TIMESTAMP, seconds.to_string()),
            (SIGNATURE, signatures),
        ];
        for (name, text) in texts {
            // Digits, hexadecimal and base64 are good header values.
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
    }

    fn signatures(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let sign = |key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{seconds}.").as_bytes());
            context.update(body);
            format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
        };
        self.keys.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

/// A digest, because what is signed has full stops between its parts, so that an ID may hold none, and
/// because a publisher may choose a part of an event's identity.
fn message_id(key: &str) -> String {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    format!("msg_{}", hex::encode(&digest.as_ref()[..16]))
}

fn key(secret: &str) -> Result<hmac::Key, String> {
    const MAKE: &str = "make one with: echo whsec_$(openssl rand -base64 32)";
    let Some(text) = secret.trim().strip_prefix(PREFIX) else {
        return Err(match secret.trim().starts_with("whsk_") {
            true => {
                "holds a secret for signatures by key pairs, which orgstream does not make: use one \
                 that begins with whsec_"
                    .to_owned()
            }
            false => format!("must hold secrets that begin with {PREFIX}; {MAKE}"),
        });
    };
    let bytes = BASE64
        .decode(text)
        .map_err(|_| format!("holds a secret that is not base64 after {PREFIX}; {MAKE}"))?;
    if !LENGTH.contains(&bytes.len()) {
        return Err(format!(
            "holds a secret of {} bytes, and must be from {} to {}; {MAKE}",
            bytes.len(),
            LENGTH.start(),
            LENGTH.end()
        ));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The secret of the specification's own test suite, and another.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn signer(secrets: &[&str]) -> Signer {
        let secrets: Vec<String> = secrets.iter().map(|text| (*text).to_owned()).collect();
        Signer::parse(&secrets).unwrap().unwrap()
    }

    #[test]
    fn a_signature_is_that_of_the_specifications_test_suite() {
        let signatures = signer(&[SECRET]).signatures(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(
            signatures,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn each_secret_signs_the_same_message() {
        let both = signer(&[SECRET, OTHER]).signatures("id", 1, b"{}");
        let each: Vec<String> = [SECRET, OTHER]
            .iter()
            .map(|secret| signer(&[secret]).signatures("id", 1, b"{}"))
            .collect();
        assert_eq!(both, each.join(" "));
        assert_ne!(each[0], each[1]);
    }

    #[test]
    fn an_id_is_the_same_for_the_same_key_and_has_no_full_stop() {
        let now = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        let sign = |key: &str, now| {
            let mut headers = HeaderMap::new();
            signer(&[SECRET]).sign(&mut headers, key, b"{}", now);
            headers
        };
        let one = sign("orders:a.1:0a", now);
        let later = sign("orders:a.1:0a", now + Duration::from_secs(1));
        let other = sign("orders:a.2:0a", now);
        assert_eq!(one[ID], later[ID]);
        assert_ne!(one[ID], other[ID]);
        assert!(!one[ID].to_str().unwrap().contains('.'));
        assert_eq!(one[TIMESTAMP], "1614265330");
        assert_ne!(one[SIGNATURE], later[SIGNATURE]);
    }

    #[test]
    fn secrets_are_taken_with_and_without_padding_and_refused_without_showing_them() {
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            Signer::parse(&texts)
        };
        assert!(parse(&[]).unwrap().is_none());
        let padded = format!("whsec_{}", BASE64_STANDARD.encode([7; 32]));
        assert!(padded.ends_with('='));
        for text in [&padded, padded.trim_end_matches('=')] {
            assert!(parse(&[text]).unwrap().is_some());
        }
        let short = format!("whsec_{}", BASE64_STANDARD.encode("hidden"));
        let long = format!("whsec_{}", BASE64_STANDARD.encode([7; 65]));
        for (secrets, part) in [
            (&["hidden"][..], "begin with whsec_"),
            (&["whsk_hidden"], "key pairs"),
            (&["whsec_hidden!"], "not base64"),
            (&[&short], "of 6 bytes"),
            (&[&long], "of 65 bytes"),
            (&[SECRET; 9], "8 secrets at most"),
        ] {
            let error = parse(secrets).err().unwrap();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
