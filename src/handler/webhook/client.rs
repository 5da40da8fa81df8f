//! The HTTP client: whom it trusts, how it shows who it is, where it may connect to.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;
use reqwest::Client;
use rustls::ClientConfig;

use super::super::Options;
use super::super::tls_client::{self, Defaults, Pem};
use super::address::{Guard, Guarded, LookUp};
use crate::tls;

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
    let roots = match tls_client::pem(options, "ca", "ca_file", None) {
        Pem::Nothing => Some(tls::usual_roots()),
        Pem::Bad => None,
        Pem::Given(key, text) => tls_client::add_roots(options, tls::usual_roots(), key, &text),
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| options.invalid("url", format!("cannot be called with TLS: {error}")))
        .ok()
        .zip(roots)
        .map(|(builder, roots)| builder.with_root_certificates(roots));
    let mut config = tls_client::with_identity(options, builder, &Defaults::default())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(config)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

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
