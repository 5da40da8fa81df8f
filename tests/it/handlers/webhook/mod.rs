//! The `webhook` handler against a receiver in a process of its own.

mod endpoint;
mod troubles;

use serde_json::{Value, json};

use self::endpoint::{Certificates, Endpoint, Request, library};
use super::endurance::{FarSide, Received, endure};
use super::throughput::measure;
use crate::support::{Daemon, Emulator, Store, account_update, configured, names, record, webhook};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Two secrets of Standard Webhooks.
const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The daemon's configuration with this handler.
fn accounts(org: &Emulator, store: &Store, subscription: &str, handler: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, &subscription),
        handler,
    )
}

async fn publish(org: &Emulator, count: usize) {
    for first in (0..count).step_by(50) {
        let events: Vec<Value> = (first..count.min(first + 50))
            .map(|n| account_update(&record(n % 10), &n.to_string()))
            .collect();
        org.publish(ACCOUNTS, &events).await;
    }
}

/// Runs a daemon with this handler until so many events were accepted; gives the requests.
async fn accepted(endpoint: &Endpoint, handler: &str, count: usize) -> Vec<Request> {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    publish(&org, count).await;
    let daemon = Daemon::run(&accounts(&org, &store, "", handler));
    let requests = endpoint.accepts(count).await;
    assert_eq!(daemon.stop().await.1, 0);
    requests
}

fn url(endpoint: &Endpoint, scheme: &str) -> String {
    format!("{scheme}://127.0.0.1:{}/salesforce", endpoint.port)
}

/// How many connections they came by.
fn connections(requests: &[Request]) -> usize {
    let all: std::collections::HashSet<_> = requests.iter().map(|r| r.connection).collect();
    all.len()
}

struct Receiver {
    endpoint: Endpoint,
    certificates: Certificates,
    folder: tempfile::TempDir,
    lines: &'static str,
}

impl Receiver {
    /// HTTP/2 with TLS, certificates on both sides, and signatures.
    fn start(lines: &'static str) -> Option<Self> {
        let certificates = Certificates::new();
        let mut settings = certificates.settings(true);
        settings["secret"] = json!(NEW);
        Some(Self {
            endpoint: Endpoint::start(settings)?,
            certificates,
            folder: tempfile::tempdir().unwrap(),
            lines,
        })
    }
}

impl FarSide for Receiver {
    fn handler(&self) -> String {
        format!(
            "type = \"webhook\"\nurl = \"{}\"\nsigning_secrets = \"{OLD},{NEW}\"\n{}{}",
            url(&self.endpoint, "https"),
            self.certificates.as_files(self.folder.path()),
            self.lines,
        )
    }

    async fn restart(&mut self) {
        self.endpoint.restart();
    }

    async fn received(&self) -> Vec<Received> {
        let requests = self.endpoint.requests();
        let events = requests.iter().flat_map(Request::events);
        events.map(|event| Received::of(&event)).collect()
    }
}

#[tokio::test]
async fn ten_thousand_events_are_posted_in_order_through_kills_and_restarts() {
    if let Some(receiver) = Receiver::start("") {
        endure(receiver).await;
    }
}

#[tokio::test]
async fn ten_thousand_events_are_posted_in_batches_through_kills_and_restarts() {
    if let Some(receiver) = Receiver::start("mode = \"batched\"\nbatch_events = 20\n") {
        endure(receiver).await;
    }
}

#[tokio::test]
async fn every_mode_arrives_over_every_version_of_http() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let files = certificates.as_files(folder.path());
    for (version, scheme, mut settings) in [
        ("1.1", "http", json!({})),
        ("1.1", "https", certificates.settings(true)),
        ("2.0", "https", certificates.settings(true)),
    ] {
        settings["http1"] = json!(version == "1.1");
        settings["path"] = json!("/salesforce");
        settings["secret"] = json!(NEW);
        for mode in ["structured", "binary", "batched"] {
            let Some(endpoint) = Endpoint::start(settings.clone()) else {
                return;
            };
            let lines = format!(
                "mode = \"{mode}\"\nsigning_secrets = [\"{OLD}\", \"{NEW}\"]\n{}",
                if scheme == "https" { &files } else { "" }
            );
            let handler = webhook(&url(&endpoint, scheme), &lines);
            let requests = accepted(&endpoint, &handler, 30).await;
            check_mode(mode, &requests);
            for request in &requests {
                assert_eq!(request.http, version);
                let client = (scheme == "https").then_some("orgstream of the tests");
                assert_eq!(request.client.as_deref(), client);
            }
        }
    }
}

fn check_mode(mode: &str, requests: &[Request]) {
    let content_type = match mode {
        "structured" => "application/cloudevents+json; charset=utf-8",
        "binary" => "application/json",
        _ => "application/cloudevents-batch+json; charset=utf-8",
    };
    let mut seen = Vec::new();
    for request in requests {
        assert_eq!(request.header("content-type"), content_type);
        assert!(request.header("idempotency-key").starts_with("accounts:"));
        if mode == "binary" {
            let data = request.events().remove(0);
            let id = request.header("ce-id");
            assert_eq!(request.header("idempotency-key"), format!("accounts:{id}"));
            assert_eq!(
                data["ChangeEventHeader"]["recordIds"][0],
                request.header("ce-subject")
            );
            seen.push(json!({"data": data}));
        } else {
            seen.extend(request.events());
        }
    }
    let mut numbers: Vec<usize> = names(&seen).iter().map(|n| n.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..30).collect::<Vec<_>>(), "{mode}");
}

#[tokio::test]
async fn the_published_library_accepts_signatures_while_secrets_rotate() {
    let Some(library) = library() else { return };
    // The receiver has the old one, then the new one; both are configured here.
    for (secret, mode) in [(OLD, "structured"), (NEW, "binary"), (NEW, "batched")] {
        let settings = json!({"secret": secret, "library": library});
        let Some(endpoint) = Endpoint::start(settings) else {
            return;
        };
        let lines = format!("mode = \"{mode}\"\nsigning_secrets = \"{NEW} {OLD}\"");
        let handler = webhook(&url(&endpoint, "http"), &lines);
        let requests = accepted(&endpoint, &handler, 20).await;
        let ids: std::collections::HashSet<_> =
            requests.iter().map(|r| r.header("webhook-id")).collect();
        assert_eq!(ids.len(), requests.len(), "each message has its own");
    }
}

#[tokio::test]
async fn one_connection_carries_all_requests_once_it_is_there() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let files = certificates.as_files(folder.path());
    let (org, store) = (Emulator::start().await, Store::sqlite());
    publish(&org, 100).await;
    for (version, concurrency) in [("1.1", 1), ("2.0", 8)] {
        let mut settings = certificates.settings(true);
        settings["http1"] = json!(version == "1.1");
        let Some(endpoint) = Endpoint::start(settings) else {
            return;
        };
        let store = if version == "1.1" {
            &store
        } else {
            &Store::sqlite()
        };
        let subscription = format!("concurrency = {concurrency}");
        let handler = webhook(&url(&endpoint, "https"), &files);
        let daemon = Daemon::run(&accounts(&org, store, &subscription, &handler));
        let requests = endpoint.accepts(100).await;
        assert_eq!(daemon.stop().await.1, 0);
        // Before it is known to be HTTP/2, each of the first calls may have opened one.
        let later = &requests[concurrency..];
        assert_eq!(connections(later), 1, "HTTP/{version}");
        assert!(connections(&requests) <= concurrency, "HTTP/{version}");
    }
}

#[tokio::test]
async fn at_most_as_many_connections_as_calls_may_be_made_at_once() {
    let Some(endpoint) = Endpoint::start(json!({})) else {
        return;
    };
    let handler = webhook(&url(&endpoint, "http"), "");
    let requests = accepted(&endpoint, &handler, 200).await;
    let connections = connections(&requests);
    assert!((1..=8).contains(&connections), "{connections}");
}

#[tokio::test]
async fn several_events_share_a_request_where_several_wait() {
    let Some(endpoint) = Endpoint::start(json!({})) else {
        return;
    };
    let lines = "mode = \"batched\"\nbatch_events = 25";
    let handler = webhook(&url(&endpoint, "http"), lines);
    let requests = accepted(&endpoint, &handler, 200).await;
    let sizes: Vec<usize> = requests.iter().map(|r| r.events().len()).collect();
    assert!(
        sizes.iter().all(|size| (1..=25).contains(size)),
        "{sizes:?}"
    );
    assert!(sizes.len() < 100, "hardly any batches: {sizes:?}");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used_and_looks_the_name_up() {
    // The receiver stands in for the proxy, which gets requests with whole addresses.
    let Some(endpoint) = Endpoint::start(json!({"path": "http://hook.example/salesforce"})) else {
        return;
    };
    let (org, store) = (Emulator::start().await, Store::sqlite());
    publish(&org, 5).await;
    let handler = webhook("http://hook.example/salesforce", "");
    let proxy = format!("http://localhost:{}", endpoint.port);
    let daemon = Daemon::run_with(
        &accounts(&org, &store, "", &handler),
        &[("http_proxy", &proxy)],
    );
    endpoint.accepts(5).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_webhook() {
    measure("webhook", async || Receiver::start("")).await;
    let batched = "mode = \"batched\"\nbatch_events = 50\n";
    measure("webhook, batches of 50", async || Receiver::start(batched)).await;
}
