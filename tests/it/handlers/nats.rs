//! The `nats` handler against `nats-server` with JetStream.

use std::sync::{Mutex, OnceLock};

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};
use serde_json::Value;

use super::conformance;
use super::endurance::{FarSide, Received, endure};
use super::throughput::measure;
use super::trouble::Bench;
use crate::support::disk::Disk;
use crate::support::server::{Server, find, self_signed};
use crate::support::{Store, eventually, record};

/// The server, whose configuration a test may change.
struct Nats {
    server: Server,
    /// Further lines of its configuration.
    more: String,
    /// How the test itself gets in.
    login: fn(ConnectOptions) -> ConnectOptions,
    /// What was read, up to its sequence.
    read: Mutex<(u64, Vec<Received>)>,
    /// A connection for counting.
    measuring: tokio::sync::OnceCell<Context>,
}

impl Nats {
    /// `None` where there is no NATS to test with.
    async fn start(more: &str) -> Option<Self> {
        let mut nats = Self::prepare()?;
        nats.more = more.to_owned();
        nats.up().await;
        Some(nats)
    }

    fn prepare() -> Option<Self> {
        static FOUND: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
        let program = FOUND.get_or_init(|| find("nats-server", "ORGSTREAM_REQUIRE_NATS"));
        Some(Self {
            server: Server::new(program.clone()?),
            more: String::new(),
            login: |options| options,
            read: Mutex::default(),
            measuring: tokio::sync::OnceCell::new(),
        })
    }

    async fn up(&mut self) {
        let (dir, port) = (self.server.dir.path(), self.server.port);
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n{}\n",
            dir.join("data").display(),
            self.more
        );
        let file = dir.join("nats.conf");
        std::fs::write(&file, config).unwrap();
        let args = ["-c", file.to_str().unwrap()].map(str::to_owned);
        self.server.start(&args).await;
    }

    async fn restart_with(&mut self, more: &str) {
        self.more = more.to_owned();
        self.server.kill();
        self.up().await;
    }

    /// A connection past the daemon.
    async fn client(&self) -> Client {
        let url = format!("nats://127.0.0.1:{}", self.server.port);
        (self.login)(ConnectOptions::new())
            .connect(url)
            .await
            .unwrap()
    }

    /// Once it has recovered what it had.
    async fn context(&self) -> Context {
        let context = jetstream::new(self.client().await);
        // The library's own type for this answer wants fields that servers before 2.10 do not send.
        eventually("JetStream", async || {
            let answer: Value = context.request("INFO", &serde_json::json!({})).await.ok()?;
            answer.get("error").is_none().then_some(())
        })
        .await;
        context
    }

    async fn stream(&self, config: Config) {
        let context = self.context().await;
        context.create_or_update_stream(config).await.unwrap();
    }

    fn handler(&self) -> String {
        format!(
            "type = \"nats\"\nurl = \"nats://127.0.0.1:{}\"\ntimeout = \"2s\"",
            self.server.port
        )
    }

    /// Reads on where it left off.
    async fn received(&self) -> Vec<Received> {
        let stream = self.context().await.get_stream("events").await.unwrap();
        let last = stream.cached_info().state.last_sequence;
        let (mut seen, mut all) = std::mem::take(&mut *self.read.lock().unwrap());
        while seen < last {
            seen += 1;
            let message = stream.get_raw_message(seen).await.unwrap();
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            let id = message.headers.get("Nats-Msg-Id").unwrap().as_str();
            let (event_id, subject) = (event["id"].as_str().unwrap(), &message.subject);
            assert_eq!(id, format!("accounts:{event_id}:{subject}"));
            all.push(Received::of(&event));
        }
        *self.read.lock().unwrap() = (seen, all.clone());
        all
    }

    /// Waits until the stream has so many messages, and looks that these are the first events, in order.
    async fn has(&self, count: usize) {
        let received = eventually(&format!("{count} messages"), async || {
            Some(self.received().await).filter(|received| received.len() >= count)
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

/// A stream of all that the handler publishes where nothing else is said.
fn events() -> Config {
    Config {
        name: "events".into(),
        subjects: vec!["orgstream.>".into()],
        ..Config::default()
    }
}

impl FarSide for Nats {
    fn handler(&self) -> String {
        Nats::handler(self)
    }

    async fn restart(&mut self) {
        self.server.kill();
        self.up().await;
    }

    async fn received(&self) -> Vec<Received> {
        Nats::received(self).await
    }

    async fn count(&self) -> usize {
        let context = self.measuring.get_or_init(|| self.context()).await;
        let stream = context.get_stream("events").await.unwrap();
        usize::try_from(stream.cached_info().state.messages).unwrap()
    }
}

#[tokio::test]
async fn ten_thousand_events_are_published_through_kills_and_restarts() {
    if let Some(nats) = Nats::start("").await {
        nats.stream(events()).await;
        endure(nats).await;
    }
}

#[tokio::test]
async fn two_handlers_may_publish_the_same_events_to_one_stream() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    nats.stream(events()).await;
    let one = nats.handler();
    let both = format!(
        "{one}\nsubject = \"orgstream.all\"\n[[subscription.handler]]\nname = \"second\"\n{one}\n\
         subject = \"orgstream.by.{{entity}}\""
    );
    let mut bench = Bench::start(&both).await;
    bench.publish(6).await;
    let received = eventually("both to have published", async || {
        Some(nats.received().await).filter(|received| received.len() >= 12)
    });
    let mut numbers: Vec<usize> = received.await.iter().map(|event| event.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
}

#[tokio::test]
async fn a_missing_stream_and_a_full_one_keep_events_waiting_until_they_are_mended() {
    let Some(mut nats) = Nats::prepare() else {
        return;
    };
    // Not started yet: a wrong address is the same.
    let mut bench = Bench::start(&nats.handler()).await;
    bench.publish(6).await;
    bench
        .says_down(&["no connection to NATS", "look at host and port of `url`"])
        .await;
    nats.up().await;
    let missing = ["takes the subject orgstream.", "nats stream add"];
    let (code, text) = bench.check().await;
    assert!(
        code == 1 && missing.iter().all(|part| text.contains(part)),
        "{text}"
    );
    nats.stream(events()).await;
    nats.has(6).await;
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    let elsewhere = Config {
        subjects: vec!["elsewhere.>".into()],
        ..events()
    };
    nats.stream(elsewhere).await;
    bench.publish(7).await;
    bench.says_down(&missing).await;
    nats.stream(events()).await;
    nats.has(13).await;
    let full = Config {
        max_messages: 13,
        discard: DiscardPolicy::New,
        ..events()
    };
    nats.stream(full).await;
    bench.publish(7).await;
    bench
        .says_down(&["maximum messages exceeded", "raise its limits"])
        .await;
    assert_eq!(nats.received().await.len(), 13);
    nats.stream(events()).await;
    nats.has(20).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_large_event_for_which_a_stream_has_no_room_waits_while_small_ones_go_on() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let narrow = Config {
        max_bytes: 50_000,
        discard: DiscardPolicy::New,
        ..events()
    };
    nats.stream(narrow).await;
    // An attempt that counted would be its last.
    let retry = "attempts = 1, initial = \"10ms\", max = \"20ms\"";
    let mut bench = Bench::start_trying(Store::sqlite(), retry, &nats.handler()).await;
    bench
        .publish_about(&record(9), &format!("{:0>60000}", 777))
        .await;
    for count in 1..=20 {
        bench.publish(1).await;
        nats.has(count).await;
    }
    bench.nothing_parked().await;
    nats.stream(events()).await;
    eventually("the large event", async || {
        let received = nats.received().await;
        received
            .iter()
            .any(|event| event.number == 777)
            .then_some(())
    })
    .await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_events_wait_for_room() {
    let Some(mut nats) = Nats::prepare() else {
        return;
    };
    let Some(disk) = Disk::over(nats.server.dir.path(), "8m") else {
        return;
    };
    nats.up().await;
    nats.stream(events()).await;
    let mut bench = Bench::start(&nats.handler()).await;
    bench.publish(6).await;
    nats.has(6).await;
    disk.fill();
    bench.publish(7).await;
    bench.says_down(&["make room"]).await;
    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    disk.grow();
    // One whose disk was full stays without JetStream until it is started anew.
    nats.server.kill();
    nats.up().await;
    nats.has(13).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_server_without_jetstream_says_so() {
    let Some(mut nats) = Nats::prepare() else {
        return;
    };
    let bench = Bench::start(&nats.handler()).await;
    let (dir, port) = (nats.server.dir.path().to_owned(), nats.server.port);
    let args = [
        "-a",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-P",
        dir.join("pid").to_str().unwrap(),
    ]
    .map(str::to_owned);
    nats.server.start(&args).await;
    let (code, text) = bench.check().await;
    assert!(code == 1 && text.contains("start it with -js"), "{text}");
}

#[tokio::test]
async fn an_event_that_is_too_large_is_parked_and_holds_its_record_only() {
    let Some(nats) = Nats::start("max_payload: 4KB").await else {
        return;
    };
    nats.stream(events()).await;
    let mut bench = Bench::start(&nats.handler()).await;
    bench.publish(3).await;
    bench.publish_named(&"x".repeat(5_000)).await;
    bench.publish(3).await;
    nats.has(6).await;
    let errors = bench.parks(1).await;
    assert!(errors[0].contains("max_payload"), "{errors:?}");
    let small = Config {
        max_message_size: 2_000,
        ..events()
    };
    nats.stream(small).await;
    // Parks behind: the record is held.
    bench.publish_named("6").await;
    bench.parks(2).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_for_the_stream_is_parked() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let small = Config {
        max_message_size: 3_000,
        ..events()
    };
    nats.stream(small).await;
    let mut bench = Bench::start(&nats.handler()).await;
    bench.publish_named(&"x".repeat(3_000)).await;
    bench.publish(3).await;
    nats.has(3).await;
    let errors = bench.parks(1).await;
    assert!(errors[0].contains("max_msg_size"), "{errors:?}");
}

#[tokio::test]
async fn a_refused_login_keeps_events_waiting_until_it_is_right() {
    const USERS: &str = "authorization { users: [ { user: us, password: right }, \
         { user: test, password: test } ] }";
    let Some(mut nats) = Nats::start(&USERS.replace("right", "other")).await else {
        return;
    };
    nats.login = |options| options.user_and_password("test".into(), "test".into());
    nats.stream(events()).await;
    let handler = format!("{}\nuser = \"us\"\npassword = \"right\"", nats.handler());
    let mut bench = Bench::start(&handler).await;
    bench.publish(6).await;
    let refused = [
        "refuses the login",
        "look at `token`, `user` and `password`",
    ];
    bench.says_down(&refused).await;
    let (code, text) = bench.check().await;
    assert!(
        code == 1 && refused.iter().all(|part| text.contains(part)),
        "{text}"
    );
    nats.restart_with(USERS).await;
    nats.has(6).await;
    // Of a connection that was up, too.
    nats.restart_with(&USERS.replace("right", "other")).await;
    bench
        .daemon
        .logged(&["client error", "authorization violation"])
        .await;
    bench.publish(6).await;
    eventually("the login to be refused again", async || {
        let down = |line: &&String| line.contains("fails for all") && line.contains(refused[0]);
        (bench.daemon.log().iter().filter(down).count() >= 2).then_some(())
    })
    .await;
    nats.restart_with(USERS).await;
    nats.has(12).await;
    // May sign in, may not publish.
    let denied = USERS.replace(
        "password: right",
        "password: right, permissions: { publish: { deny: \"orgstream.>\" } }",
    );
    let connections = || {
        let log = bench.daemon.log();
        let connected = log.iter().filter(|line| line.contains("event: connected"));
        connected.count()
    };
    let before = connections();
    nats.restart_with(&denied).await;
    eventually("the daemon to connect again", async || {
        (connections() > before).then_some(())
    })
    .await;
    bench.publish(6).await;
    bench
        .says_down(&["Permissions Violation", "must be allowed to publish"])
        .await;
    nats.restart_with(USERS).await;
    nats.has(18).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn tokens_and_nkeys_sign_in() {
    let Some(mut nats) = Nats::start("authorization { token: right }").await else {
        return;
    };
    nats.login = |options| options.token("right".into());
    nats.stream(events()).await;
    let mut bench = Bench::start(&format!("{}\ntoken = \"right\"", nats.handler())).await;
    bench.publish(3).await;
    nats.has(3).await;
    drop(bench);
    let (seed, user) = nkey();
    nats.restart_with(&format!(
        "authorization {{ users: [ {{ nkey: {user} }}, {{ user: test, password: test }} ] }}"
    ))
    .await;
    nats.login = |options| options.user_and_password("test".into(), "test".into());
    let mut bench = Bench::start(&format!("{}\nnkey = \"{seed}\"", nats.handler())).await;
    bench.publish(6).await;
    // Three of them are other events of the same names: another org.
    eventually("six more", async || {
        (nats.received().await.len() == 9).then_some(())
    })
    .await;
}

#[tokio::test]
async fn over_tls_the_certificate_is_verified() {
    let Some(mut nats) = Nats::prepare() else {
        return;
    };
    let (cert, key) = self_signed(nats.server.dir.path());
    nats.more = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}",
        cert.display(),
        key.display()
    );
    nats.up().await;
    let handler = nats.handler().replace("nats://", "tls://");
    let mut refused = Bench::start(&handler).await;
    refused.publish(1).await;
    refused.says_down(&["certificate", "`ca_file`"]).await;
    let trusting = Bench::start(&format!("{handler}\nca_file = \"{}\"", cert.display())).await;
    let (code, text) = trusting.check().await;
    assert!(code == 1 && text.contains("nats stream add"), "{text}");
}

#[tokio::test]
async fn the_check_warns_of_a_stream_in_memory() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let stream = Config {
        storage: StorageType::Memory,
        ..events()
    };
    nats.stream(stream).await;
    let bench = Bench::start(&nats.handler()).await;
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("kept in memory"), "{text}");
}

#[tokio::test]
async fn handler_test_finds_nothing_wrong_with_it() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    nats.stream(events()).await;
    let config = conformance::sqlite(&format!("[[subscription.handler]]\n{}\n", nats.handler()));
    conformance::tested(&config, &["nats"]).await.is_sound();
}

/// A fresh user NKEY, as its seed and its public form: Ed25519 keys with a prefix and a checksum, in base 32.
fn nkey() -> (String, String) {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    const SEED: u8 = 18 << 3;
    const USER: u8 = 20 << 3;
    let secret: [u8; 32] = std::array::from_fn(|_| fastrand::u8(..));
    let pair = Ed25519KeyPair::from_seed_unchecked(&secret).unwrap();
    let seed = [&[SEED | USER >> 5, USER << 3][..], &secret].concat();
    let public = [&[USER][..], pair.public_key().as_ref()].concat();
    (base32_checked(seed), base32_checked(public))
}

/// With a CRC-16 (XMODEM) behind, low byte first.
fn base32_checked(mut bytes: Vec<u8>) -> String {
    let crc = bytes.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            }
        })
    });
    bytes.extend(crc.to_le_bytes());
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let letter = |bits: &[u8]| {
        let bits = format!("{:0<5}", std::str::from_utf8(bits).unwrap());
        let value = usize::from_str_radix(&bits, 2).unwrap();
        char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[value])
    };
    bits.as_bytes().chunks(5).map(letter).collect()
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_nats() {
    let start = async || {
        let nats = Nats::start("").await?;
        nats.stream(events()).await;
        Some(nats)
    };
    measure("nats", start).await;
}
