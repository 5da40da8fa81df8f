//! Which events one handler may be given now (design 3.1, rules 5, 6 and 8). Pure.
//!
//! Events wait in bus order. An event is ready when no earlier unfinished event and no call under way
//! holds one of its records; a batch may hold several events of one record, because a handler takes a
//! batch in order.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::tracker::Seq;
use crate::config::Ordering;
use crate::event::Event;
use crate::handler::BatchLimits;

/// Stands for a record. Two records that share a hash wait for each other, which is harmless.
type RecordHash = u64;

/// Every event of a `strict` subscription, and platform events without a key, are one record.
const ONE_LANE: RecordHash = 0;

/// What an event must not overtake.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    /// Nothing.
    Free,
    /// Earlier events of these records.
    Records(Vec<RecordHash>),
    /// Anything, and nothing may overtake it: it concerns a whole entity.
    Barrier,
}

impl Order {
    /// A unit waits for the records of all its events.
    fn of_unit(unit: &Unit, ordering: Ordering) -> Self {
        let mut all = Vec::new();
        for event in unit.events() {
            match Self::of(event, ordering) {
                Self::Free => {}
                Self::Barrier => return Self::Barrier,
                Self::Records(records) => all.extend(records),
            }
        }
        if all.is_empty() {
            Self::Free
        } else {
            Self::Records(all)
        }
    }

    fn of(event: &Event, ordering: Ordering) -> Self {
        match ordering {
            Ordering::None => Self::Free,
            Ordering::Strict => Self::Records(vec![ONE_LANE]),
            Ordering::Record => match &event.decoded.header {
                Some(header) if header.is_entity_wide() => Self::Barrier,
                Some(header) if !header.record_ids.is_empty() => {
                    Self::Records(header.record_ids.iter().map(hash).collect())
                }
                _ => Self::Records(vec![event.key.as_ref().map_or(ONE_LANE, hash)]),
            },
        }
    }
}

fn hash(record: &String) -> RecordHash {
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish().max(1) // 0 is ONE_LANE
}

/// Where an event that waits came from. In this order they are handed over, as far as their records allow:
/// what is parked before what arrives, and a side replay behind both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Origin {
    /// A dead letter that is tried again, by its place and its number.
    Letter {
        /// Order among the dead letters of a handler.
        place: i64,
        /// Number in the store.
        id: i64,
    },
    /// The subscription's own stream.
    Live(Seq),
    /// The stream of a side replay.
    Replay(Seq),
}

/// Events that are handed over, handled and parked together: one, or all of a transaction.
#[derive(Debug, Clone)]
pub(super) enum Unit {
    /// By itself.
    One(Arc<Event>),
    /// At least two, in bus order.
    Several(Arc<[Arc<Event>]>),
}

impl Unit {
    /// Its events, in bus order; at least one.
    pub(super) fn events(&self) -> &[Arc<Event>] {
        match self {
            Self::One(event) => std::slice::from_ref(event),
            Self::Several(events) => events,
        }
    }

    /// Bytes of its events as received.
    fn size(&self) -> usize {
        self.events().iter().map(|event| event.raw.size()).sum()
    }
}

/// A unit that waits for a handler, or is with it.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) origin: Origin,
    pub(super) unit: Unit,
    order: Order,
    /// Not to be handed over before.
    pub(super) not_before: Option<Instant>,
    /// Alone in its batch: a batch that held it was refused as a whole, or it is a transaction.
    pub(super) alone: bool,
    /// Hand-overs so far.
    pub(super) attempts: u32,
    /// Failed hand-overs that count against the unit: the handler succeeded with others meanwhile.
    pub(super) counted: u32,
    /// The handler's successes when this unit failed last.
    pub(super) successes_seen: u64,
    /// When it failed first.
    pub(super) failing_since: Option<Instant>,
    /// What the handler said last.
    pub(super) last_error: Option<String>,
}

impl Waiting {
    pub(super) fn new(origin: Origin, unit: Unit, ordering: Ordering) -> Self {
        let order = Order::of_unit(&unit, ordering);
        Self {
            origin,
            alone: matches!(unit, Unit::Several(_)),
            unit,
            order,
            not_before: None,
            attempts: 0,
            counted: 0,
            successes_seen: 0,
            failing_since: None,
            last_error: None,
        }
    }
}

/// Names a call of the handler.
pub(super) type CallId = u64;

/// What waits for one handler, and what is with it.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    waiting: BTreeMap<Origin, Waiting>,
    /// Records held by each call under way.
    calls: HashMap<CallId, Vec<RecordHash>>,
    held: HashMap<RecordHash, usize>,
    barrier_with_handler: bool,
    next_call: CallId,
}

impl Lanes {
    /// Takes an event in, or back after a failed hand-over.
    pub(super) fn put(&mut self, waiting: Waiting) {
        self.waiting.insert(waiting.origin, waiting);
    }

    /// Events that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Calls under way.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// When the next event that waits for a time may be handed over.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.waiting
            .values()
            .filter_map(|w| w.not_before)
            .filter(|at| *at > now)
            .min()
    }

    /// What the handler said last about an event that waits.
    pub(super) fn last_error(&self) -> Option<String> {
        self.waiting.values().find_map(|w| w.last_error.clone())
    }

    /// The handler is back: what waited for it, and for nothing of its own, need not wait longer.
    pub(super) fn wake_untried(&mut self) {
        for waiting in self.waiting.values_mut().filter(|w| w.counted == 0) {
            waiting.not_before = None;
        }
    }

    /// The next batch, in bus order, with the name of the call that will hold its records.
    pub(super) fn next_batch(
        &mut self,
        now: Instant,
        limits: BatchLimits,
    ) -> Option<(CallId, Vec<Waiting>)> {
        if self.barrier_with_handler {
            return None;
        }
        let chosen = self.choose(now, limits, None);
        self.take(&chosen)
    }

    /// One event to find out whether a handler that fails for all is back: the ready one that was tried
    /// least, so that a single bad event cannot pass for a handler that is down.
    pub(super) fn probe(&mut self, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        if self.barrier_with_handler {
            return None;
        }
        let one = BatchLimits {
            events: 1,
            bytes: 0,
        };
        let mut best: Option<(u32, Origin)> = None;
        let mut skip = HashSet::new();
        // A few dozen candidates tell enough; each look is a scan.
        for _ in 0..32 {
            let Some(origin) = self.choose(now, one, Some(&skip)).first().copied() else {
                break;
            };
            skip.insert(origin);
            let attempts = self.waiting.get(&origin).map_or(0, |w| w.attempts);
            if best.is_none_or(|(least, _)| attempts < least) {
                best = Some((attempts, origin));
            }
            if attempts == 0 {
                break;
            }
        }
        self.take(&[best?.1])
    }

    /// This event alone, if it waits, is due, and nothing is under way.
    pub(super) fn one(&mut self, origin: Origin, now: Instant) -> Option<(CallId, Vec<Waiting>)> {
        let waiting = self.waiting.get(&origin)?;
        let due = waiting.not_before.is_none_or(|at| at <= now);
        (due && self.calls.is_empty()).then(|| self.take(&[origin]))?
    }

    /// The call made last.
    pub(super) fn last_call(&self) -> CallId {
        self.next_call
    }

    /// Ends a call: its records are free again.
    pub(super) fn end_call(&mut self, call: CallId) {
        for record in self.calls.remove(&call).unwrap_or_default() {
            if let Some(count) = self.held.get_mut(&record) {
                *count -= 1;
                if *count == 0 {
                    self.held.remove(&record);
                }
            }
        }
        if self.calls.is_empty() {
            self.barrier_with_handler = false;
        }
    }

    fn choose(
        &self,
        now: Instant,
        limits: BatchLimits,
        skip: Option<&HashSet<Origin>>,
    ) -> Vec<Origin> {
        let mut batch = Vec::new();
        let (mut events, mut bytes) = (0, 0);
        let mut blocked: HashSet<RecordHash> = HashSet::new();
        let mut earlier_waits = false;
        for waiting in self.waiting.values() {
            if events >= limits.events {
                break;
            }
            let due = waiting.not_before.is_none_or(|at| at <= now);
            let skipped = skip.is_some_and(|skip| skip.contains(&waiting.origin));
            let free = match &waiting.order {
                Order::Free => true,
                Order::Records(records) => !records
                    .iter()
                    .any(|r| self.held.contains_key(r) || blocked.contains(r)),
                Order::Barrier => batch.is_empty() && !earlier_waits && self.calls.is_empty(),
            };
            let size = waiting.unit.size();
            let fits = batch.is_empty() || (!waiting.alone && bytes + size <= limits.bytes);
            if due && !skipped && free && fits {
                batch.push(waiting.origin);
                events += waiting.unit.events().len();
                bytes += size;
                if waiting.alone || waiting.order == Order::Barrier {
                    break;
                }
            } else {
                earlier_waits = true;
                match &waiting.order {
                    Order::Free => {}
                    Order::Records(records) => blocked.extend(records),
                    Order::Barrier => break,
                }
                if free && !fits {
                    break;
                }
            }
        }
        batch
    }

    fn take(&mut self, origins: &[Origin]) -> Option<(CallId, Vec<Waiting>)> {
        let batch: Vec<_> = origins
            .iter()
            .filter_map(|origin| self.waiting.remove(origin))
            .collect();
        if batch.is_empty() {
            return None;
        }
        let mut records = Vec::new();
        for waiting in &batch {
            match &waiting.order {
                Order::Free => {}
                Order::Records(r) => records.extend_from_slice(r),
                Order::Barrier => self.barrier_with_handler = true,
            }
        }
        for record in &records {
            *self.held.entry(*record).or_insert(0) += 1;
        }
        self.next_call += 1;
        self.calls.insert(self.next_call, records);
        Some((self.next_call, batch))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::event::{ChangeEventHeader, ChangeType, Decoded, RawEvent, SchemaId, Source};
    use proptest::prelude::*;

    /// A change event of these records.
    pub(in crate::subscription) fn event(records: &[&str]) -> Arc<Event> {
        let header = ChangeEventHeader {
            entity_name: "Account".to_owned(),
            record_ids: records.iter().map(|r| (*r).to_owned()).collect(),
            change_type: ChangeType::Update,
            change_origin: String::new(),
            transaction_key: String::new(),
            sequence_number: 1,
            commit_timestamp: 0,
            commit_number: 0,
            commit_user: String::new(),
            nulled_fields: vec![],
            diff_fields: vec![],
            changed_fields: vec![],
        };
        Arc::new(Event {
            source: Arc::new(Source {
                org_id: crate::event::OrgId::parse("00D58000000arpq").unwrap(),
                host: "h".to_owned(),
                topic: "Account".parse().unwrap(),
            }),
            raw: RawEvent {
                id: "u".to_owned(),
                schema_id: SchemaId::new("s"),
                payload: bytes::Bytes::new(),
                replay_id: None,
            },
            decoded: Decoded {
                record_name: "AccountChangeEvent".into(),
                header: Some(header),
                data: bytes::Bytes::from_static(b"{}"),
                ignored_bits: 0,
            },
            received_at: SystemTime::UNIX_EPOCH,
            epoch: 1,
            replayed: false,
            partial: false,
            key: None,
        })
    }

    fn waiting(seq: Seq, records: &[&str]) -> Waiting {
        Waiting::new(
            Origin::Live(seq),
            Unit::One(event(records)),
            Ordering::Record,
        )
    }

    /// Its place in the stream.
    pub(in crate::subscription) fn seq(waiting: &Waiting) -> Seq {
        match waiting.origin {
            Origin::Live(seq) => seq,
            other => panic!("{other:?}"),
        }
    }

    fn lanes(events: &[&[&str]]) -> Lanes {
        let mut lanes = Lanes::default();
        for (seq, records) in events.iter().enumerate() {
            lanes.put(waiting(seq as Seq, records));
        }
        lanes
    }

    const ONE: BatchLimits = BatchLimits {
        events: 1,
        bytes: 1 << 20,
    };
    const TEN: BatchLimits = BatchLimits {
        events: 10,
        bytes: 1 << 20,
    };

    fn seqs(batch: Option<(CallId, Vec<Waiting>)>) -> Vec<Seq> {
        batch.map_or(vec![], |(_, b)| b.iter().map(seq).collect())
    }

    #[test]
    fn different_records_run_side_by_side_and_one_record_waits() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        let (first, batch) = lanes.next_batch(now, ONE).unwrap();
        assert_eq!(seq(&batch[0]), 0);
        assert_eq!(seqs(lanes.next_batch(now, ONE)), [2]);
        assert!(seqs(lanes.next_batch(now, ONE)).is_empty());
        lanes.end_call(first);
        assert_eq!(seqs(lanes.next_batch(now, ONE)), [1]);
    }

    #[test]
    fn an_event_of_several_records_waits_for_all_of_theirs_and_they_for_it() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A", "B"], &["B"]]);
        let (first, _) = lanes.next_batch(now, ONE).unwrap();
        assert!(
            seqs(lanes.next_batch(now, ONE)).is_empty(),
            "B must not overtake"
        );
        lanes.end_call(first);
        let (second, batch) = lanes.next_batch(now, ONE).unwrap();
        assert_eq!(seq(&batch[0]), 1);
        assert!(seqs(lanes.next_batch(now, ONE)).is_empty());
        lanes.end_call(second);
        assert_eq!(seqs(lanes.next_batch(now, ONE)), [2]);
    }

    #[test]
    fn a_batch_takes_events_of_one_record_in_order() {
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        assert_eq!(seqs(lanes.next_batch(Instant::now(), TEN)), [0, 1, 2]);
    }

    #[test]
    fn an_overflow_is_a_barrier() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["000000000000000AAA"], &["B"]]);
        let (first, batch) = lanes.next_batch(now, TEN).unwrap();
        assert_eq!(batch.len(), 1);
        assert!(seqs(lanes.next_batch(now, TEN)).is_empty());
        lanes.end_call(first);
        let (barrier, batch) = lanes.next_batch(now, TEN).unwrap();
        assert_eq!(seq(&batch[0]), 1);
        assert!(seqs(lanes.next_batch(now, TEN)).is_empty());
        lanes.end_call(barrier);
        assert_eq!(seqs(lanes.next_batch(now, TEN)), [2]);
    }

    #[test]
    fn a_retry_holds_its_record_back_and_no_other() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        let (call, mut batch) = lanes.next_batch(now, ONE).unwrap();
        lanes.end_call(call);
        let mut failed = batch.remove(0);
        failed.not_before = Some(now + Duration::from_secs(1));
        lanes.put(failed);
        assert_eq!(seqs(lanes.next_batch(now, ONE)), [2]);
        assert!(seqs(lanes.next_batch(now, ONE)).is_empty());
        assert_eq!(lanes.next_due(now), Some(now + Duration::from_secs(1)));
        assert_eq!(
            seqs(lanes.next_batch(now + Duration::from_secs(1), ONE)),
            [0]
        );
    }

    #[test]
    fn a_probe_prefers_an_event_that_was_not_tried_yet() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["B"]]);
        let (call, mut batch) = lanes.next_batch(now, ONE).unwrap();
        lanes.end_call(call);
        batch[0].attempts = 3;
        lanes.put(batch.remove(0));
        assert_eq!(seqs(lanes.probe(now)), [1]);
    }

    proptest! {
        /// Whatever fails in between and however calls overlap, first successes of a record follow bus order.
        #[test]
        fn events_of_a_record_are_handled_in_bus_order(
            events in proptest::collection::vec(proptest::collection::btree_set(0u8..4, 1..3), 1..40),
            script in proptest::collection::vec((any::<bool>(), 0usize..8), 0..400),
        ) {
            let now = Instant::now();
            let mut lanes = Lanes::default();
            for (seq, records) in events.iter().enumerate() {
                let names: Vec<String> = records.iter().map(|r| format!("r{r}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                lanes.put(waiting(seq as Seq, &names));
            }
            let limits = BatchLimits { events: 3, bytes: 1 << 20 };
            let mut calls: Vec<(CallId, Vec<Waiting>)> = vec![];
            let mut handled: Vec<Seq> = vec![];
            let finish = |lanes: &mut Lanes, (call, batch): (CallId, Vec<Waiting>), ok: bool, handled: &mut Vec<Seq>| {
                lanes.end_call(call);
                for waiting in batch {
                    if ok { handled.push(seq(&waiting)) } else { lanes.put(waiting) }
                }
            };
            for (ok, which) in script {
                if calls.len() < 4 && let Some(call) = lanes.next_batch(now, limits) {
                    calls.push(call);
                }
                if which < calls.len() {
                    let call = calls.remove(which);
                    finish(&mut lanes, call, ok, &mut handled);
                }
            }
            loop {
                while let Some(call) = calls.pop() {
                    finish(&mut lanes, call, true, &mut handled);
                }
                match lanes.next_batch(now, limits) {
                    Some(call) => calls.push(call),
                    None => break,
                }
            }
            prop_assert_eq!(handled.len(), events.len(), "nothing is stuck");
            for record in 0..4u8 {
                let of_record: Vec<_> = handled.iter().filter(|seq| events[**seq as usize].contains(&record)).collect();
                prop_assert!(of_record.is_sorted(), "record {} out of order: {:?}", record, of_record);
            }
        }
    }
}
