//! What each handler of a subscription is given: filters, fields that are hidden, and one stream for all.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::grouping::{self, ALL, told, transaction};
use crate::letters::{ACCOUNTS, letters, open, publish};
use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, Hook, Metrics, Reply, Store, account_update, configured, eventually, names,
    record,
};

const KEY: &str = "the key of these tests, which is long enough";
const KEYS: &str = "encryption_key = \"the key of these tests, which is long enough\"";
const PLANTED: &str = "planted-in-a-field";

/// A `webhook` handler of this name; `more` is further lines.
fn hook(name: &str, hook: &Hook, more: &str) -> String {
    format!(
        "[[subscription.handler]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"{}\"\n\
         retry = {{ attempts = 3, initial = \"20ms\", max = \"100ms\" }}\n{more}\n",
        hook.url()
    )
}

fn subscribed(org: &Emulator, store: &Store, topic: &str, more: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{more}");
    configured(org, store, "", ("all", topic, &subscription), handlers)
        .replace("[[subscription]]", &format!("{KEYS}\n[[subscription]]"))
}

async fn accepting() -> Hook {
    Hook::start(|_, _| Reply::from(200)).await
}

/// Refuses events whose description says so.
async fn refusing() -> Hook {
    Hook::start(|event, _| match event["data"]["Rating"].as_str() {
        Some("bad") => Reply::from(422),
        _ => Reply::from(200),
    })
    .await
}

fn contact(number: usize, title: &str) -> Value {
    json!({
        "ChangeEventHeader": {"recordIds": [format!("003A0000{number:07}AAA")]},
        "Title": title,
    })
}

/// A change of an account with this kind, these changed fields and these values.
fn change(number: usize, kind: &str, changed: &[&str], values: Value) -> Value {
    let mut event = values;
    event["ChangeEventHeader"] = json!({
        "entityName": "Account",
        "recordIds": [record(number)],
        "changeType": kind,
        "changedFields": changed,
    });
    event
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
    // The replay ends before this one, whose replay ID is not complete.
    publish(&org, 9, "last").await;
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
    slow.accepts(7).await;
    position_moved(&store, 7).await;
    let given = || {
        let mut given = titles(&contacts.accepted());
        given.sort_unstable();
        given.join(" ")
    };
    assert_eq!(given(), "c0 c1 c2");
    let args = ["--from", "earliest", "--handler", "contacts"];
    let command = replayed_of(&config, "all", &args).await;
    assert_eq!(command["progress"]["finished"], 6, "{command}");
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

/// None of these texts is in what was said.
fn says_none(said: &str, what: &str) {
    let line = said.lines().find(|line| line.contains(PLANTED));
    assert!(line.is_none(), "{what}: {}", line.unwrap_or_default());
    // Nor in the bytes, as they are shown in base64 where nothing is hidden.
    assert!(!said.contains(&PLANTED[..10]), "{what}");
}

/// Everything that a database file or a table holds, as text.
async fn rows(store: &Store) -> String {
    let parked = match store.url.strip_prefix("sqlite://") {
        Some(path) => {
            let mut all = Vec::new();
            for end in ["", "-wal"] {
                all.extend(std::fs::read(format!("{path}{end}")).unwrap_or_default());
            }
            all
        }
        None => {
            let mut conn = sqlx::PgConnection::connect(&store.url).await.unwrap();
            let rows: Vec<Vec<u8>> = sqlx::query_scalar(
                "select convert_to(d::text, 'UTF8') || d.payload from orgstream.dead_letter d",
            )
            .fetch_all(&mut conn)
            .await
            .unwrap();
            assert!(!rows.is_empty());
            rows.concat()
        }
    };
    String::from_utf8_lossy(&parked).into_owned()
}

async fn a_hidden_value_is_seen_nowhere_and_a_retry_has_it_all(store: Store) {
    let org = Emulator::start().await;
    let (hidden, whole) = (refusing().await, accepting().await);
    let fields = "fields = { without = [\"Fax\"], mask = [\"Phone\", \"BillingAddress.City\"], hash = [\"Name\"], \
                  hash_key = \"the key that hashes are made with, which is long\" }";
    let handlers = [hook("hidden", &hidden, fields), hook("whole", &whole, "")];
    let config = subscribed(&org, &store, ACCOUNTS, "", &handlers.concat());
    let planted = |number, rating: &str| {
        let fields = [
            "Name",
            "Phone",
            "Fax",
            "BillingAddress.City",
            "Rating",
            "Industry",
        ];
        change(
            number,
            "UPDATE",
            &fields,
            json!({
                "Name": PLANTED, "Phone": PLANTED, "Fax": PLANTED, "Rating": rating,
                "BillingAddress": {"City": PLANTED, "Country": "DE"},
            }),
        )
    };
    org.publish(
        ACCOUNTS,
        &[planted(1, "good"), planted(2, "bad"), planted(2, "ok")],
    )
    .await;
    let env = BTreeMap::from([
        ("ORGSTREAM_LOG", "trace".to_owned()),
        (METRICS.0, METRICS.1.to_owned()),
    ]);
    let daemon = Daemon::command(&["run"], &config, &env);
    let metrics = Metrics::of(&daemon).await;
    assert_eq!(
        texts_of(&whole.accepts(3).await, "/data/Phone"),
        [PLANTED; 3]
    );
    let ids = open(&store, 2).await;
    // Not that of the planted text's own handler: what one is shown, the other is not.
    let given = hidden.accepts(1).await.remove(0);
    assert_eq!(given["data"]["Phone"], "***");
    assert_eq!(
        given["data"]["BillingAddress"],
        json!({"City": "***", "Country": "DE"})
    );
    assert_eq!(given["data"]["Industry"], Value::Null);
    assert!(given["data"].get("Fax").is_none());
    let hash = given["data"]["Name"].as_str().unwrap();
    assert!(
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
        "{hash}"
    );
    let changed = &given["data"]["ChangeEventHeader"]["changedFields"];
    let named = ["Name", "Phone", "BillingAddress.City", "Rating", "Industry"];
    let mut changed: Vec<&str> = changed
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    changed.sort_unstable();
    let mut named = named;
    named.sort_unstable();
    assert_eq!(changed, named);
    assert_eq!(given["subject"], record(1));
    let refused = hidden
        .came()
        .into_iter()
        .find(|event| event["data"]["Rating"] == "bad");
    assert_eq!(refused.unwrap()["data"]["Name"], hash, "the same value");

    says_none(&rows(&store).await, "the store");
    says_none(&metrics.text().await, "metrics");
    let id = ids[0].to_string();
    let commands: [&[&str]; 7] = [
        &["list"],
        &["list", "--json"],
        &["show", &id],
        &["show", &id, "--json"],
        &["show", &id, "--raw"],
        &["export", "--all"],
        &["export", &id],
    ];
    for args in commands {
        let args = [&["dead-letters"], args].concat();
        let (code, out, err) = Daemon::output(&args, &config, &env).await;
        let raw = args.contains(&"--raw");
        assert_eq!(code, i32::from(raw), "{args:?}: {err}");
        says_none(&out, &args.join(" "));
        says_none(&err, &args.join(" "));
        if args.contains(&"show") && !raw || args.contains(&"export") {
            assert!(out.contains("***") && out.contains(hash), "{out}");
        }
        if args.contains(&"--json") && args.contains(&"show") || args.contains(&"export") {
            let shown: Value = serde_json::from_str(out.lines().next().unwrap())
                .or_else(|_| serde_json::from_str(&out))
                .unwrap();
            assert!(shown.get("payload").is_none(), "{shown}");
        }
    }
    // It stays what it was for whoever may see it.
    assert!(
        store
            .parked()
            .await
            .iter()
            .all(|one| one.letter.sealed && one.unreadable.is_some())
    );

    nothing_is_shown_without_knowing_what_may_be(&store, &config, &id).await;
    a_wrong_key_costs_nothing(&store, &config, daemon, &hidden, &ids).await;
}

fn texts_of(events: &[Value], pointer: &str) -> Vec<String> {
    let text = |event: &Value| {
        event
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("?")
            .to_owned()
    };
    events.iter().map(text).collect()
}

async fn nothing_is_shown_without_knowing_what_may_be(store: &Store, config: &str, id: &str) {
    let bare = format!("[store]\nurl = \"{}\"\n{KEYS}\n", store.url);
    let elsewhere = config.replace("name = \"all\"", "name = \"other\"");
    let broken = config.replace("mask = [", "masks = [");
    for config in [&bare, &elsewhere, &broken] {
        for args in [
            &["show", id][..],
            &["show", id, "--json"],
            &["export", "--all"],
        ] {
            let (code, out, err) = letters(config, args).await;
            assert_eq!(code, 0, "{args:?}: {err}");
            says_none(&out, &args.join(" "));
            assert!(!out.contains("DE"), "{out}");
            assert!(out.contains("what may be shown of it"), "{out}");
        }
        let (code, out, err) = letters(config, &["show", id, "--raw"]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
    }
    // Known, but not to be opened.
    let keyless = config
        .replace(KEYS, "")
        .replace("[store]", "[store]\nmax_connections = 3");
    let (code, out, err) = letters(&keyless, &["show", id]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("ORGSTREAM_ENCRYPTION_KEY"), "{out}");
}

async fn a_wrong_key_costs_nothing(
    store: &Store,
    config: &str,
    daemon: Daemon,
    hidden: &Hook,
    ids: &[i64],
) {
    says_none(&daemon.log().join("\n"), "the log");
    assert_eq!(daemon.stop().await.1, 0);
    // The far side takes anything now.
    let mended = accepting().await;
    let config = config.replace(&hidden.url(), &mended.url());
    let wrong = config.replace(KEY, "another key, which is as long as it has to be");
    let daemon = Daemon::run(&wrong);
    let id = ids[0].to_string();
    let (code, out, err) = letters(&wrong, &["retry", &id]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("ORGSTREAM_ENCRYPTION_KEY"), "{err}");
    assert_eq!(open(store, 2).await, ids);
    assert!(mended.came().is_empty());
    assert_eq!(daemon.stop().await.1, 0);
    let daemon = Daemon::run(&config);
    let (code, out, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let given = mended.accepts(2).await;
    assert_eq!(texts_of(&given, "/data/Rating"), ["bad", "ok"]);
    assert_eq!(texts_of(&given, "/data/Phone"), ["***"; 2]);
    open(store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_hidden_value_is_seen_nowhere_and_a_retry_has_it_all_on_sqlite() {
    a_hidden_value_is_seen_nowhere_and_a_retry_has_it_all(Store::sqlite()).await;
}

#[tokio::test]
async fn a_hidden_value_is_seen_nowhere_and_a_retry_has_it_all_on_postgres() {
    if let Some(store) = Store::postgres().await {
        a_hidden_value_is_seen_nowhere_and_a_retry_has_it_all(store).await;
    }
}

#[tokio::test]
async fn bytes_that_do_not_decode_are_not_shown_where_a_part_of_them_is_hidden() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let receiver = accepting().await;
    let handlers = hook("hidden", &receiver, "fields = { mask = [\"Phone\"] }");
    let config = subscribed(&org, &store, ACCOUNTS, "", &handlers);
    let payload = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, PLANTED);
    let raw = json!({
        "topic": ACCOUNTS,
        "schema_id": "mXn-qVf-uENIp2CjGq7nvw",
        "payload": payload,
    });
    org.post("/raw", &raw).await;
    let daemon = Daemon::run(&config);
    let id = open(&store, 1).await[0].to_string();
    says_none(&rows(&store).await, "the store");
    for args in [
        &["show", &*id][..],
        &["show", &id, "--json"],
        &["export", &id],
    ] {
        let (code, out, err) = letters(&config, args).await;
        assert_eq!(code, 0, "{err}");
        says_none(&out, &args.join(" "));
        assert!(
            !out.contains(&payload) && !out.contains("70 6c 61"),
            "{out}"
        );
        assert!(out.contains("its bytes are not shown"), "{out}");
    }
    says_none(&daemon.log().join("\n"), "the log");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn rows_of_a_postgres_handler_hold_what_it_is_shown_and_platform_events_are_shaped_too() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let handlers = "[[subscription.handler]]\ntype = \"postgres\"\nmode = \"append\"\n\
                    fields = { only = [\"OrderNumber__c\", \"City__c\"], mask = [\"City__c\"] }\n";
    let config = subscribed(
        &org,
        &store,
        "/event/Order__e",
        "key = \"OrderNumber__c\"",
        handlers,
    );
    let order = json!({"OrderNumber__c": "4711", "City__c": PLANTED, "Status__c": PLANTED});
    org.publish("/event/Order__e", &[order]).await;
    let daemon = Daemon::run(&config);
    let rows = eventually("a row", async || {
        let mut conn = sqlx::PgConnection::connect(&store.url).await.unwrap();
        let rows: Vec<(String, String)> =
            sqlx::query_as("select subject, data::text from orgstream_events")
                .fetch_all(&mut conn)
                .await
                .unwrap_or_default();
        (!rows.is_empty()).then_some(rows)
    })
    .await;
    assert_eq!(rows[0].0, "4711");
    let data: Value = serde_json::from_str(&rows[0].1).unwrap();
    assert_eq!(data, json!({"OrderNumber__c": "4711", "City__c": "***"}));
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_name_that_a_schema_does_not_have_is_warned_of_once() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let receiver = accepting().await;
    let fields = "changed = [\"Name\"]\nfields = { mask = [\"Phnoe\", \"BillingAddress.City\"] }";
    let config = subscribed(
        &org,
        &store,
        ACCOUNTS,
        "",
        &hook("hidden", &receiver, fields),
    );
    for number in 0..3 {
        publish(&org, number, "a").await;
    }
    let daemon = Daemon::run(&config);
    receiver.accepts(3).await;
    let line = daemon.logged(&["no such fields", "Phnoe", "hidden"]).await;
    assert!(
        line.contains("level=warn") && !line.contains("City"),
        "{line}"
    );
    let lines = daemon.log();
    let said = lines.iter().filter(|line| line.contains("Phnoe"));
    assert_eq!(said.count(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}
