//! `orgstream support-bundle`: what helps is in it, and nothing that was given in confidence.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::{Daemon, Emulator, Receiver, Store, account_update, eventually, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const PAYLOAD: &str = "planted payload text";
const HEADER: &str = "planted-webhook-header";
const ADDRESS: &str = "planted-part-of-an-address";
const ENCRYPTION: &str = "planted-encryption-key-0123456789abcdef";

fn config(org: &Emulator, store: &str, url: &str) -> String {
    format!(
        "{}\n[store]\nurl = \"{store}\"\nencryption_key = \"{ENCRYPTION}\"\n[[subscription]]\nname = \"it\"\n\
         topic = \"{ACCOUNTS}\"\nstart = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"webhook\"\n\
         url = \"{url}?key={ADDRESS}\"\nheaders = {{ Authorization = \"Bearer {HEADER}\" }}\n",
        org.salesforce()
    )
}

async fn bundle(args: &[&str], config: &str, env: &BTreeMap<&str, String>) -> (Value, String) {
    let args = [&["support-bundle", "--output", "-"], args].concat();
    let (code, out, err) = Daemon::output(&args, config, env).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("It holds no payloads"), "said before: {err}");
    let value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    (value, out)
}

async fn helps_and_keeps_confidences(store: Store) {
    let org = Emulator::start().await;
    // What it answers says what it was sent, as far as anybody reads it.
    let receiver = Receiver::start(|_, _| 422).await;
    let config = config(&org, &store.url, &receiver.url());
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let one = record(1);
    org.publish(ACCOUNTS, &[account_update(&one, PAYLOAD)])
        .await;
    daemon.logged(&["level=warn", "parked"]).await;
    let failing = json!({"rpc": "Subscribe", "kind": "error", "status": 14, "message": "gone for now", "times": 1});
    org.fault(failing).await;
    org.post("/connections/drop", &json!({})).await;
    let env = BTreeMap::from([
        ("SOME_API_TOKEN", "planted-variable-value".to_owned()),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=planted-otlp-header".to_owned(),
        ),
        (
            "ORGSTREAM_WEB_TOKEN",
            "planted-web-token-0123456789".to_owned(),
        ),
    ]);
    let (found, text) = eventually("a change of state with an rpc id", async || {
        let (found, text) = bundle(&["--check"], &config, &env).await;
        let changes = found["state_changes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let told = changes.iter().any(|change| change["rpc_id"].is_string());
        (told && !found["metrics"].as_array()?.is_empty()).then_some((found, text))
    })
    .await;
    assert_eq!(found["missing"], json!([]), "{text}");
    assert_eq!(found["program"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(found["overview"]["subscriptions"][0]["name"], "it");
    assert_eq!(found["overview"]["subscriptions"][0]["parked"], 1);
    let letters = &found["dead_letters"][0];
    assert_eq!(
        (&letters["handler"], &letters["reason"], &letters["open"]),
        (&json!("out"), &json!("rejected"), &json!(1))
    );
    assert!(text.contains("orgstream_events_finished_total"), "{text}");
    let checks = found["check"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|one| one["what"] == "sign-in" && one["level"] == "ok")
    );
    let names = found["variables_set"].as_array().unwrap();
    assert!(names.contains(&json!("ORGSTREAM_WEB_TOKEN")), "{names:?}");
    let secret = org.text("client_secret");
    let database = store.url.split_once("://").unwrap().1;
    let password = database
        .split_once('@')
        .map(|(user, _)| user.split_once(':').unwrap().1);
    for planted in [
        PAYLOAD,
        HEADER,
        ADDRESS,
        ENCRYPTION,
        &secret,
        &one,
        "planted-variable-value",
        "planted-otlp-header",
        "planted-web-token",
        password.unwrap_or("there is none"),
    ] {
        let line = text.lines().find(|line| line.contains(planted));
        assert!(line.is_none(), "{planted}: {line:?}");
    }
    daemon.kill();
}

#[tokio::test]
async fn a_bundle_helps_and_keeps_confidences_on_sqlite() {
    helps_and_keeps_confidences(Store::sqlite()).await;
}

#[tokio::test]
async fn a_bundle_helps_and_keeps_confidences_on_postgres() {
    if let Some(store) = Store::postgres().await {
        helps_and_keeps_confidences(store).await;
    }
}

#[tokio::test]
async fn it_is_made_without_the_database_and_without_a_right_configuration() {
    let org = Emulator::start().await;
    let none = BTreeMap::new();
    let away = config(
        &org,
        "postgres://u:planted-password@127.0.0.1:1/x",
        "http://127.0.0.1:9",
    );
    let (found, text) = bundle(&[], &away, &none).await;
    let missing = found["missing"].to_string();
    assert!(missing.contains("overview: store unavailable"), "{missing}");
    assert!(found["configuration"]["toml"].is_array(), "{text}");
    assert!(!text.contains("planted-password"), "{text}");

    let wrong = format!("{away}\nnonsense = 1\n[store.more]\n");
    let (found, _) = bundle(&[], &wrong, &none).await;
    assert!(
        found["configuration"]["wrong"]
            .to_string()
            .contains("nonsense"),
        "{found}"
    );
    let (found, _) = bundle(&["--check"], "", &none).await;
    assert!(
        found["missing"].to_string().contains("configuration"),
        "{found}"
    );
    assert_eq!(found["check"][0]["level"], "failed");
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone_and_replaces_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bundle.json").display().to_string();
    let store = Store::sqlite();
    let config = format!("[store]\nurl = \"{}\"\n", store.url);
    let args = ["support-bundle", "--output", &file];
    let none = BTreeMap::new();
    let (code, out, err) = Daemon::output(&args, &config, &none).await;
    assert_eq!((code, out.as_str()), (0, file.as_str()), "{err}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, _, err) = Daemon::output(&args, &config, &none).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("cannot write"), "{err}");
}
