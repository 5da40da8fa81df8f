//! What every request passes before it reaches a page, and every answer on its way back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERER,
    REFERRER_POLICY, RETRY_AFTER, SET_COOKIE, STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tracing::warn;

use super::App;
use super::auth::{self, Credentials, Visitor};
use super::pages::{Problem, sign_in};
use super::server::Peer;

/// How long an answer may take; what is under way in the store is waited for no longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What a browser may do with our pages: show them, with our own style, script and images, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// How long a browser that was here by TLS comes by nothing else: a year.
const TLS_ONLY: &str = "max-age=31536000";

/// What is open to everyone, and asked for by machines on the way as well.
pub(super) const HEALTHZ: &str = "/healthz";
pub(super) const READYZ: &str = "/readyz";

/// Lets nothing pass that a proxy in front says came without TLS: who comes to look is led to the same by TLS, and what
/// brings a secret along is told that others could read it.
pub(super) async fn by_tls(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let came_by_tls = auth::is_https(headers);
    let open = [HEALTHZ, READYZ].contains(&request.uri().path());
    if auth::is_plain_http(headers) && !open {
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        let to = auth::with_tls(headers, request.uri());
        return match to.filter(|_| looks && !headers.contains_key(AUTHORIZATION)) {
            Some(to) => (StatusCode::PERMANENT_REDIRECT, [(LOCATION, to)]).into_response(),
            None => Problem::not_by_tls().into_response(),
        };
    }
    let mut response = next.run(request).await;
    if came_by_tls {
        let value = HeaderValue::from_static(TLS_ONLY);
        response
            .headers_mut()
            .insert(STRICT_TRANSPORT_SECURITY, value);
    }
    response
}

/// Bounds the answer in time, and tells browsers how to treat it.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(ANSWER_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::too_slow().into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // With less, a browser would not say where a form comes from.
        (REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let no_store = HeaderValue::from_static("no-store");
    headers.entry(CACHE_CONTROL).or_insert(no_store);
    response
}

/// Lets those in who have the token, and leads people with a browser to the form.
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let visitor = match app.auth.credentials(headers, SystemTime::now()) {
        Credentials::Good(visitor) => visitor,
        Credentials::Missing if is_a_visit(&request) => return to_sign_in(&request),
        Credentials::Missing => return unauthorized(headers, "a token is needed\n"),
        Credentials::Wrong if wrong(&app, peer, headers).await => return too_many(),
        Credentials::Wrong => return unauthorized(headers, "this is not the token\n"),
    };
    if !request.method().is_safe() && !auth::is_from_our_page(headers) {
        return Problem::other_site().into_response();
    }
    request.extensions_mut().insert(visitor);
    next.run(request).await
}

/// Notes that a token was wrong. True where too many were from there lately; that is told after a moment.
async fn wrong(app: &App, peer: Peer, headers: &HeaderMap) -> bool {
    let from = address(app, peer, headers);
    let too_many = app.guesses.wrong(from, Instant::now());
    if too_many {
        app.guesses.hold_back().await;
    } else {
        warn!(%from, "a wrong token was given");
    }
    too_many
}

/// That a token is needed. Basic auth is offered to those alone that are no script of a page: a browser would ask a
/// person for a name and a password, in the middle of a page that was open already.
fn unauthorized(headers: &HeaderMap, why: &'static str) -> Response {
    let mut response = (StatusCode::UNAUTHORIZED, why).into_response();
    let offered = response.headers_mut();
    let bearer = HeaderValue::from_static("Bearer realm=\"orgstream\"");
    offered.append(WWW_AUTHENTICATE, bearer);
    let mode = headers.get("sec-fetch-mode");
    if mode.is_none_or(|mode| mode.as_bytes() == b"navigate") {
        let basic = HeaderValue::from_static("Basic realm=\"orgstream\", charset=\"UTF-8\"");
        offered.append(WWW_AUTHENTICATE, basic);
    }
    response
}

fn too_many() -> Response {
    let text = "this is not the token, and too many wrong ones came from your address lately\n";
    let retry = (RETRY_AFTER, HeaderValue::from_static("5"));
    (StatusCode::TOO_MANY_REQUESTS, [retry], text).into_response()
}

/// Where a request comes from.
fn address(app: &App, peer: Peer, headers: &HeaderMap) -> IpAddr {
    let last = headers.get_all("x-forwarded-for").iter().next_back();
    let routed = last
        .filter(|_| app.behind_proxy)
        .and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    routed.unwrap_or(peer.0)
}

/// True for a person who opens a page or presses a button.
fn is_a_visit(request: &Request) -> bool {
    let accept = request.headers().get(ACCEPT);
    let html = accept.is_some_and(|accept| accept.to_str().is_ok_and(|a| a.contains("text/html")));
    matches!(*request.method(), Method::GET | Method::POST) && html
}

/// Leads to the form, and from there to the page that was asked for; where a button was pressed, to the page it is on.
fn to_sign_in(request: &Request) -> Response {
    let page = if request.method() == Method::GET {
        request.uri().path_and_query().cloned()
    } else {
        came_from(request.headers())
    };
    let wanted = page.as_ref().map_or("/", |page| page.as_str());
    let next: String = form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
    see_other(&format!("/sign-in?next={next}"))
}

/// The page of ours that a request came from.
fn came_from(headers: &HeaderMap) -> Option<PathAndQuery> {
    let page: Uri = headers.get(REFERER)?.to_str().ok()?.parse().ok()?;
    page.path_and_query().cloned()
}

/// Leads a browser to another page of ours.
pub(super) fn see_other(path: &str) -> Response {
    let location = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response()
}

/// Where to go once signed in.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    next: String,
}

impl Wanted {
    /// A path of ours; the first page where it is anything else, which would lead people elsewhere.
    fn path(&self) -> &str {
        let ours = self.next.starts_with('/')
            && !self.next.starts_with("//")
            && self.next.len() < 2000
            && self
                .next
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if ours { &self.next } else { "/" }
    }
}

/// The form.
pub(super) async fn sign_in_form(Query(wanted): Query<Wanted>, headers: HeaderMap) -> Response {
    let plain = !auth::is_https(&headers) && auth::is_secure(&headers);
    sign_in(wanted.path(), None, plain).into_response()
}

/// What came of it.
pub(super) async fn sign_in_now(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = match Form::read(&headers, &body) {
        Ok(form) => form,
        Err(problem) => return problem.into_response(),
    };
    if !auth::is_from_our_page(&headers) {
        return Problem::other_site().into_response();
    }
    let wanted = Wanted {
        next: form.get("next").unwrap_or_default().to_owned(),
    };
    let secure = auth::is_secure(&headers);
    let plain = secure && !auth::is_https(&headers);
    let token = form.get("token").unwrap_or_default();
    if !app.auth.is_token(token.trim()) {
        let (status, why) = if wrong(&app, peer, &headers).await {
            let why =
                "This is not the token, and too many wrong ones came from your address lately.";
            (StatusCode::TOO_MANY_REQUESTS, why)
        } else {
            (StatusCode::UNAUTHORIZED, "This is not the token.")
        };
        return (status, sign_in(wanted.path(), Some(why), plain)).into_response();
    }
    let session = app.auth.new_session(SystemTime::now());
    with_cookie(
        see_other(wanted.path()),
        &auth::set_cookie(&session, secure),
    )
}

/// Ends the session in this browser.
pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match Form::checked(&app, &visitor, &headers, &body) {
        Ok(_) => {
            let cookie = auth::clear_cookie(auth::is_secure(&headers));
            with_cookie(see_other("/sign-in"), &cookie)
        }
        Err(problem) => problem.into_response(),
    }
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().append(SET_COOKIE, value);
    }
    response
}

/// What a form of ours sent.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, Problem> {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let kind = kind.unwrap_or_default();
        if !body.is_empty() && !kind.starts_with(b"application/x-www-form-urlencoded") {
            return Err(Problem::no_form());
        }
        let pairs = form_urlencoded::parse(body).into_owned();
        Ok(Self(pairs.collect()))
    }

    /// A form that this visitor was shown.
    ///
    /// # Errors
    ///
    /// A page that says that it was not, most often because it was shown long ago.
    pub(super) fn checked(
        app: &App,
        visitor: &Visitor,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Self, Problem> {
        let form = Self::read(headers, body)?;
        if app.auth.form_counts(visitor, form.get("form_token")) {
            Ok(form)
        } else {
            Err(Problem::old_form())
        }
    }

    /// The value of a field; blank counts as left out.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(field, _)| field == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_to_our_own_pages_only() {
        let path = |next: &str| {
            let wanted = Wanted { next: next.into() };
            wanted.path().to_owned()
        };
        for ours in ["/", "/dead-letters?state=open&page=2", "/subscriptions/a"] {
            assert_eq!(path(ours), ours);
        }
        for other in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example/",
            "javascript:alert(1)",
            "/a\r\nSet-Cookie: x",
        ] {
            assert_eq!(path(other), "/", "{other:?}");
        }
    }
}
