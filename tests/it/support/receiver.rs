//! The other side of a webhook.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;

use super::eventually;

type Decide = dyn Fn(usize, &Value) -> u16 + Send + Sync;

/// A webhook receiver that answers as the test says and records every request.
pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    received: Arc<Mutex<Vec<(Value, u16)>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    received: Arc<Mutex<Vec<(Value, u16)>>>,
    decide: Arc<Decide>,
}

impl Receiver {
    /// Answers each request with the status that `decide` gives for its number, from 0, and its event.
    pub(crate) async fn start(
        decide: impl Fn(usize, &Value) -> u16 + Send + Sync + 'static,
    ) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared {
            received: received.clone(),
            decide: Arc::new(decide),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new().route("/", post(receive)).with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            addr,
            received,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// Every event with the status it was answered with, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<(Value, u16)> {
        self.received.lock().unwrap().clone()
    }

    /// Events that were answered with 2xx.
    pub(crate) fn accepted(&self) -> Vec<Value> {
        self.requests()
            .into_iter()
            .filter(|(_, status)| (200..300).contains(status))
            .map(|(event, _)| event)
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

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    assert!(
        headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/cloudevents+json")
    );
    let event: Value = serde_json::from_slice(&body).unwrap();
    let number = shared.received.lock().unwrap().len();
    let status = (shared.decide)(number, &event);
    shared.received.lock().unwrap().push((event, status));
    (StatusCode::from_u16(status).unwrap(), Json(Value::Null))
}
