//! The running processes of one handler: which of them takes an event, and when another is started.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::program::end_of;
use super::protocol::plain;
use super::stderr::{LastLine, follow};
use super::worker::{AFTER_TERM, Order, Outcome, Worker};
use crate::handler::Retry;

/// How long a busy process is waited for before another is started: a quick program needs no second one.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a program that is tried out may take.
const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// All processes of one handler.
pub(super) struct Pool {
    pub(super) settings: Settings,
    /// Those that end are not waited for any longer.
    pub(super) hurry: CancellationToken,
    state: Mutex<State>,
    /// Something in `state` has become free.
    freed: Notify,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    /// Those that may be given events.
    processes: Vec<Process>,
    started: u64,
    /// How many there are with those at their end and the one that has an event to itself.
    alive: usize,
    /// There is one that has an event to itself.
    one_alone: bool,
    /// Events that wait for a process of their own.
    wait_alone: usize,
    closed: bool,
    /// Processes in a row that ended without any answer.
    failures: u32,
    failed: Option<Failure>,
}

/// The last failure.
struct Failure {
    why: String,
    at: Instant,
    /// Nothing is started before.
    not_before: Instant,
}

/// A process of the pool.
struct Process {
    number: u64,
    /// Events that it may be given.
    free: usize,
    line: Line,
}

/// The way to a process.
#[derive(Clone)]
struct Line {
    orders: mpsc::Sender<Order>,
    abandon: CancellationToken,
}

impl Pool {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            hurry: CancellationToken::new(),
            state: Mutex::default(),
            freed: Notify::new(),
            tasks: TaskTracker::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics with it in hand.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an event to a process and waits for what becomes of it. Dropped before that, it ends the process:
    /// who is given the event next must find nobody at it. `alone` gives it a process of its own.
    pub(super) async fn call(
        self: &Arc<Self>,
        subscription: &Arc<str>,
        id: String,
        line: Vec<u8>,
        alone: bool,
    ) -> Outcome {
        let place = if alone {
            self.place_alone(subscription).await
        } else {
            self.place(subscription).await
        };
        let mut place = match place {
            Ok(place) => place,
            Err(retry) => return Outcome::Unsent(retry),
        };
        let (reply, outcome) = oneshot::channel();
        let order = Order { id, line, reply };
        if place.line.orders.send(order).await.is_err() {
            return Outcome::Unsent(Retry::because("the program ended"));
        }
        match outcome.await {
            Ok(outcome) => {
                place.done = true;
                outcome
            }
            Err(_) => Outcome::Broken {
                why: "the task of the program ended".to_owned(),
                shared: false,
            },
        }
    }

    /// A place in a process: where there is none, one is waited for, and soon another process started.
    async fn place(self: &Arc<Self>, subscription: &Arc<str>) -> Result<Place, Retry> {
        // Of the whole wait: on a busy pool places become free, and are taken by others, all the time.
        let until = Instant::now() + PATIENCE;
        let mut patient = true;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.state();
                let full = state.alive >= self.settings.workers;
                // Else the process would never be idle that has to make room.
                let makes_room = full && state.wait_alone > 0 && !state.one_alone;
                let free = |one: &&mut Process| one.free > 0 && !makes_room;
                if let Some(process) = state.processes.iter_mut().find(free) {
                    process.free -= 1;
                    return Ok(Place::new(self, Some(process.number), process.line.clone()));
                }
                if !full && (!patient || state.processes.is_empty()) {
                    let number = state.started;
                    state.started += 1;
                    return self.start(&mut state, Some(number), subscription);
                }
            }
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(until), if patient => patient = false,
            }
        }
    }

    /// A process for one event. Only one of this kind at a time, however many events were in the hands of a process that
    /// broke: together they might break again for the want of memory alone. Where there are as many processes as there
    /// may be, one that is idle makes room.
    async fn place_alone(self: &Arc<Self>, subscription: &Arc<str>) -> Result<Place, Retry> {
        let _waits = WaitsAlone::new(self);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.state();
                if state.closed || (!state.one_alone && state.alive < self.settings.workers) {
                    return self.start(&mut state, None, subscription);
                }
                if !state.one_alone && state.alive == state.processes.len() {
                    let all = self.settings.in_flight;
                    let idle = state.processes.iter().position(|one| one.free == all);
                    // Its line goes with it: it is at its end, and says when it is gone.
                    idle.map(|idle| state.processes.swap_remove(idle));
                }
            }
            freed.await;
        }
    }

    /// Starts a process and takes a place in it, unless one has failed just now.
    fn start(
        self: &Arc<Self>,
        state: &mut State,
        number: Option<u64>,
        subscription: &Arc<str>,
    ) -> Result<Place, Retry> {
        if state.closed {
            return Err(Retry::because("the handler is closed"));
        }
        if let Some(failure) = &state.failed {
            let left = failure.not_before.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Err(Retry::because(&failure.why).after(left));
            }
        }
        let (orders, received) = mpsc::channel(self.settings.in_flight);
        let line = Line {
            orders,
            abandon: CancellationToken::new(),
        };
        let started = Worker::start(
            self.clone(),
            number,
            subscription.clone(),
            received,
            line.abandon.clone(),
        );
        let worker = started.map_err(|why| {
            self.failed(state, Instant::now(), why.clone());
            Retry::because(why)
        })?;
        self.tasks.spawn(worker.run());
        state.alive += 1;
        state.one_alone |= number.is_none();
        if let Some(number) = number {
            state.processes.push(Process {
                number,
                free: self.settings.in_flight - 1,
                line: line.clone(),
            });
            self.freed.notify_waiters();
        }
        Ok(Place::new(self, number, line))
    }

    /// Notes that a process failed that was started then: nothing is started for a while.
    fn failed(&self, state: &mut State, started_at: Instant, why: String) {
        let now = Instant::now();
        if let Some(failure) = &mut state.failed
            && started_at < failure.at
        {
            failure.why = why; // one more of those that were started together
            return;
        }
        let pauses = self.settings.restart;
        let pause = pauses.initial.saturating_mul(1 << state.failures.min(16));
        state.failures = state.failures.saturating_add(1);
        state.failed = Some(Failure {
            why,
            at: now,
            not_before: now + pause.min(pauses.max),
        });
    }

    /// How many processes there are that are not at their end.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.state().processes.len()
    }

    /// Would a process be started now?
    #[cfg(test)]
    pub(super) fn call_at_once(&self) -> bool {
        let failed = &self.state().failed;
        failed
            .as_ref()
            .is_none_or(|failure| failure.not_before <= Instant::now())
    }

    /// A process has answered for the first time: programs can be started as it seems.
    pub(super) fn answers(&self) {
        let mut state = self.state();
        (state.failures, state.failed) = (0, None);
    }

    /// A process has had nothing to do for a while: unless it is the last, it is let go.
    pub(super) fn may_leave(&self, number: Option<u64>) {
        let mut state = self.state();
        if state.processes.len() > 1 {
            let all = self.settings.in_flight;
            let idle = |one: &Process| Some(one.number) == number && one.free == all;
            state.processes.retain(|one| !idle(one));
        }
    }

    /// A process is at its end; `failed` says why, where it had not answered anything. One that had an event to itself
    /// says nothing about the others.
    pub(super) fn left(&self, number: Option<u64>, started_at: Instant, failed: Option<&str>) {
        let mut state = self.state();
        state.alive = state.alive.saturating_sub(1);
        match number {
            Some(number) => state.processes.retain(|one| one.number != number),
            None => state.one_alone = false,
        }
        if let Some(why) = failed.filter(|_| number.is_some()) {
            let name = self.settings.program.name();
            self.failed(&mut state, started_at, format!("`{name}` {why}"));
        }
        self.freed.notify_waiters();
    }

    /// Gives all processes up: they may finish, and end.
    pub(super) fn shut(&self) {
        let mut state = self.state();
        state.closed = true;
        state.processes.clear();
        self.tasks.close();
        self.freed.notify_waiters();
    }

    /// Gives all processes up and waits for their end; in time, they are asked to hurry.
    pub(super) async fn close(&self, limit: Duration) {
        self.shut();
        let patience = limit.saturating_sub(AFTER_TERM + Duration::from_millis(500));
        if tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_err()
        {
            self.hurry.cancel();
            self.tasks.wait().await;
        }
    }
}

/// An event that waits for a process of its own.
struct WaitsAlone<'a>(&'a Pool);

impl<'a> WaitsAlone<'a> {
    fn new(pool: &'a Pool) -> Self {
        pool.state().wait_alone += 1;
        Self(pool)
    }
}

impl Drop for WaitsAlone<'_> {
    fn drop(&mut self) {
        self.0.state().wait_alone -= 1;
        self.0.freed.notify_waiters();
    }
}

/// A place that an event has in a process.
struct Place {
    pool: Arc<Pool>,
    number: Option<u64>,
    line: Line,
    /// The process has done with the event.
    done: bool,
}

impl Place {
    fn new(pool: &Arc<Pool>, number: Option<u64>, line: Line) -> Self {
        Self {
            pool: pool.clone(),
            number,
            line,
            done: false,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if !self.done {
            self.line.abandon.cancel();
            state
                .processes
                .retain(|one| Some(one.number) != self.number);
        }
        let own = |one: &&mut Process| Some(one.number) == self.number;
        if let Some(process) = state.processes.iter_mut().find(own) {
            process.free += 1;
        }
        self.pool.freed.notify_waiters();
    }
}

/// Runs the program without an event, to its end.
pub(super) async fn try_out(settings: &Settings) -> Result<(), String> {
    let program = &settings.program;
    let name = program.name();
    let (mut child, mut group) = program.start("")?;
    drop(child.stdin.take());
    let last = LastLine::default();
    let stderr = child.stderr.take();
    let stderr = stderr.map(|stderr| {
        tokio::spawn(follow(
            stderr,
            program.handler.clone(),
            group.id(),
            last.clone(),
        ))
    });
    let written = async {
        let mut written = 0;
        if let Some(stdout) = &mut child.stdout.take() {
            // Bounded: one byte is too many, and the rest is not of interest.
            let mut output = stdout.take(1 << 20);
            written = tokio::io::copy(&mut output, &mut tokio::io::sink())
                .await
                .unwrap_or(0);
        }
        (written, child.wait().await)
    };
    let ended = tokio::time::timeout(settings.timeout.min(CHECK_LIMIT), written).await;
    group.kill();
    if let Some(stderr) = stderr {
        // For its last line; somebody who inherited it may keep it open.
        let _ = tokio::time::timeout(Duration::from_secs(1), stderr).await;
    }
    match ended {
        Ok((0, Ok(status))) if status.success() => Ok(()),
        Ok((0, Ok(status))) => {
            let said = match plain(&last.get()) {
                line if line.is_empty() => String::new(),
                line => format!(", last on its standard error: {line}"),
            };
            let end = end_of(status);
            Err(format!("`{name}` {end} without an event{said}"))
        }
        Ok((written, Ok(_))) => Err(format!(
            "`{name}` wrote {written} bytes to its standard output without an event: standard output is for answers \
             alone, all else goes to standard error"
        )),
        Ok((_, Err(error))) => Err(format!("`{name}` is lost: {error}")),
        Err(_) => Err(format!(
            "`{name}` does not end when its standard input does: read events until the end of the input"
        )),
    }
}
