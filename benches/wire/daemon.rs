//! orgstream as a process, and what its metrics say.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use orgstream::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use tokio::process::Command;
use tokio::time::Instant;

use super::org::{Org, until};
use super::process::{Process, program};

/// How often the metrics are read at most, and at least, while events are counted: each time costs the daemon about
/// what a thousand events do.
const LOOKS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(300)];

/// A fresh Postgres database; dropped with the server.
pub(crate) struct Database {
    pub(crate) url: String,
}

impl Database {
    /// In the server that `scripts/bench` starts.
    pub(crate) async fn make() -> anyhow::Result<Self> {
        let server = std::env::var("ORGSTREAM_TEST_POSTGRES").context("run scripts/bench")?;
        let name = format!("bench_{}", uuid::Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(&server).await?;
        let made = format!("create database {name}");
        sqlx::raw_sql(AssertSqlSafe(made))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        let (base, _) = server.rsplit_once('/').context("no database in the URL")?;
        Ok(Self {
            url: format!("{base}/{name}"),
        })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }
}

/// What a daemon is to do.
pub(crate) struct Work<'a> {
    pub(crate) org: &'a Org,
    pub(crate) database: &'a Database,
    pub(crate) topic: &'a str,
    /// `earliest` or `latest`.
    pub(crate) start: &'a str,
    /// The field that orders platform events, where one is to: without it all of them are in one lane.
    pub(crate) key: Option<&'a str>,
    /// Lines of `[[subscription.handler]]`.
    pub(crate) handler: &'a str,
    /// Subscriptions to the topic, all alike.
    pub(crate) subscriptions: usize,
    /// What is before the Pub/Sub API, if anything.
    pub(crate) endpoint: Option<&'a str>,
}

impl Work<'_> {
    fn configuration(&self, metrics: u16) -> anyhow::Result<String> {
        let mut text = format!("metrics_addr = \"127.0.0.1:{metrics}\"\n");
        text.push_str(&self.org.section(self.endpoint)?);
        text.push_str(&format!("[store]\nurl = \"{}\"\n", self.database.url));
        let key = self
            .key
            .map_or_else(String::new, |key| format!("key = \"{key}\"\n"));
        for number in 0..self.subscriptions {
            text.push_str(&format!(
                "[[subscription]]\nname = \"bench-{number}\"\ntopic = \"{}\"\nstart = \"{}\"\n{key}\
                 [[subscription.handler]]\n{}\n",
                self.topic, self.start, self.handler
            ));
        }
        Ok(text)
    }
}

/// `orgstream run`.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    metrics: String,
    http: reqwest::Client,
}

impl Daemon {
    /// Starts it; `out` is where its log handler writes.
    pub(crate) fn start(work: &Work<'_>, out: Stdio) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program());
        command
            .arg("run")
            .env("ORGSTREAM_CONFIG", work.configuration(port)?)
            .env("ORGSTREAM_LOG", "error")
            .stdout(out);
        Ok(Self {
            process: Process::start("orgstream", &mut command)?,
            metrics: format!("http://127.0.0.1:{port}/metrics"),
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// The sum of a metric over the label sets that hold `label`; 0 while it does not answer.
    pub(crate) async fn metric(&mut self, name: &str, label: &str) -> anyhow::Result<f64> {
        anyhow::ensure!(self.process.lives(), "orgstream ended");
        let Ok(answer) = self.http.get(&self.metrics).send().await else {
            return Ok(0.0);
        };
        let text = answer.text().await?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let its = labels.is_empty() || labels.starts_with('{');
            (its && labels.contains(label)).then(|| value.parse().unwrap_or(0.0))
        });
        Ok(samples.sum())
    }

    /// Events that are done with.
    pub(crate) async fn finished(&mut self) -> anyhow::Result<f64> {
        self.metric("orgstream_events_finished_total", "").await
    }

    /// Waits until so many events are finished.
    pub(crate) async fn has_finished(&mut self, events: usize) -> anyhow::Result<()> {
        until("events to be handled", async || {
            Ok((self.finished().await? >= events as f64).then_some(()))
        })
        .await
    }

    /// From the first events that are finished until so many are: events a second, and seconds of processor for
    /// each.
    pub(crate) async fn measured(&mut self, events: usize) -> anyhow::Result<(f64, f64)> {
        let first = until("the first event", async || {
            let finished = self.finished().await?;
            Ok((finished > 0.0).then_some(finished))
        })
        .await?;
        let (began, before) = (Instant::now(), self.process.cpu_seconds()?);
        anyhow::ensure!(
            first < events as f64,
            "all were handled at once; take more events"
        );
        let mut finished = first;
        loop {
            // Half of the time that is left, as far as can be told.
            let rate = (finished - first) / began.elapsed().as_secs_f64();
            let left = (events as f64 - finished) / rate.max(1.0);
            let pause = Duration::try_from_secs_f64(left / 2.0).unwrap_or(LOOKS[1]);
            tokio::time::sleep(pause.clamp(LOOKS[0], LOOKS[1])).await;
            finished = self.finished().await?;
            if finished >= events as f64 {
                let counted = finished - first;
                let seconds = began.elapsed().as_secs_f64();
                let cpu = self.process.cpu_seconds()? - before;
                return Ok((counted / seconds, cpu / counted));
            }
            anyhow::ensure!(
                began.elapsed().as_secs() < 300,
                "{finished} events in 5 minutes"
            );
        }
    }
}
