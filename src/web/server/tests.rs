use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const ASKED: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A server of one connection with these limits, and the connection.
async fn connected(limits: Limits) -> TcpStream {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let places = Arc::new(Places::new(false));
    let place = places.take(places.free().await, peer.ip()).unwrap();
    let router = Router::new().route("/", get(async || "hello"));
    tokio::spawn(connection(
        stream,
        place,
        router,
        limits,
        CancellationToken::new(),
    ));
    client
}

/// The answer to a request.
async fn asked(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("hello") {
        let mut bytes = [0; 512];
        let read = client.read(&mut bytes).await.unwrap();
        assert!(read > 0, "closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    answer
}

/// How long until the other end closes.
async fn closed(client: &mut TcpStream) -> Duration {
    let began = Instant::now();
    let mut bytes = [0; 64];
    let read = tokio::time::timeout(Duration::from_secs(20), client.read(&mut bytes));
    match read.await.unwrap() {
        Ok(0) | Err(_) => began.elapsed(),
        Ok(_) => panic!("bytes came"),
    }
}

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let mut client = connected(Limits {
        idle: LONG,
        head: SHORT,
        ..LIMITS
    })
    .await;
    for _ in 0..3 {
        asked(&mut client, ASKED).await;
        tokio::time::sleep(SHORT * 2).await;
    }
    asked(&mut client, ASKED).await;
    // Half of the next one is too little.
    client.write_all(b"GET / HT").await.unwrap();
    assert!(closed(&mut client).await < LONG / 2);
}

#[tokio::test]
async fn who_connects_and_asks_nothing_is_not_kept_and_who_is_idle_is_not_for_ever() {
    let limits = Limits {
        idle: SHORT * 4,
        head: SHORT,
        ..LIMITS
    };
    let mut silent = connected(limits).await;
    assert!(closed(&mut silent).await < SHORT * 3);
    let mut idle = connected(limits).await;
    asked(&mut idle, ASKED).await;
    let after = closed(&mut idle).await;
    assert!(after >= SHORT * 3, "{after:?}");
}

#[tokio::test]
async fn a_connection_ends_with_an_answer_that_says_so() {
    let mut client = connected(Limits {
        life: SHORT,
        ..LIMITS
    })
    .await;
    let first = asked(&mut client, ASKED).await;
    assert!(!first.to_lowercase().contains("connection:"), "{first}");
    tokio::time::sleep(SHORT).await;
    let last = asked(&mut client, ASKED).await;
    assert!(last.to_lowercase().contains("connection: close"), "{last}");
    assert!(closed(&mut client).await < LONG);
}

#[test]
fn the_limits_are_beyond_those_of_routers_in_front() {
    assert!(LIMITS.idle > Duration::from_secs(90));
    assert!(LIMITS.head < LIMITS.idle && LIMITS.life < LIMITS.end);
}

#[tokio::test]
async fn every_address_is_reached_by_both_families() {
    let listener = match listen("[::]:0".parse().unwrap()) {
        Ok(listener) => listener,
        Err(error) => panic!("{error}"),
    };
    let addr = listener.local_addr().unwrap();
    TcpStream::connect(("127.0.0.1", addr.port()))
        .await
        .unwrap();
    let (_, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip().to_canonical().to_string(), "127.0.0.1");
    if addr.is_ipv6() {
        TcpStream::connect(("::1", addr.port())).await.unwrap();
    }
}

#[test]
fn without_ipv6_there_is_ipv4_and_a_port_that_is_taken_is_taken() {
    let refused = |kind| Err(io::Error::from(kind));
    let without = or_without_v6(refused(io::ErrorKind::Unsupported), || Ok(4));
    assert_eq!(without.unwrap(), 4);
    let taken = or_without_v6(refused(io::ErrorKind::AddrInUse), || Ok(4));
    assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(or_without_v6(Ok(6), || Ok(4)).unwrap(), 6);
}
