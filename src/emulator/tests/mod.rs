//! Behaviour on the wire, seen by clients that share no code with ours: a bare generated gRPC client
//! and a bare HTTP client.

mod admin;
mod captured;
mod change_events;
mod faults;
mod oauth;
mod publish;
mod subscribe;
mod topics;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

use super::*;
use crate::salesforce::pubsub::proto::pub_sub_client::PubSubClient;
use crate::salesforce::pubsub::proto::{FetchRequest, FetchResponse, ReplayPreset};

const ORDERS: &str = "/event/Order__e";
const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Every wait in these tests ends by then.
const LIMIT: Duration = Duration::from_secs(10);

fn order_schema() -> String {
    json!({"type": "record", "name": "Order__e", "namespace": "com.sforce.eventbus", "fields": [
        {"name": "CreatedDate", "type": "long", "doc": "CreatedDate:DateTime"},
        {"name": "CreatedById", "type": "string", "doc": "CreatedBy:EntityId"},
        {"name": "Number__c", "type": ["null", "string"], "default": null},
    ]})
    .to_string()
}

fn account_schema() -> String {
    let text = json!(["null", "string"]);
    let strings = json!({"type": "array", "items": "string"});
    let change_type = json!({"type": "enum", "name": "ChangeType", "symbols": ["CREATE", "UPDATE",
        "DELETE", "UNDELETE", "GAP_CREATE", "GAP_UPDATE", "GAP_DELETE", "GAP_UNDELETE",
        "GAP_OVERFLOW", "SNAPSHOT"]});
    let header = json!({"type": "record", "name": "ChangeEventHeader", "fields": [
        {"name": "entityName", "type": "string"}, {"name": "recordIds", "type": strings},
        {"name": "changeType", "type": change_type}, {"name": "changeOrigin", "type": "string"},
        {"name": "transactionKey", "type": "string"}, {"name": "sequenceNumber", "type": "int"},
        {"name": "commitTimestamp", "type": "long"}, {"name": "commitNumber", "type": "long"},
        {"name": "commitUser", "type": "string"}, {"name": "nulledFields", "type": strings},
        {"name": "diffFields", "type": strings}, {"name": "changedFields", "type": strings}]});
    let address = json!({"type": "record", "name": "Address", "fields": [
        {"name": "Street", "type": text, "default": null},
        {"name": "City", "type": text, "default": null}]});
    json!({"type": "record", "name": "AccountChangeEvent", "namespace": "com.sforce.eventbus",
        "fields": [
        {"name": "ChangeEventHeader", "type": header},
        {"name": "Name", "type": text, "default": null},
        {"name": "BillingAddress", "type": ["null", address], "default": null},
        {"name": "Industry", "type": text, "default": null},
        {"name": "Phone", "type": text, "default": null},
        {"name": "LastModifiedDate", "type": ["null", "long"], "default": null}]})
    .to_string()
}

/// An emulator with two topics, and a bare client signed in to it.
struct Org {
    emulator: Emulator,
    client: PubSubClient<Channel>,
    token: String,
}

impl Org {
    async fn start() -> Self {
        Self::start_with(EmulatorConfig::default()).await
    }

    async fn start_with(config: EmulatorConfig) -> Self {
        let emulator = Emulator::start(config).await.unwrap();
        for (topic, schema) in [(ORDERS, order_schema()), (ACCOUNTS, account_schema())] {
            emulator.add_schema(Some(topic), &schema, None).unwrap();
        }
        let mut endpoint = Endpoint::from_shared(emulator.pubsub_url().to_owned()).unwrap();
        if let Some(ca) = emulator.ca_pem() {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            endpoint = endpoint.tls_config(tls).unwrap();
        }
        let token = emulator.issue_token();
        Self {
            client: PubSubClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(16 * 1024 * 1024),
            token,
            emulator,
        }
    }

    /// A request with the three headers.
    fn signed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let headers = [
            ("accesstoken", self.token.as_str()),
            ("instanceurl", self.emulator.instance_url()),
            ("tenantid", self.emulator.org_id().as_str()),
        ];
        for (name, value) in headers {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        request
    }

    async fn subscribe(&self, first: FetchRequest) -> Result<Subscription, Status> {
        let (requests, queue) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let call = self.signed(ReceiverStream::new(queue));
        let responses = self.client.clone().subscribe(call).await?.into_inner();
        Ok(Subscription {
            requests,
            responses,
        })
    }

    fn publish_orders(&self, numbers: std::ops::Range<u32>) -> Vec<Published> {
        numbers
            .map(|n| {
                let fields = json!({"Number__c": format!("O-{n}")});
                self.emulator.publish(ORDERS, fields).unwrap()
            })
            .collect()
    }

    fn set(&self, change: impl FnOnce(&mut Settings)) {
        self.emulator.change_settings(change);
    }
}

struct Subscription {
    requests: mpsc::Sender<FetchRequest>,
    responses: Streaming<FetchResponse>,
}

impl Subscription {
    /// The next response; `None` at a clean end.
    async fn next(&mut self) -> Result<Option<FetchResponse>, Status> {
        tokio::time::timeout(LIMIT, self.responses.message())
            .await
            .expect("a response within the limit")
    }

    /// Responses until so many events have come.
    async fn events(&mut self, count: usize) -> Vec<FetchResponse> {
        let mut responses = Vec::new();
        let mut events = 0;
        while events < count {
            let response = self.next().await.unwrap().unwrap();
            events += response.events.len();
            responses.push(response);
        }
        assert_eq!(events, count);
        responses
    }

    async fn ask(&self, num_requested: i32) {
        let more = FetchRequest {
            num_requested,
            ..FetchRequest::default()
        };
        self.requests.send(more).await.unwrap();
    }

    /// The error that ends the stream, after whatever comes before it.
    async fn failure(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended cleanly"),
                Err(status) => return status,
            }
        }
    }
}

fn fetch(topic: &str, preset: ReplayPreset, num_requested: i32) -> FetchRequest {
    FetchRequest {
        topic_name: topic.to_owned(),
        replay_preset: preset.into(),
        num_requested,
        ..FetchRequest::default()
    }
}

fn after(topic: &str, replay_id: &str, num_requested: i32) -> FetchRequest {
    FetchRequest {
        replay_id: hex::decode(replay_id).unwrap().into(),
        ..fetch(topic, ReplayPreset::Custom, num_requested)
    }
}

/// The error code without its prefix; every refusal has the three trailers.
fn code(status: &Status) -> String {
    let trailer = |name: &str| {
        let value = status.metadata().get(name);
        value.map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    let rpc_id = trailer("rpc-id");
    assert!(!rpc_id.is_empty() && !trailer("type").is_empty());
    assert!(status.message().ends_with(&format!(" rpcId: {rpc_id}")));
    let code = trailer("error-code");
    code.strip_prefix("sfdc.platform.eventbus.grpc.")
        .unwrap()
        .to_owned()
}

fn ids(responses: &[FetchResponse]) -> Vec<String> {
    let events = responses.iter().flat_map(|response| &response.events);
    events
        .map(|event| event.event.as_ref().unwrap().id.clone())
        .collect()
}

fn published_ids(published: &[Published]) -> Vec<String> {
    published.iter().map(|event| event.id.clone()).collect()
}

/// An event's fields as JSON, unions unwrapped.
fn decoded(emulator: &Emulator, event: &crate::salesforce::pubsub::proto::ConsumerEvent) -> Value {
    let event = event.event.as_ref().unwrap();
    let schemas = [order_schema(), account_schema()];
    let schema = schemas
        .iter()
        .map(|json| crate::avro::Schema::parse(json).unwrap())
        .find(|schema| schema.fingerprint().as_str() == event.schema_id)
        .unwrap_or_else(|| panic!("no schema for an event of {}", emulator.org_id()));
    let decoded = schema.decode(&event.payload).ok().unwrap();
    serde_json::from_slice(&decoded.data).unwrap()
}
