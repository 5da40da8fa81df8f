//! `orgstream status`: each subscription, as the store knows it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::connect::{self, JsonFlag, read};
use super::control::owner;
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
/// STATE is connecting, live, paused (its buffer is full), reconnecting, blocked or stopped, as its owner
/// wrote it; or `waiting for a worker`, where nobody runs it, or `paused by a person`. OWNER is the worker that
/// runs it: its dyno, or host and process. LAG is the time since the stream was last live with nothing unfinished; on a
/// quiet topic it grows until the next keepalive, some minutes at most, so a lag that keeps growing means
/// that the daemon is behind or gone. POSITION is the replay ID up to which every event is finished, AGE
/// the time since it was written. KEPT is how long the bus still keeps what follows it: a subscription that
/// stands still for longer loses events.
///
/// Exits with 1 if anything needs a person: a blocked subscription, a parked event, or a hole that nobody
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
    held: bool,
    owner: Option<String>,
    holder: Option<String>,
    paused_at: Option<String>,
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
    let bus = Bus { retention, warning };
    let store = connect::store(&config).await?;
    let subscriptions = store.subscriptions().await;
    store.close().await;
    let subscriptions = read(subscriptions)?;
    let now = SystemTime::now();
    if args.output.json {
        let shown: Vec<Shown> = subscriptions
            .iter()
            .map(|one| shown(one, now, &bus))
            .collect();
        print_json(&shown)?;
    } else if subscriptions.is_empty() {
        note("the store knows no subscription yet: `orgstream run` makes them");
    } else {
        print(&table(&subscriptions, now, &bus))?;
        for one in &subscriptions {
            for line in advice(one).into_iter().chain(bus.advice(one, now)) {
                note(&line);
            }
        }
    }
    let needed = subscriptions
        .iter()
        .any(|one| needs_a_person(one) || bus.leaving(one, now).is_some());
    Ok(ExitCode::from(u8::from(needed)))
}

/// What its owner last said counts for as long as it has one.
fn is_blocked(one: &SubscriptionStatus) -> bool {
    one.held && one.state == "blocked"
}

fn needs_a_person(one: &SubscriptionStatus) -> bool {
    is_blocked(one) || one.parked > 0 || one.holes > 0
}

/// The state for people: what the owner wrote, where there is one.
fn state(one: &SubscriptionStatus) -> &str {
    match (one.held, one.paused_at) {
        (true, _) => &one.state,
        (false, Some(_)) => "paused by a person",
        (false, None) => "waiting for a worker",
    }
}

fn shown(one: &SubscriptionStatus, now: SystemTime, bus: &Bus) -> Shown {
    Shown {
        name: one.key.name.clone(),
        topic: one.key.topic.to_string(),
        org_id: one.key.org_id.to_string(),
        state: one.state.clone(),
        detail: one.detail.clone(),
        state_at: one.state_at.map(rfc3339),
        held: one.held,
        owner: owner(one),
        holder: one.holder.clone(),
        paused_at: one.paused_at.map(rfc3339),
        epoch: one.epoch,
        lag_seconds: one.caught_up_at.map(|then| since(then, now).as_secs_f64()),
        position: one.position.as_ref().map(ToString::to_string),
        position_at: one.position_at.map(rfc3339),
        position_time: one.position_time.map(rfc3339),
        kept_until: bus.kept(one, now).map(|kept| rfc3339(kept.until)),
        caught_up_at: one.caught_up_at.map(rfc3339),
        received: one.received,
        finished: one.finished,
        parked: one.parked,
        holes: one.holes,
        needs_a_person: needs_a_person(one) || bus.leaving(one, now).is_some(),
    }
}

fn table(subscriptions: &[SubscriptionStatus], now: SystemTime, bus: &Bus) -> String {
    let mut table = Table::new([
        "NAME", "TOPIC", "STATE", "OWNER", "LAG", "POSITION", "AGE", "KEPT", "RECEIVED",
        "FINISHED", "PARKED", "HOLES",
    ]);
    for one in subscriptions {
        table.row([
            one.key.name.clone(),
            one.key.topic.to_string(),
            state(one).to_owned(),
            owner(one).unwrap_or_else(|| NONE.to_owned()),
            age(one.caught_up_at, now),
            one.position
                .as_ref()
                .map_or_else(|| NONE.to_owned(), ToString::to_string),
            age(one.position_at, now),
            bus.kept(one, now).map_or_else(
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
fn advice(one: &SubscriptionStatus) -> Vec<String> {
    let name = &one.key.name;
    let mut lines = Vec::new();
    match (&one.paused_at, owner(one)) {
        (Some(_), Some(owner)) => lines.push(format!(
            "{name}: a person paused it, and {owner} has not let it go yet"
        )),
        (Some(_), None) => lines.push(format!(
            "{name} is paused by a person: `orgstream resume {name}` lets it run"
        )),
        (None, None) => lines.push(format!(
            "{name} waits for a worker: `orgstream run` with {name} in its configuration takes it over"
        )),
        (None, Some(_)) => {}
    }
    if let Some(detail) = one.detail.as_ref().filter(|_| one.held) {
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
    lines
}

/// How long the bus keeps an event, and how long before its end a person is told.
struct Bus {
    retention: Duration,
    warning: Duration,
}

impl Bus {
    /// How long what follows the position is kept. Written before its time was kept, the position is at least
    /// as old as its row.
    fn kept(&self, one: &SubscriptionStatus, now: SystemTime) -> Option<Kept> {
        one.position.as_ref()?;
        let place = one.position_time.or(one.position_at)?;
        Some(Kept::of(place, self.retention, now))
    }

    /// The same, where it is short.
    fn leaving(&self, one: &SubscriptionStatus, now: SystemTime) -> Option<Kept> {
        self.kept(one, now)
            .filter(|kept| kept.is_short(self.warning))
    }

    fn advice(&self, one: &SubscriptionStatus, now: SystemTime) -> Option<String> {
        let kept = self.leaving(one, now)?;
        let (name, until) = (&one.key.name, rfc3339(kept.until));
        Some(match kept.left {
            Some(_) => format!(
                "{name}: the bus keeps what follows its position until {until}: unless the position moves before, \
                 events are lost"
            ),
            None => format!(
                "{name}: the bus kept what follows its position until {until}: events may be lost already"
            ),
        })
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
            held: true,
            worker: Some("worker.1".into()),
            paused_at: None,
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

    const BUS: Bus = Bus {
        retention: Duration::from_secs(1000),
        warning: Duration::from_secs(200),
    };

    #[test]
    fn a_position_that_is_about_to_leave_the_bus_says_until_when_it_is_kept() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let with_time = SubscriptionStatus {
            position_time: Some(at(50)),
            ..status()
        };
        assert_eq!(BUS.advice(&with_time, at(849)), None);
        let advice = BUS.advice(&with_time, at(850)).unwrap();
        assert!(advice.contains("until 1970-01-01T00:17:30Z"), "{advice}");
        let advice = BUS.advice(&with_time, at(1050)).unwrap();
        assert!(advice.contains("lost already"), "{advice}");
        assert!(shown(&with_time, at(850), &BUS).needs_a_person);
        // Of an older row only the time of its writing is known.
        assert!(BUS.leaving(&status(), at(890)).is_some());
        let none = SubscriptionStatus {
            position: None,
            ..with_time
        };
        assert!(BUS.leaving(&none, at(5000)).is_none());
    }

    #[test]
    fn a_subscription_is_one_line() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let text = table(&[status()], now, &BUS);
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
                "worker.1",
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
        assert_eq!(shown(&status(), now, &BUS).lag_seconds, Some(5.0));
    }

    #[test]
    fn what_nobody_runs_says_what_it_waits_for() {
        let free = SubscriptionStatus {
            held: false,
            state: "blocked".into(),
            detail: Some("long ago".into()),
            ..status()
        };
        assert_eq!(state(&free), "waiting for a worker");
        assert!(!needs_a_person(&free));
        assert!(advice(&free)[0].contains("`orgstream run`"));
        let paused = SubscriptionStatus {
            paused_at: Some(SystemTime::UNIX_EPOCH),
            ..free
        };
        assert_eq!(state(&paused), "paused by a person");
        assert!(advice(&paused)[0].contains("`orgstream resume orders`"));
        let unnamed = SubscriptionStatus {
            worker: None,
            ..status()
        };
        assert_eq!(owner(&unnamed).as_deref(), Some("0f9d5c1e"));
    }

    #[test]
    fn blocked_parked_and_holes_need_a_person_and_say_where_to_look() {
        assert!(!needs_a_person(&status()));
        assert!(advice(&status()).is_empty());
        let blocked = SubscriptionStatus {
            state: "blocked".into(),
            detail: Some("sign-in refused".into()),
            ..status()
        };
        assert!(needs_a_person(&blocked));
        assert_eq!(advice(&blocked), ["orders is blocked: sign-in refused"]);
        let parked = SubscriptionStatus {
            parked: 1,
            holes: 2,
            ..status()
        };
        assert!(needs_a_person(&parked));
        let lines = advice(&parked);
        assert!(
            lines[0].contains("1 event parked") && lines[1].contains("2 holes"),
            "{lines:?}"
        );
    }
}
