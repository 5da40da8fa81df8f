//! `orgstream holes`: what was missed, and acknowledging it.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::output::{age, note, one_line, print, print_json};
use crate::config::{self, ProcessEnv};
use crate::event::{ReplayId, rfc3339};
use crate::store::{HoleFilter, HoleKind, Store, StoredHole};

/// Records of a gap that a person is shown; `--json` has them all.
const SHOWN_RECORDS: usize = 5;

/// See what was missed and why, and acknowledge it.
///
/// A hole is either a stretch of the bus that was not seen (lost), or a change that came without its content
/// (gap). Each is shown, here and in `orgstream status`, until a person acknowledges it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream holes list\n  orgstream holes list --all --subscription accounts --json\n  orgstream holes ack 3 4\n  orgstream holes ack --all --subscription accounts"
)]
pub(super) struct HolesArgs {
    #[command(subcommand)]
    command: HolesCommand,
}

#[derive(Debug, Subcommand)]
enum HolesCommand {
    /// List holes, newest first: what may be missing, from when to when, and what to do
    List(ListArgs),
    /// Acknowledge holes: they were looked after, and are not shown any more
    ///
    /// Acknowledging changes nothing but what is shown: no event comes again for it. What has been acknowledged
    /// is kept for a while (`retention.holes`, 90 days).
    ///
    /// A lost stretch whose end is not known yet may still grow, so it is left alone: its end is known with the
    /// next event or keepalive. Where none will come, as for a subscription that is configured no more,
    /// `--open-ended` acknowledges it too.
    Ack(AckArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only of this subscription
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Acknowledged ones too
    #[arg(long)]
    all: bool,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    output: JsonFlag,
}

#[derive(Debug, Args)]
struct AckArgs {
    /// Their numbers, as `holes list` shows them
    #[arg(required_unless_present = "all", conflicts_with_all = ["all", "subscription"])]
    id: Vec<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// With --all: only of this subscription
    #[arg(long, value_name = "NAME", requires = "all")]
    subscription: Option<String>,
    /// Also those that may still grow
    #[arg(long)]
    open_ended: bool,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(path: Option<&Path>, args: HolesArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let done = match args.command {
        HolesCommand::List(args) => list(store.as_ref(), args).await,
        HolesCommand::Ack(args) => acknowledge(store.as_ref(), args).await,
    };
    store.close().await;
    done
}

async fn list(store: &dyn Store, args: ListArgs) -> Result<ExitCode, Failure> {
    let filter = HoleFilter {
        subscription: args.subscription,
        open_only: !args.all,
        ids: None,
        // One more than asked for, to know whether there are more.
        limit: Some(args.limit.saturating_add(1)),
    };
    let mut holes = read(store.holes(&filter).await)?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let more = holes.len() > limit;
    holes.truncate(limit);
    if args.output.json {
        let shown: Vec<Value> = holes.iter().map(shown).collect();
        print_json(&shown)?;
    } else if holes.is_empty() {
        note("no holes");
    } else {
        let now = SystemTime::now();
        let texts: Vec<String> = holes.iter().map(|hole| description(hole, now)).collect();
        print(&texts.join("\n"))?;
    }
    if more {
        note("there are older ones; `--limit` shows them");
    }
    Ok(ExitCode::SUCCESS)
}

/// A hole for programs. Record IDs are the first thousand.
fn shown(stored: &StoredHole) -> Value {
    let hole = &stored.hole;
    let place = |id: &Option<ReplayId>| id.as_ref().map(ToString::to_string);
    json!({
        "id": stored.id,
        "subscription": stored.subscription,
        "kind": kind(hole.kind),
        "reason": hole.reason,
        "from_replay_id": place(&hole.from),
        "to_replay_id": place(&hole.to),
        "from_time": hole.from_time.map(rfc3339),
        "to_time": hole.to_time.map(rfc3339),
        "entity": hole.entity,
        "record_ids": hole.record_ids,
        "record_count": stored.record_count,
        "explanation": hole.explanation,
        "may_grow": stored.is_open_ended(),
        "recorded_at": rfc3339(stored.recorded_at),
        "acknowledged_at": stored.acknowledged_at.map(rfc3339),
    })
}

fn kind(kind: HoleKind) -> &'static str {
    match kind {
        HoleKind::Lost => "lost",
        HoleKind::Gap => "gap",
    }
}

/// A hole for people: what, where, why and what to do.
fn description(stored: &StoredHole, now: SystemTime) -> String {
    let hole = &stored.hole;
    let mut lines = vec![format!(
        "hole {}: {} ({}), subscription {}, recorded {} ago",
        stored.id,
        kind(hole.kind),
        hole.reason,
        stored.subscription,
        age(Some(stored.recorded_at), now)
    )];
    match hole.kind {
        HoleKind::Lost => {
            lines.push(format!(
                "from  {}",
                place(hole.from_time, hole.from.as_ref(), "no place known")
            ));
            lines.push(format!(
                "to    {}",
                place(
                    hole.to_time,
                    hole.to.as_ref(),
                    "not known yet: nothing has come since"
                )
            ));
        }
        HoleKind::Gap => {
            lines.push(format!(
                "at    {}",
                place(hole.to_time, hole.from.as_ref(), "no place known")
            ));
            lines.extend(records(stored));
        }
    }
    lines.push(hole.explanation.clone());
    if let Some(at) = stored.acknowledged_at {
        lines.push(format!("acknowledged {} ago", age(Some(at), now)));
    }
    let indented = lines.iter().enumerate().map(|(number, line)| {
        let indent = if number == 0 { "" } else { "  " };
        format!("{indent}{}\n", one_line(line))
    });
    indented.collect()
}

fn place(time: Option<SystemTime>, id: Option<&ReplayId>, unknown: &str) -> String {
    match (time, id) {
        (Some(time), Some(id)) => format!("{} (replay ID {id})", rfc3339(time)),
        (Some(time), None) => rfc3339(time),
        (None, Some(id)) => format!("replay ID {id}"),
        (None, None) => unknown.to_owned(),
    }
}

/// Which records a gap names.
fn records(stored: &StoredHole) -> Option<String> {
    let ids = &stored.hole.record_ids;
    if ids.is_empty() {
        return None;
    }
    let first = &ids[..ids.len().min(SHOWN_RECORDS)];
    let more = stored.record_count.saturating_sub(first.len() as u64);
    let rest = match more {
        0 => String::new(),
        _ => format!(" and {more} more"),
    };
    Some(format!("records {}{rest}", first.join(", ")))
}

async fn acknowledge(store: &dyn Store, args: AckArgs) -> Result<ExitCode, Failure> {
    let filter = HoleFilter {
        subscription: args.subscription,
        ids: (!args.all).then_some(args.id),
        ..HoleFilter::default()
    };
    let done = read(store.acknowledge_holes(&filter, args.open_ended).await)?;
    let (left, missing) = left(store, &filter, &done).await?;
    if args.output.json {
        let left: Vec<i64> = left.iter().map(|hole| hole.id).collect();
        print_json(&json!({"acknowledged": done, "may_grow": left, "missing": missing}))?;
    } else {
        for id in &done {
            print(&format!("hole {id} acknowledged\n"))?;
        }
        if done.is_empty() && left.is_empty() && missing.is_empty() {
            note("nothing to acknowledge");
        }
    }
    for hole in &left {
        note(&format!(
            "hole {} of {} is left: its end is not known until the next event or keepalive comes, and until then \
             it may grow; `--open-ended` acknowledges it all the same",
            hole.id, hole.subscription
        ));
    }
    for id in &missing {
        note(&format!(
            "there is no hole {id}; `orgstream holes list --all` shows all"
        ));
    }
    // Whoever names a hole wants that one; whoever says all knows what the notes say.
    let failed = !missing.is_empty() || (filter.ids.is_some() && !left.is_empty());
    Ok(ExitCode::from(u8::from(failed)))
}

/// Of what was asked for: the holes that may still grow and were left, and numbers that are none.
async fn left(
    store: &dyn Store,
    filter: &HoleFilter,
    done: &[i64],
) -> Result<(Vec<StoredHole>, Vec<i64>), Failure> {
    let asked = HoleFilter {
        // Those that were named may be acknowledged already, which is as good.
        open_only: filter.ids.is_none(),
        ..filter.clone()
    };
    let found = read(store.holes(&asked).await)?;
    let ids = filter.ids.iter().flatten().copied();
    let missing = ids
        .filter(|id| !done.contains(id) && found.iter().all(|hole| hole.id != *id))
        .collect();
    let left = found
        .into_iter()
        .filter(|hole| hole.acknowledged_at.is_none() && hole.is_open_ended())
        .collect();
    Ok((left, missing))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Hole;

    fn lost() -> StoredHole {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        StoredHole {
            id: 3,
            subscription: "accounts".into(),
            recorded_at: noon + Duration::from_secs(3600),
            acknowledged_at: None,
            record_count: 0,
            hole: Hole {
                kind: HoleKind::Lost,
                reason: "expired_replay_id".into(),
                from: Some("0a".parse().unwrap()),
                to: None,
                from_time: Some(noon),
                to_time: None,
                entity: None,
                record_ids: Vec::new(),
                explanation: "The org does not know it.".into(),
            },
        }
    }

    #[test]
    fn a_lost_stretch_is_told_with_its_bounds_as_far_as_they_are_known() {
        let mut hole = lost();
        let now = hole.recorded_at + Duration::from_secs(60);
        assert_eq!(
            description(&hole, now),
            "hole 3: lost (expired_replay_id), subscription accounts, recorded 60 s ago\n  \
             from  2026-09-21T14:13:20Z (replay ID 0a)\n  \
             to    not known yet: nothing has come since\n  \
             The org does not know it.\n"
        );
        hole.hole.to = Some("0c".parse().unwrap());
        hole.acknowledged_at = Some(now);
        let text = description(&hole, now);
        assert!(text.contains("to    replay ID 0c\n"), "{text}");
        assert!(text.ends_with("  acknowledged 0 s ago\n"), "{text}");
        assert_eq!(shown(&hole)["may_grow"], false);
    }

    #[test]
    fn a_gap_is_told_with_its_first_records_and_how_many_there_are() {
        let mut gap = lost();
        gap.hole.kind = HoleKind::Gap;
        gap.hole.record_ids = (0..9).map(|n| format!("001{n}")).collect();
        gap.record_count = 9;
        let text = description(&gap, gap.recorded_at);
        assert!(
            text.contains(
                "\n  at    replay ID 0a\n  records 0010, 0011, 0012, 0013, 0014 and 4 more\n"
            ),
            "{text}"
        );
        gap.hole.record_ids.clear();
        gap.record_count = 0;
        assert!(!description(&gap, gap.recorded_at).contains("records"));
    }
}
