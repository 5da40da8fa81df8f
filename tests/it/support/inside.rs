//! The daemon within the test's own process, with a handler of the test's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_trait::async_trait;
use orgstream::app;
use orgstream::config::Subscriptions;
use orgstream::event::Event;
use orgstream::handler::{BatchAnswer, BatchLimits, EventBatch, Handler, Options, Registry};
use tokio_util::sync::CancellationToken;

use super::eventually;

/// One call of a [`Batches`].
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// A text of each event, in order.
    pub(crate) names: Vec<String>,
    pub(crate) answer: BatchAnswer,
}

type Decide = dyn Fn(&[String], usize) -> BatchAnswer + Send + Sync;

/// A handler of type `batches` that takes many events at a time, answers as the test says, and checks that
/// no record is with two calls at once.
pub(crate) struct Batches {
    limits: BatchLimits,
    field: &'static str,
    calls: Mutex<Vec<Call>>,
    held: Mutex<HashMap<String, usize>>,
    overlaps: Mutex<Vec<String>>,
    decide: Box<Decide>,
}

impl Batches {
    /// Takes so many events at a time; answers as `decide` says for their texts in `field` and the number
    /// of calls before.
    pub(crate) fn new(
        events: usize,
        field: &'static str,
        decide: impl Fn(&[String], usize) -> BatchAnswer + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits: BatchLimits {
                events,
                bytes: 1 << 20,
            },
            field,
            calls: Mutex::default(),
            held: Mutex::default(),
            overlaps: Mutex::default(),
            decide: Box::new(decide),
        })
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Records that two calls had at the same time.
    pub(crate) fn overlaps(&self) -> Vec<String> {
        self.overlaps.lock().unwrap().clone()
    }

    /// Every event that was handed over, again where it came again, in the order of the answers.
    pub(crate) fn given(&self) -> Vec<String> {
        self.calls()
            .into_iter()
            .flat_map(|call| call.names)
            .collect()
    }

    /// Waits until so many events were handed over.
    pub(crate) async fn gives(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} events"), async || {
            Some(self.given()).filter(|given| given.len() >= count)
        })
        .await
    }

    fn name(&self, event: &Event) -> String {
        let data: serde_json::Value = serde_json::from_slice(&event.decoded.data).unwrap();
        data[self.field].as_str().unwrap_or("?").to_owned()
    }

    fn take(&self, batch: &EventBatch) {
        let mut held = self.held.lock().unwrap();
        let mut own = std::collections::HashSet::new();
        for record in batch.events.iter().flat_map(|event| event.record_ids()) {
            if own.insert(record.clone()) {
                let others = held.entry(record.to_string()).or_default();
                if *others > 0 {
                    self.overlaps.lock().unwrap().push(record.to_string());
                }
                *others += 1;
            }
        }
    }

    fn give_back(&self, batch: &EventBatch) {
        let mut held = self.held.lock().unwrap();
        let mut own = std::collections::HashSet::new();
        for record in batch.events.iter().flat_map(|event| event.record_ids()) {
            if own.insert(record) {
                *held.get_mut(record.as_str()).unwrap() -= 1;
            }
        }
    }
}

struct Shared(Arc<Batches>);

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let names: Vec<String> = batch.events.iter().map(|e| self.0.name(e)).collect();
        self.0.take(batch);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        self.0.give_back(batch);
        let mut calls = self.0.calls.lock().unwrap();
        let answer = (self.0.decide)(&names, calls.len());
        calls.push(Call {
            names,
            answer: answer.clone(),
        });
        answer
    }

    fn batch_limits(&self) -> BatchLimits {
        self.0.limits
    }
}

/// A running daemon, with a runtime of its own.
pub(crate) struct Inside {
    stop: CancellationToken,
    thread: JoinHandle<Result<(), app::RunError>>,
}

impl Inside {
    /// Runs this configuration, whose handlers may be of type `batches`.
    pub(crate) fn run(config: &str, batches: &Arc<Batches>) -> Self {
        let mut registry = Registry::builtin();
        let batches = batches.clone();
        registry.register("batches", move |config| {
            Options::new(config).finish(Some(()))?;
            Ok(Arc::new(Shared(batches.clone())))
        });
        let env = BTreeMap::from([("ORGSTREAM_CONFIG".to_owned(), config.to_owned())]);
        let loaded = app::load_config(None, Subscriptions::Required, &env, &registry).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(app::run(
                loaded.config,
                &registry,
                stopped,
            ))
        });
        Self { stop, thread }
    }

    /// Tells it to stop and waits for the end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let thread = self.thread;
        let ended = tokio::task::spawn_blocking(move || thread.join().unwrap());
        ended.await.unwrap().unwrap();
    }
}

/// A handler of type `batches` in a configuration.
pub(crate) const BATCHES: &str = "[[subscription.handler]]\ntype = \"batches\"\n\
     retry = { attempts = 3, initial = \"10ms\", max = \"50ms\" }\n";
