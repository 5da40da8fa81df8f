//! The `exec` handler: a program in any language, which is given events on its standard input and answers on
//! its standard output. docs/HANDLERS.md describes what such a program has to do; examples/handlers has some.

mod pool;
mod program;
mod protocol;
mod stderr;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};

use super::registry::HandlerConfigError;
use super::written::append_line;
use super::{Answer, BatchAnswer, EventBatch, Handler, Options, Retry};
use crate::config::{BackoffConfig, HandlerConfig};
use crate::event::{Event, EventIdentity};

use pool::Pool;
use program::Program;
#[cfg(fuzzing)]
pub(super) use protocol::answers;
use worker::Outcome;

/// How long a process that is not the only one stays without anything to do.
const IDLE: Duration = Duration::from_secs(60);

/// Events of which it is remembered that a process broke with them.
const SUSPECTS: usize = 10_000;

/// Gives events to processes of a program, each event to one of them, and takes their answers.
///
/// Options: `command`, the program and its arguments; `env`, variables for it, whose values may be secrets;
/// `cwd`; `timeout` of an answer (30 s); `in_flight`, events that one process may have at the same time (1);
/// `workers`, the most processes, those that are about to end included (as many as calls); `grace`, how long a process may take to end (5 s).
///
/// A process that ends, does not answer in time or writes what is no answer is ended with whatever it has started,
/// and its unanswered events are a retry. Where several were in its hands, each comes back to a process of its own, one
/// after the other, so that the guilty one is found and no other is blamed for it. After a process that answered nothing the next
/// is started after a pause, by the handler's own `retry.initial` and `retry.max`.
pub(super) struct ExecHandler {
    pool: Arc<Pool>,
    suspects: Mutex<HashSet<EventIdentity>>,
}

/// What the options say.
struct Settings {
    program: Program,
    timeout: Duration,
    in_flight: usize,
    workers: usize,
    grace: Duration,
    idle: Duration,
    /// Pauses after processes that answered nothing.
    restart: BackoffConfig,
}

impl ExecHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        Ok(Self::new(read_settings(config)?))
    }

    fn new(settings: Settings) -> Self {
        Self {
            pool: Pool::new(settings),
            suspects: Mutex::default(),
        }
    }

    fn suspects(&self) -> MutexGuard<'_, HashSet<EventIdentity>> {
        // Nothing panics with it in hand.
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn hand_over(&self, subscription: &Arc<str>, event: &Event) -> Answer {
        let mut line = Vec::new();
        append_line(event, &mut line);
        let identity = event.identity();
        let alone = self.suspects().contains(&identity);
        let id = identity.as_str().to_owned();
        let outcome = self.pool.call(subscription, id, line, alone).await;
        let mut suspects = self.suspects();
        match outcome {
            Outcome::Answered(answer) => {
                suspects.remove(&identity);
                answer
            }
            Outcome::Unsent(retry) => Answer::Retry(retry.uncounted()),
            Outcome::Broken { why, shared } => {
                // With one event at a time there is no doubt about which it was.
                if self.pool.settings.in_flight > 1 {
                    if suspects.len() >= SUSPECTS {
                        // Most are of events parked long ago; one that breaks another process is marked again.
                        suspects.clear();
                    }
                    suspects.insert(identity);
                }
                let retry = Retry::because(why);
                // Of several only one is to blame, if any: each shows that by itself.
                Answer::Retry(if shared { retry.uncounted() } else { retry })
            }
        }
    }
}

impl fmt::Debug for ExecHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecHandler")
            .field("program", &self.pool.settings.program.name())
            .finish_non_exhaustive()
    }
}

impl Drop for ExecHandler {
    fn drop(&mut self) {
        self.pool.shut();
    }
}

#[async_trait]
impl Handler for ExecHandler {
    /// One event after the other, for they may be of one record, and none past one that was not handled.
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let mut answers = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            let answer = if answers.iter().all(|answer| *answer == Answer::Handled) {
                self.hand_over(&batch.subscription, event).await
            } else {
                let why =
                    "not handed over, because an earlier event of the same call was not handled";
                Answer::Retry(Retry::because(why).uncounted())
            };
            answers.push(answer);
        }
        BatchAnswer::Each(answers)
    }

    /// Starts the program, closes its standard input, and waits for its end: a program that reads to the
    /// end of its input then ends with exit code 0.
    async fn check(&self) -> Result<(), String> {
        pool::try_out(&self.pool.settings).await
    }

    async fn close(&self, limit: Duration) {
        self.pool.close(limit).await;
    }
}

fn read_settings(config: &HandlerConfig) -> Result<Settings, HandlerConfigError> {
    let mut options = Options::new(config);
    let command = read_command(&mut options);
    let env = read_env(&mut options);
    let cwd = options.text("cwd").map(PathBuf::from);
    let timeout = options.duration("timeout", Duration::from_secs(30));
    let grace = options.duration("grace", Duration::from_secs(5));
    // Within the range, so the casts are exact.
    let in_flight = options.integer("in_flight", 1, 1..=256) as usize;
    let workers = options.integer("workers", 256, 1..=256) as usize;
    let settings = command.map(|command| Settings {
        program: Program {
            handler: config.name.clone(),
            command,
            env,
            cwd,
        },
        timeout,
        in_flight,
        workers,
        grace,
        idle: IDLE,
        restart: config.retry.backoff,
    });
    options.finish(settings)
}

fn read_command(options: &mut Options<'_>) -> Option<Vec<String>> {
    let expected = "a list of the program and its arguments, such as [\"python3\", \"handler.py\"]; for what only a \
                    shell can do, [\"sh\", \"-c\", \"…\"]";
    let command = options.required_texts("command", expected)?;
    let reason = match command.first() {
        None => "is blank: put the program and its arguments there",
        Some(program) if program.trim().is_empty() => "must begin with the name of a program",
        Some(_) if command.iter().any(|part| part.contains('\0')) => {
            "must not hold the character U+0000"
        }
        Some(_) => return Some(command),
    };
    options.invalid("command", reason);
    None
}

fn read_env(options: &mut Options<'_>) -> BTreeMap<String, SecretString> {
    let env = options.secret_table("env");
    for (name, value) in &env {
        let key = format!("env.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            options.invalid(key, "is not the name of a variable");
        } else if value.expose_secret().contains('\0') {
            options.invalid(key, "must not hold the character U+0000");
        }
    }
    env
}
