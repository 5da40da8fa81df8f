//! Appends batches to partitions, each once.
//!
//! A partition has one batch under way at a time, sent again with the same identity and sequence number until it is
//! acknowledged or the call's time is over: the leader, and one that takes over from it, knows the last batches by these
//! and keeps a repeat out. A batch that was given up may still be on its way; the next one goes out under a higher
//! epoch, from whose arrival on brokers refuse what was sent under the one before. So no batch comes in late, behind
//! others that were written after it (KIP-360 does the same).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::debug;

use super::cluster::Cluster;
use super::records::{Record, Stamp, batch};
use super::trouble::{DUPLICATE_SEQUENCE, Kind, Trouble, UNKNOWN_TOPIC};
use super::wire::{PRODUCE, Produced, ProducerId, Reader, length_of, produce};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a call tries for a partition to which nothing of it was sent: what is sick there is not to keep calls that
/// have events for others too.
const SOON: Duration = Duration::from_secs(2);

/// Bytes of records in one batch, which brokers take up to 1 MiB where nothing else is said.
const BATCH_BYTES: usize = 900_000;

/// A partition of a topic.
pub(super) type Place = (Arc<str>, i32);

pub(super) struct Producer {
    pub(super) cluster: Cluster,
    idempotent: bool,
    lanes: Mutex<HashMap<Place, Arc<Shared>>>,
}

/// A partition's lane, and what others may know while somebody has it.
struct Shared {
    lane: tokio::sync::Mutex<Lane>,
    /// When somebody took it last.
    taken: Mutex<Instant>,
    /// Bytes of records to put into a batch; less than [`BATCH_BYTES`] where that is more than the topic takes.
    fits: AtomicUsize,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            lane: tokio::sync::Mutex::default(),
            taken: Mutex::new(Instant::now()),
            fits: AtomicUsize::new(BATCH_BYTES),
        }
    }
}

impl Shared {
    /// The lane, when it is free. `None` at the deadline, and soon where who has it makes no headway.
    async fn take(&self, deadline: Instant) -> Option<tokio::sync::MutexGuard<'_, Lane>> {
        let taken = || self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut look = Instant::now() + SOON;
        let mut free = std::pin::pin!(self.lane.lock());
        loop {
            if let Ok(lane) = tokio::time::timeout_at(look.min(deadline), &mut free).await {
                *taken() = Instant::now();
                return Some(lane);
            }
            look = *taken() + SOON;
            if look.min(deadline) <= Instant::now() {
                return None;
            }
        }
    }
}

/// What the next batch of a partition goes out as.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lane {
    /// `None` until one is asked for, and where none is wanted.
    stamp: Option<Stamp>,
    /// A batch was sent and is not known to be there or not to be: what it was sent as is spent.
    unsettled: bool,
}

impl Lane {
    fn begin(&mut self) {
        if !self.unsettled {
            return;
        }
        self.unsettled = false;
        self.stamp = self.stamp.and_then(|stamp| {
            let ProducerId { id, epoch } = stamp.producer;
            let epoch = epoch.checked_add(1)?;
            Some(Stamp {
                producer: ProducerId { id, epoch },
                sequence: 0,
            })
        });
    }

    fn settle(&mut self, count: i32) {
        self.unsettled = false;
        if let Some(stamp) = &mut self.stamp {
            // From the largest number on to 0, as the brokers do.
            stamp.sequence = stamp.sequence.wrapping_add(count) & i32::MAX;
        }
    }
}

/// A batch as it was encoded, which stays the same at every attempt under one stamp.
#[derive(Default)]
struct Encoded(Option<(Option<Stamp>, Vec<u8>)>);

impl Encoded {
    /// The batch, and whether it was asked for before under this stamp.
    fn get(&mut self, records: &[Record], stamp: Option<Stamp>) -> (&[u8], bool) {
        let same = self.0.take().filter(|(known, _)| *known == stamp);
        let before = same.is_some();
        let (_, bytes) = self
            .0
            .insert(same.unwrap_or_else(|| (stamp, batch(records, stamp, now_ms()))));
        (bytes, before)
    }
}

/// The time of sending and not of the event: the topic's retention counts from it.
fn now_ms() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

impl Producer {
    pub(super) fn new(cluster: Cluster, idempotent: bool) -> Self {
        Self {
            cluster,
            idempotent,
            lanes: Mutex::default(),
        }
    }

    /// How many bytes of records to put into a batch for a partition.
    pub(super) fn fits(&self, place: &Place) -> usize {
        self.lane(place).fits.load(Ordering::Relaxed)
    }

    /// Appends these records, which are few enough for one batch; all are there or none, or what became of them is not
    /// known. A dropped call is the same as one that failed.
    pub(super) async fn append(
        &self,
        place: &Place,
        records: &[Record],
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let appended = self.append_by(place, records, deadline).await;
        match appended.as_ref().map_err(|trouble| trouble.kind) {
            Ok(()) | Err(Kind::Refused) => {}
            Err(Kind::TooLarge) => {
                // So that not every batch has to be refused first.
                let bytes: usize = records.iter().map(Record::size).sum();
                let fits = &self.lane(place).fits;
                fits.fetch_min(bytes / 2, Ordering::Relaxed);
            }
            // Another broker may lead the partition by the time the daemon tries again.
            Err(_) => self.cluster.forget(&place.0),
        }
        appended
    }

    async fn append_by(
        &self,
        place: &Place,
        records: &[Record],
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let shared = self.lane(place);
        let soon = Instant::now() + SOON;
        let lane = shared.take(deadline).await;
        let mut lane = lane.ok_or_else(|| self.behind(place))?;
        lane.begin();
        let mut encoded = Encoded::default();
        let mut since = None;
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        loop {
            let attempt = self.attempt(&mut lane, place, records, &mut encoded, since);
            let trouble = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(trouble)) => trouble,
                Err(_) => return Err(self.late(place, last)),
            };
            let again = match trouble.kind {
                Kind::Passing => true,
                Kind::Identity => {
                    lane.stamp = None;
                    true
                }
                // What was never sent may as well wait at the daemon.
                Kind::Connection => lane.unsettled,
                Kind::Lasting | Kind::TooLarge | Kind::Refused => false,
            };
            // What may be on its way is given up late, for it takes its epoch along.
            let until = if lane.unsettled {
                deadline
            } else {
                soon.min(deadline)
            };
            let next = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            if !again || next >= until {
                return Err(trouble);
            }
            debug!(topic = %place.0, partition = place.1, reason = trouble.reason, "a batch is sent again");
            last = Some(trouble);
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            // Who leads the partition may have changed.
            since = Some(Instant::now());
        }
    }

    async fn attempt(
        &self,
        lane: &mut Lane,
        place: &Place,
        records: &[Record],
        encoded: &mut Encoded,
        since: Option<Instant>,
    ) -> Result<(), Trouble> {
        let (topic, partition) = place;
        let state = self.cluster.topic(topic, since).await?;
        let leader = usize::try_from(*partition)
            .ok()
            .and_then(|n| state.leaders.get(n).copied());
        let broker = match leader {
            // The topic was made anew, with fewer.
            None => {
                return Err(Trouble::code(
                    &self.cluster.name(),
                    UNKNOWN_TOPIC,
                    Some(topic),
                    None,
                ));
            }
            Some(..0) => {
                let reason = format!(
                    "partition {partition} of topic {topic} of Kafka at {} has no leader just now: look at the brokers",
                    self.cluster.name()
                );
                return Err(Trouble::new(Kind::Passing, reason));
            }
            // Where others are there, one of them takes over.
            Some(leader) => self.cluster.broker(leader).await.map_err(|trouble| {
                let kind = match trouble.kind {
                    Kind::Connection => Kind::Passing,
                    kind => kind,
                };
                Trouble { kind, ..trouble }
            })?,
        };
        let version = broker.version(PRODUCE)?;
        if self.idempotent && lane.stamp.is_none() {
            let producer = self.cluster.producer_id(&broker).await?;
            lane.stamp = Some(Stamp {
                producer,
                sequence: 0,
            });
        }
        // The broker gives up before we do, and says why.
        let patience = self.cluster.request_timeout().mul_f64(0.8).as_millis();
        let patience = i32::try_from(patience).unwrap_or(i32::MAX).max(1);
        let (bytes, sent_before) = encoded.get(records, lane.stamp);
        let request = produce(topic, *partition, patience, bytes);
        lane.unsettled = true;
        let answer = broker.ask(PRODUCE, version, &request).await?;
        let produced = broker.read(Produced::read(version, Reader(&answer)))?;
        match produced.error {
            0 => {}
            // Long there, and others behind it: of a batch that is sent for the first time as this it cannot be.
            DUPLICATE_SEQUENCE if sent_before => {}
            code => {
                return Err(Trouble::code(
                    broker.at(),
                    code,
                    Some(topic),
                    produced.said.as_deref(),
                ));
            }
        }
        lane.settle(length_of(records));
        Ok(())
    }

    fn lane(&self, place: &Place) -> Arc<Shared> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry(place.clone()).or_default().clone()
    }

    fn behind(&self, (topic, partition): &Place) -> Trouble {
        let at = self.cluster.name();
        Trouble::lasting(format!(
            "Kafka at {at} has not acknowledged an earlier batch for partition {partition} of topic {topic}"
        ))
    }

    fn late(&self, (topic, partition): &Place, last: Option<Trouble>) -> Trouble {
        last.unwrap_or_else(|| {
            let at = self.cluster.name();
            Trouble::lasting(format!(
                "no acknowledgement from Kafka at {at} for partition {partition} of topic {topic} within `timeout`"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: i16, sequence: i32) -> Option<Stamp> {
        Some(Stamp {
            producer: ProducerId { id: 5, epoch },
            sequence,
        })
    }

    fn lane(epoch: i16, sequence: i32, unsettled: bool) -> Lane {
        Lane {
            stamp: stamp(epoch, sequence),
            unsettled,
        }
    }

    #[test]
    fn what_is_acknowledged_moves_the_sequence_on() {
        let mut lane = lane(3, 10, true);
        lane.settle(5);
        lane.begin();
        assert_eq!(lane, self::lane(3, 15, false));
        let mut lane = self::lane(3, i32::MAX - 1, true);
        lane.settle(2);
        assert_eq!(lane, self::lane(3, 0, false));
    }

    #[test]
    fn what_was_given_up_spends_its_epoch() {
        let mut lane = lane(3, 10, true);
        lane.begin();
        assert_eq!(lane, self::lane(4, 0, false));
        let mut lane = self::lane(i16::MAX, 10, true);
        lane.begin();
        assert_eq!(lane, Lane::default(), "a new identity is asked for");
    }

    #[test]
    fn a_batch_is_the_same_at_every_attempt_under_one_stamp() {
        let record = Record {
            key: None,
            value: b"v".to_vec(),
            headers: Vec::new(),
        };
        let mut encoded = Encoded::default();
        let records = std::slice::from_ref(&record);
        let (first, before) = encoded.get(records, stamp(1, 0));
        let (first, at) = (first.to_vec(), first.as_ptr());
        assert!(!before);
        let (again, before) = encoded.get(records, stamp(1, 0));
        assert_eq!((again.as_ptr(), before), (at, true));
        let (other, before) = encoded.get(records, stamp(2, 0));
        assert_ne!(other, first);
        assert!(!before);
    }
}
