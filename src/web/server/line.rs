//! What a connection is doing: idle, in the middle of a request's head, or busy with one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing; the next byte begins a request.
    Idle,
    /// Receiving a request's head, since then.
    Head(Instant),
    /// The head is there, and the answer not yet all gone.
    Busy,
}

/// Keeps what a connection is doing.
pub(super) struct Line(watch::Sender<Doing>);

impl Line {
    /// One that was just accepted: who connects has something to ask.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Doing::Head(Instant::now())))
    }

    /// A request's head is there. Idle again when what this gives is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.0.send_replace(Doing::Busy);
        Busy(self.clone())
    }

    /// The same stream; its bytes are noted here.
    pub(super) fn watch<S>(self: &Arc<Self>, stream: S) -> Noted<S> {
        Noted {
            stream,
            line: self.clone(),
        }
    }

    /// Ends when a head has taken longer than this.
    pub(super) async fn slow_head(&self, limit: Duration) {
        let mut doing = self.0.subscribe();
        loop {
            let now = *doing.borrow_and_update();
            let changed = doing.changed();
            match now {
                // The sender is ours: it is there as long as we are.
                Doing::Idle | Doing::Busy => drop(changed.await),
                Doing::Head(since) => {
                    if timeout_at(since + limit, changed).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn bytes_came(&self) {
        self.0.send_if_modified(|doing| {
            let first = *doing == Doing::Idle;
            if first {
                *doing = Doing::Head(Instant::now());
            }
            first
        });
    }
}

/// A request that is dealt with.
pub(super) struct Busy(Arc<Line>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.send_replace(Doing::Idle);
    }
}

/// A stream whose bytes are noted.
pub(super) struct Noted<S> {
    stream: S,
    line: Arc<Line>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.line.bytes_came();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// An answer; until it is gone the connection is busy.
pub(super) struct Watched {
    body: Body,
    _busy: Busy,
}

impl Watched {
    /// This one.
    pub(super) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
