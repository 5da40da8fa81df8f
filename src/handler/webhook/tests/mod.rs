//! The webhook handler against real servers on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use axum::routing::any;
use axum::serve::ListenerExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod options;
mod reach;
mod sent;

use super::super::Registry;
use super::super::testing::{batch, config};
use super::*;

/// A server that keeps what it receives and answers as told; ends with its value.
struct Receiver {
    origin: String,
    seen: Arc<Mutex<Vec<Request<Bytes>>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Receiver {
    async fn start(respond: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let answer = any(async move |request: Request<Body>| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            keep.lock().unwrap().push(Request::from_parts(parts, body));
            respond()
        });
        let router = Router::new().fallback(answer);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let listener = listener.tap_io(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            origin,
            seen,
            connections,
            task,
        }
    }

    async fn answering(status: u16, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self::start(move || {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            response.body(Body::from("hidden")).unwrap()
        })
        .await
    }

    fn handler(&self, options: &str) -> Arc<dyn Handler> {
        handler(&format!("{}/salesforce?code=hidden", self.origin), options)
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn handler(url: &str, options: &str) -> Arc<dyn Handler> {
    let config = config("webhook", &format!("url = '{url}'\n{options}"));
    Registry::builtin().build(&config).unwrap()
}

async fn answer(handler: &dyn Handler) -> Answer {
    match handler.handle(&batch(&["{}"])).await {
        BatchAnswer::All(answer) => answer,
        BatchAnswer::Each(answers) => panic!("{answers:?}"),
    }
}

fn retry(answer: Answer) -> Retry {
    match answer {
        Answer::Retry(retry) => {
            assert!(!retry.reason.contains("hidden"), "{}", retry.reason);
            retry
        }
        other => panic!("{other:?}"),
    }
}

/// An address where nobody listens.
async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn an_event_is_one_structured_cloud_event() {
    let receiver = Receiver::answering(204, &[]).await;
    let handler = receiver.handler("headers = { Authorization = 'Bearer x', X-Tenant = 'acme' }");
    let events = batch(&[r#"{"Amount__c":12.5}"#]);
    assert_eq!(handler.handle(&events).await, BatchAnswer::HANDLED);

    let seen = receiver.seen.lock().unwrap();
    let [request] = &seen[..] else {
        panic!("{} requests", seen.len());
    };
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "/salesforce?code=hidden");
    let identity = events.events[0].identity();
    let agent = format!("orgstream/{}", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        (
            "content-type",
            "application/cloudevents+json; charset=utf-8",
        ),
        ("idempotency-key", &format!("orders:{identity}")),
        ("user-agent", &agent),
        ("authorization", "Bearer x"),
        ("x-tenant", "acme"),
    ] {
        assert_eq!(request.headers()[name], value);
    }
    assert!(!request.headers().contains_key("webhook-id"));
    let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(body["id"], identity.as_str());
    assert_eq!(body["type"], "com.salesforce.event.Order__e.v1");
    assert_eq!(body["data"]["Amount__c"], 12.5);
}

#[tokio::test]
async fn every_status_has_its_answer() {
    for status in (200..600).filter(|status| status % 100 < 32 || *status == 451 || *status == 599)
    {
        let receiver = Receiver::answering(status, &[]).await;
        let answer = answer(&*receiver.handler("")).await;
        match status {
            200..=299 => assert_eq!(answer, Answer::Handled, "{status}"),
            400 | 413 | 415 | 422 => match answer {
                Answer::Reject { reason } => {
                    assert!(reason.contains(&status.to_string()), "{reason}");
                    assert!(!reason.contains("hidden"), "{reason}");
                }
                other => panic!("{status}: {other:?}"),
            },
            _ => {
                let retry = retry(answer);
                assert!(
                    retry.reason.contains(&status.to_string()),
                    "{}",
                    retry.reason
                );
                assert_eq!(retry.after, None);
                // Where the receiver says that it is not for the event, it is not held against it.
                assert_eq!(
                    retry.counts,
                    ![401, 407, 429, 507].contains(&status),
                    "{status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn retry_after_is_passed_on() {
    for (value, after) in [("7", Some(7)), ("86400", Some(3600)), ("soon", None)] {
        let receiver = Receiver::start(move || {
            let response = Response::builder().status(503).header("retry-after", value);
            response.body(Body::empty()).unwrap()
        })
        .await;
        let retry = retry(answer(&*receiver.handler("")).await);
        assert_eq!(retry.after, after.map(Duration::from_secs), "{value}");
        assert_eq!(retry.counts, after.is_none(), "{value}");
    }
    let headers = &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")];
    let receiver = Receiver::answering(429, headers).await;
    let retry = retry(answer(&*receiver.handler("")).await);
    assert_eq!(retry.after, Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Receiver::answering(200, &[]).await;
    let location = format!("{}/elsewhere", target.origin);
    let receiver = Receiver::start(move || {
        let response = Response::builder()
            .status(307)
            .header("location", &location);
        response.body(Body::empty()).unwrap()
    })
    .await;
    let retry = retry(answer(&*receiver.handler("")).await);
    assert!(retry.reason.contains("307"), "{}", retry.reason);
    assert_eq!((receiver.requests(), target.requests()), (1, 0));
}

#[tokio::test]
async fn a_refused_connection_is_a_retry() {
    let url = format!("{}/?code=hidden", nowhere().await);
    let handler = handler(&url, "headers = { Authorization = 'hidden' }");
    let retry = retry(answer(&*handler).await);
    assert!(
        retry.reason.contains("onnection refused"),
        "{}",
        retry.reason
    );
    assert!(!retry.counts, "it had nothing of the event");
}

#[tokio::test]
async fn silence_is_a_retry_after_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok(connection) = listener.accept().await {
            open.push(connection);
        }
    });
    let begun = Instant::now();
    let retry = retry(answer(&*handler(&url, "timeout = '100ms'")).await);
    assert!(retry.reason.contains("within 100ms"), "{}", retry.reason);
    assert!(retry.counts, "it may be what it does with this event");
    assert!(begun.elapsed() < Duration::from_secs(10));
    silent.abort();
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_a_retry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(b"hidden \x1b[31m\r\n\r\n").await;
        }
    });
    retry(answer(&*handler(&url, "")).await);
    // The same port asked for TLS: the handshake fails, and no event goes out in the clear.
    let url = url.replacen("http", "https", 1);
    retry(answer(&*handler(&url, "")).await);
    server.abort();
}

#[tokio::test]
async fn a_body_without_end_does_not_hold_the_answer_up() {
    let receiver = Receiver::start(|| {
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        Response::new(Body::from_stream(endless))
    })
    .await;
    let begun = Instant::now();
    let handler = receiver.handler("timeout = '60s'");
    assert_eq!(answer(&*handler).await, Answer::Handled);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_huge_body_is_not_read() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let receiver = Receiver::start(move || {
        let count = count.clone();
        let chunks = futures_util::stream::repeat_with(move || {
            count.fetch_add(1 << 16, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1 << 16]))
        });
        Response::new(Body::from_stream(chunks))
    })
    .await;
    assert_eq!(answer(&*receiver.handler("")).await, Answer::Handled);
    // What the sockets' buffers take, and far from the end that never comes.
    assert!(sent.load(Ordering::Relaxed) < 64 << 20);
}

#[tokio::test]
async fn calls_share_a_connection_whatever_the_answers() {
    let calls = Arc::new(AtomicUsize::new(0));
    let receiver = Receiver::start(move || {
        let status = [200, 503, 422][calls.fetch_add(1, Ordering::Relaxed) % 3];
        let body = Body::from(vec![b'x'; 30_000]);
        Response::builder().status(status).body(body).unwrap()
    })
    .await;
    let handler = receiver.handler("");
    for _ in 0..9 {
        answer(&*handler).await;
    }
    assert_eq!(receiver.requests(), 9);
    assert_eq!(receiver.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_with_a_certificate_that_nobody_vouches_for_gets_no_event() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.unwrap())
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut received = Vec::new();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        // Fails: the client hangs up after it has seen the certificate.
        let _ = std::io::Read::read_to_end(&mut stream, &mut received);
        received
    });
    let retry = retry(answer(&*handler(&url, "")).await);
    assert!(retry.reason.contains("`ca_file`"), "{}", retry.reason);
    assert_eq!(server.join().unwrap(), b"");
}

#[tokio::test]
async fn events_that_come_together_are_one_request_with_one_answer() {
    let receiver = Receiver::answering(204, &[]).await;
    let handler = receiver.handler("");
    for data in [&["1", "2", "3"][..], &["1", "2", "3"], &["1", "2"]] {
        assert_eq!(handler.handle(&batch(data)).await, BatchAnswer::HANDLED);
    }
    let seen = receiver.seen.lock().unwrap();
    let keys: Vec<_> = seen
        .iter()
        .map(|request| request.headers()["idempotency-key"].clone())
        .collect();
    assert_eq!(keys[0], keys[1], "the same events, the same key");
    assert_ne!(keys[0], keys[2]);
    assert_eq!(
        seen[0].headers()["content-type"],
        "application/cloudevents-batch+json; charset=utf-8"
    );
    let body: serde_json::Value = serde_json::from_slice(seen[0].body()).unwrap();
    let data: Vec<_> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["data"].clone())
        .collect();
    assert_eq!(data, [1, 2, 3]);
}

#[tokio::test]
async fn events_that_come_together_are_rejected_together() {
    let receiver = Receiver::answering(422, &[]).await;
    let answer = receiver.handler("").handle(&batch(&["1", "2"])).await;
    assert!(
        matches!(answer, BatchAnswer::All(Answer::Reject { .. })),
        "{answer:?}"
    );
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn the_check_sends_no_event() {
    for (status, good) in [
        (200, true),
        (404, true),
        (405, true),
        (401, false),
        (503, false),
    ] {
        let receiver = Receiver::answering(status, &[]).await;
        let result = receiver.handler("").check().await;
        assert_eq!(result.is_ok(), good, "{status}: {result:?}");
        let seen = receiver.seen.lock().unwrap();
        assert_eq!(seen[0].method(), "OPTIONS");
        assert!(seen[0].body().is_empty());
    }
    let error = handler(&nowhere().await, "").check().await.unwrap_err();
    assert!(error.contains("onnection refused"), "{error}");
}
