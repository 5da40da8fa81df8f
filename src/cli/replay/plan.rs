//! What a replay would do, worked out before anything is asked.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::ReplayArgs;
use super::place::PlaceArg;
use crate::app;
use crate::cli::Failure;
use crate::cli::connect::read;
use crate::cli::output::length;
use crate::config::{ProcessEnv, Subscriptions};
use crate::event::{Topic, TopicKind, rfc3339};
use crate::store::{CommandKind, Recent, ReplayArguments, Store, SubscriptionStatus};

/// What will be asked, and what a person should know before.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    pub(super) subscription: String,
    pub(super) topic: String,
    /// `rewind` or `replay`.
    pub(super) kind: &'static str,
    /// Where it stands now.
    pub(super) position: Option<String>,
    pub(super) arguments: ReplayArguments,
    /// The time that the first place stands for, where it was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_time: Option<String>,
    pub(super) warnings: Vec<String>,
    #[serde(skip)]
    pub(super) command: Option<CommandKind>,
}

impl Plan {
    /// As text, for a person.
    pub(super) fn text(&self) -> String {
        let does = match self.command {
            Some(CommandKind::Replay) => "replays beside the live stream, which goes on",
            _ => "rewinds the live subscription",
        };
        let from = match (self.arguments.from.as_str(), &self.from_time) {
            ("earliest", _) => "the earliest event that the bus keeps".to_owned(),
            ("latest", _) => "what comes next".to_owned(),
            (id, Some(time)) => format!("after {id}, where it stood at {time}"),
            (id, None) => format!("after {id}"),
        };
        let mut rows = vec![
            (
                "subscription",
                format!("{} ({})", self.subscription, self.topic),
            ),
            ("does", does.to_owned()),
            (
                "stands at",
                self.position
                    .clone()
                    .unwrap_or_else(|| "no position yet".to_owned()),
            ),
            ("from", from),
        ];
        if self.command == Some(CommandKind::Replay) {
            rows.push(("to", self.to()));
        }
        let handlers = match self.arguments.handlers.as_slice() {
            [] => "all".to_owned(),
            names => names.join(", "),
        };
        rows.push(("handlers", handlers));
        let line = |(name, value): (&str, String)| format!("{name:<13} {value}\n");
        let mut text: String = rows.into_iter().map(line).collect();
        for warning in &self.warnings {
            text.push_str(&format!("- {warning}\n"));
        }
        text
    }

    fn to(&self) -> String {
        match (&self.arguments.to, self.arguments.to_time_ms) {
            (Some(id), _) => format!("{id}, or the live stream where that comes first"),
            (None, Some(ms)) => format!(
                "what was committed at {}, or the live stream where that comes first",
                rfc3339(from_ms(ms))
            ),
            (None, None) => "where the live stream stands when it begins".to_owned(),
        }
    }
}

/// Works out what to ask. `kept` is how long the bus keeps events. `Err` is a failure; an answer without a plan is wrong usage, and says why.
pub(super) async fn make(
    path: Option<&Path>,
    store: &dyn Store,
    args: &ReplayArgs,
    one: &SubscriptionStatus,
    kept: Duration,
) -> Result<Result<Plan, String>, Failure> {
    let Some(from) = &args.from else {
        return Ok(Err("say where to begin: --from".to_owned()));
    };
    let side = args.to.is_some() || !args.handlers.is_empty();
    if side && *from == PlaceArg::Latest {
        let text = "a replay with --to or --handler cannot begin at latest: nothing lies behind it";
        return Ok(Err(text.to_owned()));
    }
    if let Some(why) = unknown_handler(path, args, one) {
        return Err(Failure::Failed(anyhow::anyhow!(why)));
    }
    let (from, from_time) = match from {
        PlaceArg::Earliest => ("earliest".to_owned(), None),
        PlaceArg::Latest => ("latest".to_owned(), None),
        PlaceArg::Id(id) => (id.to_string(), None),
        PlaceArg::Time(time) => {
            let (id, at) = resolve(store, one, *time, kept).await?;
            (id, Some(rfc3339(at)))
        }
    };
    let mut arguments = ReplayArguments {
        from,
        to: None,
        to_time_ms: None,
        handlers: args.handlers.clone(),
    };
    match &args.to {
        None | Some(PlaceArg::Latest) => {}
        Some(PlaceArg::Earliest) => {
            return Ok(Err("--to earliest would replay nothing".to_owned()));
        }
        Some(PlaceArg::Id(id)) => arguments.to = Some(id.to_string()),
        Some(PlaceArg::Time(_)) if !has_commit_times(&one.key.topic) => {
            return Ok(Err(format!(
                "{} has platform events, which carry no commit time: name the last replay ID in --to",
                one.key.topic
            )));
        }
        Some(PlaceArg::Time(time)) => arguments.to_time_ms = Some(to_ms(*time)),
    }
    let command = if side {
        CommandKind::Replay
    } else {
        CommandKind::Rewind
    };
    Ok(Ok(Plan {
        subscription: one.key.name.clone(),
        topic: one.key.topic.to_string(),
        kind: command.name(),
        position: one.position.as_ref().map(ToString::to_string),
        warnings: warnings(
            command,
            &arguments,
            from_time.is_some(),
            lately(store, one, kept).await,
        ),
        arguments,
        from_time,
        command: Some(command),
    }))
}

/// What a person should know before.
fn warnings(
    command: CommandKind,
    arguments: &ReplayArguments,
    from_a_time: bool,
    lately: Option<Recent>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let rewinds = command == CommandKind::Rewind;
    if rewinds && arguments.from == "latest" {
        warnings.push(
            "Everything between the position and the next event is skipped. It is recorded as a hole, and \
             stays on the bus for a replay until it leaves the retention window."
                .to_owned(),
        );
        return warnings;
    }
    warnings.push(
        "Older values will follow newer ones: a handler that keeps only the latest state must compare times \
         or sequence numbers."
            .to_owned(),
    );
    let cost = "Each event counts against the org's rolling 24-hour delivery allocation, which all its \
                subscribers share";
    if arguments.from == "earliest" {
        warnings.push(format!(
            "{cost}: everything that the bus keeps of this topic, up to three days of it, is delivered again. \
             {}",
            match lately {
                Some(Recent { events, over }) => format!(
                    "Lately this subscription received {events} events in {}.",
                    length(over)
                ),
                None => "How many events that is cannot be known before.".to_owned(),
            }
        ));
    } else {
        warnings.push(format!(
            "{cost}. How many events lie between is not known: replay IDs are opaque."
        ));
        if rewinds && !from_a_time {
            warnings.push(
                "For the same reason it cannot be told whether that replay ID lies before the position or behind \
                 it. A hole is recorded, for where it lies behind, what is between is skipped; it closes by itself \
                 once the stream shows that it lies before."
                    .to_owned(),
            );
        }
    }
    if rewinds {
        warnings.push(
            "The subscription stops for a moment, finishes what is in flight, and goes on from there for all its \
             handlers."
                .to_owned(),
        );
    } else {
        warnings.push(
            "The position does not move. The events are marked `replayed`, and records take turns with live ones."
                .to_owned(),
        );
    }
    warnings
}

/// How much came lately, as far as the store can tell.
async fn lately(store: &dyn Store, one: &SubscriptionStatus, kept: Duration) -> Option<Recent> {
    let recent = store.recent_events(&one.key, kept).await.ok()?;
    recent.filter(|recent| recent.events > 0)
}

/// The place where the subscription stood at a time.
async fn resolve(
    store: &dyn Store,
    one: &SubscriptionStatus,
    time: SystemTime,
    kept: Duration,
) -> Result<(String, SystemTime), Failure> {
    let now = SystemTime::now();
    let fail = |text: String| Err(Failure::Failed(anyhow::anyhow!(text)));
    if time > now {
        return fail(format!("{} lies in the future", rfc3339(time)));
    }
    let name = &one.key.name;
    let found = store.marks_around(&one.key.org_id, name, time).await;
    let found = read(found)?;
    match (found.before, found.oldest) {
        (Some(mark), _) => {
            let age = now.duration_since(mark.at).unwrap_or_default();
            if age > kept {
                return fail(format!(
                    "at {} it stood at {}, {} ago, which the bus does not keep any more: use \
                     `--from earliest`",
                    rfc3339(time),
                    mark.position,
                    length(age)
                ));
            }
            Ok((mark.position.to_string(), mark.at))
        }
        (None, Some(oldest)) => fail(format!(
            "where {name} stood at {} is not known: the oldest place that is known is that of {}. Use \
             `--from {}`, or `--from earliest`",
            rfc3339(time),
            rfc3339(oldest.at),
            rfc3339(oldest.at)
        )),
        (None, None) => fail(format!(
            "it is not known where {name} stood at any time: it has finished no event yet. Use `--from earliest`"
        )),
    }
}

/// Says so where a named handler is not configured, as far as the configuration can be read here. The owner
/// of the subscription looks again.
fn unknown_handler(
    path: Option<&Path>,
    args: &ReplayArgs,
    one: &SubscriptionStatus,
) -> Option<String> {
    let registry = crate::cli::registry();
    let loaded = app::load_config(path, Subscriptions::Optional, &ProcessEnv, registry).ok()?;
    let mut configured = loaded.config.subscriptions.into_iter();
    let configured = configured.find(|s| s.name == one.key.name)?;
    let known: Vec<&str> = configured
        .handlers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    let unknown = args
        .handlers
        .iter()
        .find(|name| !known.contains(&name.as_str()))?;
    Some(format!(
        "subscription `{}` has no handler `{unknown}`: it has {}",
        one.key.name,
        known.join(", ")
    ))
}

/// Only change events say when they were committed.
fn has_commit_times(topic: &Topic) -> bool {
    matches!(
        topic.kind(),
        TopicKind::ChangeEvent | TopicKind::ChangeEventChannel
    )
}

fn to_ms(time: SystemTime) -> i64 {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since_1970.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    let since_1970 = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let time = SystemTime::UNIX_EPOCH.checked_add(since_1970);
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
