//! What to say of a subscription beyond its figures: why it is not live, and what a person does about it.

use super::Subscription;
use super::text::{counted, one_line};
use crate::event::rfc3339;

/// All there is to say, the most urgent first.
pub(super) fn of(one: &Subscription) -> Vec<String> {
    let mut lines = Vec::new();
    if one.key.is_some() {
        lines.extend(who_runs_it(one));
        lines.extend(detail(one));
        lines.extend(parked(one));
        lines.extend(holes(one));
        lines.extend(kept(one));
    }
    let name = &one.name;
    lines.extend(one.refused.iter().map(|to| {
        let (worker, why) = (&to.worker, one_line(&to.why));
        format!("{name} is refused to {worker}: {why}")
    }));
    lines
}

fn who_runs_it(one: &Subscription) -> Option<String> {
    let name = &one.name;
    match (one.paused_at, &one.owner) {
        (Some(_), Some(owner)) => Some(format!(
            "{name}: a person paused it, and {owner} has not let it go yet"
        )),
        (Some(_), None) => Some(format!(
            "{name} is paused by a person: `orgstream resume {name}` lets it run"
        )),
        (None, None) => Some(format!(
            "{name} waits for a worker: `orgstream run` with {name} in its configuration takes it over"
        )),
        (None, Some(_)) => None,
    }
}

fn detail(one: &Subscription) -> Option<String> {
    let detail = one.detail.as_ref()?;
    Some(format!(
        "{} is {}: {}",
        one.name,
        one.state,
        one_line(detail)
    ))
}

fn parked(one: &Subscription) -> Option<String> {
    let name = &one.name;
    (one.parked > 0).then(|| {
        let events = counted(one.parked, "event");
        format!("{name}: {events} parked; see `orgstream dead-letters list --subscription {name}`")
    })
}

fn holes(one: &Subscription) -> Option<String> {
    let name = &one.name;
    (one.holes > 0).then(|| {
        let holes = counted(one.holes, "hole");
        format!(
            "{name}: {holes}, where events were not seen or came without their content; see \
             `orgstream holes list --subscription {name}`"
        )
    })
}

fn kept(one: &Subscription) -> Option<String> {
    let until = one.kept_until.filter(|_| one.kept_is_short).map(rfc3339)?;
    let name = &one.name;
    Some(match one.kept() {
        Some(_) => format!(
            "{name}: the bus keeps what follows its position until {until}: unless the position moves before, \
             events are lost"
        ),
        None => format!(
            "{name}: the bus kept what follows its position until {until}: events may be lost already"
        ),
    })
}
