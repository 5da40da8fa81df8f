//! What an administrator has to mend: `check` says it in one line, `run` says it, waits, and goes on by
//! itself when it is mended, with what was published meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::support::metrics::METRICS;
use crate::support::proxy::{Line, Proxy};
use crate::support::{
    Daemon, Emulator, Metrics, Receiver, Store, account_update, eventually, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(salesforce: &str, store: &str, topic: &str) -> String {
    format!(
        "{salesforce}\n[store]\nurl = \"{store}\"\ntimeout = \"2s\"\n[[subscription]]\nname = \"it\"\n\
         topic = \"{topic}\"\nstart = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n"
    )
}

/// Runs `check`, which must fail in one line that holds all these texts.
async fn check_fails(config: &str, parts: &[&str]) {
    let (code, out, err) = Daemon::output(&["check"], config, &BTreeMap::new()).await;
    println!("--- check: exit {code}\n{out}\n{err}");
    let failed: Vec<&str> = out
        .lines()
        .filter(|line| line.starts_with("failed"))
        .collect();
    assert_eq!((code, failed.len()), (1, 1), "{out}\n{err}");
    for part in parts {
        assert!(failed[0].contains(part), "no {part:?} in: {}", failed[0]);
    }
}

async fn check_is_well(config: &str) {
    let (code, out, err) = Daemon::output(&["check"], config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(!out.contains("failed"), "{out}");
}

/// What the store says of the one subscription.
async fn status(config: &str) -> Value {
    let (_, out, err) = Daemon::output(&["status", "--json"], config, &BTreeMap::new()).await;
    let status: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{err}"));
    status[0].clone()
}

/// Waits until the store says that the subscription is blocked, with these texts.
async fn status_is_blocked(config: &str, parts: &[&str]) {
    let detail = eventually("blocked in the store", async || {
        let status = status(config).await;
        (status["state"] == "blocked").then(|| status["detail"].as_str().unwrap().to_owned())
    })
    .await;
    println!("--- status: {detail}");
    assert!(!detail.contains(".."), "{detail}");
    for part in parts {
        assert!(detail.contains(part), "no {part:?} in: {detail}");
    }
}

/// It is one process that came back, and it ends as it should.
async fn ends_well(daemon: Daemon, events: &[&str]) {
    let (written, code) = daemon.stop().await;
    let names: Vec<&str> = written
        .iter()
        .map(|event| event["data"]["Name"].as_str().unwrap_or("?"))
        .collect();
    assert_eq!((names.as_slice(), code), (events, 0));
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

fn jwt(org: &Emulator, key: &std::path::Path) -> String {
    org.salesforce()
        .replace("\"client_credentials\"", "\"jwt\"")
        .replace(
            &format!("client_secret = \"{}\"", org.text("client_secret")),
            &format!(
                "username = \"{}\"\nprivate_key_file = \"{}\"",
                org.text("username"),
                key.display()
            ),
        )
}

#[tokio::test]
async fn a_clock_that_is_off_by_an_hour_blocks_until_it_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let org = Emulator::start_with(&["--generate-key", key.to_str().unwrap()]).await;
    let store = Store::sqlite();
    let config = config(&jwt(&org, &key), &store.url, ACCOUNTS);
    publish(&org, "one").await;
    for (offset, direction) in [(3_600_000, "behind"), (-3_600_000, "ahead of")] {
        org.post("/clock", &json!({"offset_ms": offset})).await;
        let (code, out, _) = Daemon::output(&["check"], &config, &BTreeMap::new()).await;
        println!("{out}");
        assert_eq!(code, 1, "{out}");
        let clock = out.lines().find(|line| line.contains("clock:")).unwrap();
        assert!(
            clock.starts_with("failed") && clock.contains(direction) && clock.contains("NTP"),
            "{out}"
        );
    }
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    let line = daemon
        .logged(&["sign in", "expired authorization code"])
        .await;
    println!("{line}");
    assert!(
        line.contains("clock is 60 min ahead of the login host's"),
        "{line}"
    );
    org.post("/clock", &json!({"offset_ms": 0})).await;
    daemon.handled(1).await;
    metrics.state("it", "live").await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    ends_well(daemon, &["one", "two"]).await;
}

#[tokio::test]
async fn a_refused_login_says_what_to_change_and_recovers_without_a_restart() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org.salesforce(), &store.url, ACCOUNTS);
    publish(&org, "one").await;
    let refusals: &[(&str, &str, i32, &[&str])] = &[
        (
            "invalid_client",
            "invalid client credentials",
            401,
            &["SALESFORCE_CLIENT_SECRET"],
        ),
        (
            "invalid_client_id",
            "client identifier invalid",
            400,
            &["SALESFORCE_CLIENT_ID"],
        ),
        (
            "invalid_grant",
            "user hasn't approved this consumer",
            400,
            &["Permitted Users"],
        ),
        ("invalid_grant", "inactive user", 400, &["Setup > Users"]),
        ("invalid_grant", "ip restricted", 400, &["IP Relaxation"]),
        (
            "invalid_grant",
            "no client credentials user enabled",
            400,
            &["Run As"],
        ),
        (
            "unsupported_grant_type",
            "grant type not supported",
            400,
            &["login_url"],
        ),
        ("something_new", "never heard of", 400, &["Login History"]),
    ];
    let mut daemon = None;
    for (code, message, status, cure) in refusals {
        org.clear_faults().await;
        org.fault(json!({
            "rpc": "Token", "kind": "error", "code": code, "message": message, "status": status
        }))
        .await;
        let parts: Vec<&str> = [&[*code, *message], *cure].concat();
        check_fails(&config, &parts).await;
        let daemon = daemon.get_or_insert_with(|| Daemon::run_with(&config, &[METRICS]));
        let line = daemon
            .logged(&[&["cannot begin"], parts.as_slice()].concat())
            .await;
        assert!(line.contains("level=warn"), "{line}");
    }
    let mut daemon = daemon.unwrap();
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    org.clear_faults().await;
    daemon.handled(1).await;
    check_is_well(&config).await;

    // The same while it runs: the token is gone, and no new one is given.
    org.fault(json!({
        "rpc": "Token", "kind": "error", "code": "inactive_user", "message": "user is locked"
    }))
    .await;
    org.post("/tokens/revoke", &json!({})).await;
    org.post("/connections/drop", &json!({})).await;
    metrics.state("it", "blocked").await;
    daemon
        .logged(&["blocked", "inactive_user", "Setup > Users"])
        .await;
    status_is_blocked(&config, &["inactive_user", "Setup > Users"]).await;
    publish(&org, "two").await;
    org.clear_faults().await;
    daemon.handled(2).await;
    metrics.state("it", "live").await;
    ends_well(daemon, &["one", "two"]).await;
}

async fn an_unknown_topic_blocks_until_it_is_created(answer: &str) {
    let org = Emulator::start().await;
    org.settings(json!({"unknown_topic": answer})).await;
    let store = Store::sqlite();
    let config = config(&org.salesforce(), &store.url, "/event/Later__e");
    check_fails(&config, &["/event/Later__e"]).await;
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    let line = daemon
        .logged(&["level=warn", "blocked", "/event/Later__e"])
        .await;
    println!("{line}");
    assert!(line.contains("cure="), "{line}");
    status_is_blocked(&config, &["topic.not.found", "Setup > Platform Events"]).await;

    let schema = json!({
        "type": "record", "name": "Later__e", "namespace": "com.sforce.eventbus",
        "fields": [
            {"name": "CreatedDate", "type": "long"},
            {"name": "CreatedById", "type": "string"},
            {"name": "Name", "type": ["null", "string"], "default": null},
        ]
    });
    org.post(
        "/schemas",
        &json!({"topic": "/event/Later__e", "schema": schema}),
    )
    .await;
    org.publish("/event/Later__e", &[json!({"Name": "one"})])
        .await;
    daemon.handled(1).await;
    metrics.state("it", "live").await;
    check_is_well(&config).await;
    ends_well(daemon, &["one"]).await;
}

#[tokio::test]
async fn an_unknown_topic_blocks_until_it_is_created_in_the_org() {
    an_unknown_topic_blocks_until_it_is_created("not_found").await;
}

#[tokio::test]
async fn an_unknown_topic_that_looks_like_a_missing_permission_does_too() {
    an_unknown_topic_blocks_until_it_is_created("permission_denied").await;
}

#[tokio::test]
async fn a_missing_permission_blocks_until_it_is_given_at_the_start_and_later() {
    let org = Emulator::start().await;
    org.settings(json!({"denied_topics": [ACCOUNTS]})).await;
    let store = Store::sqlite();
    let config = config(&org.salesforce(), &store.url, ACCOUNTS);
    check_fails(&config, &[ACCOUNTS, "permission set"]).await;
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    let line = daemon
        .logged(&["level=warn", "blocked", ACCOUNTS, "permission set"])
        .await;
    println!("{line}");
    status_is_blocked(&config, &["may not subscribe", "permission set"]).await;
    publish(&org, "one").await;
    org.settings(json!({"denied_topics": []})).await;
    daemon.handled(1).await;
    metrics.state("it", "live").await;

    // Taken away while it runs: the next stream is refused.
    org.settings(json!({"denied_topics": [ACCOUNTS]})).await;
    org.post("/connections/drop", &json!({})).await;
    metrics.state("it", "blocked").await;
    publish(&org, "two").await;
    org.settings(json!({"denied_topics": []})).await;
    daemon.handled(2).await;
    metrics.state("it", "live").await;
    ends_well(daemon, &["one", "two"]).await;
}

/// A Postgres database behind a line that can be cut.
async fn database() -> Option<(Proxy, Store, String)> {
    let store = Store::postgres().await?;
    let (before, after) = store.url.split_once('@').unwrap();
    let (address, name) = after.split_once('/').unwrap();
    let proxy = Proxy::before(address.to_owned()).await;
    let url = format!("{before}@{}/{name}", proxy.addr);
    Some((proxy, store, url))
}

#[tokio::test]
async fn a_database_that_is_down_at_the_start_blocks_until_it_is_back() {
    let Some((proxy, _store, url)) = database().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = config(&org.salesforce(), &url, ACCOUNTS);
    let password = url.split([':', '@']).nth(2).unwrap().to_owned();
    proxy.set(Line::Cut);
    publish(&org, "one").await;
    check_fails(&config, &["store", "DATABASE_URL"]).await;
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    let line = daemon.logged(&["level=warn", "store"]).await;
    println!("{line}");
    // `check` signed in; the daemon waits for its store first.
    assert_eq!(org.state().await["calls"]["Token"], 1);
    proxy.set(Line::Carry);
    daemon.handled(1).await;
    metrics.state("it", "live").await;
    assert!(
        !daemon.log().join("\n").contains(&password),
        "the password is logged"
    );
    ends_well(daemon, &["one"]).await;
}

#[tokio::test]
async fn a_database_that_goes_down_later_shows_and_recovers_while_events_are_handled() {
    let Some((proxy, _store, url)) = database().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = config(&org.salesforce(), &url, ACCOUNTS);
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    metrics
        .until(
            "orgstream_position_writes_total",
            &[("outcome", "written")],
            |n| n >= 1.0,
        )
        .await;
    proxy.set(Line::Cut);
    publish(&org, "two").await;
    daemon.handled(2).await;
    check_fails(&config, &["store", "DATABASE_URL"]).await;
    metrics.state("it", "blocked").await;
    daemon
        .logged(&["level=warn", "position could not be stored"])
        .await;
    publish(&org, "three").await;
    daemon.handled(3).await;
    proxy.set(Line::Carry);
    metrics.state("it", "live").await;
    check_is_well(&config).await;
    eventually("the position of the last event in the store", async || {
        (status(&config).await["finished"] == 3).then_some(())
    })
    .await;
    ends_well(daemon, &["one", "two", "three"]).await;
}

#[tokio::test]
async fn a_handler_that_is_misconfigured_at_the_far_end_blocks_and_parks_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let answer = Arc::new(AtomicU16::new(401));
    let answers = answer.clone();
    let receiver = Receiver::start(move |_, _| answers.load(Ordering::SeqCst)).await;
    let handler = format!(
        "type = \"webhook\"\nurl = \"{}\"\nretry = {{ initial = \"20ms\", max = \"200ms\", attempts = 2 }}",
        receiver.url()
    );
    let config =
        config(&org.salesforce(), &store.url, ACCOUNTS).replace("type = \"log\"", &handler);
    let daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    publish(&org, "one").await;
    metrics.state("it", "blocked").await;
    status_is_blocked(&config, &["`out`", "401", "headers"]).await;
    publish(&org, "two").await;
    answer.store(200, Ordering::SeqCst);
    let accepted = receiver.accepts(2).await;
    assert_eq!(accepted[0]["data"]["Name"], "one");
    assert_eq!(accepted[1]["data"]["Name"], "two");
    metrics.state("it", "live").await;
    eventually("live in the store", async || {
        let status = status(&config).await;
        (status["state"] == "live" && status["parked"] == 0).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn one_blocked_subscription_leaves_the_others_alone() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org.salesforce(), &store.url, "/event/Never__e")
        + "[[subscription]]\nname = \"accounts\"\ntopic = \"Account\"\nstart = \"earliest\"\n\
           [[subscription.handler]]\ntype = \"log\"\n";
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    metrics.state("it", "blocked").await;
    metrics.state("accounts", "live").await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    ends_well(daemon, &["one"]).await;
}

#[tokio::test]
async fn a_changed_topic_or_a_likely_rename_is_refused_until_told_and_loses_no_position() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Begins at LATEST, which is what a lost position would fall back to.
    let first =
        config(&org.salesforce(), &store.url, ACCOUNTS).replace("start = \"earliest\"\n", "");
    let mut daemon = Daemon::run_with(&first, &[METRICS]);
    Metrics::of(&daemon).await.state("it", "live").await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    ends_well(daemon, &["one"]).await;
    publish(&org, "two").await;
    let topic = first.replace(ACCOUNTS, "/event/Order__e");
    let renamed = first.replace("name = \"it\"", "name = \"other\"");
    for (config, name, parts) in [
        (&topic, "it", [ACCOUNTS, "/event/Order__e", "another name"]),
        (
            &renamed,
            "other",
            [ACCOUNTS, "call it `it` again", "`start`"],
        ),
    ] {
        check_fails(config, &parts).await;
        let daemon = Daemon::run_with(config, &[METRICS]);
        Metrics::of(&daemon).await.state(name, "blocked").await;
        daemon
            .logged(&[&["level=warn"], parts.as_slice()].concat())
            .await;
        ends_well(daemon, &[]).await;
    }
    let mut daemon = Daemon::run(&first);
    daemon.handled(1).await;
    ends_well(daemon, &["two"]).await;
}
