//! Parking: an event that cannot be handled or decoded is kept as a dead letter, durably, before it counts
//! as finished; and what becomes of dead letters is written the same way.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::delivery::{end_of_task, unit_name};
use super::held::{Place, Ticket};
use super::lanes::{Origin, Waiting, record_ids};
use super::tracker::HandlerSet;
use crate::event::{Event, SmolStr};
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, Store, StoreError};

mod batch;

pub(super) use batch::{BATCH, Parked, name_part, next_batch};

/// A letter by its names in this process and in the store.
pub(super) type Named = (Ticket, i64);

/// What the owner does with letters that are there.
#[derive(Debug, Clone)]
pub(super) enum Move {
    /// A handler has handled them.
    Resolve(Vec<Named>),
    /// They were refused once more.
    ParkAgain(Vec<Named>, Refusal),
    /// One, or all of a unit, can be decoded now: each handler gets letters of its own.
    PassOn(Vec<(Named, Vec<DeadLetter>)>),
    /// A person changed something: all open letters are read.
    Look,
    /// These are open no more: what became of them is read, to be counted.
    Count(Vec<i64>),
}

/// What is in the store now.
#[derive(Debug)]
pub(super) enum Done {
    /// These are parked; all their letters, in order, are at the first places, and what went behind them is at
    /// the others.
    Parked(Vec<Parked>, Vec<Placed>, Vec<Placed>),
    /// These are handled, or were given up by a person just now.
    Resolved(Vec<Named>),
    /// Of these, those with these numbers are open, for another reason.
    ParkedAgain(Vec<Named>, Vec<i64>),
    /// They count as handled; for each the handlers' own letters with their places, unless not all were open any
    /// more.
    PassedOn(Vec<Named>, Option<Vec<Vec<(DeadLetter, Placed)>>>),
    /// All open letters.
    Looked(Vec<LetterSummary>),
    /// Of those that were open no more: so many were handled, and so many discarded.
    Counted {
        /// In a handler's own transaction, or by us, who did not hear so.
        handled: usize,
        /// By a person.
        discarded: usize,
    },
}

/// Letters on their way to the store. One write at a time, so that dead letters are numbered in the order in
/// which events were given up, and so that what is read is what was written before.
pub(super) struct Parking {
    lease: Lease,
    store: Arc<dyn Store>,
    /// Of letters that are there: they need no room, and may make some.
    moves: VecDeque<Move>,
    waiting: VecDeque<Parked>,
    /// At most one; it gives `None` where the store does not take it any more.
    writing: JoinSet<Option<Done>>,
    /// Payloads are kept encrypted.
    sealed: bool,
    abandon: CancellationToken,
}

impl Parking {
    /// `sealed` has payloads kept encrypted.
    pub(super) fn new(lease: Lease, store: Arc<dyn Store>, sealed: bool) -> Self {
        Self {
            lease,
            store,
            moves: VecDeque::new(),
            waiting: VecDeque::new(),
            writing: JoinSet::new(),
            sealed,
            abandon: CancellationToken::new(),
        }
    }

    /// Parks events of a unit, all or none, however long the store is away.
    pub(super) fn park(
        &mut self,
        places: Vec<Origin>,
        handlers: Option<HandlerSet>,
        tickets: Vec<Ticket>,
        mut letters: Vec<DeadLetter>,
    ) {
        for letter in &mut letters {
            letter.sealed = self.sealed;
        }
        self.waiting
            .push_back(Parked::new(places, handlers, tickets, letters));
    }

    /// Puts open letters of a unit behind all others, in this order. Their events, of there, are parked once that is
    /// written.
    pub(super) fn move_last(
        &mut self,
        places: Vec<Origin>,
        handlers: Option<HandlerSet>,
        named: Vec<Named>,
    ) {
        self.waiting
            .push_back(Parked::moving(places, handlers, named));
    }

    /// Writes what became of letters, before what is still to be parked.
    pub(super) fn write(&mut self, change: Move) {
        match (self.moves.back_mut(), change) {
            (Some(Move::Resolve(last)), Move::Resolve(more)) if last.len() < BATCH => {
                last.extend(more);
            }
            (Some(Move::Look), Move::Look) => {}
            (_, change) => self.moves.push_back(change),
        }
    }

    /// Begins the next write, if none is under way. There is `room` for so many more letters; `place` says
    /// where such letters belong, and is told whether nothing decided before is still to be written. Gives the
    /// numbers of the letters that go behind others by that.
    pub(super) fn go_on(
        &mut self,
        room: usize,
        place: impl Fn(&[Ticket], Origin, bool) -> Place,
    ) -> Vec<i64> {
        if !self.writing.is_empty() {
            return Vec::new();
        }
        if let Some(change) = self.moves.pop_front() {
            self.write_move(change);
            return Vec::new();
        }
        let batch = next_batch(&mut self.waiting, room, place);
        let behind = batch.iter().flat_map(|parked| &parked.behind);
        let behind = behind.copied().collect();
        if !batch.is_empty() {
            self.write_letters(batch);
        }
        behind
    }

    /// True where there is something to park and no room for it.
    pub(super) fn is_full(&self, room: usize) -> bool {
        let next = self.waiting.front();
        room == 0 && next.is_some_and(|next| !next.letters.is_empty())
    }

    /// The next write that is done; `None` where another worker has taken over. Never ends while there is
    /// nothing under way. Cancel-safe.
    pub(super) async fn done(&mut self) -> Option<Done> {
        match self.writing.join_next().await {
            Some(written) => written.unwrap_or_else(|error| end_of_task(error)),
            None => std::future::pending().await,
        }
    }

    /// True where nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_empty()
    }

    /// Gives up what is not stored yet: those events come again.
    pub(super) fn abandon(&self) {
        self.abandon.cancel();
    }

    fn write_letters(&mut self, batch: Vec<Parked>) {
        let letters: Vec<DeadLetter> = batch
            .iter()
            .flat_map(|parked| parked.letters.iter().cloned())
            .collect();
        let letters: Arc<[DeadLetter]> = letters.into();
        let behind = batch
            .iter()
            .flat_map(|parked| parked.behind.iter().copied());
        let behind: Arc<[i64]> = behind.collect();
        let written = self.keep_writing("park", move |store, lease| {
            let (letters, behind) = (letters.clone(), behind.clone());
            async move { store.park_before(&lease, &letters, &behind).await }
        });
        self.writing.spawn(async move {
            let (placed, moved) = written.await?;
            Some(Done::Parked(batch, placed, moved))
        });
    }

    fn write_move(&mut self, change: Move) {
        match change {
            Move::Resolve(named) => {
                let ids = ids(&named);
                let written = self.keep_writing("resolve", move |store, lease| {
                    let ids = ids.clone();
                    async move { store.resolve(&lease, &ids).await }
                });
                self.writing.spawn(async move {
                    written.await?;
                    Some(Done::Resolved(named))
                });
            }
            Move::ParkAgain(named, refusal) => {
                let ids = ids(&named);
                let written = self.keep_writing("park_again", move |store, lease| {
                    let (ids, refusal) = (ids.clone(), refusal.clone());
                    async move { store.park_again(&lease, &ids, &refusal).await }
                });
                self.writing
                    .spawn(async move { Some(Done::ParkedAgain(named, written.await?)) });
            }
            Move::PassOn(all) => {
                let (named, mut letters): (Vec<Named>, Vec<_>) = all.into_iter().unzip();
                for letter in letters.iter_mut().flatten() {
                    letter.sealed = self.sealed;
                }
                let flat: Vec<DeadLetter> = letters.iter().flatten().cloned().collect();
                let (ids, given) = (ids(&named), Arc::<[DeadLetter]>::from(flat));
                let written = self.keep_writing("pass_on", move |store, lease| {
                    let (ids, letters) = (ids.clone(), given.clone());
                    async move { store.pass_on(&lease, &ids, &letters).await }
                });
                self.writing.spawn(async move {
                    let own = written.await?.map(|placed| {
                        let mut placed = placed.into_iter();
                        let with_places =
                            |own: Vec<DeadLetter>| own.into_iter().zip(placed.by_ref()).collect();
                        letters.into_iter().map(with_places).collect()
                    });
                    Some(Done::PassedOn(named, own))
                });
            }
            Move::Count(ids) => {
                let ids: Arc<[i64]> = ids.into();
                let read = self.keep_writing("letter_summaries", move |store, _| {
                    let ids = ids.clone();
                    async move { store.letter_summaries(&ids).await }
                });
                self.writing.spawn(async move {
                    let letters = read.await?;
                    let are = |state| letters.iter().filter(|one| one.state == state).count();
                    Some(Done::Counted {
                        handled: are("handled"),
                        discarded: are("discarded"),
                    })
                });
            }
            Move::Look => {
                let read = self.keep_writing("open_letters", |store, lease| async move {
                    store.open_letters(&lease).await
                });
                self.writing
                    .spawn(async move { Some(Done::Looked(read.await?)) });
            }
        }
    }

    /// A call that is made until the store has answered it.
    fn keep_writing<T, F, Fut>(
        &self,
        operation: &'static str,
        call: F,
    ) -> impl Future<Output = Option<T>> + Send + 'static
    where
        T: Send + 'static,
        F: Fn(Arc<dyn Store>, Lease) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send,
    {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let abandon = self.abandon.clone();
        async move { super::keep_trying(&store, &lease, &abandon, operation, call).await }
    }
}

fn ids(named: &[Named]) -> Vec<i64> {
    named.iter().map(|(_, id)| *id).collect()
}

/// The events of a unit as dead letters of one handler.
pub(super) fn dead_letters(
    waiting: &Waiting,
    handler: &str,
    reason: &str,
    error: &str,
) -> Vec<DeadLetter> {
    let unit = unit_name(&waiting.unit);
    let letter = |event: &Arc<Event>| DeadLetter {
        unit: unit.clone(),
        ..dead_letter(event, Some(handler), reason, error, waiting.attempts)
    };
    waiting.unit.events().iter().map(letter).collect()
}

/// An event by itself as a dead letter of one handler, or of all.
pub(super) fn dead_letter(
    event: &Event,
    handler: Option<&str>,
    reason: &str,
    error: &str,
    attempts: u32,
) -> DeadLetter {
    DeadLetter {
        identity: event.identity(),
        handler: handler.map(str::to_owned),
        reason: reason.to_owned(),
        error: error.to_owned(),
        attempts,
        event_uuid: event.raw.id.to_string(),
        replay_id: event.raw.replay_id.clone(),
        schema_id: event.raw.schema_id.clone(),
        payload: event.raw.payload.clone(),
        record_ids: record_ids(event).iter().map(SmolStr::to_string).collect(),
        record_name: Some(event.decoded.record_name.to_string()),
        unit: None,
        place: None,
        received_at: event.received_at,
        commit: (event.decoded.header.as_deref()).and_then(|it| it.commit(event.received_at)),
        ahead: false,
        replayed: event.replayed,
        sealed: false,
    }
}
