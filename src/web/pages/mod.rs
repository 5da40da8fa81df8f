//! Pages, made here whole: they need no script, and with ours they stay up to date by themselves.

pub(super) mod assets;
mod chart;
pub(super) mod confirm;
mod holes;
mod layout;
mod letter;
mod letters;
mod overview;
mod pieces;
mod problem;
mod subscription;

use std::time::SystemTime;

use axum::response::{IntoResponse, Response};
use maud::Markup;

use super::App;
use super::auth::Visitor;
use super::picture::Look;

pub(super) use layout::sign_in;
pub(super) use letters::Filter;
pub(super) use problem::Problem;

/// A page that shows something and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// All subscriptions.
    Overview,
    /// One of them.
    Subscription(String),
    /// A list of dead letters.
    Letters(Filter),
    /// One of them.
    Letter(i64),
    /// Holes: those that nobody has acknowledged, or all; of one subscription, or of all.
    Holes {
        /// Of this one only.
        subscription: Option<String>,
        /// Acknowledged ones, too.
        all: bool,
    },
}

impl View {
    /// What an address shows; `None` where there is nothing.
    pub(super) fn of(path: &str, query: Option<&str>) -> Option<Self> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .filter(|(_, value)| !value.is_empty())
                .collect();
        let value = |name: &str| {
            let found = pairs.iter().find(|(field, _)| field == name);
            found.map(|(_, value)| value.clone())
        };
        let mut parts = path.trim_matches('/').split('/');
        let view = match (parts.next(), parts.next()) {
            (Some(""), None) => Self::Overview,
            (Some("subscriptions"), Some(name)) => Self::Subscription(name.to_owned()),
            (Some("dead-letters"), None) => Self::Letters(Filter::of(&value)),
            (Some("dead-letters"), Some(id)) => Self::Letter(id.parse().ok()?),
            (Some("holes"), None) => Self::Holes {
                subscription: value("subscription"),
                all: value("all").is_some(),
            },
            _ => return None,
        };
        parts.next().is_none().then_some(view)
    }
}

/// How much of a page is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// What changes by itself.
    Live,
}

/// A stretch of a page.
pub(super) struct Part {
    /// Its name, where it changes by itself.
    pub(super) live: Option<&'static str>,
    /// What it shows.
    pub(super) html: Markup,
}

impl Part {
    /// One that changes by itself; the name is unique on its page.
    fn live(name: &'static str, html: Markup) -> Self {
        Self {
            live: Some(name),
            html,
        }
    }

    /// One that stays as it is.
    fn fixed(html: Markup) -> Self {
        Self { live: None, html }
    }
}

/// The ways to go, on top of every page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// Subscriptions.
    Subscriptions,
    /// Dead letters.
    Letters,
    /// Holes.
    Holes,
}

impl View {
    /// Where it belongs.
    pub(super) fn section(&self) -> Section {
        match self {
            Self::Overview | Self::Subscription(_) => Section::Subscriptions,
            Self::Letters(_) | Self::Letter(_) => Section::Letters,
            Self::Holes { .. } => Section::Holes,
        }
    }
}

/// What is in a page, beside what is on all of them.
pub(super) struct Body {
    /// What it is about.
    pub(super) title: String,
    /// From the top down.
    pub(super) parts: Vec<Part>,
}

/// What pages are made of.
pub(super) struct Context<'a> {
    app: &'a App,
    visitor: &'a Visitor,
    look: &'a Look,
    now: SystemTime,
}

impl Context<'_> {
    /// What a form has to carry.
    fn form_token(&self) -> Markup {
        let token = self.app.auth.form_token(self.visitor);
        maud::html! { input type="hidden" name="form_token" value=(token); }
    }
}

/// Makes a page's parts.
///
/// # Errors
///
/// What to say where there is no such thing, or the store does not answer.
pub(super) async fn body(
    app: &App,
    visitor: &Visitor,
    look: &Look,
    view: &View,
    extent: Extent,
) -> Result<Body, Problem> {
    let context = Context {
        app,
        visitor,
        look,
        now: SystemTime::now(),
    };
    match view {
        View::Overview => Ok(overview::body(&context)),
        View::Subscription(name) => subscription::body(&context, name).await,
        View::Letters(filter) => letters::body(&context, filter, extent).await,
        View::Letter(id) => letter::body(&context, *id, extent).await,
        View::Holes { subscription, all } => {
            holes::body(&context, subscription.as_deref(), *all).await
        }
    }
}

impl App {
    /// What a page shows.
    pub(super) async fn look(&self, view: &View) -> Look {
        match view {
            View::Overview | View::Subscription(_) => self.pictures.look_back().await,
            View::Letters(_) | View::Letter(_) | View::Holes { .. } => self.pictures.look().await,
        }
    }
}

/// The page as a browser is given it.
pub(super) async fn show(app: &App, visitor: &Visitor, view: &View) -> Response {
    let look = app.look(view).await;
    match body(app, visitor, &look, view, Extent::Whole).await {
        Ok(body) => {
            let frame = layout::Frame {
                section: view.section(),
                live: true,
            };
            layout::page(app, visitor, &look, frame, body).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

/// What is on every page and changes by itself.
pub(super) fn live_frame(look: &Look, view: &View) -> [Part; 2] {
    layout::live_frame(look, view.section())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_page_or_nothing() {
        let view = |path, query| View::of(path, query);
        assert_eq!(view("/", None), Some(View::Overview));
        let named = Some(View::Subscription("accounts".into()));
        assert_eq!(view("/subscriptions/accounts", None), named);
        assert_eq!(view("/dead-letters/7", None), Some(View::Letter(7)));
        let holes = view("/holes", Some("subscription=a%2Bb&all=1"));
        let expected = View::Holes {
            subscription: Some("a+b".into()),
            all: true,
        };
        assert_eq!(holes, Some(expected));
        for nothing in [
            "/else",
            "/dead-letters/x",
            "/subscriptions/a/b",
            "/holes/1/2",
        ] {
            assert_eq!(view(nothing, None), None, "{nothing}");
        }
    }
}
