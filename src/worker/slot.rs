//! One configured subscription, as this worker sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::share::Standing;
use crate::config::{BackoffConfig, SubscriptionConfig};
use crate::event::OrgId;
use crate::handler::Handler;
use crate::store::{Lease, StoreError, SubscriptionKey, Surveyed, Tenure};
use crate::subscription::{self, LeaseKeeper, Moment, State};

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(15),
};

/// A subscription that this worker runs.
pub(super) struct Running {
    pub(super) keeper: LeaseKeeper,
    /// Tells it what people ask.
    pub(super) ask: watch::Sender<i64>,
    pub(super) stop: CancellationToken,
    /// When the store gave it to us.
    pub(super) taken_at: Moment,
    /// Grows with each that this worker took.
    pub(super) since: u64,
    /// As it was taken; a rewind raises its epoch.
    pub(super) lease: Lease,
    pub(super) task: tokio::task::Id,
}

pub(super) enum Phase {
    Idle,
    Claiming,
    Running(Running),
}

/// A configured subscription.
pub(super) struct Slot {
    pub(super) key: SubscriptionKey,
    pub(super) config: SubscriptionConfig,
    pub(super) handlers: Vec<Arc<dyn Handler>>,
    pub(super) shown: watch::Sender<State>,
    pub(super) phase: Phase,
    /// What people had asked by the last survey.
    pub(super) asked: i64,
    /// Paused by a person, by the last survey.
    pub(super) paused: bool,
    /// Not to be taken over before.
    not_before: Option<Instant>,
    failures: u32,
    /// Why the store does not give it to this configuration.
    refused: Option<String>,
}

impl Slot {
    pub(super) fn new(
        org_id: &OrgId,
        config: SubscriptionConfig,
        handlers: Vec<Arc<dyn Handler>>,
        shown: watch::Sender<State>,
    ) -> Self {
        Self {
            key: SubscriptionKey {
                org_id: org_id.clone(),
                name: config.name.clone(),
                topic: config.topic.clone(),
            },
            config,
            handlers,
            shown,
            phase: Phase::Idle,
            asked: 0,
            paused: false,
            not_before: None,
            failures: 0,
            refused: None,
        }
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        match &self.phase {
            Phase::Idle => {
                let ready = self.not_before.is_none_or(|at| at <= now);
                match self.refused {
                    None => Standing::Idle { ready },
                    Some(_) => Standing::Refused { ready },
                }
            }
            Phase::Claiming => Standing::Claiming,
            Phase::Running(running) if running.stop.is_cancelled() => Standing::Leaving,
            Phase::Running(running) => Standing::Running {
                since: running.since,
            },
        }
    }

    /// Why this worker cannot run it, where the store said so.
    pub(super) fn refused_because(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Takes in what a survey says of it; `None` where it has no row yet.
    pub(super) fn surveyed(&mut self, row: Option<&Surveyed>) {
        let asked = row.map_or(0, |row| row.asked);
        if asked != self.asked {
            // A person did something: perhaps just what it waited for.
            self.not_before = None;
            self.failures = 0;
            self.refused = None;
            self.asked = asked;
        }
        let paused = row.is_some_and(|row| row.paused);
        if paused != std::mem::replace(&mut self.paused, paused) {
            let subscription = self.key.name.as_str();
            if paused {
                info!(
                    subscription,
                    "paused by a person: left alone until `orgstream resume {subscription}`"
                );
            } else {
                info!(subscription, "resumed by a person");
            }
        }
        if let Some(running) = self.running() {
            running.ask.send_if_modified(|known| {
                let more = asked > *known;
                *known = asked.max(*known);
                more
            });
        }
    }

    /// Shows what a survey says of it, where it is not run here and will not be just now.
    pub(super) fn left(&mut self, holder: &str, row: Option<&Surveyed>) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        let elsewhere = row.is_some_and(
            |row| matches!(&row.tenure, Tenure::Held { holder: by, .. } if by != holder),
        );
        if self.paused {
            self.show(State::Stopped);
        } else if elsewhere {
            // Whoever runs it knows how it is.
            self.not_before = None;
            self.failures = 0;
            self.show(State::Elsewhere);
        } else if self.not_before.is_none() {
            self.show(State::Elsewhere);
        }
    }

    /// The store is away: what does not run cannot begin.
    pub(super) fn cannot_begin(&self, why: &str) {
        if matches!(self.phase, Phase::Idle) {
            self.show(State::Blocked {
                detail: why.to_owned(),
            });
        }
    }

    /// The store did not give it to us. True where the others should hear of it.
    pub(super) fn refused(&mut self, error: &StoreError, blocked_retry: BackoffConfig) -> bool {
        self.phase = Phase::Idle;
        let before = self.refused.take();
        let pause = match error {
            // The next survey tells more.
            StoreError::Held { .. } => {
                self.show(State::Elsewhere);
                return before.is_some();
            }
            StoreError::Paused { .. } => {
                self.show(State::Stopped);
                return before.is_some();
            }
            StoreError::Unavailable(_) => subscription::pause(&STORE_RETRY, self.failures),
            // Waits for a person, who may mend it in the store while we run.
            _ => {
                self.refused = Some(error.to_string());
                subscription::pause(&blocked_retry, 0)
            }
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        warn!(
            subscription = self.key.name,
            topic = %self.key.topic,
            error = %error,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "subscription cannot begin"
        );
        self.show(State::Blocked {
            detail: error.to_string(),
        });
        self.refused != before
    }

    /// It was given to us.
    pub(super) fn begun(&mut self, running: Running) {
        self.phase = Phase::Running(running);
        self.not_before = None;
        self.failures = 0;
        self.refused = None;
    }

    /// True where this task runs it.
    pub(super) fn is_run_by(&self, task: tokio::task::Id) -> bool {
        self.running().is_some_and(|running| running.task == task)
    }

    /// It does not run here any more. Gives the lease that it ran under.
    pub(super) fn ended(&mut self, stopping: bool) -> Option<Lease> {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        self.show(if stopping || self.paused {
            State::Stopped
        } else {
            State::Elsewhere
        });
        match phase {
            Phase::Running(running) => Some(running.lease),
            Phase::Idle | Phase::Claiming => None,
        }
    }

    fn show(&self, state: State) {
        self.shown.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}
