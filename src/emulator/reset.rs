//! Turns a marked status into a reset of the HTTP/2 stream without any status, which no gRPC server does
//! by itself but real ones are seen to do (facts 6.3).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use super::errors::RESET_MARK;

/// A service whose answers may be resets.
#[derive(Debug, Clone)]
pub(super) struct WithResets<S>(pub(super) S);

impl<S: NamedService> NamedService for WithResets<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for WithResets<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            let at_once = answer.headers().contains_key(RESET_MARK);
            if at_once {
                answer.headers_mut().clear();
                answer.headers_mut().insert(
                    http::header::CONTENT_TYPE,
                    http::HeaderValue::from_static("application/grpc"),
                );
            }
            Ok(answer.map(|body| Body::new(ResettableBody { body, at_once })))
        })
    }
}

/// Fails, which resets the stream, in place of trailers that carry the mark.
struct ResettableBody {
    body: Body,
    at_once: bool,
}

impl HttpBody for ResettableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let reset = || Poll::Ready(Some(Err(Status::internal("stream reset on demand"))));
        if self.at_once {
            return reset();
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame)))
                if frame
                    .trailers_ref()
                    .is_some_and(|trailers| trailers.contains_key(RESET_MARK)) =>
            {
                reset()
            }
            other => other,
        }
    }

    // Without these a refusal that needs no body would end with an empty DATA frame, which gRPC
    // clients in C, Python and others take for a broken stream.
    fn is_end_stream(&self) -> bool {
        !self.at_once && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.at_once {
            SizeHint::default()
        } else {
            self.body.size_hint()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_a_body_ends_with_its_headers_and_a_reset_does_not() {
        let empty = |at_once| ResettableBody {
            body: Body::empty(),
            at_once,
        };
        assert!(empty(false).is_end_stream());
        assert_eq!(empty(false).size_hint().exact(), Some(0));
        assert!(!empty(true).is_end_stream());
    }
}
