//! Makes the trouble that a plan asks for, at its time, and lifts it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;

use super::cluster::{Cluster, signal};
use super::emulator::Emulator;
use super::ledger::Ledger;
use super::plan::{Mode, Plan, Step, Trouble};
use super::proxy::{Line, Proxy};
use super::publisher;
use super::recorder::Recorder;
use super::workers::{Setting, Worker};

/// What the connections of a person's commands are called.
pub(crate) const PERSON: &str = "person";

/// Everything that runs for one seed.
pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) setting: Setting,
    /// Name of the database.
    pub(crate) database: String,
    pub(crate) org: Emulator,
    pub(crate) cluster: Arc<AsyncMutex<Cluster>>,
    pub(crate) recorder: Recorder,
    pub(crate) ledger: Ledger,
    pub(crate) workers: Vec<AsyncMutex<Worker>>,
    /// By worker: to the org, and to Postgres.
    pub(crate) lines: Vec<(Proxy, Proxy)>,
    /// Held while something is published, and while the bus is trimmed.
    pub(crate) trim: AsyncMutex<()>,
    /// Held while no stream may be open.
    streams_away: AsyncMutex<()>,
    pub(crate) began: Instant,
    timeline: Mutex<Vec<String>>,
    broken: Mutex<Vec<String>>,
    interruptions: AtomicUsize,
    pauses: AtomicUsize,
    schemas: AtomicU64,
    /// First names of subscriptions that have another one now.
    renamed: Mutex<HashSet<&'static str>>,
}

impl Site {
    pub(crate) fn new(
        plan: Plan,
        setting: Setting,
        database: String,
        org: Emulator,
        cluster: Arc<AsyncMutex<Cluster>>,
        recorder: Recorder,
        workers: Vec<(Worker, Proxy, Proxy)>,
    ) -> Self {
        let (workers, lines) = workers
            .into_iter()
            .map(|(worker, org, store)| (AsyncMutex::new(worker), (org, store)))
            .unzip();
        Self {
            plan,
            setting,
            database,
            org,
            cluster,
            recorder,
            ledger: Ledger::default(),
            workers,
            lines,
            trim: AsyncMutex::default(),
            streams_away: AsyncMutex::default(),
            began: Instant::now(),
            timeline: Mutex::default(),
            broken: Mutex::default(),
            interruptions: AtomicUsize::new(0),
            pauses: AtomicUsize::new(0),
            schemas: AtomicU64::new(1),
            renamed: Mutex::default(),
        }
    }

    /// Writes down what was done when.
    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        let at = self.began.elapsed().as_millis();
        lock(&self.timeline).push(format!("{at:>6} ms  {what}"));
    }

    pub(crate) fn timeline(&self) -> Vec<String> {
        lock(&self.timeline).clone()
    }

    /// Writes down a promise that was seen broken.
    pub(crate) fn broke(&self, what: String) {
        self.note(format!("BROKEN {what}"));
        lock(&self.broken).push(what);
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        lock(&self.broken).clone()
    }

    /// How often something was interrupted so that what was under way may come again.
    pub(crate) fn interruptions(&self) -> usize {
        self.interruptions.load(Ordering::Relaxed)
    }

    /// How often a worker was killed or frozen, perhaps between a decision and its deed.
    pub(crate) fn pauses(&self) -> usize {
        self.pauses.load(Ordering::Relaxed)
    }

    fn tell(&self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.broke(format!("{error:#}"));
        }
    }

    /// Makes all trouble of the plan; ends when the last of it is over.
    pub(crate) async fn make_trouble(self: &Arc<Self>) {
        let began = Instant::now();
        let mut under_way = JoinSet::new();
        for (at, step) in self.plan.steps.clone() {
            tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
            let site = self.clone();
            under_way.spawn(async move { site.make(step).await });
        }
        while let Some(done) = under_way.join_next().await {
            if let Err(error) = done {
                self.broke(format!("the harness failed: {error}"));
            }
        }
    }

    async fn make(&self, step: Step) {
        self.note(format!("{step:?}"));
        match step {
            Step::Kill { worker, back_after } => {
                self.interrupted();
                self.pauses.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut worker) = self.workers[worker].try_lock() {
                    self.tell(worker.kill());
                    tokio::time::sleep(back_after).await;
                    self.tell(worker.start(&self.setting));
                }
            }
            Step::Terminate { worker, back_after }
            | Step::Scale {
                worker,
                away: back_after,
            } => {
                self.interrupted();
                if let Ok(mut worker) = self.workers[worker].try_lock() {
                    self.tell(worker.terminate().await);
                    tokio::time::sleep(back_after).await;
                    self.tell(worker.start(&self.setting));
                }
            }
            Step::Freeze { worker, length } => {
                self.interrupted();
                self.pauses.fetch_add(1, Ordering::Relaxed);
                if let Ok(worker) = self.workers[worker].try_lock() {
                    worker.signal("STOP");
                    tokio::time::sleep(length).await;
                    worker.signal("CONT");
                }
            }
            Step::RestartPostgres(how) => {
                let restarted = self.cluster.lock().await.restart(how).await;
                self.tell(restarted);
            }
            Step::Retry => {
                self.ask(&["dead-letters", "retry", "--all", "--no-wait"])
                    .await;
            }
            Step::Pause {
                subscription,
                length,
            } => {
                let name = self.name(subscription);
                let (pause, resume) = (["pause", &name], ["resume", &name]);
                tokio::join!(self.ask(&pause), async {
                    tokio::time::sleep(length).await;
                    self.ask(&resume).await;
                });
            }
            Step::Replay {
                subscription,
                beside,
            } => {
                let name = self.name(subscription);
                let mut words = vec!["replay", &name, "--from", "earliest", "--yes", "--no-wait"];
                if beside {
                    words.extend(["--handler", "a"]);
                }
                self.ask(&words).await;
            }
            Step::ReplayTo {
                subscription,
                handler,
            } => {
                let name = self.name(subscription);
                let to = ["--to", "latest", "--yes", "--no-wait"];
                let handler = self.plan.subscriptions[subscription].handlers[handler].name;
                let mut words = vec!["replay", &name, "--from", "earliest", "--handler", handler];
                words.extend(to);
                self.ask(&words).await;
            }
            Step::Discard => {
                self.ask(&["dead-letters", "discard", "--reason", "rejected", "--yes"])
                    .await;
            }
            Step::Rename { subscription } => self.rename(subscription).await,
            Step::ReadOnly(length) => {
                let done = self.read_only(length).await;
                self.tell(done);
            }
            Step::FreezePostgres(length) => self.cluster.lock().await.freeze(length).await,
            Step::StoreLine {
                worker,
                trouble,
                length,
            } => {
                troubled(&self.lines[worker].1, trouble, length).await;
            }
            Step::OrgLine {
                worker,
                trouble,
                length,
            } => {
                troubled(&self.lines[worker].0, trouble, length).await;
            }
            Step::Behave {
                subscription,
                handler,
                mode,
                length,
            } => {
                self.behave(subscription, handler, mode, length).await;
            }
            other => self.trouble_the_org(other).await,
        }
    }

    /// What a subscription is called now.
    fn name(&self, subscription: usize) -> String {
        let subscription = &self.plan.subscriptions[subscription];
        if lock(&self.renamed).contains(subscription.name()) {
            subscription.new_name()
        } else {
            subscription.name().to_owned()
        }
    }

    /// Another release: all workers end, the subscription is renamed, all start with the other name.
    async fn rename(&self, subscription: usize) {
        let mut workers = Vec::new();
        for worker in &self.workers {
            self.interrupted();
            let mut worker = worker.lock().await;
            self.tell(worker.terminate().await);
            workers.push(worker);
        }
        let (old, new) = {
            let subscription = &self.plan.subscriptions[subscription];
            (subscription.name(), subscription.new_name())
        };
        self.setting.rename(old, &new);
        let began = Instant::now();
        loop {
            match self.command(&["rename", old, &new]).await {
                Ok((true, _)) => break,
                // The database may be away just now.
                Ok(_) if began.elapsed() < Duration::from_secs(30) => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok((_, said)) => break self.broke(format!("rename {old} {new}: {said}")),
                Err(error) => break self.broke(format!("rename {old} {new}: {error:#}")),
            }
        }
        lock(&self.renamed).insert(old);
        for mut worker in workers {
            self.tell(worker.start(&self.setting));
        }
    }

    /// As a standby is, or a hosted database that is over its size.
    async fn read_only(&self, length: Duration) -> anyhow::Result<()> {
        for (on, pause) in [("on", length), ("off", Duration::ZERO)] {
            // Locked, so that no restart comes between.
            let cluster = self.cluster.lock().await;
            cluster.set_read_only(&self.database, on).await?;
            drop(cluster);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Runs a command of ours, whatever comes of it in the state that everything is in.
    pub(crate) async fn ask(&self, words: &[&str]) {
        match self.command(words).await {
            Ok((_, said)) => {
                let last = said.lines().last().unwrap_or_default();
                self.note(format!("{}: {last}", words.join(" ")));
            }
            Err(error) => self.broke(format!("{}: {error:#}", words.join(" "))),
        }
    }

    /// Runs a command of ours to its end, as a person would; gives whether it succeeded, and what it said.
    pub(crate) async fn command(&self, words: &[&str]) -> anyhow::Result<(bool, String)> {
        let url = self.cluster.lock().await.url(&self.database);
        let mut command = std::process::Command::new(super::emulator::program());
        command
            .args(words)
            .env_clear()
            .env("DATABASE_URL", format!("{url}?application_name={PERSON}"))
            .env("ORGSTREAM_CONFIG", self.setting.subscriptions())
            .env("ORGSTREAM_LOG", "warn")
            .current_dir(&self.setting.logs)
            .stdin(std::process::Stdio::null());
        // One that waits for what cannot be is ended, as a person would.
        let output = tokio::task::spawn_blocking(move || patiently(command)).await??;
        let text = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }

    fn interrupted(&self) {
        self.interruptions.fetch_add(1, Ordering::Relaxed);
    }

    async fn behave(&self, subscription: usize, handler: usize, mode: Mode, length: Duration) {
        if matches!(mode, Mode::Hanging | Mode::Slow(_)) {
            self.interrupted();
        }
        let subscription = &self.plan.subscriptions[subscription];
        let handler = subscription.handlers[handler].name;
        self.recorder.behave(subscription.name(), handler, mode);
        tokio::time::sleep(length).await;
        self.recorder
            .behave(subscription.name(), handler, Mode::Well);
    }

    async fn trouble_the_org(&self, step: Step) {
        match step {
            Step::Fault(fault) => self.org.fault(fault).await,
            Step::ExpireTokens { failing } => {
                let fault =
                    json!({"rpc": "Token", "kind": "error", "status": 503, "times": failing});
                self.org.fault(fault).await;
                self.org.post("/tokens/expire", &json!({})).await;
            }
            Step::RevokeTokens => {
                self.org.post("/tokens/revoke", &json!({})).await;
            }
            Step::ChangeSchema { orders, failing } => {
                let fault = json!({"rpc": "GetSchema", "kind": "error", "times": failing,
                                   "code": "schema.api.unavailable"});
                self.org.fault(fault).await;
                let version = self.schemas.fetch_add(1, Ordering::Relaxed);
                publisher::change_schema(&self.org, orders, version).await;
            }
            Step::ExpireBus { length } => self.expire_bus(length).await,
            Step::ResetBus => {
                let _nothing_is_published = self.trim.lock().await;
                self.org.post("/bus/reset", &json!({})).await;
                // The new line begins there, and what it begins with is known.
                self.ledger.forget_all(self.horizon().await - 1);
            }
            Step::Exhaust { length } => {
                let delivered = self.org.state().await["deliveries"].as_u64().unwrap_or(0);
                self.org
                    .settings(json!({"delivery_limit": delivered + 5}))
                    .await;
                tokio::time::sleep(length).await;
                self.org.settings(json!({"delivery_limit": null})).await;
            }
            other => self.broke(format!("the harness cannot make {other:?}")),
        }
    }

    /// The place just before the oldest event that the bus keeps.
    async fn horizon(&self) -> u64 {
        let state = self.org.state().await;
        super::place_of(state["earliest_replay_id"].as_str().unwrap())
    }

    /// Retention ends while no stream is open: what an open stream has not been sent yet would vanish before
    /// the eyes of a client that cannot know.
    async fn expire_bus(&self, length: Duration) {
        let _streams_away = self.streams_away.lock().await;
        let fault = json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"});
        self.org.fault(fault).await;
        let began = Instant::now();
        let none_open = loop {
            self.org.post("/connections/drop", &json!({})).await;
            let state = self.org.state().await;
            if state["streams"].as_array().is_some_and(Vec::is_empty) {
                break true;
            }
            if began.elapsed() > Duration::from_secs(5) {
                break false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        if none_open {
            tokio::time::sleep(length).await;
            let _nothing_is_published = self.trim.lock().await;
            self.org.post("/bus/expire", &json!({})).await;
            self.ledger.forget_all(self.horizon().await);
        } else {
            self.note("streams stay open, so nothing expires");
        }
        self.org.clear_faults().await;
    }

    /// Everything is well from now on.
    pub(crate) async fn lift(&self) {
        self.note("all trouble is lifted");
        for (org, store) in &self.lines {
            org.set(Line::Carry);
            store.set(Line::Carry);
        }
        self.org.clear_faults().await;
        self.org.settings(json!({"delivery_limit": null})).await;
        self.recorder.behave_all();
        let paused = self.plan.steps.iter().filter_map(|(_, step)| match step {
            Step::Pause { subscription, .. } => Some(*subscription),
            _ => None,
        });
        for subscription in paused {
            // The one of the plan may have come to nothing.
            self.ask(&["resume", &self.name(subscription)]).await;
        }
        for worker in &self.workers {
            let mut worker = worker.lock().await;
            worker.signal("CONT");
            self.tell(worker.still_runs());
            self.tell(worker.start(&self.setting));
        }
    }
}

/// Waits for a command for as long as a person might, then interrupts it.
fn patiently(mut command: std::process::Command) -> std::io::Result<std::process::Output> {
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(20)).is_err() {
            signal("INT", &[id]);
        }
    });
    let output = child.wait_with_output();
    let _ = done.send(());
    let _ = watch.join();
    output
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn troubled(line: &Proxy, trouble: Trouble, length: Duration) {
    line.set(match trouble {
        Trouble::Hang => Line::Hang,
        Trouble::Cut => Line::Cut,
    });
    tokio::time::sleep(length).await;
    line.set(Line::Carry);
}
