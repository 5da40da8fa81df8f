//! `kill -9` under load: every published event comes out at least once, in order per record.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Daemon, Emulator, Store, account_update, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const KILLS: usize = 20;
const RECORDS: usize = 40;

#[tokio::test]
async fn killed_twenty_times_under_load_every_event_comes_out_in_order_from_sqlite() {
    kill_under_load(Store::sqlite()).await;
}

#[tokio::test]
async fn killed_twenty_times_under_load_every_event_comes_out_in_order_from_postgres() {
    if let Some(store) = Store::postgres().await {
        kill_under_load(store).await;
    }
}

async fn kill_under_load(store: Store) {
    let seed = std::env::var("ORGSTREAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("ORGSTREAM_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let leases = store.url.starts_with("postgres");
    let org = Arc::new(Emulator::start().await);
    let config = format!(
        "{}\n[store]\nurl = \"{}\"\nlease = \"2s\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n",
        org.salesforce(),
        store.url
    );
    let load = Load::start(org.clone(), random.u64(..));
    let mut seen: Vec<Value> = Vec::new();
    for _ in 0..KILLS {
        let daemon = Daemon::run(&config);
        if leases && random.u8(..4) > 0 {
            // The one before it was killed, and its lease holds for a while.
            daemon.logged(&["subscription taken over"]).await;
        }
        // From before the first stream is open to well into the load.
        tokio::time::sleep(Duration::from_millis(random.u64(20..900))).await;
        seen.extend(daemon.kill());
    }
    let published = load.stop().await;
    assert!(published > 200, "hardly any load: {published}");
    let mut daemon = Daemon::run(&config);
    let last = Arc::new(AtomicUsize::new(0));
    crate::support::eventually("every published event", async || {
        let mut numbers: HashSet<u64> = seen.iter().map(number).collect();
        numbers.extend(daemon.events().iter().map(number));
        last.store(numbers.len(), Ordering::Relaxed);
        (numbers.len() == published).then_some(())
    })
    .await;
    let (events, code) = {
        daemon.signal("TERM");
        let status = daemon.ended().await;
        (daemon.events(), status.code())
    };
    assert_eq!(code, Some(0));
    seen.extend(events);
    assert_in_order(&seen);
    println!(
        "{published} published, {} handed over: {} repeats after {KILLS} kills",
        seen.len(),
        seen.len() - published
    );
}

fn number(event: &Value) -> u64 {
    event["data"]["Name"].as_str().unwrap().parse().unwrap()
}

/// First hand-overs of each record follow the order of publishing.
fn assert_in_order(seen: &[Value]) {
    let mut first = HashSet::new();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    for event in seen {
        let number = number(event);
        if first.insert(number) {
            let record = event["subject"].as_str().unwrap();
            let before = newest.insert(record, number);
            assert!(
                before.is_none_or(|before| before < number),
                "{record}: {number} first came after {before:?}"
            );
        }
    }
}

/// Publishes numbered updates of a few records until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn start(org: Arc<Emulator>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut published = 0;
            while !stopped.load(Ordering::Relaxed) {
                let events: Vec<Value> = (0..random.usize(1..8))
                    .map(|i| {
                        let name = (published + i).to_string();
                        account_update(&record(random.usize(0..RECORDS)), &name)
                    })
                    .collect();
                org.publish(ACCOUNTS, &events).await;
                published += events.len();
                tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
            }
            published
        });
        Self { stop, task }
    }

    /// Gives how many events were published.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}
