//! One Subscribe stream.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::client::credits;
use super::proto::FetchRequest;
use super::responses::SubscribeCodec;
use super::sessions::Sessions;
use super::{FetchBatch, PubSubError, Rpc};
use crate::salesforce::auth::Session;

/// The call's path (facts section 1).
const SUBSCRIBE: &str = "/eventbus.v1.PubSub/Subscribe";

/// A stream of one topic's events. Dropping it ends the call.
///
/// ```text
/// Opening --headers--> Open --end, error--> Ended
///    \------error------------------------->/
/// ```
///
/// The first request is on its way before the response headers are awaited: whether the server sends
/// headers before it has read a request is not documented, and some send them with the first message
/// (facts 2.2).
pub struct FetchStream {
    topic_name: String,
    requests: mpsc::UnboundedSender<FetchRequest>,
    call: Call,
    session: Arc<Session>,
    sessions: Sessions,
    /// The org has answered, so it takes the session.
    answered: bool,
    rpc_id: Option<String>,
    endpoint: Arc<str>,
}

enum Call {
    Opening(BoxFuture<'static, Result<Response<Streaming<FetchBatch>>, Status>>),
    Open(Box<Streaming<FetchBatch>>),
    Ended,
}

impl FetchStream {
    pub(super) fn open(
        mut grpc: Grpc<Channel>,
        shell: Request<()>,
        first: FetchRequest,
        session: Arc<Session>,
        sessions: Sessions,
        endpoint: Arc<str>,
    ) -> Self {
        // Unbounded, so that asking never waits; its only writer asks at most once a batch.
        let (requests, queue) = mpsc::unbounded_channel();
        let topic_name = first.topic_name.clone();
        // The queue's other end is alive, two lines below.
        let _ = requests.send(first);
        let request = shell.map(|()| UnboundedReceiverStream::new(queue));
        let opening = async move {
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::from_error(error.into()))?;
            let path = PathAndQuery::from_static(SUBSCRIBE);
            grpc.streaming(request, path, SubscribeCodec).await
        };
        Self {
            topic_name,
            requests,
            call: Call::Opening(Box::pin(opening)),
            session,
            sessions,
            answered: false,
            rpc_id: None,
            endpoint,
        }
    }

    /// Ends when the server has accepted the stream. Some servers say so with the first response only, so
    /// this can take as long as a keepalive. Cancel-safe.
    pub async fn opened(&mut self) -> Result<(), PubSubError> {
        let opened = match &mut self.call {
            Call::Opening(opening) => opening.await,
            Call::Open(_) | Call::Ended => return Ok(()),
        };
        match opened {
            Ok(response) => {
                // Documented for failed calls and for messages only (facts 2.2); taken where it comes sooner.
                let rpc_id = response.metadata().get("rpc-id");
                let rpc_id = rpc_id.and_then(|id| id.to_str().ok());
                self.rpc_id = rpc_id.map(str::to_owned);
                self.call = Call::Open(Box::new(response.into_inner()));
                Ok(())
            }
            Err(status) => {
                self.call = Call::Ended;
                Err(self.error(&status))
            }
        }
    }

    /// The next response; `None` at a clean end, and ever after any end. Cancel-safe: a dropped call loses
    /// no response.
    pub async fn next(&mut self) -> Result<Option<FetchBatch>, PubSubError> {
        self.opened().await?;
        match self.message().await {
            Ok(Some(batch)) => {
                if !self.answered {
                    self.answered = true;
                    self.sessions
                        .accepted(Rpc::Subscribe, &self.topic_name, &self.session);
                }
                if self.rpc_id.is_none() && !batch.rpc_id.is_empty() {
                    self.rpc_id = Some(batch.rpc_id.clone());
                }
                Ok(Some(batch))
            }
            Ok(None) => {
                self.call = Call::Ended;
                Ok(None)
            }
            Err(status) => {
                self.call = Call::Ended;
                Err(self.error(&status))
            }
        }
    }

    /// What ended the call. A session that it refuses is reported, so that nobody uses it again.
    fn error(&self, status: &Status) -> PubSubError {
        let error = PubSubError::from_status(Rpc::Subscribe, status, &self.endpoint);
        self.sessions
            .failed(Rpc::Subscribe, &self.topic_name, &self.session, &error);
        error
    }

    async fn message(&mut self) -> Result<Option<FetchBatch>, Status> {
        match &mut self.call {
            Call::Open(messages) => messages.message().await,
            Call::Opening(_) | Call::Ended => Ok(None),
        }
    }

    /// Asks for so many more events (up to 100; 0 asks for nothing); never waits. The caller keeps count: no more than
    /// [`super::MAX_OUTSTANDING`] may be owed. An error means that the call is over; responses that came
    /// before its end are still there, and [`FetchStream::next`] then tells why it ended.
    pub fn request(&self, num_requested: u32) -> Result<(), PubSubError> {
        if num_requested == 0 {
            return Ok(());
        }
        let request = FetchRequest {
            topic_name: self.topic_name.clone(),
            num_requested: credits(num_requested),
            ..FetchRequest::default()
        };
        self.requests.send(request).map_err(|_| {
            PubSubError::local(
                Rpc::Subscribe,
                Code::Unavailable,
                "the stream has ended".to_owned(),
            )
        })
    }

    /// Salesforce's name of this call, for their support; most often known from the first response on.
    pub fn rpc_id(&self) -> Option<&str> {
        self.rpc_id.as_deref()
    }

    /// The session that the stream was opened with.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl fmt::Debug for FetchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = match self.call {
            Call::Opening(_) => "opening",
            Call::Open(_) => "open",
            Call::Ended => "ended",
        };
        f.debug_struct("FetchStream")
            .field("topic", &self.topic_name)
            .field("call", &call)
            .finish_non_exhaustive()
    }
}
