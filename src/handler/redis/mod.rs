//! The `redis` handler: each event is an entry of a Redis stream.

mod connection;
mod trouble;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::{Cmd, Value};
use tracing::warn;

use super::registry::HandlerConfigError;
use super::{
    Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Options, Retry, Template, tls_options,
};
use crate::config::HandlerConfig;
use crate::event::{Event, rfc3339};
use connection::{Armed, Endpoint};
use trouble::{Trouble, server_trouble};

/// The streams where none are named.
const STREAM: &str = "orgstream:{topic}";

/// A connection that rested for longer is not used again: servers and load balancers close idle ones, often
/// after minutes and sometimes without a word.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Adds each event to a Redis stream (`XADD`).
///
/// Options: `url`; `stream`, a [`Template`] (`orgstream:{topic}`); `max_length`, about so many entries are kept;
/// `wait_replicas`, how many replicas must have an event before it is handled; `timeout` of a whole call (10 s),
/// `connect_timeout` (10 s); `tls_verify`, `ca_file`.
///
/// A batch is one transaction (`MULTI` … `EXEC`), so that no event gets in before an earlier one that was refused: a
/// server that is full, or that becomes a replica, refuses all of it. Every connection at rest has its `MULTI` behind
/// it, answered; else a server that refuses `MULTI` and takes what follows would take events one by one.
///
/// Redis has no deduplication that we could use: entries carry `id` and `subscription`, by which readers know a repeat.
/// What is wrong is hardly ever an event's own fault here, so all errors are a [`Retry`]; it counts only where the answer
/// is none that is known.
pub(super) struct RedisHandler {
    endpoint: Endpoint,
    stream: Template,
    max_length: i64,
    timeout: Duration,
    /// Connections at rest; never more than there were calls at one time.
    resting: Mutex<Vec<(Instant, Armed)>>,
}

impl RedisHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let url = options.required_text("url", "redis://HOST:PORT or rediss://HOST:PORT");
        let stream = options.text("stream").unwrap_or_else(|| STREAM.to_owned());
        let stream = Template::parse(&stream)
            .map_err(|reason| options.invalid("stream", reason))
            .ok();
        let max_length = options.integer("max_length", 0, 0..=i64::MAX);
        let wait_replicas = options.integer("wait_replicas", 0, 0..=16);
        let timeout = options.duration("timeout", Duration::from_secs(10));
        let connect_timeout = options.duration("connect_timeout", Duration::from_secs(10));
        let tls_verify = options.boolean("tls_verify", true);
        let ca = tls_options::ca_file(&mut options).map(|ca| ca.pem);
        let endpoint = url.and_then(|url| {
            connection::client(&url, tls_verify, ca)
                .map_err(|(key, reason)| options.invalid(key, reason))
                .ok()
        });
        let (client, stream) = options.finish(endpoint.zip(stream))?;
        Ok(Self {
            endpoint: Endpoint::new(client, connect_timeout, timeout, wait_replicas),
            stream,
            max_length,
            timeout,
            resting: Mutex::default(),
        })
    }

    /// Writes all of these, in order; says for each whether it is there.
    async fn write(&self, entries: Vec<Cmd>) -> Result<Vec<Result<(), Trouble>>, Trouble> {
        let mut connection = match self.rested() {
            Some(connection) => connection,
            None => self.endpoint.connect().await?,
        };
        let written = connection.transaction(entries).await?;
        // Dropped on every error above and by a cancelled call: what is left in it is unknown.
        self.rest(connection);
        Ok(written)
    }

    fn rested(&self) -> Option<Armed> {
        let mut resting = self.resting.lock().unwrap_or_else(|e| e.into_inner());
        resting.retain(|(since, _)| since.elapsed() < LONGEST_REST);
        // The one that was used last: the others age, and are closed when fewer are needed.
        resting.pop().map(|(_, connection)| connection)
    }

    /// Gives up what is at rest where it is in this trouble, too: each connection would find that out at the price of a
    /// failed call, which together look like a server that is still away, and without replicas of a repeat.
    fn give_up_rested(&self, trouble: &Trouble) {
        if trouble.is_of_all_connections() {
            let mut resting = self.resting.lock().unwrap_or_else(|e| e.into_inner());
            resting.clear();
        }
    }

    fn rest(&self, connection: Armed) {
        let mut resting = self.resting.lock().unwrap_or_else(|e| e.into_inner());
        resting.push((Instant::now(), connection));
    }

    /// The `XADD` of an event.
    fn entry(&self, subscription: &str, event: &Event) -> Cmd {
        let cloud_event = event.cloud_event();
        let mut entry = self.add_to(&self.stream.render(subscription, event));
        entry
            .arg("id")
            .arg(event.identity().as_str())
            .arg("subscription")
            .arg(subscription)
            .arg("type")
            .arg(cloud_event.type_name());
        if let Some(subject) = cloud_event.subject() {
            entry.arg("subject").arg(subject);
        }
        entry
            .arg("time")
            .arg(rfc3339(event.occurred_at()))
            .arg("event")
            .arg(cloud_event.to_json());
        entry
    }

    /// The beginning of an `XADD`, without fields.
    fn add_to(&self, stream: &str) -> Cmd {
        let mut entry = redis::cmd("XADD");
        entry.arg(stream);
        if self.max_length > 0 {
            // Nearly exact is much cheaper than exact, and never below.
            entry.arg("MAXLEN").arg("~").arg(self.max_length);
        }
        entry.arg("*");
        entry
    }

    /// What a trouble is for a person: which server, what, and the cure.
    fn reason(&self, trouble: &Trouble) -> String {
        trouble.reason(&self.endpoint, &self.stream)
    }

    fn retry(&self, trouble: &Trouble) -> Retry {
        let retry = Retry::because(self.reason(trouble));
        if trouble.is_the_servers() {
            retry.uncounted()
        } else {
            retry
        }
    }

    async fn look(&self) -> Result<(), Trouble> {
        let mut connection = self.endpoint.connect().await?;
        // Queued and thrown away: the server checks rights, room and role when it queues.
        let mut probe = self.add_to(&self.stream.filled("orgstream-check"));
        probe.arg("id").arg("check");
        connection.ask(&probe).await?;
        connection.ask(&redis::cmd("DISCARD")).await?;
        if let Some(stream) = self.stream.fixed() {
            let kind = connection.ask(redis::cmd("TYPE").arg(stream)).await;
            if let Ok(Value::SimpleString(kind)) = kind
                && !matches!(kind.as_str(), "stream" | "none")
            {
                return Err(server_trouble("WRONGTYPE", None));
            }
        }
        // What it says about itself is for a warning only, and not every user may ask.
        if let Ok(Value::BulkString(info)) = connection.ask(&redis::cmd("INFO")).await {
            self.warn_of(&String::from_utf8_lossy(&info));
        }
        Ok(())
    }

    /// Warns of settings under which the server may lose what it has acknowledged.
    fn warn_of(&self, info: &str) {
        let server = self.endpoint.name();
        let is = |line: &str| info.lines().any(|known| known.trim_end() == line);
        if is("aof_enabled:0") {
            warn!(
                server,
                "appendonly is off: a restart of the server may lose events that it has acknowledged; \
                 switch it on, or know that its provider keeps what it has"
            );
        }
        if info
            .lines()
            .any(|l| l.starts_with("maxmemory_policy:allkeys"))
            && !is("maxmemory:0")
        {
            warn!(
                server,
                "maxmemory-policy is one of allkeys-*: when memory is short the server deletes whole streams; \
                 set it to noeviction, then events wait instead"
            );
        }
    }
}

#[async_trait]
impl Handler for RedisHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let entries = batch
            .events
            .iter()
            .map(|event| self.entry(&batch.subscription, event));
        let entries = entries.collect();
        let written = tokio::time::timeout(self.timeout, self.write(entries))
            .await
            .unwrap_or(Err(Trouble::Late(self.timeout)));
        match written {
            Err(trouble) => {
                self.give_up_rested(&trouble);
                BatchAnswer::All(Answer::Retry(self.retry(&trouble)))
            }
            Ok(written) if written.iter().all(Result::is_ok) => BatchAnswer::HANDLED,
            Ok(written) => BatchAnswer::Each(
                written
                    .iter()
                    .map(|one| match one {
                        Ok(()) => Answer::Handled,
                        Err(trouble) => Answer::Retry(self.retry(trouble)),
                    })
                    .collect(),
            ),
        }
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 200,
            bytes: 1 << 20,
        }
    }

    /// Has an `XADD` checked by the server, without its taking effect, and warns of settings under which the server may
    /// lose events.
    async fn check(&self) -> Result<(), String> {
        tokio::time::timeout(self.timeout, self.look())
            .await
            .unwrap_or(Err(Trouble::Late(self.timeout)))
            .map_err(|trouble| self.reason(&trouble))
    }
}

// By hand: the client holds the password.
impl std::fmt::Debug for RedisHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHandler")
            .field("server", &self.endpoint.name())
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
