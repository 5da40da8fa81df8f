//! Which events each handler of a subscription is given (`entity`, `change`, `changed`), of one stream for all.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::grouping::{self, ALL, told, transaction};
use crate::letters::{ACCOUNTS, letters, open, publish};
use crate::letters_kept::{UNKNOWN, account_schema};
use crate::shaping::{accepting, change, hook, refusing, subscribed};
use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, Hook, Metrics, Reply, Store, account_update, eventually, names, record,
};

fn contact(number: usize, title: &str) -> Value {
    json!({
        "ChangeEventHeader": {"recordIds": [format!("003A0000{number:07}AAA")]},
        "Title": title,
    })
}

fn titles(events: &[Value]) -> Vec<String> {
    let name = |event: &Value| {
        let data = &event["data"];
        let name = data["Name"].as_str().or(data["Title"].as_str());
        name.unwrap_or("?").to_owned()
    };
    events.iter().map(name).collect()
}

async fn position_moved(store: &Store, deliveries: u64) {
    let finished = format!("{deliveries} events finished");
    store
        .until("all", &finished, |one| one.finished >= deliveries)
        .await;
}

#[tokio::test]
async fn each_handler_is_given_what_it_wants_of_one_stream_and_what_nobody_wants_is_counted() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (contacts, phones) = (accepting().await, accepting().await);
    let handlers = [
        hook("contacts", &contacts, "entity = [\"Contact\"]"),
        hook(
            "phones",
            &phones,
            "entity = \"Account\"\nchange = [\"update\", \"delete\"]\nchanged = [\"Phone\", \"BillingAddress\"]",
        ),
    ];
    let config = subscribed(&org, &store, ALL, "", &handlers.concat());
    let account = |n, kind, changed: &[&str], name: &str| {
        change(n, kind, changed, json!({"Name": name, "Phone": "1"}))
    };
    org.publish(
        ACCOUNTS,
        &[
            account(1, "UPDATE", &["Name"], "no phone"),
            account(1, "UPDATE", &["Name", "Phone"], "phone"),
            account(2, "CREATE", &[], "created"),
            account(3, "DELETE", &[], "deleted"),
            account(4, "UPDATE", &["BillingAddress.City"], "moved"),
        ],
    )
    .await;
    org.publish("/data/ContactChangeEvent", &[contact(1, "contact")])
        .await;
    let daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    assert_eq!(titles(&contacts.accepts(1).await), ["contact"]);
    let mut given = titles(&phones.accepts(3).await);
    given.sort_unstable();
    assert_eq!(given, ["deleted", "moved", "phone"]);
    let outcome = |outcome| [("subscription", "all"), ("outcome", outcome)];
    let finished = "orgstream_events_finished_total";
    metrics
        .until(finished, &outcome("filtered"), |n| n == 2.0)
        .await;
    metrics
        .until(finished, &outcome("handled"), |n| n == 4.0)
        .await;
    position_moved(&store, 6).await;
    // The last one's replay ID is not complete yet; nothing is kept for those that do not want it.
    assert_eq!(store.finished_ahead().await, 1);
    // The org has delivered each event once.
    assert_eq!(org.state().await["deliveries"], 6);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!((contacts.came().len(), phones.came().len()), (1, 3));
}

#[tokio::test]
async fn a_slow_handler_does_not_stop_another_until_the_room_is_full() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (slow, fast) = (Hook::closed().await, accepting().await);
    let handlers = [hook("slow", &slow, ""), hook("fast", &fast, "")].concat();
    let config = subscribed(&org, &store, ACCOUNTS, "max_in_flight = 20", &handlers);
    let events: Vec<Value> = (0..60)
        .map(|n| account_update(&record(n), &n.to_string()))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let daemon = Daemon::run(&config);
    fast.accepts(20).await;
    assert!(slow.accepted().is_empty());
    assert_eq!(fast.came().len(), 20, "there is no room for more");
    slow.open();
    slow.accepts(60).await;
    fast.accepts(60).await;
    assert_eq!(org.state().await["deliveries"], 60);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_filter_holds_for_what_comes_again_after_a_kill_and_for_a_side_replay() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (slow, contacts) = (Hook::closed().await, accepting().await);
    let handlers = [
        hook("slow", &slow, ""),
        hook("contacts", &contacts, "entity = [\"Contact\"]"),
    ];
    let config = subscribed(&org, &store, ALL, "", &handlers.concat());
    for round in 0..3 {
        publish(&org, round, &format!("a{round}")).await;
        let event = contact(round, &format!("c{round}"));
        org.publish("/data/ContactChangeEvent", &[event]).await;
    }
    let daemon = Daemon::run(&config);
    contacts.accepts(3).await;
    // What it handled is marked; what it does not want is not.
    eventually("marks", async || {
        (store.finished_ahead().await == 3).then_some(())
    })
    .await;
    daemon.kill();
    slow.open();
    let daemon = Daemon::run(&config);
    slow.accepts(6).await;
    position_moved(&store, 6).await;
    let given = || {
        let mut given = titles(&contacts.accepted());
        given.sort_unstable();
        given.join(" ")
    };
    assert_eq!(given(), "c0 c1 c2");
    // On a channel only what follows says that there is no more of the last place.
    org.settings(json!({"keepalive_ms": 300})).await;
    let args = ["--from", "earliest", "--handler", "contacts"];
    let command = replayed_of(&config, "all", &args).await;
    assert_eq!(command["progress"]["finished"], 6, "{command}");
    assert_eq!(command["progress"]["unwanted"], 3, "{command}");
    let outcome = command["outcome"].as_str().unwrap();
    assert!(
        outcome.ends_with("; 3 events handed over, 3 not wanted"),
        "{outcome}"
    );
    contacts.accepts(6).await;
    assert_eq!(given(), "c0 c0 c1 c1 c2 c2");
    assert_eq!(daemon.stop().await.1, 0);
}

/// `orgstream replay` of a subscription, to its end.
async fn replayed_of(config: &str, name: &str, args: &[&str]) -> Value {
    let args = [&["replay", name], args, &["--yes", "--json"]].concat();
    let (code, out, err) = Daemon::output(&args, config, &BTreeMap::new()).await;
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test]
async fn of_a_transaction_a_handler_is_given_what_it_wants_as_one_unit() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let refuse = |event: &Value, _| match told(event).contains("bad") {
        true => Reply::from(422),
        false => Reply::from(200),
    };
    let (accounts, all) = (Hook::start(refuse).await, accepting().await);
    let handlers = [
        hook("accounts", &accounts, "entity = [\"Account\"]"),
        hook("all", &all, ""),
    ];
    let config = grouping::config(&org, &store, ALL, "", &handlers.concat());
    // Every third is a contact.
    transaction(&org, "a", 5).await;
    transaction(&org, "bad", 5).await;
    transaction(&org, "c", 1).await;
    let daemon = Daemon::run(&config);
    let accepted = all.accepts(3).await;
    assert_eq!(told(&accepted[0]), "a.0 a.1 a.2 a.3 a.4");
    assert_eq!(told(&accounts.accepts(1).await[0]), "a.0 a.1 a.3 a.4");
    // Parked is what it wants, and what comes after of these records; it goes together once more.
    let ids = open(&store, 5).await;
    let config_of = |mended: &Hook| {
        let handlers = [
            hook("accounts", mended, "entity = [\"Account\"]"),
            hook("all", &all, ""),
        ];
        grouping::config(&org, &store, ALL, "", &handlers.concat())
    };
    assert_eq!(daemon.stop().await.1, 0);
    let mended = accepting().await;
    let config_mended = config_of(&mended);
    let daemon = Daemon::run(&config_mended);
    let (code, out, err) = letters(&config, &["retry", &ids[0].to_string()]).await;
    assert_eq!(code, 0, "{out}{err}");
    let given: Vec<String> = mended.accepts(2).await.iter().map(told).collect();
    assert_eq!(given, ["bad.0 bad.1 bad.3 bad.4", "c.0"]);
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_could_not_be_decoded_goes_to_those_that_want_it_once_it_can_be() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (contacts, accounts) = (accepting().await, accepting().await);
    let handlers = [
        hook("contacts", &contacts, "entity = [\"Contact\"]"),
        hook("accounts", &accounts, "entity = [\"Account\"]"),
    ];
    let config = subscribed(
        &org,
        &store,
        ALL,
        "schema_wait = \"1s\"",
        &handlers.concat(),
    );
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "status": 5}))
        .await;
    publish(&org, 1, "a").await;
    publish(&org, 1, "b").await;
    let daemon = Daemon::run(&config);
    open(&store, 2).await;
    org.clear_faults().await;
    let (code, out, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(names(&accounts.accepts(2).await), ["a", "b"]);
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert!(contacts.came().is_empty());
}

#[tokio::test]
async fn what_was_parked_for_a_handler_is_given_to_it_even_where_it_does_not_want_it_any_more() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let (refusing, slow) = (refusing().await, Hook::closed().await);
    let config = |hooked: &Hook, filter: &str| {
        let handlers = [hook("slow", &slow, ""), hook("hook", hooked, filter)];
        subscribed(&org, &store, ACCOUNTS, "", &handlers.concat())
    };
    let bad = |name: &str| json!({"Name": name, "Rating": "bad"});
    org.publish(
        ACCOUNTS,
        &[
            change(1, "UPDATE", &["Name", "Rating"], bad("refused")),
            change(1, "UPDATE", &["Name"], json!({"Name": "behind"})),
            change(2, "UPDATE", &["Name"], json!({"Name": "of another"})),
        ],
    )
    .await;
    let all = config(&refusing, "");
    let daemon = Daemon::run(&all);
    let ids = open(&store, 2).await;
    refusing.accepts(1).await;
    // Before the position has passed them, so that the stream brings all of them once more.
    daemon.kill();
    let mended = accepting().await;
    let deletes = config(&mended, "change = [\"delete\"]");
    let daemon = Daemon::run(&deletes);
    org.publish(
        ACCOUNTS,
        &[change(1, "UPDATE", &["Name"], json!({"Name": "unwanted"}))],
    )
    .await;
    slow.open();
    slow.accepts(4).await;
    position_moved(&store, 4).await;
    assert_eq!(open(&store, 2).await, ids);
    let (code, out, err) = letters(&deletes, &["retry", &ids[0].to_string()]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(names(&mended.accepts(2).await), ["refused", "behind"]);
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(mended.came().len(), 2);
}

#[tokio::test]
async fn a_parked_event_that_could_not_be_read_meanwhile_is_given_all_the_same() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = |hooked: &Hook, filter: &str| {
        subscribed(&org, &store, ACCOUNTS, "", &hook("hook", hooked, filter))
    };
    let bad = json!({"Name": "refused", "Rating": "bad"});
    org.publish(ACCOUNTS, &[change(1, "UPDATE", &["Name", "Rating"], bad)])
        .await;
    let refusing = refusing().await;
    let daemon = Daemon::run(&config(&refusing, ""));
    let id = open(&store, 1).await[0].to_string();
    assert_eq!(daemon.stop().await.1, 0);
    // Its schema is one that the org does not know.
    assert_eq!(UNKNOWN, "dW5rbm93bnVua25vd251bm");
    store
        .execute("update orgstream.dead_letter set schema_id = 'dW5rbm93bnVua25vd251bm'")
        .await;
    let mended = accepting().await;
    let deletes = config(&mended, "change = [\"delete\"]");
    let daemon = Daemon::run(&deletes);
    let (code, out, err) = letters(&deletes, &["retry", &id]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(
        err.contains("rejected: cannot be handed over now (schema_refused)"),
        "{err}"
    );
    let (_, text) = account_schema();
    org.post("/schemas", &json!({"schema": text, "schema_id": UNKNOWN}))
        .await;
    let (code, out, err) = letters(&deletes, &["retry", &id]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(names(&mended.accepts(1).await), ["refused"]);
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
}
