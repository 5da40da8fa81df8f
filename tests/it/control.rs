//! `orgstream pause`, `resume` and `rename`, while daemons run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::database::Database;
use crate::support::{
    Daemon, Emulator, Hook, LOG, Line, Store, account_update, configured, eventually, names,
    record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(org: &Emulator, store: &Store, name: &str, handlers: &str) -> String {
    let subscription = (name, ACCOUNTS, "start = \"earliest\"");
    configured(org, store, "", subscription, handlers)
}

/// The same, whose name does not say where to begin: a new name is a rename.
fn renamed(org: &Emulator, store: &Store, name: &str) -> String {
    configured(org, store, "", (name, ACCOUNTS, ""), LOG)
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

/// Runs a command to its end: exit code and everything it said.
async fn said(args: &[&str], config: &str) -> (i32, String) {
    let (code, out, err) = Daemon::output(args, config, &BTreeMap::new()).await;
    (code, format!("{out}\n{err}"))
}

async fn a_paused_subscription_rests(store: Store) {
    let org = Emulator::start().await;
    let config = config(&org, &store, "accounts", LOG);
    let (code, text) = said(&["pause", "accounts"], &config).await;
    assert_eq!(code, 1);
    assert!(
        text.contains("migrate") || text.contains("no subscription"),
        "{text}"
    );
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    let (code, text) = said(&["pause", "nobody"], &config).await;
    assert!(
        code == 1 && text.contains("`nobody`") && text.contains("accounts"),
        "{text}"
    );
    let (code, text) = said(&["pause", "accounts"], &config).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("waiting until it has let go"), "{text}");
    assert!(text.contains("`orgstream resume accounts`"), "{text}");
    publish(&org, "two").await;
    // Not after a restart either.
    assert_eq!(names(&daemon.stop().await.0), ["one"]);
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["paused by a person"]).await;
    let (_, text) = said(&["status"], &config).await;
    assert!(text.contains("paused by a person"), "{text}");
    assert_eq!(daemon.events().len(), 0);
    let (code, text) = said(&["resume", "accounts"], &config).await;
    assert_eq!(code, 0, "{text}");
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("two".to_owned(), 0));
}

#[tokio::test]
async fn a_paused_subscription_rests_over_restarts_until_it_is_resumed_on_sqlite() {
    a_paused_subscription_rests(Store::sqlite()).await;
}

#[tokio::test]
async fn a_paused_subscription_rests_over_restarts_until_it_is_resumed_on_postgres() {
    if let Some(store) = Store::postgres().await {
        a_paused_subscription_rests(store).await;
    }
}

#[tokio::test]
async fn ctrl_c_ends_the_waiting_and_not_the_pause() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let config = config(&org, &store, "accounts", &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    publish(&org, "one").await;
    eventually("a call that hangs", async || {
        (hook.came().len() == 1).then_some(())
    })
    .await;
    let mut pause = Daemon::command(&["pause", "accounts"], &config, &BTreeMap::new());
    pause.logged(&["waiting until it has let go"]).await;
    pause.signal("INT");
    assert_eq!(pause.ended().await.code(), Some(1));
    let text = pause.log().join("\n");
    assert!(text.contains("accounts is paused, but"), "{text}");
    hook.open();
    let rests = store.until("accounts", "it rests", |one| !one.held);
    assert!(rests.await.paused_at.is_some());
    assert_eq!(hook.accepted().len(), 1, "what was in flight is finished");
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_rename_keeps_the_position(store: Store) {
    let org = Emulator::start().await;
    let old = renamed(&org, &store, "accounts");
    let daemon = Daemon::run(&old);
    daemon.logged(&["stream open"]).await;
    publish(&org, "one").await;
    store
        .until("accounts", "one finished", |one| one.finished == 1)
        .await;
    // While it runs: its worker is asked to let go, and may not take it back.
    let (code, text) = said(&["rename", "accounts", "customers"], &old).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("accounts is called customers now"), "{text}");
    daemon
        .logged(&[
            "subscription cannot begin",
            "orgstream rename customers accounts",
        ])
        .await;
    publish(&org, "two").await;
    assert_eq!(names(&daemon.stop().await.0), ["one"]);

    let mut daemon = Daemon::run(&renamed(&org, &store, "customers"));
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("two".to_owned(), 0));

    let (code, text) = said(&["rename", "accounts", "anything"], &old).await;
    assert!(code == 1 && text.contains("customers"), "{text}");
}

#[tokio::test]
async fn a_rename_of_what_runs_keeps_the_position_on_sqlite() {
    a_rename_keeps_the_position(Store::sqlite()).await;
}

#[tokio::test]
async fn a_rename_of_what_runs_keeps_the_position_on_postgres() {
    if let Some(store) = Store::postgres().await {
        a_rename_keeps_the_position(store).await;
    }
}

/// A daemon that runs `accounts` and has an event with a handler that does not answer before its hook is opened.
async fn one_in_flight(org: &Emulator, store: &Store) -> (Daemon, Hook, String) {
    let hook = Hook::closed().await;
    let handler = webhook(&hook.url(), "");
    let daemon = Daemon::run(&config(org, store, "accounts", &handler));
    publish(org, "one").await;
    eventually("a call that hangs", async || {
        (hook.came().len() == 1).then_some(())
    })
    .await;
    (daemon, hook, handler)
}

#[tokio::test]
async fn a_rename_goes_on_after_the_database_was_away_and_leaves_nothing_paused() {
    let Some(database) = Database::make().await else {
        return;
    };
    let org = Emulator::start().await;
    let (daemon, hook, handler) = one_in_flight(&org, &database.direct).await;
    let config = database.config(&org, &handler);
    let rename = ["rename", "accounts", "customers"];
    let mut rename = Daemon::command(&rename, &config, &BTreeMap::new());
    rename.logged(&["waiting until it has let go"]).await;
    database.proxy.set(Line::Cut);
    rename.logged(&["store unavailable", "asking again"]).await;
    hook.open();
    let rests = database
        .direct
        .until("accounts", "it rests", |one| !one.held);
    assert!(rests.await.paused_at.is_some());
    database.proxy.set(Line::Carry);
    assert_eq!(rename.ended().await.code(), Some(0));
    let renamed = database.direct.subscription("customers").await.unwrap();
    assert_eq!((renamed.paused_at, renamed.finished), (None, 1));
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rename_that_was_killed_half_way_is_finished_by_the_next_one() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (daemon, hook, handler) = one_in_flight(&org, &store).await;
    let config = config(&org, &store, "accounts", &handler);
    let rename = ["rename", "accounts", "customers"];
    let killed = Daemon::command(&rename, &config, &BTreeMap::new());
    killed.logged(&["waiting until it has let go"]).await;
    killed.kill();
    hook.open();
    let rests = store.until("accounts", "it rests", |one| !one.held);
    assert!(rests.await.paused_at.is_some());
    for _ in 0..2 {
        let (code, text) = said(&rename, &config).await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("accounts is called customers now"), "{text}");
        let renamed = store.subscription("customers").await.unwrap();
        assert_eq!(renamed.paused_at, None);
    }
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_daemon_that_suspects_a_rename_goes_on_as_soon_as_it_is_told() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let daemon = Daemon::run(&renamed(&org, &store, "accounts"));
    daemon.logged(&["stream open"]).await;
    publish(&org, "zero").await;
    store
        .until("accounts", "zero finished", |one| one.finished == 1)
        .await;
    assert_eq!(daemon.stop().await.1, 0);
    publish(&org, "one").await;
    // It would ask again in minutes.
    let new = renamed(&org, &store, "customers").replace(
        "blocked_retry = { initial = \"200ms\", max = \"1s\" }",
        "blocked_retry = { initial = \"4m\", max = \"5m\" }",
    );
    let mut daemon = Daemon::run(&new);
    daemon
        .logged(&[
            "subscription cannot begin",
            "orgstream rename accounts customers",
        ])
        .await;
    let (code, text) = said(&["rename", "accounts", "customers"], &new).await;
    assert_eq!(code, 0, "{text}");
    let events = tokio::time::timeout(Duration::from_secs(30), daemon.handled(1)).await;
    assert_eq!(names(&events.unwrap()), ["one"]);
    assert_eq!(daemon.stop().await.1, 0);
}
