//! Schemas that change in mid-stream, are slow to come, or do not come at all.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, LOG, Store, account_update, configured, eventually, names, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn config(org: &Emulator, store: &Store, subscription: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{subscription}");
    configured(org, store, "", ("accounts", ACCOUNTS, &subscription), LOG)
}

/// Gives Account one more field; the IDs of the schema before and of the new one.
async fn change_schema(org: &Emulator) -> (String, String) {
    let folder = crate::support::daemon::project().join("schemas");
    let file = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("AccountChangeEvent.")
        })
        .unwrap();
    let before = file
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .split('.')
        .nth(1)
        .unwrap();
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    schema["fields"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "Added__c", "type": ["null", "string"], "default": null}));
    let answer = org
        .post("/schemas", &json!({"topic": ACCOUNTS, "schema": schema}))
        .await;
    let after = answer["schema_id"].as_str().unwrap().to_owned();
    assert_ne!(after, before);
    (before.to_owned(), after)
}

async fn publish_with(org: &Emulator, schema_id: &str, name: &str) {
    let mut event = account_update(&record(1), name);
    if name.starts_with("new") {
        event["Added__c"] = name.into();
        event["ChangeEventHeader"]["changedFields"] = json!(["Name", "Added__c"]);
    }
    org.post(
        "/publish",
        &json!({"topic": ACCOUNTS, "schema_id": schema_id, "events": [event]}),
    )
    .await;
}

async fn schema_calls(org: &Emulator) -> u64 {
    org.state().await["calls"]["GetSchema"]
        .as_u64()
        .unwrap_or(0)
}

#[tokio::test]
async fn a_schema_that_comes_at_the_fourth_call_keeps_everything_in_order() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&config(&org, &store, ""));
    let (before, after) = change_schema(&org).await;
    publish_with(&org, &before, "old 0").await;
    daemon.handled(1).await;
    assert_eq!(schema_calls(&org).await, 1);
    org.fault(
        json!({"rpc": "GetSchema", "kind": "error", "code": "schema.api.unavailable", "times": 3}),
    )
    .await;
    let mut expected = vec!["old 0".to_owned()];
    for n in 1..10 {
        for (schema, age) in [(&after, "new"), (&before, "old")] {
            let name = format!("{age} {n}");
            publish_with(&org, schema, &name).await;
            expected.push(name);
        }
    }
    daemon.logged(&["schema cannot be had now"]).await;
    let events = daemon.handled(expected.len()).await;
    assert_eq!(names(&events), expected);
    for event in &events {
        let is_new = event["data"]["Name"].as_str().unwrap().starts_with("new");
        assert_eq!(event["data"].get("Added__c").is_some(), is_new);
        let schema = event["dataschema"].as_str().unwrap();
        assert!(
            schema.ends_with(if is_new { &after } else { &before }),
            "{schema}"
        );
    }
    assert_eq!(schema_calls(&org).await, 1 + 3 + 1);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn many_events_of_a_new_schema_in_two_subscriptions_cost_one_call() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "GetSchema", "kind": "delay", "delay_ms": 700, "times": 1}))
        .await;
    let events: Vec<Value> = (0..150)
        .map(|n| account_update(&record(n), &n.to_string()))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let all = format!(
        "{}[[subscription]]\nname = \"all\"\ntopic = \"/data/ChangeEvents\"\nstart = \"earliest\"\n{LOG}",
        config(&org, &store, "")
    );
    let mut daemon = Daemon::run(&all);
    daemon.handled(300).await;
    assert_eq!(schema_calls(&org).await, 1);
    let (events, code) = daemon.stop().await;
    assert_eq!((events.len(), code), (300, 0));
}

#[tokio::test]
async fn a_schema_that_the_org_does_not_know_parks_its_events_and_the_others_go_on() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&config(&org, &store, ""));
    let (before, after) = change_schema(&org).await;
    publish_with(&org, &before, "old 0").await;
    daemon.handled(1).await;
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "status": 5}))
        .await;
    publish_with(&org, &after, "new 1").await;
    publish_with(&org, &before, "old 1").await;
    publish_with(&org, &after, "new 2").await;
    publish_with(&org, &before, "old 2").await;
    // Of the same record all that follows is parked behind them; others go on.
    let (parked, behind): (Vec<_>, Vec<_>) =
        (store.parks(4).await.into_iter()).partition(|stored| stored.letter.handler.is_none());
    assert_eq!((parked.len(), behind.len()), (2, 2));
    for stored in &parked {
        assert_eq!(stored.letter.reason, "schema_refused");
        assert_eq!(stored.letter.schema_id.as_str(), after);
        assert_eq!(
            stored.letter.record_ids,
            [record(1)],
            "the header can be read without a schema"
        );
    }
    assert_eq!(
        schema_calls(&org).await,
        1 + 2,
        "asked twice, for such answers were seen to come and go, and not for each event"
    );
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(", "), code), ("old 0".to_owned(), 0));
}

#[tokio::test]
async fn a_schema_that_the_org_denies_once_only_is_waited_for() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "status": 5, "times": 1}))
        .await;
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    let mut daemon = Daemon::run(&config(&org, &store, ""));
    assert_eq!(names(&daemon.handled(1).await), ["one"]);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(store.parked().await, []);
}

#[tokio::test]
async fn a_schema_that_does_not_come_in_time_parks_its_events() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&config(&org, &store, "schema_wait = \"1s\""));
    let (before, after) = change_schema(&org).await;
    publish_with(&org, &before, "old 0").await;
    daemon.handled(1).await;
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "code": "schema.api.unavailable"}))
        .await;
    publish_with(&org, &after, "new").await;
    publish_with(&org, &before, "old 1").await;
    let other = account_update(&record(2), "other");
    org.post(
        "/publish",
        &json!({"topic": ACCOUNTS, "schema_id": before, "events": [other]}),
    )
    .await;
    daemon.handled(2).await;
    let parked = store.parks(2).await;
    assert_eq!(parked[0].letter.reason, "schema_unavailable");
    assert_eq!(parked[0].letter.record_ids, [record(1)]);
    assert_eq!(parked[1].letter.reason, "parked_behind");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn events_that_wait_for_a_schema_in_a_kill_come_again() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "GetSchema", "kind": "hang", "times": 1}))
        .await;
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    let daemon = Daemon::run(&config(&org, &store, ""));
    eventually("a call that hangs", async || {
        (schema_calls(&org).await == 1).then_some(())
    })
    .await;
    // Not even a polite stop waits for it.
    let (events, code) = tokio::time::timeout(Duration::from_secs(10), daemon.stop())
        .await
        .unwrap();
    assert_eq!((events, code), (vec![], 0));
    let mut daemon = Daemon::run(&config(&org, &store, ""));
    assert_eq!(names(&daemon.handled(1).await), ["one"]);
    assert_eq!(daemon.stop().await.1, 0);
}
