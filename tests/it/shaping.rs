//! What each handler of a subscription is shown of events (`fields`), and that nobody sees more of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::letters::{ACCOUNTS, letters, open, publish};
use crate::support::metrics::METRICS;
use crate::support::{
    Daemon, Emulator, Hook, Metrics, Reply, Store, configured, eventually, record,
};

const KEY: &str = "the key of these tests, which is long enough";
const KEYS: &str = "encryption_key = \"the key of these tests, which is long enough\"";
const PLANTED: &str = "planted-in-a-field";

/// A `webhook` handler of this name; `more` is further lines.
pub(crate) fn hook(name: &str, hook: &Hook, more: &str) -> String {
    format!(
        "[[subscription.handler]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"{}\"\n\
         retry = {{ attempts = 3, initial = \"20ms\", max = \"100ms\" }}\n{more}\n",
        hook.url()
    )
}

pub(crate) fn subscribed(
    org: &Emulator,
    store: &Store,
    topic: &str,
    more: &str,
    handlers: &str,
) -> String {
    let subscription = format!("start = \"earliest\"\n{more}");
    configured(org, store, "", ("all", topic, &subscription), handlers)
        .replace("[[subscription]]", &format!("{KEYS}\n[[subscription]]"))
}

pub(crate) async fn accepting() -> Hook {
    Hook::start(|_, _| Reply::from(200)).await
}

/// Refuses events whose description says so.
pub(crate) async fn refusing() -> Hook {
    Hook::start(|event, _| match event["data"]["Rating"].as_str() {
        Some("bad") => Reply::from(422),
        _ => Reply::from(200),
    })
    .await
}

/// A change of an account with this kind, these changed fields and these values.
pub(crate) fn change(number: usize, kind: &str, changed: &[&str], values: Value) -> Value {
    let mut event = values;
    event["ChangeEventHeader"] = json!({
        "entityName": "Account",
        "recordIds": [record(number)],
        "changeType": kind,
        "changedFields": changed,
    });
    event
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
