//! The options of a `kafka` handler, and what Heroku's config vars add to them.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::super::registry::HandlerConfigError;
use super::super::tls_client::{self, Pem};
use super::super::{Options, Template};
use super::connection::{Address, Dial};
use super::login::{Login, Mechanism};
use super::message::Format;
use crate::config::HandlerConfig;
use crate::tls;

/// The topic where none is named.
const TOPIC: &str = "orgstream.{topic}";

const PORT: u16 = 9092;

const BROKERS: &str = "HOST:PORT or, for TLS, kafka+ssl://HOST:PORT, several with commas between";

/// Everything that the options say.
pub(super) struct Settings {
    pub(super) brokers: Vec<Address>,
    pub(super) dial: Dial,
    pub(super) topic: Template,
    /// What the topic's name begins with.
    pub(super) prefix: String,
    pub(super) format: Format,
    pub(super) idempotent: bool,
    pub(super) timeout: Duration,
}

impl Settings {
    /// `variable` gives an environment variable.
    pub(super) fn read(
        config: &HandlerConfig,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let heroku = Heroku::of(&options, config, variable);
        let brokers = match heroku.url.clone() {
            Some(url) if !options.has("brokers") => Some(url),
            _ => options.required_text("brokers", BROKERS),
        };
        let brokers = brokers.and_then(|text| {
            Brokers::read(&text)
                .map_err(|reason| options.invalid("brokers", reason))
                .ok()
        });
        let secure = brokers.as_ref().is_none_or(|brokers| brokers.tls);
        let tls = read_tls(&mut options, &heroku, secure);
        let login = read_login(&mut options, brokers.as_ref());
        let topic = options.text("topic").unwrap_or_else(|| TOPIC.to_owned());
        let topic = read_topic(&topic)
            .map_err(|reason| options.invalid("topic", reason))
            .ok();
        let prefix = read_prefix(&mut options, &heroku, topic.as_ref());
        let format = read_format(&mut options);
        let idempotent = options.boolean("idempotent", true);
        let timeout = options.duration("timeout", Duration::from_secs(30));
        let connect_timeout = options.duration("connect_timeout", Duration::from_secs(5));
        let read = brokers.zip(topic).zip(tls);
        let ((brokers, topic), tls) = options.finish(read)?;
        Ok(Self {
            dial: Dial {
                tls: brokers.tls.then(|| Arc::new(tls)),
                login,
                connect_timeout,
                // Room for another attempt, and one more.
                request_timeout: timeout / 3,
            },
            brokers: brokers.addresses,
            topic,
            prefix,
            format,
            idempotent,
            timeout,
        })
    }
}

/// What the add-on Apache Kafka on Heroku sets, where the brokers are those of its URL.
#[derive(Default)]
struct Heroku {
    url: Option<String>,
    defaults: tls_client::Defaults,
    prefix: Option<String>,
}

impl Heroku {
    fn of(
        options: &Options<'_>,
        config: &HandlerConfig,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let url = get("KAFKA_URL");
        let named = config.options.get("brokers").and_then(toml::Value::as_str);
        if options.has("brokers") && named.map(str::trim) != url.as_deref().map(str::trim) {
            return Self::default();
        }
        Self {
            defaults: tls_client::Defaults {
                ca: get("KAFKA_TRUSTED_CERT"),
                client_cert: get("KAFKA_CLIENT_CERT"),
                client_key: get("KAFKA_CLIENT_CERT_KEY"),
            },
            prefix: get("KAFKA_PREFIX"),
            url,
        }
    }
}

/// Where to ask first, and whether with TLS.
#[derive(Debug, PartialEq, Eq)]
struct Brokers {
    addresses: Vec<Address>,
    tls: bool,
}

impl Brokers {
    fn read(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        let (mut plain, mut tls) = (false, false);
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let rest = match one.split_once("://") {
                Some(("kafka+ssl", rest)) => {
                    tls = true;
                    rest
                }
                Some(("kafka", rest)) => {
                    plain = true;
                    rest
                }
                Some(_) => return Err(format!("must be {BROKERS}")),
                None => one,
            };
            if rest.contains('@') {
                return Err(
                    "must not hold a user name or password: use `sasl`, `user` and `password`"
                        .to_owned(),
                );
            }
            addresses.push(address(rest).ok_or_else(|| format!("must be {BROKERS}"))?);
        }
        if addresses.is_empty() {
            return Err("must name a broker".to_owned());
        }
        if plain && tls {
            return Err("must have kafka:// everywhere or kafka+ssl:// everywhere".to_owned());
        }
        Ok(Self { addresses, tls })
    }

    fn are_here(&self) -> bool {
        self.addresses.iter().all(|address| {
            let ip = address.host.parse::<std::net::IpAddr>();
            address.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
        })
    }
}

/// `HOST[:PORT]`, with `[…]` around an address of IPv6.
fn address(text: &str) -> Option<Address> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (
                host,
                port.strip_prefix(':').or(port.is_empty().then_some(""))?,
            )
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let known = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(known) {
        return None;
    }
    let port = match port {
        "" => PORT,
        port => port.parse().ok().filter(|port| *port > 0)?,
    };
    let host = host.to_owned();
    Some(Address { host, port })
}

/// A template of a topic: letters, digits, `.`, `_` and `-`.
pub(super) fn read_topic(text: &str) -> Result<Template, String> {
    let template = Template::parse(text)?;
    if template.literals().any(|part| !is_name(part)) {
        return Err("may have letters, digits, `.`, `_` and `-` only, and placeholders".to_owned());
    }
    Ok(template)
}

fn is_name(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn read_prefix(options: &mut Options<'_>, heroku: &Heroku, topic: Option<&Template>) -> String {
    let prefix = options.text("prefix").or_else(|| heroku.prefix.clone());
    let prefix = prefix.unwrap_or_default().trim().to_owned();
    if !is_name(&prefix) {
        options.invalid("prefix", "may have letters, digits, `.`, `_` and `-` only");
    }
    // Written by hand already, as in topic = "${KAFKA_PREFIX}orders".
    if topic.is_some_and(|topic| topic.to_string().starts_with(&prefix)) {
        return String::new();
    }
    prefix
}

fn read_format(options: &mut Options<'_>) -> Format {
    match options.text("format").as_deref() {
        None | Some("json") => Format::Json,
        Some("avro") => Format::Avro,
        Some(_) => {
            options.invalid("format", "must be \"json\" or \"avro\"");
            Format::Json
        }
    }
}

fn read_login(options: &mut Options<'_>, brokers: Option<&Brokers>) -> Option<Login> {
    let mechanism = options.text("sasl").map(|name| {
        let mechanism = Mechanism::of_name(&name);
        if mechanism.is_none() {
            let known = "must be \"plain\", \"scram-sha-256\" or \"scram-sha-512\"";
            options.invalid("sasl", known);
        }
        mechanism
    });
    let (user, password) = (options.text("user"), options.text("password"));
    let Some(mechanism) = mechanism else {
        for (key, given) in [("user", user), ("password", password)] {
            if given.is_some() {
                options.invalid(key, "needs `sasl` beside it, the way to sign in");
            }
        }
        return None;
    };
    let mut needed = |key: &'static str, given: Option<String>| match given {
        Some(text) if !text.is_empty() => Some(text),
        _ => {
            options.invalid("sasl", format!("needs `{key}` beside it"));
            None
        }
    };
    let (user, password) = (needed("user", user), needed("password", password));
    let bare = brokers.is_some_and(|brokers| !brokers.tls && !brokers.are_here());
    if mechanism == Some(Mechanism::Plain) && bare {
        options.invalid(
            "sasl",
            "= \"plain\" would send the password for everybody to read: write kafka+ssl:// before the hosts in `brokers`",
        );
    }
    Some(Login {
        mechanism: mechanism?,
        user: user?,
        password: password?.into(),
    })
}

/// Whom to believe, and who we are. With a `ca` its certificates are trusted in place of the usual ones.
fn read_tls(options: &mut Options<'_>, heroku: &Heroku, secure: bool) -> Option<ClientConfig> {
    let on_heroku = heroku.defaults.ca.is_some() && !options.has("ca") && !options.has("ca_file");
    let names = options.boolean("tls_verify_host", !on_heroku);
    let ca = tls_client::pem(options, "ca", "ca_file", heroku.defaults.ca.as_deref());
    let roots = match ca {
        Pem::Bad => None,
        Pem::Nothing => {
            if !names {
                options.invalid(
                    "tls_verify_host",
                    "= false needs `ca` or `ca_file` beside it: else everybody with a certificate would be believed",
                );
            }
            Some(tls::usual_roots())
        }
        Pem::Given(key, text) => tls_client::add_roots(options, RootCertStore::empty(), key, &text),
    };
    if !secure {
        for key in [
            "ca",
            "ca_file",
            "client_cert",
            "client_cert_file",
            "client_key",
            "client_key_file",
            "tls_verify_host",
        ] {
            if options.has(key) {
                options.invalid(
                    key,
                    "is for TLS: write kafka+ssl:// before the hosts in `brokers`",
                );
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| options.invalid("brokers", format!("cannot be reached with TLS: {error}")))
        .ok();
    let chain = roots.and_then(|roots| {
        WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .map_err(|error| options.invalid("ca", format!("cannot be used: {error}")))
            .ok()
    });
    let builder = builder.zip(chain).map(|(builder, chain)| match names {
        true => builder.with_webpki_verifier(chain),
        false => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(chain))),
    });
    tls_client::with_identity(options, builder, &heroku.defaults)
}

/// Verifies the chain up to a trusted certificate, and everything else but the name: for brokers whose certificates do
/// not name their hosts, as Heroku's. Sound only where nobody else gets certificates of the trusted CAs.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Looked at last, when the chain has been found good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
