//! The `redis` handler against `redis-server`.

use std::sync::{Mutex, OnceLock};

use redis::{Connection, Value};

use super::conformance;
use super::endurance::{FarSide, Received, endure};
use super::throughput::measure;
use super::trouble::Bench;
use crate::support::disk::Disk;
use crate::support::server::{Server, find, free_port, self_signed};
use crate::support::{account_update, eventually, record};

const STREAM: &str = "orgstream:AccountChangeEvent";

/// Names and values of an entry.
type Fields = Vec<(String, String)>;

/// A server that keeps what it has in an append-only file, as one does that shall keep it.
struct Redis {
    server: Server,
    more: Vec<String>,
    /// What goes between `redis://` and the host in a test's own connection.
    login: &'static str,
    /// What was read in a run of endurance, up to the entry of this ID.
    read: Mutex<(String, Vec<Received>)>,
}

impl Redis {
    /// `None` where there is no Redis to test with. `more` are further arguments of the server.
    async fn start(more: &[&str]) -> Option<Self> {
        Self::start_with("", more).await
    }

    /// As [`Redis::start`], for a server that wants a login.
    async fn start_with(login: &'static str, more: &[&str]) -> Option<Self> {
        let mut redis = Self::prepare()?;
        redis.login = login;
        redis.more = more.iter().map(|arg| (*arg).to_owned()).collect();
        redis.up().await;
        Some(redis)
    }

    fn prepare() -> Option<Self> {
        static FOUND: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
        let program = FOUND.get_or_init(|| find("redis-server", "ORGSTREAM_REQUIRE_REDIS"));
        Some(Self {
            server: Server::new(program.clone()?),
            more: Vec::new(),
            login: "",
            read: Mutex::default(),
        })
    }

    async fn up(&mut self) {
        let port = self.server.port.to_string();
        let dir = self.server.dir.path().to_str().unwrap().to_owned();
        let mut args: Vec<String> = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            &dir,
            "--save",
            "",
            "--appendonly",
            "yes",
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(self.more.iter().cloned());
        self.server.start(&args).await;
        // It listens before it has loaded its file.
        eventually("redis to load", async || {
            redis::cmd("PING")
                .query::<String>(&mut self.try_connect()?)
                .ok()
        })
        .await;
    }

    fn try_connect(&self) -> Option<Connection> {
        let url = format!("redis://{}127.0.0.1:{}", self.login, self.server.port);
        redis::Client::open(url).unwrap().get_connection().ok()
    }

    /// Sends a command, past the daemon.
    fn ask(&self, command: &[&str]) -> Value {
        let mut cmd = redis::cmd(command[0]);
        for arg in &command[1..] {
            cmd.arg(*arg);
        }
        let mut connection = self.try_connect().unwrap();
        cmd.query(&mut connection).unwrap()
    }

    fn handler(&self) -> String {
        format!(
            "type = \"redis\"\nurl = \"redis://127.0.0.1:{}\"",
            self.server.port
        )
    }

    /// The fields of each entry of a stream, in order.
    fn entries(&self, stream: &str) -> Vec<Fields> {
        let entries = self.range(stream, "-");
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// The entries of a stream, with their IDs, from a place on.
    fn range(&self, stream: &str, from: &str) -> Vec<(String, Fields)> {
        let mut connection = self.try_connect().unwrap();
        redis::cmd("XRANGE")
            .arg(stream)
            .arg(from)
            .arg("+")
            .query(&mut connection)
            .unwrap_or_default()
    }

    fn received(&self) -> Vec<Received> {
        self.entries(STREAM).iter().map(event).collect()
    }

    /// Waits until the stream has so many entries, and looks that these are the first events, in order.
    async fn has(&self, count: usize) {
        let received = eventually(&format!("{count} entries"), async || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
        .await;
        let mut numbers: Vec<usize> = received.iter().map(|event| event.number).collect();
        for one in 0..3 {
            let of_one: Vec<usize> = numbers.iter().copied().filter(|n| n % 3 == one).collect();
            assert!(of_one.is_sorted(), "{of_one:?}");
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

/// The event of an entry.
fn event(fields: &Fields) -> Received {
    let (name, event) = fields.last().unwrap();
    assert_eq!(name, "event");
    Received::of(&serde_json::from_str(event).unwrap())
}

impl FarSide for Redis {
    fn handler(&self) -> String {
        Redis::handler(self)
    }

    async fn restart(&mut self) {
        self.server.kill();
        self.up().await;
    }

    /// Reads on where it left off.
    async fn received(&self) -> Vec<Received> {
        let mut read = self.read.lock().unwrap();
        let (last, all) = &mut *read;
        let from = if last.is_empty() {
            "-".to_owned()
        } else {
            format!("({last}")
        };
        for (id, fields) in self.range(STREAM, &from) {
            all.push(event(&fields));
            *last = id;
        }
        all.clone()
    }
}

#[tokio::test]
async fn ten_thousand_events_are_added_through_kills_and_restarts() {
    if let Some(redis) = Redis::start(&[]).await {
        endure(redis).await;
    }
}

#[tokio::test]
async fn an_entry_has_what_a_reader_needs_without_reading_the_event() {
    let Some(redis) = Redis::start(&[]).await else {
        return;
    };
    let handler = format!(
        "{}\nstream = \"sf:{{entity}}:{{subscription}}\"",
        redis.handler()
    );
    let mut bench = Bench::start(&handler).await;
    bench.publish(1).await;
    let entries = eventually("an entry", async || {
        Some(redis.entries("sf:Account:accounts")).filter(|entries| !entries.is_empty())
    })
    .await;
    let names: Vec<&str> = entries[0].iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["id", "subscription", "type", "subject", "time", "event"]
    );
    let field = |n: usize| entries[0][n].1.as_str();
    let event: serde_json::Value = serde_json::from_str(field(5)).unwrap();
    assert_eq!(field(0), event["id"]);
    assert_eq!(field(1), "accounts");
    assert_eq!(field(2), "com.salesforce.cdc.Account.update.v1");
    assert_eq!(field(3), record(0));
    assert_eq!(field(4), event["time"]);
    assert_eq!(event["data"]["Name"], account_update("", "0")["Name"]);
}

#[tokio::test]
async fn a_stream_is_trimmed_where_asked() {
    let Some(redis) = Redis::start(&["--stream-node-max-entries", "10"]).await else {
        return;
    };
    let mut bench = Bench::start(&format!("{}\nmax_length = 20", redis.handler())).await;
    bench.publish(200).await;
    let newest = eventually("the last event", async || {
        let received = redis.received();
        (received.iter().any(|event| event.number == 199)).then_some(received)
    })
    .await;
    // Whole nodes of ten are dropped.
    assert!((20..=40).contains(&newest.len()), "{}", newest.len());
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_events_wait_for_room() {
    let Some(mut redis) = Redis::prepare() else {
        return;
    };
    let Some(disk) = Disk::over(redis.server.dir.path(), "4m") else {
        return;
    };
    redis.up().await;
    let mut bench = Bench::start(&redis.handler()).await;
    bench.publish(6).await;
    redis.has(6).await;
    disk.fill();
    // It sees that only when it writes: the first go well, and are kept in memory until there is room.
    let mut count = 6;
    let refused = eventually("a refusal", async || {
        bench.publish(3).await;
        count += 3;
        let log = bench.daemon.log().join("\n");
        log.contains("MISCONF").then_some(log)
    });
    assert!(refused.await.contains("make room there"));
    bench.says_down(&["MISCONF", "make room there"]).await;
    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    disk.grow();
    redis.has(count).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn the_server_in_trouble_keeps_events_waiting_until_it_is_mended() {
    let Some(mut redis) = Redis::prepare() else {
        return;
    };
    // Not started yet: a wrong address is the same.
    let mut bench = Bench::start(&redis.handler()).await;
    bench.publish(6).await;
    bench
        .says_down(&["no connection to Redis", "look at host and port of `url`"])
        .await;
    redis.up().await;
    redis.has(6).await;
    let mut count = 6;
    let elsewhere = free_port().to_string();
    let troubles: [(&[&str], &[&str], &[&str]); 5] = [
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["OOM", "max_length"],
            &["CONFIG", "SET", "maxmemory", "0"],
        ),
        (
            &["ACL", "SETUSER", "default", "-xadd"],
            &["NOPERM", "ACL SETUSER"],
            &["ACL", "SETUSER", "default", "+xadd"],
        ),
        (
            &["ACL", "SETUSER", "default", "-multi"],
            &["NOPERM", "+multi"],
            &["ACL", "SETUSER", "default", "+multi"],
        ),
        (
            &["REPLICAOF", "127.0.0.1", &elsewhere],
            &["READONLY", "must name the primary"],
            &["REPLICAOF", "NO", "ONE"],
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["NOREPLICAS", "min-replicas-to-write"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
    ];
    for (breaks, said, mends) in troubles {
        redis.ask(breaks);
        // Connections at rest, whose transactions have begun, are in the same trouble as new ones.
        if breaks.contains(&"-multi") {
            redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        bench.publish(7).await;
        bench.says_down(said).await;
        let (code, text) = bench.check().await;
        assert_eq!(code, 1, "{text}");
        assert!(
            said.iter().all(|part| text.contains(part)),
            "{said:?} in {text}"
        );
        assert_eq!(redis.entries(STREAM).len(), count, "{breaks:?}");
        redis.ask(mends);
        count += 7;
        redis.has(count).await;
    }
    redis.ask(&["RENAME", STREAM, "aside"]);
    redis.ask(&["SET", STREAM, "a text"]);
    bench.publish(7).await;
    bench.says_down(&["WRONGTYPE", "is not a stream"]).await;
    redis.ask(&["RENAME", "aside", STREAM]);
    redis.has(count + 7).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_wrong_password_keeps_events_waiting_until_it_is_the_right_one() {
    let Some(mut redis) = Redis::start_with(":other@", &["--requirepass", "other"]).await else {
        return;
    };
    let url = format!("url = \"redis://:right@127.0.0.1:{}\"", redis.server.port);
    let mut bench = Bench::start(&format!("type = \"redis\"\n{url}")).await;
    bench.publish(6).await;
    bench
        .says_down(&["refuses user name or password", "look at those in `url`"])
        .await;
    let (code, text) = bench.check().await;
    assert!(
        code == 1 && text.contains("refuses user name or password"),
        "{text}"
    );
    assert!(!text.contains("right"), "{text}");
    redis.ask(&["CONFIG", "SET", "requirepass", "right"]);
    redis.login = ":right@";
    redis.has(6).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_so() {
    let Some(redis) = Redis::start_with(":other@", &["--requirepass", "other"]).await else {
        return;
    };
    let mut bench = Bench::start(&redis.handler()).await;
    bench.publish(1).await;
    bench.says_down(&["NOAUTH", "put it into `url`"]).await;
}

#[tokio::test]
async fn over_tls_a_certificate_is_verified_unless_told_otherwise() {
    let Some(mut redis) = Redis::prepare() else {
        return;
    };
    let (cert, key) = self_signed(redis.server.dir.path());
    let [cert, key] = [&cert, &key].map(|path| path.to_str().unwrap().to_owned());
    let port = free_port();
    redis.more = [
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "secret",
    ]
    .map(str::to_owned)
    .to_vec();
    redis.login = ":secret@";
    redis.up().await;
    let handler = format!("type = \"redis\"\nurl = \"rediss://:secret@127.0.0.1:{port}\"");
    let mut refused = Bench::start(&handler).await;
    refused.publish(1).await;
    refused
        .says_down(&["certificate", "`ca_file`", "`tls_verify = false`"])
        .await;
    assert_eq!(redis.entries(STREAM).len(), 0);
    for more in ["tls_verify = false", &format!("ca_file = \"{cert}\"")] {
        let mut bench = Bench::start(&format!("{handler}\n{more}")).await;
        bench.publish(3).await;
        redis.has(3).await;
        let (code, text) = bench.check().await;
        assert_eq!(code, 0, "{text}");
        redis.ask(&["DEL", STREAM]);
    }
    // TLS to a port without.
    let plain = handler.replace(&port.to_string(), &redis.server.port.to_string());
    let mut wrong = Bench::start(&format!("{plain}\ntls_verify = false")).await;
    wrong.publish(1).await;
    wrong.says_down(&["no connection to Redis"]).await;
}

#[tokio::test]
async fn an_event_is_handled_when_the_replicas_have_it() {
    let Some(redis) = Redis::start(&["--repl-diskless-sync-delay", "0"]).await else {
        return;
    };
    let handler = format!("{}\nwait_replicas = 1\ntimeout = \"2s\"", redis.handler());
    let mut bench = Bench::start(&handler).await;
    bench.publish(6).await;
    bench
        .says_down(&["0 of the 1 replicas", "lower `wait_replicas`"])
        .await;
    // Looked for first: attempts leave nothing behind.
    assert_eq!(redis.entries(STREAM).len(), 0);
    let primary = redis.server.port.to_string();
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &primary])
        .await
        .unwrap();
    replica.has(6).await;
    redis.has(6).await;
    bench.publish(6).await;
    replica.has(12).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn the_check_warns_of_a_server_that_may_lose_events() {
    let Some(redis) = Redis::start(&[]).await else {
        return;
    };
    let bench = Bench::start(&redis.handler()).await;
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("appendonly"), "{text}");
    redis.ask(&["CONFIG", "SET", "appendonly", "no"]);
    redis.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    for part in ["appendonly is off", "set it to noeviction"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // A check leaves nothing behind.
    assert_eq!(redis.ask(&["DBSIZE"]), Value::Int(0));
}

#[tokio::test]
async fn handler_test_finds_nothing_wrong_with_it() {
    let Some(redis) = Redis::start(&[]).await else {
        return;
    };
    let config = conformance::sqlite(&format!("[[subscription.handler]]\n{}\n", redis.handler()));
    let look = format!("redis-cli -p {} xrange {STREAM} - +", redis.server.port);
    conformance::tested(&config, &["redis", "--received", &look])
        .await
        .is_sound();
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_redis() {
    measure("redis", async || Redis::start(&[]).await).await;
}
