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
use crate::event::{Event, is_entity_wide_id};
use crate::handler::BatchLimits;

/// Stands for a record. Two records that share a hash wait for each other, which is harmless.
pub(super) type RecordHash = u64;

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

/// The records that a dead letter of these IDs holds, or of this key: none where they stand for a whole
/// entity.
pub(super) fn held_records(record_ids: &[String]) -> Vec<RecordHash> {
    if record_ids.iter().any(|id| is_entity_wide_id(id)) {
        return Vec::new();
    }
    record_ids.iter().map(hash).collect()
}

/// The IDs of the records that an event concerns; those of a platform event are the value of its key.
pub(super) fn record_ids(event: &Event) -> &[String] {
    match (&event.decoded.header, &event.key) {
        (None, Some(key)) => std::slice::from_ref(key),
        _ => event.record_ids(),
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

impl Origin {
    /// The place so many events further on the same stream; a dead letter stands by itself.
    pub(super) fn plus(self, events: usize) -> Self {
        match self {
            Self::Live(seq) => Self::Live(seq + events as Seq),
            Self::Replay(seq) => Self::Replay(seq + events as Seq),
            Self::Letter { .. } => self,
        }
    }
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
    /// Numbers of the dead letters that it is made of, one for each event; none off a stream.
    pub(super) letters: Arc<[i64]>,
    /// Records by which it is held back, and which it would hold if it were parked.
    pub(super) records: Vec<RecordHash>,
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
        let records = match ordering {
            Ordering::Record => {
                let events = unit.events().iter();
                let records = events.flat_map(|event| held_records(record_ids(event)));
                records.collect()
            }
            Ordering::Strict | Ordering::None => Vec::new(),
        };
        Self {
            origin,
            letters: Arc::default(),
            records,
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

/// What is next.
#[derive(Debug)]
pub(super) enum Next {
    /// A batch for the handler, with the name of the call that holds its records.
    Call(CallId, Vec<Waiting>),
    /// It is the turn of these, in this order, but they are not to be handed over.
    Aside(Vec<Waiting>),
}

/// Says that a unit whose turn it is may not be handed over: its records are held by a dead letter.
pub(super) type IsHeld<'a> = &'a dyn Fn(&Waiting) -> bool;

/// What a look through the lanes found.
#[derive(Debug, Default)]
struct Chosen {
    batch: Vec<Origin>,
    aside: Vec<Origin>,
}

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

    /// Forgets what waits and came from there.
    pub(super) fn forget(&mut self, from: impl Fn(Origin) -> bool) {
        self.waiting.retain(|origin, _| !from(*origin));
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

    /// The next batch, in bus order; what is held and in its turn leaves the lanes first.
    pub(super) fn next_batch(
        &mut self,
        now: Instant,
        limits: BatchLimits,
        held: IsHeld<'_>,
    ) -> Option<Next> {
        if self.barrier_with_handler {
            return None;
        }
        let chosen = self.choose(now, limits, None, held);
        if chosen.aside.is_empty() {
            return self.take(&chosen.batch);
        }
        Some(self.take_aside(&chosen.aside))
    }

    /// One event to find out whether a handler that fails for all is back: the ready one that was tried
    /// least, so that a single bad event cannot pass for a handler that is down.
    pub(super) fn probe(&mut self, now: Instant, held: IsHeld<'_>) -> Option<Next> {
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
            let chosen = self.choose(now, one, Some(&skip), held);
            if !chosen.aside.is_empty() {
                return Some(self.take_aside(&chosen.aside));
            }
            let Some(origin) = chosen.batch.first().copied() else {
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
    pub(super) fn one(&mut self, origin: Origin, now: Instant) -> Option<Next> {
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
        held: IsHeld<'_>,
    ) -> Chosen {
        let mut chosen = Chosen::default();
        let (mut events, mut bytes) = (0, 0);
        let mut blocked: HashSet<RecordHash> = HashSet::new();
        // Records of the batch, and of what goes aside.
        let mut in_batch: HashSet<RecordHash> = HashSet::new();
        let mut set_aside: HashSet<RecordHash> = HashSet::new();
        let mut earlier_waits = false;
        for waiting in self.waiting.values() {
            if events >= limits.events {
                break;
            }
            let free = match &waiting.order {
                Order::Free => true,
                Order::Records(records) => !records
                    .iter()
                    .any(|r| self.held.contains_key(r) || blocked.contains(r)),
                Order::Barrier => {
                    chosen.batch.is_empty() && !earlier_waits && self.calls.is_empty()
                }
            };
            let is_held =
                free && (waiting.records.iter().any(|r| set_aside.contains(r)) || held(waiting));
            // What goes to the handler before it may come to be parked: it goes aside only after that.
            if is_held && !waiting.records.iter().any(|r| in_batch.contains(r)) {
                chosen.aside.push(waiting.origin);
                set_aside.extend(&waiting.records);
                earlier_waits = true;
                continue;
            }
            let due = waiting.not_before.is_none_or(|at| at <= now);
            let skipped = skip.is_some_and(|skip| skip.contains(&waiting.origin));
            let size = waiting.unit.size();
            let fits = chosen.batch.is_empty() || (!waiting.alone && bytes + size <= limits.bytes);
            if due && !skipped && free && !is_held && fits {
                chosen.batch.push(waiting.origin);
                in_batch.extend(&waiting.records);
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
        chosen
    }

    fn take_aside(&mut self, origins: &[Origin]) -> Next {
        let taken = origins.iter().filter_map(|one| self.waiting.remove(one));
        Next::Aside(taken.collect())
    }

    fn take(&mut self, origins: &[Origin]) -> Option<Next> {
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
        Some(Next::Call(self.next_call, batch))
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

    /// A batch where nothing is held.
    impl Lanes {
        fn batch(&mut self, now: Instant, limits: BatchLimits) -> Option<(CallId, Vec<Waiting>)> {
            as_call(self.next_batch(now, limits, &|_| false))
        }
    }

    fn as_call(next: Option<Next>) -> Option<(CallId, Vec<Waiting>)> {
        next.map(|next| match next {
            Next::Call(call, batch) => (call, batch),
            Next::Aside(aside) => panic!("{aside:?}"),
        })
    }

    fn seqs(batch: Option<(CallId, Vec<Waiting>)>) -> Vec<Seq> {
        batch.map_or(vec![], |(_, b)| b.iter().map(seq).collect())
    }

    #[test]
    fn different_records_run_side_by_side_and_one_record_waits() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        let (first, batch) = lanes.batch(now, ONE).unwrap();
        assert_eq!(seq(&batch[0]), 0);
        assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
        assert!(seqs(lanes.batch(now, ONE)).is_empty());
        lanes.end_call(first);
        assert_eq!(seqs(lanes.batch(now, ONE)), [1]);
    }

    #[test]
    fn an_event_of_several_records_waits_for_all_of_theirs_and_they_for_it() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A", "B"], &["B"]]);
        let (first, _) = lanes.batch(now, ONE).unwrap();
        assert!(
            seqs(lanes.batch(now, ONE)).is_empty(),
            "B must not overtake"
        );
        lanes.end_call(first);
        let (second, batch) = lanes.batch(now, ONE).unwrap();
        assert_eq!(seq(&batch[0]), 1);
        assert!(seqs(lanes.batch(now, ONE)).is_empty());
        lanes.end_call(second);
        assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
    }

    #[test]
    fn a_batch_takes_events_of_one_record_in_order() {
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        assert_eq!(seqs(lanes.batch(Instant::now(), TEN)), [0, 1, 2]);
    }

    #[test]
    fn an_overflow_is_a_barrier() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["000000000000000AAA"], &["B"]]);
        let (first, batch) = lanes.batch(now, TEN).unwrap();
        assert_eq!(batch.len(), 1);
        assert!(seqs(lanes.batch(now, TEN)).is_empty());
        lanes.end_call(first);
        let (barrier, batch) = lanes.batch(now, TEN).unwrap();
        assert_eq!(seq(&batch[0]), 1);
        assert!(seqs(lanes.batch(now, TEN)).is_empty());
        lanes.end_call(barrier);
        assert_eq!(seqs(lanes.batch(now, TEN)), [2]);
    }

    #[test]
    fn a_retry_holds_its_record_back_and_no_other() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
        let (call, mut batch) = lanes.batch(now, ONE).unwrap();
        lanes.end_call(call);
        let mut failed = batch.remove(0);
        failed.not_before = Some(now + Duration::from_secs(1));
        lanes.put(failed);
        assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
        assert!(seqs(lanes.batch(now, ONE)).is_empty());
        assert_eq!(lanes.next_due(now), Some(now + Duration::from_secs(1)));
        assert_eq!(seqs(lanes.batch(now + Duration::from_secs(1), ONE)), [0]);
    }

    #[test]
    fn a_probe_prefers_an_event_that_was_not_tried_yet() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["B"]]);
        let (call, mut batch) = lanes.batch(now, ONE).unwrap();
        lanes.end_call(call);
        batch[0].attempts = 3;
        lanes.put(batch.remove(0));
        assert_eq!(seqs(as_call(lanes.probe(now, &|_| false))), [1]);
    }

    /// What goes aside where these records are held.
    fn aside(lanes: &mut Lanes, now: Instant, held: &[&str]) -> Vec<Seq> {
        let names: Vec<String> = held.iter().map(|name| (*name).to_owned()).collect();
        let held = held_records(&names);
        let is_held = |w: &Waiting| w.records.iter().any(|r| held.contains(r));
        match lanes.next_batch(now, TEN, &is_held) {
            Some(Next::Aside(aside)) => aside.iter().map(seq).collect(),
            Some(Next::Call(call, batch)) => {
                lanes.end_call(call);
                batch.into_iter().for_each(|waiting| lanes.put(waiting));
                vec![]
            }
            None => vec![],
        }
    }

    #[test]
    fn what_is_held_leaves_in_its_turn_with_all_that_shares_a_record_with_it() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"], &["A", "B"], &["C"], &["B"], &["D"]]);
        assert_eq!(aside(&mut lanes, now, &["A"]), [0, 1, 3]);
        assert_eq!(aside(&mut lanes, now, &["A"]), [0; 0]);
        assert_eq!(lanes.waiting(), 2);
    }

    #[test]
    fn what_is_held_by_one_record_waits_for_what_is_before_it_of_another() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["B"], &["A", "B"]]);
        let (call, batch) = lanes.batch(now, ONE).unwrap();
        assert_eq!(seq(&batch[0]), 0);
        assert_eq!(
            aside(&mut lanes, now, &["A"]),
            [0; 0],
            "B is with the handler"
        );
        lanes.end_call(call);
        assert_eq!(aside(&mut lanes, now, &["A"]), [1]);
    }

    #[test]
    fn what_waits_for_another_attempt_goes_aside_all_the_same() {
        let now = Instant::now();
        let mut lanes = lanes(&[&["A"]]);
        let (call, mut batch) = lanes.batch(now, ONE).unwrap();
        lanes.end_call(call);
        let mut failed = batch.remove(0);
        failed.not_before = Some(now + Duration::from_secs(60));
        lanes.put(failed);
        assert_eq!(aside(&mut lanes, now, &["A"]), [0]);
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
                if calls.len() < 4 && let Some(call) = lanes.batch(now, limits) {
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
                match lanes.batch(now, limits) {
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
