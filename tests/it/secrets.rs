//! What was given in confidence, and what events hold, is in no log, at any level.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::json;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::page::{self, Web};
use crate::support::{Daemon, Emulator, Receiver, Store, account_update, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const ORDERS: &str = "/event/Order__e";
const SECRET: &str = "planted-client-secret";
const HEADER: &str = "planted-webhook-header";
const ADDRESS: &str = "planted-part-of-an-address";
const SIGNING: &str = "whsec_cGxhbnRlZC1zaWduaW5nLXNlY3JldC0wMTIzNDU2Nzg5";
const PAYLOAD: &str = "planted payload text";
const ENCRYPTION: &str = "planted-encryption-key-0123456789abcdef";
const HASH_KEY: &str = "planted-hash-key-0123456789abcdef";
const REDIS: &str = "planted-redis-password";
const NATS: &str = "planted-nats-password";
const KAFKA: &str = "planted-kafka-password";
const WEB: &str = "planted-web-token-0123456789";
const OTLP: &str = "planted-otlp-header";

/// A server that answers each message with `answer`, after it has said `hello`: the client gets as far as to show
/// its password. Gives the port.
async fn pretends(hello: &'static str, answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                socket.write_all(hello.as_bytes()).await.unwrap_or_default();
                let mut said = [0; 4096];
                while socket.read(&mut said).await.is_ok_and(|read| read > 0) {
                    socket
                        .write_all(answer.as_bytes())
                        .await
                        .unwrap_or_default();
                }
            });
        }
    });
    port
}

/// A subscription whose handlers are shown passwords that nobody takes.
async fn queues() -> String {
    let info = "INFO {\"server_id\":\"x\",\"server_name\":\"x\",\"version\":\"2.10.0\",\"proto\":1,\
                \"max_payload\":1048576,\"headers\":true,\"auth_required\":true}\r\n";
    let nats = pretends(info, "-ERR 'Authorization Violation'\r\n").await;
    let redis = pretends(
        "",
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    )
    .await;
    let kafka = pretends("", "").await;
    format!(
        r#"[[subscription]]
name = "queues"
topic = "{ORDERS}"
start = "earliest"
[[subscription.handler]]
type = "redis"
url = "redis://someone:{REDIS}@127.0.0.1:{redis}"
[[subscription.handler]]
type = "nats"
url = "nats://127.0.0.1:{nats}"
user = "someone"
password = "{NATS}"
[[subscription.handler]]
type = "kafka"
brokers = "127.0.0.1:{kafka}"
sasl = "scram-sha-256"
user = "someone"
password = "{KAFKA}"
"#
    )
}

fn config(org: &Emulator, store: &str, url: &str, credentials: &str) -> String {
    format!(
        r#"[salesforce]
login_url = "{}"
pubsub_endpoint = "{}"
{credentials}
reconnect = {{ initial = "50ms", max = "500ms" }}
[store]
url = "{store}"
encryption_key = "{ENCRYPTION}"
[[subscription]]
name = "it"
topic = "{ACCOUNTS}"
start = "earliest"
[[subscription.handler]]
type = "webhook"
url = "{url}?key={ADDRESS}"
headers = {{ Authorization = "Bearer {HEADER}", X-Api-Key = "{HEADER}" }}
signing_secrets = ["{SIGNING}"]
retry = {{ initial = "20ms", max = "100ms", attempts = 2 }}
fields = {{ hash = ["Phone"], hash_key = "{HASH_KEY}" }}
"#,
        org.text("login_url"),
        org.text("pubsub_endpoint"),
    )
}

/// `otlp` is the port of a collector.
fn trace(otlp: u16) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("ORGSTREAM_LOG", "trace".to_owned()),
        ("ORGSTREAM_WEB_TOKEN", WEB.to_owned()),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{otlp}"),
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            format!("authorization=Bearer {OTLP}"),
        ),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500".to_owned()),
    ])
}

/// None of these texts is in what was said; shows where, else.
fn says_none(said: &str, planted: &[&str]) {
    for text in planted {
        let line = said.lines().find(|line| line.contains(text));
        assert!(line.is_none(), "{text:?} in: {}", line.unwrap_or_default());
    }
}

async fn nothing_is_logged(store: &str) {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let org = Emulator::start_with(&[
        "--client-secret",
        SECRET,
        "--generate-key",
        key.to_str().unwrap(),
    ])
    .await;
    org.settings(json!({"rotate_refresh_tokens": true})).await;
    // One is tried again, the third and fourth are refused for good and parked.
    let receiver =
        Receiver::start(|number, _| [503, 200, 200].get(number).copied().unwrap_or(422)).await;
    let client = json!({"client_id": org.text("client_id"), "username": org.text("username")});
    let refresh = org.post("/tokens/refresh", &client).await["refresh_token"].clone();
    let refresh = refresh.as_str().unwrap();
    let access = org.post("/tokens/access", &json!({})).await["access_token"].clone();
    let access = access.as_str().unwrap();
    let pem = std::fs::read_to_string(&key).unwrap();
    let inside_of_key = pem.lines().nth(3).unwrap();
    let id = format!("client_id = \"{}\"\n", org.text("client_id"));
    let flows = [
        format!("{id}client_secret = \"{SECRET}\"\nauth = \"client_credentials\"\n"),
        format!(
            "{id}username = \"{}\"\nprivate_key = '''{pem}'''\n",
            org.text("username")
        ),
        format!(
            "{id}client_secret = \"{SECRET}\"\nrefresh_token = \"{refresh}\"\nauth = \"refresh_token\"\n"
        ),
        format!(
            "access_token = \"{access}\"\ninstance_url = \"{}\"\n",
            org.text("login_url")
        ),
    ];
    // What an org's access tokens begin with, so that those are found that only the daemon knows.
    let token = format!("{}!", &org.text("org_id")[..15]);
    let database = store.split_once("://").unwrap().1;
    let password = database
        .split_once('@')
        .map(|(user, _)| user.split_once(':').unwrap().1);
    let planted = [
        password.unwrap_or("there is none"),
        HASH_KEY,
        REDIS,
        NATS,
        KAFKA,
        WEB,
        OTLP,
        SECRET,
        HEADER,
        ADDRESS,
        &SIGNING["whsec_".len()..],
        PAYLOAD,
        ENCRYPTION,
        refresh,
        &token,
        inside_of_key,
    ];
    let queues = queues().await;
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let trace = trace(pretends("", refusal).await);
    org.publish(
        ORDERS,
        &[json!({"OrderNumber__c": PAYLOAD, "Amount__c": 1.0})],
    )
    .await;
    for (round, credentials) in flows.iter().enumerate() {
        let config = config(&org, store, &receiver.url(), credentials);
        // Handlers that are down hold every stop up: once is enough.
        let config = if round == 0 { config + &queues } else { config };
        let daemon = Daemon::command(&["run"], &config, &trace);
        daemon.logged(&["stream open"]).await;
        if round == 0 {
            // One that does not decode, with the text in its bytes.
            let raw = json!({
                "topic": ACCOUNTS,
                "schema_id": "mXn-qVf-uENIp2CjGq7nvw",
                "payload": base64::prelude::BASE64_STANDARD.encode(PAYLOAD),
            });
            org.post("/raw", &raw).await;
            daemon.logged(&["level=warn", "parked"]).await;
        }
        org.publish(ACCOUNTS, &[account_update(&record(round), PAYLOAD)])
            .await;
        if round < 2 {
            receiver.accepts(round + 1).await;
        } else {
            daemon.logged(&["parked"]).await;
        }
        let mut libraries = vec!["h2", "hyper_util", "tonic", "sqlx"];
        if round == 0 {
            libraries.push("async_nats");
            for kind in ["redis", "nats", "kafka"] {
                daemon.logged(&["subscription=queues", kind]).await;
            }
            daemon.logged(&["level=warn", "401"]).await;
        }
        let log = daemon.log().join("\n");
        // What the libraries say is where secrets would be.
        for library in libraries {
            assert!(
                log.contains(&format!("target={library}")),
                "{library} is not traced"
            );
        }
        says_none(&log, &planted);
        assert_eq!(daemon.stop().await.1, 0);

        let commands: [&[&str]; 7] = [
            &["config"],
            &["config", "--json"],
            &["check"],
            &["status"],
            &["status", "--json", "--overview"],
            &["support-bundle", "--output", "-"],
            &["dead-letters", "list", "--json"],
        ];
        for args in commands {
            let (code, out, err) = Daemon::output(args, &config, &trace).await;
            assert!(code == 0 || code == 1, "{args:?}: {err}");
            says_none(&out, &planted);
            says_none(&err, &planted);
        }
    }
}

#[tokio::test]
async fn no_secret_and_no_payload_is_logged_at_any_level() {
    let store = Store::sqlite();
    nothing_is_logged(&store.url).await;
}

#[tokio::test]
async fn no_secret_and_no_payload_is_logged_at_any_level_on_postgres() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    nothing_is_logged(&store.url).await;
}

#[tokio::test]
async fn no_token_of_a_visitor_is_logged_at_any_level() {
    let store = Store::sqlite();
    let web = Web::start_with(&store, "", &[("ORGSTREAM_LOG", "trace")]).await;
    let visit = web.sign_in().await;
    web.metrics().await;
    const WRONG: &str = "planted-wrong-token";
    let refused = [
        web.get("/").bearer_auth(WRONG),
        web.get("/metrics").basic_auth("someone", Some(WRONG)),
        web.post("/sign-in", &[("token", WRONG), ("next", "/")]),
    ];
    for request in refused {
        assert!(request.send().await.unwrap().status() != 200);
    }
    let cookie = visit.cookie.split_once('=').unwrap().1;
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("someone:{WRONG}"));
    let log = web.daemon.log().join("\n");
    assert!(log.contains("target=sqlx"), "{log}");
    says_none(&log, &[page::TOKEN, cookie, WRONG, &basic]);
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let store = Store::sqlite();
    let config = format!("[store]\nurl = \"{}\"\n", store.url);
    for _ in 0..2 {
        let (code, out, err) = Daemon::output(&["migrate"], &config, &BTreeMap::new()).await;
        assert_eq!(code, 0, "{out}{err}");
    }
    let Some(store) = Store::postgres().await else {
        return;
    };
    let config = format!("[store]\nurl = \"{}\"\n", store.url);
    for _ in 0..2 {
        let (code, out, err) = Daemon::output(&["migrate"], &config, &BTreeMap::new()).await;
        assert_eq!(code, 0, "{out}{err}");
    }
}

#[tokio::test]
async fn every_command_tells_what_it_does() {
    let (code, out, _) = Daemon::output(&["--help"], "", &BTreeMap::new()).await;
    assert_eq!(code, 0);
    let commands = [
        "run",
        "check",
        "status",
        "tail",
        "publish",
        "topics",
        "schema",
        "config",
        "migrate",
        "emulator",
        "demo",
        "dead-letters",
    ];
    for command in commands {
        assert!(out.contains(command), "{command} in:\n{out}");
        let (code, help, err) = Daemon::output(&[command, "--help"], "", &BTreeMap::new()).await;
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        assert!(
            help.contains("Usage:") && help.contains("--config"),
            "{help}"
        );
    }
}
