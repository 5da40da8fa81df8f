//! One dead letter: what it is, what went wrong, and what can be done.

use maud::{Markup, html};

use super::letters::{tone, word};
use super::pieces::{ago, grouped, none, sentence, visible};
use super::{Body, Context, Extent, Part, Problem};
use crate::letters::json::indented;
use crate::letters::shown::{self, Shapes};
use crate::letters::{decoded, event_name, hex_lines};
use crate::store::{DeadLetterFilter, StoredDeadLetter};

/// Most of an event that a page shows, in bytes: a browser slows down beyond.
const SHOWN: usize = 256 * 1024;

pub(super) async fn body(context: &Context<'_>, id: i64, extent: Extent) -> Result<Body, Problem> {
    let store = &context.app.store;
    let found = match extent {
        Extent::Whole => store.dead_letter(id).await,
        // What changes by itself shows nothing of the payload, which may be large.
        Extent::Live => {
            let bare = DeadLetterFilter {
                id: Some(id),
                bare: true,
                limit: 1,
                ..DeadLetterFilter::default()
            };
            let found = store.dead_letters(&bare).await;
            found.map(|all| all.into_iter().next())
        }
    };
    let Some(stored) = found.map_err(|error| Problem::store(&error))? else {
        return Err(Problem::missing(format!(
            "There is no parked event {id}; it may have been pruned after it was handled or discarded."
        )));
    };
    let mut parts = vec![
        Part::live("head", head(context, &stored)),
        Part::live("error", error(&stored)),
        Part::live("facts", facts(context, &stored)),
    ];
    if extent == Extent::Whole {
        parts.push(Part::fixed(event(context, &stored).await?));
    }
    Ok(Body {
        title: format!("Dead letter {id}"),
        parts,
    })
}

fn head(context: &Context<'_>, stored: &StoredDeadLetter) -> Markup {
    let tone = tone(stored);
    html! {
        div.title {
            h1 { "Dead letter " (stored.id) }
            span class={ "state " (tone.class()) } { (tone.mark()) span { (word(stored)) } }
            (buttons(context, stored))
            p.sub { (visible(&event_name(stored))) " · " (visible(&stored.topic)) }
        }
    }
}

fn buttons(context: &Context<'_>, stored: &StoredDeadLetter) -> Markup {
    let address = format!("/dead-letters/{}", stored.id);
    html! {
        @if stored.state == "open" {
            div.buttons {
                @if stored.retry_asked_at.is_none() {
                    form method="post" action={ (address) "/retry" } {
                        (context.form_token())
                        button.primary type="submit" { "Retry" }
                    }
                } @else {
                    form method="post" action={ (address) "/withdraw" } {
                        (context.form_token())
                        button type="submit" { "Take the retry back" }
                    }
                }
                a.button.danger href={ (address) "/discard" } { "Discard…" }
            }
        }
    }
}

fn error(stored: &StoredDeadLetter) -> Markup {
    let letter = &stored.letter;
    let tone = tone(stored);
    html! {
        div class={ "notice " (tone.class()) } {
            (tone.mark())
            div {
                p {
                    strong { (visible(&letter.reason)) }
                    @match letter.attempts { 0 => {}, 1 => " after 1 attempt", n => { " after " (n) " attempts" } }
                }
                p.error { (sentence(&letter.error)) }
            }
        }
    }
}

fn facts(context: &Context<'_>, stored: &StoredDeadLetter) -> Markup {
    let (letter, now) = (&stored.letter, context.now);
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    let text = |value: Option<&str>| match value {
        Some(value) => html! { (visible(value)) },
        None => none(),
    };
    let id = |value: Option<String>| match value {
        Some(value) => html! { code.break { (visible(&value)) } },
        None => none(),
    };
    html! {
        dl.facts {
            (fact("Subscription", html! {
                a href={ "/subscriptions/" (stored.subscription) } { (stored.subscription) }
            }))
            (fact("Handler", text(letter.handler.as_deref())))
            (fact("Parked", ago(stored.parked_at, now)))
            (fact("Received", ago(letter.received_at, now)))
            @if let Some(at) = stored.retry_asked_at { (fact("Attempt asked", ago(at, now))) }
            @if let Some(at) = stored.resolved_at { (fact("Resolved", ago(at, now))) }
            (fact("Records", html! {
                @if letter.record_ids.is_empty() { (none()) }
                @else { span.break { (visible(&letter.record_ids.join(", "))) } }
            }))
            (fact("Record name", text(letter.record_name.as_deref())))
            (fact("Event ID", id(Some(letter.identity.to_string()))))
            (fact("Event UUID", id(Some(letter.event_uuid.clone()))))
            (fact("Replay ID", id(letter.replay_id.as_ref().map(ToString::to_string))))
            (fact("Schema ID", id(Some(letter.schema_id.to_string()))))
            @if let Some(unit) = &letter.unit { (fact("Transaction", id(Some(unit.clone())))) }
        }
    }
}

/// The event as its handler is shown it, or why not, and its bytes where they may be shown.
async fn event(context: &Context<'_>, stored: &StoredDeadLetter) -> Result<Markup, Problem> {
    let schema = context
        .app
        .store
        .load_schema(&stored.letter.schema_id)
        .await;
    let schema = schema.map_err(|error| Problem::store(&error))?;
    let shapes = context.app.configured.shapes(stored);
    let data = shapes.as_ref().map_err(String::clone);
    let data = data.and_then(|shapes| decoded(schema.as_deref(), stored, shapes));
    let masked = shapes
        .as_ref()
        .is_ok_and(|shapes: &Shapes| !shapes.show_all());
    let bytes_long = html! {
        @if stored.unreadable.is_none() {
            p.small { "Payload: " (grouped(stored.letter.payload.len() as u64)) " bytes." }
        }
    };
    Ok(match data {
        Ok(data) => {
            let text = visible(&indented(data.get()));
            let (shown, more) = bounded(&text);
            html! {
                section {
                    h2 { "Event" }
                    @if masked { p.small { "As its handler is shown it: the configuration hides a part of it." } }
                    pre { code { (shown) } }
                    @if more { (at_the_terminal(stored)) }
                    (bytes_long)
                }
            }
        }
        Err(why) => {
            let bytes = shown::bytes(stored, shapes.as_ref());
            html! {
                section {
                    h2 { "Event" }
                    p { "Not shown: " (sentence(&why)) }
                    @match bytes {
                        Ok(bytes) => {
                            @let text = hex_lines(&bytes[..bytes.len().min(SHOWN / 8)]);
                            pre { code { (text) } }
                            @if bytes.len() > SHOWN / 8 { (at_the_terminal(stored)) }
                        },
                        Err(other) if other != why => p { (sentence(&other)) },
                        Err(_) => {},
                    }
                    (bytes_long)
                }
            }
        }
    })
}

fn at_the_terminal(stored: &StoredDeadLetter) -> Markup {
    html! { p.small { "There is more of it: " code { "orgstream dead-letters show " (stored.id) } " prints all." } }
}

/// As much as a page shows.
fn bounded(text: &str) -> (&str, bool) {
    let end = text.floor_char_boundary(SHOWN);
    (&text[..end], end < text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_event_is_cut_between_characters() {
        let text = "é".repeat(SHOWN);
        let (shown, more) = bounded(&text);
        assert!(more && shown.len() <= SHOWN && shown.chars().all(|c| c == 'é'));
        assert_eq!(bounded("short"), ("short", false));
    }
}
