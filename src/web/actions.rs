//! What the buttons do: the same as the commands of the same names, with the same words where it cannot be done.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use maud::html;
use tracing::info;

use super::App;
use super::auth::Visitor;
use super::gate::{Form, see_other};
use super::pages::confirm::{Question, ask};
use super::pages::{Filter, Problem, Section, View};
use crate::event::OrgId;
use crate::letters;
use crate::letters::discard::{Plan, events};
use crate::store::{HoleFilter, LetterSelection, LetterSummary, StoreError};

type Outcome = Result<Response, Problem>;

/// A request's parts that every action needs.
type Asked = (State<Arc<App>>, Extension<Visitor>, HeaderMap);

/// The store's answer to something that changes nothing.
fn read<T>(answer: Result<T, StoreError>) -> Result<T, Problem> {
    answer.map_err(|error| Problem::store(&error))
}

/// The store's answer to something that changes something.
fn done<T>(answer: Result<T, StoreError>) -> Result<T, Problem> {
    answer.map_err(|error| Problem::perhaps_done(&error))
}

// Subscriptions.

/// Asks whether a subscription is to rest.
pub(super) async fn ask_pause(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(name): Path<String>,
) -> Outcome {
    let (_, name) = subscription(&app, &name).await?;
    let address = format!("/subscriptions/{name}");
    let retention = crate::status::text::length(app.pictures.bus().retention);
    let question = Question {
        title: format!("Pause {name}?"),
        what_follows: vec![
            html! { "Whoever runs it finishes what is in flight, stores the position and lets it go. No worker takes it \
            over until it is resumed, after a restart neither." },
            html! { "Events wait on the bus meanwhile, which keeps them for " (retention) ": what is older when it is \
            resumed is lost, and recorded as a hole." },
        ],
        action: format!("{address}/pause"),
        fields: Vec::new(),
        yes: "Pause it",
        for_good: false,
        back: address,
        section: Section::Subscriptions,
    };
    Ok(ask(&app, &visitor, question).await)
}

/// Lets a subscription rest.
pub(super) async fn pause(
    (State(app), Extension(visitor), headers): Asked,
    Path(name): Path<String>,
    body: Bytes,
) -> Outcome {
    Form::checked(&app, &visitor, &headers, &body)?;
    let (org_id, name) = subscription(&app, &name).await?;
    let known = done(app.store.pause(&org_id, &name).await)?;
    settled(&app, known, &name, "paused").await
}

/// Lets it run again.
pub(super) async fn resume(
    (State(app), Extension(visitor), headers): Asked,
    Path(name): Path<String>,
    body: Bytes,
) -> Outcome {
    Form::checked(&app, &visitor, &headers, &body)?;
    let (org_id, name) = subscription(&app, &name).await?;
    let known = done(app.store.resume(&org_id, &name).await)?;
    settled(&app, known, &name, "resumed").await
}

async fn settled(app: &App, known: bool, name: &str, what: &str) -> Outcome {
    if !known {
        return Err(no_subscription(name));
    }
    info!(subscription = name, "{what} at the status page");
    app.pictures.forget().await;
    Ok(see_other(&format!("/subscriptions/{name}")))
}

/// The org, and the name as the store has it: what comes from an address goes into none.
async fn subscription(app: &App, name: &str) -> Result<(OrgId, String), Problem> {
    let all = read(app.store.subscriptions().await)?;
    let found = all.into_iter().find(|one| one.key.name == name);
    let key = found
        .map(|one| one.key)
        .ok_or_else(|| no_subscription(name))?;
    Ok((key.org_id, key.name))
}

fn no_subscription(name: &str) -> Problem {
    Problem::missing(format!("The store knows no subscription `{name}`."))
}

// Dead letters.

/// Asks for another attempt at one.
pub(super) async fn retry(
    (State(app), Extension(visitor), headers): Asked,
    Path(id): Path<i64>,
    body: Bytes,
) -> Outcome {
    Form::checked(&app, &visitor, &headers, &body)?;
    let letter = open_letter(&app, id).await?;
    if app.configured.has_no_handler(&letter) {
        return Err(Problem::refused(letters::orphan(&letter)));
    }
    let asked = done(app.store.ask_retry(&these(&[id])).await)?;
    info!(letters = ?asked, "another attempt asked at the status page");
    app.pictures.forget().await;
    Ok(see_other(&format!("/dead-letters/{id}")))
}

/// Takes that back.
pub(super) async fn withdraw(
    (State(app), Extension(visitor), headers): Asked,
    Path(id): Path<i64>,
    body: Bytes,
) -> Outcome {
    Form::checked(&app, &visitor, &headers, &body)?;
    done(app.store.withdraw_retry(&[id]).await)?;
    app.pictures.forget().await;
    Ok(see_other(&format!("/dead-letters/{id}")))
}

/// Asks whether one is to be given up, and says what follows.
pub(super) async fn ask_discard(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<i64>,
) -> Outcome {
    let letter = open_letter(&app, id).await?;
    let plan = read(Plan::of(&*app.store, &[letter], &app.configured.unordered()).await)?;
    let address = format!("/dead-letters/{id}");
    let mut what_follows = vec![html! { (plan.what()) "." }];
    if let Some(company) = plan.company() {
        what_follows.push(html! { (company) "." });
    }
    what_follows.push(html! {
        "Nobody is handed them any more. Their rows stay, marked as discarded, until " code { "[retention]" } " prunes them."
    });
    let numbers: Vec<String> = plan.ids.iter().map(ToString::to_string).collect();
    let question = Question {
        title: format!("Discard dead letter {id}?"),
        what_follows,
        action: format!("{address}/discard"),
        // What was said is what is done.
        fields: vec![("ids", numbers.join(","))],
        yes: "Discard for good",
        for_good: true,
        back: address,
        section: Section::Letters,
    };
    Ok(ask(&app, &visitor, question).await)
}

/// Gives one up.
pub(super) async fn discard(
    (State(app), Extension(visitor), headers): Asked,
    Path(id): Path<i64>,
    body: Bytes,
) -> Outcome {
    let form = Form::checked(&app, &visitor, &headers, &body)?;
    let said = numbers(form.get("ids"));
    let letter = open_letter(&app, id).await?;
    let plan = read(Plan::of(&*app.store, &[letter], &app.configured.unordered()).await)?;
    if !said.is_empty() && plan.ids.iter().any(|id| !said.contains(id)) {
        return Err(Problem::refused(format!(
            "More events of the same transaction were parked since you were asked. Look at dead letter {id} again."
        )));
    }
    let discarded = done(plan.carry_out(&*app.store).await)?;
    info!(letters = ?discarded, "discarded at the status page");
    app.pictures.forget().await;
    Ok(see_other(&format!("/dead-letters/{id}")))
}

/// Asks whether all of a list are to be tried again.
pub(super) async fn ask_retry_all(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    uri: Uri,
) -> Outcome {
    let Some(View::Letters(filter)) = View::of("/dead-letters", uri.query()) else {
        return Err(Problem::not_found());
    };
    let (chosen, orphans) = retried(&app, &filter).await?;
    let back = format!("/dead-letters?{}", filter.query());
    if chosen.is_empty() {
        return Err(Problem::refused(match orphans {
            0 => "No parked events are open that you name.".to_owned(),
            _ => {
                "None of them has a handler any more: configure one of that name, or discard them."
                    .to_owned()
            }
        }));
    }
    let mut what_follows = vec![html! {
        "Whoever runs their subscription hands " (events(chosen.len())) " to the same handler once more, oldest first and \
         in the order of their records. Nothing is delivered a second time: they come out of the database."
    }];
    if orphans > 0 {
        what_follows.push(html! { (events(orphans)) " beside them are not tried, because their handler is configured no more." });
    }
    let field = |name, value: &Option<String>| Some((name, value.clone()?));
    let fields = [
        field("subscription", &filter.subscription),
        field("handler", &filter.handler),
        field("reason", &filter.reason),
    ];
    let question = Question {
        title: format!("Retry {}?", events(chosen.len())),
        what_follows,
        action: "/dead-letters/retry".to_owned(),
        fields: fields.into_iter().flatten().collect(),
        yes: "Retry them",
        for_good: false,
        back,
        section: Section::Letters,
    };
    Ok(ask(&app, &visitor, question).await)
}

/// Asks for another attempt at all of a list.
pub(super) async fn retry_all(
    (State(app), Extension(visitor), headers): Asked,
    body: Bytes,
) -> Outcome {
    let form = Form::checked(&app, &visitor, &headers, &body)?;
    let value = |name| form.get(name).map(str::to_owned);
    let filter = Filter {
        subscription: value("subscription"),
        handler: value("handler"),
        reason: value("reason"),
        ..Filter::default()
    };
    let (chosen, _) = retried(&app, &filter).await?;
    if !chosen.is_empty() {
        let asked = done(app.store.ask_retry(&these(&chosen)).await)?;
        info!(
            letters = asked.len(),
            "another attempt asked at the status page"
        );
    }
    app.pictures.forget().await;
    Ok(see_other(&format!("/dead-letters?{}", filter.query())))
}

/// Open letters of a list that somebody can be given, and how many nobody can.
async fn retried(app: &App, filter: &Filter) -> Result<(Vec<i64>, usize), Problem> {
    let selection = LetterSelection {
        ids: Vec::new(),
        subscription: filter.subscription.clone(),
        handler: filter.handler.clone(),
        reason: filter.reason.clone(),
    };
    let found = read(app.store.select_letters(&selection).await)?;
    let (orphans, chosen): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|letter| app.configured.has_no_handler(letter));
    let ids = chosen.iter().map(|letter| letter.placed.id).collect();
    Ok((ids, orphans.len()))
}

/// A letter that is still open.
async fn open_letter(app: &App, id: i64) -> Result<LetterSummary, Problem> {
    let found = read(app.store.letter_summaries(&[id]).await)?;
    match found.into_iter().next() {
        None => Err(Problem::missing(letters::unknown(id))),
        Some(letter) if letter.state != "open" => {
            Err(Problem::refused(letters::settled(id, &letter.state)))
        }
        Some(letter) => Ok(letter),
    }
}

fn these(ids: &[i64]) -> LetterSelection {
    LetterSelection {
        ids: ids.to_vec(),
        ..LetterSelection::default()
    }
}

fn numbers(text: Option<&str>) -> Vec<i64> {
    let parts = text.unwrap_or_default().split(',');
    parts.filter_map(|part| part.parse().ok()).collect()
}

// Holes.

/// Asks whether a hole that may still grow is to be acknowledged.
pub(super) async fn ask_acknowledge(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Path(id): Path<i64>,
) -> Outcome {
    let question = Question {
        title: format!("Acknowledge hole {id}?"),
        what_follows: vec![
            html! { "Its end is not known until the next event or keepalive comes, and until then it may grow. Where none \
            will come, as for a subscription that is configured no more, acknowledge it all the same." },
            html! { "Acknowledging changes nothing but what is shown: no event comes again for it." },
        ],
        action: format!("/holes/{id}/acknowledge"),
        fields: vec![("open_ended", "yes".to_owned())],
        yes: "Acknowledge it all the same",
        for_good: false,
        back: "/holes".to_owned(),
        section: Section::Holes,
    };
    Ok(ask(&app, &visitor, question).await)
}

/// Acknowledges a hole.
pub(super) async fn acknowledge(
    (State(app), Extension(visitor), headers): Asked,
    Path(id): Path<i64>,
    body: Bytes,
) -> Outcome {
    let form = Form::checked(&app, &visitor, &headers, &body)?;
    let filter = HoleFilter {
        ids: Some(vec![id]),
        ..HoleFilter::default()
    };
    let open_ended = form.get("open_ended").is_some();
    let changed = done(app.store.acknowledge_holes(&filter, open_ended).await)?;
    if changed.is_empty() {
        let found = read(app.store.holes(&filter).await)?;
        match found.first() {
            None => return Err(Problem::missing(format!("There is no hole {id}."))),
            // It began to grow since it was shown.
            Some(hole) if hole.acknowledged_at.is_none() => {
                return Ok(see_other(&format!("/holes/{id}/acknowledge")));
            }
            Some(_) => {}
        }
    } else {
        info!(hole = id, "acknowledged at the status page");
    }
    app.pictures.forget().await;
    Ok(see_other("/holes").into_response())
}
