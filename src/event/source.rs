//! Where events come from, and the attributes that say so.

use super::{OrgId, Topic};
use crate::json;

/// Where a subscription's events come from: what every event of one stream has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    org_id: OrgId,
    topic: Topic,
    pub(super) attributes: SourceAttributes,
}

/// The attributes of a CloudEvent that are the same for all events of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceAttributes {
    pub(super) source: Known,
    pub(super) topic: Known,
    pub(super) org_id: Known,
}

/// A text that is written often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) text: Box<str>,
    /// As JSON, in quotes.
    pub(super) json: Box<[u8]>,
}

impl Source {
    /// A topic of an org. `host` is that of the org's instance URL, for example `acme.my.salesforce.com`; blank where
    /// it is not known.
    pub fn new(org_id: OrgId, host: &str, topic: Topic) -> Self {
        let slashes = if host.is_empty() { "" } else { "//" };
        let source = format!("{slashes}{host}/{org_id}{topic}");
        let attributes = SourceAttributes {
            source: Known::new(&source),
            topic: Known::new(topic.as_str()),
            org_id: Known::new(org_id.as_str()),
        };
        Self {
            org_id,
            topic,
            attributes,
        }
    }

    /// The org whose bus this is.
    pub fn org_id(&self) -> &OrgId {
        &self.org_id
    }

    /// The topic subscribed to.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }
}

impl Known {
    fn new(text: &str) -> Self {
        let mut json = Vec::new();
        json::put_string(&mut json, text);
        Self {
            text: text.into(),
            json: json.into(),
        }
    }
}
