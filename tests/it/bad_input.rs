//! What a person gets wrong: the exit code, and what they are told. Nothing is sent anywhere meanwhile.

use std::collections::BTreeMap;

use orgstream::emulator::SigningKey;

use crate::support::{Daemon, Emulator, Store};

/// A configuration that would do, were there an org at its addresses.
const GOOD: &str = r#"[salesforce]
login_url = "http://127.0.0.1:1"
pubsub_endpoint = "http://127.0.0.1:1"
auth = "client_credentials"
client_id = "id"
client_secret = "planted-client-secret"

[store]
url = "sqlite:///tmp/orgstream-never-opened.db"

[[subscription]]
name = "accounts"
topic = "/data/AccountChangeEvent"
[[subscription.handler]]
type = "log"
"#;

/// Runs `orgstream run`, which must end with 78, and gives its last words.
async fn refused(config: &str, env: &[(&'static str, &str)]) -> String {
    let env: BTreeMap<_, _> = env.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    let (code, out, err) = Daemon::output(&["run"], config, &env).await;
    println!("--- exit {code}\n{err}");
    assert_eq!((code, out.as_str()), (78, ""), "{err}");
    assert!(!err.contains("planted"), "a secret is repeated: {err}");
    let begin = err.find("orgstream: ").expect(&err);
    let topics = err.matches("/topic/").count();
    assert!(topics <= 1, "says it twice: {err}");
    err[begin..].to_owned()
}

fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[tokio::test]
async fn without_any_configuration_the_ways_to_give_one_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_orgstream"))
        .arg("run")
        .env_clear()
        .current_dir(dir.path())
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{err}");
    holds(
        &err,
        &[
            "no configuration",
            "--config",
            "orgstream.toml",
            "ORGSTREAM_TOPICS",
        ],
    );
}

#[tokio::test]
async fn each_mistake_in_the_file_is_named_with_its_line_and_a_cure() {
    // What is replaced, by what, and what must be said.
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "login_url",
            "login_ulr",
            &[":2: ", "salesforce.login_ulr", "did you mean login_url?"],
        ),
        (
            "[store]",
            "[stroe]",
            &[":8: ", "stroe", "did you mean store?"],
        ),
        (
            "/data/AccountChangeEvent",
            "/topic/Account",
            &[":13: ", "subscription.topic", "/topic/Account", "/data/"],
        ),
        (
            "/data/AccountChangeEvent",
            "/data/Account ChangeEvent",
            &[":13: ", "subscription.topic", "is not a topic"],
        ),
        (
            "type = \"log\"",
            "type = \"webhok\"",
            &[":15: ", "webhok", "webhook"],
        ),
        (
            "type = \"log\"",
            "type = \"webhook\"\nurll = \"https://example.com\"",
            &["subscription.handler", "urll", "url"],
        ),
        (
            "type = \"log\"",
            "type = \"webhook\"\nurl = \"example.com\"",
            &[":16: ", "url", "https://"],
        ),
        (
            "type = \"log\"",
            "type = \"log\"\non_exhausted = \"prak\"",
            &[":16: ", "on_exhausted", "park"],
        ),
        (
            "login_url = \"http://127.0.0.1:1\"",
            "login_url = \"http://login.salesforce.com\"",
            &[":2: ", "salesforce.login_url", "loopback", "https://"],
        ),
        (
            "pubsub_endpoint = \"http://127.0.0.1:1\"",
            "pubsub_endpoint = \"http://10.1.2.3:7443\"",
            &[":3: ", "salesforce.pubsub_endpoint", "loopback"],
        ),
        ("[store]", "[store", &[":8", "TOML"]),
        (
            "client_id = \"id\"",
            "client_id = \"${NOT_SET_ANYWHERE}\"",
            &[":5: ", "salesforce.client_id", "NOT_SET_ANYWHERE"],
        ),
    ];
    for (from, to, parts) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(&text, GOOD);
        holds(&refused(&text, &[]).await, parts);
    }
}

#[tokio::test]
async fn strict_order_and_parking_exclude_each_other() {
    let text = GOOD.replace(
        "name = \"accounts\"",
        "name = \"accounts\"\nordering = \"strict\"",
    ) + "on_exhausted = \"park\"\n";
    let said = refused(&text, &[]).await;
    holds(&said, &[":17: ", "on_exhausted", "strict", "\"stop\""]);
}

#[tokio::test]
async fn all_problems_are_told_at_once() {
    let text = GOOD
        .replace("client_id", "clientid")
        .replace("/data/AccountChangeEvent", "/topic/X");
    let said = refused(&text, &[]).await;
    holds(
        &said,
        &["problems in the configuration", "clientid", "/topic/X"],
    );
}

#[tokio::test]
async fn a_private_key_that_cannot_sign_is_refused_with_the_way_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let rsa = SigningKey::generate().unwrap();
    let ec = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let encrypted = rsa
        .private_pem
        .replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let cut: String = rsa.private_pem.chars().take(400).collect();
    let cases: &[(&str, Option<&str>, &[&str])] = &[
        ("missing.pem", None, &["cannot be read"]),
        ("text.pem", Some("planted, not a key"), &["PEM"]),
        ("empty.pem", Some(""), &["empty"]),
        ("ec.pem", Some(&ec), &["elliptic", "RSA", "openssl"]),
        (
            "encrypted.pem",
            Some(&encrypted),
            &["passphrase", "openssl"],
        ),
        ("cut.pem", Some(&cut), &["damaged"]),
        ("public.pem", Some(&rsa.public_pem), &["public key"]),
    ];
    for (name, content, parts) in cases {
        let path = dir.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let text = GOOD
            .replace(
                "auth = \"client_credentials\"\n",
                "auth = \"jwt\"\nusername = \"u@example.com\"\n",
            )
            .replace(
                "client_secret = \"planted-client-secret\"",
                &format!("private_key_file = \"{}\"", path.display()),
            );
        let said = refused(&text, &[]).await;
        holds(&said, &[":7: ", "salesforce.private_key_file"]);
        holds(&said, parts);
    }
}

#[tokio::test]
async fn sqlite_is_refused_on_a_dyno() {
    let said = refused(GOOD, &[("DYNO", "worker.1")]).await;
    holds(&said, &[":9: ", "store.url", "SQLite", "heroku-postgresql"]);
    let without = GOOD.replace(
        "[store]\nurl = \"sqlite:///tmp/orgstream-never-opened.db\"\n",
        "",
    );
    let said = refused(&without, &[("DYNO", "worker.1")]).await;
    holds(&said, &["DATABASE_URL", "heroku-postgresql"]);
}

#[tokio::test]
async fn a_refresh_token_needs_a_key_to_keep_its_successor_with() {
    let text = GOOD
        .replace("\"client_credentials\"", "\"refresh_token\"")
        .replace(
            "client_secret =",
            "refresh_token = \"planted-refresh-token\"\nclient_secret =",
        );
    let said = refused(&text, &[]).await;
    holds(
        &said,
        &["encryption_key", "ORGSTREAM_ENCRYPTION_KEY", "openssl rand"],
    );
}

#[tokio::test]
async fn a_configuration_file_that_is_not_there_is_named() {
    let (code, _, err) = Daemon::output(
        &["run", "--config", "/no/such/orgstream.toml"],
        "",
        &BTreeMap::new(),
    )
    .await;
    println!("{err}");
    assert_eq!(code, 78, "{err}");
    holds(&err, &["--config", "/no/such/orgstream.toml"]);
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    for args in [
        &["rnu"][..],
        &["run", "--no-such-option"],
        &[],
        &["emulator", "--host", "nowhere in particular"],
    ] {
        let (code, out, err) = Daemon::output(args, "", &BTreeMap::new()).await;
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(
            err.contains("Usage") || err.contains("--help"),
            "{args:?}: {err}"
        );
    }
}

#[tokio::test]
async fn a_taken_metrics_port_ends_the_start_before_anything_is_sent() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let env = BTreeMap::from([("ORGSTREAM_METRICS_ADDR", addr.clone())]);
    let (code, _, err) = Daemon::output(&["run"], &config(&org, &store), &env).await;
    println!("{err}");
    assert_eq!(code, 1, "{err}");
    holds(&err, &[&addr, "ORGSTREAM_METRICS_ADDR", "in use"]);
    assert_eq!(err.matches("in use").count(), 1, "says it twice: {err}");
    assert!(org.state().await["calls"]["Token"].is_null());
}

fn config(org: &Emulator, store: &Store) -> String {
    format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\n\
         topic = \"/data/AccountChangeEvent\"\n[[subscription.handler]]\ntype = \"log\"\n",
        org.salesforce(),
        store.url
    )
}

async fn another_org_s_store_is_refused_with_the_way_out(store: Store) {
    let first = Emulator::start().await;
    let daemon = Daemon::run(&config(&first, &store));
    daemon.logged(&["stream open"]).await;
    assert_eq!(daemon.stop().await.1, 0);

    let second = Emulator::start_with(&["--org-id", "00D5g00000other"]).await;
    let (code, out, err) =
        Daemon::output(&["run"], &config(&second, &store), &BTreeMap::new()).await;
    println!("{err}");
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    holds(&err, &[&first.text("org_id"), &second.text("org_id")]);
    let last = err.lines().last().unwrap();
    assert!(
        last.contains("database") && !last.contains("planted"),
        "does not say how to go on: {last}"
    );
    let (code, out, _) =
        Daemon::output(&["check"], &config(&second, &store), &BTreeMap::new()).await;
    assert_eq!(code, 1, "{out}");
    holds(&out, &[&first.text("org_id"), &second.text("org_id")]);
    // Nothing lost: the first org goes on with its store.
    let daemon = Daemon::run(&config(&first, &store));
    daemon.logged(&["stream open"]).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn another_org_s_sqlite_store_is_refused_with_the_way_out() {
    another_org_s_store_is_refused_with_the_way_out(Store::sqlite()).await;
}

#[tokio::test]
async fn another_org_s_postgres_store_is_refused_with_the_way_out() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    another_org_s_store_is_refused_with_the_way_out(store).await;
}
