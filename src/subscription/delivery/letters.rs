//! Dead letters: what parks behind which, what is tried again when, and what becomes of it (design 3.1,
//! rules 7 and 9).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::grouping::Group;
use super::{Delivery, end_of_task};
use crate::config::{BackoffConfig, Ordering};
use crate::event::{RawEvent, ReplayId};
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, Store};
use crate::subscription::backoff::Backoff;
use crate::subscription::handler_run::Verdict;
use crate::subscription::held::{
    Drawing, Held, Known, NewLetter, PARKED_BEHIND, Place, Since, Slot, Ticket,
};
use crate::subscription::lanes::{Origin, RecordHash, Waiting, held_records};
use crate::subscription::letter_loader::{LetterLoader, Loaded, LoadedLetter, NotLoaded};
use crate::subscription::observe::Outcome;
use crate::subscription::parking::{Done, Move, Parking, dead_letter, dead_letters};
use crate::subscription::tracker::HandlerSet;

/// Pauses while letters cannot be loaded, or their schema cannot be had.
const LOAD_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(30),
};

/// The dead letters of a subscription.
pub(super) struct Letters {
    pub(super) held: Held,
    pub(super) parking: Parking,
    max_parked: usize,
    loader: LetterLoader,
    /// At most one portion at a time, so that they enter the lanes in order.
    loading: JoinSet<Loaded>,
    /// What is in the lanes, and with handlers, by handler and origin.
    in_lanes: HashMap<(usize, Origin), Vec<Ticket>>,
    /// To be looked at again when the pause is over.
    put_off: Vec<Ticket>,
    not_before: Option<Instant>,
    backoff: Backoff,
}

/// What comes of work on dead letters.
pub(super) enum News {
    /// The store has taken a write; `None` where another worker has taken over.
    Written(Option<Done>),
    /// A portion is loaded, or cannot be.
    Loaded(Loaded),
}

/// What it takes to have dead letters.
pub(in crate::subscription) struct LettersSetup {
    /// All that are open.
    pub(in crate::subscription) open: Vec<LetterSummary>,
    /// Where the stream resumes: that event does not come again.
    pub(in crate::subscription) resume_after: Option<ReplayId>,
    pub(in crate::subscription) max_parked: usize,
    pub(in crate::subscription) loader: LetterLoader,
}

impl Letters {
    pub(super) fn new(
        setup: LettersSetup,
        lease: &Lease,
        store: &Arc<dyn Store>,
        ordering: Ordering,
        handlers: Vec<String>,
    ) -> Self {
        let mut held = Held::new(handlers, Drawing::default());
        for summary in setup.open {
            let records = records_of(&summary, ordering);
            let here = summary.replay_id.is_some() && summary.replay_id == setup.resume_after;
            let to_come = summary.to_come && !here;
            held.load(summary, records, to_come);
        }
        Self {
            held,
            parking: Parking::new(lease.clone(), store.clone()),
            max_parked: setup.max_parked,
            loader: setup.loader,
            loading: JoinSet::new(),
            in_lanes: HashMap::new(),
            put_off: Vec::new(),
            not_before: None,
            backoff: Backoff::new(LOAD_RETRY),
        }
    }

    /// True where a unit whose turn it is may not be handed over: an event of it is parked already, or has
    /// to park behind one that is.
    pub(super) fn is_held(&self, handler: usize, waiting: &Waiting) -> bool {
        if self.held.is_empty() && !matches!(waiting.origin, Origin::Letter { .. }) {
            return false;
        }
        match waiting.origin {
            Origin::Letter { .. } => self
                .in_lanes
                .get(&(handler, waiting.origin))
                .is_none_or(|tickets| self.held.must_wait(tickets)),
            Origin::Live(_) | Origin::Replay(_) => {
                let slot = Slot::Handler(handler);
                self.is_parked(slot, waiting)
                    || self
                        .held
                        .holder(slot, &waiting.records, waiting.origin)
                        .is_some()
            }
        }
    }

    fn is_parked(&self, slot: Slot, waiting: &Waiting) -> bool {
        let mut events = waiting.unit.events().iter();
        events.any(|event| {
            let unread = || self.held.open(Slot::Everyone, &event.raw.identity_unread());
            self.held.open(slot, &event.identity()).is_some()
                || (self.held.has_undecoded() && unread().is_some())
        })
    }

    /// The open letter of the event that this one would be of.
    fn open(&self, slot: Slot, letter: &DeadLetter) -> Option<Ticket> {
        let unread = || {
            let raw = RawEvent {
                id: letter.event_uuid.clone(),
                schema_id: letter.schema_id.clone(),
                payload: letter.payload.clone(),
                replay_id: letter.replay_id.clone(),
            };
            self.held.open(Slot::Everyone, &raw.identity_unread())
        };
        let known = self.held.open(slot, &letter.identity);
        known.or_else(|| self.held.has_undecoded().then(unread)?)
    }

    /// The stream has brought a group once more, of which these handlers had finished some before a restart.
    pub(super) fn came_by(&mut self, slot: Slot, group: &Group, handlers: HandlerSet) {
        if self.held.is_empty() {
            return;
        }
        for (seq, member) in (group.first..).zip(&group.members) {
            if member.finished & handlers != 0
                && let Some(parked) = self.held.open(slot, &member.what.identity())
            {
                self.held.came_by(parked, Since::After(seq));
            }
        }
    }

    /// How many more letters may be open.
    fn room(&self) -> usize {
        self.max_parked.saturating_sub(self.held.stored())
    }

    /// What a person has to do, where nothing more can be parked.
    pub(super) fn full(&self, subscription: &str) -> Option<String> {
        self.parking.is_full(self.room()).then(|| {
            format!(
                "{} events are parked, and max_parked allows for no more: what comes to be parked waits, and \
                 with it the stream; see `orgstream dead-letters list --subscription {subscription}`, then \
                 retry or discard some, or raise max_parked",
                self.held.stored()
            )
        })
    }

    /// When there is something to look at again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.not_before
    }

    /// What is written or loaded next. Never ends while nothing is on its way. Cancel-safe.
    pub(super) async fn news(&mut self) -> News {
        tokio::select! {
            done = self.parking.done() => News::Written(done),
            Some(loaded) = self.loading.join_next() => {
                News::Loaded(loaded.unwrap_or_else(|error| end_of_task(error)))
            }
        }
    }

    /// A person changed something in the store.
    pub(super) fn asked(&mut self) {
        self.parking.write(Move::Look);
    }

    fn put_off(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        self.put_off.extend(tickets);
        if self.not_before.is_none() {
            self.not_before = Some(Instant::now() + self.backoff.next_pause());
        }
    }

    /// Begins to load what may be tried now.
    fn draw(&mut self) {
        if self.not_before.is_some_and(|at| at <= Instant::now()) {
            self.not_before = None;
            for ticket in std::mem::take(&mut self.put_off) {
                self.held.consider(ticket);
            }
        }
        if !self.loading.is_empty() {
            return;
        }
        let drawn = self.held.draw();
        if !drawn.is_empty() {
            let loader = self.loader.clone();
            self.loading.spawn(async move { loader.load(drawn).await });
        }
    }

    fn error_behind(&self, ticket: Option<Ticket>) -> String {
        let known = ticket.and_then(|ticket| self.held.known(ticket));
        match known {
            Some(Known::Id(id)) => {
                format!("waits behind dead letter {id}, which holds a record of it")
            }
            Some(Known::Event(identity)) => {
                format!("waits behind event {identity}, which is parked and holds a record of it")
            }
            None => "waits behind an event of the same transaction".to_owned(),
        }
    }
}

/// The records that a letter of the store holds.
fn records_of(summary: &LetterSummary, ordering: Ordering) -> Vec<RecordHash> {
    match ordering {
        Ordering::Record => held_records(&summary.record_ids),
        Ordering::Strict | Ordering::None => Vec::new(),
    }
}

impl Delivery {
    /// Writes what is to be written, and begins with what may be tried again.
    pub(super) fn follow_letters(&mut self) {
        let letters = &mut self.letters;
        letters.held.passed(self.tracker.low_water());
        let room = letters.room();
        let held = &letters.held;
        letters.parking.go_on(room, |ticket, origin| match origin {
            Origin::Live(seq) => held.place_of(ticket, seq),
            Origin::Letter { .. } | Origin::Replay(_) => Place::Last,
        });
        if !self.stop.is_cancelled() && self.assignment.clock.holds(Instant::now()) {
            letters.draw();
        }
    }

    /// Takes units whose turn it was, but that are held.
    pub(super) fn set_aside(&mut self, handler: usize, units: Vec<Waiting>) {
        for waiting in units {
            match waiting.origin {
                Origin::Letter { .. } => {
                    let tickets = self.letters.in_lanes.remove(&(handler, waiting.origin));
                    for ticket in tickets.unwrap_or_default() {
                        self.letters.held.put_back(ticket);
                    }
                }
                Origin::Live(_) | Origin::Replay(_) => self.park_behind(handler, &waiting),
            }
        }
    }

    /// Parks what has to wait behind a dead letter; what is parked already is finished by that.
    fn park_behind(&mut self, handler: usize, waiting: &Waiting) {
        let (name, bit) = (self.runs[handler].name.clone(), self.runs[handler].bit);
        let slot = Slot::Handler(handler);
        let holder = self
            .letters
            .held
            .holder(slot, &waiting.records, waiting.origin);
        let error = self.letters.error_behind(holder);
        let letters = dead_letters(waiting, &name, PARKED_BEHIND, &error);
        self.park_new(waiting.origin, Some((slot, bit)), letters);
    }

    /// Parks the events of a unit, less those that are parked already: the stream has brought them once more.
    pub(super) fn park_new(
        &mut self,
        origin: Origin,
        handler: Option<(Slot, HandlerSet)>,
        letters: Vec<DeadLetter>,
    ) {
        let (slot, bit) = handler.map_or((Slot::Everyone, None), |(slot, bit)| (slot, Some(bit)));
        let open: Vec<Option<Ticket>> = letters
            .iter()
            .map(|letter| self.letters.open(slot, letter))
            .collect();
        if open.iter().all(Option::is_none) {
            self.park(origin, handler, letters);
            return;
        }
        for (number, (letter, open)) in letters.into_iter().zip(open).enumerate() {
            let origin = nth(origin, number);
            let since = match (handler, origin) {
                (None, Origin::Live(seq)) => Since::After(seq),
                _ => Since::Always,
            };
            match open {
                Some(ticket) => {
                    self.letters.held.came_by(ticket, since);
                    self.parked(origin, bit);
                }
                None => self.park(origin, handler, vec![letter]),
            }
        }
    }

    /// Parks the events of a unit durably; only then are they finished, so that the position cannot pass
    /// them before. Their hold on later events begins at once.
    pub(super) fn park(
        &mut self,
        origin: Origin,
        handler: Option<(Slot, HandlerSet)>,
        letters: Vec<DeadLetter>,
    ) {
        let mut tickets = Vec::with_capacity(letters.len());
        for (number, letter) in letters.iter().enumerate() {
            self.observer
                .parked(letter.handler.as_deref(), &letter.reason);
            tell_parked(&self.lease, letter);
            let since = match (handler, nth(origin, number)) {
                // Older ones may still be with handlers: these are not behind it.
                (None, Origin::Live(seq)) => Since::After(seq),
                _ => Since::Always,
            };
            let records = match self.ordering {
                Ordering::Record => held_records(&letter.record_ids),
                Ordering::Strict | Ordering::None => Vec::new(),
            };
            tickets.push(self.letters.held.insert(NewLetter {
                slot: handler.map_or(Slot::Everyone, |(slot, _)| slot),
                identity: letter.identity.clone(),
                records,
                unit: letter.unit.clone(),
                bytes: letter.payload.len(),
                behind: letter.reason == PARKED_BEHIND,
                since,
            }));
        }
        let handlers = handler.map(|(_, bit)| bit);
        self.letters
            .parking
            .park(origin, handlers, tickets, letters);
    }

    /// Events of a unit are parked for these handlers.
    fn parked(&mut self, origin: Origin, handlers: Option<HandlerSet>) {
        match origin {
            Origin::Live(seq) => self.finished(seq, handlers, Outcome::Parked),
            Origin::Letter { .. } | Origin::Replay(_) => {}
        }
    }

    /// A handler has answered for a letter.
    pub(super) fn letter_answered(&mut self, handler: usize, waiting: &Waiting, verdict: Verdict) {
        let tickets = self.letters.in_lanes.remove(&(handler, waiting.origin));
        let named: Vec<_> = tickets
            .unwrap_or_default()
            .into_iter()
            .filter_map(|ticket| match self.letters.held.known(ticket)? {
                Known::Id(id) => Some((ticket, id)),
                Known::Event(_) => None,
            })
            .collect();
        match verdict {
            Verdict::Handled => {
                named
                    .iter()
                    .for_each(|(ticket, _)| self.letters.held.handled(*ticket));
                self.letters.parking.write(Move::Resolve(named));
            }
            Verdict::Park { reason, error } => {
                for (ticket, id) in &named {
                    warn!(
                        subscription = self.lease.key.name,
                        handler = self.runs[handler].name,
                        id,
                        reason,
                        error,
                        "dead letter refused once more"
                    );
                    self.letters.held.refused(*ticket);
                }
                let refusal = Refusal {
                    reason: reason.to_owned(),
                    error,
                    attempts: waiting.attempts,
                };
                self.letters.parking.write(Move::ParkAgain(named, refusal));
            }
        }
    }

    /// Takes what was loaded: into the lanes, or on to the handlers, or back.
    pub(super) fn letters_loaded(&mut self, loaded: Loaded) {
        match loaded {
            Ok(loaded) => {
                let before = self.letters.put_off.len();
                for letter in loaded {
                    self.letter_loaded(letter);
                }
                if self.letters.put_off.len() == before {
                    self.letters.backoff.reset();
                }
            }
            Err(NotLoaded { tickets, why }) => {
                warn!(
                    subscription = self.lease.key.name,
                    error = why,
                    "dead letters could not be loaded; it is tried again"
                );
                for ticket in &tickets {
                    self.letters.held.put_back(*ticket);
                }
                self.letters.put_off(tickets);
            }
        }
    }

    fn letter_loaded(&mut self, letter: LoadedLetter) {
        let held = &mut self.letters.held;
        match letter {
            LoadedLetter::Ready {
                handler,
                place: Placed { place, id },
                tickets,
                unit,
            } => {
                let origin = Origin::Letter { place, id };
                self.letters.in_lanes.insert((handler, origin), tickets);
                self.runs[handler].put(origin, unit, self.ordering);
            }
            LoadedLetter::Decodes { unit, events } => {
                for (named, event) in events {
                    let place = held.place(named.0);
                    let own = self.runs.iter().map(|run| DeadLetter {
                        unit: unit.clone(),
                        place,
                        ..dead_letter(&event, Some(&run.name), PARKED_BEHIND, PASSED_ON, 0)
                    });
                    let own = own.collect();
                    info!(
                        subscription = self.lease.key.name,
                        id = named.1,
                        "dead letter decodes now: every handler is given it"
                    );
                    self.letters.parking.write(Move::PassOn(named, own));
                }
            }
            LoadedLetter::Gone(tickets) => {
                // A look at the store, which is on its way, tells which.
                tickets.iter().for_each(|ticket| held.put_back(*ticket));
                self.letters.put_off(tickets);
            }
            LoadedLetter::Later { tickets, why } => {
                debug!(
                    subscription = self.lease.key.name,
                    error = why,
                    "a schema cannot be had now; its dead letters wait"
                );
                tickets.iter().for_each(|ticket| held.put_back(*ticket));
                self.letters.put_off(tickets);
            }
            LoadedLetter::Undecodable {
                named,
                others,
                refusal,
            } => {
                others.iter().for_each(|ticket| held.put_back(*ticket));
                held.refused(named.0);
                self.letters
                    .parking
                    .write(Move::ParkAgain(vec![named], refusal));
            }
        }
    }

    /// Takes what the store has taken.
    pub(super) fn letters_written(&mut self, done: Done) {
        let held = &mut self.letters.held;
        match done {
            Done::Parked(batch, placed) => {
                let mut placed = placed.into_iter();
                for parked in batch {
                    for (number, ticket) in parked.tickets.iter().enumerate() {
                        if let Some(placed) = placed.next() {
                            self.letters.held.written(*ticket, placed);
                        }
                        let origin = nth(parked.origin, number);
                        self.parked(origin, parked.handlers);
                    }
                }
            }
            Done::Resolved(named, resolved) => {
                named.iter().for_each(|(ticket, _)| held.remove(*ticket));
                self.observer.letters_resolved("handled", resolved);
                debug!(
                    subscription = self.lease.key.name,
                    resolved, "dead letters handled"
                );
            }
            Done::ParkedAgain(named) => {
                named.iter().for_each(|(ticket, _)| held.rests(*ticket));
            }
            Done::PassedOn((ticket, _), None) => held.remove(ticket),
            Done::PassedOn((ticket, id), Some(own)) => {
                // The handlers' letters first: what waits behind them must not slip in between.
                let ordering = self.ordering;
                for (letter, placed) in own {
                    let summary = asked_summary(letter, placed, &self.lease.key.name);
                    let records = records_of(&summary, ordering);
                    held.load(summary, records, false);
                }
                held.remove(ticket);
                self.observer.letters_resolved("handled", 1);
                debug!(
                    subscription = self.lease.key.name,
                    id, "dead letter passed on"
                );
            }
            Done::Looked(open) => {
                let ordering = self.ordering;
                let gone = held.sync(open, |summary| records_of(summary, ordering));
                gone.iter().for_each(|ticket| held.remove(*ticket));
                self.observer.letters_resolved("discarded", gone.len());
            }
        }
    }
}

/// Why a handler has a letter that it was never given.
const PASSED_ON: &str =
    "could not be decoded when it came; it can be now, and is about to be handed over";

/// The place of a unit's further events, which follow its first.
fn nth(origin: Origin, number: usize) -> Origin {
    let number = number as u64;
    match origin {
        Origin::Live(first) => Origin::Live(first + number),
        Origin::Replay(first) => Origin::Replay(first + number),
        Origin::Letter { .. } => origin,
    }
}

fn asked_summary(letter: DeadLetter, placed: Placed, subscription: &str) -> LetterSummary {
    LetterSummary {
        placed,
        subscription: subscription.to_owned(),
        handler: letter.handler,
        identity: letter.identity,
        state: "open".to_owned(),
        reason: letter.reason,
        error: letter.error,
        record_ids: letter.record_ids,
        unit: letter.unit,
        asked: true,
        replay_id: letter.replay_id,
        bytes: letter.payload.len() as u64,
        to_come: false,
    }
}

fn tell_parked(lease: &Lease, letter: &DeadLetter) {
    let subscription = &lease.key.name;
    let (handler, identity) = (letter.handler.as_deref(), &letter.identity);
    let replay_id = letter.replay_id.as_ref().map(tracing::field::display);
    let (reason, error) = (&letter.reason, &letter.error);
    if letter.reason == PARKED_BEHIND {
        info!(subscription, handler, %identity, replay_id, reason, error, "event parked");
    } else {
        warn!(subscription, handler, %identity, replay_id, reason, error, "event parked");
    }
}
