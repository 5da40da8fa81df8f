//! The commands beside `run`, as processes against the emulator: what they print and how they exit.

use std::collections::BTreeMap;

use orgstream::store::SubscriptionStatus;
use serde_json::{Value, json};

use crate::support::{Daemon, Emulator, Store, account_update, record};

/// An org and a configuration of three subscriptions for it.
struct Setup {
    org: Emulator,
    store: Store,
    config: String,
}

const SUBSCRIPTIONS: &str = r#"
[[subscription]]
name = "accounts"
topic = "/data/AccountChangeEvent"
[[subscription.handler]]
type = "log"
[[subscription]]
name = "orders"
topic = "/event/Order__e"
[[subscription.handler]]
type = "log"
[[subscription]]
name = "all"
topic = "/data/ChangeEvents"
[[subscription.handler]]
type = "log"
"#;

impl Setup {
    async fn new() -> Self {
        let (org, store) = (Emulator::start().await, Store::sqlite());
        let config = format!(
            "{}\n[store]\nurl = \"{}\"\n{SUBSCRIPTIONS}",
            org.salesforce(),
            store.url
        );
        Self { org, store, config }
    }

    /// Exit code, standard output, standard error.
    async fn output(&self, args: &[&str]) -> (i32, String, String) {
        Daemon::output(args, &self.config, &BTreeMap::new()).await
    }

    /// What `check --json` finds: its exit code, and level and whole text by what it is about.
    async fn check(&self, config: &str) -> (i32, BTreeMap<String, (String, String)>) {
        let (code, out, err) = Daemon::output(&["check", "--json"], config, &BTreeMap::new()).await;
        let findings: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or("").to_owned();
        let found = findings.as_array().unwrap().iter().map(|finding| {
            let words = format!("{}. {}", text(finding, "why"), text(finding, "cure"));
            (text(finding, "what"), (text(finding, "level"), words))
        });
        (code, found.collect())
    }
}

fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn what_is_published_is_what_tail_prints_and_the_schema_describes() {
    let setup = Setup::new().await;
    let events = r#"[{"OrderNumber__c":"1","Amount__c":1.5},{"OrderNumber__c":"2"}]"#;
    let (code, out, err) = setup
        .output(&["publish", "Order__e", events, "--json"])
        .await;
    assert_eq!(code, 0, "{err}");
    let published = lines(&out);
    assert_eq!(published.len(), 2);

    let tail = ["tail", "Order__e", "--from", "earliest", "--count", "2"];
    let (code, out, err) = setup.output(&tail).await;
    assert_eq!(code, 0, "{err}");
    for (event, published) in lines(&out).iter().zip(&published) {
        assert_eq!(event["replayid"], published["replay_id"]);
        assert_eq!(event["eventuuid"], published["id"]);
        assert_eq!(
            event["data"]["OrderNumber__c"],
            published["event"].to_string()
        );
    }
    assert_eq!(lines(&out)[0]["data"]["Amount__c"], json!(1.5));
    assert!(err.contains("allocation"), "{err}");

    let (code, out, _) = setup.output(&["schema", "Order__e", "--json"]).await;
    let schema: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &schema["record_name"]), (0, &json!("Order__e")));
    assert_eq!(schema["schema_id"], schema["fingerprint"]);
    let (code, _, err) = setup.output(&["schema", "/data/ChangeEvents"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("is a channel"), "{err}");
}

#[tokio::test]
async fn an_event_that_does_not_fit_or_a_topic_that_takes_none_is_not_published() {
    let setup = Setup::new().await;
    let wrong = r#"{"OrderNumber__c":"1"}{"Nmber__c":"2"}"#;
    let (code, out, err) = setup.output(&["publish", "Order__e", wrong]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("event 2") && err.contains("Nmber__c"), "{err}");
    let (code, _, err) = setup.output(&["publish", "Account", "{}"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("only platform events"), "{err}");

    let large = json!([{"City__c": "x".repeat(1_100_000)}, {"City__c": "Graz"}]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), large.to_string()).unwrap();
    let argument = format!("@{}", file.path().display());
    let (code, out, _) = setup
        .output(&["publish", "Order__e", &argument, "--json"])
        .await;
    let outcomes = lines(&out);
    assert_eq!(code, 1, "one was refused");
    assert!(outcomes[0]["error"].is_string(), "{out}");
    assert!(outcomes[1]["replay_id"].is_string(), "{out}");
}

#[tokio::test]
async fn tail_tells_what_it_cannot_decode_and_goes_on_through_a_lost_connection() {
    let setup = Setup::new().await;
    let args = [
        "tail", "Order__e", "--from", "earliest", "--count", "3", "--data",
    ];
    setup
        .org
        .publish("/event/Order__e", &[json!({"OrderNumber__c": "1"})])
        .await;
    let mut tail = Daemon::command(&args, &setup.config, &BTreeMap::new());
    tail.handled(1).await;
    setup.org.post("/connections/drop", &json!({})).await;
    let schema = "T2gsoDAd40J5FRpynIKZmQ";
    let raw =
        json!({"topic": "/event/Order__e", "schema_id": schema, "payload": "/////////////w=="});
    setup.org.post("/raw", &raw).await;
    setup
        .org
        .publish("/event/Order__e", &[json!({"OrderNumber__c": "2"})])
        .await;
    assert!(tail.ended().await.success());
    let numbers: Vec<Value> = tail
        .events()
        .iter()
        .map(|event| event["OrderNumber__c"].clone())
        .collect();
    assert_eq!(numbers, ["1", "2"]);
    let notes = tail.log().join("\n");
    assert!(notes.contains("cannot decode event"), "{notes}");
    assert!(notes.contains("connecting again"), "{notes}");
}

#[tokio::test]
async fn topics_shows_what_may_be_done_with_each_configured_one() {
    let setup = Setup::new().await;
    let (code, out, _) = setup.output(&["topics", "--json"]).await;
    let topics: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    let rows: Vec<_> = topics
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["topic"].clone(),
                one["can_publish"].clone(),
                one["schema_id"].is_null(),
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            (json!("/data/AccountChangeEvent"), json!(false), false),
            (json!("/event/Order__e"), json!(true), false),
            (json!("/data/ChangeEvents"), json!(false), true),
        ]
    );
    let (code, _, err) = setup.output(&["topics", "Order__e", "No__e"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("/event/No__e"), "{err}");
}

#[tokio::test]
async fn status_and_dead_letters_tell_where_a_person_is_needed() {
    let setup = Setup::new().await;
    let mut daemon = Daemon::run(&setup.config);
    for name in ["accounts", "all", "orders"] {
        let live = |one: &SubscriptionStatus| one.state == "live";
        setup.store.until(name, "a live stream", live).await;
    }
    let update = account_update(&record(1), "Alder");
    setup
        .org
        .publish("/data/AccountChangeEvent", &[update])
        .await;
    daemon.handled(2).await; // once on its topic, once on the channel
    let (code, out, err) = setup.output(&["status", "--json"]).await;
    let rows: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (0, 3), "{out}{err}");

    let schema = "T2gsoDAd40J5FRpynIKZmQ";
    let raw =
        json!({"topic": "/event/Order__e", "schema_id": schema, "payload": "/////////////w=="});
    setup.org.post("/raw", &raw).await;
    setup.store.parks(1).await;
    let (code, out, err) = setup.output(&["status"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("orders: 1 event parked"), "{err}");

    let (_, out, _) = setup.output(&["dead-letters", "list", "--json"]).await;
    let letters: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(letters[0]["reason"], "undecodable");
    let id = letters[0]["id"].to_string();
    let (_, out, _) = setup.output(&["dead-letters", "show", &id, "--raw"]).await;
    assert_eq!(out, "/////////////w==");
    let (code, _, err) = setup.output(&["dead-letters", "show", "4711"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no parked event 4711"), "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn check_finds_nothing_wrong_with_a_sound_setup_and_leaves_no_trace_on_the_bus() {
    let setup = Setup::new().await;
    let (code, found) = setup.check(&setup.config).await;
    assert_eq!(code, 0, "{found:?}");
    assert!(
        found.values().all(|(level, _)| level != "failed"),
        "{found:?}"
    );
    assert_eq!(found["store"].0, "warning", "no tables yet: {found:?}");
    let state = format!("{}/state", setup.org.text("admin_url"));
    let state = reqwest::get(state).await.unwrap().text().await.unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert!(state["calls"]["Subscribe"].is_null(), "{state}");
}

#[tokio::test]
async fn check_names_each_fault_with_its_cure_and_goes_on_with_the_rest() {
    let setup = Setup::new().await;
    let failed = |found: &BTreeMap<String, (String, String)>, what: &str| {
        let (level, words) = &found[what];
        assert_eq!(level, "failed", "{what}: {words}");
        words.clone()
    };

    let wrong = setup.config.replace("emulator-secret", "wrong-secret");
    let (code, found) = setup.check(&wrong).await;
    assert_eq!(code, 1);
    assert!(
        failed(&found, "sign-in").contains("client_secret"),
        "{found:?}"
    );
    assert_eq!(found["Pub/Sub API"].0, "ok", "{found:?}");
    assert_eq!(found["handler log of orders"].0, "ok", "{found:?}");

    let wrong = setup.config.replace("/event/Order__e", "/event/No__e");
    let (code, found) = setup.check(&wrong).await;
    assert_eq!(code, 1);
    assert!(
        failed(&found, "topic /event/No__e").contains("Setup"),
        "{found:?}"
    );
    assert_eq!(found["topic /data/AccountChangeEvent"].0, "ok", "{found:?}");

    let denied = json!({"denied_topics": ["/event/Order__e"]});
    setup.org.post("/settings", &denied).await;
    let (code, found) = setup.check(&setup.config).await;
    assert_eq!(code, 1);
    let words = failed(&found, "topic /event/Order__e");
    assert!(words.contains("permission set"), "{words}");

    let no_database = setup
        .config
        .replace(&setup.store.url, "postgres://u:hunter2@127.0.0.1:1/x");
    let (code, found) = setup.check(&no_database).await;
    assert_eq!(code, 1);
    let words = failed(&found, "store");
    assert!(
        words.contains("127.0.0.1:1") && !words.contains("hunter2"),
        "{words}"
    );
    assert_eq!(found["sign-in"].0, "ok", "{found:?}");
}

#[tokio::test]
async fn check_tells_a_clock_that_is_off_by_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem").display().to_string();
    let org = Emulator::start_with(&["--generate-key", &key]).await;
    org.post("/clock", &json!({"offset_ms": 3_600_000})).await;
    let env: BTreeMap<&str, String> = BTreeMap::from([
        ("SALESFORCE_LOGIN_URL", org.text("login_url")),
        ("SALESFORCE_PUBSUB_ENDPOINT", org.text("pubsub_endpoint")),
        ("SALESFORCE_CLIENT_ID", org.text("client_id")),
        ("SALESFORCE_USERNAME", org.text("username")),
        ("SALESFORCE_PRIVATE_KEY_FILE", key),
        ("ORGSTREAM_TOPICS", "Order__e".to_owned()),
        ("DATABASE_URL", Store::sqlite().url),
    ]);
    let (code, out, _) = Daemon::output(&["check"], "", &env).await;
    assert_eq!(code, 1, "{out}");
    let clock = out.lines().find(|line| line.contains("clock:")).unwrap();
    assert!(
        clock.starts_with("failed") && clock.contains("behind"),
        "{out}"
    );
    assert!(clock.contains("NTP"), "{out}");
}

#[tokio::test]
async fn check_exits_with_78_where_the_configuration_is_wrong_and_checks_what_it_can() {
    let setup = Setup::new().await;
    let (code, found) = setup
        .check(&format!("{}\nnonsense = 1\n", setup.config))
        .await;
    assert_eq!(code, 78);
    let wrong = found.keys().find(|what| what.contains("nonsense"));
    assert!(wrong.is_some(), "{found:?}");
    assert_eq!(found["sign-in"].0, "ok", "{found:?}");
    let (code, found) = setup.check("").await;
    assert_eq!((code, found.len()), (78, 1), "{found:?}");
}

#[tokio::test]
async fn the_demonstration_prints_change_events_and_platform_events_and_ends_by_itself() {
    let args = ["demo", "--events", "25", "--pace", "50"];
    let (code, out, err) = Daemon::output(&args, "", &BTreeMap::new()).await;
    assert_eq!(code, 0, "{err}");
    let events = lines(&out);
    assert!(events.len() >= 25);
    for kind in [
        "com.salesforce.cdc.Account.",
        "com.salesforce.event.Order__e.",
    ] {
        let is_kind = |event: &&Value| event["type"].as_str().unwrap().starts_with(kind);
        assert!(events.iter().any(|event| is_kind(&event)), "{kind}");
    }
    assert!(err.contains("events handled"), "{err}");
}
