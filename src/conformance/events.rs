//! Test events: real Avro, decoded as the daemon does it, and marked so that nobody takes them for an org's.

mod schema;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::{HandlerConfig, Ordering, SubscriptionConfig};
use crate::emulator::{Defaults, encode};
use crate::event::{Event, OrgId, RawEvent, ReplayId, Shown, SmolStr, Source, Topic, TopicKind};

use crate::shape::Shape;
use schema::{Kind, schema_texts};

/// What the `id` of each test event begins with.
const MARK: &str = "orgstreamtest-";

/// An organization ID that no org has.
const NO_ORG: &str = "00D000000000000EAA";

/// A host that cannot be (RFC 6761).
const NO_HOST: &str = "handler-test.invalid";

/// Who made the changes: nobody.
const NOBODY: &str = "005000000000000AAA";

/// The largest payload that an event may have, in bytes (facts 3.4: 1 MB), with room for its header.
pub(super) const LARGEST: usize = 1_000_000;

/// Texts shorter than this are found everywhere by chance.
const TELLING: usize = 6;

/// An event with its number.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) number: usize,
    /// What it is, for a person.
    pub(super) what: &'static str,
    pub(super) event: Arc<Event>,
    /// Bytes of the payload, before anything of it was hidden.
    size: usize,
    /// The records whose order it has to keep; none where it is free.
    pub(super) records: Vec<Box<str>>,
}

impl Made {
    fn called(self, what: &'static str) -> Self {
        Self { what, ..self }
    }
}

/// An event that decodes and that is unlike all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oddity {
    /// A text with the character U+0000.
    Nul,
    /// A text of quotes, line ends, and what lies beyond ASCII.
    Texts,
    /// The greatest whole number, and one that JSON does not have.
    Numbers,
    /// No field at all.
    Empty,
    /// A deletion.
    Delete,
    /// A change without its content.
    Gap,
    /// A change that concerns a whole entity.
    Overflow,
    /// A change of many records.
    Many,
}

impl Oddity {
    /// Those of platform events too.
    const PLAIN: [Self; 4] = [Self::Nul, Self::Texts, Self::Numbers, Self::Empty];
    const CHANGES: [Self; 4] = [Self::Delete, Self::Gap, Self::Overflow, Self::Many];

    /// For a person.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nul => "a text with the character U+0000",
            Self::Texts => "a text of quotes, line ends and emoji",
            Self::Numbers => "numbers at the limits of their types",
            Self::Empty => "no field with a value",
            Self::Delete => "a deletion",
            Self::Gap => "a change without its content (GAP_UPDATE)",
            Self::Overflow => "a change of a whole entity (GAP_OVERFLOW)",
            Self::Many => "a change of 20 records",
        }
    }
}

/// Makes the events of a run.
pub(super) struct Maker {
    source: Arc<Source>,
    kinds: Vec<Kind>,
    ordering: Ordering,
    key: Option<String>,
    run: String,
    /// What a user says that a sound event and a bad one hold.
    sound: Option<Map<String, Value>>,
    bad: Option<Map<String, Value>>,
    /// What the handler is shown of them, where that is not all.
    shape: Option<Shape>,
    made: usize,
    records: usize,
}

impl Maker {
    /// Events of this subscription's topic. Schemas come from `schemas`, where there is one of that name,
    /// else ours stand in under the topic's name.
    pub(super) fn new(
        subscription: &SubscriptionConfig,
        schemas: Option<&Path>,
        sound: Option<&Value>,
        bad: Option<&Value>,
    ) -> Result<Self, String> {
        let topic = &subscription.topic;
        let key = subscription.key.as_deref();
        let kinds: Result<Vec<Kind>, String> = schema_texts(topic, schemas)
            .into_iter()
            .map(|text| Kind::new(text, key))
            .collect();
        let org_id = OrgId::parse(NO_ORG).map_err(|error| error.to_string())?;
        Ok(Self {
            source: Arc::new(Source::new(org_id, NO_HOST, topic.clone())),
            kinds: kinds?,
            ordering: subscription.ordering,
            key: subscription.key.clone(),
            run: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
            sound: object(sound, "the sound event")?,
            bad: object(bad, "the bad event")?,
            shape: None,
            made: 0,
            records: 0,
        })
    }

    /// As this handler is shown them.
    pub(super) fn shown_to(mut self, handler: &HandlerConfig) -> Self {
        self.shape = Shape::new(&handler.fields);
        self
    }

    /// What the `id` of each event of this run begins with; its number and a colon follow.
    pub(super) fn mark(&self) -> String {
        format!("{MARK}{}-", self.run)
    }

    /// How many were made.
    pub(super) fn made(&self) -> usize {
        self.made
    }

    /// True where a user has said what a bad event is.
    pub(super) fn knows_bad(&self) -> bool {
        self.bad.is_some()
    }

    /// Whether all events are in one order.
    pub(super) fn is_strict(&self) -> bool {
        self.ordering == Ordering::Strict
    }

    /// True where events have records, so that different ones run side by side.
    pub(super) fn has_records(&self) -> bool {
        self.ordering == Ordering::Record && (self.is_change() || self.key.is_some())
    }

    fn is_change(&self) -> bool {
        is_change(self.source.topic())
    }

    /// Records that no event has had yet. Their IDs cannot be those of an org: no key prefix is `000`.
    pub(super) fn new_records(&mut self, count: usize) -> Vec<String> {
        let first = self.records;
        self.records += count;
        let id = |number: usize| format!("000t{}{:03x}AAA", self.run, number % 4096);
        (first..self.records).map(id).collect()
    }

    /// A record that no event has had yet.
    pub(super) fn new_record(&mut self) -> String {
        self.new_records(1).pop().unwrap_or_default()
    }

    /// An event that nothing is wrong with.
    pub(super) fn sound(&mut self, record: &str) -> Result<Made, String> {
        let kind = self.next_kind();
        let body = self.sound_body(kind);
        self.make(kind, body, json!({"recordIds": [record]}), record, None)
    }

    /// The event that a user says is bad.
    pub(super) fn bad(&mut self, record: &str) -> Result<Made, String> {
        let kind = self.next_kind();
        let body = self.bad.clone().unwrap_or_default();
        let made = self.make(kind, body, json!({"recordIds": [record]}), record, None)?;
        Ok(made.called("the event that it was said to refuse"))
    }

    /// One of the largest size; `None` where the schema has no text to fill that the handler is shown.
    pub(super) fn largest(&mut self, record: &str) -> Result<Option<Made>, String> {
        let mut body = self.sound_body(0);
        let shown = |field: &&String| self.shape.as_ref().is_none_or(|shape| shape.keeps(field));
        let Some(field) = self.kinds[0].texts.iter().find(shown).cloned() else {
            return Ok(None);
        };
        let header = json!({"recordIds": [record]});
        let small = self.make(0, body.clone(), header.clone(), record, None)?;
        let room = LARGEST.saturating_sub(small.size);
        let mut text = self.canary();
        text.push_str(&"x".repeat(room.saturating_sub(text.len())));
        body.insert(field, Value::String(text));
        let made = self.make(0, body, header, record, None)?;
        Ok(Some(made.called("an event of the largest size")))
    }

    /// The change events of one transaction.
    pub(super) fn transaction(&mut self, events: usize) -> Result<Vec<Made>, String> {
        let key = uuid::Uuid::new_v4().to_string();
        let records = self.new_records(events.div_ceil(2));
        let mut made = Vec::with_capacity(events);
        for number in 0..events {
            let record = &records[number / 2];
            let header = json!({"recordIds": [record], "sequenceNumber": number + 1});
            let body = self.sound_body(0);
            made.push(self.make(0, body, header, record, Some(&key))?);
        }
        Ok(made)
    }

    /// The odd events that there are for this topic.
    pub(super) fn oddities(&self) -> Vec<Oddity> {
        let changes = Oddity::CHANGES.iter().filter(|_| self.is_change());
        Oddity::PLAIN.iter().chain(changes).copied().collect()
    }

    /// An odd event.
    pub(super) fn odd(&mut self, oddity: Oddity, record: &str) -> Result<Made, String> {
        let mut header = json!({"recordIds": [record]});
        let number = self.next_kind();
        let mut body = self.sound_body(number);
        let canary = self.canary();
        let kind = &self.kinds[number];
        let fill = |body: &mut Map<String, Value>, fields: &[String], value: Value| {
            for field in fields.iter().take(2) {
                body.insert(field.clone(), value.clone());
            }
        };
        match oddity {
            Oddity::Nul => fill(&mut body, &kind.texts, json!(format!("{canary}\0"))),
            Oddity::Texts => {
                let text = "\"quotes' \\ back\\slash\r\n\ttab \u{2028} \u{202e}right to left\u{202c} \u{1f980} \
                            <&> $(x) %s ';--";
                fill(&mut body, &kind.texts, json!(format!("{canary} {text}")));
            }
            Oddity::Numbers => {
                fill(&mut body, &kind.longs, json!(i64::MAX));
                fill(&mut body, &kind.doubles, json!("NaN"));
                header["commitNumber"] = json!(i64::MAX);
            }
            Oddity::Empty => body.clear(),
            Oddity::Delete => {
                body.clear();
                header["changeType"] = json!("DELETE");
            }
            Oddity::Gap => {
                body.clear();
                header["changeType"] = json!("GAP_UPDATE");
            }
            Oddity::Overflow => {
                body.clear();
                header["changeType"] = json!("GAP_OVERFLOW");
                header["recordIds"] = json!(["000000000000000AAA"]);
            }
            Oddity::Many => header["recordIds"] = json!(self.new_records(20)),
        }
        let made = self.make(number, body, header, record, None)?;
        Ok(made.called(oddity.name()))
    }

    /// What is in no reason: any of these texts.
    pub(super) fn secrets(&self) -> Vec<String> {
        let mut secrets = vec![self.canary()];
        for body in [&self.sound, &self.bad].into_iter().flatten() {
            body.values()
                .for_each(|value| texts_of(value, &mut secrets));
        }
        secrets
    }

    fn canary(&self) -> String {
        format!("canary{}", self.run)
    }

    /// Of a channel's kinds, the next in turn.
    fn next_kind(&self) -> usize {
        self.made % self.kinds.len()
    }

    fn sound_body(&self, kind: usize) -> Map<String, Value> {
        if let Some(sound) = &self.sound {
            return sound.clone();
        }
        let kind = &self.kinds[kind];
        let mut body = Map::new();
        let texts = [
            format!("{}x{}", self.canary(), self.made),
            "orgstream handler-test".into(),
        ];
        for (field, text) in kind.texts.iter().zip(texts) {
            body.insert(field.clone(), Value::String(text));
        }
        body
    }

    fn make(
        &mut self,
        kind: usize,
        mut body: Map<String, Value>,
        mut header: Value,
        record: &str,
        transaction: Option<&str>,
    ) -> Result<Made, String> {
        let number = self.made;
        let kind = &self.kinds[kind];
        if self.is_change() {
            header["changeOrigin"] = json!("orgstream handler-test");
            body.insert("ChangeEventHeader".to_owned(), header);
        } else if let Some(key) = &self.key {
            body.insert(key.clone(), json!(record));
        }
        let received_at = SystemTime::now();
        let now = received_at.duration_since(SystemTime::UNIX_EPOCH).ok();
        let defaults = Defaults {
            now_ms: now
                .and_then(|now| now.as_millis().try_into().ok())
                .unwrap_or(0),
            transaction_key: transaction
                .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned),
            sequence_number: 1,
            commit_number: (1 << 53) + number as i64,
            user_id: NOBODY.to_owned(),
        };
        let payload = encode(&kind.schema, &Value::Object(body), &defaults).map_err(|error| {
            let name = kind.schema.record_name();
            format!("no test event can be made of {name}: {error}")
        })?;
        let size = payload.len();
        let decoded = kind.schema.decode(&payload);
        let decoded = decoded.map_err(|failure| failure.error.to_string())?;
        let key = self.key.as_ref();
        let key = key.and_then(|key| kind.schema.key_text(&payload, key));
        let event = Event {
            source: self.source.clone(),
            raw: RawEvent {
                id: format!("{}{number}", self.mark()).into(),
                schema_id: kind.schema.fingerprint(),
                payload: payload.into(),
                replay_id: ReplayId::from_wire(&self.place(number)),
            },
            decoded,
            received_at,
            // The least there is: a receiver that refuses stale workers must not take it for the newest.
            epoch: 1,
            replayed: false,
            partial: false,
            key,
            shown: Shown::Whole,
            known_as: OnceLock::new(),
        };
        let event = match &self.shape {
            Some(shape) => {
                let shown = shape.apply(&event.decoded);
                event.part(shown.map_err(|error| error.to_string())?)
            }
            None => event,
        };
        self.made += 1;
        Ok(Made {
            number,
            what: "a sound event",
            records: self.records_of(&event),
            event: Arc::new(event),
            size,
        })
    }

    /// A made-up place on the bus.
    fn place(&self, number: usize) -> Bytes {
        let mut place = hex::decode(&self.run).unwrap_or_default();
        place.extend((number as u32).to_be_bytes());
        place.extend([0, 0]);
        place.into()
    }

    fn records_of(&self, event: &Event) -> Vec<Box<str>> {
        let all = |text: &str| vec![text.into()];
        match self.ordering {
            Ordering::None => Vec::new(),
            Ordering::Strict => all(""),
            // A platform event without a key goes on one lane with all others.
            Ordering::Record if event.record_ids().is_empty() => {
                all(event.key.as_deref().unwrap_or(""))
            }
            Ordering::Record => {
                let records: HashSet<&SmolStr> = event.record_ids().iter().collect();
                records.into_iter().map(|id| id.as_str().into()).collect()
            }
        }
    }
}

fn is_change(topic: &Topic) -> bool {
    matches!(
        topic.kind(),
        TopicKind::ChangeEvent | TopicKind::ChangeEventChannel
    )
}

fn object(value: Option<&Value>, what: &str) -> Result<Option<Map<String, Value>>, String> {
    match value {
        None => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields.clone())),
        Some(_) => Err(format!("{what} must be a JSON object with its fields")),
    }
}

/// The texts within a value that are long enough to tell where they come from.
fn texts_of(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) if text.chars().count() >= TELLING => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts_of(item, texts)),
        Value::Object(fields) => fields.values().for_each(|value| texts_of(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
