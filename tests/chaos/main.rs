//! Everything at once, from a printed seed: real daemons, a Postgres that is restarted and frozen, an org
//! whose streams break, handlers that fail. After each run every published event is accounted for.
//!
//! `scripts/chaos` runs many seeds; here a handful. `scripts/chaos --seed N --keep` runs one again and
//! leaves logs and database. A plan is the same for one seed everywhere; how the processes interleave is not.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what failed by panicking"
)]
#![allow(missing_docs, reason = "tests")]

mod account;
#[cfg(test)]
mod account_tests;
mod audit;
mod bench;
mod census;
mod cluster;
#[path = "../it/support/emulator.rs"]
#[allow(dead_code, reason = "shared with other tests, which need more of it")]
mod emulator;
mod fencing;
mod ledger;
mod person;
mod plan;
#[path = "../it/support/proxy.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests of the whole, which use the rest"
)]
mod proxy;
mod publisher;
mod recorder;
mod run;
mod trouble;
mod workers;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use census::Census;
use cluster::Cluster;

/// Seeds of the short form, each of which has shown something once; a random one joins them.
const FIXED: [u64; 4] = [1, 2, 3, 4];

/// A place on the emulator's bus by the hexadecimal text of its replay ID. Replay IDs are opaque to orgstream,
/// not to a test of what the emulator gave out.
fn place_of(replay_id: &str) -> u64 {
    let digits = replay_id.get(..16).unwrap_or("");
    u64::from_str_radix(digits, 16).unwrap_or(0)
}

/// What a person asks of a long run.
struct Asked {
    seeds: VecDeque<u64>,
    until: Option<Instant>,
    jobs: usize,
    keep: bool,
    until_failure: bool,
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name} is not a number: {text}"),
    }
}

/// What came of many seeds.
#[derive(Default)]
struct Run {
    passed: usize,
    failed: Vec<u64>,
    census: Census,
}

/// Runs seeds, several at a time where asked, each job with a cluster of its own.
async fn run_all(asked: Asked) -> Run {
    let over = Arc::new(AtomicBool::new(false));
    let seeds = Arc::new(Mutex::new(asked.seeds));
    let mut jobs = tokio::task::JoinSet::new();
    for _ in 0..asked.jobs.max(1) {
        let (seeds, over) = (seeds.clone(), over.clone());
        jobs.spawn(async move {
            let mut run = Run::default();
            let Some(cluster) = Cluster::start().await.unwrap() else {
                no_postgres();
                return run;
            };
            let cluster = Arc::new(AsyncMutex::new(cluster));
            loop {
                let late = asked.until.is_some_and(|until| Instant::now() > until);
                if late || over.load(Ordering::Relaxed) {
                    break;
                }
                let Some(seed) = seeds.lock().unwrap().pop_front() else {
                    break;
                };
                let outcome = match run::run(seed, cluster.clone(), asked.keep).await {
                    Ok(outcome) => outcome,
                    Err(error) => panic!("seed {seed}: the harness failed: {error:#}"),
                };
                run.census.count(&outcome);
                if outcome.broken.is_empty() {
                    println!("{}", outcome.summary());
                    run.passed += 1;
                } else {
                    println!("{}", outcome.report());
                    run.failed.push(outcome.seed);
                    over.fetch_or(asked.until_failure, Ordering::Relaxed);
                }
            }
            if asked.keep
                && let Some(cluster) = Arc::into_inner(cluster)
            {
                println!("kept: {}", cluster.into_inner().keep().display());
            }
            run
        });
    }
    let mut all = Run::default();
    while let Some(done) = jobs.join_next().await {
        let run = match done {
            Ok(run) => run,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        all.passed += run.passed;
        all.failed.extend(run.failed);
        all.census.add(run.census);
    }
    all
}

fn no_postgres() {
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_POSTGRES").is_none(),
        "Postgres is not installed: run scripts/test or scripts/chaos"
    );
    println!("skipped: no Postgres (run scripts/test, which brings one)");
}

fn verdict(run: &Run) {
    let (passed, failed) = (run.passed, &run.failed);
    let seeds: Vec<String> = failed.iter().map(u64::to_string).collect();
    println!(
        "{passed} seed(s) passed, {} failed: {}",
        failed.len(),
        seeds.join(" ")
    );
    assert!(failed.is_empty(), "failed seeds: {}", seeds.join(" "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handful_of_seeds_is_accounted_for() {
    // Always the same ones, so that a failure is the change's; scripts/chaos takes others.
    let further: Option<u64> = variable("ORGSTREAM_TEST_SEED");
    let run = run_all(Asked {
        seeds: FIXED.into_iter().chain(further).collect(),
        until: None,
        jobs: 2,
        keep: false,
        until_failure: false,
    })
    .await;
    verdict(&run);
}

/// As `scripts/chaos` asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes long: run scripts/chaos"]
async fn many_seeds_are_accounted_for() {
    let first = variable("ORGSTREAM_CHAOS_SEED");
    let count = variable("ORGSTREAM_CHAOS_SEEDS");
    let minutes: Option<u64> = variable("ORGSTREAM_CHAOS_MINUTES");
    let first: u64 = first.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let count: u64 = count.unwrap_or(if minutes.is_some() {
        u64::from(u32::MAX)
    } else {
        1
    });
    println!("first seed: {first}");
    let run = run_all(Asked {
        seeds: (0..count.min(1_000_000))
            .map(|n| first.wrapping_add(n))
            .collect(),
        until: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
        jobs: variable("ORGSTREAM_CHAOS_JOBS").unwrap_or(1),
        keep: std::env::var_os("ORGSTREAM_CHAOS_KEEP").is_some(),
        until_failure: std::env::var_os("ORGSTREAM_CHAOS_UNTIL_FAILURE").is_some(),
    })
    .await;
    print!("{}", run.census);
    verdict(&run);
}
