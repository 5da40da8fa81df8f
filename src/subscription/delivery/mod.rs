//! The delivery: hands events to the handlers, tracks what is finished, parks what cannot be, and lets
//! the position follow. One task owns all of it, so nothing here is locked.

mod arrivals;
mod bounds;
mod calls;
mod grouping;
mod groups;
mod letters;
mod parked;
#[cfg(test)]
mod parked_tests;
mod replay;
mod settled;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod settled_tests;
mod show;
mod side;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod testing;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod turns_tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Ordering, Start};
use crate::event::{EventIdentity, ReplayId};
use crate::handler::Handler;
use crate::store::{FinishedAhead, Lease, Store};
use crate::subscription::Assignment;
use crate::subscription::age::PositionAge;
use crate::subscription::changes::Changes;
use crate::subscription::decoder::Item;
use crate::subscription::forms::Forms;
use crate::subscription::gaps::Gaps;
use crate::subscription::handler_run::HandlerRun;
use crate::subscription::in_flight::InFlight;
use crate::subscription::lanes::{CallId, Waiting};
use crate::subscription::legs::Legs;
use crate::subscription::lost::GivenUp;
use crate::subscription::observe::Observer;
use crate::subscription::position::{FinishedBefore, Position, Written};
use crate::subscription::state::State;
use crate::subscription::streams::Streams;
use crate::subscription::tracker::Tracker;
use calls::Called;
use grouping::{Grouping, Limits};
use letters::{Letters, News};
use replay::Replays;

pub(super) use grouping::unit_name;
pub(super) use letters::LettersSetup;

/// How long a stopping subscription may go on with what is in flight. With the last write after it, a
/// stop takes less than the 30 seconds that a dyno is given.
const DRAIN_LIMIT: Duration = Duration::from_secs(16);

/// How long the last write may take.
const LAST_WRITE_LIMIT: Duration = Duration::from_secs(3);

/// How often gauges are set.
const TICK: Duration = Duration::from_secs(1);

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Told to stop; the position is stored as far as the store could be reached.
    Stopped,
    /// Another worker has taken over.
    Fenced,
    /// As stopped, because a rewind is asked for.
    RewindAsked,
}

/// Everything a delivery needs.
pub(super) struct Setup {
    pub(super) lease: Lease,
    pub(super) store: Arc<dyn Store>,
    pub(super) forms: Arc<Forms>,
    pub(super) ordering: Ordering,
    /// The transaction of the change event at the position it begins after; `None` where there is no
    /// position, or a rewind put it there.
    pub(super) begins_after: Option<Option<String>>,
    pub(super) handlers: Vec<(HandlerRun, Arc<dyn Handler>)>,
    pub(super) finished_ahead: Vec<FinishedAhead>,
    pub(super) letters: LettersSetup,
    /// When the position was last written, else now.
    pub(super) behind_since: SystemTime,
    pub(super) assignment: Assignment,
    /// Opens the streams of side replays.
    pub(super) streams: Streams,
    /// Where the live stream began.
    pub(super) resumed_after: Option<ReplayId>,
    /// The newest event at or before that place, where it is known.
    pub(super) resumed_event: Option<ReplayId>,
    pub(super) given_up: mpsc::UnboundedReceiver<GivenUp>,
    pub(super) age: PositionAge,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) stream_state: watch::Receiver<State>,
    pub(super) stream_changes: Changes,
    /// The subscription's state as people see it: the stream's, or that of a handler that stopped it.
    pub(super) shown_state: watch::Sender<State>,
    pub(super) observer: Observer,
    pub(super) stop: CancellationToken,
}

pub(super) struct Delivery {
    lease: Lease,
    store: Arc<dyn Store>,
    /// What each handler is given of events.
    forms: Arc<Forms>,
    ordering: Ordering,
    runs: Vec<HandlerRun>,
    handlers: Vec<Arc<dyn Handler>>,
    tracker: Tracker,
    grouping: Grouping,
    assignment: Assignment,
    in_flight: Arc<InFlight>,
    finished_before: FinishedBefore,
    /// What comes again because the stream resumed before an incomplete replay ID.
    repeats: HashMap<EventIdentity, usize>,
    /// Batches with a handler.
    with_handlers: HashMap<(usize, CallId), Vec<Waiting>>,
    calls: JoinSet<Called>,
    gaps: Gaps,
    /// What comes next is pinned until a hole before it is stored.
    pinned: Option<oneshot::Receiver<()>>,
    /// The reader says that the position is given up.
    given_up: mpsc::UnboundedReceiver<GivenUp>,
    age: PositionAge,
    legs: Legs,
    letters: Letters,
    position: Position,
    replays: Replays,
    stream_state: watch::Receiver<State>,
    shown_state: watch::Sender<State>,
    /// People see another state than the stream's.
    overruled: bool,
    caught_up_at: Option<SystemTime>,
    /// The stream is open and told nothing by that when it was looked at last: that it does is to be stored.
    doubted: bool,
    /// Where lag counts from before the stream was ever caught up.
    behind_since: SystemTime,
    observer: Observer,
    stop: CancellationToken,
    /// How often the loop has turned.
    #[cfg(test)]
    turns: Arc<std::sync::atomic::AtomicUsize>,
}

impl Delivery {
    pub(super) fn new(setup: Setup) -> Self {
        let (runs, handlers): (Vec<_>, Vec<_>) = setup.handlers.into_iter().unzip();
        let mut finished_before = FinishedBefore::new();
        for ahead in setup.finished_ahead {
            // A handler that is configured no more has nothing to skip; its marks are forgotten with the rest.
            let run = runs.iter().find(|run| run.name == ahead.handler);
            *finished_before.entry(ahead.identity).or_insert(0) |= run.map_or(0, |run| run.bit);
        }
        let asked = setup.assignment.asked.clone();
        for settled in setup
            .letters
            .settled
            .iter()
            .filter(|_| !setup.letters.nothing_again)
        {
            let handler = settled.handler.as_ref();
            let is_its = |run: &&HandlerRun| handler.is_none_or(|name| *name == run.name);
            let bits = runs.iter().filter(is_its).map(|run| run.bit);
            let bits = bits.fold(0, |all, bit| all | bit);
            *finished_before.entry(settled.identity.clone()).or_insert(0) |= bits;
        }
        let names = runs.iter().map(|run| (run.bit, run.name.clone())).collect();
        let letters = Letters::new(
            setup.letters,
            &setup.lease,
            &setup.store,
            setup.ordering,
            runs.iter().map(|run| run.name.clone()).collect(),
        );
        let mut tracker = Tracker::new(setup.lease.key.topic.is_channel(), runs.len());
        let mut position = Position::new(
            setup.lease.clone(),
            setup.store.clone(),
            names,
            setup.stream_changes,
        );
        if handlers.iter().any(|h| h.transactional().is_some()) {
            tracker.tell_passed();
            position.keep_marks();
        }
        let grouping = Grouping::new(
            Limits::of(&setup.streams.config),
            setup.begins_after.as_ref().and_then(Option::as_deref),
            setup.begins_after.is_none(),
        );
        Self {
            grouping,
            tracker,
            position,
            replays: Replays::new(
                setup.streams,
                setup.store.clone(),
                asked,
                (setup.resumed_after, setup.resumed_event),
            ),
            store: setup.store.clone(),
            forms: setup.forms,
            ordering: setup.ordering,
            runs,
            handlers,
            assignment: setup.assignment,
            in_flight: setup.in_flight,
            finished_before,
            repeats: HashMap::new(),
            with_handlers: HashMap::new(),
            calls: JoinSet::new(),
            gaps: Gaps::new(setup.lease.clone(), setup.store),
            pinned: None,
            given_up: setup.given_up,
            age: setup.age,
            legs: Legs::new(Instant::now()),
            letters,
            lease: setup.lease,
            stream_state: setup.stream_state,
            shown_state: setup.shown_state,
            overruled: false,
            caught_up_at: None,
            doubted: false,
            behind_since: setup.behind_since,
            observer: setup.observer,
            stop: setup.stop,
            #[cfg(test)]
            turns: Arc::default(),
        }
    }

    /// Runs until the items end and what is in flight is done, or the subscription is lost.
    pub(super) async fn run(mut self, mut items: mpsc::UnboundedReceiver<Vec<Item>>) -> Ended {
        let mut open = true;
        let mut drain_until = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            #[cfg(test)]
            self.turns
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if open {
                self.close_group(Instant::now());
            }
            self.hand_on_replayed(Instant::now());
            self.call_handlers();
            self.follow();
            self.replays.follow(&self.letters.held);
            self.follow_letters();
            if !open && self.is_drained() {
                break;
            }
            // What is open at a stop is left: it comes again whole.
            let over = self.grouping.due().filter(|_| open);
            let wake = self.wake_at().into_iter().chain(over).min();
            tokio::select! {
                batch = items.recv(), if open => match batch {
                    Some(batch) => self.take_all(batch),
                    None => open = false,
                },
                Some(called) = self.calls.join_next() => {
                    if !self.called(called) {
                        return self.fenced();
                    }
                }
                news = self.letters.news() => match news {
                    News::Written(Some(done)) => self.letters_written(done),
                    News::Written(None) => return self.fenced(),
                    News::Loaded(loaded) => self.letters_loaded(loaded),
                },
                recorded = self.gaps.recorded() => match recorded {
                    Some(stored) => stored.into_iter().for_each(|seq| self.tracker.unpin(seq)),
                    None => return self.fenced(),
                },
                Some(given_up) = self.given_up.recv() => self.give_up_position(given_up),
                Ok(()) = self.assignment.asked.changed() => self.letters.asked(),
                written = self.position.written() => {
                    if written == Written::Fenced {
                        return self.fenced();
                    }
                    self.time_store();
                }
                happened = self.replays.next() => {
                    if !self.replayed(happened) {
                        return self.fenced();
                    }
                }
                () = self.assignment.clock.changed() => {
                    if self.assignment.clock.is_lost() {
                        return self.fenced();
                    }
                    self.show_state();
                }
                () = sleep_until(wake) => {}
                _ = tick.tick() => self.tick(),
                () = self.stop.cancelled(), if drain_until.is_none() => {
                    self.stop_replays();
                    drain_until = Some(Instant::now() + DRAIN_LIMIT);
                }
                () = sleep_until(drain_until), if drain_until.is_some() => {
                    warn!(
                        subscription = self.lease.key.name,
                        in_flight = self.in_flight.held_now().0,
                        "handlers did not finish in time: these events will come again"
                    );
                    break;
                }
            }
        }
        self.finish().await
    }

    /// Lets go what is finished and, when it is time, writes how far that is.
    fn follow(&mut self) {
        let passed = self.tracker.advance();
        self.in_flight.release(passed.events, passed.bytes);
        self.legs.let_go(self.tracker.low_water());
        // What waits for its schema is not in the tracker yet.
        let idle = self.tracker.is_idle() && self.in_flight.held_now().0 == 0;
        if idle && self.hears() {
            self.caught_up_at = Some(SystemTime::now());
            if std::mem::take(&mut self.doubted) {
                self.position.changed();
            }
        }
        let letters = self.letters.held.ahead.pass(self.tracker.passed_to());
        self.position.letters_passed(letters);
        self.position.follow(
            &self.tracker,
            passed,
            self.caught_up_at,
            &self.finished_before,
        );
    }

    /// There is a stream over which whatever there is would come.
    fn hears(&mut self) -> bool {
        let live = *self.stream_state.borrow() == State::Live;
        let tells = self.in_flight.tells(Instant::now());
        self.doubted |= live && !tells;
        live && tells
    }

    /// Notes how long finished events waited for a position behind them to be stored.
    fn time_store(&mut self) {
        let passed_to = self.position.stored_to();
        for (events, waited) in self.legs.stored(passed_to, Instant::now()) {
            self.observer.stored(events, waited);
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let handlers = self.runs.iter().filter_map(|run| run.wake_at(now));
        // What is due and may not be begun would have this loop turn without end.
        let letters = self.letters.wake_at().filter(|_| self.may_draw());
        let own = [self.position.wake_at(), letters, self.replays.wake_at()];
        handlers.chain(own.into_iter().flatten()).min()
    }

    /// Nothing under way, and nothing that could be begun before the handlers' next attempt.
    fn is_drained(&self) -> bool {
        self.calls.is_empty() && self.letters.parking.is_idle() && self.gaps.is_idle()
    }

    /// The bus does not know the position any more, nor the places of what is in flight.
    fn give_up_position(&mut self, given_up: GivenUp) {
        self.tracker.forget_places();
        if given_up.begin == Start::Latest {
            // Nothing comes that has come before.
            self.letters.held.all_came_by(self.tracker.next_seq());
        }
        self.age.forget();
        self.position.give_up(given_up);
    }

    fn fenced(self) -> Ended {
        warn!(
            subscription = self.lease.key.name,
            epoch = self.lease.epoch,
            "another worker has taken this subscription over: this one lets it go"
        );
        self.letters.parking.abandon();
        self.gaps.abandon();
        Ended::Fenced
    }

    async fn finish(mut self) -> Ended {
        self.letters.parking.abandon();
        self.gaps.abandon();
        self.calls.abort_all();
        self.follow();
        let rewinds = self.replays.rewind_asked();
        let state = if rewinds {
            State::Connecting
        } else {
            State::Stopped
        };
        let last = self.position.write_now(
            &self.tracker,
            self.caught_up_at,
            &self.finished_before,
            &state,
        );
        let replays = self.replays.write_now(&self.letters.held);
        let both = async { tokio::join!(last, replays).0 };
        let last = tokio::time::timeout(LAST_WRITE_LIMIT, both).await;
        self.time_store();
        match last {
            Ok(Written::Done) => info!(
                subscription = self.lease.key.name,
                topic = %self.lease.key.topic,
                state = state.name(),
                position = self.tracker.position().map(tracing::field::display),
                unfinished = self.in_flight.held_now().0,
                "stopped"
            ),
            Ok(Written::Fenced) => return Ended::Fenced,
            Ok(Written::Failed) | Err(_) => warn!(
                subscription = self.lease.key.name,
                "stopped, but the store did not take the last position: the events since will come again"
            ),
        }
        if rewinds {
            Ended::RewindAsked
        } else {
            Ended::Stopped
        }
    }
}

/// A task of ours ended without a result. Calls and parking catch what they can and are aborted only at the
/// end, so this is a bug: it must end the subscription, and with it the process, not stall it in silence.
pub(super) fn end_of_task(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => std::panic::resume_unwind(Box::new(error.to_string())),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
