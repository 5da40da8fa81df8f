//! Ten thousand events, the daemon killed five times, the far side restarted twice: the same for every
//! handler.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Daemon, Emulator, Store, account_update, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const EVENTS: usize = 10_000;
const RECORDS: usize = 100;
const KILLS: usize = 5;
const RESTARTS: usize = 2;
const MAX_IN_FLIGHT: usize = 300;

/// How long what was finished may wait for its position write: the second between two writes, and as much
/// again for the write itself and for looking at the far side.
const UNSAVED: Duration = Duration::from_secs(3);

/// What a handler writes to: a process of the test's own, that keeps what it acknowledged.
pub(crate) trait FarSide {
    /// Each event comes once, whatever is killed.
    const EXACTLY_ONCE: bool = false;

    /// The lines of a `[[subscription.handler]]` section, without `name` and `retry`.
    fn handler(&self) -> String;

    /// Variables that the daemon gets.
    fn env(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Where the daemon keeps its place; `None` for a database of the test server.
    fn store(&self) -> Option<Store> {
        None
    }

    /// Ends the process, in the hardest way after which it still has what it acknowledged, and starts it anew
    /// at the same address.
    async fn restart(&mut self);

    /// All that is there, in the order in which it came: of each record at least.
    async fn received(&self) -> Vec<Received>;

    /// How many there are, for measuring: quicker than to read them, where it can be.
    async fn count(&self) -> usize {
        self.received().await.len()
    }
}

/// An event as the far side has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// The record it is about.
    pub(crate) subject: String,
    /// Its place among all that were published.
    pub(crate) number: usize,
}

impl Received {
    /// Reads CloudEvents JSON.
    #[allow(dead_code, reason = "for far sides that keep CloudEvents")]
    pub(crate) fn of(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self::new(&text(&event["subject"]), &text(&event["data"]["Name"]))
    }

    /// From the subject of an event and its field `Name`, which holds the number.
    pub(crate) fn new(subject: &str, name: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            number: name.parse().unwrap(),
        }
    }
}

/// Runs it, and checks that all are there, in order per record, with no more repeats than rule 15 allows.
pub(crate) async fn endure<F: FarSide>(mut far: F) {
    let seed = std::env::var("ORGSTREAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("ORGSTREAM_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let store = match far.store() {
        Some(store) => store,
        None => match Store::postgres().await {
            Some(store) => store,
            None => return,
        },
    };
    let org = Arc::new(Emulator::start().await);
    let config = config(&org, &store, &far.handler());
    let env = far.env();
    let run = || {
        let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
        Daemon::run_with(&config, &env)
    };
    let load = tokio::spawn(publish(org.clone()));
    let mut troubles: Vec<bool> = [vec![true; KILLS], vec![false; RESTARTS]].concat();
    random.shuffle(&mut troubles);
    let mut arrivals = Arrivals::default();
    let mut allowed = 0;
    let mut daemon = run();
    for (done, kill) in troubles.iter().enumerate() {
        // In the middle of the work, whatever its pace.
        let share = EVENTS / (troubles.len() + 1);
        let threshold = (done + 1) * share + random.usize(0..share / 2);
        arrivals.until(&far, &daemon, threshold).await;
        if *kill {
            daemon.kill();
            arrivals.look(&far).await;
            allowed += MAX_IN_FLIGHT + arrivals.lately();
            daemon = run();
        } else {
            far.restart().await;
            // What it did not come to acknowledge may be there.
            allowed += MAX_IN_FLIGHT;
        }
    }
    load.await.unwrap();
    arrivals.until(&far, &daemon, EVENTS).await;
    let parked = store.parked().await;
    assert_eq!(parked, [], "nothing was wrong with any event");
    let (_, code) = daemon.stop().await;
    assert_eq!(code, 0);
    let received = far.received().await;
    let repeats = assert_all_in_order(&received);
    println!("{EVENTS} events, {repeats} repeats of {allowed} allowed");
    if F::EXACTLY_ONCE {
        assert_eq!(repeats, 0);
    }
    assert!(repeats <= allowed, "{repeats} repeats, {allowed} allowed");
}

fn config(org: &Emulator, store: &Store, handler: &str) -> String {
    format!(
        "{}\n[store]\nurl = \"{}\"\nlease = \"2s\"\n[[subscription]]\nname = \"accounts\"\n\
         topic = \"{ACCOUNTS}\"\nstart = \"earliest\"\nmax_in_flight = {MAX_IN_FLIGHT}\n\
         [[subscription.handler]]\nname = \"far\"\n\
         retry = {{ attempts = 100, initial = \"50ms\", max = \"500ms\" }}\n{handler}\n",
        org.salesforce(),
        store.url
    )
}

async fn publish(org: Arc<Emulator>) {
    const AT_ONCE: usize = 100;
    for first in (0..EVENTS).step_by(AT_ONCE) {
        let events: Vec<Value> = (first..first + AT_ONCE)
            .map(|n| account_update(&record(n * 7 % RECORDS), &n.to_string()))
            .collect();
        org.publish(ACCOUNTS, &events).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many events the far side had, and when.
#[derive(Default)]
struct Arrivals(Vec<(Instant, usize)>);

impl Arrivals {
    /// Gives how many different ones are there.
    async fn look(&mut self, far: &impl FarSide) -> usize {
        let received = far.received().await;
        self.0.push((Instant::now(), received.len()));
        let different: HashSet<usize> = received.iter().map(|event| event.number).collect();
        different.len()
    }

    async fn until(&mut self, far: &impl FarSide, daemon: &Daemon, count: usize) {
        let mut seen = 0;
        let began = Instant::now();
        while seen < count {
            assert!(
                began.elapsed() < Duration::from_secs(180),
                "{seen} of {count} events after {:?}; log:\n{}",
                began.elapsed(),
                daemon.log().join("\n")
            );
            seen = self.look(far).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How many came in the last moments.
    fn lately(&self) -> usize {
        let Some((last, now)) = self.0.last().copied() else {
            return 0;
        };
        let before = self
            .0
            .iter()
            .rev()
            .find(|(at, _)| last.duration_since(*at) > UNSAVED);
        now - before.map_or(0, |(_, count)| *count)
    }
}

/// Every number is there, and first arrivals of a record follow the order of publishing. Gives the number of
/// repeats.
fn assert_all_in_order(received: &[Received]) -> usize {
    let mut seen = HashSet::new();
    let mut newest: HashMap<&str, usize> = HashMap::new();
    for event in received {
        if seen.insert(event.number) {
            let before = newest.insert(&event.subject, event.number);
            assert!(
                before.is_none_or(|before| before < event.number),
                "{}: {} first came after {before:?}",
                event.subject,
                event.number
            );
        }
    }
    assert_eq!(seen.len(), EVENTS);
    received.len() - seen.len()
}
