//! One Subscribe stream.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::client::{Client, credits};
use super::proto::{ConsumerEvent, FetchRequest, FetchResponse};
use super::sessions::Sessions;
use super::{FetchBatch, PubSubError, Rpc};
use crate::event::{RawEvent, ReplayId, SchemaId};
use crate::salesforce::auth::Session;

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
    /// The schema of the event that came last: most often that of the next, too.
    last_schema: Option<SchemaId>,
}

enum Call {
    Opening(BoxFuture<'static, Result<Response<Streaming<FetchResponse>>, Status>>),
    Open(Box<Streaming<FetchResponse>>),
    Ended,
}

impl FetchStream {
    pub(super) fn open(
        mut client: Client,
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
        let opening = async move { client.subscribe(request).await };
        Self {
            topic_name,
            requests,
            call: Call::Opening(Box::pin(opening)),
            session,
            sessions,
            answered: false,
            rpc_id: None,
            endpoint,
            last_schema: None,
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
            Ok(Some(response)) => {
                if !self.answered {
                    self.answered = true;
                    self.sessions
                        .accepted(Rpc::Subscribe, &self.topic_name, &self.session);
                }
                if self.rpc_id.is_none() && !response.rpc_id.is_empty() {
                    self.rpc_id = Some(response.rpc_id.clone());
                }
                Ok(Some(self.batch(response)))
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

    fn batch(&mut self, response: FetchResponse) -> FetchBatch {
        let events = response.events.into_iter();
        FetchBatch {
            events: events
                .map(|event| raw_event(event, &mut self.last_schema))
                .collect(),
            latest_replay_id: ReplayId::from_wire(response.latest_replay_id),
            pending_num_requested: u32::try_from(response.pending_num_requested).unwrap_or(0),
            rpc_id: response.rpc_id,
        }
    }

    /// What ended the call. A session that it refuses is reported, so that nobody uses it again.
    fn error(&self, status: &Status) -> PubSubError {
        let error = PubSubError::from_status(Rpc::Subscribe, status, &self.endpoint);
        self.sessions
            .failed(Rpc::Subscribe, &self.topic_name, &self.session, &error);
        error
    }

    async fn message(&mut self) -> Result<Option<FetchResponse>, Status> {
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

/// An event without a body is kept: it cannot be decoded, is parked, and so is not lost.
fn raw_event(event: ConsumerEvent, last_schema: &mut Option<SchemaId>) -> RawEvent {
    let body = event.event.unwrap_or_default();
    let known = last_schema.take();
    let known = known.filter(|known| known.as_str() == body.schema_id);
    let schema_id = known.unwrap_or_else(|| SchemaId::new(&body.schema_id));
    *last_schema = Some(schema_id.clone());
    RawEvent {
        id: body.id,
        schema_id,
        payload: body.payload,
        replay_id: ReplayId::from_wire(event.replay_id),
    }
}
