//! An org in memory: the Pub/Sub API, the token service, and an admin API to publish events and to cause
//! trouble. It serves any client; nothing in it knows ours.
//!
//! [`Emulator::start`] listens; [`Handle`] gives tests and the demonstration what the admin API gives
//! over HTTP. Behaviour follows the fact sheet's section 11; where real orgs differ or nobody knows,
//! [`Settings`] has a switch.

mod admin;
mod bus;
mod change_events;
mod clock;
mod config;
mod credits;
mod errors;
mod faults;
mod handle;
mod keys;
mod limits;
mod line;
mod oauth;
mod org;
mod outgoing;
mod publishing;
mod pubsub;
mod reset;
pub mod sample;
mod settings;
mod stream;
mod tls;
mod tokens;
mod topics;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::salesforce::pubsub::proto::pub_sub_server::PubSubServer;

pub use bus::StoredEvent;
pub(crate) use change_events::{Defaults, encode};
pub use clock::ClockOutOfRange;
pub use config::{App, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, DEFAULT_USERNAME, EmulatorConfig};
pub use errors::{CODES, Call};
pub use faults::{Fault, FaultKind};
pub use handle::{Endpoints, Handle};
pub use keys::SigningKey;
pub use org::{StateReport, StreamReport};
pub use publishing::{
    PublishError, PublishJson, Published, TransactionEvent, TransactionJson, captured_events,
};
pub use settings::{HeadersSent, IdleClose, LimitsShown, Settings, TokenFormat, UnknownTopic};
pub use topics::Member;

use org::Org;

/// Most bytes of a request that are read at all; more than the API allows, so that its own refusal of
/// what is too large can be given.
const READ_LIMIT: usize = 32 * 1024 * 1024;

/// Calls that may be open on one connection (facts 2.3).
const MAX_STREAMS: u32 = 1000;

/// How long [`Emulator::stop`] waits for calls to end by themselves.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The emulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// A listener could not be had.
    #[error(
        "cannot listen on {address} for the {what}: {reason}; choose another port, or 0 for a free one"
    )]
    Listen {
        /// Which of the three.
        what: &'static str,
        /// As asked for.
        address: SocketAddr,
        /// Why. In the text, so not also a cause: causes are printed after it.
        reason: io::Error,
    },
    /// Certificates could not be made or used.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// A running emulator. Dropping it stops it at once; [`Emulator::stop`] waits for its end.
#[derive(Debug)]
pub struct Emulator {
    handle: Handle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Deref for Emulator {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Emulator {
    /// Starts listening. When this returns, all three listeners answer.
    pub async fn start(config: EmulatorConfig) -> Result<Self, EmulatorError> {
        let host = config.host;
        let pubsub = listen("Pub/Sub API", host, config.pubsub_port).await?;
        let login = listen("OAuth endpoints", host, config.login_port).await?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let admin = listen("admin API", loopback, config.admin_port).await?;
        let certificates = if config.tls {
            let made = tls::Certificates::generate(host);
            Some(made.map_err(|error| EmulatorError::Tls(error.to_string()))?)
        } else {
            None
        };
        let scheme = if config.tls { "https" } else { "http" };
        let login_url = format!("{scheme}://{}", reachable(login.address));
        let org = Arc::new(Org::new(config, login_url));
        let endpoints = Endpoints {
            pubsub_url: format!("{scheme}://{}", reachable(pubsub.address)),
            login_url: org.login_url.clone(),
            admin_url: format!("http://{}", admin.address),
            instance_url: org.instance_url.clone(),
            org_id: org.id.as_str().to_owned(),
            ca_pem: certificates.as_ref().map(|made| made.ca_pem.clone()),
        };
        let handle = Handle::new(Arc::clone(&org), endpoints, pubsub.address);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let service = pubsub::PubSubService::new(Arc::clone(&org), tasks.clone(), stop.clone());
        serve_pubsub(
            service,
            pubsub.listener,
            &org,
            certificates.as_ref(),
            &tasks,
            &stop,
        )?;
        let oauth = oauth::router(Arc::clone(&org)).merge(limits::router(Arc::clone(&org)));
        match &certificates {
            Some(made) => serve_http(made.https(login.listener), oauth, &tasks, &stop),
            None => serve_http(login.listener, oauth, &tasks, &stop),
        }
        serve_http(admin.listener, admin::router(handle.clone()), &tasks, &stop);
        tasks.close();
        Ok(Self {
            handle,
            stop,
            tasks,
        })
    }

    /// Ends every stream and listener.
    pub async fn stop(self) {
        self.stop.cancel();
        // Frozen connections never end by themselves.
        self.handle.drop_connections();
        let _ = tokio::time::timeout(STOP_LIMIT, self.tasks.wait()).await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.cancel();
        self.handle.drop_connections();
    }
}

struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

async fn listen(what: &'static str, host: IpAddr, port: u16) -> Result<Bound, EmulatorError> {
    let address = SocketAddr::new(host, port);
    let failed = |reason| EmulatorError::Listen {
        what,
        address,
        reason,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { listener, address })
}

/// The address a client on this machine uses: an unspecified one is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    }
}

fn serve_pubsub(
    service: pubsub::PubSubService,
    listener: TcpListener,
    org: &Arc<Org>,
    certificates: Option<&tls::Certificates>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), EmulatorError> {
    let service = PubSubServer::new(service).max_decoding_message_size(READ_LIMIT);
    let mut server = Server::builder().max_concurrent_streams(MAX_STREAMS);
    if let Some(made) = certificates {
        let identity = Identity::from_pem(&made.certificate_pem, &made.key_pem);
        server = server
            .tls_config(ServerTlsConfig::new().identity(identity))
            .map_err(|error| EmulatorError::Tls(error.to_string()))?;
    }
    let serving = server
        .add_service(reset::WithResets(service))
        .serve_with_incoming(line::Incoming::new(listener, org.lines.clone()));
    let stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            ended = serving => {
                if let Err(error) = ended {
                    tracing::error!(%error, "emulator: the Pub/Sub API ended");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

fn serve_http<L>(listener: L, router: axum::Router, tasks: &TaskTracker, stop: &CancellationToken)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    // Gracefully, because connections that are kept alive would answer on after the listener's end.
    let serving =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "emulator: an HTTP listener ended");
        }
    });
}

#[cfg(test)]
mod tests;
