//! Each way to sign in, and what happens when it is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use orgstream::store::LivingWorker;
use serde_json::{Value, json};

use crate::support::metrics::METRICS;
use crate::support::{Daemon, Emulator, Metrics, Store, account_update, eventually, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

const ENCRYPTION: &str = "encryption_key = \"0123456789abcdef0123456789abcdef\"";

const SHORT_PAUSES: &str = "reconnect = { initial = \"50ms\", max = \"500ms\" }\n\
    blocked_retry = { initial = \"200ms\", max = \"1s\" }\n";

/// A configuration with these credentials.
fn config(org: &Emulator, credentials: &str, store: &Store, more_of_store: &str) -> String {
    format!(
        "[salesforce]\nlogin_url = \"{}\"\npubsub_endpoint = \"{}\"\n{credentials}\n\
         [store]\nurl = \"{}\"\n{more_of_store}\n[[subscription]]\nname = \"it\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"earliest\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n",
        org.text("login_url"),
        org.text("pubsub_endpoint"),
        store.url
    )
}

fn by_secret(org: &Emulator) -> String {
    format!(
        "client_id = \"{}\"\nclient_secret = \"{}\"\nauth = \"client_credentials\"\n",
        org.text("client_id"),
        org.text("client_secret")
    )
}

async fn publish(org: &Emulator, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(1), name)])
        .await;
}

/// Signs in, receives, loses its token to expiry, signs in again and goes on.
async fn works_and_renews(org: &Emulator, config: &str, flow: &str) {
    publish(org, "one").await;
    let mut daemon = Daemon::run(config);
    daemon
        .logged(&["signed in", &format!("flow={flow}"), &org.text("org_id")])
        .await;
    daemon.handled(1).await;
    let tokens = token_calls(org).await;
    org.post("/tokens/expire", &json!({})).await;
    org.post("/connections/drop", &json!({})).await;
    publish(org, "two").await;
    daemon.handled(2).await;
    assert_eq!(token_calls(org).await, tokens + 1);
    assert_eq!(daemon.stop().await.1, 0);
}

async fn token_calls(org: &Emulator) -> u64 {
    org.state().await["calls"]["Token"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn signs_in_by_a_signed_assertion() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let org = Emulator::start_with(&["--generate-key", key.to_str().unwrap()]).await;
    let pem = std::fs::read_to_string(&key).unwrap();
    let escaped = pem.trim().replace('\n', "\\\\n");
    let store = Store::sqlite();
    // As a file, and as a variable holds it: with \n for line ends.
    for key in [
        format!("private_key_file = \"{}\"", key.display()),
        format!("private_key = \"{escaped}\""),
    ] {
        let credentials = format!(
            "client_id = \"{}\"\nusername = \"{}\"\n{key}\n{SHORT_PAUSES}",
            org.text("client_id"),
            org.text("username")
        );
        let config = config(&org, &credentials, &store, "");
        works_and_renews(&org, &config, "jwt").await;
    }
}

#[tokio::test]
async fn an_assertion_signed_by_another_key_is_refused_and_says_where_the_certificate_goes() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let org = Emulator::start_with(&["--generate-key", key.to_str().unwrap()]).await;
    let other = orgstream::emulator::SigningKey::generate().unwrap();
    std::fs::write(&key, &other.private_pem).unwrap();
    let credentials = format!(
        "client_id = \"{}\"\nusername = \"{}\"\nprivate_key_file = \"{}\"\n{SHORT_PAUSES}",
        org.text("client_id"),
        org.text("username"),
        key.display()
    );
    let store = Store::sqlite();
    let daemon = Daemon::run(&config(&org, &credentials, &store, ""));
    let line = daemon
        .logged(&["invalid assertion", "certificate uploaded to the app"])
        .await;
    println!("{line}");
    assert!(
        !daemon.log().join("\n").contains("BEGIN"),
        "the key is logged"
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn signs_in_by_client_credentials() {
    let org = Emulator::start().await;
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, "");
    works_and_renews(&org, &config, "client_credentials").await;
}

#[tokio::test]
async fn signs_in_over_tls_with_a_ca_of_one_s_own_and_not_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let org = Emulator::start_with(&["--tls", "--ca-out", ca.to_str().unwrap()]).await;
    assert!(org.text("login_url").starts_with("https://"));
    let store = Store::sqlite();
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let daemon = Daemon::run(&config(&org, &credentials, &store, ""));
    let line = daemon.logged(&["level=warn", "sign in"]).await;
    println!("{line}");
    assert!(line.contains("certificate"), "{line}");
    assert_eq!(daemon.stop().await.1, 0);
    let credentials = format!("{credentials}ca_file = \"{}\"\n", ca.display());
    works_and_renews(
        &org,
        &config(&org, &credentials, &store, ""),
        "client_credentials",
    )
    .await;
}

/// All bytes of a SQLite store, its journal included.
fn bytes_of(store: &Store) -> Vec<u8> {
    let path = store.url.strip_prefix("sqlite://").unwrap();
    ["", "-wal"]
        .iter()
        .filter_map(|end| std::fs::read(format!("{path}{end}")).ok())
        .flatten()
        .collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

async fn by_refresh_token(org: &Emulator) -> (String, String) {
    let client = json!({"client_id": org.text("client_id"), "username": org.text("username")});
    let granted = org.post("/tokens/refresh", &client).await;
    let token = granted["refresh_token"].as_str().unwrap().to_owned();
    let credentials = format!(
        "client_id = \"{}\"\nclient_secret = \"{}\"\nrefresh_token = \"{token}\"\n\
         auth = \"refresh_token\"\n{SHORT_PAUSES}",
        org.text("client_id"),
        org.text("client_secret")
    );
    (token, credentials)
}

#[tokio::test]
async fn signs_in_by_a_refresh_token_that_stays() {
    let org = Emulator::start().await;
    let (_, credentials) = by_refresh_token(&org).await;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, ENCRYPTION);
    works_and_renews(&org, &config, "refresh_token").await;
}

#[tokio::test]
async fn a_rotated_refresh_token_is_stored_encrypted_before_it_is_used_and_survives_kill_9() {
    let org = Emulator::start().await;
    org.settings(json!({"rotate_refresh_tokens": true})).await;
    let (token, credentials) = by_refresh_token(&org).await;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, ENCRYPTION);
    publish(&org, "one").await;
    // The first use of a session is held up, so that a kill hits between the sign-in and anything after.
    org.fault(json!({"rpc": "GetTopic", "kind": "hang"})).await;
    for round in 1..=3_u64 {
        let daemon = Daemon::run(&config);
        eventually("the session's first use", async || {
            let calls = org.state().await["calls"]["GetTopic"].as_u64().unwrap_or(0);
            (calls >= round).then_some(())
        })
        .await;
        daemon.kill();
        assert_eq!(
            token_calls(&org).await,
            round,
            "a used token was tried again"
        );
        let bytes = bytes_of(&store);
        assert!(!holds(&bytes, &token), "the token stands in the store");
        // What the org's tokens hold, the next one too.
        assert!(!holds(&bytes, "!AQ"), "a token stands in the store");
    }
    org.clear_faults().await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    assert_eq!(token_calls(&org).await, 4);
    assert_eq!(daemon.stop().await.1, 0);

    // Without the stored one the first token is all there is, and that was used: refused, and said so.
    let other = Store::sqlite();
    let daemon = Daemon::run(&config.replace(&store.url, &other.url));
    let line = daemon.logged(&["expired access/refresh token"]).await;
    println!("{line}");
    assert!(line.contains("SALESFORCE_REFRESH_TOKEN"), "{line}");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn signs_in_with_a_ready_token_and_asks_for_a_new_one_when_it_is_gone() {
    let org = Emulator::start().await;
    let issued = org.post("/tokens/access", &json!({})).await;
    let token = issued["access_token"].as_str().unwrap();
    let credentials = format!(
        "access_token = \"{token}\"\ninstance_url = \"{}\"\n{SHORT_PAUSES}",
        issued["instance_url"].as_str().unwrap()
    );
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, "");
    publish(&org, "one").await;
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    daemon.handled(1).await;
    assert_eq!(token_calls(&org).await, 0);
    org.post("/tokens/revoke", &json!({})).await;
    org.post("/connections/drop", &json!({})).await;
    metrics.state("it", "blocked").await;
    let line = daemon
        .logged(&["level=warn", "SALESFORCE_ACCESS_TOKEN"])
        .await;
    println!("{line}");
    assert!(
        !daemon.log().join("\n").contains(token),
        "the token is logged"
    );
    assert_eq!(daemon.stop().await.1, 0);
}

/// The org's answers are of a kind that cannot serve, until its settings are changed back.
async fn blocked_by_settings(bad: Value, good: Value, parts: &[&str]) {
    let org = Emulator::start().await;
    org.settings(bad).await;
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, "");
    publish(&org, "one").await;
    let mut daemon = Daemon::run_with(&config, &[METRICS]);
    let metrics = Metrics::of(&daemon).await;
    let line = daemon.logged(&[&["level=warn"], parts].concat()).await;
    println!("{line}");
    metrics.state("it", "blocked").await;
    org.settings(good).await;
    daemon.handled(1).await;
    metrics.state("it", "live").await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_jwt_access_token_blocks_and_names_the_box_to_untick() {
    let parts = ["JSON Web Token (JWT)-based access tokens"];
    blocked_by_settings(
        json!({"token_format": "jwt"}),
        json!({"token_format": "opaque"}),
        &parts,
    )
    .await;
}

#[tokio::test]
async fn an_answer_without_an_instance_url_blocks_and_says_where_to_sign_in() {
    let parts = ["instance_url", "SALESFORCE_LOGIN_URL"];
    blocked_by_settings(
        json!({"omit_token_fields": ["instance_url"]}),
        json!({"omit_token_fields": []}),
        &parts,
    )
    .await;
}

#[tokio::test]
async fn an_answer_without_an_identity_url_is_made_up_for_by_asking_who_it_is() {
    let org = Emulator::start().await;
    org.settings(json!({"omit_token_fields": ["id"]})).await;
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, "");
    works_and_renews(&org, &config, "client_credentials").await;
}

#[tokio::test]
async fn a_login_host_in_trouble_is_waited_for() {
    let org = Emulator::start().await;
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let store = Store::sqlite();
    let config = config(&org, &credentials, &store, "");
    publish(&org, "one").await;
    org.fault(json!({"rpc": "Token", "kind": "error", "status": 503}))
        .await;
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["cannot begin yet", "503"]).await;
    org.clear_faults().await;
    org.fault(json!({"rpc": "Token", "kind": "corrupt_payload"}))
        .await;
    daemon.logged(&["cannot begin yet", "without JSON"]).await;
    org.clear_faults().await;
    org.fault(json!({"rpc": "Token", "kind": "disconnect", "times": 2}))
        .await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_refused_login_is_not_knocked_at_in_a_hot_loop() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    // Three subscriptions, and the pauses that a configuration without a word has.
    let more: String = (0..2)
        .map(|i| {
            format!(
                "[[subscription]]\nname = \"more{i}\"\ntopic = \"{ACCOUNTS}\"\n\
                 [[subscription.handler]]\ntype = \"log\"\n"
            )
        })
        .collect();
    let config = config(&org, &by_secret(&org), &store, "") + &more;
    let daemon = Daemon::run(&config);
    for name in ["it", "more0", "more1"] {
        daemon
            .logged(&["stream open", &format!("subscription={name}")])
            .await;
    }
    assert_eq!(token_calls(&org).await, 1, "all streams share one token");
    // Refused again and again although it is new; then the login itself is refused.
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.auth.error"}))
        .await;
    org.post("/connections/drop", &json!({})).await;
    daemon.logged(&["service.auth.error"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = token_calls(&org).await;
    assert!(calls <= 4, "{calls} sign-ins in a second");
    org.fault(json!({"rpc": "Token", "kind": "error", "code": "invalid_client"}))
        .await;
    org.post("/tokens/revoke", &json!({})).await;
    org.post("/connections/drop", &json!({})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later = token_calls(&org).await;
    assert!(later - calls <= 3, "{} sign-ins in a second", later - calls);
    assert_eq!(daemon.stop().await.1, 0);
}

/// The first worker that lives, by the store.
async fn worker(store: &Store) -> Option<LivingWorker> {
    let opened = store.opened().await;
    let found = opened.workers().await;
    opened.close().await;
    found.ok()?.into_iter().next()
}

#[tokio::test]
async fn a_worker_that_cannot_sign_in_is_there_says_why_and_begins_when_it_can() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    org.fault(json!({"rpc": "Token", "kind": "error", "code": "invalid_client"}))
        .await;
    let credentials = by_secret(&org) + SHORT_PAUSES;
    let config = config(&org, &credentials, &store, "lease = \"4s\"");
    let waits = async || {
        let waiting = async || {
            worker(&store)
                .await
                .filter(|one| !one.worker.refused.is_empty())
        };
        eventually("a worker that waits", waiting).await
    };
    let daemon = Daemon::run(&config);
    let waiting = waits().await.worker;
    assert_eq!(waiting.subscriptions, Vec::<String>::new());
    assert_eq!(waiting.refused[0].name, "it");
    let why = &waiting.refused[0].why;
    assert!(why.contains("cannot begin yet: sign-in refused"), "{why}");
    // It posts its metrics, so that an alert sees the sign-ins fail.
    eventually("its failed sign-ins", async || {
        let opened = store.opened().await;
        let found = opened.snapshots().await;
        opened.close().await;
        let found = found.ok()?;
        let refused = "orgstream_token_refreshes_total{outcome=\"refused\"} ";
        let count = found.first()?.body.split(refused).nth(1)?;
        count
            .starts_with(|c| ('1'..='9').contains(&c))
            .then_some(())
    })
    .await;
    let (code, out, err) = Daemon::output(&["status"], &config, &BTreeMap::new()).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("cannot begin yet"), "{out}{err}");
    // One that is stopped before it could begin is forgotten.
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(worker(&store).await.map(|one| one.worker.name), None);

    let mut daemon = Daemon::run(&config);
    waits().await;
    org.clear_faults().await;
    publish(&org, "one").await;
    daemon.handled(1).await;
    let able = eventually("a worker that works", async || {
        let one = worker(&store).await?.worker;
        one.refused.is_empty().then_some(one.subscriptions)
    })
    .await;
    assert_eq!(able, ["it"]);
    assert_eq!(daemon.stop().await.1, 0);
}
