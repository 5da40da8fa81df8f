//! Addresses of other hosts: scheme, host and port, and nothing that could leak a token.

use std::net::IpAddr;

/// Scheme, host and port of an address, without a trailing slash. `https://` may be left out; `http://`
/// is only for a loopback address, because tokens travel over it.
pub(super) fn origin(text: &str) -> Result<String, String> {
    const EXPECTED: &str =
        "expected https:// and a host, with a port where needed, and nothing after it";
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: http::Uri = full.parse().map_err(|_| EXPECTED.to_owned())?;
    let authority = uri.authority().ok_or(EXPECTED)?;
    if authority.as_str().contains('@') {
        return Err("must not hold a user name or password".to_owned());
    }
    let host = uri.host().unwrap_or_default();
    let good_port = match authority.as_str().strip_prefix(host) {
        Some("") => true,
        Some(port) => uri
            .port_u16()
            .is_some_and(|number| number > 0 && port.len() > 1),
        None => false,
    };
    if host.is_empty() || !good_port || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(EXPECTED.to_owned());
    }
    match uri.scheme_str() {
        Some("https") => Ok(format!("https://{authority}")),
        Some("http") if is_loopback(host) => Ok(format!("http://{authority}")),
        Some("http") => Err(
            "http:// is only for a loopback address (localhost, 127.0.0.1, [::1]); use https://"
                .to_owned(),
        ),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// An [`origin`] that answers OAuth requests: not the addresses people copy from a browser's address bar.
pub(super) fn login_origin(text: &str) -> Result<String, String> {
    let origin = origin(text)?;
    let host = origin.split("://").nth(1).unwrap_or(&origin);
    for browser in [".lightning.force.com", ".my.salesforce-setup.com"] {
        if host.ends_with(browser) {
            return Err(format!(
                "an address under {browser} is for browsers; use the org's My Domain, such as \
                 https://acme.my.salesforce.com (Setup, My Domain)"
            ));
        }
    }
    Ok(origin)
}

/// True for an [`origin`] on this machine.
pub(super) fn is_loopback_origin(origin: &str) -> bool {
    origin
        .parse::<http::Uri>()
        .is_ok_and(|uri| uri.host().is_some_and(is_loopback))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_reduced_to_scheme_host_and_port() {
        for (text, expected) in [
            (
                "https://login.salesforce.com/",
                "https://login.salesforce.com",
            ),
            (
                "api.pubsub.salesforce.com:7443",
                "https://api.pubsub.salesforce.com:7443",
            ),
            ("http://127.0.0.1:7011", "http://127.0.0.1:7011"),
            ("http://[::1]:7011/", "http://[::1]:7011"),
            ("http://localhost", "http://localhost"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "http://login.salesforce.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "https://",
            "https://user:pw@host",
            "https://host/services/oauth2/token",
            "https://host?x=1",
            "https://host:",
            "https://host:99999",
            "ftp://host",
            "a b",
            "/relative",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_out_of_a_browser_name_the_right_one() {
        let error = login_origin("https://acme.lightning.force.com").unwrap_err();
        assert!(error.contains("my.salesforce.com"), "{error}");
        assert!(login_origin("https://acme.my.salesforce.com").is_ok());
    }
}
