//! `scripts/bench`: orgstream as fast as the wire, beside what the wire gives and what other clients do.
//!
//! The emulator, every client and every receiver are processes of their own; this one starts them, reads what the
//! kernel and they themselves say, and prints tables. It is not a test: nothing is asserted.
//!
//!     wire [--quick] [ROW…]      see scripts/bench

mod clients;
mod count;
mod daemon;
#[path = "../support/events.rs"]
mod events;
mod figures;
mod org;
mod process;
mod proxy;
mod receiver;
mod rows;

use std::io::Write as _;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use clients::{Client, Installed};
use figures::{Figures, print_table};
use org::{Class, Org};
use rows::{Extent, Line};

/// Rows of orgstream alone, in the order in which they are measured.
const ALONE: [&str; 6] = ["size", "start", "memory", "idle", "window", "catch-up"];
/// What the ceiling must reach for its run to say anything.
const LEAST_NARROW: f64 = 400_000.0;

fn main() -> anyhow::Result<()> {
    // Cargo says it to every bench.
    let mut args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let role = args.first().cloned().unwrap_or_default();
    let mut runtime = match role.as_str() {
        "count" | "receive" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match role.as_str() {
        "count" => runtime.block_on(count::run()),
        "receive" => runtime.block_on(receiver::run(args.get(1).context("no manner")?)),
        _ => {
            let quick = args.iter().any(|arg| arg == "--quick");
            args.retain(|arg| arg != "--quick");
            runtime.block_on(async {
                let mut ended = signal(SignalKind::terminate())?;
                // Left by returning, so that every process of ours is ended too.
                tokio::select! {
                    done = bench(quick, &args) => done,
                    _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
                    _ = ended.recv() => anyhow::bail!("terminated"),
                }
            })
        }
    }
}

/// A word on standard error on what is being done.
pub(crate) fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}

fn number<T: std::str::FromStr>(variable: &str, otherwise: T) -> T {
    let set = std::env::var(variable).ok();
    set.and_then(|value| value.parse().ok())
        .unwrap_or(otherwise)
}

async fn bench(quick: bool, rows: &[String]) -> anyhow::Result<()> {
    let known: Vec<&str> = Client::ALL
        .iter()
        .map(|one| one.row())
        .chain(ALONE)
        .collect();
    if let Some(unknown) = rows.iter().find(|row| !known.contains(&row.as_str())) {
        anyhow::bail!("no row {unknown}; there are: {}", known.join(", "));
    }
    let wanted = |row: &str| rows.is_empty() || rows.iter().any(|one| one == row);
    let dir = tempfile::tempdir()?;
    let extent = Extent {
        dir: dir.path(),
        runs: number("ORGSTREAM_BENCH_RUNS", if quick { 1 } else { 5 }),
        scale: number("ORGSTREAM_BENCH_SCALE", if quick { 0.25 } else { 1.0 }),
        quick,
    };
    let clients: Vec<Client> = Client::ALL
        .into_iter()
        .filter(|one| wanted(one.row()))
        .collect();
    if !clients.is_empty() {
        side_by_side(&extent, clients).await?;
    }
    let mut lines = Vec::new();
    for row in ALONE.into_iter().filter(|row| wanted(row)) {
        say(row);
        let measured = match row {
            "size" => rows::size(),
            "start" => rows::start(&extent).await,
            "memory" => rows::memory(&extent).await,
            "idle" => rows::idle(&extent).await,
            "window" => rows::window(&extent).await,
            _ => rows::catch_up(&extent).await,
        };
        match measured {
            Ok(measured) => lines.extend(measured),
            Err(error) => lines.push((format!("{row}: failed, {error:#}"), Figures::default(), "")),
        }
    }
    print_lines(&lines);
    Ok(())
}

fn print_lines(lines: &[Line]) {
    if lines.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|(what, figures, goal)| vec![what.clone(), figures.to_string(), (*goal).to_owned()])
        .collect();
    print_table(&["orgstream", "median (least–most)", "goal"], &rows);
}

/// What one client did with one class of events, a figure for each run.
#[derive(Default)]
struct Measured {
    rate: Figures,
    cpu: Figures,
    peak: Figures,
    copy: Figures,
    p50: Figures,
    p99: Figures,
    added_p99: Figures,
    failed: Option<String>,
}

/// Every client in each run, one after the other, so that a ratio is of figures of the same minutes.
async fn side_by_side(extent: &Extent<'_>, mut clients: Vec<Client>) -> anyhow::Result<()> {
    let installed = Installed::found();
    clients.retain(|client| {
        let there = client.is_there(&installed);
        if !there {
            say(&format!("{}: skipped, not installed", client.name()));
        }
        there
    });
    if !clients.contains(&Client::Ceiling) {
        clients.insert(0, Client::Ceiling);
    }
    let paced = if extent.quick { 3_000 } else { 6_000 };
    let live = Org::start(extent.dir).await?;
    let mut all = Vec::new();
    for class in Class::ALL {
        say(&format!("filling the bus, {}", class.name()));
        let most = clients
            .iter()
            .map(|client| client.events(class, extent.scale))
            .max();
        let org = Org::filled(extent.dir, class, most.unwrap_or(0) + 1_000).await?;
        let mut measured: Vec<(Client, Measured)> = clients
            .iter()
            .map(|client| (*client, Measured::default()))
            .collect();
        for run in 1..=extent.runs {
            for (client, measured) in &mut measured {
                say(&format!("run {run}, {}, {}", class.name(), client.row()));
                let events = client.events(class, extent.scale);
                match client.throughput(&org, class, events, &installed).await {
                    Ok(one) => {
                        measured.rate.push(one.rate);
                        measured.cpu.push(one.cpu);
                        measured.peak.push(one.peak);
                        one.copy
                            .into_iter()
                            .for_each(|copy| measured.copy.push(copy));
                    }
                    Err(error) => measured.failed = Some(format!("{error:#}")),
                }
                match client.latency(&live, class, paced, &installed).await {
                    Ok(one) => {
                        measured.p50.push(one.p50);
                        measured.p99.push(one.p99);
                        one.added_p99
                            .into_iter()
                            .for_each(|ms| measured.added_p99.push(ms));
                    }
                    Err(error) => measured.failed = Some(format!("{error:#}")),
                }
            }
        }
        all.push((class, measured));
    }
    print_side_by_side(&all);
    Ok(())
}

fn print_side_by_side(all: &[(Class, Vec<(Client, Measured)>)]) {
    let mut rows = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for (class, measured) in all {
        let of = |wanted: Client| {
            measured
                .iter()
                .find(|(client, _)| *client == wanted)
                .map(|(_, one)| one)
        };
        let ceiling = of(Client::Ceiling);
        let void = *class == Class::Narrow
            && ceiling
                .and_then(|one| one.rate.median())
                .is_none_or(|rate| rate < LEAST_NARROW);
        for (client, one) in measured {
            let share = ceiling
                .map(|ceiling| one.rate.over(&ceiling.rate))
                .unwrap_or_default();
            let mut name = format!("{}, {}", class.name(), client.name());
            if void {
                name.push_str(" (void: the sender is too slow)");
            }
            if let Some(failed) = &one.failed {
                name.push_str(&format!(" (failed: {failed})"));
            }
            rows.push(vec![
                name,
                one.rate.to_string(),
                share.to_string(),
                one.cpu.to_string(),
                one.peak.to_string(),
                one.p50.to_string(),
                one.p99.to_string(),
            ]);
        }
        let class_name = class.name();
        if let (Some(log), Some(npm)) = (of(Client::Log), of(Client::Npm)) {
            lines.push((
                format!("{class_name}: events/s, times those of npm"),
                log.rate.over(&npm.rate),
                "10",
            ));
            lines.push((
                format!("{class_name}: processor, of what npm needs"),
                log.cpu.over(&npm.cpu),
                "0.1",
            ));
        }
        if let (Some(log), Some(ceiling)) = (of(Client::Log), ceiling) {
            let goal = if *class == Class::Narrow {
                "0.7"
            } else {
                "0.5"
            };
            lines.push((
                format!("{class_name}: events/s, of the counting client's"),
                log.rate.over(&ceiling.rate),
                goal,
            ));
        }
        if let Some(append) = of(Client::Append) {
            lines.push((
                format!("{class_name}: psql COPY, rows/s"),
                append.copy.clone(),
                "",
            ));
            lines.push((
                format!("{class_name}: `append`, of COPY"),
                append.rate.over(&append.copy),
                "0.5",
            ));
        }
        if let Some(log) = of(Client::Log).filter(|log| !log.added_p99.0.is_empty()) {
            lines.push((
                format!("{class_name}: 1,000 events/s, receipt to the handler's line, p99, ms"),
                log.added_p99.clone(),
                "2",
            ));
        }
    }
    let head = [
        "loopback, TLS, 100 credits; median (least–most)",
        "events/s",
        "of the ceiling",
        "CPU s/million",
        "peak MiB",
        "p50 ms",
        "p99 ms",
    ];
    print_table(&head, &rows);
    print_lines(&lines);
}
