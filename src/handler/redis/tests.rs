//! Options, entries and messages; the server itself is in `tests/it/handlers/redis.rs`.

use redis::Arg;

use super::super::testing::{batch, config};
use super::*;

fn handler(options: &str) -> RedisHandler {
    RedisHandler::from_config(&config("redis", options)).unwrap()
}

fn problems(options: &str) -> String {
    RedisHandler::from_config(&config("redis", options))
        .unwrap_err()
        .to_string()
}

/// The arguments of a command, as texts.
fn texts(command: &Cmd) -> Vec<String> {
    command
        .args_iter()
        .map(|arg| match arg {
            Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => "?".to_owned(),
        })
        .collect()
}

#[test]
fn an_event_is_one_entry_with_its_fields() {
    let handler = handler("url = 'redis://localhost'\nmax_length = 1000");
    let batch = batch(&[r#"{"a":1}"#]);
    let entry = handler.entry(&batch.subscription, &batch.events[0]);
    let texts = texts(&entry);
    assert_eq!(
        texts[..texts.len() - 1],
        [
            "XADD",
            "orgstream:Order__e",
            "MAXLEN",
            "~",
            "1000",
            "*",
            "id",
            "event-0:0000",
            "subscription",
            "orders",
            "type",
            "com.salesforce.event.Order__e.v1",
            "time",
            "1970-01-01T00:00:00Z",
            "event",
        ]
    );
    let event: serde_json::Value = serde_json::from_str(texts.last().unwrap()).unwrap();
    assert_eq!(event["data"]["a"], 1);
}

#[test]
fn without_max_length_nothing_is_trimmed() {
    let handler = handler("url = 'redis://localhost'\nstream = 's'");
    assert_eq!(texts(&handler.add_to("s")), ["XADD", "s", "*"]);
}

#[test]
fn every_wrong_option_is_said_at_once_and_shows_no_value() {
    let said = problems(
        "url = 'http://hidden'\nstream = '{hiden}'\nwait_replicas = 99\ntls_verify = 'hidden'\nmaxlength = 5\n\
         ca_file = '/no/such/file'",
    );
    for part in [
        "`url` must be redis://",
        "`stream` has no placeholder",
        "`wait_replicas` must be from 0 to 16",
        "`tls_verify` must be true or false",
        "did you mean `max_length`?",
        "`ca_file` cannot be read",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("hidden"), "{said}");
    assert!(problems("").contains("`url` is missing"));
}

#[test]
fn what_concerns_tls_wants_a_url_with_tls() {
    let said = problems("url = 'redis://localhost'\ntls_verify = false");
    assert!(said.contains("`tls_verify` is for TLS"), "{said}");
    // What the library would take from the address is an option here.
    let said = problems("url = 'rediss://localhost/#insecure'");
    assert!(said.contains("`url` must be"), "{said}");
}

#[test]
fn neither_password_nor_path_is_shown() {
    let handler = handler("url = 'rediss://user:hidden@redis.example:6380/3'");
    assert_eq!(handler.endpoint.name(), "redis.example:6380");
    assert!(!format!("{handler:?}").contains("hidden"));
    for trouble in [
        Trouble::Password,
        Trouble::NoConnection,
        Trouble::NotUnderstood,
        server_trouble("NOPERM", Some("hidden")),
    ] {
        let reason = handler.reason(&trouble);
        assert!(reason.contains("redis.example:6380"), "{reason}");
        assert!(!reason.contains("hidden"), "{reason}");
    }
}

#[test]
fn what_redis_repeats_of_an_event_is_not_told() {
    let handler = handler("url = 'redis://localhost'");
    let detail = "unknown command 'XADD', with args beginning with: 'hidden' 'hidden'";
    let reason = handler.reason(&server_trouble("ERR", Some(detail)));
    assert_eq!(
        reason,
        "Redis at localhost:6379 answers ERR unknown command 'XADD'"
    );
}

#[test]
fn what_is_the_servers_is_not_held_against_an_event() {
    for (code, servers) in [
        ("OOM", true),
        ("WRONGTYPE", true),
        ("NOPERM", true),
        ("READONLY", true),
        ("ERR", false),
        ("UNHEARDOF", false),
    ] {
        assert_eq!(
            server_trouble(code, None).is_the_servers(),
            servers,
            "{code}"
        );
    }
    assert!(Trouble::Late(Duration::ZERO).is_the_servers());
    assert!(!Trouble::NotUnderstood.is_the_servers());
}

#[test]
fn connections_at_rest_are_given_up_where_they_are_in_the_same_trouble() {
    let too_few = Trouble::Replicas { have: 0, wanted: 1 };
    for trouble in [
        Trouble::Connection("broken pipe".into()),
        Trouble::Late(Duration::ZERO),
        too_few,
        server_trouble("READONLY", None),
    ] {
        assert!(trouble.is_of_all_connections(), "{trouble:?}");
    }
    for code in ["OOM", "NOPERM", "ERR"] {
        assert!(
            !server_trouble(code, None).is_of_all_connections(),
            "{code}"
        );
    }
}

/// A server of the test's own; killed when dropped.
struct Server(std::process::Child);

impl Server {
    /// `None` where there is no Redis to test with.
    fn start(port: u16) -> Option<Self> {
        let port = port.to_string();
        let args = ["--port", &port, "--bind", "127.0.0.1", "--save", ""];
        let started = std::process::Command::new("redis-server")
            .args(args)
            .stdout(std::process::Stdio::null())
            .spawn();
        match started {
            Ok(child) => Some(Self(child)),
            Err(error) if std::env::var_os("ORGSTREAM_REQUIRE_REDIS").is_some() => {
                panic!("redis-server: {error}: run scripts/test")
            }
            Err(_) => {
                println!("skipped: no redis-server (run scripts/test, which brings one)");
                None
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn ready(handler: &RedisHandler) {
    let began = Instant::now();
    while let Err(why) = handler.check().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn after_a_restart_of_the_server_one_call_fails_and_not_one_for_each_connection() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let Some(server) = Server::start(port) else {
        return;
    };
    let handler = handler(&format!("url = 'redis://127.0.0.1:{port}'"));
    ready(&handler).await;
    let event = batch(&["{}"]);
    let calls = (0..8).map(|_| handler.handle(&event));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer, BatchAnswer::HANDLED);
    }
    assert_eq!(handler.resting.lock().unwrap().len(), 8);
    drop(server);
    let _server = Server::start(port);
    ready(&handler).await;
    let mut failed = 0;
    for _ in 0..8 {
        match handler.handle(&event).await {
            BatchAnswer::HANDLED => {}
            BatchAnswer::All(Answer::Retry(retry)) if !retry.counts => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(failed, 1);
}

#[tokio::test]
async fn a_server_that_is_away_is_a_retry_that_names_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let handler = handler(&format!("url = 'redis://127.0.0.1:{port}'"));
    let BatchAnswer::All(Answer::Retry(retry)) = handler.handle(&batch(&["{}"])).await else {
        panic!("not a retry");
    };
    assert!(
        retry.reason.contains(&format!("127.0.0.1:{port}")),
        "{}",
        retry.reason
    );
    assert!(
        retry.reason.contains("look at host and port"),
        "{}",
        retry.reason
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handler = handler(&format!(
        "url = 'redis://127.0.0.1:{port}'\nconnect_timeout = '100ms'\ntimeout = '200ms'"
    ));
    let BatchAnswer::All(Answer::Retry(retry)) = handler.handle(&batch(&["{}"])).await else {
        panic!("not a retry");
    };
    assert!(retry.reason.contains("within 100ms"), "{}", retry.reason);
}
