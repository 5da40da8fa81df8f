//! The client: one channel for all calls, the session's metadata on each, a second try with a new token.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost::Message;
use secrecy::ExposeSecret;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::proto::pub_sub_client::PubSubClient;
use super::proto::{self, FetchRequest, ReplayPreset};
use super::sessions::Sessions;
use super::stream::FetchStream;
use super::{
    MAX_OUTSTANDING, OutgoingEvent, PubSubError, PublishOutcome, ReplayFrom, Rpc, TopicInfo,
};
use crate::config::SalesforceConfig;
use crate::event::{ReplayId, SchemaId, Topic};
use crate::salesforce::auth::{AuthError, Session, TokenSource};
use crate::salesforce::{Origin, tls};

/// The platform keeps responses around 3 MB (facts 2.3). A response beyond our limit would come again
/// with every reconnect, so the limit is far away.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Beyond it the platform's front end resets the call in words of an outage (facts 5.1).
const MAX_PUBLISH_REQUEST: usize = 4 * 1024 * 1024;
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const UNARY_TIMEOUT: Duration = Duration::from_secs(30);
/// A ping interval of nothing would be a busy loop.
const SHORTEST_PING: Duration = Duration::from_millis(10);

type Client = PubSubClient<Channel>;

/// The Pub/Sub API of one org. Clones share one HTTP/2 channel, which connects when it is first used and
/// again whenever the connection is lost, and one source of sessions.
#[derive(Clone)]
pub struct PubSub {
    client: Client,
    /// The same channel, for the one call whose answers are not read by generated code.
    subscribe: Grpc<Channel>,
    sessions: Sessions,
    /// `host:port`, for messages.
    endpoint: Arc<str>,
}

impl PubSub {
    /// Prepares the channel; connects to nothing yet. Must be called within a Tokio runtime. The error is
    /// [`PubSubError::Invalid`]: an endpoint without TLS (loopback excepted), or an unusable `ca_file`.
    pub fn connect(
        config: &SalesforceConfig,
        tokens: Arc<dyn TokenSource>,
    ) -> Result<Self, PubSubError> {
        let origin = Origin::parse(&config.pubsub_endpoint).map_err(|error| {
            PubSubError::Invalid(format!(
                "`salesforce.pubsub_endpoint` {error}; Salesforce's is https://api.pubsub.salesforce.com:7443"
            ))
        })?;
        let channel = endpoint(config, &origin)?.connect_lazy();
        Ok(Self {
            client: Client::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            subscribe: Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE),
            sessions: Sessions::new(tokens),
            endpoint: origin.authority().into(),
        })
    }

    /// Where sessions come from. Calls and streams report to it by themselves what the org says to them.
    pub fn tokens(&self) -> &Arc<dyn TokenSource> {
        self.sessions.tokens()
    }

    /// GetTopic: what a topic is, and what this user may do with it.
    pub async fn topic(&self, topic: &Topic) -> Result<TopicInfo, PubSubError> {
        let message = proto::TopicRequest {
            topic_name: topic.as_str().to_owned(),
        };
        let info = self
            .unary(
                Rpc::GetTopic,
                topic.as_str(),
                message,
                |mut client, request| Box::pin(async move { client.get_topic(request).await }),
            )
            .await?;
        Ok(TopicInfo {
            topic: info.topic_name,
            tenant_guid: info.tenant_guid,
            can_publish: info.can_publish,
            can_subscribe: info.can_subscribe,
            schema_id: Some(info.schema_id.trim())
                .filter(|id| !id.is_empty())
                .map(SchemaId::new),
        })
    }

    /// GetSchema: a schema's JSON text, as the platform sent it.
    pub async fn schema(&self, id: &SchemaId) -> Result<String, PubSubError> {
        let message = proto::SchemaRequest {
            schema_id: id.as_str().to_owned(),
        };
        let info = self
            .unary(
                Rpc::GetSchema,
                id.as_str(),
                message,
                |mut client, request| Box::pin(async move { client.get_schema(request).await }),
            )
            .await?;
        Ok(info.schema_json)
    }

    /// Publish: one outcome for each event, in their order. An error means that nothing is known to be on
    /// the bus; after a lost answer events may be there all the same. A request beyond 4 MiB is
    /// [`PubSubError::Invalid`] and not sent; Salesforce advises at most 200 events and 3 MB.
    pub async fn publish(
        &self,
        topic: &Topic,
        events: Vec<OutgoingEvent>,
    ) -> Result<Vec<PublishOutcome>, PubSubError> {
        let count = events.len();
        let message = proto::PublishRequest {
            topic_name: topic.as_str().to_owned(),
            events: events.into_iter().map(producer_event).collect(),
            auth_refresh: String::new(),
        };
        let size = message.encoded_len();
        if size > MAX_PUBLISH_REQUEST {
            return Err(PubSubError::Invalid(format!(
                "a publish request of {size} bytes is beyond the platform's limit of {MAX_PUBLISH_REQUEST}: \
                 publish fewer events at a time"
            )));
        }
        let response = self
            .unary(
                Rpc::Publish,
                topic.as_str(),
                message,
                |mut client, request| Box::pin(async move { client.publish(request).await }),
            )
            .await?;
        let mut outcomes: Vec<_> = response.results.into_iter().map(outcome).collect();
        let unanswered = "the answer holds no result for this event".to_owned();
        outcomes.resize(count, PublishOutcome::Refused(unanswered));
        Ok(outcomes)
    }

    /// Subscribe: opens a stream and asks for its first events (1 to 100). Waits for a session, not for
    /// the org: whether the stream stands is known from its first [`FetchStream::next`].
    pub async fn subscribe(
        &self,
        topic: &Topic,
        from: &ReplayFrom,
        num_requested: u32,
    ) -> Result<FetchStream, PubSubError> {
        let session = self.sessions.current().await?;
        let first = first_request(topic, from, num_requested);
        // Built before the stream, so that a session that cannot be sent is an error here.
        let shell = request(&session, ())?;
        Ok(FetchStream::open(
            self.subscribe.clone(),
            shell,
            first,
            session,
            self.sessions.clone(),
            self.endpoint.clone(),
        ))
    }

    /// One call with one answer, bounded in time. A refused session is replaced, once. `about` is the topic
    /// or schema that the call names.
    async fn unary<M, R>(
        &self,
        rpc: Rpc,
        about: &str,
        message: M,
        call: impl Fn(Client, Request<M>) -> BoxFuture<'static, Result<Response<R>, Status>>,
    ) -> Result<R, PubSubError>
    where
        M: Clone,
    {
        let refused = self.sessions.current().await?;
        let answer = self.attempt(rpc, &refused, message.clone(), &call).await;
        let error = match answer {
            Ok(answer) => {
                self.sessions.accepted(rpc, about, &refused);
                return Ok(answer);
            }
            Err(error) => error,
        };
        if !self.sessions.failed(rpc, about, &refused, &error) {
            return Err(error);
        }
        let session = self.sessions.current().await?;
        if Arc::ptr_eq(&session, &refused) {
            return Err(error);
        }
        tracing::debug!(%rpc, %error, "trying again with a new session");
        let answer = self.attempt(rpc, &session, message, &call).await;
        if answer.is_ok() {
            self.sessions.accepted(rpc, about, &session);
        }
        answer
    }

    async fn attempt<M, R>(
        &self,
        rpc: Rpc,
        session: &Session,
        message: M,
        call: impl Fn(Client, Request<M>) -> BoxFuture<'static, Result<Response<R>, Status>>,
    ) -> Result<R, PubSubError> {
        let request = request(session, message)?;
        match tokio::time::timeout(UNARY_TIMEOUT, call(self.client.clone(), request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(PubSubError::from_status(rpc, &status, &self.endpoint)),
            Err(_) => Err(PubSubError::local(
                rpc,
                Code::DeadlineExceeded,
                format!(
                    "no answer from {} within {} s",
                    self.endpoint,
                    UNARY_TIMEOUT.as_secs()
                ),
            )),
        }
    }
}

/// The channel's settings.
fn endpoint(config: &SalesforceConfig, origin: &Origin) -> Result<Endpoint, PubSubError> {
    let invalid = |error: tonic::transport::Error| {
        PubSubError::Invalid(format!("`salesforce.pubsub_endpoint` is unusable: {error}"))
    };
    let endpoint = Endpoint::from_shared(origin.as_str().to_owned())
        .and_then(|endpoint| endpoint.user_agent(concat!("orgstream/", env!("CARGO_PKG_VERSION"))))
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        // Pings are the only thing that finds a connection whose other end vanished (facts 2.3).
        .http2_keep_alive_interval(config.ping_interval.max(SHORTEST_PING))
        .keep_alive_timeout(config.ping_timeout.max(SHORTEST_PING))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if !origin.is_tls() {
        return Ok(endpoint);
    }
    let roots = tls::roots(config.ca_file.as_deref()).map_err(|reason| {
        PubSubError::Invalid(format!(
            "`salesforce.ca_file` cannot be used: {reason}; set it to a PEM file of the CA certificate to trust, or \
             remove it"
        ))
    })?;
    // Not tonic's own choice of roots: it fails where the machine has none.
    let tls = ClientTlsConfig::new()
        .trust_anchors(roots.roots)
        .timeout(CONNECT_TIMEOUT);
    endpoint.tls_config(tls).map_err(invalid)
}

/// A request with the metadata that every call carries (facts 2.1).
fn request<M>(session: &Session, message: M) -> Result<Request<M>, PubSubError> {
    let value = |text: &str| -> Result<MetadataValue<Ascii>, PubSubError> {
        text.parse().map_err(|_| {
            PubSubError::Auth(AuthError::Unavailable {
                reason: "the session holds characters that cannot be sent".to_owned(),
            })
        })
    };
    let mut token = value(session.access_token.expose_secret())?;
    token.set_sensitive(true);
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("accesstoken", token);
    metadata.insert("instanceurl", value(&session.instance_url)?);
    metadata.insert("tenantid", value(session.org_id.as_str())?);
    metadata.insert("x-client-trace-id", value(&Uuid::new_v4().to_string())?);
    Ok(request)
}

/// The request that names the topic and the place to begin.
fn first_request(topic: &Topic, from: &ReplayFrom, num_requested: u32) -> FetchRequest {
    let (preset, replay_id) = match from {
        ReplayFrom::Latest => (ReplayPreset::Latest, None),
        ReplayFrom::Earliest => (ReplayPreset::Earliest, None),
        ReplayFrom::After(id) => (ReplayPreset::Custom, Some(id.to_wire())),
    };
    FetchRequest {
        topic_name: topic.as_str().to_owned(),
        // By number: an enum left at its zero would silently mean LATEST (facts section 1).
        replay_preset: preset.into(),
        replay_id: replay_id.unwrap_or_default(),
        num_requested: credits(num_requested),
        auth_refresh: String::new(),
    }
}

/// How many events to ask for: nothing is refused by the platform, and more than 100 counts as 100
/// (facts 3.2).
pub(super) fn credits(num_requested: u32) -> i32 {
    i32::try_from(num_requested.clamp(1, MAX_OUTSTANDING)).unwrap_or(1)
}

fn producer_event(event: OutgoingEvent) -> proto::ProducerEvent {
    proto::ProducerEvent {
        id: event.id,
        schema_id: event.schema_id.as_str().to_owned(),
        payload: event.payload,
        headers: Vec::new(),
    }
}

fn outcome(result: proto::PublishResult) -> PublishOutcome {
    match (result.error, ReplayId::from_wire(&result.replay_id)) {
        (Some(error), _) => PublishOutcome::Refused(error.msg),
        (None, Some(replay_id)) => PublishOutcome::Published(replay_id),
        (None, None) => {
            PublishOutcome::Refused("the answer names neither a replay ID nor an error".to_owned())
        }
    }
}
