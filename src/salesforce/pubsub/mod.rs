//! The Pub/Sub API: one channel, many streams. Generated types stop here (and at the emulator, the
//! other end of the same contract).

mod client;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod recovery;
mod responses;
mod sessions;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::event::{RawEvent, ReplayId, SchemaId};

pub use client::PubSub;
pub use error::{PubSubError, Rpc};
pub use recovery::Recovery;
pub use stream::FetchStream;

/// Types generated from `proto/pubsub_api.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    rust_2018_idioms
)]
pub mod proto {
    tonic::include_proto!("eventbus.v1");
}

/// The most events that may be owed on one stream (facts 3.2).
pub const MAX_OUTSTANDING: u32 = 100;

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayFrom {
    /// What is published from now on.
    Latest,
    /// Everything the bus still keeps.
    Earliest,
    /// Strictly after this place.
    After(ReplayId),
}

/// What GetTopic tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Full path.
    pub topic: String,
    /// The org's place in Salesforce.
    pub tenant_guid: String,
    /// Whether this user may publish to it.
    pub can_publish: bool,
    /// Whether this user may subscribe to it.
    pub can_subscribe: bool,
    /// Its newest schema; `None` for a channel.
    pub schema_id: Option<SchemaId>,
}

/// One response of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchBatch {
    /// In bus order; empty in a keepalive.
    pub events: Vec<RawEvent>,
    /// The newest place that this stream has passed; what a keepalive moves the position to.
    pub latest_replay_id: Option<ReplayId>,
    /// How many events the server still owes, as it saw it when it answered.
    pub pending_num_requested: u32,
    /// The stream's RPC ID, for Salesforce's support.
    pub rpc_id: String,
}

/// An event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingEvent {
    /// Chosen by the publisher; a UUID.
    pub id: String,
    /// Schema that wrote the payload.
    pub schema_id: SchemaId,
    /// One binary Avro datum.
    pub payload: Bytes,
}

/// How one event of a publish request fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It is on the bus at this place.
    Published(ReplayId),
    /// It was refused; the platform's words.
    Refused(String),
}
