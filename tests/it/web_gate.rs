//! Who gets as far as the status page: past wrong tokens, proxies, lines without TLS, ended sessions.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode};

use crate::support::page::{TOKEN, Web, quiet_store};

/// A proxy in front, which writes down whom it was called by.
const PROXY: (&str, &str) = ("ORGSTREAM_WEB_BEHIND_PROXY", "true");

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

/// Wrong tokens until they are too many.
async fn guess_until_held_up(guess: impl Fn() -> RequestBuilder) {
    for n in 0..40 {
        match status(guess().bearer_auth(format!("guess {n}"))).await {
            StatusCode::UNAUTHORIZED => {}
            StatusCode::TOO_MANY_REQUESTS => return,
            other => panic!("{other}"),
        }
    }
    panic!("40 wrong tokens are not too many");
}

#[tokio::test]
async fn who_guesses_is_held_up_and_the_right_token_opens_from_the_same_address() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    guess_until_held_up(|| web.get("/metrics")).await;
    let again = web
        .get("/metrics")
        .bearer_auth("guess")
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(again.headers().contains_key("retry-after"));
    let form = web.post("/sign-in", &[("token", "guess")]);
    assert_eq!(status(form).await, StatusCode::TOO_MANY_REQUESTS);
    // A stranger who comes through the same proxy, or guesses for ever, keeps nobody out.
    assert!(web.metrics().await.contains("orgstream_stored_up 1"));
    web.sign_in().await.page("/").await;
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn behind_a_proxy_addresses_are_told_apart_by_what_it_adds_and_by_nothing_else() {
    let store = quiet_store().await;
    let web = Web::start_with(&store, "", &[PROXY]).await;
    // What the client says of itself stands before what the proxy has seen.
    let from = |lines: &'static str| web.get("/metrics").header("x-forwarded-for", lines);
    guess_until_held_up(|| from("198.51.100.7, 203.0.113.1")).await;
    let guess = async |lines| status(from(lines).bearer_auth("guess")).await;
    assert_eq!(guess("203.0.113.1").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        guess("10.9.9.9, 203.0.113.1").await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(guess("203.0.113.2").await, StatusCode::UNAUTHORIZED);
    assert_eq!(
        guess("203.0.113.1, 203.0.113.3").await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(web.daemon.stop().await.1, 0);
    // Where nobody said that there is a proxy, anybody can write the header.
    let web = Web::start(&store, "").await;
    let mut last = 0;
    guess_until_held_up(|| web.get("/metrics").header("x-forwarded-for", "203.0.113.1")).await;
    while last < 3 {
        last += 1;
        let other = web
            .get("/metrics")
            .header("x-forwarded-for", format!("10.1.1.{last}"));
        let answer = status(other.bearer_auth("guess")).await;
        assert_eq!(answer, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn without_tls_nothing_is_served_and_no_secret_is_taken() {
    let store = quiet_store().await;
    let web = Web::start_with(&store, "", &[PROXY]).await;
    let plain = |request: RequestBuilder| {
        request
            .header("x-forwarded-proto", "http")
            .header("host", "status.example")
    };
    for path in [
        "/",
        "/sign-in?next=/holes",
        "/static/style.css",
        "/holes?all=1",
    ] {
        let answer = plain(web.get(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::PERMANENT_REDIRECT, "{path}");
        let to = format!("https://status.example{path}");
        assert_eq!(answer.headers()["location"], to.as_str());
        assert!(!answer.headers().contains_key("set-cookie"));
    }
    for request in [
        web.post("/sign-in", &[("token", TOKEN)]),
        web.get("/metrics").bearer_auth(TOKEN),
        web.get("/").basic_auth("x", Some(TOKEN)),
    ] {
        let answer = plain(request).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(!answer.headers().contains_key("set-cookie"));
        let text = answer.text().await.unwrap();
        assert!(
            text.contains("without TLS") && !text.contains(TOKEN),
            "{text}"
        );
    }
    // A load balancer looks after it without.
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(plain(web.get(path))).await, StatusCode::OK, "{path}");
    }
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// As a proxy hands a request on that came to it by TLS.
fn by_tls(request: RequestBuilder) -> RequestBuilder {
    request
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-for", "203.0.113.1")
        .header("host", "status.example")
}

#[tokio::test]
async fn behind_tls_the_session_is_for_tls_alone_and_browsers_come_by_nothing_else() {
    let store = quiet_store().await;
    let web = Web::start_with(&store, "", &[PROXY]).await;
    let form = by_tls(web.get("/sign-in")).send().await.unwrap();
    assert_eq!(form.status(), StatusCode::OK);
    let hsts = form.headers()["strict-transport-security"]
        .to_str()
        .unwrap();
    assert!(hsts.starts_with("max-age="), "{hsts}");
    let text = form.text().await.unwrap();
    assert!(!text.contains("did not come over TLS"), "{text}");
    let signed = by_tls(web.post("/sign-in", &[("token", TOKEN), ("next", "/holes")]));
    let signed = signed.send().await.unwrap();
    assert_eq!(signed.headers()["location"], "/holes");
    let cookie = signed.headers()["set-cookie"].to_str().unwrap();
    assert!(
        cookie.starts_with("__Host-orgstream=") && cookie.contains("; Secure"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap();
    let page = by_tls(web.get("/").header("cookie", cookie));
    assert_eq!(status(page).await, StatusCode::OK);
    // A name without TLS, as in a network of one's own: the form says that others can read the token.
    let bare = web.get("/sign-in").header("host", "status.example");
    let bare = bare.send().await.unwrap();
    assert!(!bare.headers().contains_key("strict-transport-security"));
    let text = bare.text().await.unwrap();
    assert!(text.contains("did not come over TLS"), "{text}");
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// What is offered to somebody without a session.
fn offered(answer: &Response) -> Vec<String> {
    let all = answer.headers().get_all("www-authenticate").iter();
    all.map(|one| one.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_page_whose_session_ended_leads_to_the_form_and_asks_for_no_password_itself() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    // The page's script and its stream: a browser would ask for a name and a password, where Basic is offered.
    for mode in ["cors", "same-origin", "no-cors"] {
        let answer = web.get("/events?page=/").header("sec-fetch-mode", mode);
        let answer = answer.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(offered(&answer), ["Bearer realm=\"orgstream\""], "{mode}");
    }
    let scripted = web.get("/metrics").send().await.unwrap();
    assert_eq!(offered(&scripted).len(), 2);
    // A button leads to the page that it is on.
    let pressed = web
        .post("/holes/7/acknowledge", &[("form_token", "x")])
        .header("accept", "text/html")
        .header("referer", format!("{}/holes?all=1", web.url))
        .send()
        .await
        .unwrap();
    assert_eq!(pressed.status(), StatusCode::SEE_OTHER);
    let to = pressed.headers()["location"].to_str().unwrap();
    assert_eq!(to, "/sign-in?next=%2Fholes%3Fall%3D1");
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn styles_of_another_release_are_not_kept() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    let form = web
        .get("/sign-in")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let ours = form
        .split('"')
        .find(|text| text.starts_with("/static/style.css?v="));
    for (path, kept) in [
        (ours.unwrap(), "public, max-age=604800"),
        ("/static/style.css?v=000000000000", "no-store"),
        ("/static/style.css", "no-store"),
    ] {
        let answer = web.get(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["cache-control"], kept, "{path}");
    }
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn as_many_pages_as_there_is_room_for_are_kept_up_to_date_and_one_more_is_told() {
    let store = quiet_store().await;
    let web = Web::start(&store, "").await;
    let cookie = web.sign_in().await.cookie;
    let open = async || {
        let request = web.get("/events?page=/").header("cookie", &cookie);
        request.send().await.unwrap()
    };
    let mut streams = Vec::new();
    for _ in 0..64 {
        let stream = open().await;
        assert_eq!(stream.status(), StatusCode::OK);
        assert_eq!(stream.headers()["x-accel-buffering"], "no");
        streams.push(stream);
    }
    assert_eq!(open().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    // The rest goes on, and a page that is closed makes room.
    web.sign_in().await.page("/").await;
    assert!(web.metrics().await.contains("orgstream_stored_up 1"));
    for stream in &mut streams {
        let part = stream.chunk().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&part).contains("event: parts"));
    }
    streams.truncate(32);
    crate::support::eventually("room", async || {
        (open().await.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn streams_and_slow_clients_do_not_hold_the_end_up() {
    let store = quiet_store().await;
    let mut web = Web::start(&store, "").await;
    let cookie = web.sign_in().await.cookie;
    let events = web.get("/events?page=/").header("cookie", &cookie);
    let stream = events.send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    let addr = web.url.trim_start_matches("http://").to_owned();
    let _idle = tokio::net::TcpStream::connect(&addr).await.unwrap();
    web.daemon.signal("TERM");
    let status = web.daemon.ended_within(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0));
    drop(stream);
}
