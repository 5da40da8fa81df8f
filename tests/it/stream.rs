//! Streams that break, fall silent or are refused: nothing is lost, and nobody is asked in a tight loop.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Daemon, Emulator, LOG, Store, account_update, configured, eventually, names, record,
};

pub(crate) const ACCOUNTS: &str = "/data/AccountChangeEvent";
const CONTACTS: &str = "/data/ContactChangeEvent";

pub(crate) fn accounts(
    org: &Emulator,
    store: &Store,
    salesforce: &str,
    subscription: &str,
) -> String {
    let subscription = ("accounts", ACCOUNTS, subscription);
    configured(org, store, salesforce, subscription, LOG)
}

pub(crate) async fn publish(org: &Emulator, name: &str) -> String {
    let published = org
        .publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
    published["events"][0]["replay_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

pub(crate) async fn calls(org: &Emulator, call: &str) -> u64 {
    org.state().await["calls"][call].as_u64().unwrap_or(0)
}

/// Waits until so many calls were made.
pub(crate) async fn called(org: &Emulator, call: &str, count: u64) {
    eventually(&format!("{count} {call} calls"), async || {
        (calls(org, call).await >= count).then_some(())
    })
    .await;
}

pub(crate) fn pause_ms(line: &str) -> u64 {
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
    // The first pause, of 50 ms and up to half of it again; it had grown to 250 ms at least.
    assert!((50..=75).contains(&pause_ms(&line)), "{line}");
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
