//! Pages that stay up to date: the parts of a page that changed, sent to it as they change.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::auth::Visitor;
use super::pages::{self, Extent, View};

/// How often a page is looked at anew.
const EVERY: Duration = Duration::from_secs(2);

/// How long a stream lasts. The page opens another one by itself, and is asked then who it is.
const LIFE: Duration = Duration::from_secs(5 * 60);

/// Which page it is for.
#[derive(Debug, Deserialize)]
pub(super) struct Watched {
    /// Path and query of the page.
    page: String,
}

/// A stream of what changes on a page: events with the parts that changed, by name.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    Query(watched): Query<Watched>,
) -> Response {
    let (path, query) = match watched.page.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (watched.page.as_str(), None),
    };
    let Some(view) = View::of(path, query) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Ok(slot) = app.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let follower = Follower {
        app,
        visitor,
        view,
        sent: HashMap::new(),
        began: Instant::now(),
        first: true,
        _slot: slot,
    };
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    // Else nginx, by default, gathers what is sent, and the page hears nothing.
    let unbuffered = [("x-accel-buffering", "no")];
    (unbuffered, Sse::new(events)).into_response()
}

/// One page that is looked at.
struct Follower {
    app: Arc<App>,
    visitor: Visitor,
    view: View,
    /// What it shows, by the parts' names.
    sent: HashMap<&'static str, String>,
    began: Instant,
    first: bool,
    _slot: OwnedSemaphorePermit,
}

impl Follower {
    /// What changed, every two seconds, though it be nothing: so the page knows that somebody is there. `None` ends
    /// the stream.
    async fn next(&mut self) -> Option<Event> {
        if self.began.elapsed() > LIFE {
            return None;
        }
        if !std::mem::take(&mut self.first) {
            let pause = tokio::time::sleep(EVERY);
            self.app.stop.run_until_cancelled(pause).await?;
        }
        let changed = self.app.stop.clone();
        let changed = changed.run_until_cancelled(self.changed()).await?;
        // A map of texts is always JSON.
        Event::default().event("parts").json_data(changed).ok()
    }

    async fn changed(&mut self) -> Value {
        let app = self.app.clone();
        let look = app.look(&self.view).await;
        let body = pages::body(&app, &self.visitor, &look, &self.view, Extent::Live).await;
        let mut parts = Vec::from(pages::live_frame(&look, &self.view));
        // Where the page's own part cannot be made, what it shows stays, under the notice.
        parts.extend(body.into_iter().flat_map(|body| body.parts));
        let mut changed = Map::new();
        for part in parts {
            let Some(name) = part.live else { continue };
            let html = part.html.into_string();
            if self.sent.get(name) != Some(&html) {
                changed.insert(name.to_owned(), Value::String(html.clone()));
                self.sent.insert(name, html);
            }
        }
        Value::Object(changed)
    }
}
