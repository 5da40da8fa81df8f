//! A TCP proxy that can refuse, hang, or cut connections.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Carries everything.
    Carry,
    /// Takes connections and carries nothing, until it carries again.
    Hang,
    /// Ends every connection, new ones at once.
    Cut,
}

/// A proxy on loopback before another address.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    line: watch::Sender<Line>,
    target: watch::Sender<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (line, seen) = watch::channel(Line::Carry);
        let (target, led) = watch::channel(target);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let target = led.borrow().clone();
                tokio::spawn(serve(client, target, seen.clone()));
            }
        });
        Self {
            addr,
            line,
            target,
            task,
        }
    }

    /// New connections go there.
    pub(crate) fn lead_to(&self, target: String) {
        self.target.send_replace(target);
    }

    pub(crate) fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.line.send_replace(Line::Cut);
    }
}

async fn serve(client: TcpStream, target: String, mut line: watch::Receiver<Line>) {
    let carried = line.clone();
    let carry = async move {
        // A target that is down is a connection that ends.
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        tokio::select! {
            () = pump(from_client, to_server, carried.clone()) => {}
            () = pump(from_server, to_client, carried) => {}
        }
    };
    tokio::select! {
        () = carry => {}
        _ = line.wait_for(|line| *line == Line::Cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || line.wait_for(|line| *line == Line::Carry).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
