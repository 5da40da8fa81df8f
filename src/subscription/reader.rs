//! The reader: owns the stream, keeps the credit window full, and comes back after every break.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::breaks::Break;
use super::changes::Changes;
use super::cost::EarliestCost;
use super::credits::Credits;
use super::in_flight::InFlight;
use super::lease_clock::LeaseClock;
use super::lost::GivenUp;
use super::notes::Notes;
use super::observe::Observer;
use super::quiet::Quiet;
use super::resume::Resume;
use super::state::State;
use crate::config::{BackoffConfig, OnExpiredReplayId, SalesforceConfig};
use crate::event::{RawEvent, ReplayId, Topic};
use crate::salesforce::pubsub::{FetchBatch, FetchStream, PubSub, Recovery, ReplayFrom};
use crate::store::{Lease, Store};

/// Refused sessions in a row after which a person is called.
const REFUSED_SESSIONS: u32 = 5;

/// What the reader hands on, in stream order.
#[derive(Debug)]
pub(super) enum Arrival {
    /// An event.
    Event {
        /// As received.
        raw: RawEvent,
        /// When.
        received_at: SystemTime,
    },
    /// Nothing new up to this place.
    Keepalive {
        /// The place.
        id: ReplayId,
        /// When it came.
        received_at: SystemTime,
    },
    /// The position stays before what comes next until this tells that a hole is stored which lies before it.
    Pinned(oneshot::Receiver<()>),
    /// The bus does not know the places that came before, and knows those that follow ([`GivenUp`]).
    NewPlaces,
    /// A new stream begins, where it can after the last complete replay ID: events under an incomplete one
    /// come again.
    Resumed {
        /// It begins there, and not somewhere else because that place is lost or was never known.
        continues: bool,
    },
}

/// Everything a reader needs.
pub(super) struct Reader {
    pub(super) topic: Topic,
    pub(super) lease: Lease,
    pub(super) bus: PubSub,
    pub(super) store: Arc<dyn Store>,
    pub(super) salesforce: SalesforceConfig,
    pub(super) on_expired: OnExpiredReplayId,
    /// For a side replay, which records nothing about the subscription: where to say that the place to begin
    /// after is gone. Then it ends.
    pub(super) replay: Option<watch::Sender<Option<String>>>,
    pub(super) resume: Resume,
    pub(super) in_flight: Arc<InFlight>,
    /// Under which lease events are asked for.
    pub(super) clock: LeaseClock,
    pub(super) arrivals: mpsc::UnboundedSender<Vec<Arrival>>,
    pub(super) state: watch::Sender<State>,
    /// Where each change of it is told.
    pub(super) changes: Changes,
    /// Salesforce's name of the open stream, as soon as it is known.
    pub(super) rpc_id: Option<String>,
    pub(super) observer: Observer,
    pub(super) stop: CancellationToken,
    /// The org said that the topic is there and may be read; a start at LATEST is recorded.
    pub(super) begun: bool,
    /// How long nothing has come, over all streams.
    pub(super) quiet: Quiet,
    /// Tells the delivery that the position is given up.
    pub(super) given_up: mpsc::UnboundedSender<GivenUp>,
    /// What an earlier run from EARLIEST began with, of which nothing was finished.
    pub(super) expected: Option<ReplayId>,
    /// Where rewinds left from that perhaps skipped something.
    pub(super) rewound_from: Vec<ReplayId>,
    /// What is known about holes, on its way to the store.
    pub(super) notes: Notes,
    /// Says what a run from EARLIEST may cost.
    pub(super) cost: EarliestCost,
}

/// Where the reader is. Losing the stream never loses the position.
enum Step {
    /// No stream.
    Disconnected,
    /// A stream is open.
    Streaming(Box<Streaming>),
    /// Told to stop.
    Stopped,
}

struct Streaming {
    stream: FetchStream,
    credits: Credits,
    /// When something was last heard, or first waited for.
    heard_at: Instant,
    first_response_at: Option<Instant>,
}

impl Reader {
    /// Runs until told to stop. The arrivals' channel closes when this ends.
    pub(super) async fn run(mut self) {
        let mut step = Step::Disconnected;
        let mut backoff = Backoff::new(self.salesforce.reconnect);
        let mut refused = 0;
        loop {
            let result = match step {
                Step::Disconnected => self.connect().await,
                Step::Streaming(streaming) => {
                    self.receive(streaming, &mut backoff, &mut refused).await
                }
                Step::Stopped => break,
            };
            step = match result {
                Ok(next) => next,
                Err(broken) => self.recover(broken, &mut backoff, &mut refused).await,
            };
        }
        self.set_state(State::Stopped, None);
    }

    /// Opens a stream, once the lease holds and there is room for an event.
    async fn connect(&mut self) -> Result<Step, Break> {
        self.in_flight.owe(0);
        self.observer.credits(0);
        if !self.clock.holds() {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(Step::Stopped),
                () = self.clock.changed() => return Ok(Step::Disconnected),
            }
        }
        let Some(first) = Credits::first(self.in_flight.room()) else {
            let rpc_id = self.rpc_id.take();
            self.set_state(State::Paused, rpc_id);
            tokio::select! {
                () = self.stop.cancelled() => return Ok(Step::Stopped),
                () = self.in_flight.let_go() => return Ok(Step::Disconnected),
            }
        };
        if self.state.borrow().name() != "blocked" {
            self.set_state(State::Connecting, None);
        }
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => Ok(Step::Stopped),
            opened = self.open(first) => opened,
        }
    }

    async fn open(&mut self, first: u32) -> Result<Step, Break> {
        self.rpc_id = None;
        if !self.begun {
            self.probe().await?;
            self.begun = true;
            // That may have taken long.
            if !self.clock.holds() {
                return Ok(Step::Disconnected);
            }
        }
        let from = self.resume.from();
        if from == ReplayFrom::Earliest {
            self.cost.tell().await;
            if !self.clock.holds() {
                return Ok(Step::Disconnected);
            }
        }
        let mut stream = self.bus.subscribe(&self.topic, &from, first).await?;
        let asked_at = Instant::now();
        // Headers may come with the first response only, which a quiet topic sends at its first keepalive.
        let opening = timeout_at(
            (asked_at + self.salesforce.silence_limit).into(),
            stream.opened(),
        );
        match opening.await {
            Ok(opened) => opened?,
            Err(_) => return Err(Break::Silent(self.salesforce.silence_limit)),
        }
        self.rpc_id = stream.rpc_id().map(str::to_owned);
        info!(
            subscription = self.lease.key.name,
            topic = %self.topic,
            state = State::Live.name(),
            from = %describe(&from),
            rpc_id = self.rpc_id,
            "stream open"
        );
        let opened_at = Instant::now();
        self.quiet.opened(opened_at);
        let fine_until = self.quiet.fine_until(true, opened_at);
        self.in_flight
            .silent_from(self.quiet.tells_from(), fine_until);
        self.observer.listens(SystemTime::now());
        self.set_state(State::Live, self.rpc_id.clone());
        // A closed channel means that the delivery is gone; the stop token tells.
        let continues = self.resume.continues();
        self.in_flight.sent();
        let _ = self.arrivals.send(vec![Arrival::Resumed { continues }]);
        Ok(Step::Streaming(Box::new(Streaming {
            stream,
            credits: Credits::opened(first, asked_at),
            heard_at: asked_at,
            first_response_at: None,
        })))
    }

    /// Before the first stream: does the topic exist, and may this user read it? Then a start at LATEST is
    /// recorded, so that a crash before the first response is seen as the hole it is (rule 4).
    async fn probe(&mut self) -> Result<(), Break> {
        let info = self.bus.topic(&self.topic).await?;
        if !info.can_subscribe {
            return Err(Break::CannotSubscribe(self.topic.clone()));
        }
        if self.resume.loses_on_break() {
            self.persist("record the start", |store, lease| async move {
                store.mark_begun(&lease).await
            })
            .await;
        }
        Ok(())
    }

    /// One response, or one moment in which room appeared or the lease was renewed.
    async fn receive(
        &mut self,
        mut streaming: Box<Streaming>,
        backoff: &mut Backoff,
        refused: &mut u32,
    ) -> Result<Step, Break> {
        self.observer.credits(streaming.credits.outstanding());
        self.in_flight.owe(streaming.credits.outstanding());
        let limit = self.salesforce.silence_limit;
        // With nothing asked for, silence is what we asked for (rule 10).
        let watched = streaming.credits.outstanding() > 0;
        let fine_until = self.quiet.fine_until(watched, Instant::now());
        self.in_flight
            .silent_from(self.quiet.tells_from(), fine_until);
        let loses = self.resume.loses_on_break();
        let deadline = streaming.heard_at + if watched { limit } else { FAR };
        let batch = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(Step::Stopped),
            response = timeout_at(deadline.into(), streaming.stream.next()) => match response {
                Err(_) => return Err(Break::Silent(limit)),
                // Asked for nothing for a minute: the server closes, in whatever words. Not an error.
                Ok(Ok(None)) if !watched && !loses => return Ok(Step::Disconnected),
                Ok(Err(error))
                    if !watched && !loses && error.recovery() == Recovery::Reconnect =>
                {
                    return Ok(Step::Disconnected);
                }
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(None)) => return Err(Break::Ended),
                Ok(Ok(Some(batch))) => Some(batch),
            },
            () = self.in_flight.let_go() => None,
            () = self.clock.changed() => None,
        };
        let now = Instant::now();
        if let Some(batch) = batch {
            streaming.heard_at = now;
            self.quiet.heard(now);
            self.call_named(streaming.stream.rpc_id());
            *refused = 0;
            let since = *streaming.first_response_at.get_or_insert(now);
            if now.duration_since(since) >= backoff.calm_spell() {
                backoff.reset();
            }
            let events = u32::try_from(batch.events.len()).unwrap_or(u32::MAX);
            streaming
                .credits
                .received(events, batch.pending_num_requested, now);
            self.hand_on(batch).await;
        }
        let starved = streaming.credits.outstanding() == 0;
        // Somebody else may have begun where our time is up; what was asked for before still comes.
        if self.clock.holds()
            && let Some(more) = streaming.credits.ask(self.in_flight.room(), now)
        {
            // An error means that the call is over: the next response, or its absence, tells why.
            let _ = streaming.stream.request(more);
            if starved {
                streaming.heard_at = now;
            }
        }
        Ok(Step::Streaming(streaming))
    }

    /// The stream's first response tells its name.
    fn call_named(&mut self, rpc_id: Option<&str>) {
        if let (None, Some(rpc_id)) = (&self.rpc_id, rpc_id) {
            debug!(
                subscription = self.lease.key.name,
                topic = %self.topic,
                rpc_id,
                "first response"
            );
            self.changes.named(rpc_id);
            self.rpc_id = Some(rpc_id.to_owned());
        }
    }

    async fn hand_on(&mut self, batch: FetchBatch) {
        let received_at = SystemTime::now();
        self.observer.received(batch.events.len());
        self.observer.heard(received_at);
        let mut arrivals = Vec::with_capacity(batch.events.len().max(1));
        if self.resume.first_answer() && self.replay.is_none() {
            arrivals.extend(self.first_came(&batch, received_at));
        }
        self.comes_by(&batch);
        let last_at = batch
            .events
            .last()
            .map_or(received_at, |raw| self.happened_at(raw, received_at));
        if batch.events.is_empty()
            && let Some(id) = batch.latest_replay_id
        {
            self.resume.saw_keepalive(&id, received_at);
            arrivals.push(Arrival::Keepalive { id, received_at });
        }
        self.in_flight.take(batch.events.iter().map(RawEvent::size));
        for raw in batch.events {
            self.resume.saw_event(raw.replay_id.as_ref(), last_at);
            arrivals.push(Arrival::Event { raw, received_at });
        }
        if !arrivals.is_empty() {
            // A closed channel means that the delivery is gone; the stop token tells.
            let _ = self.arrivals.send(arrivals);
        }
    }

    /// The one place that says what to do about a broken stream.
    async fn recover(&mut self, broken: Break, backoff: &mut Backoff, refused: &mut u32) -> Step {
        let recovery = broken.recovery();
        // Nothing is owed by a stream that is gone, however long the pause.
        self.observer.credits(0);
        self.observer.reconnect(broken.reason());
        if self.begun && self.resume.loses_on_break() {
            self.record_broken_start().await;
        }
        let pause = match recovery {
            Recovery::Reconnect => {
                let pause = backoff.next_pause();
                self.reconnecting(&broken, pause);
                pause
            }
            Recovery::ReconnectSlowly => {
                let pause = slowly(backoff, &self.salesforce.blocked_retry);
                self.reconnecting(&broken, pause);
                pause
            }
            Recovery::SignInAgain | Recovery::SignInAgainOnce if *refused < limit(recovery) => {
                *refused += 1;
                // The first refusal is most likely age: sign in again at once.
                let pause = if *refused == 1 {
                    Duration::ZERO
                } else {
                    backoff.next_pause()
                };
                self.reconnecting(&broken, pause);
                pause
            }
            Recovery::SignInAgain | Recovery::SignInAgainOnce | Recovery::Block => {
                let pause = slowly(backoff, &self.salesforce.blocked_retry);
                self.blocked(&broken, broken.cure(), pause);
                pause
            }
            Recovery::WaitForAllocation => {
                let pause = slowly(backoff, &self.salesforce.allocation_retry);
                self.blocked(&broken, broken.cure(), pause);
                pause
            }
            Recovery::ApplyExpiredReplayPolicy => {
                if let Some(gone) = &self.replay {
                    gone.send_replace(Some(broken.to_string()));
                    return Step::Stopped;
                }
                self.reposition(&broken, backoff).await
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Step::Stopped,
            () = tokio::time::sleep(pause) => Step::Disconnected,
        }
    }

    pub(super) fn reconnecting(&mut self, broken: &Break, pause: Duration) {
        let rpc_id = self.broken_call(broken);
        info!(
            subscription = self.lease.key.name,
            topic = %self.topic,
            state = "reconnecting",
            rpc_id,
            replay_id = self.resumes_after().map(tracing::field::display),
            reason = broken.reason(),
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            error = %broken,
            "stream broke, coming back"
        );
        let state = State::Reconnecting {
            detail: broken.to_string(),
        };
        self.set_state(state, rpc_id);
    }

    pub(super) fn blocked(&mut self, broken: &Break, cure: Option<&'static str>, pause: Duration) {
        let rpc_id = self.broken_call(broken);
        warn!(
            subscription = self.lease.key.name,
            topic = %self.topic,
            state = "blocked",
            rpc_id,
            replay_id = self.resumes_after().map(tracing::field::display),
            cure,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            error = %broken,
            "subscription blocked: a person has to change something"
        );
        let state = State::Blocked {
            detail: broken.with_cure(cure),
        };
        self.set_state(state, rpc_id);
    }

    /// Name of the call that ended the stream: by its answer, else by what the stream said while it was open.
    fn broken_call(&mut self, broken: &Break) -> Option<String> {
        let open = self.rpc_id.take();
        broken.rpc_id().map(str::to_owned).or(open)
    }

    /// Where the next stream begins, where that is a place.
    fn resumes_after(&self) -> Option<ReplayId> {
        match self.resume.from() {
            ReplayFrom::After(id) => Some(id),
            ReplayFrom::Latest | ReplayFrom::Earliest => None,
        }
    }

    /// Shows a state, and tells the store of each change but those that pass in a moment. Whoever calls has logged
    /// what is more than its name.
    fn set_state(&self, state: State, rpc_id: Option<String>) {
        if *self.state.borrow() == state {
            return;
        }
        let replay_id = self.resumes_after();
        if matches!(state, State::Connecting | State::Paused) && self.replay.is_none() {
            info!(
                subscription = self.lease.key.name,
                topic = %self.topic,
                state = state.name(),
                rpc_id,
                replay_id = replay_id.as_ref().map(tracing::field::display),
                "stream {state}"
            );
        }
        if !matches!(state, State::Connecting | State::Stopped) {
            self.changes.told(&state, rpc_id, replay_id);
        }
        self.state.send_replace(state);
    }

    /// Writes something that must be stored before the reader goes on.
    pub(super) async fn persist<F, Fut>(&self, what: &'static str, write: F)
    where
        F: Fn(Arc<dyn Store>, Lease) -> Fut,
        Fut: Future<Output = Result<(), crate::store::StoreError>>,
    {
        super::persist(&self.store, &self.lease, &self.stop, what, write).await;
    }
}

/// Further away than any test or wait of ours, near enough for every clock.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) fn slowly(backoff: &mut Backoff, config: &BackoffConfig) -> Duration {
    let earlier = backoff.failures();
    let _ = backoff.next_pause();
    super::backoff::pause(config, earlier.min(8))
}

/// Sessions refused in a row that a new sign-in may answer.
fn limit(recovery: Recovery) -> u32 {
    match recovery {
        Recovery::SignInAgainOnce => 1,
        _ => REFUSED_SESSIONS,
    }
}

pub(super) fn describe(from: &ReplayFrom) -> String {
    match from {
        ReplayFrom::Latest => "latest".to_owned(),
        ReplayFrom::Earliest => "earliest".to_owned(),
        ReplayFrom::After(id) => id.to_string(),
    }
}
