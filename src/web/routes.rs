//! Which address is which page.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::auth::Visitor;
use super::pages::{self, Problem, View, assets};
use super::{App, actions, gate, live, scrape};

/// Largest form, in bytes.
const FORM_LIMIT: usize = 16 * 1024;

/// Everything that is served.
pub(super) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/", get(page))
        .route("/subscriptions/{name}", get(page))
        .route(
            "/subscriptions/{name}/pause",
            get(actions::ask_pause).post(actions::pause),
        )
        .route("/subscriptions/{name}/resume", post(actions::resume))
        .route("/dead-letters", get(page))
        .route(
            "/dead-letters/retry",
            get(actions::ask_retry_all).post(actions::retry_all),
        )
        .route("/dead-letters/{id}", get(page))
        .route("/dead-letters/{id}/retry", post(actions::retry))
        .route("/dead-letters/{id}/withdraw", post(actions::withdraw))
        .route(
            "/dead-letters/{id}/discard",
            get(actions::ask_discard).post(actions::discard),
        )
        .route("/holes", get(page))
        .route(
            "/holes/{id}/acknowledge",
            get(actions::ask_acknowledge).post(actions::acknowledge),
        )
        .route("/events", get(live::events))
        .route("/sign-out", post(gate::sign_out))
        .route("/metrics", get(scrape::metrics))
        // Before an unknown path is told from a known one, so that a stranger cannot tell either.
        .fallback(nothing_here)
        .layer(from_fn_with_state(app.clone(), gate::guard));
    let open = Router::new()
        .route(gate::HEALTHZ, get(async || "ok\n"))
        .route(gate::READYZ, get(ready))
        .route("/sign-in", get(gate::sign_in_form).post(gate::sign_in_now))
        .route("/static/{name}", get(asset))
        .route(
            "/favicon.ico",
            get(async || gate::see_other("/static/favicon.svg")),
        );
    open.merge(guarded)
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(from_fn(gate::by_tls))
        .layer(from_fn(gate::finish))
        .with_state(app)
}

/// A page that shows something.
async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    uri: Uri,
) -> Response {
    match View::of(uri.path(), uri.query()) {
        Some(view) => pages::show(&app, &visitor, &view).await,
        None => Problem::not_found().into_response(),
    }
}

async fn nothing_here() -> Problem {
    Problem::not_found()
}

/// Whether the store answers; a word, for it is open to everyone.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.pictures.look().await.away {
        None => "ready\n".into_response(),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable\n").into_response(),
    }
}

/// Style, script and sign. Their address changes with their text, so a browser may keep them: but not what it asked
/// another release for, which answers here while that one is started.
async fn asset(uri: Uri) -> Response {
    let name = uri.path().trim_start_matches("/static/");
    match assets::find(name) {
        Some(asset) => {
            let ours = uri.query() == Some(&format!("v={}", asset.version()));
            let kept = if ours {
                "public, max-age=604800"
            } else {
                "no-store"
            };
            (
                [(CONTENT_TYPE, asset.kind), (CACHE_CONTROL, kept)],
                asset.text,
            )
                .into_response()
        }
        None => Problem::not_found().into_response(),
    }
}
