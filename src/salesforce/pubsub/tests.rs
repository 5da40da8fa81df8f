//! The client against a Pub/Sub server in this process.

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

#[tokio::test]
async fn every_call_carries_the_session_and_a_trace_id_of_its_own() {
    let rig = rig().await;
    let info = rig.client.topic(&topic()).await.unwrap();
    assert_eq!(
        (info.can_subscribe, info.can_publish, info.schema_id),
        (true, false, None)
    );
    let json = rig.client.schema(&SchemaId::new("x")).await.unwrap();
    assert_eq!(json, "\"long\"");
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-1"]);
    assert_eq!(rig.bus.sent("tenantid"), [ORG, ORG]);
    assert_eq!(
        rig.bus.sent("instanceurl")[0],
        "https://acme.my.salesforce.com"
    );
    let traces = rig.bus.sent("x-client-trace-id");
    assert_ne!(traces[0], traces[1]);
}

#[tokio::test]
async fn a_refused_token_is_replaced_and_the_call_repeated_once() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Unauthenticated, "service.auth.error"));
    rig.client.schema(&SchemaId::new("x")).await.unwrap();
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-2"]);

    // Refused again, it is the caller's turn.
    for _ in 0..2 {
        rig.bus.refuse(Status::permission_denied("no"));
    }
    let error = rig.client.topic(&topic()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::SignInAgainOnce);
    assert_eq!(rig.bus.sent("accesstoken").len(), 4);
}

#[tokio::test]
async fn other_errors_are_not_repeated() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Internal, "service.unavailable"));
    let error = rig.client.topic(&topic()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GetTopic failed: service.unavailable: No."
    );
    assert_eq!(rig.bus.sent("accesstoken").len(), 1);
}

#[tokio::test]
async fn a_stream_begins_though_headers_come_only_with_the_first_message() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let from = ReplayFrom::After("000000000010db4d0000".parse().unwrap());
    let mut stream = rig.client.subscribe(&topic(), &from, 100).await.unwrap();
    // Nothing comes, and the wait is given up: nothing is lost by it.
    let nothing = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    assert!(nothing.is_err());
    answers.send(Ok(keepalive(100))).await.unwrap();
    let batch = soon(stream.next()).await.unwrap().unwrap();
    assert!(batch.events.is_empty());
    assert_eq!(batch.latest_replay_id, Some("09".parse().unwrap()));
    assert_eq!(
        (batch.pending_num_requested, batch.rpc_id.as_str()),
        (100, "rpc")
    );

    stream.request(50).unwrap();
    answers.send(Ok(keepalive(100))).await.unwrap();
    soon(stream.next()).await.unwrap().unwrap();
    drop(answers);
    assert_eq!(soon(stream.next()).await.unwrap(), None);
    assert_eq!(soon(stream.next()).await.unwrap(), None);

    let fetches = rig.bus.fetches.lock().unwrap();
    assert_eq!(
        (fetches[0].replay_preset, fetches[0].num_requested),
        (2, 100)
    );
    assert_eq!(fetches[0].replay_id.as_ref(), b"\0\0\0\0\0\x10\xdb\x4d\0\0");
    assert_eq!(fetches[0].topic_name, "/event/Order__e");
    assert_eq!(
        (fetches[1].replay_preset, fetches[1].num_requested),
        (0, 50)
    );
}

#[tokio::test]
async fn latest_and_earliest_name_no_replay_id_and_credits_stay_within_bounds() {
    let rig = rig().await;
    for (from, asked, preset, sent) in [
        (ReplayFrom::Latest, 0, 0, 1),
        (ReplayFrom::Earliest, 5000, 1, 100),
    ] {
        let answers = rig.bus.answers();
        let mut stream = rig.client.subscribe(&topic(), &from, asked).await.unwrap();
        stream.request(0).unwrap();
        answers.send(Ok(keepalive(1))).await.unwrap();
        soon(stream.next()).await.unwrap();
        let fetch = rig.bus.fetches.lock().unwrap().pop().unwrap();
        assert_eq!((fetch.replay_preset, fetch.num_requested), (preset, sent));
        assert!(fetch.replay_id.is_empty());
    }
}

#[tokio::test]
async fn errors_in_mid_stream_come_with_their_trailers_after_what_was_sent_before() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    let code = "subscription.limit.exceeded";
    answers
        .send(Err(with_code(Code::ResourceExhausted, code)))
        .await
        .unwrap();
    soon(stream.next()).await.unwrap().unwrap();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::WaitForAllocation);
    let PubSubError::Rpc {
        code: given,
        message,
        rpc_id,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (given.as_deref(), message.as_str(), rpc_id.as_deref()),
        (Some(code), "No.", Some("abc-1"))
    );
    assert_eq!(soon(stream.next()).await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_stream_names_the_session_to_invalidate() {
    let rig = rig().await;
    rig.bus
        .refuse(with_code(Code::Unauthenticated, "service.auth.error"));
    let topic = topic();
    let subscribe = || rig.client.subscribe(&topic, &ReplayFrom::Latest, 1);
    let mut stream = subscribe().await.unwrap();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::SignInAgain);
    rig.client.tokens().invalidate(stream.session());
    let _answers = rig.bus.answers();
    let mut stream = subscribe().await.unwrap();
    assert!(stream.next().now_or_never().is_none());
    let second = async {
        while rig.bus.sent("accesstoken").len() < 2 {
            let _ = tokio::time::timeout(Duration::from_millis(5), stream.next()).await;
        }
    };
    soon(second).await;
    assert_eq!(rig.bus.sent("accesstoken"), ["token-1", "token-2"]);
}

#[tokio::test]
async fn dropping_a_stream_ends_the_call() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    soon(stream.next()).await.unwrap();
    drop(stream);
    soon(rig.bus.call_gone.notified()).await;
}

#[tokio::test]
async fn a_response_far_above_four_mebibytes_arrives_and_an_event_without_a_body_is_kept() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 100)
        .await
        .unwrap();
    let event = |payload: usize| ConsumerEvent {
        event: Some(ProducerEvent {
            id: "id".to_owned(),
            schema_id: "schema".to_owned(),
            payload: vec![7; payload].into(),
            headers: Vec::new(),
        }),
        replay_id: Bytes::from_static(b"\x01"),
    };
    let mut response = keepalive(-1);
    response.events = (0..10).map(|_| event(1_000_000)).collect();
    response.events.push(ConsumerEvent::default());
    answers.send(Ok(response)).await.unwrap();
    let batch = soon(stream.next()).await.unwrap().unwrap();
    assert_eq!(batch.events.len(), 11);
    assert_eq!(batch.events[0].payload.len(), 1_000_000);
    assert_eq!(batch.events[10].replay_id, None);
    assert_eq!(batch.pending_num_requested, 0);
}

#[tokio::test]
async fn publishing_gives_an_outcome_for_each_event() {
    let rig = rig().await;
    let event = |payload: &'static [u8]| OutgoingEvent {
        id: "u".to_owned(),
        schema_id: SchemaId::new("s"),
        payload: Bytes::from_static(payload),
    };
    let outcomes = rig
        .client
        .publish(&topic(), vec![event(b"x"), event(b"")])
        .await
        .unwrap();
    assert_eq!(
        outcomes,
        [
            PublishOutcome::Published("01".parse().unwrap()),
            PublishOutcome::Refused("no payload".to_owned())
        ]
    );
    let mut large = event(b"");
    large.payload = vec![0; 5_000_000].into();
    let error = rig.client.publish(&topic(), vec![large]).await.unwrap_err();
    assert!(matches!(error, PubSubError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_named_with_the_reason() {
    let client = client("http://127.0.0.1:1", |_| {});
    let error = soon(client.topic(&topic())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GetTopic failed: cannot reach 127.0.0.1:1: connection refused"
    );
    assert_eq!(error.recovery(), Recovery::Reconnect);
    assert_eq!(error.reason(), "unavailable");
}

#[tokio::test]
async fn pings_find_a_connection_whose_other_end_has_vanished() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = client(&format!("http://{address}"), |config| {
        config.ping_interval = Duration::from_millis(50);
        config.ping_timeout = Duration::from_millis(50);
    });
    let mut stream = client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    // The connection is taken and held, and never answered on.
    let hold = async {
        let _held = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        outcome = soon(stream.next()) => outcome.unwrap_err(),
        () = hold => unreachable!(),
    };
    assert_eq!(error.recovery(), Recovery::Reconnect, "{error}");
}

#[tokio::test]
async fn a_stream_whose_server_dies_is_lost_and_a_new_one_connects_again() {
    let rig = rig().await;
    let answers = rig.bus.answers();
    let mut stream = rig
        .client
        .subscribe(&topic(), &ReplayFrom::Latest, 1)
        .await
        .unwrap();
    answers.send(Ok(keepalive(1))).await.unwrap();
    soon(stream.next()).await.unwrap();
    answers
        .send(Err(Status::unavailable("connection reset")))
        .await
        .unwrap();
    let error = soon(stream.next()).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::Reconnect, "{error}");
    assert_eq!(error.reason(), "unavailable");
    rig.client.topic(&topic()).await.unwrap();
}

#[tokio::test]
async fn tls_is_required_but_towards_this_machine_and_an_own_ca_is_trusted() {
    let error = try_client("http://api.pubsub.salesforce.com:7443", |_| {}).err();
    assert!(matches!(error, Some(PubSubError::Invalid(_))));

    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), own.cert.pem()).unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = incoming.local_addr().unwrap().port();
    let identity = Identity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(PubSubServer::new(Bus::default()));
    let server = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });

    let endpoint = format!("https://localhost:{port}");
    let trusting = client(&endpoint, |config| {
        config.ca_file = Some(ca_file.path().to_owned());
    });
    soon(trusting.topic(&topic())).await.unwrap();
    let error = soon(client(&endpoint, |_| {}).topic(&topic())).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(error.recovery(), Recovery::Reconnect);
    server.abort();
}
