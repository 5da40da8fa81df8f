//! `orgstream web`: one process that shows all workers: health, `/metrics`, and the status page with its buttons.
//!
//! It reads the store, and writes there what the commands of the same names write: another attempt at a dead
//! letter, giving one up, acknowledging a hole, a pause. It never signs in to the org and holds no lease, so it may
//! be started, stopped and doubled at any time. The store may be away at any time, too: pages then say so, and show
//! what was known.

mod actions;
mod auth;
mod gate;
mod guesses;
mod live;
mod pages;
mod picture;
mod routes;
mod scrape;
mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::letters::shown::Configured;
use crate::status::Bus;
use crate::store::Store;

use auth::Auth;
use guesses::Guesses;
use picture::Pictures;

/// Streams of live updates at the same time. Each browser tab that shows a page has one.
const STREAMS: usize = 64;

/// What it is told at its start.
pub(crate) struct Settings {
    /// Where to listen.
    pub(crate) addr: SocketAddr,
    /// What opens everything but `/healthz` and `/readyz`.
    pub(crate) token: SecretString,
    /// How long the org's bus keeps an event, and when a person is told.
    pub(crate) bus: Bus,
    /// What of dead letters may be shown.
    pub(crate) configured: Configured,
    /// Name of this process, for the label `dyno`.
    pub(crate) name: String,
    /// True where a proxy is in front that writes the address it was called from at the end of
    /// `X-Forwarded-For`, as Heroku's router does.
    pub(crate) behind_proxy: bool,
}

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    /// The address cannot be listened on: most often another process has the port.
    #[error(
        "cannot serve the status page on {addr}: {reason}; set ORGSTREAM_WEB_ADDR to an address and port that are free"
    )]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system says. In the text, so not also a cause: causes are printed after it.
        reason: io::Error,
    },
}

/// What every request has at hand.
struct App {
    store: Arc<dyn Store>,
    pictures: Pictures,
    configured: Configured,
    auth: Auth,
    guesses: Guesses,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
    name: String,
    behind_proxy: bool,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
///
/// [`WebError`] where it cannot listen. A store that is away is waited for.
pub(crate) async fn run(
    settings: Settings,
    store: Arc<dyn Store>,
    stop: CancellationToken,
) -> Result<(), WebError> {
    let listen = |reason| WebError::Listen {
        addr: settings.addr,
        reason,
    };
    let listener = server::listen(settings.addr).map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let app = Arc::new(App {
        pictures: Pictures::new(store.clone(), settings.bus),
        store,
        configured: settings.configured,
        auth: Auth::new(&settings.token),
        guesses: Guesses::new(),
        streams: Arc::new(Semaphore::new(STREAMS)),
        stop: stop.clone(),
        name: settings.name,
        behind_proxy: settings.behind_proxy,
    });
    info!(%addr, "status page served");
    server::serve(listener, routes::router(app), settings.behind_proxy, stop).await;
    Ok(())
}
