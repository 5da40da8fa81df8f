//! What was missed, and why.

use maud::{Markup, html};

use super::pieces::{Tone, ago, grouped, moment, sentence, visible};
use super::{Body, Context, Part, Problem};
use crate::event::ReplayId;
use crate::store::{HoleFilter, HoleKind, StoredHole};

use std::time::SystemTime;

/// Holes of a page, the newest.
const PAGE: u32 = 100;

/// Records of a gap that are shown.
const SHOWN_RECORDS: usize = 5;

pub(super) async fn body(
    context: &Context<'_>,
    subscription: Option<&str>,
    all: bool,
) -> Result<Body, Problem> {
    let filter = HoleFilter {
        subscription: subscription.map(str::to_owned),
        open_only: !all,
        ids: None,
        limit: Some(PAGE + 1),
    };
    let found = context.app.store.holes(&filter).await;
    let mut holes = found.map_err(|error| Problem::store(&error))?;
    let more = holes.len() > PAGE as usize;
    holes.truncate(PAGE as usize);
    let of = |all: bool| match (subscription, all) {
        (None, false) => "/holes".to_owned(),
        (None, true) => "/holes?all=1".to_owned(),
        (Some(name), false) => format!("/holes?subscription={name}"),
        (Some(name), true) => format!("/holes?all=1&subscription={name}"),
    };
    let heading = html! {
        div.intro {
            h1 { "Holes" @if let Some(name) = subscription { " of " (visible(name)) } }
            p.lead {
                "Stretches of the bus that were not seen (lost), and changes that came without their content (gap). Each is \
                 shown until a person acknowledges it."
            }
            p.choices {
                a href=(of(false)) aria-current=[(!all).then_some("page")] { "Not acknowledged" }
                a href=(of(true)) aria-current=[all.then_some("page")] { "All" }
                @if subscription.is_some() { a href="/holes" { "Of all subscriptions" } }
            }
        }
    };
    let content = html! {
        @if holes.is_empty() { p.empty { @if all { "No holes." } @else { "No holes wait for a person." } } }
        @else { (list(context, &holes)) }
        @if more {
            p.small { "These are the newest " (PAGE) "; " code { "orgstream holes list" } " shows all." }
        }
    };
    Ok(Body {
        title: "Holes".to_owned(),
        parts: vec![Part::fixed(heading), Part::live("holes", content)],
    })
}

/// Holes, each with its bounds and what to do.
pub(super) fn list(context: &Context<'_>, holes: &[StoredHole]) -> Markup {
    html! { ul.holes { @for hole in holes { (item(context, hole)) } } }
}

fn item(context: &Context<'_>, stored: &StoredHole) -> Markup {
    let hole = &stored.hole;
    let tone = match stored.acknowledged_at {
        Some(_) => Tone::Quiet,
        None => Tone::Warn,
    };
    html! {
        li class=(tone.class()) {
            div.what {
                p {
                    (tone.mark())
                    strong { @match hole.kind { HoleKind::Lost => "lost", HoleKind::Gap => "gap" } }
                    " " a href={ "/subscriptions/" (stored.subscription) } { (stored.subscription) }
                    span.sub { "hole " (stored.id) ", " (visible(&hole.reason)) ", recorded " (ago(stored.recorded_at, context.now)) }
                }
                p { (sentence(&hole.explanation)) }
                (bounds(stored))
            }
            @if let Some(at) = stored.acknowledged_at {
                p.sub { "acknowledged " (ago(at, context.now)) }
            } @else if stored.is_open_ended() {
                a.button href={ "/holes/" (stored.id) "/acknowledge" } { "Acknowledge…" }
            } @else {
                form method="post" action={ "/holes/" (stored.id) "/acknowledge" } {
                    (context.form_token())
                    button type="submit" { "Acknowledge" }
                }
            }
        }
    }
}

/// From where to where, as far as it is known.
pub(super) fn bounds(stored: &StoredHole) -> Markup {
    let hole = &stored.hole;
    html! {
        dl.bounds {
            @match hole.kind {
                HoleKind::Lost => {
                    dt { "from" } dd { (place(hole.from_time, hole.from.as_ref(), "no place that is known")) }
                    dt { "to" } dd { (place(hole.to_time, hole.to.as_ref(), "not known yet: nothing has come since")) }
                },
                HoleKind::Gap => {
                    dt { "at" } dd { (place(hole.to_time.or(hole.from_time), hole.from.as_ref(), "no place that is known")) }
                    @if let Some(entity) = &hole.entity { dt { "entity" } dd { (visible(entity)) } }
                    @if !hole.record_ids.is_empty() {
                        dt { "records" }
                        dd.break { (records(stored)) }
                    }
                },
            }
        }
    }
}

fn place(time: Option<SystemTime>, id: Option<&ReplayId>, unknown: &str) -> Markup {
    html! {
        @match (time, id) {
            (None, None) => (unknown),
            (time, id) => {
                @if let Some(time) = time { (moment(time)) " " }
                @if let Some(id) = id { span.sub-inline { "replay ID " code { (id.to_string()) } } }
            },
        }
    }
}

fn records(stored: &StoredHole) -> String {
    let ids = &stored.hole.record_ids;
    let first = &ids[..ids.len().min(SHOWN_RECORDS)];
    let more = stored.record_count.saturating_sub(first.len() as u64);
    let mut text = visible(&first.join(", "));
    if more > 0 {
        text.push_str(&format!(" and {} more", grouped(more)));
    }
    text
}
