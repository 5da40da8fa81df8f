//! `orgstream replay`: rewinding the live subscription, and what the command says (design 3.1, rule 13).

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::stream::{ACCOUNTS, accounts, publish};
use crate::support::{Daemon, Emulator, Hook, LOG, Store, configured, eventually, names, webhook};

/// Two handlers, `out` and `hook`.
pub(crate) fn two(org: &Emulator, store: &Store, hook: &Hook, more: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{more}");
    let handlers = format!("{LOG}{}", webhook(&hook.url(), ""));
    configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, &subscription),
        &handlers,
    )
}

/// `orgstream replay accounts` with these arguments, to its end.
pub(crate) async fn replay(config: &str, args: &[&str]) -> (i32, String, String) {
    let args = [&["replay", "accounts"], args].concat();
    Daemon::output(&args, config, &BTreeMap::new()).await
}

/// The command that `--json` printed.
pub(crate) async fn replayed(config: &str, args: &[&str]) -> Value {
    let (code, out, err) = replay(config, &[args, &["--json"]].concat()).await;
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"))
}

/// Every command there is, newest first.
pub(crate) async fn commands(config: &str) -> Vec<Value> {
    let args = ["replay", "--status", "--json"];
    let (code, out, err) = Daemon::output(&args, config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

pub(crate) async fn published(org: &Emulator, all: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    for name in all {
        ids.push(publish(org, name).await);
    }
    ids
}

/// Waits until everything published is finished.
pub(crate) async fn standing_at(store: &Store, id: &str) {
    let there = |s: &orgstream::store::SubscriptionStatus| {
        s.position
            .as_ref()
            .is_some_and(|place| place.to_string() == id)
    };
    store.until("accounts", "the position", there).await;
}

pub(crate) fn marked(events: &[Value]) -> Vec<String> {
    let mark = |event: &Value| {
        let name = event["data"]["Name"].as_str().unwrap();
        let mark = if event["replayed"] == true { "*" } else { "" };
        format!("{name}{mark}")
    };
    events.iter().map(mark).collect()
}

async fn rewinds_to_earliest(store: Store) {
    let org = Emulator::start().await;
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c"]).await;
    daemon.handled(3).await;
    standing_at(&store, &ids[2]).await;
    let before = store.subscription("accounts").await.unwrap().epoch;
    let command = replayed(&config, &["--from", "earliest"]).await;
    assert_eq!(
        (&command["kind"], &command["state"]),
        (&json!("rewind"), &json!("done"))
    );
    let events = daemon.handled(6).await;
    assert_eq!(names(&events).join(""), "abcabc");
    assert!(events.iter().all(|event| event.get("replayed").is_none()));
    assert_eq!(events[2]["epoch"], json!(before));
    assert_eq!(events[3]["epoch"], json!(before + 1));
    standing_at(&store, &ids[2]).await;
    let after = store.subscription("accounts").await.unwrap();
    assert_eq!((after.epoch, after.state.as_str()), (before + 1, "live"));
    // It came by the place that it had left: nothing was skipped.
    let holes = store.holes().await;
    assert!(
        holes.iter().all(|hole| hole.acknowledged_at.is_some()),
        "{holes:?}"
    );
    // It goes on as before.
    publish(&org, "d").await;
    daemon.handled(7).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(""), code), ("abcabcd".to_owned(), 0));
}

#[tokio::test]
async fn a_rewind_to_earliest_hands_everything_over_again_in_order_on_sqlite() {
    rewinds_to_earliest(Store::sqlite()).await;
}

#[tokio::test]
async fn a_rewind_to_earliest_hands_everything_over_again_in_order_on_postgres() {
    if let Some(store) = Store::postgres().await {
        rewinds_to_earliest(store).await;
    }
}

#[tokio::test]
async fn a_rewind_to_a_replay_id_begins_after_it() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c"]).await;
    daemon.handled(3).await;
    replayed(&config, &["--from", &ids[0]]).await;
    let events = daemon.handled(5).await;
    assert_eq!(names(&events).join(""), "abcbc");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rewind_forward_is_a_hole_and_one_back_closes_what_it_left() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b"]).await;
    daemon.handled(2).await;
    standing_at(&store, &ids[1]).await;
    daemon.stop().await;
    // These wait, and a replay ID further on skips them.
    let skipped = published(&org, &["c", "d"]).await;
    let (code, _, err) = replay(&config, &["--from", &skipped[1], "--no-wait"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("A hole is recorded"), "{err}");
    let mut daemon = Daemon::run(&config);
    publish(&org, "e").await;
    let events = daemon.handled(1).await;
    assert_eq!(names(&events).join(""), "e");
    let holes = store.holes().await;
    assert_eq!(holes.len(), 1);
    let hole = &holes[0].hole;
    assert_eq!(hole.reason, "perhaps_skipped_by_rewind");
    let ends = [&hole.from, &hole.to].map(|end| end.as_ref().unwrap().to_string());
    assert_eq!(ends, [ids[1].clone(), skipped[1].clone()]);
    assert!(holes[0].acknowledged_at.is_none());
    // Back to before all of it: the stream comes by both places that were left.
    replayed(&config, &["--from", &ids[0]]).await;
    let events = daemon.handled(5).await;
    assert_eq!(names(&events).join(""), "ebcde");
    eventually("no open hole", async || {
        let holes = store.holes().await;
        let closed = holes.iter().all(|hole| hole.acknowledged_at.is_some());
        (holes.len() == 2 && closed).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rewind_of_a_subscription_whose_position_is_a_keepalives_is_no_hole_for_long() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    org.settings(json!({"keepalive_ms": 100})).await;
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b"]).await;
    daemon.handled(2).await;
    // Another topic's events move the bus on, and with it the keepalives.
    standing_at(&store, &ids[1]).await;
    org.publish("/event/Order__e", &[json!({"OrderNumber__c": "1"})])
        .await;
    let on = |s: &orgstream::store::SubscriptionStatus| {
        s.position
            .as_ref()
            .is_some_and(|place| place.to_string() != ids[1])
    };
    store.until("accounts", "a keepalive's position", on).await;
    replayed(&config, &["--from", "earliest"]).await;
    daemon.handled(4).await;
    eventually("no open hole", async || {
        let holes = store.holes().await;
        let closed = holes.iter().all(|hole| hole.acknowledged_at.is_some());
        (holes.len() == 1 && closed).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rewind_to_a_time_begins_where_the_subscription_stood_then() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let first = publish(&org, "a").await;
    standing_at(&store, &first).await;
    published(&org, &["b", "c"]).await;
    daemon.handled(3).await;
    // The first event's position is noted, and none for another minute.
    let command = replayed(&config, &["--from", "0s ago"]).await;
    assert_eq!(command["arguments"]["from"], json!(first));
    let events = daemon.handled(5).await;
    assert_eq!(names(&events).join(""), "abcbc");
    for (from, says) in [
        ("2h ago", "the oldest place that is known"),
        ("2999-01-01T00:00:00Z", "lies in the future"),
    ] {
        let (code, _, err) = replay(&config, &["--from", from]).await;
        assert_eq!(code, 1);
        assert!(err.contains(says), "{err}");
    }
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_rewind_asked_while_no_worker_runs_is_carried_out_at_the_next_start() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let first = publish(&org, "a").await;
    daemon.handled(1).await;
    daemon.stop().await;
    publish(&org, "skipped").await;
    let (code, _, err) = replay(&config, &["--from", "latest", "--no-wait"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("no worker runs accounts now"), "{err}");
    assert_eq!(commands(&config).await[0]["state"], json!("asked"));
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["stream open", "from=latest"]).await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    // What was skipped is a hole, from the old position to the first event after it.
    let hole = eventually("the end of the hole", async || {
        let holes = store.holes().await;
        holes.into_iter().find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "skipped_by_rewind");
    assert_eq!(hole.hole.from.unwrap().to_string(), first);
    assert_eq!(hole.hole.to.unwrap().to_string(), next);
    assert_eq!(commands(&config).await[0]["state"], json!("done"));
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("next".to_owned(), 0));
}

#[tokio::test]
async fn a_rewind_to_latest_that_dies_before_its_first_response_is_a_hole() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    // Where the configuration would begin does not matter any more.
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "a").await;
    daemon.handled(1).await;
    replayed(&config, &["--from", "latest"]).await;
    daemon.logged(&["stream open", "from=latest"]).await;
    daemon.kill();
    publish(&org, "lost").await;
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["stream open", "from=latest"]).await;
    publish(&org, "next").await;
    daemon.handled(1).await;
    let reasons: HashSet<String> = store
        .holes()
        .await
        .into_iter()
        .map(|h| h.hole.reason)
        .collect();
    assert!(reasons.contains("skipped_by_rewind"), "{reasons:?}");
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("next".to_owned(), 0));
}

#[tokio::test]
async fn ctrl_c_takes_back_what_has_not_begun() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "a").await;
    daemon.handled(1).await;
    daemon.stop().await;
    let args = ["replay", "accounts", "--from", "earliest"];
    let mut asking = Daemon::command(&args, &config, &BTreeMap::new());
    asking.logged(&["waiting for the worker"]).await;
    asking.signal("INT");
    assert_eq!(asking.ended().await.code(), Some(1));
    let said = asking.log().join("\n");
    assert!(said.contains("withdrawn before it began"), "{said}");
    let mut daemon = Daemon::run(&config);
    publish(&org, "b").await;
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(""), code), ("b".to_owned(), 0));
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "a").await;
    daemon.handled(1).await;
    daemon.stop().await;
    let before = store.subscription("accounts").await.unwrap();
    let (code, out, _) = replay(&config, &["--from", "earliest", "--dry-run"]).await;
    assert_eq!(code, 0);
    for says in ["rewinds the live", "allocation", "Older values will follow"] {
        assert!(out.contains(says), "{out}");
    }
    let args = [
        "--from",
        "earliest",
        "--handler",
        "out",
        "--dry-run",
        "--json",
    ];
    let (code, out, _) = replay(&config, &args).await;
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &plan["kind"]), (0, &json!("replay")));
    assert!(commands(&config).await.is_empty());
    assert_eq!(store.subscription("accounts").await.unwrap(), before);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused_with_a_reason() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    publish(&org, "a").await;
    daemon.handled(1).await;
    let none = BTreeMap::new();
    let unknown = ["replay", "acounts", "--from", "earliest"];
    let (code, _, err) = Daemon::output(&unknown, &config, &none).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("no subscription `acounts`; it knows accounts"),
        "{err}"
    );
    for (args, code, says) in [
        (
            &["--from", "earliest", "--handler", "none"][..],
            1,
            "no handler `none`: it has out",
        ),
        (&["--from", "yesterday"][..], 2, "expected latest, earliest"),
        (
            &["--from", "latest", "--handler", "out"][..],
            2,
            "nothing lies behind it",
        ),
        (
            &["--from", "earliest", "--to", "earliest"][..],
            2,
            "replay nothing",
        ),
    ] {
        let (was, _, err) = replay(&config, args).await;
        assert_eq!(was, code, "{args:?}: {err}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
    assert!(commands(&config).await.is_empty());
    // The owner looks as well, for a command that another program wrote.
    let withdraw = ["replay", "--withdraw", "7"];
    let (code, _, err) = Daemon::output(&withdraw, &config, &none).await;
    assert_eq!(code, 1);
    assert!(err.contains("no command 7"), "{err}");
    assert_eq!(daemon.stop().await.1, 0);
}
