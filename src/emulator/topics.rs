//! What the org offers: topics with the versions of their schemas side by side, and channels with their
//! members. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bus::Feed;
use crate::avro::Schema;
use crate::event::{SchemaId, Topic};

/// The channel that carries every change event (facts 7.1).
const ALL_CHANGE_EVENTS: &str = "/data/ChangeEvents";

/// A schema as GetSchema answers it. Text that is not Avro can be served too: clients meet such.
#[derive(Debug)]
pub(super) struct ServedSchema {
    pub(super) id: SchemaId,
    pub(super) json: Arc<str>,
    /// Compiled, where the text is valid.
    pub(super) schema: Option<Schema>,
}

/// A topic carried by a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The member's own topic.
    pub topic: String,
    /// Fields that the channel adds to updates and deletions although they did not change (facts 7.8).
    #[serde(default)]
    pub enriched_fields: Vec<String>,
}

/// What is known of a topic.
#[derive(Debug, Default)]
struct Offered {
    /// Oldest first; the last one is current.
    versions: Vec<SchemaId>,
}

/// The topics, schemas and channels of the org.
#[derive(Debug)]
pub(super) struct Topics {
    topics: BTreeMap<Arc<str>, Offered>,
    channels: BTreeMap<Arc<str>, Vec<Member>>,
    schemas: HashMap<SchemaId, Arc<ServedSchema>>,
}

/// What GetTopic has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicFacts {
    /// `None` for channels.
    pub(super) schema_id: Option<SchemaId>,
    pub(super) can_publish: bool,
}

impl Topics {
    /// Nothing but the standard channel.
    pub(super) fn new() -> Self {
        Self {
            topics: BTreeMap::new(),
            channels: BTreeMap::from([(ALL_CHANGE_EVENTS.into(), Vec::new())]),
            schemas: HashMap::new(),
        }
    }

    /// Gives a topic a schema, as its newest version; the topic comes to be where there was none.
    /// `id` overrides the fingerprint, for schema texts whose own ID differs from it.
    pub(super) fn add_schema(
        &mut self,
        topic: Option<&Topic>,
        json: &str,
        id: Option<SchemaId>,
    ) -> Result<SchemaId, String> {
        let parsed = Schema::parse(json);
        let id = match (id, &parsed) {
            (Some(id), _) => id,
            (None, Ok(schema)) => schema.fingerprint(),
            (None, Err(error)) => {
                return Err(format!(
                    "{error}; to serve it all the same, name its schema_id"
                ));
            }
        };
        let served = ServedSchema {
            id: id.clone(),
            json: json.into(),
            schema: parsed.ok(),
        };
        self.schemas.insert(id.clone(), Arc::new(served));
        if let Some(topic) = topic {
            self.offer(topic)?;
            if let Some(offered) = self.topics.get_mut(topic.as_str()) {
                offered.versions.retain(|version| *version != id);
                offered.versions.push(id.clone());
            }
        }
        Ok(id)
    }

    /// Makes sure a topic exists, without a schema where it is new.
    pub(super) fn offer(&mut self, topic: &Topic) -> Result<Arc<str>, String> {
        if topic.is_channel() {
            return Err(format!("{topic} is a channel; events belong to one topic"));
        }
        if let Some((name, _)) = self.topics.get_key_value(topic.as_str()) {
            return Ok(Arc::clone(name));
        }
        let name: Arc<str> = topic.as_str().into();
        self.topics.insert(Arc::clone(&name), Offered::default());
        Ok(name)
    }

    /// Takes a topic away, as deselecting its object in Setup does. Its schemas stay retrievable.
    pub(super) fn withdraw(&mut self, topic: &str) -> bool {
        self.topics.remove(topic).is_some() || self.channels.remove(topic).is_some()
    }

    /// Makes or replaces a channel. `/data/ChangeEvents` carries every change event whatever its
    /// members; naming them there only enriches them.
    pub(super) fn set_channel(
        &mut self,
        channel: &Topic,
        members: Vec<Member>,
    ) -> Result<(), String> {
        if !channel.is_channel() {
            return Err(format!("{channel} is not a channel"));
        }
        let side = if channel.as_str().starts_with("/event/") {
            "/event/"
        } else {
            "/data/"
        };
        for member in &members {
            let topic: Topic = member.topic.parse().map_err(|error| format!("{error}"))?;
            if topic.is_channel() || !topic.as_str().starts_with(side) {
                return Err(format!("{topic} cannot be a member of {channel}"));
            }
        }
        self.channels.insert(channel.as_str().into(), members);
        Ok(())
    }

    /// What a stream of this topic receives; `None` for one that does not exist.
    pub(super) fn feed(&self, topic: &str) -> Option<Feed> {
        if let Some((name, _)) = self.topics.get_key_value(topic) {
            return Some(Feed::Topic(Arc::clone(name)));
        }
        let (name, members) = self.channels.get_key_value(topic)?;
        let members = if topic == ALL_CHANGE_EVENTS {
            self.topics
                .keys()
                .filter(|topic| topic.starts_with("/data/"))
                .cloned()
                .collect()
        } else {
            members.iter().map(|m| m.topic.as_str().into()).collect()
        };
        Some(Feed::Channel {
            name: Arc::clone(name),
            members,
        })
    }

    /// The channels that enrich a topic's events, with the fields they add.
    pub(super) fn enriching(&self, topic: &str) -> Vec<(Arc<str>, Vec<String>)> {
        self.channels
            .iter()
            .filter_map(|(name, members)| {
                let member = members.iter().find(|member| member.topic == topic)?;
                let fields = member.enriched_fields.clone();
                (!fields.is_empty()).then(|| (Arc::clone(name), fields))
            })
            .collect()
    }

    /// What GetTopic answers; `None` for a topic that does not exist.
    pub(super) fn facts(&self, topic: &str) -> Option<TopicFacts> {
        if let Some(offered) = self.topics.get(topic) {
            return Some(TopicFacts {
                schema_id: offered.versions.last().cloned(),
                // Change events and channels cannot be published to (facts 5.1).
                can_publish: topic.starts_with("/event/"),
            });
        }
        self.channels.contains_key(topic).then_some(TopicFacts {
            schema_id: None,
            can_publish: false,
        })
    }

    /// The newest schema of a topic.
    pub(super) fn current_schema(&self, topic: &str) -> Option<Arc<ServedSchema>> {
        let id = self.topics.get(topic)?.versions.last()?;
        self.schema(id)
    }

    /// True where the schema is one of the topic's versions.
    pub(super) fn is_version_of(&self, topic: &str, id: &SchemaId) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|offered| offered.versions.contains(id))
    }

    /// Any schema ever added, old versions too.
    pub(super) fn schema(&self, id: &SchemaId) -> Option<Arc<ServedSchema>> {
        self.schemas.get(id).cloned()
    }

    /// The names of all topics and channels.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.topics
            .keys()
            .chain(self.channels.keys())
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"type":"record","name":"A__e","namespace":"com.sforce.eventbus","fields":[{"name":"CreatedDate","type":"long"}]}"#;
    const TWO: &str = r#"{"type":"record","name":"A__e","namespace":"com.sforce.eventbus","fields":[{"name":"CreatedDate","type":"long"},{"name":"X__c","type":["null","string"],"default":null}]}"#;

    fn topic(text: &str) -> Topic {
        text.parse().unwrap()
    }

    #[test]
    fn old_schema_versions_stay_retrievable_beside_the_newest() {
        let mut topics = Topics::new();
        let a = topic("/event/A__e");
        let one = topics.add_schema(Some(&a), ONE, None).unwrap();
        let two = topics.add_schema(Some(&a), TWO, None).unwrap();
        assert_ne!(one, two);
        assert_eq!(topics.facts("/event/A__e").unwrap().schema_id, Some(two));
        assert_eq!(&*topics.schema(&one).unwrap().json, ONE);
        assert!(topics.is_version_of("/event/A__e", &one));
        assert!(topics.withdraw("/event/A__e"));
        assert!(topics.facts("/event/A__e").is_none() && topics.schema(&one).is_some());
    }

    #[test]
    fn text_that_is_not_avro_is_served_only_under_a_given_id() {
        let mut topics = Topics::new();
        assert!(topics.add_schema(None, "not json", None).is_err());
        let id = SchemaId::new("given");
        assert_eq!(
            topics.add_schema(None, "not json", Some(id.clone())),
            Ok(id.clone())
        );
        assert!(topics.schema(&id).unwrap().schema.is_none());
    }

    #[test]
    fn channels_have_no_schema_and_carry_their_members() {
        let mut topics = Topics::new();
        for name in ["/data/AccountChangeEvent", "/data/ContactChangeEvent"] {
            topics.offer(&topic(name)).unwrap();
        }
        topics.offer(&topic("/event/A__e")).unwrap();
        let member = |name: &str| Member {
            topic: name.to_owned(),
            enriched_fields: vec!["Industry".to_owned()],
        };
        let sales = topic("/data/Sales__chn");
        topics
            .set_channel(&sales, vec![member("/data/AccountChangeEvent")])
            .unwrap();
        assert!(
            topics
                .set_channel(&sales, vec![member("/event/A__e")])
                .is_err()
        );
        let members = |name: &str| match topics.feed(name) {
            Some(Feed::Channel { members, .. }) => members.len(),
            _ => 0,
        };
        assert_eq!(members("/data/ChangeEvents"), 2);
        assert_eq!(members("/data/Sales__chn"), 1);
        assert_eq!(topics.facts("/data/Sales__chn").unwrap().schema_id, None);
        assert!(topics.feed("/data/None__chn").is_none());
        let enriching = topics.enriching("/data/AccountChangeEvent");
        assert_eq!(enriching.len(), 1);
        assert_eq!(&*enriching[0].0, "/data/Sales__chn");
    }
}
