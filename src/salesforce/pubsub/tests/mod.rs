//! The client against a Pub/Sub server in this process.

mod calls;
mod recovery;
mod streams;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use secrecy::SecretString;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

use super::proto::pub_sub_server::{self, PubSubServer};
use super::proto::{
    ConsumerEvent, FetchRequest, FetchResponse, ManagedFetchRequest, ManagedFetchResponse,
    ProducerEvent, PublishRequest, PublishResponse, PublishResult, SchemaInfo, SchemaRequest,
    TopicInfo, TopicRequest,
};
use super::*;
use crate::config::SalesforceConfig;
use crate::event::{OrgId, Topic};
use crate::salesforce::auth::testing::{ORG, client_credentials, config};
use crate::salesforce::auth::{AuthError, Session, TokenSource};

type Answers = mpsc::Receiver<Result<FetchResponse, Status>>;

/// A server that notes what it is sent and answers as the test says.
#[derive(Clone, Default)]
struct Bus {
    metadata: Arc<Mutex<Vec<MetadataMap>>>,
    fetches: Arc<Mutex<Vec<FetchRequest>>>,
    /// The next calls are refused with these.
    refusals: Arc<Mutex<VecDeque<Status>>>,
    answers: Arc<Mutex<Option<Answers>>>,
    call_gone: Arc<Notify>,
}

impl Bus {
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.metadata
            .lock()
            .unwrap()
            .push(request.metadata().clone());
        self.refusals
            .lock()
            .unwrap()
            .pop_front()
            .map_or(Ok(()), Err)
    }

    fn refuse(&self, status: Status) {
        self.refusals.lock().unwrap().push_back(status);
    }

    /// What the next stream sends.
    fn answers(&self) -> mpsc::Sender<Result<FetchResponse, Status>> {
        let (sender, receiver) = mpsc::channel(100);
        *self.answers.lock().unwrap() = Some(receiver);
        sender
    }

    fn sent(&self, key: &str) -> Vec<String> {
        let metadata = self.metadata.lock().unwrap();
        metadata
            .iter()
            .map(|map| map.get(key).unwrap().to_str().unwrap().to_owned())
            .collect()
    }
}

#[async_trait]
impl pub_sub_server::PubSub for Bus {
    type SubscribeStream = BoxStream<'static, Result<FetchResponse, Status>>;
    type PublishStreamStream = BoxStream<'static, Result<PublishResponse, Status>>;
    type ManagedSubscribeStream = BoxStream<'static, Result<ManagedFetchResponse, Status>>;

    /// Sends its headers only once the first request was read and the first answer is there.
    async fn subscribe(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.admit(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        self.fetches.lock().unwrap().push(first);
        let mut answers = self.answers.lock().unwrap().take().unwrap();
        let head = answers.recv().await.unwrap();
        let bus = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                bus.fetches.lock().unwrap().push(request);
            }
            bus.call_gone.notify_one();
        });
        let head = futures_util::stream::iter([head]);
        Ok(Response::new(
            head.chain(ReceiverStream::new(answers)).boxed(),
        ))
    }

    async fn get_schema(
        &self,
        request: Request<SchemaRequest>,
    ) -> Result<Response<SchemaInfo>, Status> {
        self.admit(&request)?;
        Ok(Response::new(SchemaInfo {
            schema_json: "\"long\"".to_owned(),
            schema_id: request.into_inner().schema_id,
            rpc_id: "r".to_owned(),
        }))
    }

    async fn get_topic(
        &self,
        request: Request<TopicRequest>,
    ) -> Result<Response<TopicInfo>, Status> {
        self.admit(&request)?;
        Ok(Response::new(TopicInfo {
            topic_name: request.into_inner().topic_name,
            can_subscribe: true,
            ..TopicInfo::default()
        }))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        self.admit(&request)?;
        let result = |event: ProducerEvent| PublishResult {
            replay_id: if event.payload.is_empty() {
                Bytes::new()
            } else {
                Bytes::from_static(b"\x01")
            },
            error: event.payload.is_empty().then(|| proto::Error {
                code: proto::ErrorCode::Publish.into(),
                msg: "no payload".to_owned(),
            }),
            correlation_key: event.id,
        };
        Ok(Response::new(PublishResponse {
            results: request
                .into_inner()
                .events
                .into_iter()
                .map(result)
                .collect(),
            ..PublishResponse::default()
        }))
    }

    async fn publish_stream(
        &self,
        _: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn managed_subscribe(
        &self,
        _: Request<Streaming<ManagedFetchRequest>>,
    ) -> Result<Response<Self::ManagedSubscribeStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Sessions without a login: each sign-in gives the next token.
#[derive(Default)]
struct Tokens {
    current: Mutex<Option<Arc<Session>>>,
    sign_ins: AtomicU32,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn session(&self) -> Result<Arc<Session>, AuthError> {
        let mut current = self.current.lock().unwrap();
        Ok(current
            .get_or_insert_with(|| {
                let number = self.sign_ins.fetch_add(1, Ordering::SeqCst) + 1;
                Arc::new(Session {
                    access_token: SecretString::from(format!("token-{number}")),
                    instance_url: "https://acme.my.salesforce.com".to_owned(),
                    org_id: OrgId::parse(ORG).unwrap(),
                    scopes: None,
                    obtained_at: Instant::now(),
                })
            })
            .clone())
    }

    fn invalidate(&self, refused: &Arc<Session>) {
        let mut current = self.current.lock().unwrap();
        if matches!(&*current, Some(session) if Arc::ptr_eq(session, refused)) {
            *current = None;
        }
    }
}

struct Rig {
    bus: Bus,
    address: std::net::SocketAddr,
    client: PubSub,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn rig() -> Rig {
    let bus = Bus::default();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let service = PubSubServer::new(bus.clone());
    let server = tokio::spawn(async move {
        let incoming = incoming.with_nodelay(Some(true));
        let server = Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    let client = client(&format!("http://{address}"), |_| {});
    Rig {
        bus,
        address,
        client,
        server,
    }
}

fn client(endpoint: &str, adjust: impl FnOnce(&mut SalesforceConfig)) -> PubSub {
    try_client(endpoint, adjust).unwrap()
}

fn try_client(
    endpoint: &str,
    adjust: impl FnOnce(&mut SalesforceConfig),
) -> Result<PubSub, PubSubError> {
    let mut config = config("https://login.salesforce.com", client_credentials());
    config.pubsub_endpoint = endpoint.to_owned();
    adjust(&mut config);
    PubSub::connect(&config, Arc::new(Tokens::default()))
}

fn topic() -> Topic {
    "/event/Order__e".parse().unwrap()
}

fn keepalive(pending: i32) -> FetchResponse {
    FetchResponse {
        latest_replay_id: Bytes::from_static(b"\x09"),
        pending_num_requested: pending,
        rpc_id: "rpc".to_owned(),
        ..FetchResponse::default()
    }
}

fn with_code(status: Code, code: &str) -> Status {
    let mut metadata = MetadataMap::new();
    let code = format!("sfdc.platform.eventbus.grpc.{code}");
    metadata.insert("error-code", code.parse().unwrap());
    metadata.insert("rpc-id", "abc-1".parse().unwrap());
    metadata.insert("type", "Subscribe".parse().unwrap());
    Status::with_metadata(status, "No. rpcId: abc-1", metadata)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("in time")
}
