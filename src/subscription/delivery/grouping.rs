//! Which events are handed over together (design 3.1, rule 14). Pure: time is passed in.
//!
//! The platform marks no end of a transaction. It is over with the first event of another one, with a
//! keepalive, or when nothing has come for a while. What may be less than the whole is marked `partial`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use smallvec::{SmallVec, smallvec};

use crate::config::{Group as GroupBy, SubscriptionConfig};
use crate::event::{ChangeEventHeader, Event, EventIdentity, SmolStr};
use crate::store::PART;
use crate::subscription::decoder::Undecodable;
use crate::subscription::lanes::Unit;
use crate::subscription::tracker::{HandlerSet, Identity, Seq};

/// What of a transaction came off the stream.
#[derive(Debug, Clone)]
pub(super) enum What {
    Event(Arc<Event>),
    Undecodable(Arc<Undecodable>),
}

impl What {
    fn header(&self) -> Option<&ChangeEventHeader> {
        match self {
            Self::Event(event) => event.decoded.header.as_deref(),
            Self::Undecodable(event) => event.header.as_ref(),
        }
    }

    pub(super) fn identity(&self) -> EventIdentity {
        match self {
            Self::Event(event) => event.identity(),
            Self::Undecodable(event) => event.identity(),
        }
    }

    /// The same for the tracker, which may never ask.
    pub(super) fn to_track(&self) -> Identity {
        match self {
            Self::Event(event) => Identity::Of(Arc::clone(event)),
            Self::Undecodable(event) => Identity::Is(event.identity()),
        }
    }

    /// Takes it out of events that are counted by their identity. False where it is none of them.
    pub(super) fn is_one_of(&self, counted: &mut HashMap<EventIdentity, usize>) -> bool {
        if counted.is_empty() {
            return false; // nobody asks who it is
        }
        let left = counted.get_mut(&self.identity());
        let Some(left) = left.filter(|left| **left > 0) else {
            return false;
        };
        *left -= 1;
        true
    }

    pub(super) fn received_at(&self) -> SystemTime {
        match self {
            Self::Event(event) => event.received_at,
            Self::Undecodable(event) => event.received_at,
        }
    }
}

/// One event of a group.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) what: What,
    /// The handlers that had finished it before a restart.
    pub(super) finished: HandlerSet,
    /// The handlers that do not want it.
    pub(super) unwanted: HandlerSet,
}

/// The events of a group: one, most often, for which nothing is allocated.
pub(super) type Members = SmallVec<[Member; 1]>;

/// Groups, in bus order.
pub(super) type Groups = SmallVec<[Group; 1]>;

/// Events that are handed over or parked together.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Place of the first in the tracker; the others follow it there.
    pub(super) first: Seq,
    /// The place of each, where others between them are left out.
    pub(super) places: Option<Vec<Seq>>,
    /// At least one, in bus order.
    pub(super) members: Members,
    /// Perhaps not the whole transaction; the events say so, too.
    pub(super) partial: bool,
}

impl Group {
    fn one(first: Seq, member: Member) -> Self {
        Self {
            first,
            places: None,
            members: smallvec![member],
            partial: false,
        }
    }

    fn of(open: Open, partial: bool) -> Self {
        if partial {
            return Self::part(open.first, open.members);
        }
        Self {
            first: open.first,
            places: None,
            members: open.members,
            partial,
        }
    }

    /// What a handler has not finished of it: the whole, nothing, or else stretches, as parts: they were
    /// grouped otherwise when it was given the rest. What it does not want is no part of it.
    pub(super) fn left_for(&self, handler: HandlerSet) -> Groups {
        let Some(wanted) = self.wanted(|member| member.unwanted & handler == 0) else {
            return Groups::new();
        };
        let left = |member: &Member| member.finished & handler == 0;
        if wanted.members.iter().all(left) {
            return smallvec![wanted];
        }
        let mut stretches = Groups::new();
        let mut places = wanted.places().into_iter();
        for stretch in (wanted.members).chunk_by(|one, next| left(one) == left(next)) {
            let places: Vec<Seq> = places.by_ref().take(stretch.len()).collect();
            if let Some(first) = places.first().filter(|_| stretch.first().is_some_and(left)) {
                stretches.push(Self {
                    places: wanted.places.as_ref().map(|_| places.clone()),
                    ..Self::part(*first, stretch.into())
                });
            }
        }
        stretches
    }

    /// Without the members that are not `wanted`; `None` where nothing is left.
    pub(super) fn wanted(&self, wanted: impl Fn(&Member) -> bool) -> Option<Self> {
        if self.members.iter().all(&wanted) {
            return Some(self.clone());
        }
        let each = self.places().into_iter().zip(&self.members);
        let (places, members): (Vec<Seq>, Members) = each
            .filter(|(_, member)| wanted(member))
            .map(|(place, member)| (place, member.clone()))
            .unzip();
        Some(Self {
            first: *places.first()?,
            places: Some(places),
            members,
            partial: self.partial,
        })
    }

    /// The place of each member in the tracker.
    pub(super) fn places(&self) -> Vec<Seq> {
        let following = || (self.first..).take(self.members.len()).collect();
        self.places.clone().unwrap_or_else(following)
    }

    fn part(first: Seq, mut members: Members) -> Self {
        for member in &mut members {
            if let What::Event(event) = &mut member.what {
                Arc::make_mut(event).partial = true;
            }
        }
        Self {
            first,
            places: None,
            members,
            partial: true,
        }
    }

    /// Its events, where all of them can be handed over.
    pub(super) fn unit(&self) -> Option<Unit> {
        if let [member] = &self.members[..] {
            return event(member).map(Unit::One);
        }
        let events = self
            .members
            .iter()
            .map(event)
            .collect::<Option<Arc<[_]>>>()?;
        Some(Unit::Several(events))
    }

    /// True where no handler had finished any of it.
    pub(super) fn is_new(&self) -> bool {
        self.members.iter().all(|member| member.finished == 0)
    }

    /// The first event in it that cannot be decoded, so that none of it can be handed over.
    pub(super) fn undecodable(&self) -> Option<&Undecodable> {
        self.members.iter().find_map(|member| match &member.what {
            What::Undecodable(event) => Some(&**event),
            What::Event(_) => None,
        })
    }

    /// What its dead letters have in common: see [`unit_name`].
    pub(super) fn name(&self) -> Option<String> {
        let first = &self.members.first()?.what;
        let key = transaction(first.header())?;
        let together = self.partial || self.members.len() > 1;
        together.then(|| name(key, self.partial, &first.identity()))
    }
}

fn event(member: &Member) -> Option<Arc<Event>> {
    match &member.what {
        What::Event(event) => Some(event.clone()),
        What::Undecodable(_) => None,
    }
}

/// The key of the transaction that a change event is of.
pub(super) fn transaction(header: Option<&ChangeEventHeader>) -> Option<&SmolStr> {
    header
        .map(|header| &header.transaction_key)
        .filter(|key| !key.is_empty())
}

/// What the dead letters of events that were handed over together have in common, so that they come
/// together again; `None` for an event by itself.
pub(in crate::subscription) fn unit_name(unit: &Unit) -> Option<String> {
    let first = unit.events().first()?;
    let key = transaction(first.decoded.header.as_deref())?;
    let together = first.partial || unit.events().len() > 1;
    together.then(|| name(key, first.partial, &first.identity()))
}

/// A transaction may have several parts, each of which is a unit.
fn name(key: &str, partial: bool, first: &EventIdentity) -> String {
    if partial {
        format!("{PART}{key}:{first}")
    } else {
        format!("transaction:{key}")
    }
}

/// A transaction whose last event may not have come yet.
#[derive(Debug)]
struct Open {
    key: Arc<str>,
    first: Seq,
    members: Members,
    /// Came after the members and tell nothing of their transaction: of this one, if more of it follows.
    unread: Vec<Member>,
    partial: bool,
    /// Over if nothing comes until then.
    until: Instant,
}

/// How often at most it is looked whether something can come again, however short the wait is.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Collects events into groups.
#[derive(Debug)]
pub(super) struct Grouping {
    limits: Option<Limits>,
    open: Option<Open>,
    /// The transaction that was over last: more of it is not the whole of it.
    over: Option<Arc<str>>,
    /// What comes next may have begun where we did not see it.
    doubt: bool,
}

/// How large and how long a transaction is collected.
#[derive(Debug, Clone, Copy)]
pub(in crate::subscription) struct Limits {
    /// Silence after which it is over.
    pub(in crate::subscription) wait: Duration,
    /// The most events in one group.
    pub(in crate::subscription) events: usize,
}

impl Limits {
    /// As configured; `None` where each event is handed over by itself.
    pub(super) fn of(config: &SubscriptionConfig) -> Option<Self> {
        (config.group == GroupBy::Transaction).then_some(Self {
            wait: config.group_wait,
            events: config.group_max_events,
        })
    }
}

impl Grouping {
    /// Without limits, each event is a group. `over` is the transaction of the event at the position;
    /// `doubt` says that nobody knows what came just before.
    pub(super) fn new(limits: Option<Limits>, over: Option<&str>, doubt: bool) -> Self {
        Self {
            limits,
            open: None,
            over: over.map(Arc::from),
            doubt,
        }
    }

    /// Takes what came off the stream; gives what is complete by that, in bus order.
    pub(super) fn take(&mut self, seq: Seq, member: Member, now: Instant) -> Groups {
        let Some(limits) = self.limits else {
            return smallvec![Group::one(seq, member)];
        };
        let until = now + limits.wait;
        let key = transaction(member.what.header());
        let sequence = member
            .what
            .header()
            .map_or(0, |header| header.sequence_number);
        match (key, &mut self.open) {
            (Some(key), Some(open)) if *open.key == *key => {
                open.members.extend(open.unread.drain(..));
                open.until = until;
                if open.members.len() < limits.events {
                    open.members.push(member);
                    return Groups::new();
                }
                let key = open.key.clone();
                let part = self.close(true);
                self.begin(key, seq, member, sequence, until);
                part
            }
            (Some(key), _) => {
                let key = Arc::from(key.as_str());
                let over = self.close(false);
                self.begin(key, seq, member, sequence, until);
                over
            }
            (None, Some(open)) if matches!(member.what, What::Undecodable(_)) => {
                open.unread.push(member);
                open.until = until;
                Groups::new()
            }
            (None, _) => {
                self.doubt |= matches!(member.what, What::Undecodable(_));
                let mut over = self.close(false);
                over.push(Group::one(seq, member));
                over
            }
        }
    }

    fn begin(&mut self, key: Arc<str>, seq: Seq, member: Member, sequence: i32, until: Instant) {
        // The first of a transaction has the number 1; another may be the first of those selected.
        let doubt = std::mem::take(&mut self.doubt) && sequence != 1;
        self.open = Some(Open {
            partial: doubt || self.over.as_ref() == Some(&key),
            key,
            first: seq,
            members: smallvec![member],
            unread: Vec::new(),
            until,
        });
    }

    /// Nothing more comes of the open transaction; `partial` where more of it may exist.
    pub(super) fn close(&mut self, partial: bool) -> Groups {
        let Some(mut open) = self.open.take() else {
            return Groups::new();
        };
        let unread = std::mem::take(&mut open.unread);
        // They may have been of this transaction, or of the next.
        self.doubt |= !unread.is_empty();
        let partial = partial || open.partial || !unread.is_empty();
        self.over = Some(open.key.clone());
        let after = open.first + open.members.len() as Seq;
        let unread = (after..).zip(unread);
        std::iter::once(Group::of(open, partial))
            .chain(unread.map(|(seq, member)| Group::one(seq, member)))
            .collect()
    }

    /// A new stream begins: where the last one broke, or, if it does not continue that, somewhere else.
    pub(super) fn resumed(&mut self, continues: bool, now: Instant) -> Groups {
        if continues {
            self.wait_again(now);
            return Groups::new();
        }
        let broken = self.close(true);
        self.doubt = true;
        broken
    }

    /// When the open transaction is over if nothing comes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.until)
    }

    /// The wait begins anew: what ought to have come could not.
    pub(super) fn wait_again(&mut self, now: Instant) {
        if let (Some(open), Some(limits)) = (&mut self.open, &self.limits) {
            open.until = now + limits.wait.max(LEAST_PAUSE);
        }
    }

    /// True where this is the key of the open transaction.
    pub(super) fn is_of(&self, key: Option<&str>) -> bool {
        (self.open.as_ref()).is_some_and(|open| Some(&*open.key) == key)
    }

    /// Where the open transaction begins.
    pub(super) fn open_from(&self) -> Option<Seq> {
        self.open.as_ref().map(|open| open.first)
    }
}

#[cfg(test)]
#[path = "grouping_tests.rs"]
mod tests;
