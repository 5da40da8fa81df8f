//! Certificates and keys among a handler's options: whom its client trusts, and how it shows who it is.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};

use super::Options;

/// Longest file of certificates or keys that is read: a bundle of all public roots is a quarter of it.
const LONGEST_FILE: u64 = 1 << 20;

const BEGIN: &str = "-----BEGIN ";

/// PEM text that stands for options that are not given.
#[derive(Default)]
pub(super) struct Defaults {
    /// For `ca`.
    pub(super) ca: Option<String>,
    /// For `client_cert`.
    pub(super) client_cert: Option<String>,
    /// For `client_key`.
    pub(super) client_key: Option<String>,
}

/// Reads `client_cert` with `client_key`, each as PEM text or, with `_file` behind the name, as the path of a file, and
/// ends `builder` with them. `None` where something is wrong with them, which is then noted, and without a builder.
pub(super) fn with_identity(
    options: &mut Options<'_>,
    builder: Option<ConfigBuilder<ClientConfig, WantsClientCert>>,
    defaults: &Defaults,
) -> Option<ClientConfig> {
    let own = |options: &Options<'_>| {
        let keys = [
            "client_cert",
            "client_cert_file",
            "client_key",
            "client_key_file",
        ];
        keys.iter().any(|key| options.has(key))
    };
    // One's own certificate does not go with another's key.
    let (default_cert, default_key) = match own(options) {
        true => (None, None),
        false => (
            defaults.client_cert.as_deref(),
            defaults.client_key.as_deref(),
        ),
    };
    let certificates = pem(options, "client_cert", "client_cert_file", default_cert);
    let key = pem(options, "client_key", "client_key_file", default_key);
    match (certificates, key) {
        (Pem::Bad, _) | (_, Pem::Bad) => None,
        (Pem::Nothing, Pem::Nothing) => Some(builder?.with_no_client_auth()),
        (Pem::Nothing, Pem::Given(key, _)) => {
            options.invalid(key, "needs `client_cert` or `client_cert_file` beside it");
            None
        }
        (Pem::Given(key, _), Pem::Nothing) => {
            options.invalid(key, "needs `client_key` or `client_key_file` beside it");
            None
        }
        (Pem::Given(certificate_at, chain), Pem::Given(key_at, key)) => {
            let chain = accepted(options, certificate_at, certificates_of(&chain));
            let key = accepted(options, key_at, key_of(&key));
            builder?
                .with_client_auth_cert(chain?, key?)
                .map_err(|error| {
                    let reason = format!(
                        "cannot be used with the certificate of `{certificate_at}`: {error}"
                    );
                    options.invalid(key_at, reason);
                })
                .ok()
        }
    }
}

/// Adds the certificates that came by `key` to those that are trusted.
pub(super) fn add_roots(
    options: &mut Options<'_>,
    mut roots: RootCertStore,
    key: &'static str,
    text: &SecretString,
) -> Option<RootCertStore> {
    for certificate in accepted(options, key, certificates_of(text))? {
        if let Err(error) = roots.add(certificate) {
            options.invalid(key, format!("holds a certificate that is no CA's: {error}"));
            return None;
        }
    }
    Some(roots)
}

/// PEM text that a key or the file that another key names may hold.
pub(super) enum Pem {
    Nothing,
    /// What is wrong has been noted.
    Bad,
    /// The key that it came by, and the text: it may hold a private key.
    Given(&'static str, SecretString),
}

/// Reads PEM text that one key may hold, or the file that another one names; `default` stands for it where neither is
/// there.
pub(super) fn pem(
    options: &mut Options<'_>,
    inline: &'static str,
    file: &'static str,
    default: Option<&str>,
) -> Pem {
    let (text, path) = (options.text(inline), options.text(file));
    let (key, text) = match (text, path, default) {
        (None, None, _) if options.has(inline) || options.has(file) => return Pem::Bad,
        (None, None, None) => return Pem::Nothing,
        (None, None, Some(default)) => (inline, pem_text(default, file)),
        (Some(_), Some(_), _) => {
            options.invalid(
                inline,
                format!("and `{file}` are both given: take one away"),
            );
            return Pem::Bad;
        }
        (Some(text), None, _) => (inline, pem_text(&text, file)),
        (None, Some(path), _) => (file, read_file(Path::new(&path))),
    };
    match accepted(options, key, text) {
        Some(text) => Pem::Given(key, text.into()),
        None => Pem::Bad,
    }
}

/// PEM, PEM with `\n` in place of line ends, or base64 of PEM: variables often cannot hold lines.
fn pem_text(text: &str, file: &str) -> Result<String, String> {
    let text = text.trim();
    if text.contains(BEGIN) {
        return Ok(text.replace("\\r", "").replace("\\n", "\n"));
    }
    let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    match BASE64_STANDARD.decode(bare).map(String::from_utf8) {
        Ok(Ok(decoded)) if decoded.contains(BEGIN) => Ok(decoded),
        _ => Err(format!(
            "is neither PEM text (`{BEGIN}…`) nor base64 of PEM text; if it is the path of a file, use `{file}`"
        )),
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| {
        format!("names a file that cannot be read: {error}; check the path and its permissions")
    };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > LONGEST_FILE {
        return Err("names a file that is too large to be PEM text".to_owned());
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn certificates_of(text: &SecretString) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(text.expose_secret().as_bytes());
    match read.collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if certificates.is_empty() => {
            Err("holds no certificate: expected `-----BEGIN CERTIFICATE-----`".to_owned())
        }
        Ok(certificates) => Ok(certificates),
        Err(_) => {
            Err("holds PEM text that is damaged: copy it again, from BEGIN to END".to_owned())
        }
    }
}

fn key_of(text: &SecretString) -> Result<PrivateKeyDer<'static>, String> {
    let text = text.expose_secret();
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        if text.contains("ENCRYPTED") {
            "is encrypted with a passphrase: decrypt it with `openssl pkey -in key.pem -out plain.pem` \
             and use that"
                .to_owned()
        } else {
            "holds no private key: expected `-----BEGIN PRIVATE KEY-----`".to_owned()
        }
    })
}

/// Passes a value on, or notes what is wrong with the key that it came by.
fn accepted<T>(options: &mut Options<'_>, key: &'static str, read: Result<T, String>) -> Option<T> {
    read.map_err(|reason| options.invalid(key, reason)).ok()
}
