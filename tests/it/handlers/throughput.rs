//! What a handler carries in a second, for the table in `docs/HANDLERS.md`: not tests, so ignored.
//! `scripts/bench-handlers` runs them against an optimised build.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::endurance::FarSide;
use crate::letters::ACCOUNTS;
use crate::support::{Daemon, Emulator, Store, account_update, configured, eventually, record};

const RECORDS: usize = 1_000;

fn variable(name: &str, otherwise: usize) -> usize {
    let set = std::env::var(name).ok();
    set.map_or(otherwise, |value| value.parse().unwrap())
}

/// Prints events a second, of some runs with a far side each: least, median and most.
pub(crate) async fn measure<F: FarSide>(name: &str, start: impl AsyncFn() -> Option<F>) {
    let events = variable("ORGSTREAM_BENCH_EVENTS", 20_000);
    let mut rates = Vec::new();
    for _ in 0..variable("ORGSTREAM_BENCH_RUNS", 3) {
        let Some(far) = start().await else { return };
        let Some(rate) = once(&far, events).await else {
            return;
        };
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    println!(
        "{name}: median {:.0}, {least:.0} to {most:.0} events/s; {events} events, {} runs",
        rates[rates.len() / 2],
        rates.len()
    );
}

/// All of them wait on the bus when the daemon starts; measured from the first at the far side to the last.
async fn once(far: &impl FarSide, events: usize) -> Option<f64> {
    let store = match far.store() {
        Some(store) => store,
        None => Store::postgres().await?,
    };
    let org = Emulator::start().await;
    for first in (0..events).step_by(500) {
        let some: Vec<Value> = (first..events.min(first + 500))
            .map(|n| account_update(&record(n % RECORDS), &n.to_string()))
            .collect();
        org.publish(ACCOUNTS, &some).await;
    }
    let handler = format!(
        "[[subscription.handler]]\nname = \"far\"\n{}\n",
        far.handler()
    );
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let config = configured(&org, &store, "", subscription, &handler);
    let env = far.env();
    let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let daemon = Daemon::run_with(&config, &env);
    let came = eventually("the first event", async || {
        Some(far.count().await).filter(|came| *came > 0)
    });
    let (before, began) = (came.await, Instant::now());
    let mut came = before;
    while came < events {
        assert!(began.elapsed() < Duration::from_secs(600), "{came} came");
        tokio::time::sleep(Duration::from_millis(20)).await;
        came = far.count().await;
    }
    let took = began.elapsed();
    drop(daemon);
    Some((events - before) as f64 / took.as_secs_f64())
}
