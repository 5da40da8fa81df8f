//! Which events one handler may be given now (design 3.1, rules 5, 6 and 8). Pure.
//!
//! Events wait in bus order. An event is ready when no earlier unfinished event and no call under way
//! holds one of its records; a batch may hold several events of one record, because a handler takes a
//! batch in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::time::Instant;

use crate::handler::BatchLimits;

#[cfg(test)]
pub(super) mod tests;
mod unit;

use unit::Order;
pub(crate) use unit::{Holding, Records};
pub(super) use unit::{Origin, RecordHash, RecordMap, RecordSet, Unit, Waiting, record_ids};

/// Names a call of the handler.
pub(super) type CallId = u64;

/// As many units in doubt are looked up together.
const LOOKED_UP: usize = 100;

/// What is next.
#[derive(Debug)]
pub(super) enum Next {
    /// A batch for the handler, with the name of the call that holds its records.
    Call(CallId, Vec<Waiting>),
    /// Units in doubt, for the store to tell which of them are finished, with the name of the call that holds their
    /// records.
    Look(CallId, Vec<Waiting>),
    /// It is the turn of these, in this order, but they are not to be handed over.
    Aside(Vec<Waiting>),
}

/// What [`Lanes::next_batch`] found.
#[derive(Debug)]
pub(super) enum Batch {
    Next(Next),
    /// Less than was asked for, which stays.
    Part,
    Nothing,
}

/// Says that a unit whose turn it is may not be handed over: its records are held by a dead letter.
pub(super) type IsHeld<'a> = &'a dyn Fn(&Waiting) -> bool;

/// What a look through the lanes found.
#[derive(Debug, Default)]
struct Chosen {
    batch: Vec<Origin>,
    aside: Vec<Origin>,
    /// Nothing that comes later could be in the batch, too.
    full: bool,
}

/// What waits for one handler, and what is with it.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    waiting: BTreeMap<Origin, Waiting>,
    /// Records held by each call under way.
    calls: HashMap<CallId, Vec<RecordHash>>,
    held: RecordMap<usize>,
    barrier_with_handler: bool,
    next_call: CallId,
    /// Barriers that wait.
    barriers: usize,
    /// Units in doubt that wait.
    in_doubt: usize,
    /// How many came in.
    arrived: u64,
    /// What the last look found, where that was nothing.
    stuck: Option<Stuck>,
}

/// Everything that waits up to a place waits for records that calls hold, or for something before it that does. That
/// changes when a call ends, or something leaves or comes before that place: until then only what came after it has to
/// be looked at, however often something else happens.
#[derive(Debug)]
struct Stuck {
    to: Origin,
    /// The records that it waits for.
    blocked: RecordSet,
}

impl Lanes {
    /// Takes an event in, or back after a failed hand-over.
    pub(super) fn put(&mut self, mut waiting: Waiting) {
        if waiting.arrived == 0 {
            self.arrived += 1;
            waiting.arrived = self.arrived;
        }
        self.stuck.take_if(|stuck| waiting.origin <= stuck.to);
        self.barriers += usize::from(waiting.order == Order::Barrier);
        self.in_doubt += usize::from(waiting.in_doubt);
        self.waiting.insert(waiting.origin, waiting);
    }

    /// Forgets what waits and came from there.
    pub(super) fn forget(&mut self, from: impl Fn(Origin) -> bool) {
        let gone: Vec<Origin> = self.waiting.keys().copied().filter(|o| from(*o)).collect();
        self.leave(&gone);
    }

    /// Takes these out, in this order.
    fn leave(&mut self, origins: &[Origin]) -> Vec<Waiting> {
        self.stuck = None;
        let mut left = Vec::with_capacity(origins.len());
        left.extend(
            origins
                .iter()
                .filter_map(|origin| self.waiting.remove(origin)),
        );
        let barriers = left.iter().filter(|w: &&Waiting| w.order == Order::Barrier);
        self.barriers -= barriers.count();
        self.in_doubt -= left.iter().filter(|w| w.in_doubt).count();
        left
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
            .filter_map(Waiting::not_before)
            .filter(|at| *at > now)
            .min()
    }

    /// The handler is back: what waited for it, and for nothing of its own, need not wait longer than it was asked to.
    pub(super) fn wake_untried(&mut self) {
        let in_trouble = self.waiting.values_mut().filter_map(|w| w.trouble.as_mut());
        for trouble in in_trouble.filter(|trouble| trouble.counted == 0) {
            trouble.not_before = trouble.asked_for;
        }
    }

    /// The next batch, in bus order; what is held and in its turn leaves the lanes first. Where `only_full`, a batch to
    /// which something could still be added stays.
    pub(super) fn next_batch(
        &mut self,
        now: Instant,
        limits: BatchLimits,
        only_full: bool,
        held: IsHeld<'_>,
    ) -> Batch {
        if self.barrier_with_handler {
            return Batch::Nothing;
        }
        let before = self.stuck.take().filter(|_| self.barriers == 0);
        let (chosen, stuck) = self.choose(now, limits, None, held, before);
        self.stuck = stuck;
        if !chosen.aside.is_empty() {
            return Batch::Next(self.take_aside(&chosen.aside));
        }
        if only_full && !chosen.full && !chosen.batch.is_empty() {
            return Batch::Part;
        }
        self.take(&chosen.batch, Next::Call)
            .map_or(Batch::Nothing, Batch::Next)
    }

    /// Units in doubt, to be looked up: whatever waits before them, for to look hands nothing over.
    pub(super) fn look(&mut self, now: Instant) -> Option<Next> {
        if self.in_doubt == 0 {
            return None;
        }
        let due = |w: &&Waiting| w.in_doubt && w.not_before().is_none_or(|at| at <= now);
        let doubtful = self.waiting.values().filter(due).map(|w| w.origin);
        let doubtful: Vec<Origin> = doubtful.take(LOOKED_UP).collect();
        self.take(&doubtful, Next::Look)
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
            let (chosen, _) = self.choose(now, one, Some(&skip), held, None);
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
        self.take(&[best?.1], Next::Call)
    }

    /// This event alone, if it waits, is due, and nothing is under way.
    pub(super) fn one(&mut self, origin: Origin, now: Instant) -> Option<Next> {
        let due = is_due(self.waiting.get(&origin)?, now);
        (due && self.calls.is_empty()).then(|| self.take(&[origin], Next::Call))?
    }

    /// The call made last.
    pub(super) fn last_call(&self) -> CallId {
        self.next_call
    }

    /// Ends a call: its records are free again.
    pub(super) fn end_call(&mut self, call: CallId) {
        self.stuck = None;
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

    /// A barrier that only newer events, of another stream, would go past, and would for ever: it is next,
    /// once the calls under way are done. While something older waits, it is in nobody's way.
    fn pressing(&self, now: Instant, skip: Option<&HashSet<Origin>>) -> Option<Origin> {
        if self.barriers == 0 {
            return None;
        }
        let is_barrier = |w: &&Waiting| w.order == Order::Barrier;
        let barrier = self.waiting.values().find(is_barrier)?;
        let due = is_due(barrier, now);
        let skipped = skip.is_some_and(|skip| skip.contains(&barrier.origin));
        let mut before = self.waiting.range(..barrier.origin);
        let presses = due && !skipped && before.all(|(_, w)| w.arrived > barrier.arrived);
        presses.then_some(barrier.origin)
    }

    /// What of it is next, from the first that is not known to be stuck `before`; and what is stuck then, where that
    /// is all.
    fn choose(
        &self,
        now: Instant,
        limits: BatchLimits,
        skip: Option<&HashSet<Origin>>,
        held: IsHeld<'_>,
        before: Option<Stuck>,
    ) -> (Chosen, Option<Stuck>) {
        let mut chosen = Chosen::default();
        let (mut events, mut bytes) = (0, 0);
        // Records of the batch, and of what goes aside.
        let mut in_batch = RecordSet::default();
        let mut set_aside = RecordSet::default();
        let mut earlier_waits = before.is_some();
        let first = self.pressing(now, skip);
        let from = match (&before, first) {
            (Some(before), _) => Bound::Excluded(before.to),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let mut stuck_to = before.as_ref().map(|before| before.to);
        let mut blocked = before.map_or_else(RecordSet::default, |before| before.blocked);
        let mut all_stuck = first.is_none();
        for waiting in self.waiting.range((from, Bound::Unbounded)).map(|(_, w)| w) {
            if events >= limits.events {
                break;
            }
            let is_barrier = waiting.order == Order::Barrier;
            let is_taken = |r: &RecordHash| self.held.contains_key(r) || blocked.contains(r);
            let free = if is_barrier {
                chosen.batch.is_empty() && !earlier_waits && self.calls.is_empty()
            } else {
                !waiting.waits_by().iter().any(is_taken)
            };
            let follows = waiting.records.iter().any(|r| set_aside.contains(r));
            let is_replay = matches!(waiting.origin, Origin::Replay(_));
            let is_held = free && !waiting.in_doubt && (held(waiting) || (follows && !is_replay));
            // What a side replay brings may be older than what goes aside before it: that is told once those are
            // parked.
            let free = free && (is_held || !follows);
            // What goes to the handler before it may come to be parked: it goes aside only after that.
            all_stuck &= !free && !waiting.in_doubt && !is_barrier;
            stuck_to = Some(waiting.origin);
            if is_held && !waiting.records.iter().any(|r| in_batch.contains(r)) {
                chosen.aside.push(waiting.origin);
                set_aside.extend(waiting.records.iter().copied());
                earlier_waits = true;
                continue;
            }
            let due = is_due(waiting, now);
            let skipped = skip.is_some_and(|skip| skip.contains(&waiting.origin));
            let size = waiting.unit.size();
            let fits = chosen.batch.is_empty() || (!waiting.alone && bytes + size <= limits.bytes);
            if due && !skipped && free && !is_held && fits {
                chosen.batch.push(waiting.origin);
                in_batch.extend(waiting.records.iter().copied());
                events += waiting.unit.events().len();
                bytes += size;
                if waiting.alone || is_barrier {
                    chosen.full = true;
                    break;
                }
            } else {
                earlier_waits = true;
                if is_barrier {
                    break;
                }
                blocked.extend(waiting.waits_by().iter().copied());
                if free && !fits {
                    chosen.full = true;
                    break;
                }
            }
        }
        chosen.full |= events >= limits.events;
        let stuck = stuck_to.filter(|_| all_stuck);
        (chosen, stuck.map(|to| Stuck { to, blocked }))
    }

    fn take_aside(&mut self, origins: &[Origin]) -> Next {
        Next::Aside(self.leave(origins))
    }

    fn take(&mut self, origins: &[Origin], next: fn(CallId, Vec<Waiting>) -> Next) -> Option<Next> {
        let batch = self.leave(origins);
        if batch.is_empty() {
            return None;
        }
        let mut records = Vec::new();
        for waiting in &batch {
            self.barrier_with_handler |= waiting.order == Order::Barrier;
            records.extend_from_slice(waiting.waits_by());
        }
        for record in &records {
            *self.held.entry(*record).or_insert(0) += 1;
        }
        self.next_call += 1;
        self.calls.insert(self.next_call, records);
        Some(next(self.next_call, batch))
    }
}

/// Whether it may be handed over now, as far as it alone is concerned.
fn is_due(waiting: &Waiting, now: Instant) -> bool {
    !waiting.in_doubt && waiting.not_before().is_none_or(|at| at <= now)
}
