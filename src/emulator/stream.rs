//! One Subscribe stream: credits in, events and keepalives out (facts section 3).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::bus::{Cursor, ReadLimits, replay_id};
use super::credits::Credits;
use super::errors::{Call, Ticket};
use super::faults::{Fault, FaultKind};
use super::org::{Org, SharedOrg, State, StreamReport};
use super::outgoing;
use super::settings::{IdleClose, UnknownTopic};
use super::tokens::TokenState;
use crate::salesforce::pubsub::proto::{FetchRequest, FetchResponse, ReplayPreset};

/// What a stream's responses go into; the generated server reads the other end.
pub(super) type Responses = mpsc::Sender<Result<FetchResponse, Status>>;

/// Why a stream is over.
enum End {
    /// Cleanly, with status OK.
    Clean,
    /// With an error.
    Failed(Box<Status>),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Failed(Box::new(status))
    }
}

/// Serves a stream until it ends or the client goes. `opened` is told once the first FetchRequest has
/// been accepted.
pub(super) async fn serve(
    org: SharedOrg,
    ticket: Ticket,
    token: String,
    requests: Streaming<FetchRequest>,
    responses: Responses,
    opened: oneshot::Sender<()>,
) {
    let registration = Registration::new(Arc::clone(&org), &ticket);
    let gone = responses.clone();
    let serving = async {
        let mut requests = requests;
        let first = match first_request(&org, &ticket, &mut requests).await {
            Ok(first) => first,
            Err(end) => return end,
        };
        let mut stream = match SubscribeStream::open(org, ticket, token, &registration, first).await
        {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        // The call may no longer wait for it.
        let _ = opened.send(());
        match stream.run(requests, &responses).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    };
    tokio::select! {
        end = serving => {
            if let End::Failed(status) = end {
                let _ = gone.send(Err(*status)).await;
            }
        }
        () = gone.closed() => {}
    }
}

/// Waits for the first FetchRequest as long as for any other.
async fn first_request(
    org: &Org,
    ticket: &Ticket,
    requests: &mut Streaming<FetchRequest>,
) -> Result<FetchRequest, End> {
    let begun = Instant::now();
    let mut changes = org.changes();
    loop {
        let limit = Duration::from_millis(org.state().settings.idle_close_ms.max(1));
        tokio::select! {
            request = requests.message() => return request?.ok_or(End::Clean),
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(begun + limit) => return Err(idle_close(org, ticket)),
        }
    }
}

/// How a stream ends whose client asks for nothing.
fn idle_close(org: &Org, ticket: &Ticket) -> End {
    match org.state().settings.idle_close {
        IdleClose::End => End::Clean,
        IdleClose::Status(status) => ticket
            .refuse_as(
                Code::from(status),
                None,
                "The stream was idle: no events were requested in time.",
            )
            .into(),
    }
}

/// A stream's entry in the org's state, for as long as the stream lives.
struct Registration {
    org: SharedOrg,
    id: u64,
}

impl Registration {
    fn new(org: SharedOrg, ticket: &Ticket) -> Self {
        let id = {
            let mut state = org.state();
            state.streams_opened += 1;
            let id = state.streams_opened;
            let report = StreamReport {
                rpc_id: ticket.rpc_id.clone(),
                topic: String::new(),
                pending: 0,
                most_outstanding: 0,
                delivered: 0,
                responses: 0,
                fetch_requests: 0,
            };
            state.streams.insert(id, report);
            id
        };
        Self { org, id }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.org.state().streams.remove(&self.id);
    }
}

/// An accepted stream.
struct SubscribeStream {
    org: SharedOrg,
    ticket: Ticket,
    token: String,
    id: u64,
    topic: String,
    cursor: Cursor,
    /// The line that the cursor is a place on.
    line: u64,
    /// Place named by the last response; what a keepalive may not fall behind.
    last_position: u64,
    credits: Credits,
    /// The last response, the opening, or the first request after a time without credits: what
    /// keepalives and the idle close are counted from.
    quiet_since: Instant,
    changes: watch::Receiver<()>,
    /// Met in opening: the stream fails right after its headers.
    doomed: Option<Fault>,
}

/// A stream has no result of its own: it runs until it ends.
enum Never {}

impl SubscribeStream {
    /// Checks the first FetchRequest and finds the place to begin.
    async fn open(
        org: SharedOrg,
        ticket: Ticket,
        token: String,
        registration: &Registration,
        first: FetchRequest,
    ) -> Result<Self, End> {
        let topic = first.topic_name.clone();
        if topic.is_empty() {
            return Err(ticket
                .refuse("topic.validation.empty", "The topic name can't be blank.")
                .into());
        }
        let fault = org.state().faults.at_call(Call::Subscribe, Some(&topic));
        let mut doomed = None;
        if let Some(fault) = fault {
            if fault.kind == FaultKind::AcceptThenFail {
                doomed = Some(fault);
            } else {
                org.meet(&fault, &ticket).await?;
            }
        }
        check_topic(&org, &ticket, &topic)?;
        let changes = org.changes();
        let (cursor, line) = begin(&org, &ticket, &first)?;
        let position = cursor.position();
        let mut stream = Self {
            org,
            ticket,
            token,
            id: registration.id,
            topic,
            cursor,
            line,
            last_position: position,
            credits: Credits::default(),
            quiet_since: Instant::now(),
            changes,
            doomed,
        };
        stream.accept(&first)?;
        Ok(stream)
    }

    /// Delivers, listens and keeps alive until the stream ends.
    async fn run(
        &mut self,
        mut requests: Streaming<FetchRequest>,
        responses: &Responses,
    ) -> Result<Never, End> {
        if let Some(fault) = self.doomed.take() {
            self.org.meet(&fault, &self.ticket).await?;
        }
        loop {
            self.check_token()?;
            self.check_line(&self.org.state())?;
            self.meet_faults().await?;
            if self.deliver(responses).await? {
                // Stopped short for a fault that is now due.
                continue;
            }
            let deadline = self.deadline();
            tokio::select! {
                request = requests.message() => match request? {
                    // A client that asks no more has half-closed the call.
                    None => return Err(End::Clean),
                    Some(request) => self.accept(&request)?,
                },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return Err(End::Clean);
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.on_quiet(responses).await?,
            }
        }
    }

    /// Takes a FetchRequest: credits, and for later ones the rule that the topic stays.
    fn accept(&mut self, request: &FetchRequest) -> Result<(), Status> {
        if !request.topic_name.is_empty() && request.topic_name != self.topic {
            return Err(self.ticket.refuse(
                "subscription.fetch.topic.mismatch",
                "The topic name can't change within a stream.",
            ));
        }
        if self.credits.pending() == 0 {
            self.quiet_since = Instant::now();
        }
        self.credits.add(request.num_requested).map_err(|_| {
            self.ticket.refuse(
                "subscription.fetch.requested.events.invalid",
                "The number of requested events must be greater than zero.",
            )
        })?;
        let (credits, topic) = (self.credits, self.topic.clone());
        let mut state = self.org.state();
        state.fetch_requests += 1;
        state.most_outstanding = state.most_outstanding.max(credits.most_outstanding());
        if let Some(report) = state.streams.get_mut(&self.id) {
            report.topic = topic;
            report.fetch_requests += 1;
            report.pending = credits.pending();
            report.most_outstanding = credits.most_outstanding();
        }
        Ok(())
    }

    /// Ends the stream where its token was revoked and the org is set to act on that.
    fn check_token(&self) -> Result<(), Status> {
        let acts = self.org.state().settings.revoke_ends_streams;
        if acts && self.org.token_state(&self.token) == TokenState::Revoked {
            return Err(self.org.refuse_token(&self.ticket));
        }
        Ok(())
    }

    /// Ends the stream where the line was reset: its place is on a line that is gone.
    fn check_line(&self, state: &State) -> Result<(), End> {
        if state.bus.line() == self.line {
            Ok(())
        } else {
            Err(End::Clean)
        }
    }

    async fn meet_faults(&mut self) -> Result<(), End> {
        loop {
            let delivered = self.credits.delivered();
            let fault = self.org.state().faults.in_stream(&self.topic, delivered);
            match fault {
                None => return Ok(()),
                Some(fault) if fault.kind == FaultKind::End => return Err(End::Clean),
                Some(fault) => self.org.meet(&fault, &self.ticket).await?,
            }
        }
    }

    /// Sends what is there, as far as credits reach. True where it stopped because a fault is due.
    async fn deliver(&mut self, responses: &Responses) -> Result<bool, End> {
        while self.credits.pending() > 0 {
            let Some(response) = self.next_response()? else {
                let delivered = self.credits.delivered();
                let left = self.org.state().faults.events_left(&self.topic, delivered);
                return Ok(left == Some(0));
            };
            let before = self.credits.delivered() - response.events.len() as u64;
            let delay = self.org.state().faults.on_response(&self.topic, before);
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            self.send(responses, response).await?;
        }
        Ok(false)
    }

    /// The next events as a response; `None` where there are none now.
    fn next_response(&mut self) -> Result<Option<FetchResponse>, End> {
        let now = self.org.clock.now();
        let org = Arc::clone(&self.org);
        let mut state = org.state();
        let state = &mut *state;
        self.check_line(state)?;
        state.bus.expire(now);
        let Some(feed) = state.topics.feed(&self.topic) else {
            return Err(unknown_topic(state.settings.unknown_topic, &self.ticket).into());
        };
        let until_fault = state
            .faults
            .events_left(&self.topic, self.credits.delivered());
        let mut events = u64::from(self.credits.pending());
        events = events.min(until_fault.unwrap_or(u64::MAX));
        if state.faults.duplicates(&self.topic) {
            // Repeats cost credits too, and no more may come than was asked for.
            events = (events / 2).max(1);
        }
        let in_one = state.settings.events_per_response.unwrap_or(u32::MAX);
        events = events.min(u64::from(in_one.max(1)));
        if events == 0 {
            return Ok(None);
        }
        let allowance = state
            .settings
            .delivery_limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(state.deliveries));
        let limits = ReadLimits {
            events: usize::try_from(events.min(allowance.max(1))).unwrap_or(usize::MAX),
            bytes: state.settings.max_response_bytes,
            split_siblings: state.settings.split_siblings,
        };
        let (deliveries, behind) = state.bus.read(self.cursor, &feed, limits);
        if !deliveries.is_empty() && allowance == 0 {
            let detail = "The subscription exceeded the event delivery limit.";
            return Err(self
                .ticket
                .refuse("subscription.limit.exceeded", detail)
                .into());
        }
        self.cursor = behind;
        let Some(last) = deliveries.last() else {
            self.last_position = self.last_position.max(behind.position());
            return Ok(None);
        };
        let latest = last.position;
        let mut events = Vec::with_capacity(deliveries.len());
        for (index, delivery) in deliveries.iter().enumerate() {
            let before = self.credits.delivered() + events.len() as u64;
            // A repeat needs a credit of its own, beside those of the events still to come.
            let spoken_for = events.len() + deliveries.len() - index;
            let may_repeat = spoken_for < self.credits.pending() as usize;
            let fault = state.faults.on_event(&self.topic, before, may_repeat);
            outgoing::put(delivery, fault, self.last_position, &mut events);
            self.last_position = delivery.position;
        }
        self.credits.take(events.len());
        state.deliveries += events.len() as u64;
        Ok(Some(FetchResponse {
            events,
            latest_replay_id: replay_id(latest),
            rpc_id: self.ticket.rpc_id.clone(),
            pending_num_requested: pending(&self.credits),
        }))
    }

    async fn send(&mut self, responses: &Responses, response: FetchResponse) -> Result<(), End> {
        let empty = response.events.is_empty();
        if responses.send(Ok(response)).await.is_err() {
            return Err(End::Clean);
        }
        self.quiet_since = Instant::now();
        let mut state = self.org.state();
        state.keepalives += u64::from(empty);
        if let Some(report) = state.streams.get_mut(&self.id) {
            report.responses += 1;
            report.delivered = self.credits.delivered();
            report.pending = self.credits.pending();
        }
        Ok(())
    }

    /// When the silence has lasted long enough for a keepalive, or for the idle stream to be closed.
    fn deadline(&self) -> Instant {
        let state = self.org.state();
        let limit_ms = if self.credits.pending() > 0 {
            state.settings.keepalive_ms
        } else {
            state.settings.idle_close_ms
        };
        self.quiet_since + Duration::from_millis(limit_ms.max(1))
    }

    /// A keepalive with the newest place of the whole bus, or the end of a stream without credits.
    async fn on_quiet(&mut self, responses: &Responses) -> Result<(), End> {
        if self.credits.pending() == 0 {
            return Err(idle_close(&self.org, &self.ticket));
        }
        {
            let now = self.org.clock.now();
            let mut state = self.org.state();
            self.check_line(&state)?;
            if self.cursor == Cursor::after(state.bus.head()) {
                state.bus.keep_moving(now);
                self.last_position = state.bus.head();
                self.cursor = Cursor::after(self.last_position);
            }
        }
        let keepalive = FetchResponse {
            events: Vec::new(),
            latest_replay_id: replay_id(self.last_position),
            rpc_id: self.ticket.rpc_id.clone(),
            pending_num_requested: pending(&self.credits),
        };
        self.send(responses, keepalive).await
    }
}

fn pending(credits: &Credits) -> i32 {
    i32::try_from(credits.pending()).unwrap_or(i32::MAX)
}

/// The answer for a topic that does not exist, by the org's habit.
pub(super) fn unknown_topic(habit: UnknownTopic, ticket: &Ticket) -> Status {
    let status = match habit {
        UnknownTopic::NotFound => Code::NotFound,
        UnknownTopic::PermissionDenied => Code::PermissionDenied,
    };
    ticket.refuse_as(
        status,
        Some("topic.not.found"),
        "The topic information for the org was not found.",
    )
}

fn check_topic(org: &Org, ticket: &Ticket, topic: &str) -> Result<(), Status> {
    let state = org.state();
    if state.topics.feed(topic).is_none() {
        return Err(unknown_topic(state.settings.unknown_topic, ticket));
    }
    if state
        .settings
        .denied_topics
        .iter()
        .any(|name| name == topic)
    {
        return Err(ticket.refuse(
            "subscription.topic.cannot.subscribe",
            "The user doesn't have permission to subscribe to the topic.",
        ));
    }
    Ok(())
}

/// Where a stream begins, by the first FetchRequest, and on which line.
fn begin(org: &Org, ticket: &Ticket, first: &FetchRequest) -> Result<(Cursor, u64), Status> {
    let now = org.clock.now();
    let mut state = org.state();
    state.bus.expire(now);
    let position = match ReplayPreset::try_from(first.replay_preset) {
        Ok(ReplayPreset::Latest) => Ok(state.bus.head()),
        Ok(ReplayPreset::Earliest) => Ok(state.bus.horizon()),
        Ok(ReplayPreset::Custom) if first.replay_id.is_empty() => Err(ticket.refuse(
            "subscription.fetch.replayid.validation.failed",
            "The replay preset CUSTOM needs a replay ID.",
        )),
        Ok(ReplayPreset::Custom) => state.bus.position_of(&first.replay_id).map_err(|_| {
            ticket.refuse(
                "subscription.fetch.replayid.corrupted",
                "The replay ID is corrupted, unknown, or outside the retention window.",
            )
        }),
        Err(_) => Err(ticket.refuse(
            "subscription.fetch.request.invalid",
            "The replay preset is unknown.",
        )),
    };
    Ok((Cursor::after(position?), state.bus.line()))
}
