//! One running process: events in, answers out, and what is done where it does not behave.
//!
//! One task owns the process and waits for everything at once, so that a program that writes before it reads
//! holds nothing up. Whatever ends the process, events without an answer are given back only when it is gone:
//! nobody is given an event while somebody else is still at it.

use std::collections::HashMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Settings;
use super::pool::Pool;
use super::program::{Group, end_of};
use super::protocol::{LONGEST_ANSWER, Lines, read_answer};
use super::stderr::{LastLine, follow};
use crate::handler::{Answer, Retry};

/// How long a process may take to end after SIGTERM, before SIGKILL.
pub(super) const AFTER_TERM: Duration = Duration::from_secs(2);

/// How long the end of a process is waited for that was killed, or has closed one of its ends.
const SOON: Duration = Duration::from_secs(1);

/// An event for the program.
pub(super) struct Order {
    /// The event's identity.
    pub(super) id: String,
    /// Its line.
    pub(super) line: Vec<u8>,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What became of an event.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(Answer),
    /// The process ended, or had to be ended, with this event in its hands: why, and whether with others.
    Broken {
        why: String,
        shared: bool,
    },
    /// It never had the event.
    Unsent(Retry),
}

/// An event that was written, or is being written.
struct Pending {
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// Why a process came to its end.
enum End {
    /// It was told to: nothing is left to be done.
    Told,
    /// By itself.
    Exited(ExitStatus),
    /// It cannot be trusted any more, or does not answer; reads on after its name.
    Untrusted(String),
    /// A call for one of its events was given up.
    Abandoned,
}

/// A running process, as its task sees it.
pub(super) struct Worker {
    /// Its number in the pool; none where it is not one of the pool.
    pub(super) number: Option<u64>,
    pub(super) subscription: Arc<str>,
    pub(super) pool: Arc<Pool>,
    pub(super) orders: mpsc::Receiver<Order>,
    /// Kills it.
    pub(super) abandon: CancellationToken,
    child: Child,
    group: Group,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<()>>,
    lines: Lines,
    /// Of the line that is being written.
    unwritten: Vec<u8>,
    written: usize,
    pending: HashMap<String, Pending>,
    /// Since when it has had nothing to do.
    idle_since: Instant,
    has_answered: bool,
    /// No more orders will come.
    told: bool,
    pid: i32,
    started_at: Instant,
}

impl Worker {
    /// Starts the program.
    ///
    /// # Errors
    ///
    /// Why it cannot be started.
    pub(super) fn start(
        pool: Arc<Pool>,
        number: Option<u64>,
        subscription: Arc<str>,
        orders: mpsc::Receiver<Order>,
        abandon: CancellationToken,
    ) -> Result<Self, String> {
        let program = &pool.settings.program;
        let (mut child, group) = program.start(&subscription)?;
        let handler = program.handler.clone();
        let stderr = child.stderr.take();
        let stderr = stderr
            .map(|stderr| tokio::spawn(follow(stderr, handler, group.id(), LastLine::default())));
        info!(
            handler = program.handler,
            subscription = &*subscription,
            pid = group.id(),
            "program started"
        );
        Ok(Self {
            number,
            subscription,
            orders,
            abandon,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr,
            child,
            lines: Lines::default(),
            unwritten: Vec::new(),
            written: 0,
            pending: HashMap::new(),
            idle_since: Instant::now(),
            has_answered: false,
            told: false,
            pid: group.id(),
            started_at: Instant::now(),
            group,
            pool,
        })
    }

    fn settings(&self) -> &Settings {
        &self.pool.settings
    }

    /// Serves orders to the end of the process.
    pub(super) async fn run(mut self) {
        let why = match self.serve().await {
            End::Told => {
                self.end_in_order().await;
                None
            }
            End::Exited(status) => {
                self.group.kill(); // what it has left behind
                self.read_rest().await;
                self.ended_by_itself(status)
            }
            End::Untrusted(why) => {
                self.kill().await;
                Some(why)
            }
            End::Abandoned => {
                self.kill().await;
                Some("was ended, because the call of another of its events was given up".to_owned())
            }
        };
        self.leave(why).await;
    }

    async fn serve(&mut self) -> End {
        let mut chunk = vec![0; 16 << 10];
        while !self.told || !self.pending.is_empty() {
            let overdue = self.pending.values().map(|pending| pending.since).min();
            let overdue = overdue.map(|since| since + self.settings().timeout);
            // Looked at here too, for a program that never stops to write keeps the rest from its turn.
            if overdue.is_some_and(|at| at <= Instant::now()) {
                return self.is_overdue();
            }
            let idle = self
                .pending
                .is_empty()
                .then(|| self.idle_since + self.settings().idle);
            tokio::select! {
                biased;
                () = self.abandon.cancelled() => return End::Abandoned,
                // Before what it writes, which may never stop: with an event in its hands that has an end.
                order = self.orders.recv(), if !self.told && self.unwritten.is_empty() => match order {
                    Some(order) => self.take(order),
                    None => self.told = true,
                },
                read = read(&mut self.stdout, &mut chunk) => match read {
                    0 => return self.closed("standard output").await,
                    count => {
                        self.lines.push(&chunk[..count]);
                        if let Err(why) = self.take_answers() {
                            return End::Untrusted(why);
                        }
                    }
                },
                status = self.child.wait() => match status {
                    Ok(status) => return End::Exited(status),
                    Err(error) => return End::Untrusted(format!("is lost: {error}")),
                },
                () = until(overdue) => return self.is_overdue(),
                wrote = write(&mut self.stdin, &self.unwritten[self.written..]) => match wrote {
                    Ok(count) => self.wrote(count),
                    Err(_) => return self.closed("standard input").await,
                },
                () = until(idle) => {
                    self.idle_since = Instant::now();
                    self.pool.may_leave(self.number);
                }
            }
        }
        End::Told
    }

    fn is_overdue(&self) -> End {
        let timeout = self.settings().timeout;
        End::Untrusted(format!("gave no answer within {timeout:?}"))
    }

    fn take(&mut self, order: Order) {
        let Order { id, line, reply } = order;
        if self.pending.contains_key(&id) {
            // A replay of what has just come: answers could not be told apart.
            let why = "the program has this event in its hands already";
            let _ = reply.send(Outcome::Unsent(Retry::because(why)));
            return;
        }
        let since = Instant::now();
        self.pending.insert(id, Pending { since, reply });
        (self.unwritten, self.written) = (line, 0);
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written >= self.unwritten.len() {
            (self.unwritten, self.written) = (Vec::new(), 0);
        }
    }

    /// Takes the whole lines that are there. The error says why the process cannot be trusted, and shows
    /// nothing of the line.
    fn take_answers(&mut self) -> Result<(), String> {
        while let Some(line) = self.lines.next() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let refused = |why: &str| {
                let length = line.len();
                format!(
                    "wrote a line of {length} bytes to its standard output that is no answer ({why}): standard output \
                     is for answers alone, all else goes to standard error"
                )
            };
            let said = read_answer(&line).map_err(refused)?;
            let Some(pending) = self.pending.remove(&said.id) else {
                return Err(refused("it has no such event to answer for"));
            };
            if !self.has_answered {
                self.has_answered = true;
                self.pool.answers();
            }
            self.idle_since = Instant::now();
            // Nobody may want it any more; then the process is about to be abandoned.
            let _ = pending.reply.send(Outcome::Answered(said.answer));
        }
        if self.lines.begun() > LONGEST_ANSWER {
            let begun = self.lines.begun();
            return Err(format!(
                "wrote {begun} bytes to its standard output without an end of line: standard output is for answers alone"
            ));
        }
        Ok(())
    }

    /// It has closed one of its ends, most likely because it ends.
    async fn closed(&mut self, what: &str) -> End {
        match tokio::time::timeout(SOON, self.child.wait()).await {
            Ok(Ok(status)) => End::Exited(status),
            _ => End::Untrusted(format!("closed its {what}")),
        }
    }

    /// Answers that a process wrote before it ended count.
    async fn read_rest(&mut self) {
        let mut chunk = vec![0; 16 << 10];
        let reading = async {
            loop {
                match read(&mut self.stdout, &mut chunk).await {
                    0 => return,
                    count => self.lines.push(&chunk[..count]),
                }
                // What is no answer changes nothing now.
                if self.take_answers().is_err() {
                    return;
                }
            }
        };
        // Who inherited the output may keep it open for ever.
        let _ = tokio::time::timeout(SOON, reading).await;
    }

    fn ended_by_itself(&self, status: ExitStatus) -> Option<String> {
        let why = end_of(status);
        let why = match status.code() {
            _ if self.pending.is_empty() && status.success() && self.has_answered => return None,
            Some(126 | 127) => format!("{why}: look at `command`"),
            _ if !self.has_answered => format!(
                "{why} before it had answered anything: what it wrote to its standard error is in the log"
            ),
            _ => why,
        };
        Some(why)
    }

    /// Closes its standard input and lets it finish; then asks it to end, then ends it.
    async fn end_in_order(&mut self) {
        self.stdin = None;
        let (grace, hurry) = (self.settings().grace, self.pool.hurry.clone());
        let handler = self.settings().program.handler.clone();
        let pid = self.pid;
        if self.ends_within(grace, &hurry).await {
            debug!(handler, pid, "program ended");
        } else {
            info!(
                handler,
                pid, "the program does not end with its standard input: SIGTERM"
            );
            self.group.terminate();
            if !self
                .ends_within(AFTER_TERM, &CancellationToken::new())
                .await
            {
                warn!(
                    handler,
                    pid, "the program does not end with SIGTERM: SIGKILL"
                );
            }
        }
        self.kill().await; // with what it has left behind
    }

    /// Does it end in this time, and before `hurry`?
    async fn ends_within(&mut self, limit: Duration, hurry: &CancellationToken) -> bool {
        let mut chunk = vec![0; 16 << 10];
        let Self { child, stdout, .. } = self;
        // What it still writes has to go somewhere, or it would never end.
        let emptied = async {
            while read(stdout, &mut chunk).await > 0 {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = child.wait() => ended.is_ok(),
            () = emptied => false,
            () = tokio::time::sleep(limit) => false,
            () = hurry.cancelled() => false,
        }
    }

    async fn kill(&mut self) {
        self.group.kill();
        // One that hangs in the kernel is beyond us.
        let _ = tokio::time::timeout(SOON, self.child.wait()).await;
    }

    /// Gives back what it had no answer for.
    async fn leave(mut self, why: Option<String>) {
        let failed = why.is_some() && !self.has_answered && !self.abandon.is_cancelled();
        let failure = why.as_deref().filter(|_| failed);
        self.pool.left(self.number, self.started_at, failure);
        let name = self.settings().program.name();
        if let Some(why) = &why
            && !self.abandon.is_cancelled()
        {
            warn!(
                handler = self.settings().program.handler,
                subscription = &*self.subscription,
                pid = self.pid,
                events = self.pending.len(),
                "the program {why}; it is started anew, and events that it has not answered for come again"
            );
        }
        let why = format!("`{name}` {}", why.as_deref().unwrap_or("ended"));
        let shared = self.pending.len() > 1;
        for (_, pending) in self.pending.drain() {
            let why = why.clone();
            let _ = pending.reply.send(Outcome::Broken { why, shared });
        }
        self.orders.close();
        while let Some(order) = self.orders.recv().await {
            let _ = order
                .reply
                .send(Outcome::Unsent(Retry::because(why.clone())));
        }
        if let Some(mut stderr) = self.stderr.take()
            && tokio::time::timeout(SOON, &mut stderr).await.is_err()
        {
            stderr.abort(); // somebody who inherited it keeps it open
        }
    }
}

/// Reads some; 0 at the end, and where it cannot be read any more.
async fn read(stdout: &mut Option<ChildStdout>, chunk: &mut [u8]) -> usize {
    match stdout {
        Some(stdout) => stdout.read(chunk).await.unwrap_or(0),
        None => 0,
    }
}

/// Writes some of it; never ends where there is nothing to write.
async fn write(stdin: &mut Option<ChildStdin>, bytes: &[u8]) -> std::io::Result<usize> {
    match stdin {
        Some(stdin) if !bytes.is_empty() => stdin.write(bytes).await,
        _ => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
