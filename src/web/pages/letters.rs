//! Dead letters, in pages.

use std::time::SystemTime;

use maud::{Markup, html};

use super::pieces::{Tone, ago, cut, encoded, none, sentence, visible};
use super::{Body, Context, Extent, Part, Problem};
use crate::letters::{event_name, state};
use crate::store::{DeadLetterFilter, StoredDeadLetter};

/// Letters of a page.
const PAGE: u32 = 50;

/// Most of an error that the list shows.
const LISTED_ERROR: usize = 140;

/// States that can be chosen, and what they are called.
const STATES: [(&str, &str); 4] = [
    ("open", "open"),
    ("handled", "handled"),
    ("discarded", "discarded"),
    ("any", "any"),
];

/// Which dead letters a page lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::web) struct Filter {
    /// Of one subscription.
    pub(in crate::web) subscription: Option<String>,
    /// Of one handler.
    pub(in crate::web) handler: Option<String>,
    /// For one reason.
    pub(in crate::web) reason: Option<String>,
    /// `open` where it is not said, `any` for all.
    pub(in crate::web) state: Option<String>,
    /// Behind this one.
    pub(in crate::web) behind: Option<i64>,
}

impl Filter {
    /// As the query of an address has it.
    pub(super) fn of(value: &impl Fn(&str) -> Option<String>) -> Self {
        Self {
            subscription: value("subscription"),
            handler: value("handler"),
            reason: value("reason"),
            state: value("state"),
            behind: value("behind").and_then(|id| id.parse().ok()),
        }
    }

    fn state(&self) -> &str {
        self.state.as_deref().unwrap_or("open")
    }

    /// Pairs of an address, without the place.
    pub(in crate::web) fn query(&self) -> String {
        let pairs = [
            ("subscription", &self.subscription),
            ("handler", &self.handler),
            ("reason", &self.reason),
            ("state", &self.state),
        ];
        let given = pairs
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))));
        given.collect::<Vec<_>>().join("&")
    }
}

pub(super) async fn body(
    context: &Context<'_>,
    filter: &Filter,
    extent: Extent,
) -> Result<Body, Problem> {
    let stored = DeadLetterFilter {
        subscription: filter.subscription.clone(),
        handler: filter.handler.clone(),
        reason: filter.reason.clone(),
        state: (filter.state() != "any").then(|| filter.state().to_owned()),
        id: None,
        behind: filter.behind,
        newest_first: filter.state() != "open",
        bare: true,
        // One more than shown, to know whether there are more.
        limit: PAGE + 1,
    };
    let found = context.app.store.dead_letters(&stored).await;
    let mut letters = found.map_err(|error| Problem::store(&error))?;
    let more = letters.len() > PAGE as usize;
    letters.truncate(PAGE as usize);
    let mut parts = Vec::new();
    if extent == Extent::Whole {
        parts.push(Part::fixed(html! {
            div.intro {
                h1 { "Dead letters" }
                p.lead {
                    "Events that could not be handled or decoded, kept until a person decides. Later events of the same \
                     records wait behind them."
                }
                (form(context, filter))
            }
        }));
    }
    parts.push(Part::live("letters", list(context, filter, &letters, more)));
    Ok(Body {
        title: "Dead letters".to_owned(),
        parts,
    })
}

fn form(context: &Context<'_>, filter: &Filter) -> Markup {
    let picture = context.look.picture.as_ref();
    let names: Vec<&str> = picture
        .iter()
        .flat_map(|picture| &picture.overview.subscriptions)
        .map(|one| one.name.as_str())
        .collect();
    html! {
        form.filter method="get" action="/dead-letters" {
            label { "Subscription"
                select name="subscription" {
                    option value="" { "all" }
                    @for name in &names {
                        option value=(name) selected[filter.subscription.as_deref() == Some(*name)] { (name) }
                    }
                }
            }
            label { "Handler"
                input name="handler" value=(filter.handler.as_deref().unwrap_or_default()) placeholder="all" size="14";
            }
            label { "Reason"
                input name="reason" value=(filter.reason.as_deref().unwrap_or_default()) placeholder="all" size="14";
            }
            label { "State"
                select name="state" {
                    @for (value, word) in STATES {
                        option value=(value) selected[filter.state() == value] { (word) }
                    }
                }
            }
            button type="submit" { "Show" }
        }
    }
}

fn list(
    context: &Context<'_>,
    filter: &Filter,
    letters: &[StoredDeadLetter],
    more: bool,
) -> Markup {
    let query = filter.query();
    html! {
        @if letters.is_empty() {
            p.empty { "No parked events" @if !query.is_empty() || filter.behind.is_some() { " that you name" } "." }
        } @else {
            @if filter.state() == "open" && filter.behind.is_none() {
                div.buttons { a.button href={ "/dead-letters/retry?" (query) } { "Retry all of these…" } }
            }
            (table(letters, true, context.now))
        }
        @if more || filter.behind.is_some() {
            nav.pages aria-label="Pages of the list" {
                @if filter.behind.is_some() { a href={ "/dead-letters?" (query) } { "To the first page" } }
                @if let Some(last) = letters.last().filter(|_| more) {
                    a href={ "/dead-letters?" (query) @if !query.is_empty() { "&" } "behind=" (last.id) } { "Next page" }
                }
            }
        }
    }
}

/// Letters as rows.
pub(super) fn table(letters: &[StoredDeadLetter], with_name: bool, now: SystemTime) -> Markup {
    html! {
        table.cards.letters {
            thead {
                tr {
                    th.number scope="col" { "Number" }
                    th scope="col" { "Event" }
                    @if with_name { th scope="col" { "Subscription" } }
                    th scope="col" { "Handler" }
                    th scope="col" { "Reason" }
                    th scope="col" { "Error" }
                    th.number scope="col" { "Attempts" }
                    th scope="col" { "Parked" }
                }
            }
            tbody { @for letter in letters { (row(letter, with_name, now)) } }
        }
    }
}

fn row(stored: &StoredDeadLetter, with_name: bool, now: SystemTime) -> Markup {
    let letter = &stored.letter;
    let address = format!("/dead-letters/{}", stored.id);
    html! {
        tr {
            th.number.subject scope="row" { a href=(address) { (stored.id) } }
            td data-label="Event" {
                span.break { (visible(&event_name(stored))) }
                @if stored.state != "open" || stored.retry_asked_at.is_some() { span.sub { (word(stored)) } }
            }
            @if with_name {
                td data-label="Subscription" {
                    a href={ "/subscriptions/" (stored.subscription) } { (stored.subscription) }
                }
            }
            td data-label="Handler" {
                @if let Some(handler) = &letter.handler { (visible(handler)) } @else { (none()) }
            }
            td data-label="Reason" { (visible(&letter.reason)) }
            td.wide data-label="Error" { (sentence(&cut(&letter.error, LISTED_ERROR))) }
            td.number data-label="Attempts" { (letter.attempts) }
            td data-label="Parked" { (ago(stored.parked_at, now)) }
        }
    }
}

/// Its state, as people are told.
pub(super) fn word(stored: &StoredDeadLetter) -> String {
    match (stored.state.as_str(), stored.retry_asked_at) {
        ("open", Some(_)) => "another attempt asked".to_owned(),
        _ => state(stored),
    }
}

/// How much a person should mind it.
pub(super) fn tone(stored: &StoredDeadLetter) -> Tone {
    match (stored.state.as_str(), stored.retry_asked_at) {
        ("open", None) => Tone::Warn,
        ("handled", _) => Tone::Good,
        _ => Tone::Quiet,
    }
}
