//! Identifiers: org IDs, replay IDs, schema IDs, and the identity of an event.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use smallvec::SmallVec;

use crate::json;

/// Text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Neither 15 nor 18 letters and digits, or not starting with `00D`.
    #[error("not an organization ID: expected 15 or 18 letters and digits that start with 00D")]
    Org,
    /// Not an even number of hexadecimal digits.
    #[error("not a replay ID: expected hexadecimal digits, as orgstream prints them")]
    Replay,
}

/// An organization ID in its 18-character form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrgId(Arc<str>);

impl OrgId {
    /// Accepts 15 or 18 characters; 15 are completed (facts 8.6).
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let text = text.trim();
        if !text.starts_with("00D") || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(InvalidId::Org);
        }
        match text.len() {
            15 => Ok(Self(format!("{text}{}", id_suffix(text)).into())),
            18 => Ok(Self(text.into())),
            _ => Err(InvalidId::Org),
        }
    }

    /// The 18 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The three characters that make a case-sensitive 15-character ID safe where case is lost: one for
/// each five, naming which of them are capitals (facts 8.6).
fn id_suffix(id: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    id.as_bytes()
        .chunks(5)
        .map(|chunk| {
            let capitals = chunk
                .iter()
                .enumerate()
                .filter(|(_, b)| b.is_ascii_uppercase())
                .fold(0usize, |bits, (i, _)| bits | 1 << i);
            char::from(LETTERS[capitals & 31])
        })
        .collect()
}

/// A place on the bus: opaque bytes, kept as received, shown as hexadecimal, never computed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ReplayId(SmallVec<[u8; 16]>);

impl ReplayId {
    /// From the wire; `None` where the platform sent none.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        // Those of today are ten bytes, so that nothing is allocated.
        (!bytes.is_empty()).then(|| Self(SmallVec::from_slice(bytes)))
    }

    /// The bytes as the platform sent them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For a request.
    pub fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl FromStr for ReplayId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let text = text.trim();
        let text = text.strip_prefix("0x").unwrap_or(text);
        match hex::decode(text) {
            Ok(bytes) if !bytes.is_empty() => Ok(Self(bytes.into())),
            _ => Err(InvalidId::Replay),
        }
    }
}

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(2 * self.0.len());
        json::push_hex(&mut text, &self.0);
        f.write_str(&text)
    }
}

impl fmt::Debug for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a schema: base64url, without padding, of a 16-byte fingerprint (facts 4.2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaId(Arc<str>);

impl SchemaId {
    /// As the platform sent it. Anything is accepted, a blank too: the platform decides what exists.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest part of an identity that stands in it as it is, in bytes.
const LONGEST_PART: usize = 64;

/// The bytes that a plain part is made of.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let at = byte as u8;
        plain[byte] = at.is_ascii_alphanumeric() || matches!(at, b'-' | b'_' | b'.' | b'*');
        byte += 1;
    }
    plain
};

/// An identity before it is kept: three parts of at most 64 bytes, and what is between them.
type Draft = SmallVec<[u8; 3 * LONGEST_PART + 2]>;

/// Appends a part of an identity: as it is, or its digest where it is long or not plain.
fn put_part(text: &mut Draft, part: &[u8]) {
    let is_plain = |byte: &u8| PLAIN[usize::from(*byte)];
    if part.len() <= LONGEST_PART && part.iter().all(is_plain) {
        text.extend_from_slice(part);
    } else {
        put_hex(text, digest::digest(&digest::SHA256, part).as_ref());
    }
}

fn put_hex(text: &mut Draft, bytes: &[u8]) {
    json::hex_digits(bytes, |digits| text.extend_from_slice(digits));
}

/// What tells one event from every other: the publisher's ID, the replay ID and, for a change event,
/// its first record ID, as one stable text. It is the CloudEvents `id` and whatever deduplicates uses it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventIdentity(Arc<str>);

impl EventIdentity {
    /// A publisher may choose any `id`, of any length, so one that is long or not plain is hashed.
    pub fn new(id: &str, replay_id: Option<&ReplayId>, record_id: Option<&str>) -> Self {
        Self::with(id, replay_id, record_id, Self::from_stored)
    }

    /// As [`EventIdentity::new`], for what only needs to see the text: nothing is allocated.
    pub(super) fn with<T>(
        id: &str,
        replay_id: Option<&ReplayId>,
        record_id: Option<&str>,
        then: impl FnOnce(&str) -> T,
    ) -> T {
        let mut text = Draft::new();
        put_part(&mut text, id.as_bytes());
        text.push(b':');
        match replay_id.map(ReplayId::as_bytes) {
            Some(bytes) if 2 * bytes.len() <= LONGEST_PART => put_hex(&mut text, bytes),
            Some(bytes) => put_part(&mut text, hex::encode(bytes).as_bytes()),
            None => {}
        }
        if let Some(record_id) = record_id {
            text.push(b':');
            put_part(&mut text, record_id.as_bytes());
        }
        // All of it is ASCII.
        then(std::str::from_utf8(&text).unwrap_or_default())
    }

    /// As it was stored.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_character_ids_are_completed_to_eighteen() {
        assert_eq!(id_suffix("0015J000004TNtz"), "QAG");
        assert_eq!(id_suffix("000000000000000"), "AAA");
        assert_eq!(
            OrgId::parse("00D58000000arpq").unwrap().as_str(),
            "00D58000000arpqEAA"
        );
        assert_eq!(
            OrgId::parse("00D58000000arpqEAA").unwrap().as_str(),
            "00D58000000arpqEAA"
        );
    }

    #[test]
    fn text_that_is_no_org_id_is_refused() {
        for text in [
            "",
            "00D",
            "0015J000004TNtz",
            "00D58000000arp!",
            "00D58000000arpqEA",
        ] {
            assert_eq!(OrgId::parse(text), Err(InvalidId::Org), "{text}");
        }
    }

    #[test]
    fn replay_ids_survive_the_round_trip_through_hex() {
        let id: ReplayId = "0x000000000010db4d0000".parse().unwrap();
        assert_eq!(id.as_bytes(), [0, 0, 0, 0, 0, 0x10, 0xdb, 0x4d, 0, 0]);
        assert_eq!(id.to_string(), "000000000010db4d0000");
        assert!("".parse::<ReplayId>().is_err());
        assert!("1104717x".parse::<ReplayId>().is_err());
    }

    #[test]
    fn siblings_that_share_a_replay_id_have_different_identities() {
        let replay_id: ReplayId = "0a".parse().unwrap();
        let one = EventIdentity::new("u", Some(&replay_id), Some("001A"));
        let other = EventIdentity::new("u", Some(&replay_id), Some("001B"));
        assert_ne!(one, other);
        assert_eq!(one.as_str(), "u:0a:001A");
    }

    #[test]
    fn an_identity_is_bounded_and_plain_whatever_the_publisher_sends() {
        let long = EventIdentity::new(&"x".repeat(1 << 20), None, Some("a b\n"));
        assert!(long.as_str().len() < 200);
        assert!(long.as_str().is_ascii() && !long.as_str().contains(['\n', ' ']));
    }
}
