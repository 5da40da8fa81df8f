//! `orgstream status`: each subscription, as the store knows it.

use std::collections::BTreeMap;
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
use crate::event::{OrgId, rfc3339};
use crate::store::{Store, SubscriptionStatus, Worker};
use crate::subscription::Kept;

/// State of what the store does not give to those that ask for it.
const REFUSED: &str = "refused";

/// Show each subscription: state, owner, lag, position, parked events, holes.
///
/// Reads the store, where the daemon writes about once a second while something happens; it works
/// whether or not a daemon runs.
///
/// STATE is connecting, live, paused (its buffer is full), reconnecting, blocked or stopped, as its owner
/// wrote it; or where nobody runs it `waiting for a worker`, `refused`, where the store does not give it to
/// those that have it in their configuration, or `paused by a person`. OWNER is the worker that
/// runs it: its dyno, or host and process. LAG is the time since the stream was last live with nothing unfinished, or,
/// where it never was, since what is at its position happened; on a
/// quiet topic it grows until the next keepalive, some minutes at most, so a lag that keeps growing means
/// that the daemon is behind or gone. POSITION is the replay ID up to which every event is finished, AGE
/// the time since it was written. KEPT is how long the bus still keeps what follows it: a subscription that
/// stands still for longer loses events.
///
/// Exits with 1 if anything needs a person: a blocked subscription, a parked event, or a hole that nobody
/// has acknowledged, a position that is about to leave the bus, a subscription that is refused to a worker, or
/// one that nobody runs while no worker is alive.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  orgstream status\n  orgstream status --json")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: JsonFlag,
}

/// A subscription, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
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
    /// Workers that have it in their configuration and are not given it.
    refused: Vec<RefusedTo>,
    needs_a_person: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RefusedTo {
    worker: String,
    why: String,
}

pub(super) async fn run(path: Option<&Path>, args: StatusArgs) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let (retention, warning) = config::load_bus_retention(path, &ProcessEnv)?;
    let bus = Bus { retention, warning };
    let store = connect::store(&config).await?;
    let found = look(store.as_ref()).await;
    store.close().await;
    let (subscriptions, fleet) = found?;
    let now = SystemTime::now();
    let view = View { bus, fleet, now };
    if args.output.json {
        let known = subscriptions.iter().map(|one| view.shown(one));
        let all: Vec<Shown> = known.chain(view.unknown(&subscriptions)).collect();
        print_json(&all)?;
    } else if subscriptions.is_empty() && view.fleet.refused.is_empty() {
        note("the store knows no subscription yet: `orgstream run` makes them");
    } else {
        print(&view.table(&subscriptions))?;
        for one in &subscriptions {
            for line in advice(one).into_iter().chain(view.bus.advice(one, now)) {
                note(&line);
            }
        }
        for line in view.fleet.advice() {
            note(&line);
        }
    }
    let needed = subscriptions.iter().any(|one| view.needs_a_person(one));
    Ok(ExitCode::from(u8::from(
        needed || !view.fleet.refused.is_empty(),
    )))
}

async fn look(store: &dyn Store) -> Result<(Vec<SubscriptionStatus>, Fleet), Failure> {
    let subscriptions = read(store.subscriptions().await)?;
    let fleet = Fleet {
        alive: false,
        org_id: read(store.bound_org().await)?,
        refused: BTreeMap::new(),
    };
    let living = read(store.workers().await)?;
    let workers = living.into_iter().map(|one| one.worker).collect();
    Ok((subscriptions, fleet.of(workers)))
}

/// The workers that live.
struct Fleet {
    alive: bool,
    org_id: Option<OrgId>,
    /// What is refused to them, by name: the topic, and to whom.
    refused: BTreeMap<String, (String, Vec<RefusedTo>)>,
}

impl Fleet {
    fn of(mut self, workers: Vec<Worker>) -> Self {
        self.alive = !workers.is_empty();
        for worker in workers {
            for one in worker.refused {
                let refused = self.refused.entry(one.name).or_default();
                refused.0 = one.topic;
                refused.1.push(RefusedTo {
                    worker: worker.name.clone(),
                    why: one.why,
                });
            }
        }
        self
    }

    fn refused(&self, name: &str) -> &[RefusedTo] {
        self.refused.get(name).map_or(&[], |(_, to)| to)
    }

    fn advice(&self) -> impl Iterator<Item = String> {
        self.refused.iter().flat_map(|(name, (_, to))| {
            to.iter().map(move |one| {
                let (worker, why) = (&one.worker, one_line(&one.why));
                format!("{name} is refused to {worker}: {why}")
            })
        })
    }
}

/// Since when it may be behind: from the time when it had caught up, or that of its position where it never had.
fn behind_since(one: &SubscriptionStatus) -> Option<SystemTime> {
    one.caught_up_at.or(one.position_time)
}

/// What its owner last said counts for as long as it has one.
fn is_blocked(one: &SubscriptionStatus) -> bool {
    one.held && one.state == "blocked"
}

/// All that is shown, at one moment.
struct View {
    bus: Bus,
    fleet: Fleet,
    now: SystemTime,
}

impl View {
    fn needs_a_person(&self, one: &SubscriptionStatus) -> bool {
        let deserted = !one.held && one.paused_at.is_none() && !self.fleet.alive;
        is_blocked(one)
            || deserted
            || one.parked > 0
            || one.holes > 0
            || !self.fleet.refused(&one.key.name).is_empty()
            || self.bus.leaving(one, self.now).is_some()
    }

    /// The state for people: what the owner wrote, where there is one.
    fn state<'a>(&self, one: &'a SubscriptionStatus) -> &'a str {
        let refused = !self.fleet.refused(&one.key.name).is_empty();
        match (one.held, one.paused_at) {
            (true, _) => &one.state,
            (false, Some(_)) => "paused by a person",
            (false, None) if refused => REFUSED,
            (false, None) => "waiting for a worker",
        }
    }

    fn shown(&self, one: &SubscriptionStatus) -> Shown {
        let now = self.now;
        Shown {
            name: one.key.name.clone(),
            topic: one.key.topic.to_string(),
            org_id: one.key.org_id.to_string(),
            state: self.state(one).to_owned(),
            detail: one.detail.clone().filter(|_| one.held),
            state_at: one.state_at.map(rfc3339),
            held: one.held,
            owner: owner(one),
            holder: one.holder.clone(),
            paused_at: one.paused_at.map(rfc3339),
            epoch: one.epoch,
            lag_seconds: behind_since(one).map(|then| since(then, now).as_secs_f64()),
            position: one.position.as_ref().map(ToString::to_string),
            position_at: one.position_at.map(rfc3339),
            position_time: one.position_time.map(rfc3339),
            kept_until: self.bus.kept(one, now).map(|kept| rfc3339(kept.until)),
            caught_up_at: one.caught_up_at.map(rfc3339),
            received: one.received,
            finished: one.finished,
            parked: one.parked,
            holes: one.holes,
            refused: self.fleet.refused(&one.key.name).to_vec(),
            needs_a_person: self.needs_a_person(one),
        }
    }

    /// Those that the store has not even begun to keep, because it refused them.
    fn unknown(&self, known: &[SubscriptionStatus]) -> impl Iterator<Item = Shown> {
        let unknown = self
            .fleet
            .refused
            .iter()
            .filter(|(name, _)| !known.iter().any(|one| one.key.name == **name));
        unknown.map(|(name, (topic, to))| Shown {
            name: name.clone(),
            topic: topic.clone(),
            org_id: self
                .fleet
                .org_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            state: REFUSED.to_owned(),
            refused: to.clone(),
            needs_a_person: true,
            ..Shown::default()
        })
    }

    fn table(&self, subscriptions: &[SubscriptionStatus]) -> String {
        let now = self.now;
        let mut table = Table::new([
            "NAME", "TOPIC", "STATE", "OWNER", "LAG", "POSITION", "AGE", "KEPT", "RECEIVED",
            "FINISHED", "PARKED", "HOLES",
        ]);
        for one in subscriptions {
            table.row([
                one.key.name.clone(),
                one.key.topic.to_string(),
                self.state(one).to_owned(),
                owner(one).unwrap_or_else(|| NONE.to_owned()),
                age(behind_since(one), now),
                one.position
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), ToString::to_string),
                age(one.position_at, now),
                self.bus.kept(one, now).map_or_else(
                    || NONE.to_owned(),
                    |kept| kept.left.map_or_else(|| "over".to_owned(), length),
                ),
                one.received.to_string(),
                one.finished.to_string(),
                one.parked.to_string(),
                one.holes.to_string(),
            ]);
        }
        for one in self.unknown(subscriptions) {
            let [name, topic, state] = [one.name, one.topic, one.state];
            let none = || NONE.to_owned();
            table.row([
                name,
                topic,
                state,
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
            ]);
        }
        table.text()
    }
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
mod tests;
