//! One seed from its start to its account.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orgstream::config::StoreConfig;
use tokio::sync::Mutex as AsyncMutex;

use super::account::{Account, Case, HandlerCase, account};
use super::audit::{Audit, Stored};
use super::cluster::Cluster;
use super::emulator::Emulator;
use super::person;
use super::plan::{HandlerKind, Plan, Subscription};
use super::proxy::Proxy;
use super::publisher::{self, Publisher};
use super::recorder::Recorder;
use super::trouble::Site;
use super::workers::{self, Setting, Worker};

/// How long everything may take to be accounted for once all is well.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// How long nothing may move in this time: longer than any pause between attempts.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(45);

/// How long events that a handler always fails for may take to be given up.
const GIVE_UP: Duration = Duration::from_secs(6);

/// Broken promises that are told of one run; more say nothing new.
const MOST_TOLD: usize = 12;

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) accounts: Vec<Account>,
    /// None is what we want.
    pub(crate) broken: Vec<String>,
    pub(crate) plan: Plan,
    pub(crate) timeline: Vec<String>,
    pub(crate) took: Duration,
    pub(crate) logs: PathBuf,
    pub(crate) database: String,
}

impl Outcome {
    /// The account as a table.
    pub(crate) fn table(&self) -> String {
        let lines = self.accounts.iter().flat_map(|account| &account.lines);
        lines.map(|line| format!("  {line}\n")).collect()
    }

    /// One line for a person who watches.
    pub(crate) fn summary(&self) -> String {
        let lines = || self.accounts.iter().flat_map(|account| &account.lines);
        format!(
            "seed {:>20}  {:<6} {:>5} expected, {:>5} handled, {:>4} parked, {:>4} lost in holes, {:>4} repeats, \
             {:>2} late  {} worker(s), {} steps  {:.1} s",
            self.seed,
            if self.broken.is_empty() {
                "passed"
            } else {
                "FAILED"
            },
            lines().map(|line| line.published).sum::<usize>(),
            lines().map(|line| line.handled).sum::<usize>(),
            lines().map(|line| line.parked).sum::<usize>(),
            lines().map(|line| line.lost).sum::<usize>(),
            lines().map(|line| line.repeats + line.again).sum::<usize>(),
            lines().map(|line| line.late).sum::<usize>(),
            self.plan.workers,
            self.plan.steps.len(),
            self.took.as_secs_f64(),
        )
    }

    /// Everything needed to look into a failure.
    pub(crate) fn report(&self) -> String {
        let mut text = format!("{}\n{}", self.summary(), self.plan);
        text += "what happened:\n";
        for line in &self.timeline {
            text += &format!("  {line}\n");
        }
        text += &self.table();
        let told = self.broken.iter().take(MOST_TOLD);
        for broken in told {
            text += &format!("  BROKEN {broken}\n");
        }
        if let more @ 1.. = self.broken.len().saturating_sub(MOST_TOLD) {
            text += &format!("  and {more} more\n");
        }
        text += &format!(
            "  logs: {}, database {}\n  again: scripts/chaos --seed {} --keep\n",
            self.logs.display(),
            self.database,
            self.seed
        );
        text
    }
}

/// Runs a seed against a cluster.
pub(crate) async fn run(
    seed: u64,
    cluster: Arc<AsyncMutex<Cluster>>,
    keep: bool,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let plan = Plan::of(seed);
    let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir_all(&logs)?;
    let database = cluster.lock().await.database().await?;
    let site = Arc::new(site(plan, logs.clone(), &cluster, &database).await?);
    let audit = begin(&site, &database).await?;
    let publishing = Publisher::new(&site.org, site.ledger.clone(), &site.plan).run(&site.trim);
    tokio::join!(publishing, site.make_trouble());
    site.lift().await;
    settle(&site, &audit).await;
    if site.plan.tidy {
        person::tidy(&site, &audit).await;
        // A hole may be found only meanwhile: its end comes with the next response.
        settle(&site, &audit).await;
    }
    stop(&site).await;
    let cases = cases(&site, &audit).await?;
    let accounts: Vec<Account> = cases.iter().map(account).collect();
    let mut broken = site.broken();
    broken.extend(accounts.iter().flat_map(|account| account.broken.clone()));
    broken.extend(panics(&logs)?);
    if !broken.is_empty() {
        evidence(&logs, &cases, &audit).await?;
    }
    let outcome = Outcome {
        seed,
        accounts,
        broken,
        plan: site.plan.clone(),
        timeline: site.timeline(),
        took: began.elapsed(),
        logs,
        database: database.clone(),
    };
    if !keep {
        cluster.lock().await.drop_database(&database).await?;
        if outcome.broken.is_empty() {
            std::fs::remove_dir_all(&outcome.logs)?;
        } else {
            std::fs::write(outcome.logs.join("report.txt"), outcome.report())?;
        }
    }
    Ok(outcome)
}

/// Everything that a seed needs, not running yet.
async fn site(
    plan: Plan,
    logs: PathBuf,
    cluster: &Arc<AsyncMutex<Cluster>>,
    database: &str,
) -> anyhow::Result<Site> {
    let org = Emulator::start().await;
    publisher::prepare(&org, &plan).await;
    let recorder = Recorder::start().await?;
    let (address, url_at) = {
        let cluster = cluster.lock().await;
        let url_at = |address: &str| cluster.url_at(address, database);
        let address = if plan.pooled {
            cluster.pooled_address()
        } else {
            cluster.address()
        };
        (address, url_at("LINE"))
    };
    let bus = org.text("pubsub_endpoint");
    let bus = bus.trim_start_matches("http://");
    let mut workers = Vec::new();
    for index in 0..plan.workers {
        let to_org = Proxy::before(bus.to_owned()).await;
        let to_store = Proxy::before(address.clone()).await;
        let url = url_at.replace("LINE", &to_store.addr.to_string());
        workers.push((Worker::new(index, &to_org, url), to_org, to_store));
    }
    let setting = Setting {
        login_url: org.text("login_url"),
        client_id: org.text("client_id"),
        client_secret: org.text("client_secret"),
        subscriptions: workers::subscriptions(&plan, &recorder).into(),
        lease: "2s",
        logs,
    };
    Ok(Site::new(
        plan,
        setting,
        database.to_owned(),
        org,
        cluster.clone(),
        recorder,
        workers,
    ))
}

/// Makes the tables with the audit, starts the workers, and waits until every subscription stands somewhere: a
/// start at LATEST owes nothing from before, and one at EARLIEST nothing that the bus forgot before.
async fn begin(site: &Site, database: &str) -> anyhow::Result<Audit> {
    let url = site.cluster.lock().await.url(database);
    let store = orgstream::store::open(&StoreConfig::new(url.clone())).await?;
    store.migrate().await?;
    store.close().await;
    let audit = Audit::install(url).await?;
    for worker in &site.workers {
        worker.lock().await.start(&site.setting)?;
    }
    let began = Instant::now();
    for subscription in &site.plan.subscriptions {
        while !audit.has_position(subscription.name()).await? {
            anyhow::ensure!(
                began.elapsed() < SETTLE_LIMIT,
                "{} never came to stand anywhere",
                subscription.name()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    site.note("traffic begins");
    Ok(audit)
}

/// Waits until every event is accounted for and the positions have followed.
async fn settle(site: &Site, audit: &Audit) {
    let began = Instant::now();
    let mut before = String::new();
    let mut moved_at = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for worker in &site.workers {
            if let Err(error) = worker.lock().await.still_runs() {
                site.broke(format!("{error:#}"));
            }
        }
        let left = match left(site, audit).await {
            Ok(left) => left.join("; "),
            Err(error) => format!("the audit cannot be read: {error:#}"),
        };
        if left.is_empty() {
            return site.note("everything is accounted for");
        }
        if began.elapsed() > GIVE_UP {
            site.recorder.heal();
        }
        if left != before {
            moved_at = Instant::now();
        }
        if began.elapsed() > SETTLE_LIMIT || moved_at.elapsed() > STANDSTILL_LIMIT {
            return site.broke(format!("it does not come to an end: {left}"));
        }
        before = left;
    }
}

/// What is not done yet, by subscription.
async fn left(site: &Site, audit: &Audit) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for subscription in &site.plan.subscriptions {
        let stored = audit.stored(&subscription.names()).await?;
        let (position, state) = (stored.position, stored.state.clone());
        let commands = stored.commands;
        let case = case(site, audit, subscription, stored).await?;
        let missing = account(&case).missing();
        let last = case.pieces.last().map(|piece| piece.place);
        let open = case
            .holes
            .iter()
            .filter(|hole| hole.lost && hole.to.is_none())
            .count();
        if missing > 0 || position < last || open > 0 || commands > 0 {
            left.push(format!(
                "{}: {missing} missing, position {position:?} of {last:?}, {open} open hole(s), {commands} command(s), \
                 {state}",
                subscription.name()
            ));
        }
    }
    Ok(left)
}

async fn stop(site: &Site) {
    let stopping = site.workers.iter().map(|worker| async {
        let mut worker = worker.lock().await;
        if let Err(error) = worker.terminate().await {
            site.broke(format!("{error:#}"));
        }
    });
    futures_util::future::join_all(stopping).await;
}

async fn cases(site: &Site, audit: &Audit) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for subscription in &site.plan.subscriptions {
        let stored = audit.stored(&subscription.names()).await;
        let stored = stored.context("the audit cannot be read")?;
        cases.push(case(site, audit, subscription, stored).await?);
    }
    Ok(cases)
}

async fn case(
    site: &Site,
    audit: &Audit,
    subscription: &Subscription,
    stored: Stored,
) -> anyhow::Result<Case> {
    let of_plan = site.plan.subscriptions.iter();
    let index = of_plan.take_while(|s| s.feed != subscription.feed).count();
    let replays = site.plan.replays(index);
    let mut handlers = Vec::new();
    for handler in &subscription.handlers {
        let table = format!("{}_{}", subscription.name(), handler.name);
        handlers.push(HandlerCase {
            name: handler.name.to_owned(),
            attempts: handler.attempts,
            answers: site.recorder.answers(subscription.name(), handler.name),
            rows: match handler.kind {
                HandlerKind::Webhook => None,
                HandlerKind::Append => Some(audit.appended(&table, !replays).await?),
            },
        });
    }
    let forgotten = site.ledger.forgotten();
    Ok(Case {
        name: subscription.name().to_owned(),
        channel: subscription.feed.is_channel(),
        max_in_flight: subscription.max_in_flight,
        concurrency: subscription.concurrency,
        skips: subscription.on_expired == "latest",
        pieces: site.ledger.pieces(subscription),
        handlers,
        letters: stored.letters,
        parkings: stored.parkings,
        holes: stored.holes,
        writes: stored.writes,
        gone_up_to: forgotten.last().copied().unwrap_or(0),
        forgotten,
        untimed: !subscription.feed.topic().starts_with("/data/"),
        grouped: subscription.grouped,
        interruptions: site.interruptions(),
        pauses: site.pauses(),
        replays,
        discards: site.plan.discards(),
        tidied: site.plan.tidy,
    })
}

/// What the account was drawn up from, in files beside the logs.
async fn evidence(logs: &std::path::Path, cases: &[Case], audit: &Audit) -> anyhow::Result<()> {
    for case in cases {
        let mut text = String::new();
        for piece in &case.pieces {
            text += &format!("{piece:?}\n");
        }
        for handler in &case.handlers {
            let rows = handler.rows.iter().flatten();
            text.extend(rows.map(|row| format!("{}: {row:?}\n", handler.name)));
            for answer in &handler.answers {
                text += &format!("{}: {answer:?}\n", handler.name);
            }
        }
        for parking in &case.parkings {
            text += &format!("{parking:?}\n");
        }
        for write in &case.writes {
            text += &format!("{write:?}\n");
        }
        std::fs::write(logs.join(format!("evidence-{}.txt", case.name)), text)?;
    }
    std::fs::write(logs.join("store.jsonl"), audit.dump().await?)?;
    Ok(())
}

/// Panics that a daemon has logged.
fn panics(logs: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(logs)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("panicked at"));
        found.extend(lines.map(|line| format!("{}: {line}", path.display())));
    }
    Ok(found)
}
