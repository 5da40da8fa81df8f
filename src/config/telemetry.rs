//! Where metrics are pushed to. OpenTelemetry has names of its own for that, which other programs of the same
//! deployment read, too: environment variables alone (specification "OTLP exporter", opentelemetry.io).

use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use super::duration::parse_duration;
use super::error::Place;
use super::reader::Reader;
use super::section::{Section, Var};

/// Push over OTLP: HTTP with protobuf.
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// The whole URL; `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT` and `v1/metrics`.
    pub endpoint: Uri,
    /// Headers of each request, whose values are secrets.
    pub headers: Vec<(HeaderName, SecretString)>,
    /// Attributes of the process that pushes.
    pub attributes: Vec<(String, String)>,
    /// How often; 60 s.
    pub interval: Duration,
    /// How long one push may take; 10 s.
    pub timeout: Duration,
}

impl OtlpConfig {
    /// Where to, for people: scheme and host. A path may hold a key.
    pub fn place(&self) -> String {
        format!(
            "{}://{}",
            self.endpoint.scheme_str().unwrap_or_default(),
            self.endpoint.authority().map_or("", |host| host.as_str())
        )
    }

    /// True where it is pushed to this machine, for which no proxy of the environment is meant.
    pub fn is_loopback(&self) -> bool {
        let host = self.endpoint.host().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

/// What the specification says where nothing is set.
const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Each line is a write to the log; once in a second is more than anybody draws.
const LEAST_SAMPLES: Duration = Duration::from_secs(1);

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const METRICS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";

/// How often lines with figures go to the log; `None` where they do not.
pub(super) fn read_log_samples(root: &Section<'_>) -> Option<Duration> {
    root.parsed("log_samples", Var::Named("ORGSTREAM_LOG_SAMPLES"), |text| {
        let every = parse_duration(text)?;
        if every < LEAST_SAMPLES {
            return Err("expected 1s or more, for example 60s".to_owned());
        }
        Ok(every)
    })
}

/// Where metrics are pushed to; `None` where that is not asked for, or something is wrong with it, which is then
/// noted.
pub(super) fn read_otlp(reader: &Reader<'_>) -> Option<OtlpConfig> {
    let variables = Variables(reader);
    if variables.is("OTEL_SDK_DISABLED", "true") || variables.is("OTEL_METRICS_EXPORTER", "none") {
        return None;
    }
    let (name, mut endpoint) = match (reader.env.var(METRICS_ENDPOINT), reader.env.var(ENDPOINT)) {
        (Some(whole), _) => (METRICS_ENDPOINT, whole),
        (None, Some(base)) => (ENDPOINT, base),
        (None, None) => return None,
    };
    if name == ENDPOINT {
        endpoint = format!("{}/v1/metrics", endpoint.trim_end_matches('/'));
    }
    let endpoint = variables.checked(name, endpoint_of(&endpoint));
    variables.first(["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"], |text| match text {
        "http/protobuf" => Ok(()),
        _ => Err("orgstream pushes http/protobuf only: set it to that, and the endpoint to the collector's port \
                  for HTTP, by default 4318"),
    });
    let headers = variables
        .first(
            [
                "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
                "OTEL_EXPORTER_OTLP_HEADERS",
            ],
            headers_of,
        )
        .unwrap_or_default();
    let timeout = variables
        .first(
            [
                "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
                "OTEL_EXPORTER_OTLP_TIMEOUT",
            ],
            milliseconds,
        )
        .unwrap_or(TIMEOUT);
    let interval = variables.parsed("OTEL_METRIC_EXPORT_INTERVAL", milliseconds);
    let attributes = variables.parsed("OTEL_RESOURCE_ATTRIBUTES", pairs_of);
    let mut attributes = attributes.unwrap_or_default();
    if let Some(name) = reader.env.var("OTEL_SERVICE_NAME") {
        attributes.retain(|(key, _)| key != "service.name");
        attributes.push(("service.name".to_owned(), name));
    }
    Some(OtlpConfig {
        endpoint: endpoint?,
        headers,
        attributes,
        interval: interval.unwrap_or(INTERVAL),
        timeout,
    })
}

/// The environment, and where its mistakes are noted: with the variable's name, and never its value.
struct Variables<'a>(&'a Reader<'a>);

impl Variables<'_> {
    fn is(&self, name: &str, wanted: &str) -> bool {
        let value = self.0.env.var(name);
        value.is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    }

    fn checked<T>(&self, name: &str, value: Result<T, impl fmt::Display>) -> Option<T> {
        value
            .map_err(|why| self.0.problem(Place::variable(name), why.to_string()))
            .ok()
    }

    fn parsed<T, E: fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.0.env.var(name)?;
        self.checked(name, parse(&value))
    }

    /// The first of these that is set: the one for metrics before the one for everything.
    fn first<T, E: fmt::Display>(
        &self,
        names: [&str; 2],
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let name = names
            .into_iter()
            .find(|name| self.0.env.var(name).is_some())?;
        self.parsed(name, parse)
    }
}

fn endpoint_of(text: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str =
        "expected a URL with http:// or https://, for example http://localhost:4318";
    let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
    let schemes = [Some("http"), Some("https")];
    if !schemes.contains(&uri.scheme_str()) || uri.host().is_none_or(str::is_empty) {
        return Err(EXPECTED);
    }
    if uri
        .authority()
        .is_some_and(|host| host.as_str().contains('@'))
    {
        return Err(
            "holds a user or a password: name them in OTEL_EXPORTER_OTLP_HEADERS, as in \
                    Authorization=Basic%20…",
        );
    }
    Ok(uri)
}

/// `name=value,name=value`, values percent-encoded, as W3C baggage has it.
fn pairs_of(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part
                .split_once('=')
                .filter(|(name, _)| !name.trim().is_empty())
                .ok_or("expected name=value, several with commas between them")?;
            let value = percent_decode_str(value.trim()).decode_utf8();
            let value = value.map_err(|_| "a value is not UTF-8 once it is percent-decoded")?;
            Ok((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

fn headers_of(text: &str) -> Result<Vec<(HeaderName, SecretString)>, &'static str> {
    pairs_of(text)?
        .into_iter()
        .map(|(name, value)| {
            let name: HeaderName = name
                .parse()
                .map_err(|_| "holds a name that no header can have")?;
            HeaderValue::from_str(&value).map_err(|_| "holds a value that no header can have")?;
            Ok((name, SecretString::from(value)))
        })
        .collect()
}

fn milliseconds(text: &str) -> Result<Duration, &'static str> {
    match text.parse() {
        Ok(number @ 1..=86_400_000_u64) => Ok(Duration::from_millis(number)),
        _ => Err("expected whole milliseconds, from 1 to 86400000"),
    }
}
