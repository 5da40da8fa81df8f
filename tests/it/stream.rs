//! Streams that break, fall silent or are refused: nothing is lost, and nobody is asked in a tight loop.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    DEADLINE, Daemon, Emulator, Hook, LOG, Store, account_update, configured, eventually, names,
    record, webhook, within,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const CONTACTS: &str = "/data/ContactChangeEvent";
const SALES: &str = "/data/Sales__chn";

fn accounts(org: &Emulator, store: &Store, salesforce: &str, subscription: &str) -> String {
    let subscription = ("accounts", ACCOUNTS, subscription);
    configured(org, store, salesforce, subscription, LOG)
}

async fn publish(org: &Emulator, name: &str) -> String {
    let published = org
        .publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
    published["events"][0]["replay_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn calls(org: &Emulator, call: &str) -> u64 {
    org.state().await["calls"][call].as_u64().unwrap_or(0)
}

/// Waits until so many calls were made.
async fn called(org: &Emulator, call: &str, count: u64) {
    eventually(&format!("{count} {call} calls"), async || {
        (calls(org, call).await >= count).then_some(())
    })
    .await;
}

fn pause_ms(line: &str) -> u64 {
    let (_, rest) = line.split_once("pause_ms=").unwrap();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[tokio::test]
async fn events_published_while_the_stream_is_away_arrive_whatever_broke_it() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // At LATEST, so that asking for LATEST again would lose them.
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"latest\""));
    daemon.logged(&["stream open"]).await;
    publish(&org, "first").await;
    daemon.handled(1).await;
    let mut expected = vec!["first".to_owned()];
    for (kind, code) in [
        ("error", "service.unavailable"),
        ("error", "a.code.nobody.documents"),
        ("error", "subscription.internal.error"),
        ("end", ""),
        ("reset", ""),
        ("disconnect", ""),
    ] {
        let before = calls(&org, "Subscribe").await;
        let mut broken = json!({"rpc": "Subscribe", "kind": kind, "times": 1, "after_events": 0});
        let mut refused = json!({"rpc": "Subscribe", "kind": "error", "times": 2,
                                 "code": "service.unavailable"});
        if !code.is_empty() {
            broken["code"] = code.into();
            refused["code"] = code.into();
        }
        org.fault(refused).await;
        org.fault(broken).await;
        called(&org, "Subscribe", before + 1).await;
        let name = format!("{kind} {code}");
        publish(&org, &name).await;
        expected.push(name);
        assert_eq!(names(&daemon.handled(expected.len()).await), expected);
    }
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events), code), (expected, 0));
    assert_eq!(store.holes().await, []);
}

#[tokio::test]
async fn a_silent_stream_is_given_up_and_opened_again() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 100})).await;
    let store = Store::sqlite();
    let silence = "silence_limit = \"700ms\"";
    let mut daemon = Daemon::run(&accounts(&org, &store, silence, "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "silence", "times": 1}))
        .await;
    eventually("the silence", async || {
        org.state().await["faults"]
            .as_array()?
            .is_empty()
            .then_some(())
    })
    .await;
    publish(&org, "two").await;
    daemon.logged(&["stream broke", "reason=silent"]).await;
    daemon.handled(2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!(
        (names(&events), code),
        (vec!["one".into(), "two".into()], 0)
    );
    assert_eq!(calls(&org, "Subscribe").await, 2);
}

#[tokio::test]
async fn a_dead_connection_is_found_by_pings_long_before_the_silence_limit() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let pings = "ping_interval = \"300ms\"\nping_timeout = \"300ms\"";
    let mut daemon = Daemon::run(&accounts(&org, &store, pings, "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "half_open", "times": 1, "after_events": 0}))
        .await;
    publish(&org, "two").await;
    // The silence limit is five minutes.
    daemon.handled(2).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_server_that_accepts_and_then_fails_is_not_asked_in_a_tight_loop() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 50})).await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.fault(
        json!({"rpc": "Subscribe", "kind": "accept_then_fail", "code": "service.unavailable"}),
    )
    .await;
    let before = calls(&org, "Subscribe").await;
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1}))
        .await;
    // Not a wait for something: the number of calls in this time is what is tested.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let asked = calls(&org, "Subscribe").await - before;
    assert!((2..=12).contains(&asked), "{asked} calls in 1.5 s");
    org.clear_faults().await;
    publish(&org, "two").await;
    daemon.handled(2).await;

    // After a calm spell, which is as long as the longest pause, trouble counts as new.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let seen = daemon.log().len();
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1}))
        .await;
    let line = eventually("the end of the stream", async || {
        let log = daemon.log();
        log[seen..]
            .iter()
            .find(|line| line.contains("stream broke"))
            .cloned()
    })
    .await;
    assert!(pause_ms(&line) <= 50, "{line}");
    publish(&org, "three").await;
    daemon.handled(3).await;
    let (events, code) = daemon.stop().await;
    assert_eq!(
        (names(&events).join(" "), code),
        ("one two three".to_owned(), 0)
    );
}

#[tokio::test]
async fn a_stream_whose_headers_come_with_its_first_response_loses_nothing() {
    let org = Emulator::start().await;
    org.settings(json!({"headers": "with_first_response", "keepalive_ms": 400}))
        .await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"latest\"");
    let mut daemon = Daemon::run(&config);
    called(&org, "Subscribe", 1).await;
    eventually("a stream", async || {
        org.state().await["streams"][0]["pending"]
            .as_u64()
            .filter(|pending| *pending > 0)
    })
    .await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": 0}))
        .await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
    assert_eq!(store.holes().await, []);
}

/// A stored position that the bus has forgotten, with an event lost and one kept after it. Gives the
/// replay IDs of the position and of the kept event.
async fn expired(org: &Emulator, store: &Store, policy: &str) -> (String, String) {
    let position = publish(org, "before").await;
    let mut daemon = Daemon::run(&accounts(org, store, "", policy));
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    publish(org, "lost").await;
    org.post("/bus/expire", &json!({})).await;
    let kept = publish(org, "kept").await;
    (position, kept)
}

#[tokio::test]
async fn an_expired_position_begins_again_at_the_earliest_event_with_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"earliest\"";
    let (position, kept) = expired(&org, &store, policy).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        let holes = store.holes().await;
        assert!(holes.len() <= 1, "{holes:?}");
        holes.into_iter().find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "expired_replay_id");
    assert_eq!(hole.hole.from.unwrap().to_string(), position);
    assert_eq!(hole.hole.to.unwrap().to_string(), kept);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("kept".to_owned(), 0));
    assert_eq!(store.subscription("accounts").await.unwrap().holes, 1);
}

#[tokio::test]
async fn an_expired_position_begins_again_at_the_latest_event_with_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"latest\"";
    let (position, _) = expired(&org, &store, policy).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    daemon.logged(&["stream open", "from=latest"]).await;
    let after = publish(&org, "after").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.from.unwrap().to_string(), position);
    assert_eq!(hole.hole.to.unwrap().to_string(), after);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("after".to_owned(), 0));
}

#[tokio::test]
async fn an_expired_position_stops_a_subscription_that_is_told_to_and_it_recovers() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"stop\"";
    publish(&org, "before").await;
    let config = accounts(&org, &store, "", policy);
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    daemon.stop().await;
    // Told that its position is gone, for as long as the fault is on.
    org.fault(json!({"rpc": "Subscribe", "kind": "error",
                     "code": "subscription.fetch.replayid.corrupted"}))
        .await;
    publish(&org, "after").await;
    let mut daemon = Daemon::run(&config);
    store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    let before = calls(&org, "Subscribe").await;
    called(&org, "Subscribe", before + 2).await;
    assert_eq!(names(&daemon.events()), Vec::<String>::new());
    let holes = store.holes().await;
    assert_eq!(holes.len(), 1, "a hole is recorded in any case");
    assert_eq!(holes[0].hole.reason, "expired_replay_id");
    org.clear_faults().await;
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("after".to_owned(), 0));
}

#[tokio::test]
async fn a_start_at_latest_that_dies_before_its_first_response_is_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"latest\"");
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    daemon.kill();
    publish(&org, "lost").await;
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "latest_before_first_response");
    assert_eq!(hole.hole.to.unwrap().to_string(), next);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("next".to_owned(), 0));
}

#[tokio::test]
async fn a_start_at_latest_whose_stream_breaks_before_its_first_response_is_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"latest\""));
    daemon.logged(&["stream open"]).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": 0}))
        .await;
    called(&org, "Subscribe", 2).await;
    daemon.logged(&["stream broke"]).await;
    eventually("a stream", async || {
        org.state().await["streams"][0]["pending"]
            .as_u64()
            .filter(|pending| *pending > 0)
    })
    .await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "latest_before_first_response");
    assert_eq!(hole.hole.to.unwrap().to_string(), next);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_start_at_latest_whose_first_event_is_never_finished_loses_no_other() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, "start = \"latest\"");
    let config = configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    let mut first = None;
    for run in 0..3 {
        let daemon = Daemon::run(&config);
        daemon.logged(&["stream open"]).await;
        let before = hook.came().len();
        let published = publish(&org, &run.to_string()).await;
        eventually("a call that hangs", async || {
            (hook.came().len() > before).then_some(())
        })
        .await;
        first.get_or_insert(published);
        eventually("its place in the store", async || {
            store.has_seen_the_first().await.then_some(())
        })
        .await;
        daemon.kill();
    }
    let mended = Hook::start(|_, _| 200.into()).await;
    let daemon = Daemon::run(&config.replace(&hook.url(), &mended.url()));
    assert_eq!(names(&mended.accepts(2).await), ["1", "2"]);
    let holes = store.holes().await;
    assert_eq!(holes.len(), 1, "{holes:?}");
    assert_eq!(
        holes[0].hole.to.as_ref().unwrap().to_string(),
        first.unwrap()
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_used_up_allocation_blocks_and_goes_on_where_it_stopped() {
    let org = Emulator::start().await;
    org.settings(json!({"delivery_limit": 2, "events_per_response": 1}))
        .await;
    let store = Store::sqlite();
    for name in ["1", "2", "3", "4"] {
        publish(&org, name).await;
    }
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    daemon.handled(2).await;
    let blocked = store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    assert!(
        blocked.detail.as_ref().unwrap().contains("deliveries"),
        "{blocked:?}"
    );
    org.post("/deliveries/reset", &json!({})).await;
    daemon.handled(4).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("1 2 3 4".to_owned(), 0));
}

#[tokio::test]
async fn five_subscriptions_share_one_connection_and_one_sign_in() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut config = accounts(&org, &store, "", "");
    for (name, topic) in [
        ("contacts", CONTACTS),
        ("employees", "/data/Employee__ChangeEvent"),
        ("orders", "/event/Order__e"),
        ("all", "/data/ChangeEvents"),
    ] {
        config += &format!("[[subscription]]\nname = \"{name}\"\ntopic = \"{topic}\"\n{LOG}");
    }
    let mut daemon = Daemon::run(&config);
    let state = eventually("five streams", async || {
        let state = org.state().await;
        let streams = state["streams"].as_array()?;
        let open = streams.iter().filter(|s| s["pending"].as_u64() > Some(0));
        (open.count() == 5).then_some(state)
    })
    .await;
    assert_eq!(state["connections"], 1);
    assert_eq!(state["calls"]["Token"], 1);
    publish(&org, "one").await;
    daemon.handled(2).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(org.state().await["connections"], 0);
}

/// A channel that delivers an update of three accounts as three events under one replay ID, each in a
/// response of its own, after an event of one account.
async fn siblings(org: &Emulator) {
    org.post(
        "/channels",
        &json!({"channel": SALES, "members": [{"topic": ACCOUNTS, "enriched_fields": ["Industry"]}]}),
    )
    .await;
    org.settings(json!({"split_siblings": true, "events_per_response": 1}))
        .await;
    publish(org, "first").await;
    let records: Vec<String> = (1..4).map(record).collect();
    let mut event = account_update(&records[0], "three");
    event["ChangeEventHeader"]["recordIds"] = json!(records);
    let enriched: serde_json::Map<String, Value> = records
        .iter()
        .map(|record| (record.clone(), json!({"Industry": "Energy"})))
        .collect();
    org.post(
        "/publish",
        &json!({"topic": ACCOUNTS, "events": [event], "enriched": enriched}),
    )
    .await;
}

fn sales(org: &Emulator, store: &Store) -> String {
    let subscription = ("sales", SALES, "start = \"earliest\"");
    configured(org, store, "", subscription, LOG)
}

/// The records of the events named `three`, sorted: different records run side by side.
fn threes(events: &[Value]) -> Vec<String> {
    let mut records: Vec<String> = events
        .iter()
        .filter(|event| event["data"]["Name"] == "three")
        .map(|event| event["subject"].as_str().unwrap().to_owned())
        .collect();
    records.sort();
    records
}

#[tokio::test]
async fn a_break_between_events_of_one_replay_id_loses_and_repeats_none() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    siblings(&org).await;
    for delivered in [2, 2] {
        org.fault(
            json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": delivered}),
        )
        .await;
    }
    let mut daemon = Daemon::run(&sales(&org, &store));
    daemon.handled(4).await;
    called(&org, "Subscribe", 2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!(code, 0);
    assert_eq!(threes(&events), [record(1), record(2), record(3)]);
}

#[tokio::test]
async fn a_kill_between_events_of_one_replay_id_loses_none() {
    for wait_for_the_position in [true, false] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        siblings(&org).await;
        // The first and one of the three, then nothing more on this stream.
        org.fault(json!({"rpc": "Subscribe", "kind": "silence", "times": 1, "after_events": 2}))
            .await;
        let mut daemon = Daemon::run(&sales(&org, &store));
        daemon.handled(2).await;
        if wait_for_the_position {
            store
                .until("sales", "two events finished", |s| s.finished == 2)
                .await;
        }
        let mut seen = daemon.kill();
        let mut daemon = Daemon::run(&sales(&org, &store));
        daemon.handled(2).await;
        eventually("all three", async || {
            let mut all = threes(&seen);
            all.extend(threes(&daemon.events()));
            all.sort();
            all.dedup();
            (all.len() == 3).then_some(())
        })
        .await;
        let (events, code) = daemon.stop().await;
        assert_eq!(code, 0);
        seen.extend(events);
        if wait_for_the_position {
            assert_eq!(threes(&seen), [record(1), record(2), record(3)]);
        }
    }
}

#[tokio::test]
async fn a_response_beyond_four_megabytes_is_taken() {
    let org = Emulator::start().await;
    org.settings(json!({"max_response_bytes": 9_000_000})).await;
    let store = Store::sqlite();
    let long = "x".repeat(700_000);
    let events: Vec<Value> = (0..9)
        .map(|n| account_update(&record(n), &format!("{n}{long}")))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    daemon.handled(9).await;
    assert_eq!(calls(&org, "Subscribe").await, 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_response_too_large_to_take_comes_again_and_loses_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "Subscribe", "kind": "oversize", "times": 1}))
        .await;
    publish(&org, "one").await;
    publish(&org, "two").await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    daemon.handled(2).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
    assert_eq!(calls(&org, "Subscribe").await, 2);
}

#[tokio::test]
async fn odd_replay_ids_lose_nothing() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.settings(json!({"events_per_response": 2})).await;
    let config = accounts(&org, &store, "", "start = \"earliest\"");
    let mut daemon = Daemon::run(&config);
    let mut published = 0;
    for kind in ["duplicate", "lower_replay_id", "missing_replay_id"] {
        for after_it in ["reset", "end"] {
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
            org.fault(json!({"rpc": "Subscribe", "kind": kind, "times": 1}))
                .await;
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
            org.fault(json!({"rpc": "Subscribe", "kind": after_it, "times": 1, "after_events": 0}))
                .await;
            publish(&org, &published.to_string()).await;
            published += 1;
            last(&daemon, published).await;
        }
    }
    org.fault(json!({"rpc": "Subscribe", "kind": "missing_replay_id", "times": 1}))
        .await;
    publish(&org, "last").await;
    eventually("the last", async || {
        names(&daemon.events())
            .contains(&"last".to_owned())
            .then_some(())
    })
    .await;
    let mut first = names(&daemon.stop().await.0);
    let mut seen = std::collections::HashSet::new();
    first.retain(|name| seen.insert(name.clone()));
    let mut expected: Vec<String> = (0..published).map(|n| n.to_string()).collect();
    expected.push("last".to_owned());
    assert_eq!(first, expected);
    // And what has no place of its own is not lost in a restart either.
    publish(&org, "more").await;
    daemon = Daemon::run(&config);
    eventually("the next", async || {
        names(&daemon.events())
            .contains(&"more".to_owned())
            .then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}

/// Waits for the event that was published last of so many.
async fn last(daemon: &Daemon, published: usize) {
    let name = (published - 1).to_string();
    let began = Instant::now();
    within(DEADLINE, "the event", async || {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{name} is missing: {:?}\n{}",
            names(&daemon.events()),
            daemon.log().join("\n")
        );
        names(&daemon.events()).contains(&name).then_some(())
    })
    .await;
}

// ---- sessions ----

#[tokio::test]
async fn an_expired_token_leaves_the_live_stream_alone() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.post("/tokens/expire", &json!({})).await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    assert_eq!(calls(&org, "Subscribe").await, 1);
    assert_eq!(calls(&org, "Token").await, 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_schema_is_fetched_with_a_new_token_without_ending_the_stream() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"latest\""));
    daemon.logged(&["stream open"]).await;
    org.post("/tokens/expire", &json!({})).await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    assert_eq!(calls(&org, "GetSchema").await, 2, "refused, then answered");
    assert_eq!(calls(&org, "Token").await, 2);
    assert_eq!(calls(&org, "Subscribe").await, 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_revoked_token_that_ends_the_stream_is_replaced() {
    let org = Emulator::start().await;
    org.settings(json!({"revoke_ends_streams": true})).await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"latest\""));
    daemon.logged(&["stream open"]).await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.post("/tokens/revoke", &json!({})).await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    assert_eq!(calls(&org, "Token").await, 2);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
    assert_eq!(store.holes().await, []);
}

#[tokio::test]
async fn a_subscribe_call_that_is_never_answered_is_given_up() {
    let org = Emulator::start().await;
    org.settings(json!({"keepalive_ms": 100})).await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "Subscribe", "kind": "hang", "times": 1}))
        .await;
    publish(&org, "one").await;
    let silence = "silence_limit = \"500ms\"";
    let mut daemon = Daemon::run(&accounts(&org, &store, silence, "start = \"earliest\""));
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one".to_owned(), 0));
}

#[tokio::test]
async fn a_permission_that_is_taken_away_blocks_and_the_stream_goes_on_when_it_is_back() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"earliest\""));
    publish(&org, "one").await;
    daemon.handled(1).await;
    org.settings(json!({"denied_topics": [ACCOUNTS]})).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "end", "times": 1}))
        .await;
    let blocked = store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    assert!(
        blocked.detail.as_ref().unwrap().contains("permission"),
        "{blocked:?}"
    );
    publish(&org, "two").await;
    org.settings(json!({"denied_topics": []})).await;
    daemon.handled(2).await;
    store
        .until("accounts", "state live", |s| s.state == "live")
        .await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
}

#[tokio::test]
async fn streams_refused_for_their_token_share_one_new_sign_in() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut config = accounts(&org, &store, "", "start = \"earliest\"");
    for (name, topic) in [("contacts", CONTACTS), ("orders", "/event/Order__e")] {
        config += &format!("[[subscription]]\nname = \"{name}\"\ntopic = \"{topic}\"\n{LOG}");
    }
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    called(&org, "Subscribe", 3).await;
    eventually("three streams", async || {
        let state = org.state().await;
        (state["streams"].as_array()?.len() == 3).then_some(())
    })
    .await;
    org.post("/tokens/expire", &json!({})).await;
    org.post("/connections/drop", &json!({})).await;
    publish(&org, "two").await;
    daemon.handled(2).await;
    eventually("three streams again", async || {
        let state = org.state().await;
        (state["streams"].as_array()?.len() == 3).then_some(())
    })
    .await;
    assert_eq!(calls(&org, "Token").await, 2);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("one two".to_owned(), 0));
}
