//! Signing in with SASL: PLAIN, and SCRAM (RFC 5802) with SHA-256 or SHA-512.

use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

/// Rounds that a server may ask for: not fewer than RFC 7677 wants, which is Kafka's own default too, and each costs
/// both sides the same.
const ROUNDS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;

/// How the password is shown to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    Scram256,
    Scram512,
}

impl Mechanism {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Scram256, Self::Scram512];

    /// As the protocol has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram256 => "SCRAM-SHA-256",
            Self::Scram512 => "SCRAM-SHA-512",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|mechanism| mechanism.name().eq_ignore_ascii_case(name))
    }
}

/// A user and a password.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub(super) mechanism: Mechanism,
    pub(super) user: String,
    pub(super) password: SecretString,
}

/// What to say next.
#[derive(Debug)]
pub(super) enum Turn {
    Say(Vec<u8>),
    /// Both sides are who they say.
    Done,
}

/// A conversation with a broker: say the first, then give each answer to [`Talk::next`].
#[derive(Debug)]
pub(super) enum Talk {
    Plain,
    First(Scram),
    /// What the server has to show to be one that knows the password.
    Last(Vec<u8>),
}

impl Talk {
    /// The conversation, and what to say first.
    pub(super) fn begin(login: &Login) -> Result<(Self, Vec<u8>), &'static str> {
        let (user, password) = (&login.user, login.password.expose_secret());
        match login.mechanism {
            Mechanism::Plain => Ok((Self::Plain, format!("\0{user}\0{password}").into_bytes())),
            mechanism => {
                let mut nonce = [0; 24];
                rand::fill(&mut nonce).map_err(|_| "no random numbers")?;
                let scram = Scram::new(mechanism, login, &BASE64_STANDARD.encode(nonce));
                let first = format!("n,,{}", scram.first).into_bytes();
                Ok((Self::First(scram), first))
            }
        }
    }

    /// Goes on with what the broker said. The error is what is wrong with that.
    pub(super) fn next(self, said: &[u8]) -> Result<(Self, Turn), &'static str> {
        match self {
            Self::Plain => Ok((Self::Plain, Turn::Done)),
            Self::First(scram) => {
                let said = std::str::from_utf8(said).map_err(|_| BROKEN)?;
                let (last, signature) = scram.answer(said)?;
                Ok((Self::Last(signature), Turn::Say(last.into_bytes())))
            }
            Self::Last(signature) => {
                let said = std::str::from_utf8(said).map_err(|_| BROKEN)?;
                let shown = value_of(said, 'v').ok_or(BROKEN)?;
                let shown = BASE64_STANDARD.decode(shown).map_err(|_| BROKEN)?;
                constant_time::verify_slices_are_equal(&shown, &signature)
                    .map_err(|_| "it does not know the password itself")?;
                Ok((Self::Last(signature), Turn::Done))
            }
        }
    }
}

const BROKEN: &str = "its part of SCRAM cannot be read";

/// The client's side of SCRAM, before the server's challenge.
#[derive(Debug)]
pub(super) struct Scram {
    mechanism: Mechanism,
    password: SecretString,
    nonce: String,
    /// What was said first, without the header.
    first: String,
}

impl Scram {
    fn new(mechanism: Mechanism, login: &Login, nonce: &str) -> Self {
        let user = login.user.replace('=', "=3D").replace(',', "=2C");
        Self {
            mechanism,
            password: login.password.clone(),
            nonce: nonce.to_owned(),
            first: format!("n={user},r={nonce}"),
        }
    }

    /// The answer to a challenge, and the signature that the server then owes.
    fn answer(&self, challenge: &str) -> Result<(String, Vec<u8>), &'static str> {
        let nonce = value_of(challenge, 'r').ok_or(BROKEN)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("it answers another's challenge");
        }
        let salt = value_of(challenge, 's').ok_or(BROKEN)?;
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| BROKEN)?;
        let rounds: u32 = value_of(challenge, 'i')
            .and_then(|text| text.parse().ok())
            .ok_or(BROKEN)?;
        if !ROUNDS.contains(&rounds) {
            return Err("it asks for fewer than 4096 rounds of SCRAM, or for too many");
        }
        let rounds = NonZeroU32::new(rounds).ok_or(BROKEN)?;
        let (pbkdf2, hmac, digest) = match self.mechanism {
            Mechanism::Scram512 => (
                pbkdf2::PBKDF2_HMAC_SHA512,
                hmac::HMAC_SHA512,
                &digest::SHA512,
            ),
            _ => (
                pbkdf2::PBKDF2_HMAC_SHA256,
                hmac::HMAC_SHA256,
                &digest::SHA256,
            ),
        };
        let mut salted = vec![0; digest.output_len()];
        let password = self.password.expose_secret().as_bytes();
        pbkdf2::derive(pbkdf2, rounds, &salt, password, &mut salted);
        let signed = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac, key), text);
        let client_key = signed(&salted, b"Client Key");
        let stored_key = digest::digest(digest, client_key.as_ref());
        // biws: "n,,", the header again.
        let last = format!("c=biws,r={nonce}");
        let talk = format!("{},{challenge},{last}", self.first);
        let signature = signed(stored_key.as_ref(), talk.as_bytes());
        let proof: Vec<u8> = client_key
            .as_ref()
            .iter()
            .zip(signature.as_ref())
            .map(|(key, mask)| key ^ mask)
            .collect();
        let server_key = signed(&salted, b"Server Key");
        let owed = signed(server_key.as_ref(), talk.as_bytes());
        let last = format!("{last},p={}", BASE64_STANDARD.encode(proof));
        Ok((last, owed.as_ref().to_vec()))
    }
}

/// The value of an attribute `a=value`.
fn value_of(text: &str, name: char) -> Option<&str> {
    text.split(',')
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(mechanism: Mechanism) -> Login {
        Login {
            mechanism,
            user: "user".into(),
            password: "pencil".into(),
        }
    }

    /// The example of RFC 7677; with SHA-512 as Python's hashlib has it.
    #[test]
    fn scram_is_that_of_the_standard() {
        for (mechanism, proof, signature) in [
            (
                Mechanism::Scram256,
                "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
            (
                Mechanism::Scram512,
                "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
                "ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
            ),
        ] {
            let scram = Scram::new(mechanism, &login(mechanism), "rOprNGfwEbeRWgbNEkqO");
            assert_eq!(scram.first, "n=user,r=rOprNGfwEbeRWgbNEkqO");
            let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
            let challenge = format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
            let (talk, turn) = Talk::First(scram).next(challenge.as_bytes()).unwrap();
            let Turn::Say(last) = turn else {
                panic!("nothing to say");
            };
            let expected = format!("c=biws,r={nonce},p={proof}");
            assert_eq!(String::from_utf8(last).unwrap(), expected);
            let owed = format!("v={signature}");
            let (_, turn) = talk.next(owed.as_bytes()).unwrap();
            assert!(matches!(turn, Turn::Done));
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let error = Talk::Last(vec![1, 2]).next(b"v=AQM=").unwrap_err();
        assert!(error.contains("does not know the password"));
        assert_eq!(
            Talk::Last(vec![1]).next(b"e=other-error").unwrap_err(),
            BROKEN
        );
    }

    #[test]
    fn a_challenge_that_is_not_ours_or_too_much_work_is_refused() {
        for challenge in [
            "r=other,s=AAAA,i=4096",
            "r=nonce,s=AAAA,i=4096",
            "r=nonceX,s=AAAA,i=0",
            "r=nonceX,s=AAAA,i=4095",
            "r=nonceX,s=AAAA,i=99999999",
            "r=nonceX,s=?,i=4096",
            "",
        ] {
            let scram = Scram::new(Mechanism::Scram512, &login(Mechanism::Scram512), "nonce");
            assert!(
                Talk::First(scram).next(challenge.as_bytes()).is_err(),
                "{challenge}"
            );
        }
    }

    #[test]
    fn a_user_name_cannot_break_out_of_its_field() {
        let mut login = login(Mechanism::Scram512);
        login.user = "a,b=c".into();
        assert_eq!(
            Scram::new(Mechanism::Scram512, &login, "n").first,
            "n=a=2Cb=3Dc,r=n"
        );
    }

    #[test]
    fn plain_says_user_and_password() {
        let (talk, first) = Talk::begin(&login(Mechanism::Plain)).unwrap();
        assert_eq!(first, b"\0user\0pencil");
        assert!(matches!(talk.next(b"").unwrap().1, Turn::Done));
    }
}
