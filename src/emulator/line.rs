//! The Pub/Sub listener's connections, so that a fault can drop them or let them stop answering.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

const OPEN: u8 = 0;
/// Nothing is read or written any more; the peer sees an open connection without answers.
const FROZEN: u8 = 1;
/// The next read or write fails, and the connection is closed.
const DROPPED: u8 = 2;

#[derive(Debug, Default)]
struct Fate {
    state: AtomicU8,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Fate {
    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// `Ready(Ok)` where the connection may go on.
    fn check(&self, waker: &AtomicWaker, cx: &Context<'_>) -> Poll<io::Result<()>> {
        waker.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            OPEN => Poll::Ready(Ok(())),
            FROZEN => Poll::Pending,
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

/// Every connection that is open.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    open: Arc<Mutex<Vec<Weak<Fate>>>>,
}

impl Lines {
    /// Drops every open connection.
    pub(super) fn drop_all(&self) {
        self.set_all(DROPPED);
    }

    /// Lets every open connection stop answering, for good.
    pub(super) fn freeze_all(&self) {
        self.set_all(FROZEN);
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|fate| fate.strong_count() > 0);
        open.len()
    }

    fn set_all(&self, state: u8) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for fate in open.iter().filter_map(Weak::upgrade) {
            fate.set(state);
        }
    }

    fn admit(&self) -> Arc<Fate> {
        let fate = Arc::new(Fate::default());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|fate| fate.strong_count() > 0);
        open.push(Arc::downgrade(&fate));
        fate
    }
}

/// Accepts connections, with TCP_NODELAY set by hand: without it every response waits out a timer of
/// 40 ms.
pub(super) struct Incoming {
    listener: TcpListener,
    lines: Lines,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener, lines: Lines) -> Self {
        Self { listener, lines }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Line>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.listener.poll_accept(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok((stream, _))) => {
                let _ = stream.set_nodelay(true);
                Poll::Ready(Some(Ok(Line {
                    stream,
                    fate: self.lines.admit(),
                })))
            }
        }
    }
}

/// One connection.
pub(super) struct Line {
    stream: TcpStream,
    fate: Arc<Fate>,
}

impl Connected for Line {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        let address: Option<SocketAddr> = self.stream.local_addr().ok();
        TcpConnectInfo {
            local_addr: address,
            remote_addr: self.stream.peer_addr().ok(),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.fate.check(&self.fate.reader, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_read(cx, buf),
            other => other,
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.fate.check(&self.fate.writer, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_write(cx, buf),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.fate.check(&self.fate.writer, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_flush(cx),
            other => other,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
