//! Side replays of `orgstream replay`, beside the live stream (design 3.1, rule 13).

use std::collections::{BTreeMap, HashSet};

use serde_json::json;

use crate::replay::{commands, marked, published, replay, replayed, standing_at, two};
use crate::stream::{ACCOUNTS, accounts, publish};
use crate::support::{
    Daemon, Emulator, Hook, LOG, Store, account_update, configured, eventually, names, record,
};

async fn replays_beside_the_live_stream(store: Store) {
    let org = Emulator::start().await;
    let hook = Hook::start(|_, _| 200.into()).await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c"]).await;
    hook.accepts(3).await;
    daemon.handled(3).await;
    standing_at(&store, &ids[2]).await;
    let epoch = store.subscription("accounts").await.unwrap().epoch;
    hook.close();
    let args = ["--from", "earliest", "--handler", "hook", "--no-wait"];
    let (code, _, err) = replay(&config, &args).await;
    assert_eq!(code, 0, "{err}");
    eventually("a replayed event", async || {
        (hook.came().len() == 4).then_some(())
    })
    .await;
    // The live stream goes on, and its events of the same record take turns with replayed ones.
    let last = publish(&org, "d").await;
    daemon.handled(4).await;
    hook.open();
    let accepted = hook.accepts(7).await;
    assert_eq!(marked(&accepted).join(" "), "a b c a* d b* c*");
    assert_eq!(accepted[0]["id"], accepted[3]["id"], "the same identity");
    standing_at(&store, &last).await;
    let command = eventually("the end of the replay", async || {
        let command = commands(&config).await.swap_remove(0);
        (command["state"] == "done").then_some(command)
    })
    .await;
    assert_eq!(command["progress"]["finished"], json!(3), "{command}");
    let after = store.subscription("accounts").await.unwrap();
    assert_eq!(
        (after.epoch, after.finished),
        (epoch, 4),
        "not counted, no new epoch"
    );
    let (events, code) = daemon.stop().await;
    assert_eq!((marked(&events).join(" "), code), ("a b c d".to_owned(), 0));
    assert_eq!(hook.accepted().len(), 7);
}

#[tokio::test]
async fn a_side_replay_to_one_handler_runs_beside_the_live_stream_on_sqlite() {
    replays_beside_the_live_stream(Store::sqlite()).await;
}

#[tokio::test]
async fn a_side_replay_to_one_handler_runs_beside_the_live_stream_on_postgres() {
    if let Some(store) = Store::postgres().await {
        replays_beside_the_live_stream(store).await;
    }
}

#[tokio::test]
async fn a_side_replay_ends_where_it_is_told_to_and_the_next_one_waits_for_it() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c", "d"]).await;
    daemon.handled(4).await;
    let (code, _, err) = replay(&config, &["--from", &ids[0], "--to", &ids[2], "--no-wait"]).await;
    assert_eq!(code, 0, "{err}");
    let command = replayed(&config, &["--from", "earliest", "--to", &ids[0]]).await;
    assert_eq!(command["progress"]["received"], json!(1), "{command}");
    assert_eq!(
        command["outcome"],
        json!("reached its end; 1 events handed over")
    );
    // Up to a time: everything was committed before now.
    let now = orgstream::event::rfc3339(std::time::SystemTime::now());
    replayed(&config, &["--from", &ids[2], "--to", &now]).await;
    let events = daemon.handled(8).await;
    assert_eq!(marked(&events).join(" "), "a b c d b* c* a* d*");
    // Nothing lies behind the position.
    let command = replayed(&config, &["--from", &ids[3], "--to", "latest"]).await;
    assert_eq!(command["progress"]["received"], json!(0), "{command}");
    assert_eq!(daemon.stop().await.0.len(), 8);
}

#[tokio::test]
async fn a_side_replay_of_what_came_before_the_subscription_began_ends_with_a_keepalive() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    org.settings(json!({"keepalive_ms": 300})).await;
    let config = accounts(&org, &store, "", "start = \"latest\"");
    publish(&org, "a").await;
    // The bus is beyond it when the subscription begins.
    org.publish("/event/Order__e", &[json!({"OrderNumber__c": "1"})])
        .await;
    let mut daemon = Daemon::run(&config);
    let there = |s: &orgstream::store::SubscriptionStatus| s.position.is_some();
    store.until("accounts", "a position", there).await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "out"]).await;
    assert_eq!(command["progress"]["received"], json!(1), "{command}");
    let outcome = command["outcome"].as_str().unwrap();
    assert!(outcome.starts_with("caught up"), "{outcome}");
    assert_eq!(marked(&daemon.handled(1).await).join(" "), "a*");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_side_replay_on_a_quiet_topic_ends_with_the_newest_event_and_waits_for_no_keepalive() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    org.settings(json!({"keepalive_ms": 300})).await;
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let id = publish(&org, "a").await;
    daemon.handled(1).await;
    // A keepalive has moved the position past every event.
    let past = |s: &orgstream::store::SubscriptionStatus| {
        s.position
            .as_ref()
            .is_some_and(|place| place.to_string() != id)
    };
    daemon.stop().await;
    org.publish("/event/Order__e", &[json!({"OrderNumber__c": "1"})])
        .await;
    let mut daemon = Daemon::run(&config);
    store
        .until("accounts", "a keepalive's position", past)
        .await;
    org.settings(json!({"keepalive_ms": 270_000})).await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "out"]).await;
    assert_eq!(command["progress"]["received"], json!(1), "{command}");
    let outcome = command["outcome"].as_str().unwrap();
    assert!(outcome.starts_with("reached its end"), "{outcome}");
    assert_eq!(marked(&daemon.handled(1).await).join(" "), "a*");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_side_replay_brings_what_its_handler_has_done_and_another_has_not() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let hook = Hook::start(|_, _| 200.into()).await;
    hook.close();
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c"]).await;
    daemon.handled(3).await;
    let reaches_its_end = async |args: &[&str], received: u64| {
        let command = replayed(&config, &[args, &["--handler", "out"]].concat()).await;
        assert_eq!(
            command["progress"]["received"],
            json!(received),
            "{command}"
        );
        let outcome = command["outcome"].as_str().unwrap();
        assert!(outcome.starts_with("reached its end"), "{outcome}");
    };
    // The position is before all of them.
    reaches_its_end(&["--from", "earliest"], 3).await;
    reaches_its_end(&["--from", "earliest", "--to", &ids[1]], 2).await;
    reaches_its_end(&["--from", &ids[0]], 2).await;
    assert_eq!(
        marked(&daemon.handled(10).await).join(" "),
        "a b c a* b* c* a* b* b* c*"
    );
    daemon.kill();
    // What the store has of them is that the one has finished them.
    org.settings(json!({"keepalive_ms": 300})).await;
    let mut daemon = Daemon::run(&config);
    let command = replayed(&config, &["--from", "earliest", "--handler", "out"]).await;
    assert_eq!(command["progress"]["received"], json!(3), "{command}");
    assert_eq!(marked(&daemon.handled(3).await).join(" "), "a* b* c*");
    hook.open();
    standing_at(&store, &ids[2]).await;
    assert_eq!(daemon.stop().await.1, 0);
}

async fn survives_a_kill(store: Store) {
    const EVENTS: usize = 120;
    let org = Emulator::start().await;
    let hook = Hook::start(|_, _| 200.into()).await;
    let config = two(&org, &store, &hook, "max_in_flight = 40");
    let daemon = Daemon::run(&config.replace("[store]", "[store]\nlease = \"2s\""));
    for number in 0..EVENTS {
        let event = account_update(&record(number % 20), &number.to_string());
        org.publish(ACCOUNTS, &[event]).await;
    }
    hook.accepts(EVENTS).await;
    let (code, _, err) = replay(
        &config,
        &["--from", "earliest", "--handler", "hook", "--no-wait"],
    )
    .await;
    assert_eq!(code, 0, "{err}");
    hook.accepts(EVENTS + 30).await;
    hook.close();
    eventually("a stored place", async || {
        commands(&config).await[0]["progress"]["place"]
            .is_string()
            .then_some(())
    })
    .await;
    daemon.kill();
    hook.open();
    let mut daemon = Daemon::run(&config.replace("[store]", "[store]\nlease = \"2s\""));
    eventually("the end of the replay", async || {
        (commands(&config).await[0]["state"] == "done").then_some(())
    })
    .await;
    let replayed: Vec<String> = hook
        .accepted()
        .iter()
        .filter(|event| event["replayed"] == true)
        .map(|event| event["data"]["Name"].as_str().unwrap().to_owned())
        .collect();
    let distinct: HashSet<&String> = replayed.iter().collect();
    assert_eq!(distinct.len(), EVENTS, "every event was replayed");
    assert!(replayed.len() > EVENTS / 2);
    let log = daemon.log().join("\n");
    assert!(log.contains("replay begins beside"), "{log}");
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_side_replay_goes_on_after_a_kill_on_sqlite() {
    survives_a_kill(Store::sqlite()).await;
}

#[tokio::test]
async fn a_side_replay_goes_on_after_a_kill_on_postgres() {
    if let Some(store) = Store::postgres().await {
        survives_a_kill(store).await;
    }
}

#[tokio::test]
async fn ctrl_c_stops_a_side_replay_and_says_where_it_stands() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let hook = Hook::start(|_, _| 200.into()).await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    published(&org, &["a", "b", "c"]).await;
    hook.accepts(3).await;
    hook.close();
    let args = [
        "replay",
        "accounts",
        "--from",
        "earliest",
        "--handler",
        "hook",
    ];
    let mut asking = Daemon::command(&args, &config, &BTreeMap::new());
    eventually("a replayed event", async || {
        (hook.came().len() == 4).then_some(())
    })
    .await;
    asking.signal("INT");
    assert_eq!(asking.ended().await.code(), Some(1));
    let said = asking.log().join("\n");
    assert!(said.contains("accounts: stopped: "), "{said}");
    daemon.logged(&["replay withdrawn"]).await;
    hook.open();
    publish(&org, "d").await;
    let accepted = hook.accepts(5).await;
    assert_eq!(marked(&accepted).join(" "), "a b c a* d");
    daemon.handled(4).await;
    assert_eq!(commands(&config).await[0]["state"], json!("withdrawn"));
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(hook.accepted().len(), 5, "no more of it came");
}

#[tokio::test]
async fn a_refused_replayed_event_is_parked_and_the_replay_goes_on() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let hook = Hook::start(|event, _| {
        let bad = event["replayed"] == true && event["data"]["Name"] == "a";
        if bad { 422 } else { 200 }.into()
    })
    .await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    let mut last = String::new();
    for (number, name) in ["a", "b"].into_iter().enumerate() {
        let event = account_update(&record(number), name);
        let published = org.publish(ACCOUNTS, &[event]).await;
        last = published["events"][0]["replay_id"]
            .as_str()
            .unwrap()
            .to_owned();
    }
    hook.accepts(2).await;
    standing_at(&store, &last).await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "hook"]).await;
    assert_eq!(command["progress"]["parked"], json!(1), "{command}");
    // Different records, in any order.
    let mut accepted = marked(&hook.accepted());
    accepted.sort();
    assert_eq!(accepted.join(" "), "a b b*");
    let parked = store.parks(1).await;
    assert_eq!(parked[0].letter.handler.as_deref(), Some("hook"));
    daemon.handled(2).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_comes_again_waits_behind_a_dead_letter_where_it_is_younger() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let hook = Hook::start(|event, _| {
        let bad = event["data"]["Name"] == "b";
        if bad { 422 } else { 200 }.into()
    })
    .await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b", "c"]).await;
    store.parks(2).await;
    standing_at(&store, &ids[2]).await;
    // Beside the live stream: `a` is older, and the two that are parked count as they are.
    let command = replayed(&config, &["--from", "earliest", "--handler", "hook"]).await;
    assert_eq!(command["progress"]["finished"], json!(3), "{command}");
    assert_eq!(command["progress"]["parked"], json!(2), "{command}");
    // And once more, rewound.
    replayed(&config, &["--from", "earliest"]).await;
    daemon.handled(6).await;
    standing_at(&store, &ids[2]).await;
    let parked = store.parks(2).await;
    let reasons: Vec<&str> = parked
        .iter()
        .map(|one| one.letter.reason.as_str())
        .collect();
    assert_eq!(reasons, ["rejected", "parked_behind"]);
    assert_eq!(marked(&hook.accepted()).join(" "), "a a* a");
    let discard = [
        "dead-letters",
        "discard",
        &parked[0].id.to_string(),
        "--yes",
    ];
    let (code, _, err) = Daemon::output(&discard, &config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{err}");
    let accepted = hook.accepts(4).await;
    assert_eq!(names(&accepted).join(" "), "a a a c");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_side_replay_hands_transactions_over_whole_where_they_are_grouped() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let more = "start = \"earliest\"\ngroup = \"transaction\"\ngroup_wait = \"200ms\"";
    let config = configured(&org, &store, "", ("accounts", ACCOUNTS, more), LOG);
    let mut daemon = Daemon::run(&config);
    for transaction in ["a", "b"] {
        let one =
            |n: usize| json!({"topic": ACCOUNTS, "event": account_update(&record(n), transaction)});
        org.post("/transaction", &json!({"events": [one(1), one(2), one(3)]}))
            .await;
    }
    let first = daemon.handled(6).await;
    standing_at(&store, first[5]["replayid"].as_str().unwrap()).await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "out"]).await;
    assert_eq!(command["progress"]["finished"], json!(6), "{command}");
    let events = daemon.handled(12).await;
    assert_eq!(marked(&events[6..]).join(" "), "a* a* a* b* b* b*");
    assert!(
        events[..9]
            .iter()
            .all(|event| event.get("partial").is_none())
    );
    // Inside a transaction it says that what it hands over is not the whole.
    let to = events[1]["replayid"].as_str().unwrap();
    replayed(&config, &["--from", "earliest", "--to", to]).await;
    let events = daemon.handled(14).await;
    assert!(
        events[12..].iter().all(|event| event["partial"] == true),
        "{events:?}"
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_side_replay_of_a_transaction_beyond_what_may_be_in_flight_comes_in_parts() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let more = "start = \"earliest\"\ngroup = \"transaction\"\ngroup_wait = \"200ms\"\n\
                max_in_flight_bytes = \"1MiB\"";
    org.settings(json!({"idle_close_ms": 300})).await;
    let config = configured(&org, &store, "", ("accounts", ACCOUNTS, more), LOG);
    let mut daemon = Daemon::run(&config);
    let large: Vec<_> = (0..12)
        .map(|n| {
            let mut event = account_update(&record(n), "a");
            event["Description"] = json!("x".repeat(100_000));
            json!({"topic": ACCOUNTS, "event": event})
        })
        .collect();
    org.post("/transaction", &json!({"events": large})).await;
    let live = daemon.handled(12).await;
    standing_at(&store, live[11]["replayid"].as_str().unwrap()).await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "out"]).await;
    assert_eq!(command["progress"]["finished"], json!(12), "{command}");
    let events = daemon.handled(24).await;
    let parts = events[12..].iter().all(|event| event["partial"] == true);
    assert!(parts, "it never fits in whole");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_side_replay_from_a_place_that_is_gone_fails_and_the_live_stream_goes_on() {
    let (org, store) = (Emulator::start().await, Store::sqlite());
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let ids = published(&org, &["a", "b"]).await;
    daemon.handled(2).await;
    org.post("/bus/expire", &json!({})).await;
    let (code, _, err) = replay(&config, &["--from", &ids[0], "--handler", "out"]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("not on the bus"), "{err}");
    publish(&org, "c").await;
    daemon.handled(3).await;
    assert!(store.holes().await.is_empty());
    assert_eq!(daemon.stop().await.1, 0);
}
