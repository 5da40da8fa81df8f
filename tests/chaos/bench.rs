//! Figures of the delivery for `docs/BENCHMARKS.md`: not tests, so ignored; `scripts/bench-delivery` runs them
//! against an optimised build.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orgstream::config::StoreConfig;
use serde_json::{Value, json};

use super::audit::Audit;
use super::cluster::Cluster;
use super::emulator::Emulator;
use super::plan::Mode;
use super::proxy::Proxy;
use super::recorder::{Recorder, now_us};
use super::workers::{Setting, Worker};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Nothing measured here takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// Bytes of an ordinary event's description.
const SMALL: usize = 200;
/// Bytes of a large event's: a few hundred reach `max_in_flight_bytes` long before `max_in_flight`.
const LARGE: usize = 100_000;

/// Workers of one subscription with one webhook, its org and its database.
struct Bed {
    org: Arc<Emulator>,
    recorder: Recorder,
    audit: Audit,
    setting: Setting,
    workers: Vec<Worker>,
    _lines: Vec<(Proxy, Proxy)>,
}

impl Bed {
    async fn with(workers: usize, lease: &'static str, cluster: &Cluster) -> Self {
        let org = Arc::new(Emulator::start().await);
        let recorder = Recorder::start().await.unwrap();
        let database = cluster.database().await.unwrap();
        let url = cluster.url(&database);
        let store = orgstream::store::open(&StoreConfig::new(url.clone()))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        store.close().await;
        let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench-delivery");
        std::fs::create_dir_all(&logs).unwrap();
        let subscriptions = format!(
            "[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\nstart = \"earliest\"\n\
             [[subscription.handler]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"{}\"\ntimeout = \"10m\"\n",
            recorder.url("accounts", "a")
        );
        let setting = Setting {
            login_url: org.text("login_url"),
            client_id: org.text("client_id"),
            client_secret: org.text("client_secret"),
            subscriptions: subscriptions.into(),
            lease,
            logs,
        };
        let bus = org.text("pubsub_endpoint").replace("http://", "");
        let mut bed = Self {
            org,
            recorder,
            audit: Audit::install(url.clone()).await.unwrap(),
            setting,
            workers: Vec::new(),
            _lines: Vec::new(),
        };
        for index in 0..workers {
            let to_org = Proxy::before(bus.clone()).await;
            let to_store = Proxy::before(cluster.address()).await;
            let url = cluster.url_at(&to_store.addr.to_string(), &database);
            let mut worker = Worker::new(index, &to_org, url);
            worker.start(&bed.setting).unwrap();
            bed.workers.push(worker);
            bed._lines.push((to_org, to_store));
        }
        bed
    }

    /// One event every so often, until it is aborted.
    fn traffic(&self, pause: Duration) -> tokio::task::JoinHandle<()> {
        let org = self.org.clone();
        tokio::spawn(async move {
            loop {
                org.publish(ACCOUNTS, &[update(1)]).await;
                tokio::time::sleep(pause).await;
            }
        })
    }

    async fn answered(&self, count: usize) {
        let began = Instant::now();
        while self.recorder.answers("accounts", "a").len() < count {
            assert!(began.elapsed() < LIMIT, "{count} events were never handled");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The worker that runs the subscription, and its epoch.
    async fn owner(&self) -> (usize, i64) {
        let stored = self.audit.stored(&["accounts".to_owned()]).await.unwrap();
        let last = stored.writes.last().unwrap();
        let index = last.writer.split('-').nth(1).unwrap();
        (index.parse().unwrap(), last.after.epoch)
    }

    /// When the last event of an epoch and the first of a later one came.
    async fn handed_over(&self, epoch: i64) -> (i64, i64) {
        let began = Instant::now();
        loop {
            let answers = self.recorder.answers("accounts", "a");
            let old = answers
                .iter()
                .filter(|a| a.epoch <= epoch)
                .map(|a| a.came_us);
            let new = answers
                .iter()
                .filter(|a| a.epoch > epoch)
                .map(|a| a.came_us);
            if let (Some(old), Some(new)) = (old.max(), new.min()) {
                return (old, new);
            }
            assert!(began.elapsed() < LIMIT, "nobody took over");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn update(record: usize) -> Value {
    update_of(record, SMALL)
}

/// A change of a record with a description of so many bytes.
fn update_of(record: usize, bytes: usize) -> Value {
    json!({"ChangeEventHeader": {"entityName": "Account", "recordIds": [format!("001A0000{record:07}AAA")]},
           "Name": "well", "Phone": "+351 555 0100", "Description": "x".repeat(bytes)})
}

/// Resident memory of a process in MiB.
fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

/// Least, median and most.
fn spread(mut figures: Vec<f64>) -> String {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (figures[0], figures[figures.len() - 1]);
    format!(
        "median {:.3}, {least:.3} to {most:.3}, {} runs",
        figures[figures.len() / 2],
        figures.len()
    )
}

fn runs() -> usize {
    super::variable("ORGSTREAM_BENCH_RUNS").unwrap_or(5)
}

async fn cluster() -> Cluster {
    Cluster::start()
        .await
        .unwrap()
        .unwrap_or_else(|| panic!("Postgres is not installed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a bench: run scripts/bench-delivery"]
async fn bench_takeover_after_a_kill() {
    let cluster = cluster().await;
    for lease in ["15s", "5s", "2s"] {
        let mut seconds = Vec::new();
        for _ in 0..runs() {
            let mut bed = Bed::with(2, lease, &cluster).await;
            let traffic = bed.traffic(Duration::from_millis(10));
            bed.answered(100).await;
            // Anywhere between two renewals.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(3_000..8_000))).await;
            let (owner, epoch) = bed.owner().await;
            let killed = now_us();
            bed.workers[owner].kill().unwrap();
            let (_, first) = bed.handed_over(epoch).await;
            seconds.push((first - killed) as f64 / 1e6);
            traffic.abort();
        }
        println!(
            "takeover after kill -9, lease {lease}: {} s",
            spread(seconds)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a bench: run scripts/bench-delivery"]
async fn bench_hand_over_on_sigterm() {
    let cluster = cluster().await;
    let (mut from_signal, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        let mut bed = Bed::with(2, "15s", &cluster).await;
        let traffic = bed.traffic(Duration::from_millis(2));
        bed.answered(200).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(3_000..6_000))).await;
        let (owner, epoch) = bed.owner().await;
        let asked = now_us();
        let mut worker = bed.workers.remove(owner);
        let ends = tokio::spawn(async move { worker.terminate().await });
        let (last, first) = bed.handed_over(epoch).await;
        ends.await.unwrap().unwrap();
        from_signal.push((first - asked) as f64 / 1e6);
        pauses.push((first - last) as f64 / 1e6);
        traffic.abort();
    }
    println!(
        "hand-over on SIGTERM, to the next worker's first event: {} s",
        spread(from_signal)
    );
    println!(
        "hand-over on SIGTERM, pause between events: {} s",
        spread(pauses)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a bench: run scripts/bench-delivery"]
async fn bench_memory_with_a_hung_handler() {
    let cluster = cluster().await;
    let waiting = super::variable("ORGSTREAM_BENCH_EVENTS").unwrap_or(1_000_000);
    for (waiting, bytes) in [(waiting, SMALL), (3_000, LARGE)] {
        let (mut before, mut after, mut woken) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs() {
            let figures = hung(&cluster, waiting, bytes).await;
            before.push(figures.idle);
            after.push(figures.hung);
            woken.push(figures.woken);
        }
        let events = format!("{waiting} events with {bytes} bytes of text");
        println!("{events}: memory, idle: {} MiB", spread(before));
        println!("{events}: memory, handler hung: {} MiB", spread(after));
        println!(
            "{events}: from the handler's waking to its next event: {} s",
            spread(woken)
        );
    }
}

/// Resident memory in MiB before and while the only handler hangs, and the seconds to its next event.
struct Hung {
    idle: f64,
    hung: f64,
    woken: f64,
}

async fn hung(cluster: &Cluster, waiting: usize, bytes: usize) -> Hung {
    let bed = Bed::with(1, "15s", cluster).await;
    let process = bed.workers[0].id().unwrap();
    bed.org.publish(ACCOUNTS, &[update(0)]).await;
    bed.answered(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = resident(process);
    bed.recorder.behave("accounts", "a", Mode::Hanging);
    let at_once = if bytes > SMALL { 20 } else { 1_000 };
    for first in (0..waiting).step_by(at_once) {
        let events: Vec<Value> = (first..waiting.min(first + at_once))
            .map(|record| update_of(record, bytes))
            .collect();
        bed.org.publish(ACCOUNTS, &events).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let hung = resident(process);
    let lifted = now_us();
    bed.recorder.behave("accounts", "a", Mode::Well);
    bed.answered(1_000).await;
    // Beyond the few calls that hung.
    let answers = bed.recorder.answers("accounts", "a");
    let next = answers
        .iter()
        .filter(|a| a.came_us > lifted)
        .map(|a| a.came_us)
        .min();
    Hung {
        idle,
        hung,
        woken: (next.unwrap() - lifted) as f64 / 1e6,
    }
}
