//! What tests and the demonstration do with a running emulator; the admin API calls the same.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::bus::StoredEvent;
use super::clock::ClockOutOfRange;
use super::errors::Call;
use super::faults::Fault;
use super::oauth;
use super::org::{Org, StateReport};
use super::publishing::{PublishError, PublishJson, Published, TransactionJson, captured_events};
use super::settings::Settings;
use super::topics::Member;
use crate::event::{OrgId, ReplayId, SchemaId, Topic};

/// Where a running emulator is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoints {
    /// Pub/Sub API: `http://` or, in TLS mode, `https://`, address and port.
    pub pubsub_url: String,
    /// OAuth endpoints, likewise.
    pub login_url: String,
    /// Admin API, always plain HTTP on loopback.
    pub admin_url: String,
    /// What sign-ins name as the org's URL.
    pub instance_url: String,
    /// The org, 18 characters.
    pub org_id: String,
    /// In TLS mode the certificate that clients have to trust, PEM text.
    pub ca_pem: Option<String>,
}

/// Access to a running emulator. Cloning is cheap; all clones are the same org.
#[derive(Debug, Clone)]
pub struct Handle {
    org: Arc<Org>,
    endpoints: Arc<Endpoints>,
    pubsub: SocketAddr,
}

impl Handle {
    pub(super) fn new(org: Arc<Org>, endpoints: Endpoints, pubsub: SocketAddr) -> Self {
        Self {
            org,
            endpoints: Arc::new(endpoints),
            pubsub,
        }
    }

    /// Where everything is found.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Pub/Sub API: scheme, address and port.
    pub fn pubsub_url(&self) -> &str {
        &self.endpoints.pubsub_url
    }

    /// Address of the Pub/Sub listener.
    pub fn pubsub_addr(&self) -> SocketAddr {
        self.pubsub
    }

    /// OAuth endpoints: scheme, address and port.
    pub fn login_url(&self) -> &str {
        &self.endpoints.login_url
    }

    /// Admin API.
    pub fn admin_url(&self) -> &str {
        &self.endpoints.admin_url
    }

    /// What sign-ins name as the org's URL, and calls must send.
    pub fn instance_url(&self) -> &str {
        &self.endpoints.instance_url
    }

    /// In TLS mode the certificate that clients have to trust.
    pub fn ca_pem(&self) -> Option<&str> {
        self.endpoints.ca_pem.as_deref()
    }

    /// The org.
    pub fn org_id(&self) -> &OrgId {
        &self.org.id
    }

    /// Gives a topic a new version of its schema; the topic comes to be where there was none. Without a
    /// topic the schema is only retrievable. `schema_id` overrides the fingerprint, and is needed for
    /// text that is not valid Avro.
    pub fn add_schema(
        &self,
        topic: Option<&str>,
        schema: &str,
        schema_id: Option<&str>,
    ) -> Result<SchemaId, String> {
        let topic: Option<Topic> = match topic {
            Some(topic) => Some(topic.parse().map_err(|error| format!("{error}"))?),
            None => None,
        };
        self.org.change(|state| {
            state
                .topics
                .add_schema(topic.as_ref(), schema, schema_id.map(SchemaId::new))
        })
    }

    /// Makes or replaces a channel.
    pub fn set_channel(&self, channel: &str, members: Vec<Member>) -> Result<(), String> {
        let channel: Topic = channel.parse().map_err(|error| format!("{error}"))?;
        self.org
            .change(|state| state.topics.set_channel(&channel, members))
    }

    /// Takes a topic or channel away; its streams end with an error. False where there was none.
    pub fn withdraw_topic(&self, topic: &str) -> bool {
        self.org.change(|state| state.topics.withdraw(topic))
    }

    /// Publishes one event from its fields.
    pub fn publish(&self, topic: &str, fields: Value) -> Result<Published, PublishError> {
        let request = PublishJson {
            topic: topic.to_owned(),
            events: vec![fields],
            ..PublishJson::default()
        };
        let mut published = self.publish_json(&request)?;
        published.pop().ok_or_else(|| PublishError::Event {
            index: 0,
            reason: "nothing was published".to_owned(),
        })
    }

    /// Publishes events of one topic; all or none.
    pub fn publish_json(&self, request: &PublishJson) -> Result<Vec<Published>, PublishError> {
        self.org.publish_json(request)
    }

    /// Publishes change events of one transaction; all or none.
    pub fn publish_transaction(
        &self,
        request: &TransactionJson,
    ) -> Result<Vec<Published>, PublishError> {
        self.org.publish_transaction(request)
    }

    /// Publishes events byte for byte, whether or not their schema is known.
    pub fn publish_raw(
        &self,
        topic: &str,
        events: Vec<StoredEvent>,
    ) -> Result<Vec<Published>, PublishError> {
        self.org.publish_raw(topic, events)
    }

    /// Publishes the events of a captured FetchResponse byte for byte, at new places.
    pub fn publish_captured(
        &self,
        topic: &str,
        captured: &Value,
    ) -> Result<Vec<Published>, PublishError> {
        self.publish_raw(topic, captured_events(captured)?)
    }

    /// Switches a fault on.
    pub fn fault(&self, fault: Fault) {
        self.org.change(|state| state.faults.add(fault));
    }

    /// Switches all faults off. What already hangs stays so.
    pub fn clear_faults(&self) {
        self.org.change(|state| state.faults.clear());
    }

    /// A live access token, as a sign-in would give.
    pub fn issue_token(&self) -> String {
        oauth::issue_token(&self.org)
    }

    /// A refresh token that a user has granted to an app.
    pub fn grant_refresh_token(&self, client_id: &str, username: &str) -> String {
        let token = oauth::new_token(&self.org, super::TokenFormat::Opaque);
        self.org
            .change(|state| state.tokens.admit_refresh(&token, client_id, username));
        token
    }

    /// Lets every access token expire. Open streams live on.
    pub fn expire_tokens(&self) {
        self.org.change(|state| state.tokens.expire_all());
    }

    /// Revokes every access token. Open streams end where the settings say so.
    pub fn revoke_tokens(&self) {
        self.org.change(|state| state.tokens.revoke_all());
    }

    /// Begins a new line of positions: nothing is kept, every earlier replay ID is invalid, and every
    /// open stream ends.
    pub fn reset_bus(&self, position: Option<u64>) {
        let now = self.org.clock.now();
        self.org.change(|state| state.bus.reset(position, now));
    }

    /// Ends the retention of every event, or of those up to a replay ID in hexadecimal.
    pub fn expire_events(&self, up_to: Option<&str>) -> Result<(), String> {
        self.org.change(|state| {
            let position = match up_to {
                None => None,
                Some(text) => {
                    let replay_id: ReplayId = text.parse().map_err(|error| format!("{error}"))?;
                    let position = state.bus.position_of(replay_id.as_bytes());
                    Some(position.map_err(|_| "no such replay ID on the bus".to_owned())?)
                }
            };
            state.bus.expire_up_to(position);
            Ok(())
        })
    }

    /// Moves the line on without an event that any topic carries.
    pub fn skip_places(&self, places: u64) {
        let now = self.org.clock.now();
        self.org.change(|state| state.bus.skip(places, now));
    }

    /// Puts the org's clock ahead of the system's, or behind, by at most 50 years.
    pub fn set_clock_offset_ms(&self, offset_ms: i64) -> Result<(), ClockOutOfRange> {
        self.org.clock.set_offset_ms(offset_ms)?;
        self.org.change(|_| ());
        Ok(())
    }

    /// Drops every connection to the Pub/Sub API.
    pub fn drop_connections(&self) {
        self.org.lines.drop_all();
    }

    /// Lets every open connection to the Pub/Sub API stop answering, for good.
    pub fn freeze_connections(&self) {
        self.org.lines.freeze_all();
    }

    /// Starts the count of deliveries, and so the allocation, anew.
    pub fn reset_deliveries(&self) {
        self.org.change(|state| state.deliveries = 0);
    }

    /// The switches as they are.
    pub fn settings(&self) -> Settings {
        self.org.state().settings.clone()
    }

    /// Sets the switches; open streams follow at once.
    pub fn set_settings(&self, settings: Settings) {
        self.org.change(|state| state.settings = settings);
    }

    /// Changes some switches.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        self.org.change(|state| change(&mut state.settings));
    }

    /// How often a call was received.
    pub fn calls(&self, call: Call) -> u64 {
        self.org.state().calls.get(&call).copied().unwrap_or(0)
    }

    /// What the org has seen and holds.
    pub fn state(&self) -> StateReport {
        self.org.report()
    }
}
