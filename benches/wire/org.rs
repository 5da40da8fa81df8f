//! The org: an emulator as a process of its own, filled through its admin API.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::events;
use super::process::{Process, program};

/// Different payloads of one kind; as many records are changed in turn.
const PAYLOADS: usize = 1_000;
/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What kind of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Platform events of some 100 bytes.
    Narrow,
    /// Updates of an object with 66 fields, of some 300 bytes.
    Wide,
}

impl Class {
    pub(crate) const ALL: [Self; 2] = [Self::Narrow, Self::Wide];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Narrow => "narrow",
            Self::Wide => "wide",
        }
    }

    pub(crate) fn topic(self) -> &'static str {
        match self {
            Self::Narrow => "/event/Bench__e",
            Self::Wide => "/data/Wide__ChangeEvent",
        }
    }

    /// The field that tells whose order an event is part of, where its header does not.
    pub(crate) fn key(self) -> Option<&'static str> {
        match self {
            Self::Narrow => Some("OrderNumber__c"),
            Self::Wide => None,
        }
    }

    fn corpus(self) -> anyhow::Result<events::Corpus> {
        events::corpus(
            match self {
                Self::Narrow => "narrow",
                Self::Wide => "update",
            },
            PAYLOADS,
        )
    }
}

/// Payloads of one class, ready to be put on the bus.
struct Stock {
    schema_id: String,
    payloads: Vec<String>,
}

/// An emulator, over TLS.
pub(crate) struct Org {
    _process: Process,
    http: reqwest::Client,
    described: Value,
    token: Value,
    ca: PathBuf,
    stocks: Vec<(Class, Stock)>,
}

impl Org {
    /// Starts one that has the topics of both classes and no events.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let ca = dir.join(format!("ca-{}.pem", uuid::Uuid::new_v4().simple()));
        let mut command = Command::new(program());
        command
            .args(["emulator", "--json", "--tls", "--ca-out"])
            .arg(&ca);
        let mut process = Process::start("the emulator", command.stdout(Stdio::piped()))?;
        let line = process.lines()?.next_line().await?;
        let described: Value = serde_json::from_str(&line.context("the emulator ended")?)?;
        let mut org = Self {
            _process: process,
            http: reqwest::Client::builder().no_proxy().build()?,
            described,
            token: Value::Null,
            ca,
            stocks: Vec::new(),
        };
        org.token = org.post("/tokens/access", &json!({})).await?;
        for class in Class::ALL {
            let corpus = class.corpus()?;
            let schema = json!({"topic": class.topic(), "schema": corpus.schemas.first()});
            let added = org.post("/schemas", &schema).await?;
            let payloads = corpus.payloads.iter();
            let stock = Stock {
                schema_id: added["schema_id"].as_str().context("no ID")?.to_owned(),
                payloads: payloads
                    .map(|(_, bytes)| BASE64_STANDARD.encode(bytes))
                    .collect(),
            };
            org.stocks.push((class, stock));
        }
        Ok(org)
    }

    /// Starts one with so many events waiting.
    pub(crate) async fn filled(dir: &Path, class: Class, count: usize) -> anyhow::Result<Self> {
        let org = Self::start(dir).await?;
        org.fill(class, count).await?;
        Ok(org)
    }

    /// Puts so many events on the bus at once.
    pub(crate) async fn fill(&self, class: Class, count: usize) -> anyhow::Result<()> {
        let stock = self.stock(class)?;
        let many = json!({"topic": class.topic(), "schema_id": stock.schema_id,
                          "payloads": stock.payloads, "count": count});
        self.post("/raw/many", &many).await.map(drop)
    }

    /// Publishes so many events, each on its own, 1,000 a second. The ID of each is the time at which it was sent, in
    /// microseconds since 1970.
    pub(crate) async fn publish_paced(&self, class: Class, count: usize) -> anyhow::Result<()> {
        let stock = self.stock(class)?;
        let mut beat = interval(Duration::from_millis(1));
        beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let began = Instant::now();
        let mut last = 0;
        for number in 0..count {
            beat.tick().await;
            last = micros().max(last + 1);
            let payload = stock.payloads.get(number % PAYLOADS);
            let event = json!({"topic": class.topic(), "schema_id": stock.schema_id,
                               "payload": payload, "id": last.to_string()});
            self.post("/raw", &event).await?;
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        if rate < 950.0 {
            super::say(&format!("only {rate:.0} events were published a second"));
        }
        Ok(())
    }

    /// Waits until a stream is open and asks for events.
    pub(crate) async fn subscribed(&self) -> anyhow::Result<()> {
        let asks = |state: &Value| {
            let streams = state["streams"].as_array();
            streams.is_some_and(|all| all.iter().any(|one| one["pending"].as_u64() > Some(0)))
        };
        until("a subscriber", async || {
            Ok(asks(&self.state().await?).then_some(()))
        })
        .await
    }

    /// What it has seen and holds.
    pub(crate) async fn state(&self) -> anyhow::Result<Value> {
        let url = format!("{}/state", self.text("admin_url")?);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// The Pub/Sub API's URL.
    pub(crate) fn endpoint(&self) -> anyhow::Result<&str> {
        self.text("pubsub_endpoint")
    }

    /// The variables that tell a client of another's make where to go and as whom.
    pub(crate) fn variables(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let endpoint = self.endpoint()?;
        let endpoint = endpoint.strip_prefix("https://").unwrap_or(endpoint);
        Ok(vec![
            ("ENDPOINT", endpoint.to_owned()),
            ("CA", self.ca.display().to_string()),
            ("TOKEN", self.token_text("access_token")?.to_owned()),
            ("INSTANCE_URL", self.token_text("instance_url")?.to_owned()),
            ("ORG_ID", self.token_text("organization_id")?.to_owned()),
        ])
    }

    /// `[salesforce]` of a daemon's configuration; `endpoint` where there is something before the Pub/Sub API.
    pub(crate) fn section(&self, endpoint: Option<&str>) -> anyhow::Result<String> {
        Ok(format!(
            "[salesforce]\nlogin_url = \"{}\"\npubsub_endpoint = \"{}\"\nca_file = \"{}\"\n\
             auth = \"access_token\"\naccess_token = \"{}\"\ninstance_url = \"{}\"\norg_id = \"{}\"\n",
            self.text("login_url")?,
            endpoint.map_or_else(|| self.endpoint(), Ok)?,
            self.ca.display(),
            self.token_text("access_token")?,
            self.token_text("instance_url")?,
            self.token_text("organization_id")?,
        ))
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.text("admin_url")?);
        let answer = self.http.post(url).body(body.to_string()).send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        let text = String::from_utf8_lossy(&bytes);
        anyhow::ensure!(status.is_success(), "the emulator refused {path}: {text}");
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn stock(&self, class: Class) -> anyhow::Result<&Stock> {
        let found = self.stocks.iter().find(|(of, _)| *of == class);
        Ok(&found.context("no stock")?.1)
    }

    fn text(&self, name: &str) -> anyhow::Result<&str> {
        self.described[name].as_str().context("not described")
    }

    fn token_text(&self, name: &str) -> anyhow::Result<&str> {
        self.token[name].as_str().context("no token")
    }
}

/// Microseconds since 1970.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Looks every 20 ms until something is there; an error where it takes longer than a minute.
pub(crate) async fn until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
