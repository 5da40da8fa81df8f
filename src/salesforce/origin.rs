//! Where a server is: scheme, host and port, and whether a token may be sent there.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// Scheme, host and port of a server that may be given secrets: `https`, or `http` to this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    text: String,
    host: String,
    port: u16,
    loopback: bool,
}

/// A URL that orgstream sends no secrets to. The text of the URL is left out: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// Not a URL with a host.
    #[error("not a URL: expected one such as https://acme.my.salesforce.com")]
    NotAUrl,
    /// A scheme other than `https`, or `http` to another machine.
    #[error(
        "must begin with https:// (http:// is accepted only to this machine: localhost, 127.0.0.1 or [::1])"
    )]
    NotSecure,
    /// A user name or password inside.
    #[error("must not hold a user name or password")]
    Credentials,
}

impl Origin {
    /// Takes scheme, host and port of a URL; path, query and a trailing slash are dropped.
    pub fn parse(url: &str) -> Result<Self, InvalidOrigin> {
        let url = Url::parse(url.trim()).map_err(|_| InvalidOrigin::NotAUrl)?;
        let loopback = is_loopback(&url);
        match url.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => return Err(InvalidOrigin::NotSecure),
            // `localhost:7011` parses as a URL of scheme `localhost`.
            _ if !url.has_host() => return Err(InvalidOrigin::NotAUrl),
            _ => return Err(InvalidOrigin::NotSecure),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidOrigin::Credentials);
        }
        match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) => Ok(Self {
                text: url.origin().ascii_serialization(),
                host: host.to_owned(),
                port,
                loopback,
            }),
            _ => Err(InvalidOrigin::NotAUrl),
        }
    }

    /// `scheme://host`, with the port where it is not the scheme's own.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host alone, in lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port that it names, or its scheme's own.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, for messages.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// True for this machine.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// True where the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.text.starts_with("https:")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Names other than `localhost` are not looked up: what they resolve to may change.
fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_trailing_slash_are_dropped() {
        for (given, expected) in [
            (
                "https://Acme.my.salesforce.com/",
                "https://acme.my.salesforce.com",
            ),
            (
                " https://acme.my.salesforce.com/services/x?y=z ",
                "https://acme.my.salesforce.com",
            ),
            ("https://acme.example:443", "https://acme.example"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://127.9.9.9:1", "http://127.9.9.9:1"),
            ("http://[::1]:7011", "http://[::1]:7011"),
            ("http://localhost:7011", "http://localhost:7011"),
        ] {
            assert_eq!(Origin::parse(given).unwrap().as_str(), expected, "{given}");
        }
    }

    #[test]
    fn secrets_go_unencrypted_to_this_machine_only() {
        for given in [
            "http://login.salesforce.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://10.0.0.1:7011",
            "http://[::2]",
            "ftp://acme.example",
        ] {
            assert_eq!(
                Origin::parse(given),
                Err(InvalidOrigin::NotSecure),
                "{given}"
            );
        }
    }

    #[test]
    fn what_is_no_url_is_named_as_such() {
        for given in ["", "login.salesforce.com", "localhost:7011", "https://"] {
            assert_eq!(Origin::parse(given), Err(InvalidOrigin::NotAUrl), "{given}");
        }
        assert_eq!(
            Origin::parse("https://user:secret@acme.example"),
            Err(InvalidOrigin::Credentials)
        );
    }

    #[test]
    fn messages_name_host_and_port() {
        let authority = |url| Origin::parse(url).unwrap().authority();
        assert_eq!(
            authority("https://api.pubsub.salesforce.com"),
            "api.pubsub.salesforce.com:443"
        );
        assert_eq!(authority("http://[::1]:7011"), "[::1]:7011");
    }
}
