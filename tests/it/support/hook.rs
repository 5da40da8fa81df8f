//! A webhook receiver that can be made to wait, and that may say when to come again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;
use tokio::sync::watch;

use super::eventually;

/// What a hook answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Seconds of a `Retry-After` header.
    pub(crate) retry_after: Option<u64>,
}

impl From<u16> for Reply {
    fn from(status: u16) -> Self {
        Self {
            status,
            retry_after: None,
        }
    }
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// An event, or the list of them that came together.
    pub(crate) event: Value,
    pub(crate) status: u16,
    pub(crate) came_at: Instant,
}

type Decide = dyn Fn(&Value, usize) -> Reply + Send + Sync;

#[derive(Clone)]
struct Shared {
    came: Arc<Mutex<Vec<Value>>>,
    answered: Arc<Mutex<Vec<Call>>>,
    attempts: Arc<Mutex<HashMap<String, usize>>>,
    decide: Arc<Decide>,
    open: watch::Receiver<bool>,
}

/// A webhook receiver with a gate: while it is closed, requests come in and get no answer.
pub(crate) struct Hook {
    pub(crate) addr: SocketAddr,
    shared: Shared,
    gate: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Hook {
    /// Accepts everything, once its gate is open, which it is not at first.
    pub(crate) async fn closed() -> Self {
        let hook = Self::start(|_, _| Reply::from(200)).await;
        hook.close();
        hook
    }

    /// Answers as `decide` says for an event and the number of its earlier attempts.
    pub(crate) async fn start(
        decide: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), decide).await
    }

    /// As [`Hook::start`], at this address.
    pub(crate) async fn start_at(
        addr: SocketAddr,
        decide: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (gate, open) = watch::channel(true);
        let shared = Shared {
            came: Arc::default(),
            answered: Arc::default(),
            attempts: Arc::default(),
            decide: Arc::new(decide),
            open,
        };
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", post(receive))
            .with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            addr,
            shared,
            gate,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    pub(crate) fn open(&self) {
        self.gate.send_replace(true);
    }

    pub(crate) fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Requests that came, answered or not.
    pub(crate) fn came(&self) -> Vec<Value> {
        self.shared.came.lock().unwrap().clone()
    }

    /// Answered requests, in the order of the answers.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.answered.lock().unwrap().clone()
    }

    /// Events that were answered with 2xx.
    pub(crate) fn accepted(&self) -> Vec<Value> {
        self.calls()
            .into_iter()
            .filter(|call| (200..300).contains(&call.status))
            .map(|call| call.event)
            .collect()
    }

    /// Waits until so many events were accepted.
    pub(crate) async fn accepts(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} accepted events"), async || {
            Some(self.accepted()).filter(|accepted| accepted.len() >= count)
        })
        .await
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(mut shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let came_at = Instant::now();
    let event: Value = serde_json::from_slice(&body).unwrap();
    shared.came.lock().unwrap().push(event.clone());
    if shared.open.wait_for(|open| *open).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let attempt = {
        let mut attempts = shared.attempts.lock().unwrap();
        let attempts = attempts
            .entry(headers["idempotency-key"].to_str().unwrap().to_owned())
            .or_default();
        *attempts += 1;
        *attempts - 1
    };
    let reply = (shared.decide)(&event, attempt);
    shared.answered.lock().unwrap().push(Call {
        event,
        status: reply.status,
        came_at,
    });
    let status = StatusCode::from_u16(reply.status).unwrap();
    match reply.retry_after {
        Some(seconds) => (status, [("retry-after", seconds.to_string())]).into_response(),
        None => status.into_response(),
    }
}
