//! What people ask of a running subscription (design 3.1, rule 13): a rewind, for which it drains, and side
//! replays, one at a time. A side replay has a stream, a tracker and an in-flight bound of its own; its events
//! wait in the same lanes, so that records take turns with live ones. It never moves the position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tracing::{info, warn};

use super::bounds::is_marked;
use super::side::Side;
use super::{Delivery, end_of_task};
use crate::config::BackoffConfig;
use crate::event::ReplayId;
use crate::store::{
    CommandKind, CommandState, Lease, ReplayProgress, Store, StoreError, StoredCommand,
};
use crate::subscription::backoff::Backoff;
use crate::subscription::decoder::Item;
use crate::subscription::held::Held;
use crate::subscription::lanes::Origin;
use crate::subscription::position::FinishedBefore;
use crate::subscription::streams::{Streams, Tasks};
use crate::subscription::tracker::{HandlerSet, Seq};

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(15),
};

/// Places of one side replay are so far from those of the next, so that what comes late of one is not taken
/// for the other's.
const APART: Seq = 1 << 40;

/// Commands of a subscription, and the side replay under way.
pub(super) struct Replays {
    lease: Lease,
    store: Arc<dyn Store>,
    pub(super) streams: Streams,
    asked: watch::Receiver<i64>,
    /// Nobody will ask any more.
    unasked: bool,
    /// Commands are to be looked at.
    look: bool,
    /// A side replay to be begun.
    begin: Option<StoredCommand>,
    pub(super) side: Option<Side>,
    /// A side replay that is over, to be told to the store.
    ending: Option<Ending>,
    /// One call of the store at a time.
    call: Option<BoxFuture<'static, Done>>,
    /// No call before, because one failed.
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Tasks of streams that were told to stop.
    closing: JoinSet<Result<(), JoinError>>,
    rewind_asked: bool,
    stopping: bool,
    next_base: Seq,
    /// Where the subscription stood at the beginning.
    pub(super) resumed_after: Option<ReplayId>,
    /// The newest event at or before that place, where it is known.
    pub(super) resumed_event: Option<ReplayId>,
    /// The last event of the live stream that has a place.
    pub(super) last_live: Option<ReplayId>,
}

/// How a side replay ended.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) id: i64,
    pub(super) state: CommandState,
    pub(super) outcome: String,
    pub(super) progress: Option<ReplayProgress>,
}

/// What a call of the store brought.
pub(super) enum Done {
    Looked(Result<Vec<StoredCommand>, StoreError>),
    Begun(Box<StoredCommand>, Result<bool, StoreError>),
    Saved(i64, Result<bool, StoreError>),
    Ended(Ending, Result<bool, StoreError>),
}

/// What [`Replays::next`] waits for.
pub(super) enum Happened {
    Asked,
    Done(Box<Done>),
    Came(Vec<Item>),
    StreamEnded,
    Closed(Result<(), JoinError>),
}

impl Replays {
    pub(super) fn new(
        streams: Streams,
        store: Arc<dyn Store>,
        asked: watch::Receiver<i64>,
        (resumed_after, resumed_event): (Option<ReplayId>, Option<ReplayId>),
    ) -> Self {
        Self {
            lease: streams.lease.clone(),
            store,
            streams,
            asked,
            unasked: false,
            look: true,
            begin: None,
            side: None,
            ending: None,
            call: None,
            not_before: None,
            backoff: Backoff::new(STORE_RETRY),
            closing: JoinSet::new(),
            rewind_asked: false,
            stopping: false,
            next_base: 0,
            resumed_after,
            resumed_event,
            last_live: None,
        }
    }

    /// True where the delivery has to end, so that the subscription can be rewound.
    pub(super) fn rewind_asked(&self) -> bool {
        self.rewind_asked
    }

    /// The next thing that happens; never, where nothing can. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happened {
        tokio::select! {
            done = finished(&mut self.call) => {
                self.call = None;
                Happened::Done(Box::new(done))
            }
            items = next_items(self.side.as_mut()) => match items {
                Some(items) => Happened::Came(items),
                None => Happened::StreamEnded,
            },
            Some(closed) = self.closing.join_next() => Happened::Closed(closed.and_then(|ended| ended)),
            changed = self.asked.changed(), if !self.unasked => {
                self.unasked = changed.is_err();
                Happened::Asked
            }
        }
    }

    /// Lets go what is finished, and begins the next call that is due.
    pub(super) fn follow(&mut self, held: &Held) {
        if let Some(side) = &mut self.side {
            side.follow();
            if let Some(ending) = side.ending() {
                self.ending = Some(ending);
                self.close();
            }
        }
        let now = Instant::now();
        if self.call.is_none() && self.due(now).is_some_and(|at| at <= now) {
            self.call = self.next_call(now, held);
        }
    }

    /// When there is something to begin.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let call = self.due(Instant::now()).filter(|_| self.call.is_none());
        let group = self.side.as_ref().and_then(Side::group_due);
        call.into_iter()
            .chain(group.filter(|_| !self.stopping))
            .min()
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        if self.stopping {
            return None;
        }
        let at_once = self.ending.is_some() || self.look || self.begin.is_some();
        let due = if at_once {
            Some(now)
        } else {
            self.side.as_ref().and_then(|side| side.save_at(now))
        };
        due.map(|due| {
            self.not_before
                .map_or(due, |not_before| due.max(not_before))
        })
    }

    fn next_call(&mut self, now: Instant, held: &Held) -> Option<BoxFuture<'static, Done>> {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        if let Some(ending) = self.ending.take() {
            return Some(Box::pin(async move {
                let progress = ending.progress.as_ref().map(json);
                let (id, state, outcome) = (ending.id, ending.state, &ending.outcome);
                let ended = store.end_command(&lease, id, state, outcome, progress.as_ref());
                let ended = ended.await;
                Done::Ended(ending, ended)
            }));
        }
        if std::mem::take(&mut self.look) {
            return Some(Box::pin(async move {
                Done::Looked(store.open_commands(&lease).await)
            }));
        }
        if let Some(command) = self.begin.take() {
            return Some(Box::pin(async move {
                let begun = store.begin_command(&lease, command.id).await;
                Done::Begun(Box::new(command), begun)
            }));
        }
        let side = self.side.as_mut()?;
        let (id, progress) = (side.id, json(&side.take_progress(now, held)));
        Some(Box::pin(async move {
            Done::Saved(id, store.save_command(&lease, id, &progress).await)
        }))
    }

    /// The live stream brought an event, which these handlers had finished before; others that are still to come are
    /// finished by those of `before`.
    pub(super) fn live_brought(
        &mut self,
        id: Option<&ReplayId>,
        finished: HandlerSet,
        before: &FinishedBefore,
    ) {
        let Some(id) = id else { return };
        self.last_live = Some(id.clone());
        if let Some(side) = &mut self.side {
            let wanted = side.wanted();
            if finished & wanted == 0 && !is_marked(before, wanted) {
                side.live_brought(id);
            }
        }
    }

    /// A handler has finished an event of a side replay, or it is parked.
    pub(super) fn finished(&mut self, seq: Seq, handlers: Option<HandlerSet>, parked: bool) {
        if let Some(side) = &mut self.side {
            side.finished(seq, handlers, parked);
        }
    }

    /// True for an event of a side replay that is not wanted any more.
    pub(super) fn is_stale(&self, origin: Origin) -> bool {
        let Origin::Replay(seq) = origin else {
            return false;
        };
        self.stopping || self.side.as_ref().is_none_or(|side| !side.is_its(seq))
    }

    /// A number that the places of the next side replay begin at.
    pub(super) fn next_base(&mut self) -> Seq {
        self.next_base += APART;
        self.next_base
    }

    /// Ends the side replay's stream, and forgets the replay.
    fn close(&mut self) {
        if let Some(mut side) = self.side.take() {
            side.stop.cancel();
            self.closing.spawn(ended(side.tasks.take()));
        }
        self.look = true;
    }

    /// The last progress, where it is worth a write. To be bounded in time by the caller.
    pub(super) async fn write_now(&mut self, held: &Held) {
        if let Some(call) = self.call.take() {
            call.await;
        }
        let Some(side) = self
            .side
            .as_mut()
            .filter(|side| side.save_at(Instant::now()).is_some())
        else {
            return;
        };
        let (id, progress) = (side.id, json(&side.take_progress(Instant::now(), held)));
        if let Err(error) = self.store.save_command(&self.lease, id, &progress).await {
            warn!(
                subscription = self.lease.key.name,
                command = id,
                error = %error,
                "the store did not take how far the replay is: events since the last write come again"
            );
        }
    }
}

impl Delivery {
    /// Takes in what happened; false where another worker has taken over.
    pub(super) fn replayed(&mut self, happened: Happened) -> bool {
        match happened {
            Happened::Asked => self.replays.look = true,
            Happened::Done(done) => return self.store_answered(*done),
            Happened::Came(items) => items.into_iter().for_each(|item| self.take_replayed(item)),
            Happened::StreamEnded => {
                if let Some(side) = &mut self.replays.side {
                    side.stream_ended();
                }
            }
            Happened::Closed(closed) => closed.unwrap_or_else(|error| end_of_task(error)),
        }
        true
    }

    fn store_answered(&mut self, done: Done) -> bool {
        let error = match done {
            Done::Looked(Ok(open)) => {
                self.looked_at(open);
                None
            }
            Done::Looked(Err(error)) => {
                self.replays.look = true;
                Some(error)
            }
            Done::Begun(command, Ok(true)) => {
                self.begin_replay(&command);
                None
            }
            Done::Begun(_, Ok(false)) => {
                self.replays.look = true;
                None
            }
            Done::Begun(command, Err(error)) => {
                self.replays.begin = Some(*command);
                Some(error)
            }
            Done::Saved(_, Ok(true)) => None,
            Done::Saved(id, Ok(false)) => {
                self.withdrawn(id);
                None
            }
            Done::Saved(_, Err(error)) => {
                if let Some(side) = &mut self.replays.side {
                    side.changed();
                }
                Some(error)
            }
            Done::Ended(ending, Ok(_)) => {
                info!(
                    subscription = self.lease.key.name,
                    command = ending.id,
                    state = ending.state.name(),
                    outcome = ending.outcome,
                    "replay ended"
                );
                self.replays.look = true;
                None
            }
            Done::Ended(ending, Err(error)) => {
                self.replays.ending = Some(ending);
                Some(error)
            }
        };
        match error {
            None => {
                self.replays.backoff.reset();
                self.replays.not_before = None;
                true
            }
            Some(StoreError::Fenced { .. }) => false,
            Some(error) => {
                let pause = self.replays.backoff.next_pause();
                self.replays.not_before = Some(Instant::now() + pause);
                warn!(
                    subscription = self.lease.key.name,
                    error = %error,
                    pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                    "what is asked of this subscription cannot be read or written; it is tried again"
                );
                true
            }
        }
    }

    fn looked_at(&mut self, open: Vec<StoredCommand>) {
        if let Some(id) = self.replays.side.as_ref().map(|side| side.id)
            && !open.iter().any(|command| command.id == id)
        {
            self.withdrawn(id);
        }
        if open.iter().any(|c| c.kind == CommandKind::Rewind) {
            info!(
                subscription = self.lease.key.name,
                "a rewind is asked for: finishing what is in flight"
            );
            self.replays.rewind_asked = true;
            self.stop.cancel();
        } else if self.replays.side.is_none() && self.replays.ending.is_none() {
            let mut replays = open.into_iter();
            self.replays.begin = replays.find(|c| c.kind == CommandKind::Replay);
        }
    }

    /// A person took the side replay back: nothing more of it is handed over.
    fn withdrawn(&mut self, id: i64) {
        if self.replays.side.as_ref().is_none_or(|side| side.id != id) {
            return;
        }
        info!(
            subscription = self.lease.key.name,
            command = id,
            "replay withdrawn: nothing more of it is handed over"
        );
        self.forget_replayed();
        self.replays.close();
    }

    /// The subscription stops: a later owner goes on with the side replay from where it was.
    pub(super) fn stop_replays(&mut self) {
        self.replays.stopping = true;
        self.forget_replayed();
    }

    fn forget_replayed(&mut self) {
        for run in &mut self.runs {
            run.forget(|origin| matches!(origin, Origin::Replay(_)));
        }
    }

    fn begin_replay(&mut self, command: &StoredCommand) {
        match self.side_of(command) {
            Ok(side) => {
                info!(
                    subscription = self.lease.key.name,
                    command = command.id,
                    arguments = %command.arguments,
                    place = side.place().map(tracing::field::display),
                    "replay begins beside the live stream: older values will follow newer ones"
                );
                side.begin(&mut self.letters.held);
                self.replays.side = Some(side);
            }
            Err(outcome) => {
                self.replays.ending = Some(Ending {
                    id: command.id,
                    state: CommandState::Failed,
                    outcome,
                    progress: None,
                });
            }
        }
    }
}

/// The call under way; never ends, where there is none.
async fn finished(call: &mut Option<BoxFuture<'static, Done>>) -> Done {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

/// What the side replay's stream brings; never ends, where there is none.
async fn next_items(side: Option<&mut Side>) -> Option<Vec<Item>> {
    let items: Option<&mut mpsc::UnboundedReceiver<_>> = side.and_then(|side| side.items.as_mut());
    match items {
        Some(items) => items.recv().await,
        None => std::future::pending().await,
    }
}

async fn ended(tasks: Option<Tasks>) -> Result<(), JoinError> {
    match tasks {
        Some(tasks) => tasks.ended().await,
        None => Ok(()),
    }
}

fn json(progress: &ReplayProgress) -> serde_json::Value {
    // Plain numbers and texts: it cannot fail.
    serde_json::to_value(progress).unwrap_or_default()
}
