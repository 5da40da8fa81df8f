//! What is measured of orgstream alone.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use super::clients::{Foreign, float, settled, work};
use super::daemon::{Daemon, Database, Work};
use super::figures::Figures;
use super::org::{Class, Org, until};
use super::receiver::{Manner, Receiver};

const LOG: &str = "type = \"log\"";
/// Half of the round trip of the credit window's row.
const ONE_WAY: Duration = Duration::from_millis(30);

/// How much to do.
pub(crate) struct Extent<'a> {
    /// A folder for files of ours.
    pub(crate) dir: &'a Path,
    pub(crate) runs: usize,
    /// Of events: 1 is a million in the largest rows.
    pub(crate) scale: f64,
    pub(crate) quick: bool,
}

impl Extent<'_> {
    fn million(&self) -> usize {
        ((1e6 * self.scale) as usize).max(3_000)
    }

    fn seconds(&self, full: u64) -> Duration {
        Duration::from_secs(if self.quick { full.div_ceil(4) } else { full })
    }
}

/// A name, its figures, and the goal.
pub(crate) type Line = (String, Figures, &'static str);

/// A handler of 1 ms and `concurrency = 8` behind a line of 60 ms.
pub(crate) async fn window(extent: &Extent<'_>) -> anyhow::Result<Vec<Line>> {
    let (mut share, mut beside, mut asked) = <(Figures, Figures, Figures)>::default();
    let (warm, time) = (Duration::from_secs(2), extent.seconds(8));
    let of_window = 2.0 * ONE_WAY.as_secs_f64() / 100.0;
    for _ in 0..extent.runs {
        let org = Org::filled(extent.dir, Class::Narrow, 40_000).await?;
        let target: SocketAddr = org.endpoint()?.trim_start_matches("https://").parse()?;
        let proxy = super::proxy::late(target, ONE_WAY)?;
        let events = (1_600 * time.as_secs()) as usize;
        let figures = Foreign::counting_behind(&proxy.to_string(), &org, events)?
            .figures()
            .await?;
        let ceiling = float(&figures, "events")? / float(&figures, "seconds")?;
        let receiver = Receiver::start(Manner::After(1)).await?;
        let (database, handler) = (Database::make().await?, receiver.handler(""));
        let endpoint = format!("https://{proxy}");
        let mut daemon = Daemon::start(
            &Work {
                endpoint: Some(&endpoint),
                // Without it each waits for the one before.
                key: Class::Narrow.key(),
                ..work(&org, Class::Narrow, &database, "earliest", &handler)
            },
            Stdio::null(),
        )?;
        settled(&mut daemon, "orgstream_events_finished_total", 1.0).await?;
        tokio::time::sleep(warm).await;
        let (before, began) = (daemon.finished().await?, Instant::now());
        tokio::time::sleep(time).await;
        let rate = (daemon.finished().await? - before) / began.elapsed().as_secs_f64();
        let state = org.state().await?;
        let stream = &state["streams"][0];
        share.push(rate * of_window * 100.0);
        beside.push(rate / ceiling * 100.0);
        asked.push(float(stream, "fetch_requests")? / float(stream, "responses")?);
    }
    Ok(vec![
        (
            "round trip of 60 ms, handler of 1 ms: share of 100 events a round trip, %".into(),
            share,
            "95",
        ),
        (
            "… beside the counting client on the same line, %".into(),
            beside,
            "",
        ),
        (
            "… FetchRequests for each response".into(),
            asked,
            "1 at most",
        ),
    ])
}

/// Stopped, then a million events, then started again.
pub(crate) async fn catch_up(extent: &Extent<'_>) -> anyhow::Result<Vec<Line>> {
    let (mut whole, mut rate, mut peak) = <(Figures, Figures, Figures)>::default();
    for _ in 0..extent.runs {
        let org = Org::filled(extent.dir, Class::Narrow, 1).await?;
        let database = Database::make().await?;
        let work = work(&org, Class::Narrow, &database, "earliest", LOG);
        let mut daemon = Daemon::start(&work, Stdio::null())?;
        daemon.has_finished(1).await?;
        until("a stored position", async || {
            let written = daemon
                .metric("orgstream_position_writes_total", "outcome=\"written\"")
                .await?;
            Ok((written > 0.0).then_some(()))
        })
        .await?;
        daemon.process.stop().await?;
        org.fill(Class::Narrow, extent.million()).await?;
        let began = Instant::now();
        let mut daemon = Daemon::start(&work, Stdio::null())?;
        rate.push(daemon.measured(extent.million()).await?.0);
        whole.push(began.elapsed().as_secs_f64());
        peak.push(daemon.process.peak_mib()?);
    }
    let events = extent.million();
    Ok(vec![
        (
            format!(
                "catch-up of {events} events after an outage, from the start of the process, s"
            ),
            whole,
            "",
        ),
        ("… events/s".into(), rate, ""),
        ("… peak memory, MiB".into(), peak, ""),
    ])
}

/// Memory with nothing to do, and with a million events before a handler that never answers.
pub(crate) async fn memory(extent: &Extent<'_>) -> anyhow::Result<Vec<Line>> {
    let (mut idle, mut hung, mut bytes) = <(Figures, Figures, Figures)>::default();
    for _ in 0..extent.runs {
        let org = Org::start(extent.dir).await?;
        let receiver = Receiver::start(Manner::Hang).await?;
        let (database, handler) = (
            Database::make().await?,
            receiver.handler("timeout = \"10m\""),
        );
        let mut daemon = Daemon::start(
            &work(&org, Class::Wide, &database, "earliest", &handler),
            Stdio::null(),
        )?;
        org.subscribed().await?;
        tokio::time::sleep(extent.seconds(4)).await;
        idle.push(daemon.process.resident_mib()?);
        org.fill(Class::Wide, extent.million()).await?;
        settled(&mut daemon, "orgstream_in_flight_events", 900.0).await?;
        tokio::time::sleep(extent.seconds(8)).await;
        hung.push(daemon.process.peak_mib()?);
        bytes.push(daemon.metric("orgstream_in_flight_bytes", "").await? / 1048576.0);
    }
    let million = format!(
        "memory, handler hung, {} wide events waiting, MiB",
        extent.million()
    );
    Ok(vec![
        ("memory, idle, one subscription, MiB".into(), idle, "20"),
        (million, hung, "64 above what is in flight"),
        ("… of it in flight, MiB".into(), bytes, ""),
    ])
}

/// Two hundred subscriptions to which nothing happens.
pub(crate) async fn idle(extent: &Extent<'_>) -> anyhow::Result<Vec<Line>> {
    const MANY: usize = 200;
    let mut resident = [0.0; 2];
    let (mut cpu, mut connections) = <(Figures, Figures)>::default();
    for (at, subscriptions) in [1, MANY + 1].into_iter().enumerate() {
        let (org, database) = (Org::start(extent.dir).await?, Database::make().await?);
        let mut daemon = Daemon::start(
            &Work {
                subscriptions,
                ..work(&org, Class::Wide, &database, "latest", LOG)
            },
            Stdio::null(),
        )?;
        until("every stream", async || {
            let state = org.state().await?;
            let open = state["streams"].as_array().map_or(0, Vec::len);
            anyhow::ensure!(daemon.process.lives(), "orgstream ended");
            Ok((open == subscriptions).then_some(()))
        })
        .await?;
        // One event each, so that all has been used once.
        org.fill(Class::Wide, 1).await?;
        daemon.has_finished(subscriptions).await?;
        tokio::time::sleep(extent.seconds(8)).await;
        if let Some(resident) = resident.get_mut(at) {
            *resident = daemon.process.resident_mib()?;
        }
        if subscriptions > 1 {
            let (before, began) = (daemon.process.cpu_seconds()?, Instant::now());
            tokio::time::sleep(extent.seconds(60)).await;
            let used = daemon.process.cpu_seconds()? - before;
            cpu.push(used / began.elapsed().as_secs_f64() * 60.0);
            let state = org.state().await?;
            connections.push(state["connections"].as_f64().context("no connections")?);
        }
    }
    let [one, all] = resident;
    let each = Figures(vec![(all - one) * 1024.0 / MANY as f64]);
    Ok(vec![
        ("one more quiet subscription, KiB".into(), each, "300"),
        (
            format!("{} quiet subscriptions, memory, MiB", MANY + 1),
            Figures(vec![all]),
            "",
        ),
        ("… processor in a minute, s".into(), cpu, ""),
        ("… connections to the Pub/Sub API".into(), connections, "1"),
    ])
}

/// From the start of the process to the first event's line.
pub(crate) async fn start(extent: &Extent<'_>) -> anyhow::Result<Vec<Line>> {
    let (mut cold, mut again) = <(Figures, Figures)>::default();
    let org = Org::filled(extent.dir, Class::Narrow, 1).await?;
    for _ in 0..extent.runs {
        let database = Database::make().await?;
        for figures in [&mut cold, &mut again] {
            let work = work(&org, Class::Narrow, &database, "earliest", LOG);
            let began = Instant::now();
            let mut daemon = Daemon::start(&work, Stdio::piped())?;
            let mut lines = daemon.process.lines()?;
            lines.next_line().await?.context("orgstream ended")?;
            figures.push(began.elapsed().as_secs_f64() * 1e3);
            daemon.process.stop().await?;
            // For the next one to find.
            org.fill(Class::Narrow, 1).await?;
        }
    }
    Ok(vec![
        (
            "from the start of the process to the first event, empty database, ms".into(),
            cold,
            "",
        ),
        ("… tables and schema are there, ms".into(), again, ""),
    ])
}

/// Bytes of the program.
pub(crate) fn size() -> anyhow::Result<Vec<Line>> {
    let bytes = std::fs::metadata(super::process::program())?.len();
    let mib = Figures(vec![bytes as f64 / 1048576.0]);
    Ok(vec![("size of the program, MiB".into(), mib, "")])
}
