//! `orgstream status`: each subscription, as the store knows it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::output::{NONE, Table, age, length, note, one_line, print, print_json, since};
use crate::config::{self, ProcessEnv};
use crate::event::rfc3339;
use crate::store::SubscriptionStatus;
use crate::subscription::Kept;

/// Show each subscription: state, owner, lag, position, parked events, holes.
///
/// Reads the store, where the daemon writes about once a second while something happens; it works
/// whether or not a daemon runs.
///
/// STATE is connecting, live, paused, reconnecting, blocked or stopped. OWNER is the start of the
/// process's random ID. LAG is the time since the stream was last live with nothing unfinished; on a
/// quiet topic it grows until the next keepalive, some minutes at most, so a lag that keeps growing means
/// that the daemon is behind or gone. POSITION is the replay ID up to which every event is finished, AGE
/// the time since it was written.
///
/// KEPT is how long the bus still keeps what follows the position: a subscription that stands still for
/// longer than that loses events. Within `salesforce.retention_warning` of it a line below the table says so.
///
/// Exits with 1 if anything needs a person: a blocked subscription, a parked event, a hole that nobody
/// has acknowledged, or a position that is about to leave the bus.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  orgstream status\n  orgstream status --json")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: JsonFlag,
}

/// A subscription, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    topic: String,
    org_id: String,
    state: String,
    detail: Option<String>,
    state_at: Option<String>,
    owner: Option<String>,
    epoch: i64,
    lag_seconds: Option<f64>,
    position: Option<String>,
    position_at: Option<String>,
    /// When the event at the position was committed, or the keepalive received.
    position_time: Option<String>,
    kept_until: Option<String>,
    caught_up_at: Option<String>,
    received: u64,
    finished: u64,
    parked: u64,
    holes: u64,
    needs_a_person: bool,
}

pub(super) async fn run(path: Option<&Path>, args: StatusArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let (retention, warning) = config::load_bus_retention(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let subscriptions = store.subscriptions().await;
    store.close().await;
    let subscriptions = read(subscriptions)?;
    let view = View {
        now: SystemTime::now(),
        retention,
        warning,
    };
    if args.output.json {
        let shown: Vec<Shown> = subscriptions.iter().map(|one| view.shown(one)).collect();
        print_json(&shown)?;
    } else if subscriptions.is_empty() {
        note("the store knows no subscription yet: `orgstream run` makes them");
    } else {
        print(&view.table(&subscriptions))?;
        for line in subscriptions.iter().flat_map(|one| view.advice(one)) {
            note(&line);
        }
    }
    let needed = subscriptions.iter().any(|one| view.needs_a_person(one));
    Ok(ExitCode::from(u8::from(needed)))
}

/// How the store's subscriptions are looked at.
struct View {
    now: SystemTime,
    /// How long the bus keeps an event.
    retention: Duration,
    /// How long before its end a person is told.
    warning: Duration,
}

impl View {
    fn needs_a_person(&self, one: &SubscriptionStatus) -> bool {
        one.state == "blocked" || one.parked > 0 || one.holes > 0 || self.leaving(one).is_some()
    }

    /// How long the bus keeps what follows the position. Written before its time was kept, the position is at
    /// least as old as its row.
    fn kept(&self, one: &SubscriptionStatus) -> Option<Kept> {
        one.position.as_ref()?;
        let place = one.position_time.or(one.position_at)?;
        Some(Kept::of(place, self.retention, self.now))
    }

    /// The same, where it is short.
    fn leaving(&self, one: &SubscriptionStatus) -> Option<Kept> {
        self.kept(one).filter(|kept| kept.is_short(self.warning))
    }

    fn shown(&self, one: &SubscriptionStatus) -> Shown {
        Shown {
            name: one.key.name.clone(),
            topic: one.key.topic.to_string(),
            org_id: one.key.org_id.to_string(),
            state: one.state.clone(),
            detail: one.detail.clone(),
            state_at: one.state_at.map(rfc3339),
            owner: one.holder.clone(),
            epoch: one.epoch,
            lag_seconds: one
                .caught_up_at
                .map(|then| since(then, self.now).as_secs_f64()),
            position: one.position.as_ref().map(ToString::to_string),
            position_at: one.position_at.map(rfc3339),
            position_time: one.position_time.map(rfc3339),
            kept_until: self.kept(one).map(|kept| rfc3339(kept.until)),
            caught_up_at: one.caught_up_at.map(rfc3339),
            received: one.received,
            finished: one.finished,
            parked: one.parked,
            holes: one.holes,
            needs_a_person: self.needs_a_person(one),
        }
    }

    fn table(&self, subscriptions: &[SubscriptionStatus]) -> String {
        let mut table = Table::new([
            "NAME", "TOPIC", "STATE", "OWNER", "LAG", "POSITION", "AGE", "KEPT", "RECEIVED",
            "FINISHED", "PARKED", "HOLES",
        ]);
        for one in subscriptions {
            let owner = one.holder.as_deref().unwrap_or(NONE);
            table.row([
                one.key.name.clone(),
                one.key.topic.to_string(),
                one.state.clone(),
                owner.chars().take(8).collect(),
                age(one.caught_up_at, self.now),
                one.position
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), ToString::to_string),
                age(one.position_at, self.now),
                self.kept(one).map_or_else(
                    || NONE.to_owned(),
                    |kept| kept.left.map_or_else(|| "over".to_owned(), length),
                ),
                one.received.to_string(),
                one.finished.to_string(),
                one.parked.to_string(),
                one.holes.to_string(),
            ]);
        }
        table.text()
    }

    /// What to say below the table: why a stream is not live, and where to look for what is counted.
    fn advice(&self, one: &SubscriptionStatus) -> Vec<String> {
        let name = &one.key.name;
        let mut lines = Vec::new();
        if let Some(detail) = &one.detail {
            lines.push(format!("{name} is {}: {}", one.state, one_line(detail)));
        }
        if one.parked > 0 {
            lines.push(format!(
                "{name}: {} parked; see `orgstream dead-letters list --subscription {name}`",
                events(one.parked)
            ));
        }
        if one.holes > 0 {
            let (count, noun) = (one.holes, if one.holes == 1 { "hole" } else { "holes" });
            lines.push(format!(
            "{name}: {count} {noun}, where events were not seen or came without their content; see \
             `orgstream holes list --subscription {name}`"
        ));
        }
        if let Some(kept) = self.leaving(one) {
            let until = rfc3339(kept.until);
            lines.push(match kept.left {
            Some(_) => format!(
                "{name}: the bus keeps what follows its position until {until}: unless the position moves before, \
                 events are lost"
            ),
            None => format!(
                "{name}: the bus kept what follows its position until {until}: events may be lost already"
            ),
        });
        }
        lines
    }
}

fn events(count: u64) -> String {
    match count {
        1 => "1 event".to_owned(),
        _ => format!("{count} events"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::OrgId;
    use crate::store::SubscriptionKey;

    fn status() -> SubscriptionStatus {
        SubscriptionStatus {
            key: SubscriptionKey {
                org_id: OrgId::parse("00D5g000004emu1EAA").unwrap(),
                name: "orders".into(),
                topic: "Order__e".parse().unwrap(),
            },
            state: "live".into(),
            detail: None,
            state_at: None,
            holder: Some("0f9d5c1e-1111-4222-8333-444455556666".into()),
            epoch: 3,
            position: Some("00000000001204450000".parse().unwrap()),
            position_time: None,
            position_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(90)),
            caught_up_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(95)),
            received: 12,
            finished: 11,
            parked: 0,
            holes: 0,
        }
    }

    fn view(seconds: u64) -> View {
        View {
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            retention: Duration::from_secs(1000),
            warning: Duration::from_secs(200),
        }
    }

    #[test]
    fn a_position_that_is_about_to_leave_the_bus_needs_a_person() {
        let with_time = SubscriptionStatus {
            position_time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(50)),
            ..status()
        };
        assert!(!view(849).needs_a_person(&with_time));
        assert!(view(850).needs_a_person(&with_time));
        let lines = view(850).advice(&with_time);
        assert!(lines[0].contains("until 1970-01-01T00:17:30Z"), "{lines:?}");
        let lines = view(1050).advice(&with_time);
        assert!(lines[0].contains("lost already"), "{lines:?}");
        // The row was written at 90: an older position cannot be told.
        assert!(view(890).needs_a_person(&status()));
        let none = SubscriptionStatus {
            position: None,
            ..with_time
        };
        assert!(!view(5000).needs_a_person(&none));
    }

    #[test]
    fn a_subscription_is_one_line() {
        let text = view(100).table(&[status()]);
        let line: Vec<&str> = text.lines().nth(1).unwrap().split("  ").collect();
        let cells: Vec<&str> = line
            .iter()
            .map(|cell| cell.trim())
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(
            cells,
            [
                "orders",
                "/event/Order__e",
                "live",
                "0f9d5c1e",
                "5 s",
                "00000000001204450000",
                "10 s",
                "16 min",
                "12",
                "11",
                "0",
                "0"
            ]
        );
        assert_eq!(view(100).shown(&status()).lag_seconds, Some(5.0));
    }

    #[test]
    fn blocked_parked_and_holes_need_a_person_and_say_where_to_look() {
        assert!(!view(100).needs_a_person(&status()));
        assert!(view(100).advice(&status()).is_empty());
        let blocked = SubscriptionStatus {
            state: "blocked".into(),
            detail: Some("sign-in refused".into()),
            ..status()
        };
        assert!(view(100).needs_a_person(&blocked));
        assert_eq!(
            view(100).advice(&blocked),
            ["orders is blocked: sign-in refused"]
        );
        let parked = SubscriptionStatus {
            parked: 1,
            holes: 2,
            ..status()
        };
        assert!(view(100).needs_a_person(&parked));
        let lines = view(100).advice(&parked);
        assert!(
            lines[0].contains("1 event parked") && lines[1].contains("2 holes"),
            "{lines:?}"
        );
    }
}
