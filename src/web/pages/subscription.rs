//! One subscription, with all that is known of it.

use maud::{Markup, html};

use super::overview::{kept, without_name};
use super::pieces::{
    Tone, ago, count, grouped, maybe_ago, maybe_count, maybe_length, moment, none, sentence, state,
    tone, visible,
};
use super::{Body, Context, Part, Problem, chart, holes, letters};
use crate::status::{Subscription, lately};
use crate::store::{DeadLetterFilter, HoleFilter, StateChange, StoreError};
use crate::telemetry::exposition::{Exposition, Sample};
use crate::telemetry::metrics;

use super::super::picture::Picture;

/// Changes of state, dead letters, holes that are shown here; their own pages have all.
const CHANGES: u32 = 20;
const LETTERS: u32 = 5;
const HOLES: u32 = 5;

pub(super) async fn body(context: &Context<'_>, name: &str) -> Result<Body, Problem> {
    let picture = match &context.look.picture {
        Some(picture) => picture,
        None => {
            return Ok(Body {
                title: "Subscription".to_owned(),
                parts: Vec::new(),
            });
        }
    };
    let Some(one) = picture.overview.subscription(name) else {
        let known: Vec<&str> = picture
            .overview
            .subscriptions
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        return Err(Problem::missing(format!(
            "The store knows no subscription of this name; it knows: {}.",
            known.join(", ")
        )));
    };
    let now = context.now;
    let samples = context.look.history.samples(name);
    let more = More::read(context, one).await;
    let charts =
        html! { div.charts { (chart::lag(samples, now)) (chart::received(samples, now)) } };
    let mut parts = vec![
        Part::live("head", head(context, one)),
        Part::live("advice", advice(one)),
        Part::live("facts", facts(context, one)),
        Part::live("charts", charts),
        Part::live("handlers", handlers(picture, one)),
    ];
    match more {
        Ok(more) => {
            parts.push(Part::live("letters", more.letters(context, one)));
            parts.push(Part::live("holes", more.holes(context, one)));
            parts.push(Part::live("changes", more.changes(context)));
        }
        // The notice on top says it, where the whole store is away.
        Err(error) => {
            let why = html! { p.empty { "Dead letters, holes and changes cannot be read: " (sentence(&error.to_string())) } };
            parts.push(Part::live("changes", why));
        }
    }
    Ok(Body {
        title: one.name.clone(),
        parts,
    })
}

fn head(context: &Context<'_>, one: &Subscription) -> Markup {
    html! {
        div.title {
            h1 { (one.name) }
            (state(one))
            (buttons(context, one))
            p.sub { (visible(&one.topic)) }
        }
    }
}

/// What a person can do to it.
fn buttons(context: &Context<'_>, one: &Subscription) -> Markup {
    let address = format!("/subscriptions/{}", one.name);
    html! {
        @if one.key.is_some() {
            div.buttons {
                @if one.paused_at.is_some() {
                    form method="post" action={ (address) "/resume" } {
                        (context.form_token())
                        button.primary type="submit" { "Resume" }
                    }
                } @else {
                    a.button href={ (address) "/pause" } { "Pause…" }
                }
            }
        }
    }
}

fn advice(one: &Subscription) -> Markup {
    let kind = match (tone(one), one.needs_a_person) {
        (Tone::Bad, _) => Tone::Bad,
        (_, true) => Tone::Warn,
        (other, false) => other,
    };
    html! {
        @if !one.advice.is_empty() {
            div class={ "notice " (kind.class()) } {
                (kind.mark())
                div { @for line in &one.advice { p { (sentence(&without_name(line, &one.name))) } } }
            }
        }
    }
}

fn facts(context: &Context<'_>, one: &Subscription) -> Markup {
    let now = context.now;
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    let text = |value: &Option<String>| match value {
        Some(value) => html! { (visible(value)) },
        None => none(),
    };
    html! {
        dl.facts {
            (fact("Lag", maybe_length(one.lag)))
            (fact("Owner", text(&one.owner)))
            (fact("State since", maybe_ago(one.state_at, now)))
            (fact("Caught up", maybe_ago(one.caught_up_at, now)))
            (fact("Received", html! { (grouped(one.received)) }))
            (fact("Finished", html! { (grouped(one.finished)) }))
            (fact("In flight", maybe_count(one.in_flight)))
            (fact("Parked", count(one.parked, &format!("/dead-letters?subscription={}", one.name), Tone::Warn)))
            (fact("Holes", count(one.holes, &format!("/holes?subscription={}", one.name), Tone::Warn)))
            (fact("Position kept for", html! { div.kept { (kept(one, context.app.pictures.bus())) } }))
            (fact("Position", html! { @if let Some(id) = &one.position { code { (id) } } @else { (none()) } }))
            (fact("Event at it", maybe_ago(one.position_time, now)))
            (fact("Written", maybe_ago(one.position_at, now)))
            (fact("Epoch", html! { (one.epoch) }))
        }
    }
}

/// What its owner has counted of each handler since it began.
fn handlers(picture: &Picture, one: &Subscription) -> Markup {
    let Some(metrics) = picture.metrics_of_owner(one) else {
        return html! {};
    };
    let rows = HandlerFigures::all(metrics, &one.name);
    html! {
        @if !rows.is_empty() {
            section {
                h2 { "Handlers" }
                table.cards {
                    thead {
                        tr {
                            th scope="col" { "Handler" }
                            th scope="col" { "State" }
                            th.number scope="col" { "Handled" }
                            th.number scope="col" { "Retried" }
                            th.number scope="col" { "Rejected" }
                            th.number scope="col" { "Parked" }
                            th.number scope="col" { "Mean time of a call" }
                        }
                    }
                    tbody {
                        @for row in &rows {
                            @let tone = if row.down { Tone::Bad } else { Tone::Good };
                            tr {
                                th.subject scope="row" { (visible(&row.name)) }
                                td data-label="State" {
                                    span class={ "state " (tone.class()) } {
                                        (tone.mark()) span { @if row.down { "down" } @else { "up" } }
                                    }
                                }
                                td.number data-label="Handled" { (grouped(row.handled)) }
                                td.number data-label="Retried" { (grouped(row.retried)) }
                                td.number data-label="Rejected" { (grouped(row.rejected)) }
                                td.number data-label="Parked" { (grouped(row.parked)) }
                                td.number data-label="Mean time of a call" {
                                    @if let Some(mean) = row.mean { (milliseconds(mean)) } @else { (none()) }
                                }
                            }
                        }
                    }
                }
                p.small { "Counted by the worker that runs it now, since that began; at most 15 s old." }
            }
        }
    }
}

/// Seconds, in the unit that suits them.
fn milliseconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.0} s")
    }
}

/// What is counted of a handler.
#[derive(Debug, Default, PartialEq)]
struct HandlerFigures {
    name: String,
    down: bool,
    handled: u64,
    retried: u64,
    rejected: u64,
    parked: u64,
    /// Seconds.
    mean: Option<f64>,
}

impl HandlerFigures {
    fn all(metrics: &Exposition, subscription: &str) -> Vec<Self> {
        let samples = |metric: &metrics::Metric| {
            let family = metrics.family(metric.name);
            let samples = family.map_or(&[][..], |family| &family.samples);
            let ours = move |one: &&Sample| one.label("subscription") == Some(subscription);
            samples.iter().filter(ours)
        };
        let mut names: Vec<&str> = samples(&metrics::HANDLER_EVENTS)
            .chain(samples(&metrics::HANDLER_TIME))
            .chain(samples(&metrics::HANDLER_DOWN))
            .filter_map(|sample| sample.label("handler"))
            .collect();
        names.sort_unstable();
        names.dedup();
        let figures = |name: &&str| {
            let its = |metric| {
                samples(metric).filter(move |one: &&Sample| one.label("handler") == Some(*name))
            };
            let outcome = |word: &str| {
                let events = its(&metrics::HANDLER_EVENTS);
                whole(events.filter(|one| one.label("outcome") == Some(word)))
            };
            let time = |suffix: &str| -> f64 {
                let parts = its(&metrics::HANDLER_TIME).filter(|one| one.suffix == suffix);
                parts.map(|one| one.value).sum()
            };
            let calls = time("_count");
            Self {
                name: (*name).to_owned(),
                down: its(&metrics::HANDLER_DOWN).any(|one| one.value > 0.0),
                handled: outcome("handled"),
                retried: outcome("retried"),
                rejected: outcome("rejected"),
                parked: whole(its(&metrics::EVENTS_PARKED)),
                mean: (calls > 0.0).then(|| time("_sum") / calls),
            }
        };
        names.iter().map(figures).collect()
    }
}

/// The sum of counters.
fn whole<'a>(samples: impl Iterator<Item = &'a Sample>) -> u64 {
    let sum: f64 = samples.map(|one| one.value).sum();
    // Counters are whole numbers, and far from the limits of either type.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter"
    )]
    let sum = sum as u64;
    sum
}

/// What is not in the picture.
#[derive(Default)]
struct More {
    letters: Vec<crate::store::StoredDeadLetter>,
    holes: Vec<crate::store::StoredHole>,
    changes: Vec<StateChange>,
}

impl More {
    async fn read(context: &Context<'_>, one: &Subscription) -> Result<Self, StoreError> {
        let Some(key) = one.key.as_ref().filter(|_| context.look.away.is_none()) else {
            return Ok(Self::default());
        };
        let store = &context.app.store;
        let open = DeadLetterFilter {
            subscription: Some(one.name.clone()),
            state: Some("open".to_owned()),
            newest_first: true,
            bare: true,
            limit: LETTERS,
            ..DeadLetterFilter::default()
        };
        let unseen = HoleFilter {
            subscription: Some(one.name.clone()),
            open_only: true,
            ids: None,
            limit: Some(HOLES),
        };
        Ok(Self {
            letters: store.dead_letters(&open).await?,
            holes: store.holes(&unseen).await?,
            changes: lately(
                store
                    .state_changes(&key.org_id, Some(&one.name), CHANGES)
                    .await,
            )?,
        })
    }

    fn letters(&self, context: &Context<'_>, one: &Subscription) -> Markup {
        html! {
            @if !self.letters.is_empty() {
                section {
                    h2 { "Newest dead letters" }
                    (letters::table(&self.letters, false, context.now))
                    p.small { a href={ "/dead-letters?subscription=" (one.name) } { "All dead letters of " (one.name) } }
                }
            }
        }
    }

    fn holes(&self, context: &Context<'_>, one: &Subscription) -> Markup {
        html! {
            @if !self.holes.is_empty() {
                section {
                    h2 { "Holes" }
                    (holes::list(context, &self.holes))
                    p.small { a href={ "/holes?all=1&subscription=" (one.name) } { "All holes of " (one.name) } }
                }
            }
        }
    }

    fn changes(&self, context: &Context<'_>) -> Markup {
        html! {
            @if !self.changes.is_empty() {
                section {
                    h2 { "Last changes of state" }
                    table.cards {
                        thead {
                            tr {
                                th scope="col" { "When" }
                                th scope="col" { "State" }
                                th scope="col" { "Why" }
                                th scope="col" { "Worker" }
                                th scope="col" { "RPC ID" }
                            }
                        }
                        tbody { @for change in &self.changes { (changed(change, context)) } }
                    }
                }
            }
        }
    }
}

fn changed(change: &StateChange, context: &Context<'_>) -> Markup {
    html! {
        tr {
            td.when data-label="When" { (ago(change.at, context.now)) span.sub { (moment(change.at)) } }
            td data-label="State" { (visible(&change.state)) }
            td.wide data-label="Why" {
                @if let Some(detail) = &change.detail { (sentence(detail)) } @else { (none()) }
            }
            td data-label="Worker" {
                @if let Some(worker) = &change.worker { (visible(worker)) } @else { (none()) }
            }
            td data-label="RPC ID" {
                @if let Some(id) = &change.rpc_id { code.id { (visible(id)) } } @else { (none()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handlers_figures_are_those_of_its_subscription() {
        let text = "# TYPE orgstream_handler_events_total counter\n\
                    orgstream_handler_events_total{subscription=\"a\",handler=\"h\",outcome=\"handled\"} 7\n\
                    orgstream_handler_events_total{subscription=\"a\",handler=\"h\",outcome=\"retried\"} 2\n\
                    orgstream_handler_events_total{subscription=\"b\",handler=\"h\",outcome=\"handled\"} 9\n\
                    # TYPE orgstream_handler_seconds histogram\n\
                    orgstream_handler_seconds_bucket{subscription=\"a\",handler=\"h\",le=\"+Inf\"} 4\n\
                    orgstream_handler_seconds_sum{subscription=\"a\",handler=\"h\"} 2\n\
                    orgstream_handler_seconds_count{subscription=\"a\",handler=\"h\"} 4\n\
                    # TYPE orgstream_handler_down gauge\n\
                    orgstream_handler_down{subscription=\"a\",handler=\"h\"} 1\n";
        let metrics = Exposition::parse(text).unwrap();
        let expected = HandlerFigures {
            name: "h".into(),
            down: true,
            handled: 7,
            retried: 2,
            mean: Some(0.5),
            ..HandlerFigures::default()
        };
        assert_eq!(HandlerFigures::all(&metrics, "a"), [expected]);
        assert_eq!(milliseconds(0.5), "500 ms");
    }
}
