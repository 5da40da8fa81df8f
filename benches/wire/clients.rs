//! Who is measured side by side: orgstream with several handlers, and others' clients.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use orgstream::sqlx::{self, Row as _};
use serde_json::Value;
use tokio::process::Command;

use super::daemon::{Daemon, Database, Work};
use super::org::{Class, Org, micros, until};
use super::process::Process;
use super::receiver::{Manner, Receiver, after_name, number};

/// A client of the Pub/Sub API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A bare tonic client that only counts.
    Ceiling,
    /// orgstream, `log` to /dev/null.
    Log,
    /// orgstream, `webhook`, an event a request.
    Webhook,
    /// orgstream, `webhook` in batches.
    WebhookBatched,
    /// orgstream, `postgres` in the mode `append`, in the store's database.
    Append,
    /// The npm client.
    Npm,
    /// A Python client of grpcio and fastavro.
    Python,
}

/// Figures of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Throughput {
    /// Events a second.
    pub(crate) rate: f64,
    /// Seconds of processor for a million events.
    pub(crate) cpu: f64,
    /// Most resident memory in MiB.
    pub(crate) peak: f64,
    /// Rows a second of COPY, for the same rows, where they were appended.
    pub(crate) copy: Option<f64>,
}

/// Times from publish to handled, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// From receipt to the handler's line, 99 % of all, where that can be told.
    pub(crate) added_p99: Option<f64>,
}

/// Where clients of others' make are installed.
pub(crate) struct Installed {
    node: Option<PathBuf>,
    python: Option<PathBuf>,
}

impl Installed {
    /// What `scripts/bench` says that there is.
    pub(crate) fn found() -> Self {
        let folder = |name: &str| {
            std::env::var_os(name)
                .filter(|at| !at.is_empty())
                .map(PathBuf::from)
        };
        Self {
            node: folder("ORGSTREAM_BENCH_NODE"),
            python: folder("ORGSTREAM_BENCH_PYTHON"),
        }
    }
}

impl Client {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ceiling,
        Self::Log,
        Self::Webhook,
        Self::WebhookBatched,
        Self::Append,
        Self::Npm,
        Self::Python,
    ];

    /// As in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "counting tonic client, no decoding",
            Self::Log => "orgstream, `log` to /dev/null",
            Self::Webhook => "orgstream, `webhook`",
            Self::WebhookBatched => "orgstream, `webhook` in batches of 100",
            Self::Append => "orgstream, `postgres` `append`, exactly once",
            Self::Npm => "npm salesforce-pubsub-api-client 5.5.2",
            Self::Python => "Python, grpcio and fastavro",
        }
    }

    /// As on the command line.
    pub(crate) fn row(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Log => "log",
            Self::Webhook => "webhook",
            Self::WebhookBatched => "webhook-batched",
            Self::Append => "append",
            Self::Npm => "npm",
            Self::Python => "python",
        }
    }

    /// Whether it can be measured here.
    pub(crate) fn is_there(self, installed: &Installed) -> bool {
        match self {
            Self::Npm => installed.node.is_some(),
            Self::Python => installed.python.is_some(),
            _ => true,
        }
    }

    /// Events of one run: enough for some seconds of each client.
    pub(crate) fn events(self, class: Class, scale: f64) -> usize {
        let events = match (self, class) {
            (Self::Ceiling | Self::Log, Class::Narrow) => 1_000_000,
            (Self::Ceiling | Self::Log, Class::Wide) => 600_000,
            (Self::Webhook, _) => 15_000,
            (Self::WebhookBatched | Self::Append, _) => 100_000,
            (Self::Npm | Self::Python, Class::Narrow) => 120_000,
            (Self::Npm | Self::Python, Class::Wide) => 30_000,
        };
        // Beyond what is in flight at first, so that there is something left to measure.
        ((f64::from(events) * scale) as usize).max(3_000)
    }

    /// Takes what waits on the bus.
    pub(crate) async fn throughput(
        self,
        org: &Org,
        class: Class,
        events: usize,
        installed: &Installed,
    ) -> anyhow::Result<Throughput> {
        let own = match self {
            Self::Ceiling | Self::Npm | Self::Python => {
                let mut client = Foreign::start(self, org, class, events, true, installed)?;
                let figures = client.figures().await?;
                let counted = float(&figures, "events")?;
                return Ok(Throughput {
                    rate: counted / float(&figures, "seconds")?,
                    cpu: float(&figures, "cpu_seconds")? / counted * 1e6,
                    peak: client.process.peak_mib()?,
                    copy: None,
                });
            }
            Self::Log | Self::Webhook | Self::WebhookBatched | Self::Append => self,
        };
        let database = Database::make().await?;
        let (_receiver, handler) = own.handler().await?;
        let mut daemon = Daemon::start(
            &Work {
                key: self.key(class),
                ..work(org, class, &database, "earliest", &handler)
            },
            Stdio::null(),
        )?;
        let (rate, cpu) = daemon.measured(events).await?;
        let peak = daemon.process.peak_mib()?;
        daemon.process.kill().await?;
        let copy = match self {
            Self::Append => Some(copied(&database).await?),
            _ => None,
        };
        Ok(Throughput {
            rate,
            cpu: cpu * 1e6,
            peak,
            copy,
        })
    }

    /// Takes so many events, 1,000 a second.
    pub(crate) async fn latency(
        self,
        org: &Org,
        class: Class,
        events: usize,
        installed: &Installed,
    ) -> anyhow::Result<Latency> {
        // What comes first loads schemas and compiles programs; it is not measured.
        const WARM: usize = 2_000;
        if matches!(self, Self::Ceiling | Self::Npm | Self::Python) {
            let mut client = Foreign::start(self, org, class, WARM + events, false, installed)?;
            org.subscribed().await?;
            org.fill(class, WARM).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            org.publish_paced(class, events).await?;
            return of_micros(&client.figures().await?);
        }
        let database = Database::make().await?;
        let (receiver, handler) = self.handler().await?;
        let mut daemon = Daemon::start(
            &Work {
                key: self.key(class),
                ..work(org, class, &database, "latest", &handler)
            },
            Stdio::piped(),
        )?;
        let lines = daemon.process.lines()?;
        let reader = tokio::spawn(read_lines(lines));
        org.subscribed().await?;
        org.fill(class, WARM).await?;
        daemon.has_finished(WARM).await?;
        if self == Self::Append {
            note_commits(&database).await?;
        }
        org.publish_paced(class, events).await?;
        daemon.has_finished(WARM + events).await?;
        match (self, receiver) {
            (Self::Append, _) => appended(&database).await,
            (_, Some(receiver)) => of_micros(&receiver.figures().await?),
            (_, None) => {
                daemon.process.stop().await?;
                let (mut late, mut added) = reader.await?;
                Ok(Latency {
                    p50: super::figures::quantile(&mut late, 0.5).context("no lines")? / 1e3,
                    p99: super::figures::quantile(&mut late, 0.99).context("no lines")? / 1e3,
                    added_p99: match class {
                        // The time of a change event is that of its commit, not of its receipt.
                        Class::Wide => None,
                        Class::Narrow => {
                            super::figures::quantile(&mut added, 0.99).map(|us| us / 1e3)
                        }
                    },
                })
            }
        }
    }

    /// The field that orders events; of the log handler none, which is the default: then
    /// all platform events are in one order, and batches of it one after the other.
    fn key(self, class: Class) -> Option<&'static str> {
        class.key().filter(|_| self != Self::Log)
    }

    /// Lines of its handler, and the far side of it.
    async fn handler(self) -> anyhow::Result<(Option<Receiver>, String)> {
        Ok(match self {
            Self::Webhook | Self::WebhookBatched => {
                let receiver = Receiver::start(Manner::After(0)).await?;
                let more = match self {
                    Self::WebhookBatched => "mode = \"batched\"",
                    _ => "",
                };
                let handler = receiver.handler(more);
                (Some(receiver), handler)
            }
            Self::Append => (None, "type = \"postgres\"\nmode = \"append\"".to_owned()),
            _ => (None, "type = \"log\"".to_owned()),
        })
    }
}

pub(crate) fn work<'a>(
    org: &'a Org,
    class: Class,
    database: &'a Database,
    start: &'a str,
    handler: &'a str,
) -> Work<'a> {
    Work {
        org,
        database,
        topic: class.topic(),
        start,
        key: None,
        handler,
        subscriptions: 1,
        endpoint: None,
    }
}

/// A client that counts by itself and prints one line.
pub(crate) struct Foreign {
    process: Process,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Foreign {
    pub(crate) fn start(
        client: Client,
        org: &Org,
        class: Class,
        events: usize,
        earliest: bool,
        installed: &Installed,
    ) -> anyhow::Result<Self> {
        let mut command = match client {
            Client::Npm => program("node", "count.mjs", installed.node.as_deref())?,
            Client::Python => program("bin/python", "count.py", installed.python.as_deref())?,
            _ => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("count");
                command
            }
        };
        command
            .envs(org.variables()?)
            .env("TOPIC", class.topic())
            .env("COUNT", events.to_string())
            .env("FROM", if earliest { "earliest" } else { "latest" })
            .stdout(Stdio::piped());
        Self::of(client.name(), &mut command)
    }

    /// The counting client where something is before the Pub/Sub API.
    pub(crate) fn counting_behind(proxy: &str, org: &Org, events: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("count")
            .envs(org.variables()?)
            .env("ENDPOINT", proxy)
            .env("TOPIC", Class::Narrow.topic())
            .env("COUNT", events.to_string())
            .env("FROM", "earliest")
            .stdout(Stdio::piped());
        Self::of("the counting client", &mut command)
    }

    fn of(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut process = Process::start(name, command)?;
        let lines = process.lines()?;
        Ok(Self { process, lines })
    }

    /// What it prints at its end.
    pub(crate) async fn figures(&mut self) -> anyhow::Result<Value> {
        let limit = Duration::from_secs(300);
        let line = tokio::time::timeout(limit, self.lines.next_line()).await??;
        Ok(serde_json::from_str(
            &line.context("a client ended early")?,
        )?)
    }
}

fn program(program: &str, script: &str, folder: Option<&Path>) -> anyhow::Result<Command> {
    let folder = folder.context("not installed")?;
    let here = folder.join(program);
    let mut command = Command::new(if here.exists() { here } else { program.into() });
    command.arg(folder.join(script));
    Ok(command)
}

pub(crate) fn float(figures: &Value, name: &str) -> anyhow::Result<f64> {
    figures[name]
        .as_f64()
        .with_context(|| format!("no {name} in {figures}"))
}

fn of_micros(figures: &Value) -> anyhow::Result<Latency> {
    Ok(Latency {
        p50: float(figures, "p50_us")? / 1e3,
        p99: float(figures, "p99_us")? / 1e3,
        added_p99: None,
    })
}

/// Microseconds from publish to the line, and from the event's own time to the line, of each event that tells when it
/// was published.
async fn read_lines(
    mut lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut late, mut added) = (Vec::new(), Vec::new());
    while let Ok(Some(line)) = lines.next_line().await {
        let now = micros();
        let mut rest = line.as_bytes();
        let time = after_name(&mut rest, b"\"time\":\"").and_then(micros_of);
        let mut rest = line.as_bytes();
        let Some(sent) = after_name(&mut rest, b"\"eventuuid\":\"").and_then(number) else {
            continue;
        };
        late.push(now.saturating_sub(sent) as f64);
        added.extend(time.map(|time| now.saturating_sub(time) as f64));
    }
    (late, added)
}

/// A time of RFC 3339 in microseconds since 1970.
fn micros_of(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(text, format).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000).ok()
}

/// From now on the time at which each row is about to be committed is noted.
async fn note_commits(database: &Database) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    sqlx::raw_sql(
        "create table noted (id text, at timestamptz); \
         create function note() returns trigger language plpgsql as \
         'begin insert into noted values (new.event_uuid, clock_timestamp()); return null; end'; \
         create constraint trigger note after insert on orgstream_events \
         deferrable initially deferred for each row execute function note()",
    )
    .execute(&mut connection)
    .await?;
    Ok(())
}

async fn appended(database: &Database) -> anyhow::Result<Latency> {
    let mut connection = database.connect().await?;
    let row = sqlx::query(
        "select percentile_cont(array[0.5, 0.99]) within group \
         (order by (extract(epoch from at) * 1e6 - id::numeric)::float8 / 1e3) \
         from noted where id ~ '^[0-9]+$'",
    )
    .fetch_one(&mut connection)
    .await?;
    let shares: Vec<f64> = row.try_get(0)?;
    Ok(Latency {
        p50: shares.first().copied().context("no rows")?,
        p99: shares.last().copied().context("no rows")?,
        added_p99: None,
    })
}

/// Rows a second that COPY of psql puts into a table like that of `append`, of the rows that are there.
async fn copied(database: &Database) -> anyhow::Result<f64> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().display().to_string();
    psql(database, &format!("\\copy orgstream_events to '{path}'")).await?;
    psql(
        database,
        "create table copied (like orgstream_events including all)",
    )
    .await?;
    let began = std::time::Instant::now();
    psql(database, &format!("\\copy copied from '{path}'")).await?;
    let seconds = began.elapsed().as_secs_f64();
    let mut connection = database.connect().await?;
    let count = sqlx::query("select count(*) from copied")
        .fetch_one(&mut connection)
        .await?;
    Ok(count.try_get::<i64, _>(0)? as f64 / seconds)
}

async fn psql(database: &Database, command: &str) -> anyhow::Result<()> {
    let program = std::env::var("ORGSTREAM_BENCH_PSQL").unwrap_or_else(|_| "psql".into());
    let mut psql = Command::new(program);
    psql.args([
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        command,
        &database.url,
    ]);
    let output = psql.output().await.context("psql")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "psql: {said}");
    Ok(())
}

/// Waits until a daemon's handler has been given everything, for those who do not measure it.
pub(crate) async fn settled(daemon: &mut Daemon, name: &str, least: f64) -> anyhow::Result<()> {
    until(name, async || {
        Ok((daemon.metric(name, "").await? >= least).then_some(()))
    })
    .await
}
