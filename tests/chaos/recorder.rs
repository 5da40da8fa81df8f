//! The handlers' other side: takes every event, answers by script, and writes down what it said.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;
use tokio::sync::watch;

use super::account::Answered;
use super::place_of;
use super::plan::Mode;

/// Subscription and handler.
type Name = (String, String);

/// A webhook receiver for all handlers of a run.
pub(crate) struct Recorder {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    modes: Mutex<HashMap<Name, watch::Sender<Mode>>>,
    answers: Mutex<HashMap<Name, Vec<Answered>>>,
    /// Attempts of each event at each handler.
    attempts: Mutex<HashMap<(Name, u64, String), u32>>,
    requests: AtomicU64,
    /// Events that a handler failed for, it takes now.
    healed: AtomicBool,
    /// Events that a handler refused, it takes now.
    mended: AtomicBool,
}

/// Microseconds since 1970, the clock that the database's audit shares.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

impl Recorder {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/{subscription}/{handler}", post(receive))
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { addr, shared, task })
    }

    /// The address of a handler.
    pub(crate) fn url(&self, subscription: &str, handler: &str) -> String {
        format!("http://{}/{subscription}/{handler}", self.addr)
    }

    /// How a handler behaves from now on; what hangs is answered where that is over.
    pub(crate) fn behave(&self, subscription: &str, handler: &str, mode: Mode) {
        self.shared
            .mode(&name(subscription, handler))
            .send_replace(mode);
    }

    /// Everything behaves.
    pub(crate) fn behave_all(&self) {
        for mode in lock(&self.shared.modes).values() {
            mode.send_replace(Mode::Well);
        }
    }

    /// Handlers take now what they always failed for: an event that nothing can overtake looks like a handler
    /// that is down, and is held for hours.
    pub(crate) fn heal(&self) {
        self.shared.healed.store(true, Ordering::Relaxed);
    }

    /// Handlers take everything now.
    pub(crate) fn mend(&self) {
        self.heal();
        self.shared.mended.store(true, Ordering::Relaxed);
    }

    /// What a handler answered, in the order of its answers.
    pub(crate) fn answers(&self, subscription: &str, handler: &str) -> Vec<Answered> {
        let answers = lock(&self.shared.answers);
        answers
            .get(&name(subscription, handler))
            .cloned()
            .unwrap_or_default()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(subscription: &str, handler: &str) -> Name {
    (subscription.to_owned(), handler.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn mode(&self, name: &Name) -> watch::Sender<Mode> {
        let mut modes = lock(&self.modes);
        let mode = modes
            .entry(name.clone())
            .or_insert_with(|| watch::channel(Mode::Well).0);
        mode.clone()
    }

    /// Counts an attempt and gives how many there were before.
    fn attempt(&self, name: &Name, place: u64, record: &str) -> u32 {
        let key = (name.clone(), place, record.to_owned());
        let mut attempts = lock(&self.attempts);
        let count = attempts.entry(key).or_insert(0);
        *count += 1;
        *count - 1
    }
}

/// What an event says of itself, wherever its topic has room for it.
fn marker(event: &Value) -> &str {
    ["Name", "Title", "City__c", "Text__c"]
        .iter()
        .find_map(|field| event["data"][field].as_str())
        .unwrap_or("")
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    Path((subscription, handler)): Path<(String, String)>,
    body: Bytes,
) -> StatusCode {
    let came_us = now_us();
    let name = name(&subscription, &handler);
    // The events of a transaction come together and share an answer.
    let events: Vec<Value> = match serde_json::from_slice(&body) {
        Ok(Value::Array(events)) => events,
        Ok(event) => vec![event],
        Err(_) => return StatusCode::BAD_REQUEST,
    };
    let mut answers = Vec::with_capacity(events.len());
    let mut said = None;
    for event in &events {
        let answer = Answered {
            place: place_of(event["replayid"].as_str().unwrap_or("")),
            record: first_record(event),
            epoch: event["epoch"].as_i64().unwrap_or(-1),
            replayed: event["replayed"] == true,
            came_us,
            at_us: 0,
            status: 0,
        };
        let before = shared.attempt(&name, answer.place, &answer.record);
        said = said.max(shared.says(marker(event), &handler, before));
        answers.push(answer);
    }
    let Some(first) = answers.first() else {
        return StatusCode::BAD_REQUEST;
    };
    // Dropped here, and so not written down, where the other side goes away.
    let mode = shared.as_it_behaves(&name, first.place).await;
    let status = match mode {
        200 => said.unwrap_or(200),
        other => other,
    };
    let at_us = now_us();
    for answer in &mut answers {
        (answer.status, answer.at_us) = (status, at_us);
    }
    lock(&shared.answers)
        .entry(name)
        .or_default()
        .extend(answers);
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn first_record(event: &Value) -> String {
    let records = &event["data"]["ChangeEventHeader"]["recordIds"];
    records[0].as_str().unwrap_or("").to_owned()
}

impl Shared {
    /// What an event's own words make of it at a handler, after so many attempts.
    fn says(&self, marker: &str, handler: &str, before: u32) -> Option<u16> {
        let healed = self.healed.load(Ordering::Relaxed);
        let mended = self.mended.load(Ordering::Relaxed);
        match marker.split_once('-') {
            Some(("refuse", of)) if of == handler && !mended => Some(422),
            Some(("fail", of)) if of == handler && !healed => Some(503),
            Some(("later", of)) if of == handler && before == 0 => Some(503),
            _ => None,
        }
    }

    async fn as_it_behaves(&self, name: &Name, place: u64) -> u16 {
        let mut mode = self.mode(name).subscribe();
        let now = *mode.borrow_and_update();
        match now {
            Mode::Well => 200,
            Mode::Slow(pause) => {
                tokio::time::sleep(pause).await;
                200
            }
            Mode::Failing(status) => status,
            Mode::Hanging => {
                while *mode.borrow_and_update() == Mode::Hanging {
                    if mode.changed().await.is_err() {
                        break;
                    }
                }
                // Not all at the same moment.
                tokio::time::sleep(Duration::from_millis(place % 7)).await;
                200
            }
            Mode::Flaky(every) => {
                let number = self.requests.fetch_add(1, Ordering::Relaxed);
                if number.is_multiple_of(u64::from(every)) {
                    503
                } else {
                    200
                }
            }
            Mode::Refusing(every) => {
                // The same event is refused each time.
                let hash = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                if hash.is_multiple_of(u64::from(every)) {
                    422
                } else {
                    200
                }
            }
        }
    }
}
