//! Who may see the status page and press its buttons: whoever has the token.
//!
//! It is given as a Bearer token, as the password of basic auth, or at the sign-in form, which answers with a
//! cookie. The cookie is not the token but a signed time until which it counts, so that the server keeps no state
//! and a new token ends every session.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::uri::{Authority, PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

/// How long a sign-in at the form lasts: a working day.
pub(super) const SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// The session's cookie. The prefix keeps pages of other hosts under the same domain from setting it; a browser
/// takes it only with `Secure`.
const SECURE_COOKIE: &str = "__Host-orgstream";

/// The same where there is no TLS.
const PLAIN_COOKIE: &str = "orgstream";

/// By what the browser came to a proxy in front of us.
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Checks what requests bring along.
pub(super) struct Auth {
    /// Of the token; comparing digests tells nothing of its length.
    digest: [u8; 32],
    sessions: hmac::Key,
    forms: hmac::Key,
}

/// How somebody was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Visitor {
    /// Signed in at the form. The text before the signature, which is different for each sign-in.
    Session(String),
    /// Basic auth, which a browser sends along by itself, even where another site's page made the request.
    Basic,
    /// A Bearer token, which no browser sends by itself.
    Bearer,
}

/// What the credentials of a request are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Good.
    Good(Visitor),
    /// There are none.
    Missing,
    /// A token that is not ours: somebody guesses, or has an old one.
    Wrong,
}

impl Auth {
    /// Lets those in who have this token.
    pub(super) fn new(token: &SecretString) -> Self {
        let token = token.expose_secret().as_bytes();
        let root = hmac::Key::new(HMAC_SHA256, token);
        let derived = |purpose: &[u8]| {
            let key = hmac::sign(&root, purpose);
            hmac::Key::new(HMAC_SHA256, key.as_ref())
        };
        Self {
            digest: sha256(token),
            sessions: derived(b"orgstream web: sessions"),
            forms: derived(b"orgstream web: forms"),
        }
    }

    /// True for the token itself.
    pub(super) fn is_token(&self, given: &str) -> bool {
        verify_slices_are_equal(&sha256(given.as_bytes()), &self.digest).is_ok()
    }

    /// What a request brings along, at this time.
    pub(super) fn credentials(&self, headers: &HeaderMap, now: SystemTime) -> Credentials {
        if let Some(given) = headers.get(AUTHORIZATION) {
            let given = given.to_str().unwrap_or_default();
            let (scheme, rest) = given.split_once(' ').unwrap_or((given, ""));
            let (token, visitor) = if scheme.eq_ignore_ascii_case("bearer") {
                (Some(rest.trim().to_owned()), Visitor::Bearer)
            } else if scheme.eq_ignore_ascii_case("basic") {
                (password(rest), Visitor::Basic)
            } else {
                (None, Visitor::Basic)
            };
            return match token {
                Some(token) if self.is_token(&token) => Credentials::Good(visitor),
                _ => Credentials::Wrong,
            };
        }
        // An old cookie is not a guess: it counts as none.
        match cookie(headers).and_then(|value| self.session(&value, now)) {
            Some(session) => Credentials::Good(Visitor::Session(session)),
            None => Credentials::Missing,
        }
    }

    /// The value of a new session's cookie.
    pub(super) fn new_session(&self, now: SystemTime) -> String {
        let nonce = uuid::Uuid::new_v4().simple();
        let session = format!("{}.{nonce}", seconds(now + SESSION));
        let signature = hex::encode(hmac::sign(&self.sessions, session.as_bytes()));
        format!("{session}.{signature}")
    }

    /// The session that a cookie's value proves, if it lasts still.
    fn session(&self, value: &str, now: SystemTime) -> Option<String> {
        let (session, signature) = value.rsplit_once('.')?;
        let signature = hex::decode(signature).ok()?;
        hmac::verify(&self.sessions, session.as_bytes(), &signature).ok()?;
        let (until, _) = session.split_once('.')?;
        (until.parse::<u64>().ok()? > seconds(now)).then(|| session.to_owned())
    }

    /// What a form has to carry so that its request counts: no other site's page can know it.
    pub(super) fn form_token(&self, visitor: &Visitor) -> String {
        let of = match visitor {
            Visitor::Session(session) => session.as_str(),
            Visitor::Basic => "basic",
            Visitor::Bearer => "bearer",
        };
        hex::encode(hmac::sign(&self.forms, of.as_bytes()))
    }

    /// True where a form carries what it has to. A Bearer token needs no form: no page can make a browser send it.
    pub(super) fn form_counts(&self, visitor: &Visitor, given: Option<&str>) -> bool {
        let expected = self.form_token(visitor);
        *visitor == Visitor::Bearer
            || given.is_some_and(|given| {
                verify_slices_are_equal(given.as_bytes(), expected.as_bytes()).is_ok()
            })
    }
}

/// `Set-Cookie` for a session's value.
pub(super) fn set_cookie(value: &str, secure: bool) -> String {
    let age = SESSION.as_secs();
    let (name, more) = cookie_kind(secure);
    format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{more}")
}

/// `Set-Cookie` that ends a session in this browser.
pub(super) fn clear_cookie(secure: bool) -> String {
    let (name, more) = cookie_kind(secure);
    format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict{more}")
}

fn cookie_kind(secure: bool) -> (&'static str, &'static str) {
    if secure {
        (SECURE_COOKIE, "; Secure")
    } else {
        (PLAIN_COOKIE, "")
    }
}

/// The value of our cookie. The plain one counts only where it would have been set.
fn cookie(headers: &HeaderMap) -> Option<String> {
    let (name, _) = cookie_kind(is_secure(headers));
    let all = headers.get_all(COOKIE).iter();
    let pairs = all.filter_map(|line| line.to_str().ok());
    pairs
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(given, _)| *given == name)
        .map(|(_, value)| value.to_owned())
}

/// True where the browser should send the cookie over TLS alone: whenever the page does not come from the
/// browser's own machine. Where something in front of us says how it came, it does not, whatever the `Host` is by then.
pub(super) fn is_secure(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED_PROTO) || !host(headers).is_some_and(is_loopback)
}

/// True where something in front of us says that it speaks TLS with the browser.
pub(super) fn is_https(headers: &HeaderMap) -> bool {
    came_by(headers, "https")
}

/// True where it says that it does not.
pub(super) fn is_plain_http(headers: &HeaderMap) -> bool {
    came_by(headers, "http")
}

fn came_by(headers: &HeaderMap, scheme: &str) -> bool {
    let proto = headers.get(FORWARDED_PROTO);
    proto.is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(scheme.as_bytes()))
}

/// The same address by TLS; `None` where the request does not name a host.
pub(super) fn with_tls(headers: &HeaderMap, uri: &Uri) -> Option<HeaderValue> {
    let host: Authority = host(headers)?.parse().ok()?;
    // The port of plain HTTP is not that of TLS.
    let host = host.as_str().trim_end_matches(":80");
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    HeaderValue::from_str(&format!("https://{host}{path}")).ok()
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(HOST)?.to_str().ok()
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// True unless the browser says that a page of another site made this request.
pub(super) fn is_from_our_page(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        // `none`: a person did it, by a bookmark or by loading the page again.
        return matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    matches!((origin, host(headers)), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// The password of basic auth.
fn password(encoded: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.split_once(':')?.1.to_owned())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a token that is long enough";

    fn auth() -> Auth {
        Auth::new(&TOKEN.into())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            let name = axum::http::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn credentials(pairs: &[(&'static str, &str)]) -> Credentials {
        auth().credentials(&headers(pairs), SystemTime::now())
    }

    #[test]
    fn the_token_is_good_as_bearer_and_as_any_users_password_and_nothing_else_is() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        let good = |given: &str| credentials(&[("authorization", given)]);
        let bearer = Credentials::Good(Visitor::Bearer);
        assert_eq!(good(&format!("Bearer {TOKEN}")), bearer);
        assert_eq!(good(&format!("bearer  {TOKEN}")), bearer);
        for user in ["", "anybody", "a b"] {
            let given = basic(&format!("{user}:{TOKEN}"));
            assert_eq!(good(&given), Credentials::Good(Visitor::Basic));
        }
        for wrong in [
            format!("Bearer {}", &TOKEN[..26]),
            format!("Bearer {TOKEN}x"),
            "Bearer ".to_owned(),
            "Bearer".to_owned(),
            TOKEN.to_owned(),
            basic(TOKEN),
            basic(&format!("{TOKEN}:")),
            format!("Basic {TOKEN}"),
            format!("Digest {TOKEN}"),
        ] {
            assert_eq!(good(&wrong), Credentials::Wrong, "{wrong}");
        }
        assert_eq!(credentials(&[]), Credentials::Missing);
    }

    #[test]
    fn a_session_lasts_its_time_and_ends_with_the_token_and_is_not_the_token() {
        let now = SystemTime::now();
        let auth = auth();
        let value = auth.new_session(now);
        assert!(!value.contains(TOKEN));
        let seen = |value: &str, at| {
            let cookie = format!("other=1; {PLAIN_COOKIE}={value}");
            let headers = headers(&[("host", "127.0.0.1:8080"), ("cookie", &cookie)]);
            auth.credentials(&headers, at)
        };
        let good = |found| matches!(found, Credentials::Good(Visitor::Session(_)));
        assert!(good(seen(&value, now)));
        assert!(good(seen(&value, now + SESSION - Duration::from_secs(2))));
        assert!(!good(seen(&value, now + SESSION)));
        // Nobody can make it last longer, or make one.
        let (_, rest) = value.split_once('.').unwrap();
        let later = seconds(now) + 10 * SESSION.as_secs();
        assert!(!good(seen(&format!("{later}.{rest}"), now)));
        assert!(!good(seen("", now)) && !good(seen("..", now)));
        let other = Auth::new(&"another token, as long".into());
        assert!(!good(seen(&other.new_session(now), now)));
        assert_ne!(auth.new_session(now), value);
    }

    #[test]
    fn over_tls_the_cookie_is_for_this_host_and_tls_alone() {
        let https = [("host", "a.example"), ("x-forwarded-proto", "https")];
        assert!(is_secure(&headers(&https)));
        assert!(is_secure(&headers(&[("host", "a.example")])));
        // A proxy that names itself as the host.
        for scheme in ["https", "http"] {
            let proxied = [("host", "127.0.0.1:8080"), ("x-forwarded-proto", scheme)];
            assert!(is_secure(&headers(&proxied)), "{scheme}");
        }
        assert!(is_secure(&headers(&[])));
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080"] {
            assert!(!is_secure(&headers(&[("host", host)])), "{host}");
        }
        let set = set_cookie("v", true);
        for part in [
            "__Host-",
            "; Secure",
            "HttpOnly",
            "SameSite=Strict",
            "Path=/;",
        ] {
            assert!(set.contains(part), "{set}");
        }
        assert!(!set_cookie("v", false).contains("Secure"));
        // Where it would not be set, the plain one does not count.
        let value = auth().new_session(SystemTime::now());
        let cookie = format!("{PLAIN_COOKIE}={value}");
        let found = credentials(&[("host", "a.example"), ("cookie", &cookie)]);
        assert_eq!(found, Credentials::Missing);
    }

    #[test]
    fn a_form_counts_for_the_session_that_it_was_shown_to() {
        let (auth, now) = (auth(), SystemTime::now());
        let one = Visitor::Session(auth.new_session(now));
        let other = Visitor::Session(auth.new_session(now));
        let token = auth.form_token(&one);
        assert!(auth.form_counts(&one, Some(&token)));
        assert!(!auth.form_counts(&other, Some(&token)));
        assert!(!auth.form_counts(&Visitor::Basic, Some(&token)));
        assert!(!auth.form_counts(&one, None) && !auth.form_counts(&one, Some("")));
        assert!(!auth.form_counts(&Visitor::Basic, None));
        assert!(auth.form_counts(&Visitor::Bearer, None));
    }

    #[test]
    fn a_request_that_another_sites_page_made_is_known_by_what_the_browser_says() {
        let ours = |pairs: &[(&'static str, &str)]| {
            let host = [("host", "a.example:8080")];
            let all: Vec<_> = pairs.iter().copied().chain(host).collect();
            is_from_our_page(&headers(&all))
        };
        assert!(ours(&[]));
        assert!(ours(&[("sec-fetch-site", "same-origin")]));
        assert!(ours(&[("origin", "http://a.example:8080")]));
        for pairs in [
            [("sec-fetch-site", "cross-site")],
            [("sec-fetch-site", "same-site")],
            [("origin", "https://b.example")],
            [("origin", "http://a.example:8081")],
            [("origin", "null")],
        ] {
            assert!(!ours(&pairs), "{pairs:?}");
        }
    }
}
