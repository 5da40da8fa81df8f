//! The dead letters of a subscription: what parks behind which, and what is tried again when (design 3.1,
//! rules 7 and 9).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::end_of_task;
use crate::config::{BackoffConfig, Ordering};
use crate::event::{Commit, RawEvent, ReplayId};
use crate::store::{DeadLetter, Lease, LetterSummary, SettledAhead, Store};
use crate::subscription::backoff::Backoff;
use crate::subscription::held::{Drawing, Held, Known, Reach, Slot, Ticket, comes_again};
use crate::subscription::lanes::{Holding, Origin, Waiting};
use crate::subscription::letter_loader::{LetterLoader, Loaded};
use crate::subscription::parking::{Done, Move, Parking};
use tokio::task::JoinSet;

/// Pauses while letters cannot be loaded, or their schema cannot be had.
const LOAD_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(30),
};

/// The dead letters of a subscription.
pub(super) struct Letters {
    pub(super) held: Held,
    pub(super) holding: Holding,
    pub(super) parking: Parking,
    max_parked: usize,
    loader: LetterLoader,
    /// At most one portion at a time, so that they enter the lanes in order.
    loading: JoinSet<Loaded>,
    /// What is in the lanes, and with handlers, by handler and origin.
    pub(super) in_lanes: HashMap<(usize, Origin), Vec<Ticket>>,
    /// To be looked at again when the pause is over.
    pub(super) put_off: Vec<Ticket>,
    not_before: Option<Instant>,
    pub(super) backoff: Backoff,
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
    /// Handled or discarded for a handler, or for all, although their events are still to come again.
    pub(in crate::subscription) settled: Vec<SettledAhead>,
    /// The stream begins at LATEST.
    pub(in crate::subscription) nothing_again: bool,
    /// Where the stream resumes: that event does not come again.
    pub(in crate::subscription) resume_after: Option<ReplayId>,
    /// When the event at that place was committed, or the keepalive received; where that is known.
    pub(in crate::subscription) resumed_at: Option<SystemTime>,
    pub(in crate::subscription) max_parked: usize,
    /// What is parked is kept encrypted.
    pub(in crate::subscription) sealed: bool,
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
        let holding = Holding::new(ordering, &lease.key.topic);
        let mut held = Held::new(handlers, Drawing::default());
        let at_position = |at| Reach::To(Commit { at, number: None });
        held.begins(match setup.resume_after {
            Some(_) => setup.resumed_at.map_or(Reach::Unknown, at_position),
            None if setup.nothing_again => Reach::Unknown,
            None => Reach::Nothing,
        });
        for summary in setup.open {
            let records = holding.records(&summary.record_ids);
            let comes = comes_again(&summary, setup.resume_after.as_ref());
            let to_come = comes && !setup.nothing_again;
            if summary.to_come && !to_come {
                held.ahead.never(summary.placed.id);
            }
            held.load(summary, records, to_come);
        }
        for settled in setup.settled {
            match setup.nothing_again {
                true => held.ahead.never(settled.id),
                false => held.ahead.settled(settled.identity, settled.id),
            }
        }
        Self {
            held,
            holding,
            parking: Parking::new(lease.clone(), store.clone(), setup.sealed),
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
                let last = waiting.last_place();
                let holder = self.held.holder(slot, &waiting.records, last);
                // A letter of its own would hold it, where it has a record.
                let own = self.held.awaits_some()
                    || waiting.records.is_empty()
                    || matches!(waiting.origin, Origin::Replay(_));
                holder.is_some()
                    || (own && self.is_parked(slot, waiting))
                    || self.is_settled(handler, waiting)
            }
        }
    }

    /// True where a person has settled the letter of an event of this unit since that came off the stream.
    fn is_settled(&self, handler: usize, waiting: &Waiting) -> bool {
        waiting.places().any(|place| match place {
            Origin::Live(seq) => self.held.is_settled(handler, seq),
            Origin::Replay(_) | Origin::Letter { .. } => false,
        })
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
    pub(super) fn open(&self, slot: Slot, letter: &DeadLetter) -> Option<Ticket> {
        let unread = || {
            let raw = RawEvent {
                id: letter.event_uuid.as_str().into(),
                schema_id: letter.schema_id.clone(),
                payload: letter.payload.clone(),
                replay_id: letter.replay_id.clone(),
            };
            self.held.open(Slot::Everyone, &raw.identity_unread())
        };
        let known = self.held.open(slot, &letter.identity);
        known.or_else(|| self.held.has_undecoded().then(unread)?)
    }

    /// How many more letters may be open.
    pub(super) fn room(&self) -> usize {
        self.max_parked.saturating_sub(self.held.stored())
    }

    /// What a person has to do, where nothing more can be parked.
    pub(super) fn full(&self, subscription: &str) -> Option<String> {
        self.parking.is_full(self.room()).then(|| {
            let wait = match self.held.to_come_count() {
                0 => String::new(),
                count => format!(
                    " ({count} wait for the stream to bring their events once more before they can be retried)"
                ),
            };
            format!(
                "{} events are parked, and max_parked allows for no more: what comes to be parked waits, and \
                 with it the stream; see `orgstream dead-letters list --subscription {subscription}`, then \
                 retry or discard some{wait}, or raise max_parked",
                self.held.stored()
            )
        })
    }

    /// When there is something to look at again, where it may be drawn.
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

    pub(super) fn put_off(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        self.put_off.extend(tickets);
        if self.not_before.is_none() {
            self.not_before = Some(Instant::now() + self.backoff.next_pause());
        }
    }

    /// Begins to load what may be tried now.
    pub(super) fn draw(&mut self) {
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

    pub(super) fn error_behind(&self, ticket: Option<Ticket>) -> String {
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
