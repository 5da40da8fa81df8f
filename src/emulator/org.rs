//! The org's shared state, and who may call it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::bus::{Bus, replay_id};
use super::clock::Clock;
use super::config::{App, EmulatorConfig};
use super::errors::{Call, Ticket};
use super::faults::{Fault, FaultKind, Faults};
use super::line::Lines;
use super::settings::Settings;
use super::tokens::{TokenState, Tokens};
use super::topics::Topics;
use crate::event::OrgId;

/// One Subscribe stream, as `GET /state` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct StreamReport {
    /// RPC ID of the stream.
    pub rpc_id: String,
    /// What it subscribes to; empty until its first FetchRequest.
    pub topic: String,
    /// Events owed: `pending_num_requested`.
    pub pending: u32,
    /// The most the client had outstanding by its own count; more than 100 breaks the rule.
    pub most_outstanding: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Responses sent, keepalives included.
    pub responses: u64,
    /// FetchRequests received.
    pub fetch_requests: u64,
}

/// What the org has seen and holds, as `GET /state` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct StateReport {
    /// Calls received by name, refused ones included.
    pub calls: BTreeMap<Call, u64>,
    /// Open Subscribe streams.
    pub streams: Vec<StreamReport>,
    /// Open connections to the Pub/Sub API.
    pub connections: usize,
    /// FetchRequests received, over all streams ever.
    pub fetch_requests: u64,
    /// Events delivered, over all streams ever.
    pub deliveries: u64,
    /// Empty responses sent, over all streams ever.
    pub keepalives: u64,
    /// The most any stream ever had outstanding by its client's own count.
    pub most_outstanding: u64,
    /// Places on the bus that hold an event.
    pub events: usize,
    /// Replay ID just before the oldest event, in hexadecimal.
    pub earliest_replay_id: String,
    /// Newest replay ID, in hexadecimal.
    pub latest_replay_id: String,
    /// Topics and channels.
    pub topics: Vec<String>,
    /// Access tokens not expired or revoked by hand.
    pub live_tokens: usize,
    /// How far the org's clock is ahead of the system's.
    pub clock_offset_ms: i64,
    /// Faults switched on, with the times left.
    pub faults: Vec<Fault>,
}

/// Everything that changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) bus: Bus,
    pub(super) topics: Topics,
    pub(super) faults: Faults,
    pub(super) tokens: Tokens,
    pub(super) settings: Settings,
    pub(super) calls: BTreeMap<Call, u64>,
    pub(super) streams: BTreeMap<u64, StreamReport>,
    pub(super) streams_opened: u64,
    pub(super) fetch_requests: u64,
    pub(super) deliveries: u64,
    pub(super) keepalives: u64,
    pub(super) most_outstanding: u64,
    /// Commits so far, for commit numbers that grow.
    pub(super) commits: i64,
}

/// An org in memory.
#[derive(Debug)]
pub(super) struct Org {
    pub(super) id: OrgId,
    pub(super) apps: Vec<App>,
    pub(super) login_url: String,
    pub(super) instance_url: String,
    pub(super) clock: Clock,
    pub(super) lines: Lines,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Org {
    pub(super) fn new(config: EmulatorConfig, login_url: String) -> Self {
        let random = match config.seed {
            Some(seed) => fastrand::Rng::with_seed(seed),
            None => fastrand::Rng::new(),
        };
        let instance_url = config.instance_url.unwrap_or_else(|| login_url.clone());
        let mut tokens = Tokens::default();
        for app in &config.apps {
            for token in &app.refresh_tokens {
                let username = app.usernames.first().map_or("", String::as_str);
                let token = secrecy::ExposeSecret::expose_secret(token);
                tokens.admit_refresh(token, &app.client_id, username);
            }
        }
        let clock = Clock::default();
        let now = clock.now();
        Self {
            id: config.org_id,
            apps: config.apps,
            login_url,
            instance_url,
            clock,
            lines: Lines::default(),
            state: Mutex::new(State {
                bus: Bus::new(
                    config.first_position,
                    now,
                    config.retention,
                    config.max_gap,
                    random,
                ),
                topics: Topics::new(),
                faults: Faults::default(),
                tokens,
                settings: config.settings,
                calls: BTreeMap::new(),
                streams: BTreeMap::new(),
                streams_opened: 0,
                fetch_requests: 0,
                deliveries: 0,
                keepalives: 0,
                most_outstanding: 0,
                commits: 0,
            }),
            changed: watch::Sender::new(()),
        }
    }

    /// The state, for a moment; never held over an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes every stream to look at it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_replace(());
        result
    }

    /// Wakes at every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Counts a call and gives it an RPC ID.
    pub(super) fn ticket(&self, call: Call) -> Ticket {
        *self.state().calls.entry(call).or_default() += 1;
        Ticket::new(call)
    }

    /// The access token of a call whose three headers are right (facts 2.1).
    pub(super) fn authorize(
        &self,
        ticket: &Ticket,
        headers: &MetadataMap,
    ) -> Result<String, Status> {
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .filter(|value| !value.trim().is_empty())
                .ok_or_else(|| {
                    ticket.refuse(
                        "service.auth.headers.invalid",
                        &format!("The {name} header is missing or blank."),
                    )
                })
        };
        let token = header("accesstoken")?;
        let instance_url = header("instanceurl")?;
        let tenant = header("tenantid")?;
        // Only opaque tokens are accepted, which begin with the org's ID (facts 8.4).
        let accepted = token.contains('!')
            && self.use_token(token) == TokenState::Live
            && instance_url == self.instance_url
            && OrgId::parse(tenant).is_ok_and(|tenant| tenant == self.id);
        if accepted {
            Ok(token.to_owned())
        } else {
            Err(self.refuse_token(ticket))
        }
    }

    /// The answer to a token that is not accepted.
    pub(super) fn refuse_token(&self, ticket: &Ticket) -> Status {
        ticket.refuse(
            "service.auth.error",
            "An authentication exception occurred. Provide valid authentication credentials.",
        )
    }

    /// How an access token stands that a call came with; being accepted extends its life.
    pub(super) fn use_token(&self, token: &str) -> TokenState {
        let now = self.clock.now();
        let mut state = self.state();
        let lifetime = state.settings.token_lifetime_ms.map(Duration::from_millis);
        state.tokens.take(token, lifetime, now)
    }

    /// How an access token stands now.
    pub(super) fn token_state(&self, token: &str) -> TokenState {
        let now = self.clock.now();
        let state = self.state();
        let lifetime = state.settings.token_lifetime_ms.map(Duration::from_millis);
        state.tokens.state(token, lifetime, now)
    }

    /// Does to a call what a fault says, where the fault needs nothing of the call itself.
    pub(super) async fn meet(&self, fault: &Fault, ticket: &Ticket) -> Result<(), Status> {
        match fault.kind {
            FaultKind::Error | FaultKind::AcceptThenFail => Err(fault_status(fault, ticket)),
            FaultKind::ExpiredToken => Err(self.refuse_token(ticket)),
            FaultKind::Reset => Err(ticket.reset()),
            FaultKind::Delay => {
                tokio::time::sleep(fault.delay()).await;
                Ok(())
            }
            FaultKind::Hang | FaultKind::Silence => std::future::pending().await,
            FaultKind::Disconnect => {
                self.lines.drop_all();
                std::future::pending().await
            }
            FaultKind::HalfOpen => {
                self.lines.freeze_all();
                std::future::pending().await
            }
            FaultKind::End
            | FaultKind::CorruptPayload
            | FaultKind::Oversize
            | FaultKind::Duplicate
            | FaultKind::LowerReplayId
            | FaultKind::MissingReplayId
            | FaultKind::RejectEvent => Ok(()),
        }
    }

    /// What the org has seen and holds.
    pub(super) fn report(&self) -> StateReport {
        let now = self.clock.now();
        let connections = self.lines.len();
        let mut state = self.state();
        state.bus.expire(now);
        StateReport {
            calls: state.calls.clone(),
            streams: state.streams.values().cloned().collect(),
            connections,
            fetch_requests: state.fetch_requests,
            deliveries: state.deliveries,
            keepalives: state.keepalives,
            most_outstanding: state.most_outstanding,
            events: state.bus.len(),
            earliest_replay_id: hex::encode(replay_id(state.bus.horizon())),
            latest_replay_id: hex::encode(replay_id(state.bus.head())),
            topics: state
                .topics
                .names()
                .iter()
                .map(|name| (**name).to_owned())
                .collect(),
            live_tokens: state.tokens.live(),
            clock_offset_ms: self.clock.offset_ms(),
            faults: state.faults.list().to_vec(),
        }
    }
}

/// The status a fault asks for.
pub(super) fn fault_status(fault: &Fault, ticket: &Ticket) -> Status {
    let code = fault.code.as_deref();
    let status = match (fault.status, code) {
        (Some(status), _) => tonic::Code::from(status),
        (None, Some(code)) => super::errors::status_of(code),
        (None, None) => tonic::Code::Unavailable,
    };
    let detail = fault.message.as_deref().unwrap_or("Failed on demand.");
    ticket.refuse_as(status, code, detail)
}

/// Shared by everything that serves the org.
pub(super) type SharedOrg = Arc<Org>;
