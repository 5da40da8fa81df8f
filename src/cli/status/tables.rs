//! The tables of `orgstream status`.

use crate::cli::output::{NONE, Table, age, length};
use crate::status::Allocation;
use crate::status::{Overview, Subscription};

/// What is said where there is nothing to show yet.
pub(super) const EMPTY: &str = "the store knows no subscription yet: `orgstream run` makes them";

/// Subscriptions, and below them the workers; nothing of what there is none of.
pub(super) fn text(overview: &Overview) -> String {
    let mut text = String::new();
    if !overview.subscriptions.is_empty() {
        text.push_str(&subscriptions(overview));
    }
    if !overview.workers.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&workers(overview));
    }
    if let Some(allocation) = &overview.allocation {
        text.push('\n');
        text.push_str(&deliveries(allocation));
    }
    text
}

/// How much of the org's event deliveries is used.
fn deliveries(allocation: &Allocation) -> String {
    let Allocation { max, remaining, .. } = allocation;
    let used = max.saturating_sub(*remaining);
    let percent = allocation.used_percent();
    format!(
        "event deliveries of 24 hours, over all subscribers of the org: {used} of {max} used ({percent} %)\n"
    )
}

fn subscriptions(overview: &Overview) -> String {
    let mut table = Table::new([
        "NAME", "TOPIC", "STATE", "OWNER", "LAG", "POSITION", "AGE", "KEPT", "RECEIVED",
        "FINISHED", "PARKED", "HOLES",
    ]);
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
    for one in &overview.subscriptions {
        // What the store has not begun to keep has no figures.
        let count = |count: u64| match one.key {
            Some(_) => count.to_string(),
            None => NONE.to_owned(),
        };
        table.row([
            one.name.clone(),
            one.topic.clone(),
            one.state.clone(),
            or_none(&one.owner),
            one.lag.map_or_else(|| NONE.to_owned(), length),
            or_none(&one.position),
            age(one.position_at, overview.at),
            kept(one),
            count(one.received),
            count(one.finished),
            count(one.parked),
            count(one.holes),
        ]);
    }
    table.text()
}

/// How long the bus keeps what follows the position.
fn kept(one: &Subscription) -> String {
    match (one.kept_until, one.kept()) {
        (None, _) => NONE.to_owned(),
        (Some(_), None) => "over".to_owned(),
        (Some(_), Some(left)) => length(left),
    }
}

fn workers(overview: &Overview) -> String {
    let mut table = Table::new(["WORKER", "VERSION", "FOR", "RUNS"]);
    for one in &overview.workers {
        let runs = match one.runs.is_empty() {
            true => NONE.to_owned(),
            false => one.runs.join(", "),
        };
        table.row([
            one.name.clone(),
            one.version.clone(),
            age(Some(one.started_at), overview.at),
            runs,
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests;
