//! What goes wrong between the daemon and the receiver: it says so, keeps the events, and delivers them once it
//! is mended.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::endpoint::{Certificates, Endpoint};
use super::{accounts, publish, url};
use crate::support::{Daemon, Emulator, Store, account_update, names, record, webhook};

const EVENTS: usize = 20;

/// A trouble, and the way out of it.
struct Trouble {
    /// Parts of what is said, the cure among them.
    says: &'static [&'static str],
    /// Whether `orgstream check` sees it: most receivers answer nothing of use to what is no POST.
    seen_by_check: bool,
    /// Settings of the receiver with the trouble; `None` where none runs.
    wrong: Option<Value>,
    /// Its settings when it is mended there.
    right: Value,
    /// Lines of the handler, and better ones where it is mended here.
    lines: String,
    mended_lines: Option<String>,
}

impl Trouble {
    fn at_the_receiver(says: &'static [&'static str], wrong: Option<Value>, right: Value) -> Self {
        Self {
            says,
            seen_by_check: false,
            wrong,
            right,
            lines: String::new(),
            mended_lines: None,
        }
    }

    fn here(
        says: &'static [&'static str],
        settings: Value,
        lines: impl Into<String>,
        mended: impl Into<String>,
    ) -> Self {
        Self {
            says,
            seen_by_check: false,
            wrong: Some(settings.clone()),
            right: settings,
            lines: lines.into(),
            mended_lines: Some(mended.into()),
        }
    }

    fn seen_by_check(self) -> Self {
        Self {
            seen_by_check: true,
            ..self
        }
    }
}

/// Publishes, sees the trouble, mends it, and sees every event arrive in order.
async fn mended(trouble: Trouble, scheme: &str) {
    let settings = trouble.wrong.clone().unwrap_or(trouble.right.clone());
    let Some(mut endpoint) = Endpoint::start(settings) else {
        return;
    };
    if trouble.wrong.is_none() {
        endpoint.down();
    }
    let (org, store) = (Emulator::start().await, Store::sqlite());
    publish(&org, EVENTS).await;
    let address = format!("{}?code=planted", url(&endpoint, scheme));
    let config = |lines: &str| accounts(&org, &store, "", &webhook(&address, lines));
    let wrong = config(&trouble.lines);
    if trouble.seen_by_check {
        let (code, out, _) = Daemon::output(&["check"], &wrong, &BTreeMap::new()).await;
        let failed = out.lines().find(|line| line.starts_with("failed"));
        let failed = failed.unwrap_or_else(|| panic!("nothing failed: {out}"));
        assert_eq!(code, 1);
        says(failed, trouble.says);
    }
    let mut daemon = Daemon::run(&wrong);
    let line = daemon
        .logged(&["level=warn", "handler=hook", "held back"])
        .await;
    says(&line, trouble.says);
    assert_eq!(endpoint.requests().len(), 0);

    match &trouble.mended_lines {
        Some(lines) => {
            assert_eq!(daemon.stop().await.1, 0);
            daemon = Daemon::run(&config(lines));
        }
        None => endpoint.restart_with(trouble.right.clone()),
    }
    let requests = endpoint.accepts(EVENTS).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
    assert_eq!(requests.len(), EVENTS);
    for n in 0..10 {
        let of_record: Vec<Value> = requests
            .iter()
            .flat_map(|request| request.events())
            .filter(|event| event["subject"] == record(n))
            .collect();
        assert_eq!(names(&of_record), [n.to_string(), (n + 10).to_string()]);
    }
}

fn says(line: &str, parts: &[&str]) {
    println!("--- {line}");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
    assert!(!line.contains("planted"), "{line}");
}

#[tokio::test]
async fn a_receiver_that_is_away() {
    let trouble = Trouble::at_the_receiver(
        &[
            "hook",
            "no answer from http://127.0.0.1",
            "onnection refused",
        ],
        None,
        json!({}),
    );
    mended(trouble.seen_by_check(), "http").await;
}

#[tokio::test]
async fn a_path_that_is_not_there() {
    let trouble = Trouble::at_the_receiver(
        &["hook", "404", "look at `url`"],
        Some(json!({"path": "/elsewhere"})),
        json!({}),
    );
    mended(trouble, "http").await;
}

#[tokio::test]
async fn credentials_that_are_not_known() {
    let trouble = Trouble::here(
        &["hook", "401", "look at `headers`"],
        json!({"token": "Bearer right"}),
        "headers = { Authorization = \"Bearer planted\" }",
        "headers = { Authorization = \"Bearer right\" }",
    );
    mended(trouble.seen_by_check(), "http").await;
}

#[tokio::test]
async fn a_signature_by_another_secret() {
    let trouble = Trouble::here(
        &["hook", "401", "`signing_secrets`"],
        json!({"secret": super::NEW}),
        format!("signing_secrets = \"{}\"", super::OLD),
        format!("signing_secrets = [\"{}\", \"{}\"]", super::OLD, super::NEW),
    );
    mended(trouble, "http").await;
}

#[tokio::test]
async fn a_ca_that_is_not_trusted() {
    let certificates = Certificates::new();
    let trouble = Trouble::here(
        &["hook", "UnknownIssuer", "`ca_file`"],
        certificates.settings(false),
        "",
        format!("ca = '''{}'''", certificates.ca),
    );
    mended(trouble.seen_by_check(), "https").await;
}

#[tokio::test]
async fn a_client_certificate_that_is_missing() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = format!("ca = '''{}'''", certificates.ca);
    let mut http1 = certificates.settings(true);
    http1["http1"] = json!(true);
    for settings in [certificates.settings(true), http1] {
        let trouble = Trouble::here(
            &["hook", "`client_cert`"],
            settings,
            &ca,
            certificates.as_files(folder.path()),
        );
        mended(trouble.seen_by_check(), "https").await;
    }
}

#[tokio::test]
async fn tls_to_a_receiver_that_does_not_speak_it() {
    let certificates = Certificates::new();
    let mut trouble = Trouble::at_the_receiver(
        &["hook", "no answer from https://127.0.0.1", "look at `url`"],
        Some(json!({})),
        certificates.settings(false),
    );
    trouble.lines = format!("ca = '''{}'''", certificates.ca);
    mended(trouble.seen_by_check(), "https").await;
}

#[tokio::test]
async fn a_disk_that_is_full() {
    let trouble = Trouble::at_the_receiver(
        &["hook", "507", "no room left"],
        Some(json!({"journal": "/dev/full"})),
        json!({}),
    );
    mended(trouble, "http").await;
}

#[tokio::test]
async fn a_private_address_is_a_configuration_error_that_names_the_cure() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    for address in [
        "http://10.1.2.3/planted",
        "http://[::ffff:169.254.169.254]/planted",
    ] {
        let config = accounts(&org, &store, "", &webhook(address, ""));
        let (code, out, err) = Daemon::output(&["run"], &config, &BTreeMap::new()).await;
        let said = format!("{out}{err}");
        assert_eq!(code, 78, "{said}");
        says(&said, &["handler.url", "`allow_private_addresses`"]);
    }
}

#[tokio::test]
async fn of_a_batch_only_the_event_is_parked_that_is_refused() {
    let Some(endpoint) = Endpoint::start(json!({"poison": "poison", "max_body": 60_000})) else {
        return;
    };
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let mut events: Vec<Value> = (0..60)
        .map(|n| account_update(&record(n), &n.to_string()))
        .collect();
    events[17]["Name"] = json!("poison");
    events[42]["Name"] = json!("x".repeat(70_000));
    org.publish(super::ACCOUNTS, &events).await;
    let lines = "mode = \"batched\"";
    let handler = webhook(&url(&endpoint, "http"), lines);
    let daemon = Daemon::run(&accounts(&org, &store, "", &handler));
    let requests = endpoint.accepts(58).await;
    let parked = store.parks(2).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(parked.len(), 2);
    let handled: Vec<Value> = requests.iter().flat_map(|r| r.events()).collect();
    assert_eq!(handled.len(), 58, "each of the others once");
    let reasons: Vec<&str> = parked
        .iter()
        .map(|letter| letter.letter.error.as_str())
        .collect();
    assert!(
        reasons[0].contains("422") && reasons[1].contains("413"),
        "{reasons:?}"
    );
}
