//! The private key of the JWT flow, in the forms in which people paste it.

use aws_lc_rs::rsa::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;

/// A text that is not the key it should be. It never repeats any of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing there.
    #[error("it is empty: set it to the PEM text of an RSA private key")]
    Empty,
    /// Neither PEM nor base64 of PEM.
    #[error(
        "it is neither PEM text (`-----BEGIN PRIVATE KEY-----` …) nor base64 of PEM text; if it is a file name, \
         use `private_key_file`"
    )]
    NotPem,
    /// PEM whose inside is cut off or garbled.
    #[error("its PEM text is damaged or cut off: copy it again, from BEGIN to END")]
    Damaged,
    /// Protected by a passphrase.
    #[error(
        "it is encrypted with a passphrase: decrypt it with `openssl pkcs8 -in key.pem -out plain.pem` and use that"
    )]
    Encrypted,
    /// A key for elliptic curves.
    #[error(
        "it is an elliptic-curve key, and Salesforce accepts only RSA: make one with \
         `openssl req -x509 -newkey rsa:2048 -nodes -days 730 -keyout key.pem -out cert.pem` and upload cert.pem to the app"
    )]
    NotRsa,
    /// A certificate.
    #[error(
        "it is a certificate, which belongs into the app in Setup: here goes the private key made with it"
    )]
    Certificate,
    /// A public key.
    #[error("it is a public key: here goes the private one")]
    Public,
    /// OpenSSH's own format.
    #[error("it is in OpenSSH's format: convert it with `ssh-keygen -p -N '' -m PKCS8 -f key`")]
    OpenSsh,
    /// Too short for Salesforce.
    #[error("it has fewer than 2048 bits: make a new key and upload its certificate to the app")]
    Short,
}

/// Reads a key: PEM (PKCS#8 or PKCS#1), PEM with `\n` in place of line ends or with the line ends lost,
/// or base64 of PEM.
pub(super) fn parse(text: &str) -> Result<EncodingKey, KeyError> {
    let text = text.trim().trim_matches(['"', '\'']).trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    if text.contains(BEGIN) {
        return parse_pem(text);
    }
    let decoded = STANDARD
        .decode(without_whitespace(text))
        .map_err(|_| KeyError::NotPem)?;
    match String::from_utf8(decoded) {
        Ok(pem) if pem.contains(BEGIN) => parse_pem(&pem),
        _ => Err(KeyError::NotPem),
    }
}

const BEGIN: &str = "-----BEGIN ";

fn parse_pem(text: &str) -> Result<EncodingKey, KeyError> {
    let text = text.replace("\\r", "").replace("\\n", "\n");
    let mut found = Err(KeyError::NotPem);
    // A file may hold certificates beside the key.
    for block in text.split(BEGIN).skip(1) {
        found = parse_block(block);
        match found {
            Err(KeyError::Certificate | KeyError::Public) => {}
            _ => return found,
        }
    }
    found
}

/// One block, from behind `-----BEGIN ` on.
fn parse_block(block: &str) -> Result<EncodingKey, KeyError> {
    let (label, rest) = block.split_once("-----").ok_or(KeyError::Damaged)?;
    let body = || {
        let (body, _) = rest
            .split_once(&format!("-----END {label}-----"))
            .ok_or(KeyError::Damaged)?;
        STANDARD
            .decode(without_whitespace(body))
            .map_err(|_| KeyError::Damaged)
    };
    match label {
        _ if rest.contains("Proc-Type: 4,ENCRYPTED") => Err(KeyError::Encrypted),
        "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        "EC PRIVATE KEY" | "EC PARAMETERS" => Err(KeyError::NotRsa),
        "OPENSSH PRIVATE KEY" => Err(KeyError::OpenSsh),
        "CERTIFICATE" | "TRUSTED CERTIFICATE" => Err(KeyError::Certificate),
        "PUBLIC KEY" | "RSA PUBLIC KEY" => Err(KeyError::Public),
        "PRIVATE KEY" => {
            let der = body()?;
            if !holds_rsa_oid(&der) {
                return Err(if looks_whole(&der) {
                    KeyError::NotRsa
                } else {
                    KeyError::Damaged
                });
            }
            encoding_key(label, &der, KeyPair::from_pkcs8(&der))
        }
        "RSA PRIVATE KEY" => {
            let der = body()?;
            encoding_key(label, &der, KeyPair::from_der(&der))
        }
        _ => Err(KeyError::NotPem),
    }
}

fn encoding_key(
    label: &str,
    der: &[u8],
    pair: Result<KeyPair, aws_lc_rs::error::KeyRejected>,
) -> Result<EncodingKey, KeyError> {
    // The library refuses short keys in words that change between versions; the length does not.
    let pair = pair.map_err(|_| {
        if looks_whole(der) && der.len() < 1000 {
            KeyError::Short
        } else {
            KeyError::Damaged
        }
    })?;
    if pair.public_modulus_len() < 256 {
        return Err(KeyError::Short);
    }
    // Written anew, because the text at hand may have lost its line ends.
    let pem = format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        wrapped(&STANDARD.encode(der))
    );
    EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| KeyError::Damaged)
}

/// Lines of 64 characters, as PEM readers expect.
fn wrapped(base64: &str) -> String {
    let mut text = String::with_capacity(base64.len() + base64.len() / 64);
    for (i, c) in base64.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text
}

/// True where the outermost DER sequence has the length it claims.
fn looks_whole(der: &[u8]) -> bool {
    match *der {
        [0x30, length, ref rest @ ..] if length < 0x80 => rest.len() == usize::from(length),
        [0x30, 0x81, length, ref rest @ ..] => rest.len() == usize::from(length),
        [0x30, 0x82, high, low, ref rest @ ..] => {
            rest.len() == usize::from(u16::from_be_bytes([high, low]))
        }
        _ => false,
    }
}

/// The object identifier rsaEncryption, 1.2.840.113549.1.1.1, within the PKCS#8 header.
fn holds_rsa_oid(der: &[u8]) -> bool {
    const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    der.iter()
        .take(40)
        .copied()
        .collect::<Vec<_>>()
        .windows(RSA.len())
        .any(|window| window == RSA)
}

fn without_whitespace(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            wrapped(&STANDARD.encode(der))
        )
    }

    fn rsa_pkcs8() -> Vec<u8> {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        AsDer::<Pkcs8V1Der<'_>>::as_der(&pair)
            .unwrap()
            .as_ref()
            .to_vec()
    }

    #[test]
    fn a_key_is_accepted_in_every_form_in_which_people_paste_it() {
        let der = rsa_pkcs8();
        let pkcs8 = pem("PRIVATE KEY", &der);
        // PKCS#8 holds the PKCS#1 key as its last value, behind 26 bytes for a key of this size.
        let pkcs1 = pem("RSA PRIVATE KEY", &der[26..]);
        let certificate = pem("CERTIFICATE", b"whatever");
        for (form, text) in [
            ("PKCS#8", pkcs8.clone()),
            ("PKCS#1", pkcs1.clone()),
            ("literal \\n", pkcs8.replace('\n', "\\n")),
            ("literal \\r\\n", pkcs1.replace('\n', "\\r\\n")),
            ("CRLF", pkcs8.replace('\n', "\r\n")),
            ("spaces for line ends", pkcs8.replace('\n', " ")),
            ("in quotes", format!("\"{}\"", pkcs8.replace('\n', "\\n"))),
            ("base64 of PEM", STANDARD.encode(&pkcs8)),
            ("base64 of PEM, in lines", wrapped(&STANDARD.encode(&pkcs1))),
            ("behind a certificate", certificate + &pkcs8),
        ] {
            parse(&text).unwrap_or_else(|error| panic!("{form}: {error}"));
        }
    }

    #[test]
    fn what_is_no_usable_key_is_named() {
        let der = rsa_pkcs8();
        let ec = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let mut cut = pem("PRIVATE KEY", &der);
        cut.truncate(800);
        for (text, expected) in [
            (String::new(), KeyError::Empty),
            ("server.key".to_owned(), KeyError::NotPem),
            (STANDARD.encode("hello"), KeyError::NotPem),
            (ec, KeyError::NotRsa),
            (pem("EC PRIVATE KEY", b"x"), KeyError::NotRsa),
            (pem("ENCRYPTED PRIVATE KEY", b"x"), KeyError::Encrypted),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----"
                    .to_owned(),
                KeyError::Encrypted,
            ),
            (pem("CERTIFICATE", b"x"), KeyError::Certificate),
            (pem("PUBLIC KEY", b"x"), KeyError::Public),
            (pem("OPENSSH PRIVATE KEY", b"x"), KeyError::OpenSsh),
            (cut, KeyError::Damaged),
            (pem("PRIVATE KEY", &der[..600]), KeyError::Damaged),
        ] {
            assert_eq!(parse(&text).err(), Some(expected));
        }
    }
}
