//! The far side of the webhook rows: takes each request, waits as long as it is told, and says 200. A process of its own.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::process::Command;

use super::figures::quantile;
use super::org::micros;
use super::process::Process;

/// What it does with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// Answers after so many milliseconds.
    After(u64),
    /// Never answers.
    Hang,
}

#[derive(Clone)]
struct Desk {
    manner: Manner,
    latencies: Arc<Mutex<Vec<f64>>>,
}

/// The receiver's process itself; `manner` is milliseconds, or `hang`.
pub(crate) async fn run(manner: &str) -> anyhow::Result<()> {
    let manner = match manner {
        "hang" => Manner::Hang,
        ms => Manner::After(ms.parse()?),
    };
    let desk = Desk {
        manner,
        latencies: Arc::default(),
    };
    let router = Router::new()
        .route("/events", post(take))
        .route("/figures", get(figures))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(desk);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn take(State(desk): State<Desk>, body: Bytes) {
    let now = micros();
    let mut rest: &[u8] = &body;
    // An ID is a number where the publisher has put the time there, else a UUID.
    while let Some(id) = after_name(&mut rest, b"\"eventuuid\":\"")
        && let Some(sent) = number(id)
    {
        let late = now.saturating_sub(sent) as f64;
        desk.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(late);
    }
    match desk.manner {
        Manner::After(0) => {}
        Manner::After(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Manner::Hang => std::future::pending().await,
    }
}

async fn figures(State(desk): State<Desk>) -> String {
    let mut all = desk
        .latencies
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    json!({"count": all.len(), "p50_us": quantile(&mut all, 0.5), "p99_us": quantile(&mut all, 0.99)}).to_string()
}

/// What follows a name, up to a quote; moves on behind it.
pub(crate) fn after_name<'a>(rest: &mut &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = rest.windows(name.len()).position(|window| window == name)?;
    let (_, value) = rest.split_at_checked(at + name.len())?;
    let end = value.iter().position(|byte| *byte == b'"')?;
    let (value, behind) = value.split_at_checked(end)?;
    *rest = behind;
    Some(value)
}

/// A number in decimal digits alone.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A receiver as a process.
pub(crate) struct Receiver {
    _process: Process,
    address: String,
}

impl Receiver {
    pub(crate) async fn start(manner: Manner) -> anyhow::Result<Self> {
        let manner = match manner {
            Manner::After(ms) => ms.to_string(),
            Manner::Hang => "hang".to_owned(),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["receive", &manner]).stdout(Stdio::piped());
        let mut process = Process::start("the receiver", &mut command)?;
        let address = process.lines()?.next_line().await?.context("no address")?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    /// Lines of a handler that posts to it.
    pub(crate) fn handler(&self, more: &str) -> String {
        let address = &self.address;
        format!("type = \"webhook\"\nurl = \"http://{address}/events\"\n{more}\n")
    }

    /// Its `count`, `p50_us` and `p99_us`.
    pub(crate) async fn figures(&self) -> anyhow::Result<Value> {
        let url = format!("http://{}/figures", self.address);
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(serde_json::from_slice(
            &client.get(url).send().await?.bytes().await?,
        )?)
    }
}
