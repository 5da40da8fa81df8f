//! One side replay: what of it is handed over, finished and stored, and when it is over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Delivery;
use super::bounds::{from_ms, read, to_ms};
use super::grouping::{Group, Grouping, Groups, Limits, Member, What, transaction};
use super::groups::{Silence, silence};
use super::letters::Letters;
use super::replay::Ending;
use crate::config::Start;
use crate::event::{ChangeEventHeader, EventIdentity, ReplayId, SmolStr};
use crate::store::{CommandState, ReplayArguments, ReplayProgress, StoredCommand};
use crate::subscription::decoder::Item;
use crate::subscription::held::{Change, Held};
use crate::subscription::in_flight::InFlight;
use crate::subscription::lanes::Origin;
use crate::subscription::replay_end::{ReplayEnd, Sight};
use crate::subscription::resume::Resume;
use crate::subscription::rewind;
use crate::subscription::state::State;
use crate::subscription::streams::{Opening, Tasks};
use crate::subscription::tracker::{HandlerSet, Seq, Tracked, Tracker};

/// A side replay may hold so much of what its subscription may hold.
const SHARE: usize = 4;

/// Least time between two writes of how far it is.
const PACE: Duration = Duration::from_secs(1);

/// A side replay under way.
pub(super) struct Side {
    pub(super) id: i64,
    pub(super) items: Option<mpsc::UnboundedReceiver<Vec<Item>>>,
    pub(super) tasks: Option<Tasks>,
    pub(super) stop: CancellationToken,
    state: watch::Receiver<State>,
    /// Why its stream cannot go on.
    gone: watch::Receiver<Option<String>>,
    in_flight: Arc<InFlight>,
    tracker: Tracker,
    grouping: Grouping,
    /// Groups that are complete and not handed on yet.
    complete: Vec<Group>,
    /// What its events' places count from.
    base: Seq,
    /// The handlers that are not given anything.
    left_out: HandlerSet,
    end: ReplayEnd,
    repeats: HashMap<EventIdentity, usize>,
    /// Events under way that none of its handlers wants.
    unwanted: VecDeque<Seq>,
    progress: ReplayProgress,
    newest: Option<SystemTime>,
    /// When the last event came, or it began.
    came_at: Instant,
    /// Something is to be stored.
    moved: bool,
    saved_at: Option<Instant>,
    over: Option<(CommandState, String)>,
}

impl Side {
    /// Lets go what is finished.
    pub(super) fn follow(&mut self) {
        let passed = self.tracker.advance();
        self.in_flight.release(passed.events, passed.bytes);
        self.progress.finished += passed.events as u64;
        let passed_to = self.tracker.low_water();
        while self.unwanted.pop_front_if(|seq| *seq < passed_to).is_some() {
            self.progress.unwanted += 1;
        }
        self.newest = self.newest.max(passed.occurred_at);
        let quiet = self.over.is_none() && self.tracker.is_idle();
        let waits = quiet && self.came_at.elapsed() >= QUIET;
        let detail = self.state.borrow().detail().map(str::to_owned);
        let detail = detail.or_else(|| waits.then(|| WAITS.to_owned()));
        if passed.events > 0 || detail != self.progress.detail {
            self.progress.detail = detail;
            self.moved = true;
        }
    }

    /// What to tell the store, where it is over and everything of it is finished.
    pub(super) fn ending(&mut self) -> Option<Ending> {
        if !self.tracker.is_idle() || !self.complete.is_empty() {
            return None;
        }
        let (state, why) = self.over.take()?;
        let progress = self.now();
        let parked = match progress.parked {
            0 => String::new(),
            parked => format!(", {parked} parked"),
        };
        let unwanted = match progress.unwanted {
            0 => String::new(),
            unwanted => format!(", {unwanted} not wanted"),
        };
        let handed_over = progress.finished.saturating_sub(progress.unwanted);
        let outcome = format!("{why}; {handed_over} events handed over{unwanted}{parked}");
        Some(Ending {
            id: self.id,
            state,
            outcome,
            progress: Some(progress),
        })
    }

    /// When its progress is to be stored.
    pub(super) fn save_at(&self, now: Instant) -> Option<Instant> {
        let last = self.saved_at.map(|at| at + PACE);
        self.moved.then(|| last.unwrap_or(now))
    }

    /// What was to be stored was not.
    pub(super) fn changed(&mut self) {
        self.moved = true;
    }

    pub(super) fn take_progress(&mut self, now: Instant, held: &Held) -> ReplayProgress {
        self.moved = false;
        self.saved_at = Some(now);
        self.progress.met = held.met_before(self.base + self.tracker.passed_to());
        self.now()
    }

    /// It begins, or goes on: letters that were met before hold what it brings, all others what comes after
    /// their own events.
    pub(super) fn begin(&self, held: &mut Held) {
        held.replay_begins(&self.progress.met, self.base.saturating_sub(1));
    }

    /// Where it goes on from.
    pub(super) fn place(&self) -> Option<&str> {
        self.progress.place.as_deref()
    }

    fn now(&self) -> ReplayProgress {
        let place = self.tracker.position().map(ToString::to_string);
        ReplayProgress {
            place: place.or_else(|| self.progress.place.clone()),
            at_ms: self.newest.map(to_ms),
            last: self.end.last().iter().map(ToString::to_string).collect(),
            before: self.end.before().map(ToString::to_string),
            ..self.progress.clone()
        }
    }

    /// True where an event of this place is this replay's.
    pub(super) fn is_its(&self, seq: Seq) -> bool {
        seq >= self.base
    }

    pub(super) fn finished(&mut self, seq: Seq, handlers: Option<HandlerSet>, parked: bool) {
        // What came late of an earlier replay.
        let Some(seq) = seq.checked_sub(self.base) else {
            return;
        };
        self.progress.parked += u64::from(parked);
        match handlers {
            Some(handlers) => self.tracker.finish(seq, handlers),
            None => self.tracker.finish_for_all(seq),
        };
    }

    /// The handlers that it is for.
    pub(super) fn wanted(&self) -> HandlerSet {
        !self.left_out
    }

    /// The live stream brought an event, which with all that follows it is handed over to the handlers of this
    /// replay without it.
    pub(super) fn live_brought(&mut self, id: &ReplayId) {
        self.moved |= self.end.before().is_none();
        if self.end.live_brought(id) {
            self.done(CAUGHT_UP, true);
        }
    }

    /// Its stream ended by itself.
    pub(super) fn stream_ended(&mut self) {
        self.items = None;
        self.group(|grouping| grouping.close(true));
        let gone = self.gone.borrow().clone();
        if let (Some(why), None) = (gone, &self.over) {
            self.over = Some((
                CommandState::Failed,
                format!("the place to go on from is not on the bus: {why}"),
            ));
        }
    }

    /// When its open transaction is over if nothing comes.
    pub(super) fn group_due(&self) -> Option<Instant> {
        self.grouping.due()
    }

    /// Closes a transaction that nothing else closes, once its wait is over.
    fn close_group(&mut self, now: Instant) {
        let Some(due) = self.grouping.due().filter(|due| *due <= now) else {
            return;
        };
        let live = *self.state.borrow() == State::Live;
        match silence(
            &self.grouping,
            &self.tracker,
            &self.in_flight,
            live,
            due,
            now,
        ) {
            Silence::Over => self.group(|grouping| grouping.close(false)),
            Silence::Full => self.group(|grouping| grouping.close(true)),
            Silence::Ours => self.grouping.wait_again(now),
        }
    }

    /// Takes what is complete now, and has the place stay before what is not.
    fn group(&mut self, collect: impl FnOnce(&mut Grouping) -> Groups) {
        for group in collect(&mut self.grouping) {
            self.tracker.join(group.first, group.members.len());
            self.complete.push(group);
        }
        self.tracker.open_from(self.grouping.open_from());
    }

    /// It is over; `partial` where more may exist of the transaction that came last.
    fn done(&mut self, why: &str, partial: bool) {
        self.group(|grouping| grouping.close(partial));
        if self.over.is_none() {
            self.over = Some((CommandState::Done, why.to_owned()));
        }
        self.items = None;
        self.stop.cancel();
    }

    fn is_repeat(&mut self, what: &What, size: usize) -> bool {
        if !what.is_one_of(&mut self.repeats) {
            return false;
        }
        self.in_flight.release(1, size);
        true
    }

    /// Takes an event in, unless it came before or is not part of the replay. Some handlers do not want it.
    fn take(&mut self, what: What, unwanted: HandlerSet, letters: &mut Letters) {
        self.in_flight.arrived();
        let (raw, header, size, occurred_at) = match &what {
            What::Event(event) => (
                &event.raw,
                event.decoded.header.as_deref(),
                event.size(),
                event.occurred_at(),
            ),
            What::Undecodable(event) => (
                &event.raw,
                event.header.as_ref(),
                event.raw.size(),
                event.received_at,
            ),
        };
        self.came_at = Instant::now();
        let (raw_size, replay_id) = (raw.size(), raw.replay_id.clone());
        if self.over.is_some() || self.is_repeat(&what, raw_size) {
            return;
        }
        let committed_at = header.and_then(ChangeEventHeader::committed_at);
        let sight = self.end.sees(replay_id.as_ref(), committed_at);
        if sight == Sight::Over {
            let more = self
                .grouping
                .is_of(transaction(header).map(SmolStr::as_str));
            self.done(END_REACHED, more);
            return;
        }
        self.in_flight.grow(size - raw_size, size);
        self.progress.received += 1;
        let tracked = Tracked {
            identity: what.to_track(),
            occurred_at,
            size,
            transaction: None,
        };
        let at = self.base + self.tracker.next_seq();
        let change = Change::of(header, what.received_at(), letters.holding);
        letters
            .held
            .replay_at(at, replay_id.as_ref(), change.as_ref());
        let seq = self.tracker.push_event(tracked, replay_id, self.left_out);
        if self.tracker.leave_out(seq, unwanted) {
            self.unwanted.push_back(seq);
        }
        let member = Member {
            what,
            finished: self.left_out,
            unwanted,
        };
        self.group(|grouping| grouping.take(seq, member, Instant::now()));
        if sight == Sight::TakeLast {
            self.done(END_REACHED, true);
        }
    }
}

/// Everything that came is finished, and nothing more has come for so long.
const QUIET: Duration = Duration::from_secs(5);

/// What it does then. The bus says that there is nothing more by a keepalive, and by nothing else (facts 3.3).
const WAITS: &str = "waiting for more events, or for the bus to say that there are none, which it does within 270 s";

const CAUGHT_UP: &str = "caught up with the live stream";
const END_REACHED: &str = "reached its end";

impl Delivery {
    /// A side replay as a command describes it, with its stream open.
    pub(super) fn side_of(&mut self, command: &StoredCommand) -> Result<Side, String> {
        let unreadable = |error| format!("the command cannot be read: {error}");
        let arguments: ReplayArguments =
            serde_json::from_value(command.arguments.clone()).map_err(unreadable)?;
        let progress: ReplayProgress =
            serde_json::from_value(command.progress.clone()).map_err(unreadable)?;
        let channel = self.lease.key.topic.is_channel();
        let place = match (&progress.place, rewind::begin(&arguments)?) {
            (Some(place), _) => Start::After(read(place)?),
            (None, Start::Latest) => {
                return Err(
                    "a side replay cannot begin at LATEST: nothing lies behind it".to_owned(),
                );
            }
            (None, begin) => begin,
        };
        let left_out = self.left_out(&arguments.handlers)?;
        let end = self.end_of(&arguments, &progress, !left_out)?;
        let config = &self.replays.streams.config;
        // As much as a transaction needs to come in whole.
        let limits = Limits::of(config);
        let whole = limits.map_or(0, |limits| limits.events.saturating_mul(2));
        let in_flight = Arc::new(InFlight::new(
            whole
                .min(config.max_in_flight)
                .max(config.max_in_flight.div_ceil(SHARE)),
            config.max_in_flight_bytes.div_ceil(SHARE),
        ));
        let stop = self.stop.child_token();
        let (gone_tell, gone) = watch::channel(None);
        let nothing =
            matches!(&place, Start::After(id) if end.is_at(id) || self.stands_at(id, !left_out));
        let stream = self.replays.streams.open(Opening {
            resume: Resume::new(channel, None, None, &place),
            // Nobody listens: a side replay gives no position up.
            given_up: mpsc::unbounded_channel().0,
            expected: None,
            rewound_from: Vec::new(),
            in_flight: in_flight.clone(),
            observer: self.observer.of_replay(),
            replay: Some(gone_tell),
            stop: stop.clone(),
        });
        let state = stream.state.clone();
        let (items, tasks) = stream.split();
        let mut side = Side {
            id: command.id,
            items: Some(items),
            tasks: Some(tasks),
            stop,
            state,
            gone,
            in_flight,
            tracker: Tracker::new(channel, self.runs.len()),
            // What came before its beginning may have been of the same transaction.
            grouping: Grouping::new(limits, None, true),
            complete: Vec::new(),
            base: self.replays.next_base(),
            left_out,
            end,
            repeats: HashMap::new(),
            unwanted: VecDeque::new(),
            newest: progress.at_ms.map(from_ms),
            came_at: Instant::now(),
            progress,
            moved: true,
            saved_at: None,
            over: None,
        };
        if nothing {
            side.done(
                "nothing lies between its beginning and the live stream",
                false,
            );
        }
        Ok(side)
    }

    pub(super) fn take_replayed(&mut self, item: Item) {
        if self.stop.is_cancelled() {
            return;
        }
        let unwanted = match &item {
            Item::Event(event) => self.unwanted_of_replay(event),
            _ => 0,
        };
        let Some(side) = &mut self.replays.side else {
            return;
        };
        match item {
            Item::Event(event) => {
                let event = What::Event(event);
                side.take(event, unwanted, &mut self.letters);
            }
            Item::Undecodable(event) => {
                let event = What::Undecodable(Arc::from(event));
                side.take(event, 0, &mut self.letters);
            }
            Item::Keepalive(id, received_at) => {
                side.repeats.clear();
                side.done(CAUGHT_UP, false);
                side.tracker.push_keepalive(id, received_at);
            }
            // Only where a position is given up or was lost, which a side replay has none of.
            Item::NewPlaces | Item::Pinned(_) => {}
            Item::Resumed { continues } => {
                side.in_flight.arrived();
                side.repeats = side.tracker.incomplete_events();
                side.group(|grouping| grouping.resumed(continues, Instant::now()));
            }
        }
    }

    /// Puts what is complete of the side replay into the lanes of its handlers.
    pub(super) fn hand_on_replayed(&mut self, now: Instant) {
        let Some(side) = (self.replays.side.as_mut()).filter(|_| !self.stop.is_cancelled()) else {
            return;
        };
        side.close_group(now);
        let base = side.base;
        for group in std::mem::take(&mut side.complete) {
            // What is left out of it is finished for those that it is not for.
            self.give(&group, |seq| Origin::Replay(base + seq));
        }
    }
}
