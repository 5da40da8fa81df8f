//! What is around every page.

use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::super::App;
use super::super::auth::Visitor;
use super::super::picture::Look;
use super::pieces::{Tone, grouped, moment, sentence};
use super::{Body, Part, Section, assets};

/// A page as text for a browser.
pub(in crate::web) struct Page(Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        Html(self.0.into_string()).into_response()
    }
}

/// How what is around a page is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Where the page belongs.
    pub(super) section: Section,
    /// True for one that stays up to date.
    pub(super) live: bool,
}

/// A page with what is on all of them.
pub(super) fn page(app: &App, visitor: &Visitor, look: &Look, frame: Frame, body: Body) -> Page {
    let [nav, notice] = live_frame(look, frame.section);
    let form_token = app.auth.form_token(visitor);
    let signed_in = matches!(visitor, Visitor::Session(_));
    Page(html! {
        (DOCTYPE)
        html lang="en" {
            (head(&body.title, frame.live))
            body {
                a.skip href="#main" { "To the content" }
                header.top {
                    div.inner {
                        a.brand href="/" { (logo()) "orgstream" }
                        (part(&nav))
                        div.right {
                            span.link-state id="link" hidden { span.dot {} span.word {} }
                            @if signed_in {
                                form method="post" action="/sign-out" {
                                    input type="hidden" name="form_token" value=(form_token);
                                    button.plain type="submit" { "Sign out" }
                                }
                            }
                        }
                    }
                }
                main id="main" {
                    p.lost id="lost" role="status" hidden {
                        "The connection to orgstream is lost: what you see is not up to date. Trying again…"
                    }
                    (part(&notice))
                    @for one in &body.parts { (part(one)) }
                }
                footer {
                    "orgstream " (env!("CARGO_PKG_VERSION"))
                    noscript { " · load the page again for newer figures" }
                }
            }
        }
    })
}

/// A page with nothing but its own text.
pub(super) fn bare(title: &str, inside: &Markup) -> Page {
    Page(html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, false))
            body.bare {
                main { a.brand href="/" { (logo()) "orgstream" } (inside) }
            }
        }
    })
}

/// The form at which people give the token. `plain` says that the page came over a line that others can read.
pub(in crate::web) fn sign_in(next: &str, why_not: Option<&str>, plain: bool) -> Page {
    bare(
        "Sign in",
        &html! {
            h1 { "Sign in" }
            @if let Some(why_not) = why_not { p.notice.bad role="alert" { (Tone::Bad.mark()) span { (why_not) } } }
            @if plain {
                p.notice.warn {
                    (Tone::Warn.mark())
                    span {
                        "This page did not come over TLS, so most browsers will not stay signed in, and others on the \
                         network can read the token. Put a proxy with TLS in front, which sets "
                        code { "X-Forwarded-Proto" } "."
                    }
                }
            }
            form.sign-in method="post" action="/sign-in" {
                input type="hidden" name="next" value=(next);
                label for="token" { "Token" }
                input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
                button.primary type="submit" { "Sign in" }
                p.hint { "It is what " code { "ORGSTREAM_WEB_TOKEN" } " is set to." }
            }
        },
    )
}

fn head(title: &str, live: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · orgstream" }
            link rel="stylesheet" href=(assets::style());
            link rel="icon" type="image/svg+xml" href=(assets::sign());
            @if live { script defer src=(assets::script()) {} }
        }
    }
}

fn logo() -> Markup {
    html! {
        svg.logo viewBox="0 0 16 16" aria-hidden="true" {
            path d="M1.5 4.5h6a3.5 3.5 0 0 1 0 7H6" {}
            path d="M14.5 11.5h-3" {}
            path d="M14.5 4.5H11" {}
        }
    }
}

/// A stretch of a page; where it changes by itself, under its name.
fn part(part: &Part) -> Markup {
    match part.live {
        Some(name) => html! { div.part id={ "live-" (name) } data-live=(name) { (part.html) } },
        None => part.html.clone(),
    }
}

/// What is on every page and changes by itself: the ways to go with what waits there, and a word where the
/// store does not answer.
pub(super) fn live_frame(look: &Look, section: Section) -> [Part; 2] {
    let subscriptions = look
        .picture
        .iter()
        .flat_map(|picture| &picture.overview.subscriptions);
    let (parked, holes) = subscriptions.fold((0, 0), |(parked, holes), one| {
        (parked + one.parked, holes + one.holes)
    });
    let badge = |count: u64| {
        html! { @if count > 0 { " " span.badge { (grouped(count)) } } }
    };
    let here = |one: Section| (one == section).then_some("page");
    let nav = html! {
        nav aria-label="Pages" {
            a href="/" aria-current=[here(Section::Subscriptions)] { "Subscriptions" }
            a href="/dead-letters" aria-current=[here(Section::Letters)] { "Dead letters" (badge(parked)) }
            a href="/holes" aria-current=[here(Section::Holes)] { "Holes" (badge(holes)) }
        }
    };
    [Part::live("nav", nav), Part::live("notice", notice(look))]
}

fn notice(look: &Look) -> Markup {
    let Some(away) = &look.away else {
        return html! {};
    };
    html! {
        div.notice.bad role="alert" {
            (Tone::Bad.mark())
            div {
                p {
                    strong { (away.what) ". " }
                    @if let Some(picture) = &look.picture {
                        "What you see is how things were at " (moment(picture.overview.at)) "."
                    } @else {
                        "Nothing is known until it does."
                    }
                }
                p.small { (sentence(&away.why)) }
            }
        }
    }
}
