//! All subscriptions, and who runs them.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::pieces::{
    Tone, ago, bar, count, counted, grouped, maybe_count, maybe_length, moment, none, sentence,
    state, tone, visible,
};
use super::{Body, Context, Part, chart};
use crate::status::text::{length, since};
use crate::status::{Bus, Posted, Subscription};
use crate::store::AllocationReading;

use super::super::picture::{History, Picture};

/// A lag beyond which it is worth a look: longer than a healthy quiet topic's, whose keepalives come every
/// 270 s at the latest.
const LONG_LAG: Duration = Duration::from_secs(5 * 60);

/// What is used of the allocation when it is worth a look, and when it is critical.
const ALLOCATION_WARN: f64 = 0.8;
const ALLOCATION_BAD: f64 = 0.95;

pub(super) fn body(context: &Context<'_>) -> Body {
    let title = "Subscriptions".to_owned();
    let heading = Part::fixed(html! { h1.visually-hidden { "Subscriptions" } });
    let Some(picture) = &context.look.picture else {
        let nothing =
            html! { @if context.look.away.is_none() { p.empty { "Nothing is known yet." } } };
        return Body {
            title,
            parts: vec![heading, Part::live("subscriptions", nothing)],
        };
    };
    let (bus, now) = (context.app.pictures.bus(), context.now);
    let history = &context.look.history;
    let parts = vec![
        heading,
        Part::live("alerts", alerts(picture)),
        Part::live("figures", figures(picture, history, now)),
        Part::live("subscriptions", subscriptions(picture, history, bus, now)),
        Part::live("workers", workers(picture, now)),
        Part::live("deliveries", deliveries(&picture.readings, now)),
    ];
    Body { title, parts }
}

/// What a person should know, the worst first.
fn alerts(picture: &Picture) -> Markup {
    let all = &picture.overview.subscriptions;
    if all.is_empty() {
        return html! {};
    }
    // That all of them wait for a worker is said once.
    let deserted = picture.overview.workers.is_empty();
    let (waiting, mut told): (Vec<_>, Vec<_>) = all
        .iter()
        .map(|one| (one, lines(one, deserted)))
        .partition(|(one, lines)| lines.is_empty() && is_waiting(one));
    let waiting: Vec<&Subscription> = waiting.into_iter().map(|(one, _)| one).collect();
    told.retain(|(_, lines)| !lines.is_empty());
    told.sort_by_key(|(one, _)| (!one.needs_a_person, tone(one) != Tone::Bad));
    let needed = all.iter().filter(|one| one.needs_a_person).count();
    html! {
        @if needed == 0 {
            p.all-well { (Tone::Good.mark()) "Nothing needs a person." }
        } @else {
            h2.needs { (Tone::Bad.mark()) (needs(needed)) }
        }
        @if needed > 0 || !told.is_empty() {
            ul.alerts {
                @if deserted && needed > 0 { (nobody(&waiting)) }
                @for (one, lines) in &told { (alert(one, lines)) }
            }
        }
    }
}

fn is_waiting(one: &Subscription) -> bool {
    !one.held && one.paused_at.is_none() && one.refused.is_empty()
}

/// What is to be said of a subscription; without the first line, that it waits for a worker, where that is said of
/// all.
fn lines(one: &Subscription, deserted: bool) -> &[String] {
    let said = usize::from(deserted && is_waiting(one));
    one.advice.get(said..).unwrap_or_default()
}

/// That no worker lives, which those wait for that have nothing else to say.
fn nobody(waiting: &[&Subscription]) -> Markup {
    html! {
        li.bad {
            (Tone::Bad.mark())
            div {
                span.subject { "No worker lives" }
                p {
                    "Nothing is streamed until one does: " code { "orgstream run" } " is one, and on Heroku "
                    code { "heroku ps:scale worker=1" } " starts it."
                }
                @if !waiting.is_empty() {
                    p.names {
                        "Waiting: "
                        @for (at, one) in waiting.iter().enumerate() {
                            @if at > 0 { ", " }
                            a href={ "/subscriptions/" (one.name) } { (one.name) }
                        }
                    }
                }
            }
        }
    }
}

fn needs(count: usize) -> String {
    match count {
        1 => "1 subscription needs a person".to_owned(),
        _ => format!("{count} subscriptions need a person"),
    }
}

/// All that is to be said of one subscription.
fn alert(one: &Subscription, lines: &[String]) -> Markup {
    let kind = match (tone(one), one.needs_a_person) {
        (Tone::Bad, _) => Tone::Bad,
        (_, true) => Tone::Warn,
        (other, false) => other,
    };
    html! {
        li class=(kind.class()) {
            (kind.mark())
            div {
                a.subject href={ "/subscriptions/" (one.name) } { (one.name) }
                @for line in lines { p { (sentence(&without_name(line, &one.name))) } }
            }
        }
    }
}

/// Advice begins with the subscription's name, which stands above it here: the rest, as a sentence of its own.
pub(super) fn without_name(line: &str, name: &str) -> String {
    let rest = line.strip_prefix(name).unwrap_or(line);
    let rest = rest.trim_start_matches([':', ' ']);
    let rest = rest.strip_prefix("is ").unwrap_or(rest);
    let mut letters = rest.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// A few numbers that say it all.
fn figures(picture: &Picture, history: &History, now: SystemTime) -> Markup {
    let all = &picture.overview.subscriptions;
    if all.is_empty() {
        return html! {};
    }
    let live = all.iter().filter(|one| tone(one) == Tone::Good).count();
    let lag = all
        .iter()
        .filter(|one| one.paused_at.is_none())
        .filter_map(|one| one.lag)
        .max();
    let parked: u64 = all.iter().map(|one| one.parked).sum();
    let holes: u64 = all.iter().map(|one| one.holes).sum();
    let samples = all.iter().flat_map(|one| history.samples(&one.name));
    let hour = samples.filter(|sample| since(sample.at, now) < Duration::from_secs(3600));
    let received: u64 = hour.map(|sample| sample.received).sum();
    html! {
        dl.figures {
            (figure("Live", &html! { (live) small { " of " (all.len()) } }))
            (figure("Greatest lag", &maybe_length(lag)))
            (figure("Received, 1 h", &html! { (grouped(received)) }))
            (figure("Parked", &count(parked, "/dead-letters", Tone::Warn)))
            (figure("Holes", &count(holes, "/holes", Tone::Warn)))
            @if let Some(used) = picture.readings.last().map(Used::of) {
                (figure("Deliveries used", &html! { (used.percent()) small { " %" } }))
            }
        }
    }
}

fn figure(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn subscriptions(picture: &Picture, history: &History, bus: Bus, now: SystemTime) -> Markup {
    let all = &picture.overview.subscriptions;
    if all.is_empty() {
        return html! {
            div.empty {
                h2 { "No subscription yet" }
                p { "A worker makes them when it first runs: " code { "orgstream run" } ", with the subscriptions in its \
                     configuration. They appear here by themselves." }
            }
        };
    }
    html! {
        table.cards.subscriptions {
            thead {
                tr {
                    th scope="col" { "Subscription" }
                    th scope="col" { "State" }
                    th.number scope="col" { "Lag" }
                    th scope="col" { "Last 6 hours" }
                    th scope="col" { "Position kept for" }
                    th.number scope="col" { "Received" }
                    th.number scope="col" { "In flight" }
                    th.number scope="col" { "Parked" }
                    th.number scope="col" { "Holes" }
                }
            }
            tbody { @for one in all { (row(history, one, bus, now)) } }
        }
    }
}

fn row(history: &History, one: &Subscription, bus: Bus, now: SystemTime) -> Markup {
    let lag = one.lag;
    let long = lag.is_some_and(|lag| lag > LONG_LAG) && one.paused_at.is_none();
    html! {
        tr class=(tone(one).class()) {
            th.subject scope="row" {
                a href={ "/subscriptions/" (one.name) } { (one.name) }
                span.sub { (visible(&one.topic)) }
            }
            td data-label="State" {
                (state(one))
                @if let Some(owner) = &one.owner { span.sub { (visible(owner)) } }
            }
            td.number data-label="Lag" { span.long[long] { (maybe_length(lag)) } }
            td.chart data-label="Last 6 hours" { (chart::spark(history.samples(&one.name), now)) }
            td.kept data-label="Position kept for" { (kept(one, bus)) }
            td.number data-label="Received" { (grouped(one.received)) }
            td.number data-label="In flight" { (maybe_count(one.in_flight)) }
            td.number data-label="Parked" {
                (count(one.parked, &format!("/dead-letters?subscription={}", one.name), Tone::Warn))
            }
            td.number data-label="Holes" {
                (count(one.holes, &format!("/holes?subscription={}", one.name), Tone::Warn))
            }
        }
    }
}

/// How long the bus keeps what follows the position, and how much of that time is used up.
pub(super) fn kept(one: &Subscription, bus: Bus) -> Markup {
    let Some(seconds) = one.kept_seconds else {
        return none();
    };
    let whole = bus.retention.as_secs_f64().max(1.0);
    let (tone, words) = match one.kept() {
        Some(kept) if one.kept_is_short => (Tone::Warn, length(kept)),
        Some(kept) => (Tone::Quiet, length(kept)),
        None => (Tone::Bad, "over".to_owned()),
    };
    let used = 1.0 - seconds / whole;
    let mark = 1.0 - bus.warning.as_secs_f64() / whole;
    let label = format!(
        "{:.0} % of the time that the bus keeps events is used up",
        used.clamp(0.0, 1.0) * 100.0
    );
    html! {
        span class={ "length " (tone.class()) } { (words) }
        (bar(used, Some(mark), tone, &label))
    }
}

/// What a reading says.
pub(super) struct Used {
    used: u64,
    max: u64,
}

impl Used {
    /// Of one reading.
    pub(super) fn of(reading: &AllocationReading) -> Self {
        Self {
            used: reading.max.saturating_sub(reading.remaining),
            max: reading.max,
        }
    }

    fn part(&self) -> f64 {
        self.used as f64 / self.max.max(1) as f64
    }

    fn percent(&self) -> String {
        format!("{:.0}", (self.part() * 100.0).floor())
    }

    fn tone(&self) -> Tone {
        match self.part() {
            part if part >= ALLOCATION_BAD => Tone::Bad,
            part if part >= ALLOCATION_WARN => Tone::Warn,
            _ => Tone::Quiet,
        }
    }
}

fn deliveries(readings: &[AllocationReading], now: SystemTime) -> Markup {
    let Some(last) = readings.last() else {
        return html! {
            section {
                h2 { "Deliveries of the org, 24 hours" }
                p.empty { "Not known: no worker has read the org's limits lately." }
            }
        };
    };
    let used = Used::of(last);
    let label = format!("{} % of the allocation is used", used.percent());
    html! {
        section {
            h2 { "Deliveries of the org, 24 hours" }
            div.allocation {
                p.big { (grouped(used.used)) small { " of " (grouped(used.max)) } }
                (bar(used.part(), Some(ALLOCATION_WARN), used.tone(), &label))
                p {
                    @if last.remaining == 0 {
                        (Tone::Bad.mark())
                        " Used up: the org delivers nothing to anybody until older deliveries are 24 hours past."
                    } @else if let Some(at) = AllocationReading::exhausted_at(readings) {
                        (Tone::Warn.mark())
                        " Used up in " (length(since(now, at))) ", at " (moment(at)) ", if it goes on as in the last hour."
                    } @else {
                        (grouped(last.remaining)) " left; enough for a day at the pace of the last hour."
                    }
                }
                (chart::allocation(readings, now))
                p.small { "Over all subscribers of the org. The line shows the last 24 hours; read " (ago(last.at, now)) "." }
            }
        }
    }
}

fn workers(picture: &Picture, now: SystemTime) -> Markup {
    let all = &picture.overview.workers;
    html! {
        section {
            h2 { "Workers" }
            @if all.is_empty() {
                p.empty {
                    "No worker lives. " code { "orgstream run" } " is one: on Heroku "
                    code { "heroku ps:scale worker=1" } " starts it."
                }
            } @else {
                table.cards {
                    thead {
                        tr {
                            th scope="col" { "Worker" }
                            th scope="col" { "Version" }
                            th scope="col" { "Since" }
                            th scope="col" { "Heard of" }
                            th scope="col" { "Runs" }
                        }
                    }
                    tbody {
                        @for one in all {
                            tr {
                                th.subject scope="row" { (visible(&one.name)) }
                                td data-label="Version" { (visible(&one.version)) }
                                td data-label="Since" { (ago(one.started_at, now)) }
                                td data-label="Heard of" { (ago(one.seen_at, now)) (silent(picture, &one.holder, now)) }
                                td data-label="Runs" { (counted(one.runs.len() as u64, "subscription")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// That a worker lives and posts no metrics.
fn silent(picture: &Picture, holder: &str, now: SystemTime) -> Markup {
    let is_its = |posted: &&Posted| posted.holder == holder;
    let old = picture.posted.iter().find(is_its);
    html! {
        @if let Some(posted) = old.filter(|posted| posted.metrics.is_none()) {
            span.sub { "its last metrics are " (length(since(posted.at, now))) " old" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_loses_the_name_that_stands_above_it() {
        for (line, rest) in [
            ("a: 1 event parked", "1 event parked"),
            ("a is blocked: mend it", "Blocked: mend it"),
            ("a waits for a worker", "Waits for a worker"),
            ("other words", "Other words"),
        ] {
            assert_eq!(without_name(line, "a"), rest);
        }
    }
}
