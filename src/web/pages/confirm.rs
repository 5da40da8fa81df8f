//! A question before something is done that cannot be taken back, or that others will notice.

use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};

use super::super::App;
use super::super::auth::Visitor;
use super::{Body, Part, Section, layout};

/// What is asked.
pub(in crate::web) struct Question {
    /// As a question.
    pub(in crate::web) title: String,
    /// What follows, in sentences.
    pub(in crate::web) what_follows: Vec<Markup>,
    /// Where the answer goes.
    pub(in crate::web) action: String,
    /// Further fields of the form, which nobody sees.
    pub(in crate::web) fields: Vec<(&'static str, String)>,
    /// What the button says.
    pub(in crate::web) yes: &'static str,
    /// True where it cannot be taken back.
    pub(in crate::web) for_good: bool,
    /// Where to go without doing it.
    pub(in crate::web) back: String,
    /// Where it belongs.
    pub(in crate::web) section: Section,
}

/// Asks.
pub(in crate::web) async fn ask(app: &App, visitor: &Visitor, question: Question) -> Response {
    let look = app.pictures.look().await;
    let token = app.auth.form_token(visitor);
    let kind = if question.for_good {
        "danger"
    } else {
        "primary"
    };
    let html = html! {
        div.question {
            h1 { (question.title) }
            @for sentence in &question.what_follows { p { (sentence) } }
            form method="post" action=(question.action) {
                input type="hidden" name="form_token" value=(token);
                @for (name, value) in &question.fields { input type="hidden" name=(name) value=(value); }
                div.buttons {
                    button class=(kind) type="submit" { (question.yes) }
                    a.button href=(question.back) { "No, go back" }
                }
            }
        }
    };
    let body = Body {
        title: question.title,
        parts: vec![Part::fixed(html)],
    };
    // A person who thinks is not disturbed.
    let frame = layout::Frame {
        section: question.section,
        live: false,
    };
    layout::page(app, visitor, &look, frame, body).into_response()
}
