//! Daemons as processes, each with lines of its own to the org and to Postgres that can be troubled.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::cluster::signal;
use super::plan::{HandlerKind, Plan};
use super::proxy::Proxy;
use super::recorder::Recorder;

/// Platforms kill 30 s after they ask; a busy machine is given more.
const STOP_LIMIT: Duration = Duration::from_secs(45);

/// Logged by a process that knows of signals. Before that it has nothing to end in peace.
const KNOWS_OF_SIGNALS: &str = "signed in";

/// What every worker's configuration is made of.
pub(crate) struct Setting {
    pub(crate) login_url: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    /// Without the name that a process gives its connections.
    pub(crate) subscriptions: Mutex<String>,
    /// `[store] lease`.
    pub(crate) lease: &'static str,
    pub(crate) logs: PathBuf,
}

impl Setting {
    /// The subscriptions as configuration text.
    pub(crate) fn subscriptions(&self) -> String {
        let text = self.subscriptions.lock();
        text.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A subscription is called so from the next start on; its handlers keep their far ends.
    pub(crate) fn rename(&self, old: &str, new: &str) {
        let text = self.subscriptions.lock();
        let mut text = text.unwrap_or_else(PoisonError::into_inner);
        *text = text.replace(
            &format!("[[subscription]]\nname = \"{old}\"\n"),
            &format!("[[subscription]]\nname = \"{new}\"\n"),
        );
    }
}

/// The subscriptions of a plan as configuration text.
pub(crate) fn subscriptions(plan: &Plan, recorder: &Recorder) -> String {
    let mut text = String::new();
    for s in &plan.subscriptions {
        text += &format!(
            "[[subscription]]\nname = \"{}\"\ntopic = \"{}\"\nstart = \"{}\"\non_expired_replay_id = \"{}\"\n\
             ordering = \"{}\"\nconcurrency = {}\nmax_in_flight = {}\nschema_wait = \"2m\"\n",
            s.name(),
            s.feed.topic(),
            s.start,
            s.on_expired,
            s.ordering,
            s.concurrency,
            s.max_in_flight,
        );
        if s.grouped {
            text += "group = \"transaction\"\ngroup_wait = \"300ms\"\n";
        }
        if s.feed == super::plan::Feed::Orders {
            text += "key = \"OrderNumber__c\"\n";
        }
        for h in &s.handlers {
            text += &format!(
                "[[subscription.handler]]\nname = \"{}\"\nretry = {{ attempts = {}, initial = \"20ms\", \
                 max = \"300ms\" }}\n",
                h.name, h.attempts
            );
            text += &match h.kind {
                HandlerKind::Webhook => format!(
                    "type = \"webhook\"\nurl = \"{}\"\ntimeout = \"{}ms\"\n",
                    recorder.url(s.name(), h.name),
                    h.timeout.as_millis()
                ),
                HandlerKind::Append => format!(
                    "type = \"postgres\"\nmode = \"append\"\ntable = \"{}_{}\"\ntimeout = \"2s\"\n",
                    s.name(),
                    h.name
                ),
            };
        }
    }
    text
}

/// One place where a daemon runs, again and again.
pub(crate) struct Worker {
    index: usize,
    process: Option<Child>,
    starts: usize,
    log: PathBuf,
    org_line: std::net::SocketAddr,
    /// URL of the database through this worker's own line.
    store_url: String,
}

impl Worker {
    pub(crate) fn new(index: usize, org_line: &Proxy, store_url: String) -> Self {
        Self {
            index,
            process: None,
            starts: 0,
            log: PathBuf::new(),
            org_line: org_line.addr,
            store_url,
        }
    }

    fn config(&self, setting: &Setting) -> String {
        format!(
            r#"
[salesforce]
login_url = "{}"
pubsub_endpoint = "http://{}"
auth = "client_credentials"
client_id = "{}"
client_secret = "{}"
reconnect = {{ initial = "50ms", max = "500ms" }}
blocked_retry = {{ initial = "200ms", max = "1s" }}
allocation_retry = {{ initial = "200ms", max = "1s" }}
silence_limit = "1500ms"
ping_interval = "700ms"
ping_timeout = "700ms"
[store]
url = "{}?application_name=worker-{}-{}"
timeout = "1s"
lease = "{}"
{}"#,
            setting.login_url,
            self.org_line,
            setting.client_id,
            setting.client_secret,
            self.store_url,
            self.index,
            self.starts,
            setting.lease,
            setting.subscriptions()
        )
    }

    fn command(&self, setting: &Setting, args: &[&str]) -> Command {
        let mut command = Command::new(super::emulator::program());
        command
            .args(args)
            .env_clear()
            .env("ORGSTREAM_LOG", "info")
            .env("ORGSTREAM_LOG_FORMAT", "logfmt")
            .env("RUST_BACKTRACE", "1")
            .env("ORGSTREAM_CONFIG", self.config(setting))
            .current_dir(&setting.logs)
            .stdin(Stdio::null());
        command
    }

    /// Starts a new process; nothing where one runs.
    pub(crate) fn start(&mut self, setting: &Setting) -> anyhow::Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.starts += 1;
        let name = format!("worker-{}-{}.log", self.index, self.starts);
        self.log = setting.logs.join(name);
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = self
            .command(setting, &["run"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start orgstream")?;
        self.process = Some(child);
        Ok(())
    }

    /// The process that runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Sends a signal to the process, where one runs.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(process) = &self.process {
            signal(name, &[process.id()]);
        }
    }

    /// An error where the process ended by itself.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.try_wait()?
        {
            self.process = None;
            bail!("worker {} ended by itself with {status}", self.index);
        }
        Ok(())
    }

    /// SIGKILL, and the end of it.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and the end of it, which has to come in time and in peace.
    pub(crate) async fn terminate(&mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        signal("TERM", &[process.id()]);
        let asked = Instant::now();
        loop {
            if let Some(status) = process.try_wait()? {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                if !status.success() && log.contains(KNOWS_OF_SIGNALS) {
                    bail!("worker {} ended with {status} after SIGTERM", self.index);
                }
                return Ok(());
            }
            if asked.elapsed() > STOP_LIMIT {
                process.kill()?;
                process.wait()?;
                bail!(
                    "worker {} did not end within {STOP_LIMIT:?} of SIGTERM",
                    self.index
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
