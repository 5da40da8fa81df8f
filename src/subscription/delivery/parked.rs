//! What becomes of events that are parked, or have to be, and of letters that are tried again.

use tracing::{debug, info, warn};

use super::Delivery;
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, SubscriptionKey};
use crate::subscription::handler_run::Verdict;
pub(super) use crate::subscription::held::Moment;
use crate::subscription::held::{Again, Known, NewLetter, PARKED_BEHIND, Slot, Ticket};
use crate::subscription::lanes::{Origin, Waiting};
use crate::subscription::letter_loader::{Loaded, LoadedLetter, NotLoaded};
use crate::subscription::observe::Outcome;
use crate::subscription::parking::{Done, Move, Named, dead_letter, dead_letters, name_part};
use crate::subscription::tracker::HandlerSet;

impl Delivery {
    /// Writes what is to be written, and begins with what may be tried again.
    pub(super) fn follow_letters(&mut self) {
        let letters = &mut self.letters;
        letters.held.passed(self.tracker.low_water());
        let room = letters.room();
        let held = &mut letters.held;
        let behind = letters.parking.go_on(room, |tickets, origin, first| {
            held.place_of(tickets, origin, first)
        });
        behind.into_iter().for_each(|id| held.goes_behind(id));
        if self.may_draw() {
            self.letters.draw();
        }
    }

    /// True where letters may be tried: nobody else can be at them, and there is time for it.
    pub(super) fn may_draw(&self) -> bool {
        !self.stop.is_cancelled() && self.assignment.clock.holds()
    }

    /// Takes units whose turn it was, but that are held.
    pub(super) fn set_aside(&mut self, handler: usize, units: Vec<Waiting>) {
        for waiting in units {
            match waiting.origin {
                Origin::Letter { .. } => {
                    let tickets = self.letters.in_lanes.remove(&(handler, waiting.origin));
                    let tickets = tickets.unwrap_or_default();
                    let held = &mut self.letters.held;
                    tickets.iter().for_each(|ticket| held.put_back(*ticket));
                    // What kept them may be gone by now.
                    tickets.iter().for_each(|ticket| held.consider(*ticket));
                }
                Origin::Live(_) | Origin::Replay(_) => self.set_live_aside(handler, waiting),
            }
        }
    }

    /// Parks what has to wait behind a dead letter; what is parked already is finished by that.
    pub(super) fn park_behind(&mut self, handler: usize, waiting: &Waiting) {
        let (name, bit) = (self.runs[handler].name.clone(), self.runs[handler].bit);
        let slot = Slot::Handler(handler);
        let holder = self
            .letters
            .held
            .holder(slot, &waiting.records, waiting.last_place());
        let error = self.letters.error_behind(holder);
        let letters = dead_letters(waiting, &name, PARKED_BEHIND, &error);
        let places = waiting.places().collect();
        self.park_new(places, Some((slot, bit)), letters, Moment::InTurn);
    }

    /// Parks the events of a unit, one of each place, less those that are parked already: the stream has brought
    /// them once more.
    pub(super) fn park_new(
        &mut self,
        places: Vec<Origin>,
        handler: Option<(Slot, HandlerSet)>,
        letters: Vec<DeadLetter>,
        moment: Moment,
    ) {
        let (slot, bit) = handler.map_or((Slot::Everyone, None), |(slot, bit)| (slot, Some(bit)));
        let open: Vec<Option<Ticket>> = letters
            .iter()
            .map(|letter| self.letters.open(slot, letter))
            .collect();
        if open.iter().all(Option::is_none) {
            self.park(places, handler, letters, moment);
            return;
        }
        let unit = letters.first().and_then(|letter| letter.unit.clone());
        let events = places.into_iter().zip(letters).zip(open);
        let events = events.map(|((origin, letter), open)| (origin, letter, open));
        let held = &mut self.letters.held;
        for again in held.brought_again(slot, unit.as_deref(), events.collect(), moment) {
            match again {
                Again::New { events, apart } => {
                    let (places, mut letters): (_, Vec<_>) = events.into_iter().unzip();
                    if apart {
                        name_part(&mut letters);
                    }
                    self.park(places, handler, letters, moment);
                }
                Again::Move(moving) => {
                    let (places, named) = moving.into_iter().unzip();
                    self.letters.parking.move_last(places, bit, named);
                }
                Again::Stay(origin) => self.parked(origin, bit),
            }
        }
    }

    /// Parks the events of a unit durably; only then are they finished, so that the position cannot pass
    /// them before. Their hold on later events begins at once.
    pub(super) fn park(
        &mut self,
        places: Vec<Origin>,
        handler: Option<(Slot, HandlerSet)>,
        letters: Vec<DeadLetter>,
        moment: Moment,
    ) {
        let mut tickets = Vec::with_capacity(letters.len());
        let mut letters = letters;
        for (origin, letter) in places.iter().copied().zip(&mut letters) {
            letter.ahead = matches!(origin, Origin::Live(_));
            self.observer
                .parked(letter.handler.as_deref(), &letter.reason);
            tell_parked(&self.lease, letter);
            let (came, met) = match origin {
                Origin::Live(seq) => (Some(seq), None),
                Origin::Replay(seq) => (None, Some(seq)),
                Origin::Letter { .. } => (None, None),
            };
            let held = &mut self.letters.held;
            let records = self.letters.holding.records(&letter.record_ids);
            tickets.push(held.insert(NewLetter {
                slot: handler.map_or(Slot::Everyone, |(slot, _)| slot),
                identity: letter.identity.clone(),
                since: held.since(moment, origin, letter.commit, &records),
                records,
                unit: letter.unit.clone(),
                bytes: letter.payload.len(),
                behind: letter.reason == PARKED_BEHIND,
                ahead: letter.ahead,
                came,
                met,
                received_at: letter.received_at,
                commit: letter.commit,
                until: None,
            }));
        }
        let handlers = handler.map(|(_, bit)| bit);
        self.letters
            .parking
            .park(places, handlers, tickets, letters);
    }

    /// Events of a unit are parked for these handlers.
    pub(super) fn parked(&mut self, origin: Origin, handlers: Option<HandlerSet>) {
        self.finished([origin], handlers, Outcome::Parked);
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
                ids,
                unit,
            } => {
                tickets.iter().for_each(|ticket| held.in_lanes(*ticket));
                let origin = Origin::Letter { place, id };
                self.letters.in_lanes.insert((handler, origin), tickets);
                self.runs[handler].put_letters(origin, ids, unit, self.ordering);
            }
            LoadedLetter::Decodes { unit, events } => {
                let mut all = Vec::with_capacity(events.len());
                for (named, event) in events {
                    let place = held.place(named.0);
                    let header = event.decoded.header.as_deref();
                    let runs = self.runs.iter().enumerate();
                    let wanting = runs.filter(|(index, _)| self.forms.wants(*index, header));
                    let own = wanting.map(|(_, run)| DeadLetter {
                        unit: unit.clone(),
                        place,
                        ..dead_letter(&event, Some(&run.name), PARKED_BEHIND, PASSED_ON, 0)
                    });
                    info!(
                        subscription = self.lease.key.name,
                        id = named.1,
                        "dead letter decodes now: every handler that wants it is given it"
                    );
                    all.push((named, own.collect()));
                }
                self.letters.parking.write(Move::PassOn(all));
            }
            LoadedLetter::Unwanted(named) => {
                info!(
                    subscription = self.lease.key.name,
                    ids = ?named.iter().map(|(_, id)| *id).collect::<Vec<_>>(),
                    "dead letters decode now, and their handler does not want them: they are finished"
                );
                let tickets = named.iter().map(|(ticket, _)| *ticket);
                tickets.for_each(|ticket| held.handled(ticket));
                self.letters.parking.write(Move::Resolve(named));
            }
            LoadedLetter::Gone(tickets) => self.look_again(tickets),
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
                slot,
                named,
                others,
                why,
                refusals,
            } => {
                self.unit_undecodable(slot, named, &others, &why);
                for (named, refusal) in refusals {
                    self.letters.parking.write(Move::ParkAgain(named, refusal));
                }
            }
        }
    }

    /// Some of these are open no more: a look at the store tells which, and what became of them. A person settled them, or
    /// we did, and heard no answer.
    fn look_again(&mut self, tickets: Vec<Ticket>) {
        debug!(
            subscription = self.lease.key.name,
            letters = tickets.len(),
            "dead letters are open no more; the store is looked at"
        );
        let held = &mut self.letters.held;
        tickets.iter().for_each(|ticket| held.put_back(*ticket));
        self.letters.put_off(tickets);
        self.letters.asked();
    }

    /// Without one of its events none of a unit is handed over: nobody's wish for an attempt is left of any
    /// of them, or they would be loaded again and again.
    fn unit_undecodable(&mut self, slot: Slot, one: Named, others: &[Named], why: &Refusal) {
        let held = &mut self.letters.held;
        warn!(
            subscription = self.lease.key.name,
            id = one.1,
            reason = why.reason,
            error = why.error,
            "dead letter still cannot be decoded"
        );
        held.refused(one.0);
        for (ticket, _) in others {
            match slot {
                Slot::Everyone => held.waits_again(*ticket),
                Slot::Handler(_) => held.refused(*ticket),
            }
        }
    }

    /// Takes what the store has taken.
    pub(super) fn letters_written(&mut self, done: Done) {
        let holding = self.letters.holding;
        let held = &mut self.letters.held;
        match done {
            Done::Parked(batch, placed, moved) => {
                for placed in moved {
                    held.moved(placed);
                }
                let mut placed = placed.into_iter();
                for parked in batch {
                    for (ticket, origin) in parked.tickets.iter().zip(parked.places.iter().copied())
                    {
                        if parked.moves() {
                            self.letters.held.has_moved(*ticket);
                        } else if let Some(placed) = placed.next() {
                            self.letters.held.written(*ticket, placed);
                            if let Origin::Live(seq) = origin {
                                self.letters.held.ahead.at(seq, placed.id);
                            }
                        }
                        self.parked(origin, parked.handlers);
                    }
                }
            }
            Done::Resolved(named) => {
                named.iter().for_each(|(ticket, _)| held.remove(*ticket));
                self.observer.letters_resolved("handled", named.len());
                debug!(
                    subscription = self.lease.key.name,
                    letters = named.len(),
                    "dead letters handled"
                );
            }
            Done::ParkedAgain(named, open) => {
                for (ticket, id) in named {
                    if open.contains(&id) {
                        held.rests(ticket);
                    } else {
                        // A person gave it up meanwhile.
                        held.remove(ticket);
                    }
                }
            }
            Done::PassedOn(named, None) => {
                self.look_again(named.into_iter().map(|(ticket, _)| ticket).collect());
            }
            Done::PassedOn(named, Some(own)) => {
                // The handlers' letters first: what waits behind them must not slip in between.
                for ((_, id), own) in named.iter().zip(&own) {
                    let own = own.iter().map(|(_, placed)| placed.id);
                    held.ahead.follow(*id, own);
                }
                let each = named.iter().zip(own);
                for (of, (letter, placed)) in
                    each.flat_map(|(of, own)| own.into_iter().map(move |one| (of, one)))
                {
                    let summary = asked_summary(letter, placed, &self.lease.key);
                    let records = holding.records(&summary.record_ids);
                    let ticket = held.load(summary, records, false);
                    let met = held.met_at(of.0);
                    if let (Some(ticket), Some(met)) = (ticket, met) {
                        held.met(ticket, met);
                    }
                }
                named.iter().for_each(|(ticket, _)| held.remove(*ticket));
                self.observer.letters_resolved("handled", named.len());
                debug!(
                    subscription = self.lease.key.name,
                    letters = named.len(),
                    "dead letters passed on"
                );
            }
            Done::Looked(open) => self.looked(open),
            Done::Counted { handled, discarded } => {
                self.observer.letters_resolved("handled", handled);
                self.observer.letters_resolved("discarded", discarded);
            }
        }
    }
}

/// Why a handler has a letter that it was never given.
const PASSED_ON: &str =
    "could not be decoded when it came; it can be now, and is about to be handed over";

fn asked_summary(letter: DeadLetter, placed: Placed, of: &SubscriptionKey) -> LetterSummary {
    LetterSummary {
        placed,
        subscription: of.name.clone(),
        topic: of.topic.to_string(),
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
        received_at: letter.received_at,
        commit: letter.commit,
        to_come: false,
        until: None,
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
