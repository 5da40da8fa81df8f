//! `orgstream dead-letters`: events that could not be handled or decoded.

mod choice;
mod discard;
mod export;
mod retry;

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::output::{NONE, Table, age, indented, note, one_line, print, print_json, print_line};
use crate::config::{self, ProcessEnv};
use crate::event::rfc3339;
use crate::letters;
use crate::letters::shown::{self, Configured};
use crate::letters::{decoded, event_name, hex_lines, state};
use crate::store::{DeadLetterFilter, Store, StoredDeadLetter};
use crate::text::visible;

/// Most of an error that the list shows.
const LISTED_ERROR: usize = 60;

/// See events that could not be handled or decoded, and decide on them.
///
/// `show` and `export` show no more of an event than its handler is shown (`fields` in the configuration, which they
/// read for that).
///
/// A parked event is kept with its bytes, schema ID, replay ID, error and attempts until a person decides
/// on it: to retry it, once what was wrong is mended, or to discard it. Later events of the same records wait
/// behind it, parked too, and follow by themselves.
///
/// All of it works while the daemon runs, which hears of it within a second or two.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream dead-letters list\n  orgstream dead-letters list --subscription accounts --reason undecodable\n  orgstream dead-letters show 7\n  orgstream dead-letters retry 7\n  orgstream dead-letters discard 8 9"
)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// List parked events, oldest first
    List(ListArgs),
    /// Show one parked event with its payload
    Show(ShowArgs),
    Retry(retry::RetryArgs),
    Discard(discard::DiscardArgs),
    Export(export::ExportArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only of this subscription
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only what this handler could not handle
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// Only for this reason: rejected, exhausted, undecodable, schema_refused, schema_unavailable, unreadable
    /// or parked_behind
    #[arg(long)]
    reason: Option<String>,
    /// Only in this state: open, handled, discarded or any
    #[arg(long, default_value = "open")]
    state: String,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    output: JsonFlag,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Its number, as `dead-letters list` shows it
    id: i64,
    /// Print the payload's bytes in base64 and nothing else; not where `fields` hides a part of them
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(path: Option<&Path>, args: DeadLettersArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let done = match args.command {
        DeadLettersCommand::List(args) => list(store.as_ref(), args).await,
        DeadLettersCommand::Show(args) => show(store.as_ref(), &Configured::load(path), args).await,
        DeadLettersCommand::Retry(args) => {
            retry::run(store.as_ref(), &Configured::load(path), args).await
        }
        DeadLettersCommand::Discard(args) => {
            let unordered = Configured::load(path).unordered();
            discard::run(store.as_ref(), &unordered, args).await
        }
        DeadLettersCommand::Export(args) => {
            export::run(store.as_ref(), Configured::load(path), args).await
        }
    };
    store.close().await;
    done
}

async fn list(store: &dyn Store, args: ListArgs) -> Result<ExitCode, Failure> {
    // One more than asked for, to know whether there are more.
    let filter = DeadLetterFilter {
        subscription: args.subscription,
        handler: args.handler,
        reason: args.reason,
        state: (args.state != "any").then_some(args.state),
        limit: args.limit.saturating_add(1),
        ..DeadLetterFilter::default()
    };
    let mut letters = read(store.dead_letters(&filter).await)?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let more = letters.len() > limit;
    letters.truncate(limit);
    if args.output.json {
        let shown: Vec<Value> = letters.iter().map(summary).collect();
        print_json(&shown)?;
    } else if letters.is_empty() {
        note("no parked events");
    } else {
        print(&table(&letters, SystemTime::now()))?;
    }
    if more {
        note("more are parked; `--limit` shows them");
    }
    Ok(ExitCode::SUCCESS)
}

fn table(letters: &[StoredDeadLetter], now: SystemTime) -> String {
    let mut table = Table::new([
        "ID",
        "PARKED",
        "SUBSCRIPTION",
        "HANDLER",
        "REASON",
        "STATE",
        "ATTEMPTS",
        "EVENT",
        "ERROR",
    ]);
    for stored in letters {
        let letter = &stored.letter;
        let mut error: String = letter.error.chars().take(LISTED_ERROR).collect();
        if error.len() < letter.error.len() {
            error.push('…');
        }
        table.row([
            stored.id.to_string(),
            format!("{} ago", age(Some(stored.parked_at), now)),
            stored.subscription.clone(),
            letter.handler.clone().unwrap_or_else(|| NONE.to_owned()),
            letter.reason.clone(),
            state(stored),
            letter.attempts.to_string(),
            event_name(stored),
            error,
        ]);
    }
    table.text()
}

/// Everything but the payload.
fn summary(stored: &StoredDeadLetter) -> Value {
    let letter = &stored.letter;
    json!({
        "id": stored.id,
        "subscription": stored.subscription,
        "topic": stored.topic,
        "handler": letter.handler,
        "reason": letter.reason,
        "state": stored.state,
        "error": letter.error,
        "attempts": letter.attempts,
        "parked_at": rfc3339(stored.parked_at),
        "retry_asked_at": stored.retry_asked_at.map(rfc3339),
        "resolved_at": stored.resolved_at.map(rfc3339),
        "received_at": rfc3339(letter.received_at),
        "event_id": letter.identity.as_str(),
        "event_uuid": letter.event_uuid,
        "replay_id": letter.replay_id.as_ref().map(ToString::to_string),
        "schema_id": letter.schema_id.as_str(),
        "record_name": letter.record_name,
        "record_ids": letter.record_ids,
        "unit": letter.unit,
        "payload_bytes": letter.payload.len(),
    })
}

async fn show(
    store: &dyn Store,
    configured: &Configured,
    args: ShowArgs,
) -> Result<ExitCode, Failure> {
    let id = args.id;
    let Some(stored) = read(store.dead_letter(id).await)? else {
        return Err(Failure::Failed(anyhow::anyhow!(letters::unknown(id))));
    };
    let shapes = configured.shapes(&stored);
    let bytes = shown::bytes(&stored, shapes.as_ref());
    if args.raw {
        let bytes = bytes.map_err(|why| Failure::Failed(anyhow::anyhow!(why)))?;
        print_line(&BASE64_STANDARD.encode(bytes))?;
        return Ok(ExitCode::SUCCESS);
    }
    let schema = read(store.load_schema(&stored.letter.schema_id).await)?;
    let data = shapes.as_ref().map_err(String::clone);
    let data = data.and_then(|shapes| decoded(schema.as_deref(), &stored, shapes));
    if args.output.json {
        let mut shown = summary(&stored);
        match &bytes {
            Ok(bytes) => shown["payload"] = BASE64_STANDARD.encode(bytes).into(),
            Err(why) => shown["payload_error"] = why.as_str().into(),
        }
        match &data {
            Ok(data) => {
                shown["data"] = serde_json::from_str(data.get()).map_err(anyhow::Error::from)?;
            }
            Err(why) => shown["data_error"] = why.as_str().into(),
        }
        print_json(&shown)?;
    } else {
        print(&details(&stored))?;
        match &data {
            Ok(data) => print_line(&format!("\n{}", visible(&indented(data.get()))))?,
            Err(why) => {
                print_line(&format!("\nnot shown: {}", one_line(why)))?;
                match bytes {
                    Ok(bytes) => print(&format!("\n{}", hex_lines(bytes)))?,
                    Err(other) if other != *why => print_line(&one_line(&other))?,
                    Err(_) => {}
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn details(stored: &StoredDeadLetter) -> String {
    let letter = &stored.letter;
    let none = || NONE.to_owned();
    let rows = [
        ("parked event", format!("{} ({})", stored.id, state(stored))),
        ("subscription", stored.subscription.clone()),
        ("topic", stored.topic.clone()),
        ("handler", letter.handler.clone().unwrap_or_else(none)),
        ("reason", letter.reason.clone()),
        ("error", letter.error.clone()),
        ("attempts", letter.attempts.to_string()),
        ("received", rfc3339(letter.received_at)),
        ("parked", rfc3339(stored.parked_at)),
        ("resolved", stored.resolved_at.map_or_else(none, rfc3339)),
        ("event ID", letter.identity.to_string()),
        ("event UUID", letter.event_uuid.clone()),
        (
            "replay ID",
            letter
                .replay_id
                .as_ref()
                .map_or_else(none, ToString::to_string),
        ),
        ("schema ID", letter.schema_id.to_string()),
        (
            "record name",
            letter.record_name.clone().unwrap_or_else(none),
        ),
        (
            "records",
            if letter.record_ids.is_empty() {
                none()
            } else {
                letter.record_ids.join(", ")
            },
        ),
        ("payload", format!("{} bytes", letter.payload.len())),
    ];
    rows.iter()
        .map(|(name, value)| format!("{name:<13} {}\n", one_line(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::letters::tests::stored;

    #[test]
    fn the_list_cuts_errors() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let text = table(&[stored()], now);
        assert!(text.contains("5 s ago  orders        -"), "{text}");
        assert!(
            text.contains(&format!("{}…", "é".repeat(LISTED_ERROR))),
            "{text}"
        );
    }
}
