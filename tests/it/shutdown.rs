//! The end of a daemon: what is in flight is finished, and nothing repeats that need not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    DEADLINE, Daemon, Emulator, Hook, Line, Proxy, Store, account_update, configured, eventually,
    names, record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(org: &Emulator, store: &Store, hook: &Hook) -> String {
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    configured(org, store, "", subscription, &webhook(&hook.url(), ""))
}

async fn publish(org: &Emulator, from: usize, to: usize) {
    let events: Vec<Value> = (from..to)
        .map(|n| account_update(&record(n), &n.to_string()))
        .collect();
    org.publish(ACCOUNTS, &events).await;
}

/// Waits until a call of each lane hangs in the webhook.
async fn hanging(hook: &Hook) {
    eventually("calls that hang", async || {
        (hook.came().len() >= 8).then_some(())
    })
    .await;
}

fn numbers(events: &[Value]) -> Vec<usize> {
    let mut numbers: Vec<usize> = names(events).iter().map(|n| n.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_nothing_repeats() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    publish(&org, 0, 50).await;
    let config = config(&org, &store, &hook);
    let mut daemon = Daemon::run(&config);
    hanging(&hook).await;
    daemon.signal("TERM");
    daemon.logged(&["finishing what is in flight"]).await;
    eventually("the end of the stream", async || {
        let state = org.state().await;
        state["streams"].as_array()?.is_empty().then_some(())
    })
    .await;
    publish(&org, 50, 60).await;
    hook.open();
    assert_eq!(daemon.ended().await.code(), Some(0));
    assert_eq!(numbers(&hook.accepted()), (0..50).collect::<Vec<_>>());

    let daemon = Daemon::run(&config);
    hook.accepts(60).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(numbers(&hook.accepted()), (0..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_hanging_webhook_for_longer_than_a_dyno_is_given() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    publish(&org, 0, 12).await;
    let config = config(&org, &store, &hook);
    let mut daemon = Daemon::run(&config);
    hanging(&hook).await;
    daemon.signal("TERM");
    let asked_at = Instant::now();
    let status = daemon.ended_within(DEADLINE).await;
    assert_eq!(status.code(), Some(0));
    let took = asked_at.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    hook.open();
    let daemon = Daemon::run(&config);
    let missing = eventually("all events", async || {
        let accepted = numbers(&hook.accepted());
        (0..12).all(|n| accepted.contains(&n)).then_some(())
    });
    missing.await;
    assert_eq!(daemon.stop().await.1, 0);
}

/// An org that rotates refresh tokens, signed in to with one over this address.
async fn with_refresh_token(org: &Emulator, login_url: &str) -> String {
    org.settings(json!({"rotate_refresh_tokens": true})).await;
    let user = orgstream::emulator::DEFAULT_USERNAME;
    let request = json!({"client_id": org.text("client_id"), "username": user});
    let granted = org.post("/tokens/refresh", &request).await;
    org.salesforce()
        .replace(&org.text("login_url"), login_url)
        .replace("\"client_credentials\"", "\"refresh_token\"")
        + &format!("refresh_token = {}\n", granted["refresh_token"])
}

#[tokio::test]
async fn a_stop_amid_a_sign_in_keeps_the_refresh_token_that_it_yields() {
    let org = Emulator::start().await;
    let host = org.text("login_url").replace("http://", "");
    let proxy = Proxy::before(host).await;
    let login_url = format!("http://{}", proxy.addr);
    let store = Store::sqlite();
    let config = format!(
        "{}[store]\nurl = \"{}\"\nencryption_key = \"{}\"\n[[subscription]]\nname = \"accounts\"\n\
         topic = \"{ACCOUNTS}\"\n[[subscription.handler]]\ntype = \"log\"\n",
        with_refresh_token(&org, &login_url).await,
        store.url,
        "k".repeat(32)
    );
    proxy.set(Line::Hang);
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["orgstream starts"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    daemon.signal("TERM");
    daemon.logged(&["finishing what is in flight"]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.set(Line::Carry);
    assert_eq!(daemon.ended().await.code(), Some(0));

    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_check_without_the_store_uses_no_refresh_token_up() {
    let org = Emulator::start().await;
    let salesforce = with_refresh_token(&org, &org.text("login_url")).await;
    let config = |store: &str, key: &str| {
        format!(
            "{salesforce}[store]\nurl = \"{store}\"\ntimeout = \"2s\"\n{key}[[subscription]]\n\
             name = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n[[subscription.handler]]\ntype = \"log\"\n"
        )
    };
    let key = format!("encryption_key = \"{}\"\n", "k".repeat(32));
    let away = config("postgres://u:p@127.0.0.1:1/db", &key);
    let (code, out, _) = Daemon::output(&["check"], &away, &BTreeMap::new()).await;
    assert_eq!(code, 1);
    let said = "sign-in: not tried, the store that holds the refresh token does not answer";
    assert!(out.contains(said), "{out}");

    let store = Store::sqlite();
    let keyless = config(&store.url, "");
    for command in [&["topics", "Account"][..], &["run"], &["check"]] {
        let (code, out, err) = Daemon::output(command, &keyless, &BTreeMap::new()).await;
        assert_eq!(code, 78, "{command:?} {out}{err}");
        assert!(format!("{out}{err}").contains("ORGSTREAM_ENCRYPTION_KEY"));
    }

    // The first token is as good as new.
    let daemon = Daemon::run(&config(&store.url, &key));
    daemon.logged(&["stream open"]).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    publish(&org, 0, 12).await;
    let mut daemon = Daemon::run(&config(&org, &store, &hook));
    hanging(&hook).await;
    daemon.signal("TERM");
    daemon.logged(&["finishing what is in flight"]).await;
    // Signals closer to each other count as one.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let asked_at = Instant::now();
    daemon.signal("TERM");
    let status = daemon.ended_within(DEADLINE).await;
    assert_eq!(status.code(), Some(1));
    assert!(asked_at.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn one_stop_sent_twice_by_a_terminal_is_one_stop() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    publish(&org, 0, 12).await;
    let mut daemon = Daemon::run(&config(&org, &store, &hook));
    hanging(&hook).await;
    daemon.signal("INT");
    daemon.signal("TERM");
    daemon.logged(&["finishing what is in flight"]).await;
    hook.open();
    assert_eq!(daemon.ended().await.code(), Some(0));
    assert_eq!(numbers(&hook.accepted()), (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_daemon_that_cannot_begin_stops_when_asked() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    org.fault(serde_json::json!({"rpc": "Token", "kind": "hang"}))
        .await;
    let mut daemon = Daemon::run(&config(&org, &store, &hook));
    eventually("a sign-in that hangs", async || {
        org.state().await["calls"]["Token"]
            .as_u64()
            .filter(|calls| *calls > 0)
    })
    .await;
    let asked_at = Instant::now();
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_secs(10));
}
