//! `orgstream check` over the wire: each thing that may be in the way, as it really happens.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Daemon, Emulator, Store};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// Findings of `check --json`: level and whole text by what each is about.
struct Found {
    code: i32,
    findings: BTreeMap<String, (String, String)>,
}

impl Found {
    async fn by(config: &str) -> Self {
        let args = ["check", "--json"];
        let (code, out, err) = Daemon::output(&args, config, &BTreeMap::new()).await;
        let list: Vec<Value> =
            serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code}: {out}{err}"));
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or("").to_owned();
        let findings = list.iter().map(|one| {
            let words = format!("{}. {}", text(one, "why"), text(one, "cure"));
            (text(one, "what"), (text(one, "level"), words))
        });
        Self {
            code,
            findings: findings.collect(),
        }
    }

    /// The finding of this level about `what`, with all these texts in it.
    #[track_caller]
    fn says(&self, level: &str, what: &str, parts: &[&str]) {
        let Some((found, words)) = self.findings.get(what) else {
            panic!("nothing about {what}: {:?}", self.findings);
        };
        assert_eq!(found, level, "{what}: {words}");
        for part in parts {
            assert!(words.contains(part), "no {part:?} in {what}: {words}");
        }
    }
}

fn config(salesforce: &str, store: &str) -> String {
    format!(
        "{salesforce}\n[store]\nurl = \"{store}\"\ntimeout = \"5s\"\n[[subscription]]\nname = \"it\"\n\
         topic = \"{ACCOUNTS}\"\n[[subscription.handler]]\ntype = \"log\"\n"
    )
}

#[tokio::test]
async fn a_token_that_is_a_json_web_token_or_without_the_scope_is_told_with_the_setup_step() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = config(&org.salesforce(), &store.url);
    let found = Found::by(&config).await;
    assert_eq!(found.code, 0, "{:?}", found.findings);
    found.says("ok", "access token", &["opaque", "api"]);
    found.says("ok", "login host", &["accepts connections"]);

    org.settings(json!({"token_format": "jwt"})).await;
    let found = Found::by(&config).await;
    assert_eq!(found.code, 1);
    found.says(
        "failed",
        "sign-in",
        &["JSON Web Token", "OAuth Settings, turn off"],
    );

    org.settings(json!({"token_format": "opaque", "token_scope": "openid id"}))
        .await;
    let found = Found::by(&config).await;
    assert_eq!(found.code, 1);
    found.says("failed", "access token", &["openid, id", "Setup", "(api)"]);

    org.settings(json!({"omit_token_fields": ["scope"]})).await;
    Found::by(&config)
        .await
        .says("ok", "access token", &["not told"]);
}

#[tokio::test]
async fn what_is_in_the_way_to_the_pubsub_api_is_told_apart() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let right = org.text("pubsub_endpoint");
    let at = |endpoint: &str| {
        let salesforce = org.salesforce().replace(&right, endpoint);
        config(&salesforce, &store.url)
    };
    const API: &str = "Pub/Sub API";

    let found = Found::by(&at("https://no-such-host.invalid:7443")).await;
    assert_eq!(found.code, 1);
    found.says(
        "failed",
        API,
        &[
            "no address is known of no-such-host.invalid",
            "SALESFORCE_PUBSUB_ENDPOINT",
        ],
    );
    // The rest is looked at all the same.
    found.says("ok", "sign-in", &[]);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = silent.local_addr().unwrap();
    let found = Found::by(&at(&format!("https://{place}"))).await;
    found.says(
        "failed",
        API,
        &[&place.to_string(), "answers no TLS handshake", "firewall"],
    );
    drop(silent);
    let found = Found::by(&at(&format!("https://{place}"))).await;
    found.says("failed", API, &["cannot reach", "connection refused"]);
}

#[tokio::test]
async fn a_certificate_of_a_ca_that_is_not_trusted_is_told_with_what_to_set() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem").display().to_string();
    let org = Emulator::start_with(&["--tls", "--ca-out", &ca]).await;
    let store = Store::sqlite();
    let trusting = format!("{}ca_file = \"{ca}\"\n", org.salesforce());
    let found = Found::by(&config(&trusting, &store.url)).await;
    assert_eq!(found.code, 0, "{:?}", found.findings);
    found.says("ok", "login host", &["TLS 1.3", "is trusted"]);
    found.says("ok", "Pub/Sub API", &["TLS 1.3", "is trusted"]);

    let found = Found::by(&config(&org.salesforce(), &store.url)).await;
    assert_eq!(found.code, 1);
    for what in ["login host", "Pub/Sub API"] {
        found.says(
            "failed",
            what,
            &["CA that is not trusted", "SALESFORCE_CA_FILE"],
        );
    }
    assert!(
        !found.findings.contains_key("sign-in"),
        "{:?}",
        found.findings
    );
}

#[tokio::test]
async fn the_database_s_encryption_pooler_and_connections_are_told() {
    let Some((direct, pooled)) = Store::pgbouncer().await else {
        return;
    };
    let org = Emulator::start().await;
    let by = async |url: &str, more: &str| {
        let config = config(&org.salesforce(), url);
        Found::by(&config.replace("timeout = \"5s\"", &format!("timeout = \"5s\"\n{more}"))).await
    };
    let found = by(&direct.url, "").await;
    assert_eq!(found.code, 0, "{:?}", found.findings);
    found.says(
        "ok",
        "database pooler",
        &["none, or one in session mode", "PostgreSQL"],
    );
    found.says(
        "ok",
        "database connections",
        &["one worker and `orgstream web` have up to 8"],
    );
    assert!(found.findings.contains_key("database encryption"));

    let found = by(&pooled.url, "").await;
    found.says("ok", "database pooler", &["transaction mode"]);
    found.says("ok", "database connections", &["to the pooler"]);

    let found = by(&direct.url, "max_connections = 100").await;
    assert_eq!(found.code, 0, "a warning only");
    found.says(
        "warning",
        "database connections",
        &[
            "up to 200",
            "the server",
            "store.max_connections",
            "Essential-0",
        ],
    );
}

#[tokio::test]
async fn a_database_that_speaks_tls_is_told_and_one_that_does_not_is_refused_with_a_cure() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let found = Found::by(&config(
        &org.salesforce(),
        &format!("{}?sslmode=disable", store.url),
    ))
    .await;
    found.says("ok", "database encryption", &["none", "on this machine"]);
    let found = Found::by(&config(
        &org.salesforce(),
        &format!("{}?sslmode=require", store.url),
    ))
    .await;
    match found.findings["store"].0.as_str() {
        // As `scripts/postgres` starts it where there is openssl.
        "failed" => found.says("failed", "store", &["TLS", "sslmode=disable"]),
        _ => found.says(
            "ok",
            "database encryption",
            &["TLS", "not verified", "verify-full"],
        ),
    }
}

#[tokio::test]
async fn parked_events_that_the_key_does_not_open_are_told() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let sealed = |key: &str| {
        config(&org.salesforce(), &store.url)
            .replace("timeout = \"5s\"", &format!("encryption_key = \"{key}\""))
            .replace(
                "type = \"log\"",
                "type = \"exec\"\ncommand = [\"false\"]\nretry = { attempts = 1 }\nfields = { without = [\"Phone\"] }",
            )
            .replace("[[subscription.handler]]", "start = \"earliest\"\n[[subscription.handler]]")
    };
    let ours = "the key with which it was parked, long enough";
    let daemon = Daemon::run(&sealed(ours));
    daemon.logged(&["stream open"]).await;
    // What does not decode is parked at once.
    let raw = json!({"topic": ACCOUNTS, "schema_id": "mXn-qVf-uENIp2CjGq7nvw", "payload": "AAAA"});
    org.post("/raw", &raw).await;
    store.parks(1).await;
    daemon.kill();
    Found::by(&sealed(ours))
        .await
        .says("ok", "encryption key", &[]);
    let found = Found::by(&sealed("another key, which is long enough, too")).await;
    found.says(
        "failed",
        "encryption key",
        &[
            "of the 1 oldest parked events 1",
            "ORGSTREAM_ENCRYPTION_KEY",
        ],
    );
}
