//! The `kafka` handler: each event is a record of a Kafka topic.
//!
//! It speaks Kafka's protocol itself, the little of it that a producer needs, because no client library in Rust
//! would do: krafka cannot verify a broker's certificate without its host name, which Apache Kafka on Heroku needs, and
//! rdkafka brings OpenSSL. It also lets each partition be as strict as a record's order needs.

mod cluster;
mod connection;
mod login;
mod message;
mod producer;
mod records;
mod settings;
mod trouble;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::warn;

use super::registry::HandlerConfigError;
use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Retry, Template};
use crate::config::HandlerConfig;
use crate::event::{Event, SmolStr};
use cluster::Cluster;
use message::Format;
use producer::{Place, Producer};
use records::{Record, partition_of};
use settings::Settings;
use trouble::{Kind, Trouble};
#[cfg(fuzzing)]
pub(super) use wire::samples::{answers, read_in_every_way};

const BEHIND: &str = "an event before it could not be written";

/// Appends each event to a Kafka topic, and answers when all replicas in sync have it.
///
/// Options: `brokers` (or `KAFKA_URL`); `topic`, a [`Template`] (`orgstream.{topic}`), and its `prefix`; `format`, `json` or
/// `avro`; `sasl` with `user` and `password`; `ca`, `client_cert`, `client_key`, each as text or as `…_file`, and
/// `tls_verify_host`; `idempotent`; `timeout` of a whole call (30 s), `connect_timeout` (5 s).
///
/// The key is the record, so its events are in one partition. A call's events for one partition go out one batch after
/// the other, most often in one, of which each is there as a whole or not at all; batches for different partitions go out
/// side by side.
///
/// An event that is larger than the topic takes, or that the topic does not want, is rejected; all other errors are a
/// [`Retry`] that does not count against the event.
pub(super) struct KafkaHandler {
    producer: Producer,
    topic: Template,
    prefix: String,
    format: Format,
    idempotent: bool,
    timeout: Duration,
}

impl KafkaHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let settings = Settings::read(config, &|name| std::env::var(name).ok())?;
        Ok(Self::new(settings))
    }

    fn new(settings: Settings) -> Self {
        let cluster = Cluster::new(settings.brokers, settings.dial);
        Self {
            producer: Producer::new(cluster, settings.idempotent),
            topic: settings.topic,
            prefix: settings.prefix,
            format: settings.format,
            idempotent: settings.idempotent,
            timeout: settings.timeout,
        }
    }

    fn cluster(&self) -> &Cluster {
        &self.producer.cluster
    }

    fn topic_of(&self, subscription: &str, event: &Event) -> String {
        format!("{}{}", self.prefix, self.topic.render(subscription, event))
    }

    /// Where each event goes, or why that is not known, topic by topic.
    async fn places(&self, batch: &EventBatch, deadline: Instant) -> Vec<Result<Place, Trouble>> {
        let mut partitions: HashMap<Arc<str>, Result<usize, Trouble>> = HashMap::new();
        let mut places = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            let topic: Arc<str> = self.topic_of(&batch.subscription, event).into();
            let known = match partitions.get(&topic) {
                Some(known) => known.clone(),
                None => {
                    let asked =
                        tokio::time::timeout_at(deadline, self.cluster().topic(&topic, None));
                    let known = asked
                        .await
                        .unwrap_or_else(|_| Err(self.late()))
                        .map(|state| state.leaders.len());
                    partitions.insert(topic.clone(), known.clone());
                    known
                }
            };
            places.push(known.map(|count| {
                // Without a record the order of all is kept, in one partition. The key stays away: a topic that
                // is compacted would keep one event of all.
                let key = event.cloud_event().subject().unwrap_or(&batch.subscription);
                let partition = partition_of(key.as_bytes(), count);
                (topic, i32::try_from(partition).unwrap_or(i32::MAX))
            }));
        }
        places
    }

    fn late(&self) -> Trouble {
        Trouble::lasting(format!(
            "no answer from Kafka at {} within {:?}",
            self.cluster().name(),
            self.timeout
        ))
    }

    /// Writes the events of a stretch, partitions side by side; gives an answer for each.
    async fn write(
        &self,
        batch: &EventBatch,
        places: &[Result<Place, Trouble>],
        stretch: std::ops::Range<usize>,
        deadline: Instant,
    ) -> Vec<Answer> {
        let mut answers = vec![retry(BEHIND); stretch.len()];
        let mut lanes: HashMap<&Place, Vec<usize>> = HashMap::new();
        for at in stretch.clone() {
            match &places[at] {
                Ok(place) => lanes.entry(place).or_default().push(at),
                Err(trouble) => answers[at - stretch.start] = retry(&trouble.reason),
            }
        }
        let writing = lanes.into_iter().map(|(place, events)| async move {
            let (written, last) = self.write_lane(batch, place, &events, deadline).await;
            (events, written, last)
        });
        for (events, written, last) in join_all(writing).await {
            for at in &events[..written] {
                answers[at - stretch.start] = Answer::Handled;
            }
            if let (Some(at), Some(last)) = (events.get(written), last) {
                answers[at - stretch.start] = last;
            }
        }
        answers
    }

    /// Writes events of one partition in order. Gives how many are there, and the answer for the next one.
    async fn write_lane(
        &self,
        batch: &EventBatch,
        place: &Place,
        events: &[usize],
        deadline: Instant,
    ) -> (usize, Option<Answer>) {
        let events = events.iter().map(|at| &batch.events[*at]);
        let records = events.map(|event| message::record(self.format, &batch.subscription, event));
        let records: Vec<_> = records.collect();
        let mut todo = in_batches(&records, self.producer.fits(place));
        todo.reverse();
        while let Some(part) = todo.pop() {
            match self
                .producer
                .append(place, &records[part.clone()], deadline)
                .await
            {
                Ok(()) => {}
                // Whose fault it is shows in halves.
                Err(trouble) if part.len() > 1 && trouble.kind.may_be_of_one() => {
                    let middle = part.start + part.len() / 2;
                    todo.push(middle..part.end);
                    todo.push(part.start..middle);
                }
                Err(trouble) => {
                    return (part.start, Some(answer_to(trouble, &records[part.start])));
                }
            }
        }
        (records.len(), None)
    }

    async fn look(&self) -> Result<(), Trouble> {
        let topic = self
            .topic
            .fixed()
            .map(|topic| format!("{}{topic}", self.prefix));
        match &topic {
            None => self.cluster().look().await?,
            Some(topic) => self.look_at(topic).await?,
        }
        if self.idempotent {
            self.cluster().try_producer_id().await?;
        }
        Ok(())
    }

    async fn look_at(&self, topic: &str) -> Result<(), Trouble> {
        // Bits of `operations`, by the numbers of ACL operations.
        const WRITE: i32 = 1 << 4;
        const DESCRIBE: i32 = 1 << 8;
        let (at, state) = self.cluster().describe(topic, true).await?;
        // A broker that does not say gives the least number, or nothing.
        let says = state.operations != i32::MIN && state.operations & DESCRIBE != 0;
        if says && state.operations & WRITE == 0 {
            const NOT_AUTHORISED: i16 = 29;
            return Err(Trouble::code(&at, NOT_AUTHORISED, Some(topic), None));
        }
        if state.replicas < 2 {
            warn!(
                broker = at,
                topic,
                "a partition of the topic is kept by one broker only: when that one's disk is lost, so are events that it \
                 has acknowledged; give the topic more replicas, or know that its provider keeps them"
            );
        }
        Ok(())
    }
}

impl Kind {
    /// Whether one record of a batch may be to blame.
    fn may_be_of_one(self) -> bool {
        matches!(self, Self::TooLarge | Self::Refused)
    }
}

#[async_trait]
impl Handler for KafkaHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let deadline = Instant::now() + self.timeout;
        let places = self.places(batch, deadline).await;
        let mut answers: Vec<Answer> = Vec::with_capacity(places.len());
        for stretch in stretches(batch, &places) {
            answers.extend(self.write(batch, &places, stretch, deadline).await);
            if answers.iter().any(|answer| *answer != Answer::Handled) {
                break;
            }
        }
        answers.resize(places.len(), retry(BEHIND));
        BatchAnswer::Each(answers)
    }

    fn takes_payload(&self) -> bool {
        matches!(self.format, Format::Avro)
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 200,
            bytes: 512 << 10,
        }
    }

    /// Looks for the topic, where its name is the same for every event, and whether we may write to it.
    async fn check(&self) -> Result<(), String> {
        tokio::time::timeout(self.timeout, self.look())
            .await
            .unwrap_or_else(|_| Err(self.late()))
            .map_err(|trouble| trouble.reason)
    }
}

// By hand: what is inside holds secrets.
impl std::fmt::Debug for KafkaHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaHandler")
            .field("brokers", &self.cluster().name())
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// What is wrong with the brokers, or a partition, is not the event's fault while other partitions take theirs.
fn retry(reason: &str) -> Answer {
    Answer::Retry(Retry::because(reason).uncounted())
}

/// What a trouble means for the event whose record it is about.
fn answer_to(trouble: Trouble, record: &Record) -> Answer {
    match trouble.kind {
        // Not its own fault: a topic that is compacted wants a key of every record.
        Kind::Refused if record.key.is_none() => retry(&format!(
            "{}; where the topic is compacted, set `key` of the subscription, or another `topic`",
            trouble.reason
        )),
        Kind::TooLarge | Kind::Refused => Answer::Reject {
            reason: trouble.reason,
        },
        _ => retry(&trouble.reason),
    }
}

/// Parts of a batch within which an event's records are all in the partition that the event goes to. An event that
/// names a record of another partition begins a new part: it goes out when the part before is there.
fn stretches(batch: &EventBatch, places: &[Result<Place, Trouble>]) -> Vec<std::ops::Range<usize>> {
    let mut stretches = Vec::new();
    let mut start = 0;
    let mut held: HashMap<&str, Option<&Place>> = HashMap::new();
    for (at, (event, place)) in batch.events.iter().zip(places).enumerate() {
        let place = place.as_ref().ok();
        let records = || {
            let ids = event.record_ids().iter().map(SmolStr::as_str);
            ids.chain(event.key.as_deref())
        };
        let elsewhere = |record| held.get(record).is_some_and(|held| *held != place);
        if records().any(elsewhere) {
            stretches.push(start..at);
            start = at;
            held.clear();
        }
        held.extend(records().map(|record| (record, place)));
    }
    stretches.push(start..places.len());
    stretches
}

/// Parts of so many bytes that each are one batch of Kafka; one record is a part however large it is.
fn in_batches(records: &[Record], fits: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, record) in records.iter().enumerate() {
        if at > start && bytes + record.size() > fits {
            parts.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += record.size();
    }
    if start < records.len() {
        parts.push(start..records.len());
    }
    parts
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
