//! What waits in the lanes: events, and the records by which they wait for each other.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use smallvec::{SmallVec, smallvec};

use crate::config::Ordering;
use crate::event::{ChangeEventHeader, Event, SmolStr, Topic, TopicKind, is_entity_wide_id};
use crate::subscription::tracker::Seq;

/// Stands for a record. Two records that share a hash wait for each other, which is harmless.
pub(crate) type RecordHash = u64;

/// Hashes of the records of an event: one, most often.
pub(crate) type Records = SmallVec<[RecordHash; 1]>;

/// What is already a hash need not be hashed once more.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::subscription) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A set of records.
pub(in crate::subscription) type RecordSet = HashSet<RecordHash, BuildHasherDefault<AsItIs>>;

/// Something for each record.
pub(in crate::subscription) type RecordMap<T> = HashMap<RecordHash, T, BuildHasherDefault<AsItIs>>;

/// Every event of a `strict` subscription, and platform events without a key, are one record.
const ONE_LANE: RecordHash = 0;

/// What an event must not overtake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    Free,
    /// Earlier events that nothing orders by records, or all of them.
    OneLane,
    /// Earlier events of the records that it would hold if it were parked.
    ItsRecords,
    /// Earlier events of these records.
    Records(Box<Records>),
    /// Anything, and nothing may overtake it: it concerns a whole entity.
    Barrier,
}

impl Order {
    /// A unit waits for the records of all its events. `records` are those that it would hold if it were parked.
    fn of_unit(unit: &Unit, ordering: Ordering, records: &Records) -> Self {
        if let Unit::One(event) = unit {
            let header = event.decoded.header.as_deref();
            let entity_wide = header.is_some_and(ChangeEventHeader::is_entity_wide);
            return match ordering {
                // The same, most often, and hashed already.
                Ordering::Record if !entity_wide && !records.is_empty() => Self::ItsRecords,
                _ => Self::of_records(order_of(event, ordering), records),
            };
        }
        let mut all = Records::new();
        for event in unit.events() {
            match order_of(event, ordering) {
                Some(records) => all.extend(records),
                None => return Self::Barrier,
            }
        }
        Self::of_records(Some(all), records)
    }

    /// `None` for a barrier.
    fn of_records(order: Option<Records>, its_own: &Records) -> Self {
        match order {
            None => Self::Barrier,
            Some(records) if records.is_empty() => Self::Free,
            Some(records) if records == *its_own => Self::ItsRecords,
            Some(records) if records[..] == [ONE_LANE] => Self::OneLane,
            Some(records) => Self::Records(Box::new(records)),
        }
    }
}

/// The records by which an event waits for those before it; `None` where it concerns a whole entity.
fn order_of(event: &Event, ordering: Ordering) -> Option<Records> {
    match ordering {
        Ordering::None => Some(Records::new()),
        Ordering::Strict => Some(smallvec![ONE_LANE]),
        Ordering::Record => match &event.decoded.header {
            Some(header) if header.is_entity_wide() => None,
            Some(header) if !header.record_ids.is_empty() => {
                Some(header.record_ids.iter().map(hash).collect())
            }
            _ => Some(smallvec![event.key.as_ref().map_or(ONE_LANE, hash)]),
        },
    }
}

/// Which records dead letters hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    ordering: Ordering,
    /// Of change events an ID may stand for a whole entity. The key of a platform event never does, whatever
    /// it looks like.
    change_events: bool,
}

impl Holding {
    /// That of the events of a topic.
    pub(crate) fn new(ordering: Ordering, topic: &Topic) -> Self {
        Self {
            ordering,
            change_events: matches!(
                topic.kind(),
                TopicKind::ChangeEvent | TopicKind::ChangeEventChannel
            ),
        }
    }

    /// The records that a dead letter of these IDs holds, or of this key: none where they stand for a whole
    /// entity, and where nothing is ordered by records.
    pub(crate) fn records(self, record_ids: &[impl AsRef<str>]) -> Records {
        let entity_wide =
            || self.change_events && record_ids.iter().any(|id| is_entity_wide_id(id.as_ref()));
        match self.ordering {
            Ordering::Record if !entity_wide() => record_ids.iter().map(hash).collect(),
            _ => Records::new(),
        }
    }

    fn of(event: &Event, ordering: Ordering) -> Self {
        Self {
            ordering,
            change_events: event.decoded.header.is_some(),
        }
    }
}

/// The IDs of the records that an event concerns; those of a platform event are the value of its key.
pub(in crate::subscription) fn record_ids(event: &Event) -> &[SmolStr] {
    match (&event.decoded.header, &event.key) {
        (None, Some(key)) => std::slice::from_ref(key),
        _ => event.record_ids(),
    }
}

fn hash(record: &impl AsRef<str>) -> RecordHash {
    let mut hasher = DefaultHasher::new();
    record.as_ref().hash(&mut hasher);
    hasher.finish().max(1) // 0 is ONE_LANE
}

/// Where an event that waits came from. In this order they are handed over, as far as their records allow:
/// what is parked before what arrives, and a side replay behind both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::subscription) enum Origin {
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
    pub(in crate::subscription) fn plus(self, events: usize) -> Self {
        match self {
            Self::Live(seq) => Self::Live(seq + events as Seq),
            Self::Replay(seq) => Self::Replay(seq + events as Seq),
            Self::Letter { .. } => self,
        }
    }
}

/// Events that are handed over, handled and parked together: one, or all of a transaction.
#[derive(Debug, Clone)]
pub(in crate::subscription) enum Unit {
    /// By itself.
    One(Arc<Event>),
    /// At least two, in bus order.
    Several(Arc<[Arc<Event>]>),
}

impl Unit {
    /// Its events, in bus order; at least one.
    pub(in crate::subscription) fn events(&self) -> &[Arc<Event>] {
        match self {
            Self::One(event) => std::slice::from_ref(event),
            Self::Several(events) => events,
        }
    }

    /// Bytes of its events as received.
    pub(super) fn size(&self) -> usize {
        self.events().iter().map(|event| event.raw.size()).sum()
    }
}

/// A unit that waits for a handler, or is with it.
#[derive(Debug, Clone)]
pub(in crate::subscription) struct Waiting {
    pub(in crate::subscription) origin: Origin,
    /// When it came into the lanes, by number; 0 before.
    pub(super) arrived: u64,
    pub(in crate::subscription) unit: Unit,
    pub(super) order: Order,
    /// Numbers of the dead letters that it is made of, one for each event; none off a stream.
    pub(in crate::subscription) letters: Option<Arc<[i64]>>,
    /// Where its events came from, where those between them are left out; else they follow each other.
    pub(in crate::subscription) places: Option<Arc<[Origin]>>,
    /// Records by which it is held back, and which it would hold if it were parked.
    pub(in crate::subscription) records: Records,
    /// What it has been through; most have nothing to tell.
    pub(in crate::subscription) trouble: Option<Box<Trouble>>,
    /// Alone in its batch: a batch that held it was refused as a whole, or it is a transaction.
    pub(in crate::subscription) alone: bool,
    /// Perhaps finished: the answer to its commit was lost. It is neither handed over nor parked before the store has
    /// told which it is.
    pub(in crate::subscription) in_doubt: bool,
    /// Hand-overs so far.
    pub(in crate::subscription) attempts: u32,
    /// The handler's successes when this unit failed last.
    pub(in crate::subscription) successes_seen: u64,
}

/// What a unit has been through that was handed over and is not finished.
#[derive(Debug, Clone, Default)]
pub(in crate::subscription) struct Trouble {
    /// Not to be handed over before.
    pub(in crate::subscription) not_before: Option<Instant>,
    /// Not before, because the handler asked for it, however well others fare.
    pub(in crate::subscription) asked_for: Option<Instant>,
    /// Failed hand-overs that count against the unit: the handler succeeded with others meanwhile.
    pub(in crate::subscription) counted: u32,
    /// When it failed first.
    pub(in crate::subscription) failing_since: Option<Instant>,
}

impl Waiting {
    pub(in crate::subscription) fn new(origin: Origin, unit: Unit, ordering: Ordering) -> Self {
        let records = match &unit {
            Unit::One(event) => Holding::of(event, ordering).records(record_ids(event)),
            Unit::Several(events) => (events.iter())
                .flat_map(|event| Holding::of(event, ordering).records(record_ids(event)))
                .collect(),
        };
        let order = Order::of_unit(&unit, ordering, &records);
        Self {
            origin,
            arrived: 0,
            letters: None,
            places: None,
            records,
            alone: matches!(unit, Unit::Several(_)),
            unit,
            order,
            trouble: None,
            in_doubt: false,
            attempts: 0,
            successes_seen: 0,
        }
    }

    /// Not to be handed over before.
    pub(in crate::subscription) fn not_before(&self) -> Option<Instant> {
        self.trouble.as_ref()?.not_before
    }

    /// What it has been through, to be added to.
    pub(in crate::subscription) fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// The records by which it waits for what is before it: none for a barrier, which waits for everything.
    pub(super) fn waits_by(&self) -> &[RecordHash] {
        match &self.order {
            Order::Free | Order::Barrier => &[],
            Order::OneLane => &[ONE_LANE],
            Order::ItsRecords => &self.records,
            Order::Records(records) => records,
        }
    }

    /// Where its last event came from: what is younger than another event is so in the whole, or not at all.
    pub(in crate::subscription) fn last_place(&self) -> Origin {
        let following = self.unit.events().len().saturating_sub(1);
        let last = self.places.as_ref().and_then(|places| places.last());
        last.map_or_else(|| self.origin.plus(following), |last| *last)
    }

    /// What is left without the events of these places, each stretch by itself: parts of what it was.
    pub(in crate::subscription) fn without(
        &self,
        places: &[Origin],
        ordering: Ordering,
    ) -> Vec<Self> {
        let each: Vec<(Origin, &Arc<Event>)> = self.places().zip(self.unit.events()).collect();
        let is_left = |(place, _): &(Origin, &Arc<Event>)| !places.contains(place);
        let stretches = each.chunk_by(|one, next| is_left(one) == is_left(next));
        let left = stretches.filter(|stretch| stretch.first().is_some_and(is_left));
        let part = |stretch: &[(Origin, &Arc<Event>)]| {
            let (places, mut events): (Vec<Origin>, Vec<Arc<Event>>) = stretch
                .iter()
                .map(|(place, event)| (*place, Arc::clone(event)))
                .unzip();
            for event in &mut events {
                Arc::make_mut(event).partial = true;
            }
            let unit = match events.len() {
                1 => Unit::One(events.pop()?),
                _ => Unit::Several(events.into()),
            };
            Some(Self {
                places: Some(places.clone().into()),
                attempts: self.attempts,
                ..Self::new(*places.first()?, unit, ordering)
            })
        };
        left.filter_map(part).collect()
    }

    /// Where each of its events came from.
    pub(in crate::subscription) fn places(&self) -> impl Iterator<Item = Origin> {
        let places = self.places.as_deref().unwrap_or_default();
        let place = |number: usize| places.get(number).copied();
        let numbers = 0..self.unit.events().len();
        numbers.map(move |number| place(number).unwrap_or_else(|| self.origin.plus(number)))
    }
}
