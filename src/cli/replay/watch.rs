//! Following a command until it is over.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::plan::from_ms;
use crate::cli::Failure;
use crate::cli::connect::read;
use crate::cli::output::{length, note, one_line};
use crate::event::rfc3339;
use crate::store::{CommandKind, CommandState, ReplayProgress, Store, StoreError, StoredCommand};

/// How often the store is asked.
const PACE: Duration = Duration::from_millis(500);

/// How often progress is told where nobody can see a line change.
const LINES: Duration = Duration::from_secs(10);

/// Where progress is shown.
struct Line {
    terminal: bool,
    told: Option<String>,
    told_at: Option<Instant>,
}

impl Line {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            told: None,
            told_at: None,
        }
    }

    fn show(&mut self, text: String) {
        if self.told.as_ref() == Some(&text) {
            return;
        }
        if self.terminal {
            // Nothing is lost where it cannot be written: it is told again.
            let _ = write!(io::stderr().lock(), "\r\u{1b}[K{text}");
        } else if self.told_at.is_none_or(|at| at.elapsed() >= LINES) {
            note(&text);
            self.told_at = Some(Instant::now());
        }
        self.told = Some(text);
    }

    fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = write!(io::stderr().lock(), "\r\u{1b}[K");
        }
    }
}

/// Waits until a command is over; withdraws it where told to stop. Gives it as it is then.
pub(super) async fn follow(
    store: &dyn Store,
    id: i64,
    stop: &CancellationToken,
) -> Result<StoredCommand, Failure> {
    let mut line = Line::new();
    let ended = loop {
        match store.command(id).await {
            Ok(Some(command)) if command.state.is_over() => break Ok(command),
            Ok(Some(command)) => line.show(describe(&command, SystemTime::now())),
            Ok(None) => break Err(gone(id)),
            Err(StoreError::Unavailable(why)) => line.show(format!("the store is away: {why}")),
            Err(error) => break read(Err(error)),
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = stop.cancelled() => break withdraw(store, id).await,
        }
    };
    line.end();
    ended
}

/// Takes a command back; gives it as it is then.
pub(super) async fn withdraw(store: &dyn Store, id: i64) -> Result<StoredCommand, Failure> {
    match store.withdraw(id).await {
        Ok(Some(command)) => Ok(command),
        Ok(None) => Err(gone(id)),
        Err(error) => Err(Failure::Failed(anyhow::anyhow!(
            "command {id} could not be withdrawn: {error}. It goes on; `orgstream replay --withdraw {id}` \
             takes it back"
        ))),
    }
}

fn gone(id: i64) -> Failure {
    Failure::Failed(anyhow::anyhow!(
        "there is no command {id}; `orgstream replay --status` lists them"
    ))
}

/// One line about a command that is not over.
fn describe(command: &StoredCommand, now: SystemTime) -> String {
    let waits = now.duration_since(command.asked_at).unwrap_or_default();
    match command.state {
        CommandState::Running => {
            format!("replaying: {}", doing(&progress_of(command)))
        }
        _ => format!(
            "waiting for the worker that runs {} ({})",
            command.subscription,
            length(waits)
        ),
    }
}

/// What a side replay has done so far, and does now.
pub(super) fn doing(progress: &ReplayProgress) -> String {
    let detail = progress.detail.as_ref().map(|detail| one_line(detail));
    let detail = detail.map_or(String::new(), |detail| format!("; {detail}"));
    format!("{}{detail}", counts(progress))
}

/// What a side replay has done so far.
pub(super) fn counts(progress: &ReplayProgress) -> String {
    let mut text = format!(
        "{} events received, {} finished",
        progress.received, progress.finished
    );
    if progress.unwanted > 0 {
        text.push_str(&format!(" ({} of them not wanted)", progress.unwanted));
    }
    if progress.parked > 0 {
        text.push_str(&format!(", {} parked", progress.parked));
    }
    if let Some(ms) = progress.at_ms {
        text.push_str(&format!(", up to {}", rfc3339(from_ms(ms))));
    }
    text
}

pub(super) fn progress_of(command: &StoredCommand) -> ReplayProgress {
    serde_json::from_value(command.progress.clone()).unwrap_or_default()
}

/// What to tell about a command that is over.
pub(super) fn epitaph(command: &StoredCommand) -> String {
    let outcome = command.outcome.as_deref().map(one_line);
    let outcome = outcome.unwrap_or_default();
    let progress = progress_of(command);
    let name = &command.subscription;
    match (command.state, command.kind) {
        (CommandState::Done, CommandKind::Rewind) => format!("{name} {outcome}"),
        (CommandState::Done, CommandKind::Replay) => format!("{name}: {outcome}"),
        (CommandState::Failed, _) => format!("{name}: not carried out: {outcome}"),
        (CommandState::Withdrawn, _) if command.begun_at.is_none() => {
            format!("{name}: withdrawn before it began; nothing has happened")
        }
        (CommandState::Withdrawn, _) => {
            let again = progress.place.map_or(String::new(), |place| {
                format!("; everything up to {place} is finished, and `--from {place}` goes on from there")
            });
            let counted = ReplayProgress {
                place: None,
                ..progress_of(command)
            };
            format!("{name}: stopped: {}{again}", counts(&counted))
        }
        (CommandState::Asked | CommandState::Running, _) => {
            format!("{name}: asked as command {}", command.id)
        }
    }
}

/// A command, as `--json` prints it.
pub(super) fn shown(command: &StoredCommand) -> Value {
    json!({
        "id": command.id,
        "subscription": command.subscription,
        "kind": command.kind.name(),
        "arguments": command.arguments,
        "state": command.state.name(),
        "progress": command.progress,
        "outcome": command.outcome,
        "asked_at": rfc3339(command.asked_at),
        "asked_by": command.asked_by,
        "begun_at": command.begun_at.map(rfc3339),
        "ended_at": command.ended_at.map(rfc3339),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(state: CommandState) -> StoredCommand {
        StoredCommand {
            id: 7,
            subscription: "accounts".into(),
            kind: CommandKind::Replay,
            arguments: json!({}),
            state,
            progress: json!({"received": 12, "finished": 9, "parked": 1, "place": "0a0b", "at_ms": 0}),
            outcome: Some("no\nreason".into()),
            asked_at: SystemTime::UNIX_EPOCH,
            asked_by: None,
            begun_at: Some(SystemTime::UNIX_EPOCH),
            ended_at: None,
        }
    }

    #[test]
    fn a_command_says_how_far_it_is() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        assert_eq!(
            describe(&command(CommandState::Running), now),
            "replaying: 12 events received, 9 finished, 1 parked, up to 1970-01-01T00:00:00Z"
        );
        assert_eq!(
            describe(&command(CommandState::Asked), now),
            "waiting for the worker that runs accounts (5 s)"
        );
    }

    #[test]
    fn what_is_over_says_where_things_stand() {
        let stopped = epitaph(&command(CommandState::Withdrawn));
        assert!(stopped.contains("`--from 0a0b` goes on"), "{stopped}");
        let mut never = command(CommandState::Withdrawn);
        never.begun_at = None;
        assert!(epitaph(&never).contains("nothing has happened"));
        let failed = epitaph(&command(CommandState::Failed));
        assert_eq!(failed, "accounts: not carried out: no reason");
    }
}
