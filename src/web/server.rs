//! Connections: how many, how long, and how they end.

mod line;
mod places;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use line::{Line, Watched};
use places::{Place, Places};

/// How long a connection may be and do what.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Without a request. Longer than routers in front keep one for another use (Heroku's 90 s, most others 60 s):
    /// where both end it at the same time, somebody's request is lost in between.
    idle: Duration,
    /// From the first byte of a request to the end of its head; and, once accepted, until the first byte.
    head: Duration,
    /// After so long, each answer says that it is the last on this connection.
    life: Duration,
    /// After so long it ends, however busy: one that takes its answers too slowly. A page's stream that began at the
    /// end of `life` has ended by then.
    end: Duration,
}

const LIMITS: Limits = Limits {
    idle: Duration::from_secs(95),
    head: Duration::from_secs(10),
    life: Duration::from_secs(10 * 60),
    end: Duration::from_secs(20 * 60),
};

/// How long what is under way may take to end.
const LAST: Duration = Duration::from_secs(5);

/// How long nothing is accepted after accepting failed: file descriptors are short, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// Connections that the operating system keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// The other end of a connection, among a request's extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Listens. `[::]` is every address of this machine: by IPv4 as well, and by IPv4 alone where it has no IPv6.
///
/// # Errors
///
/// What the operating system says.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let bound = bind(addr);
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port());
        return or_without_v6(bound, || bind(v4));
    }
    bound
}

/// The same by IPv4, where there is no IPv6.
fn or_without_v6<T>(bound: io::Result<T>, v4: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match bound {
        // Another process has the port: that is not mended by another family.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => v4().map_err(|_| error),
        bound => bound,
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // Whatever this machine's default is.
        rustix::net::sockopt::set_ipv6_v6only(&socket, !addr.ip().is_unspecified())?;
        socket
    };
    // As every server: else a restart would have to wait for old connections.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` is cancelled; then what is under way has five seconds to end. `behind_proxy` says that all
/// connections are a proxy's, so that one address may have all of them.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    behind_proxy: bool,
    stop: CancellationToken,
) {
    let places = Arc::new(Places::new(behind_proxy));
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &places)).await {
        let (stream, place) = accepted;
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(connection(stream, place, router, LIMITS, stop));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST, ended).await.is_err() {
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener, places: &Arc<Places>) -> (TcpStream, Place) {
    loop {
        let free = places.free().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Some(place) = places.take(free, peer.ip().to_canonical()) {
                    return (stream, place);
                }
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "cannot accept");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// One connection from its beginning to its end.
async fn connection(
    stream: TcpStream,
    place: Place,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    // Best effort: without it small answers wait for a timer.
    let _ = stream.set_nodelay(true);
    let (peer, began) = (place.address(), Instant::now());
    let line = Arc::new(Line::new());
    let router = TowerToHyperService::new(router);
    let of_requests = line.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let busy = of_requests.busy();
        let answer = router.call(request);
        async move {
            let mut answer: Response = answer.await?;
            if began.elapsed() >= limits.life {
                let last = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, last);
            }
            Ok::<_, std::convert::Infallible>(
                answer.map(|body| Body::new(Watched::new(body, busy))),
            )
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // It runs while nothing comes, too.
        .header_read_timeout(limits.idle)
        .serve_connection(TokioIo::new(line.watch(stream)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = line.slow_head(limits.head) => return,
        () = tokio::time::sleep(limits.end) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        // The other end went away, or spoke something else.
        debug!(error = &error as &dyn std::error::Error, %peer, "a connection broke");
    }
    drop(place);
}

#[cfg(test)]
mod tests;
