//! The HTTP client: whom it trusts, how it shows who it is, where it may connect to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderMap;
use reqwest::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};

use super::super::Options;
use super::address::{Guard, Guarded, LookUp};
use crate::salesforce::tls;

/// Longest file of certificates or keys that is read: a bundle of all public roots is a quarter of it.
const LONGEST_FILE: u64 = 1 << 20;

const BEGIN: &str = "-----BEGIN ";

/// How long a call and a connection attempt may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) whole: Duration,
    pub(super) connect: Duration,
}

/// Makes the client. Connects to nothing.
pub(super) fn client(
    guard: Arc<Guard>,
    look_up: LookUp,
    headers: HeaderMap,
    timeouts: Timeouts,
    tls: ClientConfig,
) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeouts.whole)
        .connect_timeout(timeouts.connect)
        // Else a dead HTTP/2 connection would take every retry along.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(10));
    if guard.names_loopback() {
        builder = builder.no_proxy(); // another machine's loopback is not meant
    }
    builder.dns_resolver(Guarded { guard, look_up }).build()
}

/// Reads `ca` and `client_cert` with `client_key`, each as PEM text or, with `_file` behind the name, as the
/// path of a file. `None` where something is wrong with them, which is then noted.
pub(super) fn read_tls(options: &mut Options<'_>) -> Option<ClientConfig> {
    let roots = read_roots(options);
    let certificates = pem(options, "client_cert", "client_cert_file");
    let key = pem(options, "client_key", "client_key_file");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| options.invalid("url", format!("cannot be called with TLS: {error}")))
        .ok()?
        .with_root_certificates(roots?);
    let mut config = match (certificates, key) {
        (Pem::Bad, _) | (_, Pem::Bad) => return None,
        (Pem::Nothing, Pem::Nothing) => builder.with_no_client_auth(),
        (Pem::Nothing, Pem::Given(key, _)) => {
            options.invalid(key, "needs `client_cert` or `client_cert_file` beside it");
            return None;
        }
        (Pem::Given(key, _), Pem::Nothing) => {
            options.invalid(key, "needs `client_key` or `client_key_file` beside it");
            return None;
        }
        (Pem::Given(certificate_at, chain), Pem::Given(key_at, key)) => {
            let chain = accepted(options, certificate_at, certificates_of(&chain));
            let key = accepted(options, key_at, key_of(&key));
            builder
                .with_client_auth_cert(chain?, key?)
                .map_err(|error| {
                    let reason = format!(
                        "cannot be used with the certificate of `{certificate_at}`: {error}"
                    );
                    options.invalid(key_at, reason);
                })
                .ok()?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(config)
}

fn read_roots(options: &mut Options<'_>) -> Option<RootCertStore> {
    let mut roots = tls::usual_roots();
    let (key, text) = match pem(options, "ca", "ca_file") {
        Pem::Nothing => return Some(roots),
        Pem::Bad => return None,
        Pem::Given(key, text) => (key, text),
    };
    for certificate in accepted(options, key, certificates_of(&text))? {
        if let Err(error) = roots.add(certificate) {
            options.invalid(key, format!("holds a certificate that is no CA's: {error}"));
            return None;
        }
    }
    Some(roots)
}

/// PEM text that a key or the file that another key names may hold.
enum Pem {
    Nothing,
    /// What is wrong has been noted.
    Bad,
    /// The key that it came by, and the text: it may hold a private key.
    Given(&'static str, SecretString),
}

fn pem(options: &mut Options<'_>, inline: &'static str, file: &'static str) -> Pem {
    let (text, path) = (options.text(inline), options.text(file));
    let (key, text) = match (text, path) {
        (None, None) if options.has(inline) || options.has(file) => return Pem::Bad,
        (None, None) => return Pem::Nothing,
        (Some(_), Some(_)) => {
            options.invalid(
                inline,
                format!("and `{file}` are both given: take one away"),
            );
            return Pem::Bad;
        }
        (Some(text), None) => (inline, pem_text(&text, file)),
        (None, Some(path)) => (file, read_file(Path::new(&path))),
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

#[cfg(test)]
mod tests {
    use super::super::super::testing::config;
    use super::*;

    struct Own {
        certificate: String,
        key: String,
    }

    fn own() -> Own {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Own {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    fn read(text: &str) -> Result<(), String> {
        let config = config("webhook", text);
        let mut options = Options::new(&config);
        let tls = read_tls(&mut options);
        options.finish(tls).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn certificates_and_keys_are_taken_as_text_and_as_files() {
        let Own { certificate, key } = own();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate_file, key_file) = (file("c.pem", &certificate), file("k.pem", &key));
        for text in [
            String::new(),
            format!("ca = '''{certificate}'''"),
            format!("ca_file = '{certificate_file}'"),
            format!("client_cert = '''{certificate}'''\nclient_key = '''{key}'''"),
            format!(
                "client_cert_file = '{certificate_file}'\nclient_key = '{}'",
                key.replace('\n', "\\n")
            ),
            format!(
                "client_cert = '{}'\nclient_key_file = '{key_file}'",
                BASE64_STANDARD.encode(&certificate)
            ),
        ] {
            read(&text).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_cure_and_without_showing_it() {
        let (one, other) = (own(), own());
        let (certificate, key) = (&one.certificate, &one.key);
        let cut = &certificate[..200];
        let foreign = &other.key;
        for (text, part) in [
            ("ca = 'hidden'".to_owned(), "use `ca_file`"),
            ("ca = 7".to_owned(), "must be a text"),
            (
                "ca_file = 'no-such-hidden.pem'".to_owned(),
                "cannot be read",
            ),
            (format!("ca = '''{key}'''"), "holds no certificate"),
            (format!("ca = '''{cut}'''"), "damaged"),
            (
                format!("ca = '''{certificate}'''\nca_file = 'hidden'"),
                "`ca` and `ca_file` are both given",
            ),
            (
                format!("client_key = '''{key}'''"),
                "`client_key` needs `client_cert`",
            ),
            (
                format!("client_cert = '''{certificate}'''"),
                "`client_cert` needs `client_key`",
            ),
            (
                format!("client_cert = '''{certificate}'''\nclient_key = '''{certificate}'''"),
                "holds no private key",
            ),
            (
                format!("client_cert = '''{certificate}'''\nclient_key = '''{foreign}'''"),
                "cannot be used with the certificate of `client_cert`",
            ),
            (
                format!(
                    "client_cert = '''{certificate}'''\nclient_key = '''{}'''",
                    key.replace("PRIVATE", "ENCRYPTED PRIVATE")
                ),
                "encrypted with a passphrase",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
            let inside = key.lines().nth(1).unwrap();
            assert!(
                !error.contains("hidden") && !error.contains(inside),
                "{error}"
            );
        }
    }
}
