//! A subscription, as people see it.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::text::since;
use super::{Bus, advice, optional_time, seconds};
use crate::store::{SubscriptionKey, SubscriptionStatus};
use crate::subscription::Kept;

/// State of what the store does not give to those that ask for it.
const REFUSED: &str = "refused";
/// State of what a person paused, and nobody runs.
const PAUSED: &str = "paused by a person";
/// State of what nobody runs.
const WAITING: &str = "waiting for a worker";

/// Every state that [`Subscription::state`] may be: what its owner writes, and then what is said of one without
/// an owner.
pub const STATES: [&str; 9] = [
    "connecting",
    "live",
    "paused",
    "reconnecting",
    "blocked",
    "stopped",
    WAITING,
    PAUSED,
    REFUSED,
];

/// A subscription. Serialized, it is what `orgstream status --json` prints: its keys are part of the interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Subscription {
    /// Its row in the store; `None` for one that the store has not even begun to keep, because it refused it.
    #[serde(skip)]
    pub key: Option<SubscriptionKey>,
    /// Its name in the configuration.
    pub name: String,
    /// What it streams.
    pub topic: String,
    /// The org whose bus it is; empty where the store is not bound to one yet.
    pub org_id: String,
    /// One of [`STATES`].
    pub state: String,
    /// Why, and the cure, in the words of its owner; nothing where nobody runs it.
    pub detail: Option<String>,
    /// When its owner wrote the state.
    #[serde(serialize_with = "optional_time")]
    pub state_at: Option<SystemTime>,
    /// True where a worker runs it.
    pub held: bool,
    /// That worker: its dyno, or host and process.
    pub owner: Option<String>,
    /// The process that runs it, or ran it last.
    pub holder: Option<String>,
    /// When a person paused it.
    #[serde(serialize_with = "optional_time")]
    pub paused_at: Option<SystemTime>,
    /// Epoch of the last change of hands.
    pub epoch: i64,
    /// How far it is behind at most: as its worker posted some seconds ago, else the time since it was last live with
    /// nothing unfinished, or, where it never was, since what is at its position happened; `None` where none of it is
    /// known.
    #[serde(rename = "lag_seconds", serialize_with = "seconds")]
    pub lag: Option<Duration>,
    /// The replay ID up to which every event is finished, in hex.
    pub position: Option<String>,
    /// When the position was last written.
    #[serde(serialize_with = "optional_time")]
    pub position_at: Option<SystemTime>,
    /// When the event at the position was committed, or the keepalive received.
    #[serde(serialize_with = "optional_time")]
    pub position_time: Option<SystemTime>,
    /// Until when the bus keeps what follows the position.
    #[serde(serialize_with = "optional_time")]
    pub kept_until: Option<SystemTime>,
    /// How many seconds that is from now; negative where it is over.
    pub kept_seconds: Option<f64>,
    /// True where that is so short that a person should know.
    pub kept_is_short: bool,
    /// The last moment with a live stream and nothing unfinished.
    #[serde(serialize_with = "optional_time")]
    pub caught_up_at: Option<SystemTime>,
    /// Events received, in all.
    pub received: u64,
    /// Events finished, in all.
    pub finished: u64,
    /// Events in flight, as its worker posted some seconds ago.
    pub in_flight: Option<u64>,
    /// Open dead letters.
    pub parked: u64,
    /// Holes that nobody has acknowledged.
    pub holes: u64,
    /// Workers that have it in their configuration and are not given it.
    pub refused: Vec<RefusedTo>,
    /// True where it waits for a person.
    pub needs_a_person: bool,
    /// What to know and what to do, a sentence each, in the order of urgency. It may stand there, too, where
    /// nothing needs a person: a subscription that a person paused says how it is resumed.
    pub advice: Vec<String>,
}

/// A worker that has a subscription in its configuration and is not given it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedTo {
    /// Its name.
    pub worker: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// Who runs a subscription, if anybody does.
pub fn owner(one: &SubscriptionStatus) -> Option<String> {
    let holder = one.holder.as_deref().filter(|_| one.held)?;
    let short = || holder.chars().take(8).collect();
    Some(one.worker.clone().unwrap_or_else(short))
}

impl Subscription {
    /// One that has a row.
    pub(super) fn stored(
        one: &SubscriptionStatus,
        refused: &[RefusedTo],
        fleet_lives: bool,
        bus: Bus,
        now: SystemTime,
    ) -> Self {
        let kept = kept(one, bus, now);
        let kept_is_short = kept.is_some_and(|kept| kept.is_short(bus.warning));
        // What its owner last said counts for as long as it has one.
        let blocked = one.held && one.state == "blocked";
        let deserted = !one.held && one.paused_at.is_none() && !fleet_lives;
        let mut shown = Self {
            key: Some(one.key.clone()),
            name: one.key.name.clone(),
            topic: one.key.topic.to_string(),
            org_id: one.key.org_id.to_string(),
            state: state(one, !refused.is_empty()).to_owned(),
            detail: one.detail.clone().filter(|_| one.held),
            state_at: one.state_at,
            held: one.held,
            owner: owner(one),
            holder: one.holder.clone(),
            paused_at: one.paused_at,
            epoch: one.epoch,
            lag: one
                .caught_up_at
                .or(one.position_time)
                .map(|then| since(then, now)),
            position: one.position.as_ref().map(ToString::to_string),
            position_at: one.position_at,
            position_time: one.position_time,
            kept_until: kept.map(|kept| kept.until),
            kept_seconds: kept.map(|kept| match kept.left {
                Some(left) => left.as_secs_f64(),
                None => -kept.gone.as_secs_f64(),
            }),
            kept_is_short,
            caught_up_at: one.caught_up_at,
            received: one.received,
            finished: one.finished,
            in_flight: None,
            parked: one.parked,
            holes: one.holes,
            refused: refused.to_vec(),
            needs_a_person: blocked
                || deserted
                || one.parked > 0
                || one.holes > 0
                || !refused.is_empty()
                || kept_is_short,
            advice: Vec::new(),
        };
        shown.advice = advice::of(&shown);
        shown
    }

    /// One that the store refused before it had a row.
    pub(super) fn unknown(name: &str, topic: &str, org_id: String, refused: &[RefusedTo]) -> Self {
        let mut shown = Self {
            name: name.to_owned(),
            topic: topic.to_owned(),
            org_id,
            state: REFUSED.to_owned(),
            refused: refused.to_vec(),
            needs_a_person: true,
            ..Self::default()
        };
        shown.advice = advice::of(&shown);
        shown
    }

    /// How long the bus still keeps what follows the position: `None` where nothing is kept any more, or there is
    /// no position.
    pub fn kept(&self) -> Option<Duration> {
        let seconds = self.kept_seconds.filter(|seconds| *seconds > 0.0)?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The state for people: what the owner wrote, where there is one.
fn state(one: &SubscriptionStatus, refused: bool) -> &str {
    match (one.held, one.paused_at) {
        (true, _) => &one.state,
        (false, Some(_)) => PAUSED,
        (false, None) if refused => REFUSED,
        (false, None) => WAITING,
    }
}

/// How long what follows the position is kept. Written before its time was kept, the position is at least
/// as old as its row.
fn kept(one: &SubscriptionStatus, bus: Bus, now: SystemTime) -> Option<Kept> {
    one.position.as_ref()?;
    let place = one.position_time.or(one.position_at)?;
    Some(Kept::of(place, bus.retention, now))
}
