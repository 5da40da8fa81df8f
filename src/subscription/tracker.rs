//! The low-water mark: how far every received event is finished (design 3.1, rules 1 to 3). Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::MAX_HANDLERS;
use crate::event::{Event, EventIdentity, ReplayId, SmolStr};

/// An event's place in the stream as this process received it; grows by one.
pub(super) type Seq = u64;

/// One bit for each handler.
pub(super) type HandlerSet = u64;

/// Finished events without a place of their own that are remembered; beyond it they may be repeated
/// after a restart, which is allowed, instead of filling the memory.
const MAX_HELD: usize = 10_000;

#[derive(Debug)]
struct Entry {
    /// `None` for a keepalive.
    event: Option<Tracked>,
    /// When the event was committed or the keepalive received.
    at: SystemTime,
    replay_id: Option<ReplayId>,
    unfinished: HandlerSet,
    /// Those that do not want it, which are not told of as having finished it.
    unwanted: HandlerSet,
    /// What else keeps the position before it, beside its handlers.
    pins: u32,
    /// The next one is of the same unit: the position does not rest here.
    joined: bool,
}

/// What the tracker remembers of an event.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    pub(super) identity: Identity,
    /// Commit time, or time of receipt.
    pub(super) occurred_at: SystemTime,
    /// Bytes that it holds in memory.
    pub(super) size: usize,
    /// The transaction it is of, where it names one.
    pub(super) transaction: Option<SmolStr>,
}

/// What tells a tracked event from every other. Few are ever asked for theirs, so it is made when somebody asks.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// That of this event.
    Of(Arc<Event>),
    /// This one.
    Is(EventIdentity),
}

impl Identity {
    fn get(&self) -> EventIdentity {
        match self {
            Self::Of(event) => event.identity(),
            Self::Is(identity) => identity.clone(),
        }
    }
}

/// A place on the bus, and the transaction of the event there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) replay_id: ReplayId,
    /// When the event there was committed, or the keepalive received.
    pub(super) at: SystemTime,
    pub(super) transaction: Option<SmolStr>,
    /// The newest event there or before it; `None` where only keepalives were passed.
    pub(super) event: Option<ReplayId>,
}

/// What [`Tracker::advance`] let go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) events: usize,
    pub(super) bytes: usize,
    /// Commit time of the newest event passed.
    pub(super) occurred_at: Option<SystemTime>,
    /// What the position has passed; always empty unless [`Tracker::tell_passed`] was called.
    pub(super) identities: Vec<EventIdentity>,
}

/// Every received event above the position, in stream order.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Several events may carry one replay ID, even across responses.
    channel: bool,
    all: HandlerSet,
    entries: VecDeque<Entry>,
    first: Seq,
    /// Everything before this one is at or below the position.
    passed_to: Seq,
    /// Entries from here on carry a replay ID that is not complete: more events may follow under it.
    incomplete_from: Seq,
    /// The incomplete replay ID.
    incomplete: Option<Place>,
    /// A unit begins here whose last event may not have come yet: nothing of it is let go.
    open_from: Option<Seq>,
    /// Finished events that left the queue although their replay ID is not complete yet, with the handlers that
    /// have finished them.
    held: Vec<(EventIdentity, HandlerSet)>,
    position: Option<Place>,
    /// Where the newest event is that has left the queue.
    last_event: Option<ReplayId>,
    /// What the position has passed since the last [`Tracker::advance`], where that is asked for.
    passed: Option<Vec<EventIdentity>>,
    /// Replay IDs that come in lead nowhere any more ([`Tracker::forget_places`]).
    forgets: bool,
}

impl Tracker {
    /// An empty tracker for a subscription with so many handlers.
    pub(super) fn new(channel: bool, handlers: usize) -> Self {
        Self {
            channel,
            all: all_of(handlers),
            entries: VecDeque::new(),
            first: 0,
            passed_to: 0,
            incomplete_from: 0,
            incomplete: None,
            open_from: None,
            held: Vec::new(),
            position: None,
            last_event: None,
            passed: None,
            forgets: false,
        }
    }

    /// Tells from now on which events the position has passed.
    pub(super) fn tell_passed(&mut self) {
        self.passed = Some(Vec::new());
    }

    /// Takes an event in; `finished` names the handlers that had finished it before a restart.
    pub(super) fn push_event(
        &mut self,
        event: Tracked,
        replay_id: Option<ReplayId>,
        finished: HandlerSet,
    ) -> Seq {
        let seq = self.next_seq();
        let replay_id = replay_id.filter(|_| !self.forgets);
        if let Some(id) = &replay_id {
            if !self.channel {
                self.incomplete_from = seq + 1;
            } else if self.incomplete.as_ref().map(|place| &place.replay_id) != Some(id) {
                self.complete_up_to(seq);
                self.incomplete = Some(Place {
                    replay_id: id.clone(),
                    at: event.occurred_at,
                    transaction: event.transaction.clone(),
                    event: Some(id.clone()),
                });
            }
        }
        self.entries.push_back(Entry {
            at: event.occurred_at,
            event: Some(event),
            replay_id,
            unfinished: self.all & !finished,
            unwanted: 0,
            pins: 0,
            joined: false,
        });
        seq
    }

    /// So many events from here on are one unit: the position rests at the last of them and at none before.
    /// To be told before any of them is let go.
    pub(super) fn join(&mut self, first: Seq, count: usize) {
        for seq in first..first + count.saturating_sub(1) as Seq {
            if let Some(entry) = self.entry_mut(seq) {
                entry.joined = true;
            }
        }
    }

    /// A unit begins at this place whose last event may not have come yet: the position stays before it.
    pub(super) fn open_from(&mut self, first: Option<Seq>) {
        self.open_from = first;
    }

    /// True where everything received before this place is finished.
    pub(super) fn is_first(&self, seq: Seq) -> bool {
        self.first == seq
    }

    /// Takes a keepalive in: a finished mark at its place in the stream.
    pub(super) fn push_keepalive(&mut self, replay_id: ReplayId, received_at: SystemTime) {
        if self.forgets {
            return;
        }
        let seq = self.next_seq();
        self.entries.push_back(Entry {
            event: None,
            at: received_at,
            replay_id: Some(replay_id),
            unfinished: 0,
            unwanted: 0,
            pins: 0,
            joined: false,
        });
        self.complete_up_to(seq + 1);
    }

    /// Keeps the position before an event, whatever its handlers say, until it is unpinned as often.
    pub(super) fn pin(&mut self, seq: Seq) {
        if let Some(entry) = self.entry_mut(seq) {
            entry.pins += 1;
        }
    }

    /// Takes one [`Tracker::pin`] back.
    pub(super) fn unpin(&mut self, seq: Seq) {
        if let Some(entry) = self.entry_mut(seq) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    /// The bus does not know the places any more that this subscription has come by: none of them may become
    /// the position, neither of what is in flight nor of what comes in until [`Tracker::knows_places`].
    pub(super) fn forget_places(&mut self) {
        for entry in &mut self.entries {
            entry.replay_id = None;
        }
        self.incomplete = None;
        self.incomplete_from = self.next_seq();
        self.position = None;
        self.last_event = None;
        self.forgets = true;
    }

    /// From here on the stream brings places that the bus knows.
    pub(super) fn knows_places(&mut self) {
        self.forgets = false;
    }

    /// A handler has finished an event. True where it was the last one to.
    pub(super) fn finish(&mut self, seq: Seq, handlers: HandlerSet) -> bool {
        let Some(entry) = self.entry_mut(seq) else {
            return false;
        };
        let before = entry.unfinished;
        entry.unfinished &= !handlers;
        before != 0 && entry.unfinished == 0
    }

    /// These handlers do not want an event, so that it is finished for them. True where it is now for all.
    ///
    /// After a restart they are asked once more: such marks are not stored.
    pub(super) fn leave_out(&mut self, seq: Seq, handlers: HandlerSet) -> bool {
        if let Some(entry) = self.entry_mut(seq) {
            entry.unwanted |= entry.unfinished & handlers;
        }
        self.finish(seq, handlers)
    }

    /// Every handler: for an event that is parked for all of them.
    pub(super) fn finish_for_all(&mut self, seq: Seq) -> bool {
        self.finish(seq, self.all)
    }

    /// Lets go what is finished up to the first event that is not.
    pub(super) fn advance(&mut self) -> Passed {
        let mut passed = Passed::default();
        while self.front_is_finished() {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            let mut complete = self.first < self.incomplete_from && !entry.joined;
            self.first += 1;
            if self.channel && complete {
                let next = self.entries.iter().find_map(|e| e.replay_id.as_ref());
                complete = next.is_none() || next != entry.replay_id.as_ref();
            }
            if let Some(event) = &entry.event {
                passed.events += 1;
                passed.bytes += event.size;
                passed.occurred_at = Some(event.occurred_at);
                self.last_event = entry.replay_id.clone().or(self.last_event.take());
            }
            match (complete, entry.replay_id) {
                (true, Some(replay_id)) => {
                    // A keepalive under the same replay ID makes that place no younger.
                    let known = self.position.as_ref();
                    let known = known.filter(|place| place.replay_id == replay_id);
                    let at = known.map_or(entry.at, |place| place.at);
                    let (identity, transaction) = entry
                        .event
                        .map(|event| (event.identity, event.transaction))
                        .unzip();
                    self.move_to(Place {
                        at,
                        replay_id,
                        transaction: transaction.flatten(),
                        event: self.last_event.clone(),
                    });
                    if let Some(passed) = &mut self.passed {
                        passed.extend(identity.map(|identity| identity.get()));
                    }
                }
                // No place of its own: it stays above the position until a later one passes.
                (true, None) | (false, _) if self.held.len() < MAX_HELD => {
                    let finished = self.all & !entry.unwanted;
                    let event = entry.event.map(|event| (event.identity.get(), finished));
                    self.held.extend(event);
                }
                _ => {}
            }
        }
        if let Some(identities) = &mut self.passed {
            passed.identities = std::mem::take(identities);
        }
        passed
    }

    /// The place up to which everything is finished, once there is one.
    pub(super) fn position(&self) -> Option<&ReplayId> {
        self.position.as_ref().map(|place| &place.replay_id)
    }

    /// The newest event at or below the position, where one was passed.
    pub(super) fn position_event(&self) -> Option<&ReplayId> {
        self.position.as_ref()?.event.as_ref()
    }

    /// The transaction of the change event at the position.
    pub(super) fn transaction(&self) -> Option<&str> {
        self.position.as_ref()?.transaction.as_deref()
    }

    /// When the event at the position was committed, or the keepalive received.
    pub(super) fn position_time(&self) -> Option<SystemTime> {
        self.position.as_ref().map(|place| place.at)
    }

    /// Every event before this one is finished and let go.
    pub(super) fn low_water(&self) -> Seq {
        self.first
    }

    /// The position has passed every event before this one.
    pub(super) fn passed_to(&self) -> Seq {
        self.passed_to
    }

    /// The place that the next event or keepalive will have.
    pub(super) fn next_seq(&self) -> Seq {
        self.first + self.entries.len() as Seq
    }

    /// Received events that are not let go yet.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.entries.iter().filter(|e| e.event.is_some()).count()
    }

    /// True where the position stands behind all that was received.
    pub(super) fn has_passed_all(&self) -> bool {
        self.entries.is_empty() && self.held.is_empty()
    }

    /// True where nothing received is unfinished.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest unfinished event happened.
    pub(super) fn oldest_unfinished(&self) -> Option<SystemTime> {
        self.entries
            .front()
            .and_then(|entry| entry.event.as_ref())
            .map(|event| event.occurred_at)
    }

    /// What is finished above the position: each event with the handlers that have finished it.
    pub(super) fn finished_ahead(&self) -> impl Iterator<Item = (EventIdentity, HandlerSet)> {
        let held = self.held.iter();
        let held = held.map(|(identity, finished)| (identity.clone(), *finished));
        let held = held.filter(|(_, finished)| *finished != 0);
        let queued = self.entries.iter().filter_map(|entry| {
            let finished = self.all & !entry.unfinished & !entry.unwanted;
            let event = entry.event.as_ref()?;
            (finished != 0).then(|| (event.identity.get(), finished))
        });
        held.chain(queued)
    }

    /// Events under the incomplete replay ID, which come again when the stream resumes before it. Counted,
    /// because nothing forbids two events of one identity.
    pub(super) fn incomplete_events(&self) -> HashMap<EventIdentity, usize> {
        let mut events = HashMap::new();
        let Some(incomplete) = &self.incomplete else {
            return events;
        };
        let from = usize::try_from(self.incomplete_from.saturating_sub(self.first)).unwrap_or(0);
        let queued = self.entries.iter().skip(from).filter_map(|entry| {
            let event = entry.event.as_ref()?;
            (entry.replay_id.as_ref() == Some(&incomplete.replay_id)).then(|| event.identity.get())
        });
        // What is held is under the incomplete ID only if nothing complete is still queued before it.
        let held = self
            .held
            .iter()
            .map(|(identity, _)| identity.clone())
            .filter(|_| self.first >= self.incomplete_from);
        for identity in held.chain(queued) {
            *events.entry(identity).or_insert(0) += 1;
        }
        events
    }

    fn front_is_finished(&self) -> bool {
        let closed = self.open_from.is_none_or(|open| self.first < open);
        closed
            && self
                .entries
                .front()
                .is_some_and(|entry| entry.unfinished == 0 && entry.pins == 0)
    }

    fn entry_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    /// Moves the position, past all that is held.
    fn move_to(&mut self, place: Place) {
        self.position = Some(place);
        self.passed_to = self.first;
        match &mut self.passed {
            Some(passed) => passed.extend(self.held.drain(..).map(|(identity, _)| identity)),
            None => self.held.clear(),
        }
    }

    /// Everything before `seq` carries a complete replay ID now.
    fn complete_up_to(&mut self, seq: Seq) {
        let all_left = self.first >= self.next_seq();
        if all_left
            && !self.held.is_empty()
            && let Some(place) = self.incomplete.take()
        {
            self.move_to(place);
        }
        self.incomplete = None;
        self.incomplete_from = seq;
    }
}

fn all_of(handlers: usize) -> HandlerSet {
    match handlers {
        0 => 0,
        n if n >= MAX_HANDLERS => HandlerSet::MAX,
        n => (1 << n) - 1,
    }
}

#[cfg(test)]
#[path = "tracker_units_tests.rs"]
mod units_tests;

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
