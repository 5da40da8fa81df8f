//! Which open dead letters hold a record for which event: across rewinds, side replays, restarts and positions
//! that the bus has forgotten (design 3.1, rule 7).

use std::collections::BTreeMap;

use serde_json::json;

use crate::letters::{Refusing, config, letters, on_both, open, publish};
use crate::replay::{replayed, standing_at};
use crate::support::{Daemon, Emulator, Hook, Reply, Store, eventually, names, webhook};

on_both! {
    a_rewind_hands_over_what_is_older_than_an_open_letter_and_keeps_what_is_younger,
    a_letter_that_a_replay_opened_again_holds_its_record_after_a_kill,
    a_letter_whose_event_the_bus_forgot_holds_its_record_after_a_kill,
    a_letter_whose_event_the_bus_forgot_holds_what_a_stream_from_earliest_brings,
}

async fn place_of_last(org: &Emulator, number: usize, name: &str) -> String {
    let event = crate::support::account_update(&crate::support::record(number), name);
    let published = org.publish(crate::letters::ACCOUNTS, &[event]).await;
    let id = published["events"][0]["replay_id"].as_str();
    id.unwrap().to_owned()
}

async fn a_rewind_hands_over_what_is_older_than_an_open_letter_and_keeps_what_is_younger(
    store: Store,
) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    let daemon = Daemon::run(&config);
    for name in ["a", "b", "bad", "c"] {
        publish(&org, 1, name).await;
    }
    let last = place_of_last(&org, 1, "d").await;
    open(&store, 3).await;
    standing_at(&store, &last).await;
    replayed(&config, &["--from", "earliest"]).await;
    refusing.hook.accepts(4).await;
    standing_at(&store, &last).await;
    // Once more, with a kill in the middle of what is left to do.
    replayed(&config, &["--from", "earliest"]).await;
    refusing.hook.accepts(5).await;
    daemon.kill();
    let daemon = Daemon::run(&config);
    standing_at(&store, &last).await;
    open(&store, 3).await;
    let accepted = names(&refusing.hook.accepted());
    assert_eq!(accepted[..5].join(" "), "a b a b a");
    assert!(accepted[5..].iter().all(|name| name == "a" || name == "b"));
    let before = accepted.len();
    refusing.mend();
    let (code, out, err) = letters(&config, &["retry", "--reason", "rejected"]).await;
    assert_eq!((code, out.as_str()), (0, "1 handled"), "{err}");
    open(&store, 0).await;
    let accepted = names(&refusing.hook.accepted());
    assert_eq!(accepted[before..].join(" "), "bad c d");
    assert_eq!(store.parked().await.len(), 3, "no other was parked");
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_letter_that_a_replay_opened_again_holds_its_record_after_a_kill(store: Store) {
    let org = Emulator::start().await;
    let hook = Hook::start(|event, _| {
        let bad = event["data"]["Name"] == "bad";
        if bad { 422 } else { 200 }.into()
    })
    .await;
    let config = config(&org, &store, "", &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    publish(&org, 1, "a").await;
    let last = place_of_last(&org, 1, "bad").await;
    let ids = open(&store, 1).await;
    standing_at(&store, &last).await;
    let discard = ["dead-letters", "discard", &ids[0].to_string(), "--yes"];
    let (code, _, err) = Daemon::output(&discard, &config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{err}");
    // Refused once more, and open again, long after the position was written.
    replayed(&config, &["--from", "earliest", "--to", &last]).await;
    open(&store, 1).await;
    daemon.kill();
    publish(&org, 1, "younger").await;
    let daemon = Daemon::run(&config);
    open(&store, 2).await;
    assert_eq!(names(&hook.accepted()).join(" "), "a a");
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_letter_whose_event_the_bus_forgot_holds_its_record_after_a_kill(store: Store) {
    younger_is_held(store, "latest").await;
}

async fn a_letter_whose_event_the_bus_forgot_holds_what_a_stream_from_earliest_brings(
    store: Store,
) {
    younger_is_held(store, "earliest").await;
}

/// The position is lost while nobody runs, and a letter is above it; what the next one begins with is younger.
async fn younger_is_held(store: Store, on_expired: &str) {
    let org = Emulator::start().await;
    let hook = Hook::start(|event, _| {
        let name = event["data"]["Name"].as_str().unwrap_or_default();
        Reply::from(match name {
            "stuck" => 500,
            "bad" => 422,
            _ => 200,
        })
    })
    .await;
    let policy = format!("on_expired_replay_id = \"{on_expired}\"");
    let handler = webhook(&hook.url(), "").replace("attempts = 3", "attempts = 1000");
    let config = config(&org, &store, &policy, &handler);
    let first = place_of_last(&org, 3, "first").await;
    let daemon = Daemon::run(&config);
    standing_at(&store, &first).await;
    // The position stays before it, and so before the letter.
    publish(&org, 2, "stuck").await;
    publish(&org, 1, "bad").await;
    open(&store, 1).await;
    daemon.kill();
    org.post("/bus/expire", &json!({})).await;
    if on_expired == "earliest" {
        // Most likely committed in the same second.
        publish(&org, 1, "younger").await;
    }
    let daemon = Daemon::run(&config);
    let from = format!("from={on_expired}");
    daemon.logged(&["stream open", &from]).await;
    if on_expired == "latest" {
        publish(&org, 1, "younger").await;
    }
    open(&store, 2).await;
    publish(&org, 3, "other").await;
    eventually("another record", async || {
        let accepted = names(&hook.accepted());
        accepted.contains(&"other".to_owned()).then_some(())
    })
    .await;
    assert!(!names(&hook.accepted()).contains(&"younger".to_owned()));
    assert_eq!(daemon.stop().await.1, 0);
}
