//! The Pub/Sub API's server side.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::bus::{NewEntry, StoredEvent, replay_id};
use super::errors::{Call, Ticket};
use super::faults::{Fault, FaultKind};
use super::org::{SharedOrg, State, fault_status};
use super::settings::HeadersSent;
use super::stream::{self, unknown_topic};
use crate::event::SchemaId;
use crate::salesforce::pubsub::proto::pub_sub_server::PubSub;
use crate::salesforce::pubsub::proto::{
    Error, ErrorCode, FetchRequest, FetchResponse, ManagedFetchRequest, ManagedFetchResponse,
    ProducerEvent, PublishRequest, PublishResponse, PublishResult, SchemaInfo, SchemaRequest,
    TopicInfo, TopicRequest,
};

/// Most bytes of one event (facts 2.3).
const MAX_EVENT: usize = 1_000_000;
/// Most bytes of one PublishRequest (facts 2.3).
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Serves an org.
#[derive(Debug, Clone)]
pub(super) struct PubSubService {
    org: SharedOrg,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl PubSubService {
    /// Streams run on `tasks` until `stop`.
    pub(super) fn new(org: SharedOrg, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { org, tasks, stop }
    }

    /// The start of every unary call: count, check the headers, meet a fault. A fault that is left for
    /// the call itself comes back.
    async fn enter<T>(
        &self,
        call: Call,
        request: &Request<T>,
        topic: Option<&str>,
    ) -> Result<(Ticket, Option<Fault>), Status> {
        let ticket = self.org.ticket(call);
        self.org.authorize(&ticket, request.metadata())?;
        let fault = self.org.state().faults.at_call(call, topic);
        match fault {
            Some(fault) if is_for_the_call(&fault) => Ok((ticket, Some(fault))),
            Some(fault) => {
                self.org.meet(&fault, &ticket).await?;
                Ok((ticket, None))
            }
            None => Ok((ticket, None)),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

/// Faults that change what a unary call does instead of preventing it.
fn is_for_the_call(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::AcceptThenFail | FaultKind::RejectEvent | FaultKind::CorruptPayload
    )
}

#[tonic::async_trait]
impl PubSub for PubSubService {
    type SubscribeStream = BoxStream<FetchResponse>;
    type PublishStreamStream = BoxStream<PublishResponse>;
    type ManagedSubscribeStream = BoxStream<ManagedFetchResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let ticket = self.org.ticket(Call::Subscribe);
        let token = self.org.authorize(&ticket, request.metadata())?;
        let headers = self.org.state().settings.headers;
        let (responses, received) = mpsc::channel(1);
        let (opened, is_open) = oneshot::channel();
        self.spawn(stream::serve(
            Arc::clone(&self.org),
            ticket,
            token,
            request.into_inner(),
            responses,
            opened,
        ));
        let mut received = ReceiverStream::new(received);
        let wait_for_first = match headers {
            HeadersSent::AtOnce => false,
            // A stream that was refused never opens, and its refusal is the first thing to come.
            HeadersSent::AfterRequest => is_open.await.is_err(),
            HeadersSent::WithFirstResponse => true,
        };
        if !wait_for_first {
            return Ok(Response::new(Box::pin(received)));
        }
        match received.next().await {
            Some(Ok(first)) => Ok(Response::new(Box::pin(
                tokio_stream::once(Ok(first)).chain(received),
            ))),
            Some(Err(refusal)) => Err(refusal),
            None => Ok(Response::new(Box::pin(received))),
        }
    }

    async fn get_schema(
        &self,
        request: Request<SchemaRequest>,
    ) -> Result<Response<SchemaInfo>, Status> {
        let (ticket, fault) = self.enter(Call::GetSchema, &request, None).await?;
        let id = request.into_inner().schema_id;
        if id.trim().is_empty() {
            return Err(ticket.refuse("schema.validation.failed", "The schema ID can't be blank."));
        }
        let served = self.org.state().topics.schema(&SchemaId::new(&id));
        let Some(served) = served else {
            return Err(ticket.refuse(
                "schema.validation.failed",
                "The schema ID is unknown to this org.",
            ));
        };
        let schema_json = match fault.map(|fault| (fault.kind, fault)) {
            Some((FaultKind::AcceptThenFail, fault)) => return Err(fault_status(&fault, &ticket)),
            Some((FaultKind::CorruptPayload, _)) => "<html>not a schema".to_owned(),
            _ => (*served.json).to_owned(),
        };
        Ok(Response::new(SchemaInfo {
            schema_json,
            schema_id: id,
            rpc_id: ticket.rpc_id,
        }))
    }

    async fn get_topic(
        &self,
        request: Request<TopicRequest>,
    ) -> Result<Response<TopicInfo>, Status> {
        let name = request.get_ref().topic_name.clone();
        let (ticket, fault) = self.enter(Call::GetTopic, &request, Some(&name)).await?;
        if name.trim().is_empty() {
            return Err(ticket.refuse("topic.validation.empty", "The topic name can't be blank."));
        }
        let state = self.org.state();
        let Some(facts) = state.topics.facts(&name) else {
            return Err(unknown_topic(state.settings.unknown_topic, &ticket));
        };
        if let Some(fault) = fault.filter(|fault| fault.kind == FaultKind::AcceptThenFail) {
            return Err(fault_status(&fault, &ticket));
        }
        let denied = state.settings.denied_topics.contains(&name);
        let schema_id = facts.schema_id.map(|id| id.as_str().to_owned());
        Ok(Response::new(TopicInfo {
            topic_name: name,
            tenant_guid: format!("CORE/prod/{}", self.org.id),
            can_publish: facts.can_publish,
            can_subscribe: !denied,
            schema_id: schema_id.unwrap_or_default(),
            rpc_id: ticket.rpc_id,
        }))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let topic = request.get_ref().topic_name.clone();
        let (ticket, fault) = self.enter(Call::Publish, &request, Some(&topic)).await?;
        let response = accept(&self.org, &ticket, request.get_ref(), fault.as_ref())?;
        match fault {
            Some(fault) if fault.kind == FaultKind::AcceptThenFail => {
                Err(fault_status(&fault, &ticket))
            }
            _ => Ok(Response::new(response)),
        }
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let ticket = self.org.ticket(Call::PublishStream);
        self.org.authorize(&ticket, request.metadata())?;
        let (responses, received) = mpsc::channel(8);
        let org = Arc::clone(&self.org);
        let requests = request.into_inner();
        self.spawn(async move {
            let gone = responses.clone();
            tokio::select! {
                end = publish_stream(&org, &ticket, requests, &responses) => {
                    if let Err(status) = end {
                        let _ = gone.send(Err(status)).await;
                    }
                }
                () = gone.closed() => {}
            }
        });
        Ok(Response::new(boxed(ReceiverStream::new(received))))
    }

    async fn managed_subscribe(
        &self,
        _: Request<Streaming<ManagedFetchRequest>>,
    ) -> Result<Response<Self::ManagedSubscribeStream>, Status> {
        let ticket = self.org.ticket(Call::ManagedSubscribe);
        Err(ticket.refuse_as(
            Code::Unimplemented,
            None,
            "Managed subscriptions are not part of the emulator.",
        ))
    }
}

fn boxed<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> BoxStream<T> {
    Box::pin(stream)
}

/// Answers publish requests until the client has no more, breaks a rule, or is idle for too long.
async fn publish_stream(
    org: &SharedOrg,
    ticket: &Ticket,
    mut requests: Streaming<PublishRequest>,
    responses: &mpsc::Sender<Result<PublishResponse, Status>>,
) -> Result<(), Status> {
    let mut topic: Option<String> = None;
    loop {
        let idle = Duration::from_millis(org.state().settings.publish_stream_idle_ms);
        let Ok(request) = tokio::time::timeout(idle, requests.message()).await else {
            return Err(ticket.refuse(
                "publish.stream.sweeper.timeout",
                "The publish stream was closed because it was idle.",
            ));
        };
        let Some(mut request) = request? else {
            return Ok(());
        };
        match &topic {
            Some(fixed) if request.topic_name.is_empty() => request.topic_name.clone_from(fixed),
            Some(fixed) if request.topic_name != *fixed => {
                return Err(ticket.refuse(
                    "publish.topic.mismatch",
                    "The topic name can't change within a stream.",
                ));
            }
            Some(_) => {}
            None => topic = Some(request.topic_name.clone()),
        }
        let name = Some(request.topic_name.as_str());
        let fault = org.state().faults.at_call(Call::PublishStream, name);
        if let Some(fault) = &fault
            && !is_for_the_call(fault)
        {
            org.meet(fault, ticket).await?;
        }
        let response = accept(org, ticket, &request, fault.as_ref())?;
        if let Some(fault) = fault
            && fault.kind == FaultKind::AcceptThenFail
        {
            return Err(fault_status(&fault, ticket));
        }
        if responses.send(Ok(response)).await.is_err() {
            return Ok(());
        }
    }
}

/// Puts the good events of a request on the bus; one result for each, in order (facts 5.1).
fn accept(
    org: &SharedOrg,
    ticket: &Ticket,
    request: &PublishRequest,
    fault: Option<&Fault>,
) -> Result<PublishResponse, Status> {
    let topic = request.topic_name.as_str();
    if request.encoded_len() > MAX_REQUEST {
        return Err(Status::unavailable(
            "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        ));
    }
    if topic.trim().is_empty() {
        return Err(ticket.refuse(
            "publish.topic.validation.empty",
            "The topic name can't be blank.",
        ));
    }
    if request.events.is_empty() {
        return Err(ticket.refuse(
            "publish.event.count.invalid",
            "A publish request needs at least one event.",
        ));
    }
    let reject_all = fault.is_some_and(|fault| fault.kind == FaultKind::RejectEvent);
    let at = org.clock.now();
    org.change(|state| {
        let Some(facts) = state.topics.facts(topic) else {
            return Err(unknown_topic(state.settings.unknown_topic, ticket));
        };
        if !facts.can_publish {
            return Err(ticket.refuse(
                "topic.meta.permission",
                "The user doesn't have permission to publish to the topic.",
            ));
        }
        let results = request
            .events
            .iter()
            .map(|event| {
                let checked = if reject_all {
                    Err("The event was refused on demand.".to_owned())
                } else {
                    check(state, topic, event)
                };
                // The publisher's own, also where it is blank and the event gets an ID on the bus.
                let correlation_key = event.id.clone();
                match checked {
                    Ok(event) => {
                        let entry = NewEntry {
                            topic: topic.into(),
                            event,
                            siblings: Vec::new(),
                        };
                        PublishResult {
                            replay_id: replay_id(state.bus.append(entry, at)),
                            error: None,
                            correlation_key,
                        }
                    }
                    Err(msg) => PublishResult {
                        replay_id: bytes::Bytes::new(),
                        error: Some(Error {
                            code: ErrorCode::Publish.into(),
                            msg,
                        }),
                        correlation_key,
                    },
                }
            })
            .collect();
        let schema_id = facts.schema_id.map(|id| id.as_str().to_owned());
        Ok(PublishResponse {
            results,
            schema_id: schema_id.unwrap_or_default(),
            rpc_id: ticket.rpc_id.clone(),
        })
    })
}

/// One published event, where it is within limits and its payload is of the topic's schema.
fn check(state: &State, topic: &str, event: &ProducerEvent) -> Result<StoredEvent, String> {
    if event.payload.len() > MAX_EVENT {
        return Err("The event message size exceeds the limit of 1 MB.".to_owned());
    }
    let id = SchemaId::new(&event.schema_id);
    let served = state
        .topics
        .schema(&id)
        .filter(|_| state.topics.is_version_of(topic, &id));
    let Some(schema) = served.as_ref().and_then(|served| served.schema.as_ref()) else {
        return Err("The schema ID is not one of the topic's.".to_owned());
    };
    if schema.decode(&event.payload).is_err() {
        return Err("The payload can't be decoded with its schema.".to_owned());
    }
    Ok(StoredEvent {
        id: if event.id.is_empty() {
            uuid::Uuid::new_v4().to_string()
        } else {
            event.id.clone()
        },
        schema_id: id,
        // A copy: the payload is a slice of the whole request's buffer and is kept for days.
        payload: bytes::Bytes::copy_from_slice(&event.payload),
    })
}
