//! The options of a webhook, read and looked through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};

use super::super::registry::HandlerConfigError;
use super::super::{BatchLimits, Options};
use super::address::{Guard, Network, Private};
use super::client::{self, Timeouts};
use super::message::{ATTRIBUTE, IDEMPOTENCY_KEY, Mode};
use super::signature::{self, Signer};
use crate::config::HandlerConfig;

/// Headers that the handler or the connection sets, beside those of attributes; `headers` may not.
const OWN_HEADERS: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::HOST,
    IDEMPOTENCY_KEY,
    signature::ID,
    signature::TIMESTAMP,
    signature::SIGNATURE,
];

/// Everything that the options say.
pub(super) struct Settings {
    pub(super) url: Url,
    pub(super) mode: Mode,
    pub(super) limits: BatchLimits,
    pub(super) headers: HeaderMap,
    pub(super) signer: Option<Signer>,
    pub(super) timeouts: Timeouts,
    pub(super) tls: ClientConfig,
    pub(super) guard: Arc<Guard>,
}

impl Settings {
    pub(super) fn read(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let private = read_private(&mut options);
        let url = options
            .required_text("url", "the http:// or https:// address to post events to")
            .and_then(|text| read_url(&mut options, &text));
        let target = url.and_then(|url| guarded(&mut options, url, private));
        let mode = read_mode(&mut options);
        let limits = read_limits(&mut options, mode);
        let headers = options.secret_table("headers");
        let headers = read_headers(&mut options, &headers);
        let signer = read_signer(&mut options);
        let timeouts = Timeouts {
            whole: options.duration("timeout", Duration::from_secs(30)),
            connect: options.duration("connect_timeout", Duration::from_secs(10)),
        };
        let tls = client::read_tls(&mut options);
        let read = target.zip(tls).map(|((url, guard), tls)| Self {
            url,
            mode,
            limits,
            headers,
            signer,
            timeouts,
            tls,
            guard: Arc::new(guard),
        });
        options.finish(read)
    }
}

fn read_url(options: &mut Options<'_>, text: &str) -> Option<Url> {
    let reason = match Url::parse(text) {
        Err(error) => format!("is not an address ({error}): expected http:// or https://"),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            "must begin with http:// or https://".to_owned()
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "must not hold a user name or password: send them in `headers`, \
             as Authorization = \"Basic …\""
                .to_owned()
        }
        Ok(url) => return Some(url),
    };
    options.invalid("url", reason);
    None
}

/// The address with what watches where it leads. An IP address is looked at here and now: none is looked up
/// for it later.
fn guarded(options: &mut Options<'_>, url: Url, private: Private) -> Option<(Url, Guard)> {
    let guard = Guard::new(url.host_str().unwrap_or_default(), private);
    match guard.literal() {
        Ok(()) => Some((url, guard)),
        Err(refused) => {
            options.invalid("url", format!("cannot be used: {refused}"));
            None
        }
    }
}

fn read_private(options: &mut Options<'_>) -> Private {
    const KEY: &str = "allow_private_addresses";
    if options.is_boolean(KEY) {
        return match options.boolean(KEY, false) {
            true => Private::Any,
            false => Private::Only(Vec::new()),
        };
    }
    let texts = options.texts(KEY);
    let networks: Vec<Network> = texts
        .iter()
        .filter_map(|text| Network::parse(text))
        .collect();
    if networks.len() < texts.len() {
        options.invalid(
            KEY,
            "must be true, false, or a list of IP addresses and networks such as \"10.0.0.0/8\"",
        );
    }
    Private::Only(networks)
}

fn read_mode(options: &mut Options<'_>) -> Mode {
    match options.text("mode").as_deref() {
        None | Some("structured") => Mode::Structured,
        Some("binary") => Mode::Binary,
        Some("batched") => Mode::Batched,
        Some(_) => {
            options.invalid("mode", "must be \"structured\", \"binary\" or \"batched\"");
            Mode::Structured
        }
    }
}

fn read_limits(options: &mut Options<'_>, mode: Mode) -> BatchLimits {
    let events = options.integer("batch_events", 100, 1..=1000);
    let bytes = options.bytes("batch_bytes", 256 << 10, 1 << 10..=16 << 20);
    if mode == Mode::Batched {
        let events = usize::try_from(events).unwrap_or(1);
        return BatchLimits { events, bytes };
    }
    for key in ["batch_events", "batch_bytes"] {
        if options.has(key) {
            options.invalid(key, "means something with mode = \"batched\" only");
        }
    }
    BatchLimits { events: 1, bytes }
}

fn read_signer(options: &mut Options<'_>) -> Option<Signer> {
    const KEY: &str = "signing_secrets";
    let secrets = options.texts(KEY);
    if secrets.is_empty() && (options.has(KEY) || options.is_blank(KEY)) {
        // A variable that is not set must not switch signatures off.
        options.invalid(KEY, "is blank: give it secrets, or leave it out");
    }
    Signer::parse(&secrets).unwrap_or_else(|reason| {
        options.invalid(KEY, reason);
        None
    })
}

fn read_headers(options: &mut Options<'_>, texts: &BTreeMap<String, SecretString>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(texts.len());
    for (name, value) in texts {
        let key = format!("headers.{name}");
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            options.invalid(key, "is not the name of a header");
            continue;
        };
        if OWN_HEADERS.contains(&name) || name.as_str().starts_with(ATTRIBUTE) {
            options.invalid(key, "is set by orgstream itself: leave it out");
            continue;
        }
        match HeaderValue::from_str(value.expose_secret()) {
            Ok(mut value) => {
                value.set_sensitive(true);
                if headers.insert(name, value).is_some() {
                    options.invalid(key, "is given twice, in different case");
                }
            }
            Err(_) => options.invalid(
                key,
                "must be ASCII on one line; a variable behind it may end with a newline",
            ),
        }
    }
    headers
}
