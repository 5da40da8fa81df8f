//! Writes of the position: bounded in time, one at a time, the latest wins, never on the read path
//! (design section 3, "Store").

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::changes::Changes;
use super::lost::GivenUp;
use super::state::State;
use super::tracker::{HandlerSet, Passed, Seq, Tracker};
use crate::config::BackoffConfig;
use crate::event::{EventIdentity, ReplayId};
use crate::store::{FinishedAhead, Lease, Progress, StateReport, Store, StoreError};
use crate::telemetry::metrics;

/// Least time between two writes.
const PACE: Duration = Duration::from_secs(1);

/// What handlers had finished before a restart and the stream has not brought again yet.
pub(super) type FinishedBefore = HashMap<EventIdentity, HandlerSet>;

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(15),
};

/// Passed events whose marks the store has not forgotten yet. Beyond it marks stay until the subscription
/// changes hands, which costs rows there instead of memory here.
const MAX_PASSED: usize = 100_000;

/// Failed writes in a row after which people are told: one may be a restart of the database.
const FAILURES_TO_TELL: u32 = 2;

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    Failed,
    /// Another worker holds the subscription.
    Fenced,
}

type Write = BoxFuture<'static, Result<(), Failed>>;

/// What of a write failed.
enum Failed {
    /// The states, which come first.
    Report(StoreError),
    /// The position; the states are stored.
    Progress(StoreError),
}

/// What is to be written, and the write under way.
pub(super) struct Position {
    lease: Lease,
    store: Arc<dyn Store>,
    /// Bit and name of each handler.
    handlers: Vec<(HandlerSet, String)>,
    /// Something moved since the last write began.
    moved: bool,
    /// The position of the last write that was begun.
    begun: Option<ReplayId>,
    /// The stored position has passed every event before this one.
    stored_to: Seq,
    received: u64,
    finished: u64,
    marked_at: Option<SystemTime>,
    /// Events whose marks are to be forgotten, where handlers make marks of their own.
    passed: Option<Vec<EventIdentity>>,
    /// Dead letters whose events were passed, and that is not stored yet.
    letters_passed: Vec<i64>,
    /// The position was given up, and that is not stored yet.
    given_up: Option<GivenUp>,
    state: Option<State>,
    state_moved: bool,
    /// What the stream's state was meanwhile.
    changes: Changes,
    not_before: Instant,
    /// The write under way, with what it takes along, to be put back if it fails.
    write: Option<Write>,
    taken: Taken,
    backoff: Backoff,
    /// Why the last write failed, once several have in a row.
    failing: Option<String>,
}

/// What a write under way carries.
#[derive(Debug, Default, Clone)]
struct Taken {
    received: u64,
    finished: u64,
    passed: Vec<EventIdentity>,
    letters_passed: Vec<i64>,
    given_up: bool,
    /// The position has passed every event before this one.
    passed_to: Seq,
    reports: Vec<StateReport>,
}

impl Position {
    pub(super) fn new(
        lease: Lease,
        store: Arc<dyn Store>,
        handlers: Vec<(HandlerSet, String)>,
        changes: Changes,
    ) -> Self {
        Self {
            lease,
            store,
            handlers,
            moved: false,
            begun: None,
            stored_to: 0,
            received: 0,
            finished: 0,
            marked_at: None,
            passed: None,
            letters_passed: Vec::new(),
            given_up: None,
            state: None,
            state_moved: false,
            changes,
            not_before: Instant::now(),
            write: None,
            taken: Taken::default(),
            backoff: Backoff::new(STORE_RETRY),
            failing: None,
        }
    }

    /// Handlers mark events as finished in transactions of their own: from now on marks go only when the
    /// position has passed their events.
    pub(super) fn keep_marks(&mut self) {
        self.passed = Some(Vec::new());
    }

    /// The marks of these events are of no use any more.
    pub(super) fn forget(&mut self, events: impl IntoIterator<Item = EventIdentity>) {
        if let Some(passed) = &mut self.passed {
            let room = MAX_PASSED.saturating_sub(passed.len());
            passed.extend(events.into_iter().take(room));
        }
    }

    /// The position has passed the events of these dead letters.
    pub(super) fn letters_passed(&mut self, letters: Vec<i64>) {
        self.moved |= !letters.is_empty();
        self.letters_passed.extend(letters);
    }

    /// So many more events were received.
    pub(super) fn received(&mut self, events: u64) {
        self.received += events;
        self.moved = true;
    }

    /// So many more events were finished.
    pub(super) fn finished(&mut self, events: u64) {
        self.finished += events;
    }

    /// Something above the position was finished.
    pub(super) fn changed(&mut self) {
        self.moved = true;
    }

    /// The position is given up: the next write says so, and then whoever waits for it is told.
    pub(super) fn give_up(&mut self, given_up: GivenUp) {
        self.given_up = Some(given_up);
        self.marked_at = None;
        self.moved = true;
        self.not_before = self.not_before.min(Instant::now());
    }

    /// The state to show in the store.
    pub(super) fn show(&mut self, state: &State) {
        if self.state.as_ref() != Some(state) {
            self.state = Some(state.clone());
            self.state_moved = true;
        }
        self.state_moved |= self.changes.wait();
    }

    /// Why nothing can be stored, where that is so for more than a moment.
    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// The stored position has passed every event before this one.
    pub(super) fn stored_to(&self) -> Seq {
        self.stored_to
    }

    /// Begins a write, if something moved and it is time.
    pub(super) fn follow(
        &mut self,
        tracker: &Tracker,
        passed: Passed,
        caught_up_at: Option<SystemTime>,
        finished_before: &FinishedBefore,
    ) {
        self.marked_at = passed.occurred_at.or(self.marked_at);
        self.forget(passed.identities);
        self.moved |= tracker.position() != self.begun.as_ref();
        let due = (self.moved || self.state_moved) && self.not_before <= Instant::now();
        if due && self.write.is_none() {
            self.begin(tracker, caught_up_at, finished_before);
        }
    }

    /// When there is something to begin.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        ((self.moved || self.state_moved) && self.write.is_none()).then_some(self.not_before)
    }

    /// Ends when the write under way does; never, where there is none.
    pub(super) async fn written(&mut self) -> Written {
        match &mut self.write {
            Some(write) => {
                let result = write.await;
                self.write = None;
                self.took(result)
            }
            None => std::future::pending().await,
        }
    }

    /// The last write of all: what is under way is waited for, then everything is written at once.
    pub(super) async fn write_now(
        &mut self,
        tracker: &Tracker,
        caught_up_at: Option<SystemTime>,
        finished_before: &FinishedBefore,
        state: &State,
    ) -> Written {
        if self.write.is_some() && self.written().await == Written::Fenced {
            return Written::Fenced;
        }
        self.show(state);
        self.moved |= tracker.position() != self.begun.as_ref();
        self.begin(tracker, caught_up_at, finished_before);
        self.written().await
    }

    fn begin(
        &mut self,
        tracker: &Tracker,
        caught_up_at: Option<SystemTime>,
        finished_before: &FinishedBefore,
    ) {
        self.begun = tracker.position().cloned();
        let reports = match &self.state {
            Some(state) if std::mem::take(&mut self.state_moved) => self.changes.take(state),
            _ => Vec::new(),
        };
        let progress = std::mem::take(&mut self.moved)
            .then(|| self.progress(tracker, caught_up_at, finished_before));
        self.taken = progress
            .as_ref()
            .map_or_else(Taken::default, |progress| Taken {
                received: progress.received,
                finished: progress.finished,
                passed: progress.passed.clone().unwrap_or_default(),
                letters_passed: progress.letters_passed.clone(),
                given_up: progress.begin_from.is_some(),
                passed_to: tracker.passed_to(),
                reports: Vec::new(),
            });
        self.taken.reports = reports.clone();
        let (store, lease) = (self.store.clone(), self.lease.clone());
        self.not_before = Instant::now() + PACE;
        self.write = Some(Box::pin(async move {
            if !reports.is_empty() {
                let reported = store.report_states(&lease, &reports).await;
                reported.map_err(Failed::Report)?;
            }
            if let Some(progress) = progress {
                let saved = store.save_progress(&lease, &progress).await;
                saved.map_err(Failed::Progress)?;
            }
            Ok(())
        }));
    }

    fn progress(
        &mut self,
        tracker: &Tracker,
        caught_up_at: Option<SystemTime>,
        finished_before: &FinishedBefore,
    ) -> Progress {
        let finished_ahead = tracker
            .finished_ahead()
            .chain(
                finished_before
                    .iter()
                    .map(|(event, set)| (event.clone(), *set)),
            )
            .flat_map(|(identity, finished)| {
                let names = self
                    .handlers
                    .iter()
                    .filter(move |(bit, _)| bit & finished != 0);
                names.map(move |(_, name)| FinishedAhead {
                    handler: name.clone(),
                    identity: identity.clone(),
                })
            })
            .collect();
        Progress {
            position: tracker.position().cloned(),
            position_time: tracker.position_time(),
            position_event: tracker.position_event().cloned(),
            begin_from: self
                .given_up
                .as_ref()
                .map(|given_up| given_up.begin.clone()),
            unfinished: self
                .given_up
                .as_ref()
                .is_some_and(|given_up| given_up.unfinished),
            transaction: tracker.transaction().map(str::to_owned),
            finished_ahead,
            passed: self.passed.as_mut().map(std::mem::take),
            letters_passed: std::mem::take(&mut self.letters_passed),
            caught_up_at,
            marked_at: self.marked_at,
            received: std::mem::take(&mut self.received),
            finished: std::mem::take(&mut self.finished),
        }
    }

    fn took(&mut self, result: Result<(), Failed>) -> Written {
        let reports = std::mem::take(&mut self.taken.reports);
        let result = result.map_err(|failed| match failed {
            Failed::Report(error) => {
                self.changes.put_back(reports);
                error
            }
            Failed::Progress(error) => error,
        });
        match result {
            Ok(()) => {
                if self.backoff.failures() > 0 {
                    info!(
                        subscription = self.lease.key.name,
                        "the store takes positions again"
                    );
                }
                self.backoff.reset();
                self.failing = None;
                self.stored_to = self.stored_to.max(self.taken.passed_to);
                if self.taken.given_up
                    && let Some(given_up) = self.given_up.take()
                {
                    // The reader is gone only while stopping.
                    let _ = given_up.done.send(());
                }
                metrics::position_written("written");
                Written::Done
            }
            Err(StoreError::Fenced { .. }) => {
                metrics::position_written("fenced");
                Written::Fenced
            }
            Err(error) => {
                metrics::position_written("failed");
                let pause = self.backoff.next_pause();
                if self.backoff.failures() >= FAILURES_TO_TELL {
                    self.failing = Some(error.to_string());
                }
                warn!(
                    subscription = self.lease.key.name,
                    error = %error,
                    pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                    "the position could not be stored; events go on, and it is tried again"
                );
                self.received += self.taken.received;
                self.finished += self.taken.finished;
                let passed = std::mem::take(&mut self.taken.passed);
                self.forget(passed);
                self.letters_passed.append(&mut self.taken.letters_passed);
                self.moved = true;
                self.state_moved = self.state.is_some();
                self.not_before = Instant::now() + pause;
                Written::Failed
            }
        }
    }
}
