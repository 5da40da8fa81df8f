//! A broker that keeps what it has on disk (`noida-db`), and `kcat`, which reads it with librdkafka.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::listener::Gate;
use crate::handlers::endurance::{FarSide, Received};
use crate::support::daemon::project;
use crate::support::eventually;
use crate::support::server::{Server, find};

/// The topic of the tests' subscription, where nothing else is said.
pub(super) const TOPIC: &str = "orgstream.AccountChangeEvent";

/// A file that `scripts/test` installs; `None`, with a line that says so, where it is not there.
pub(super) fn tool(folder: &str, begins: &str) -> Option<PathBuf> {
    let versions: Vec<String> = include_str!("tools.txt")
        .lines()
        .map(|tool| tool.replace("==", "-"))
        .collect();
    let folder = project()
        .join("target/kafka")
        .join(versions.join("_"))
        .join(folder);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = files.map(|file| file.path()).find(|file| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(begins))
    });
    if found.is_none() {
        assert!(
            std::env::var_os("ORGSTREAM_REQUIRE_KAFKA").is_none(),
            "no {begins} in target/kafka: run scripts/test"
        );
        println!("skipped: no {begins} (run scripts/test, which brings one)");
    }
    found
}

/// The program that reads.
pub(super) fn kcat() -> Option<PathBuf> {
    find("kcat", "ORGSTREAM_REQUIRE_KAFKA")
}

pub(super) struct Broker {
    pub(super) server: Server,
    reader: Reader,
}

impl Broker {
    /// Nothing runs yet; `None` where there is nothing to test with.
    pub(super) fn prepare() -> Option<Self> {
        let server = Server::new(tool("noida_db", "noida-db")?);
        let reader = Reader::of(kcat()?, &format!("127.0.0.1:{}", server.port), TOPIC);
        Some(Self { server, reader })
    }

    pub(super) async fn start() -> Option<Self> {
        let mut broker = Self::prepare()?;
        broker.up().await;
        Some(broker)
    }

    pub(super) async fn up(&mut self) {
        let port = self.server.port.to_string();
        let args = [
            "start",
            "--data-dir",
            "data",
            "--only",
            "kafka",
            "--kafka-port",
            &port,
        ];
        self.server.start(&args.map(str::to_owned)).await;
    }

    /// The topic of the tests, with three partitions.
    pub(super) fn create(&self, config: &[(&str, &str)]) {
        create(self.server.port, TOPIC, config);
    }

    pub(super) fn handler(&self) -> String {
        handler(&format!("127.0.0.1:{}", self.server.port))
    }

    pub(super) async fn has(&self, count: usize) {
        self.reader.has(count).await;
    }
}

/// A broker behind a gate. It loses what it acknowledges while it ends, so it ends when nothing gets through any more;
/// answers to what it has are cut off.
pub(super) struct Gated {
    broker: Broker,
    gate: Gate,
}

impl Gated {
    pub(super) async fn new(broker: Broker) -> Self {
        let gate = Gate::before(broker.server.port).await;
        Self { broker, gate }
    }
}

impl FarSide for Gated {
    fn handler(&self) -> String {
        handler(&format!("127.0.0.1:{}", self.gate.port))
    }

    async fn restart(&mut self) {
        self.gate.set_open(false);
        self.broker.server.stop().await;
        self.broker.up().await;
        self.gate.set_open(true);
    }

    async fn received(&self) -> Vec<Received> {
        self.broker.reader.received().await
    }

    async fn count(&self) -> usize {
        count(self.broker.server.port, TOPIC)
    }
}

/// The lines of a handler.
pub(super) fn handler(brokers: &str) -> String {
    format!("type = \"kafka\"\nbrokers = \"{brokers}\"\ntimeout = \"3s\"")
}

/// Asks for a topic (CreateTopics, version 4) and looks that there was no error.
fn create(port: u16, topic: &str, config: &[(&str, &str)]) {
    let mut request = [number(1), text(topic), number(3)].concat();
    request.extend([0, 1, 0, 0, 0, 0]); // one replica, no assignment
    request.extend(number(config.len()));
    for (key, value) in config {
        request.extend([text(key), text(value)].concat());
    }
    request.extend([0, 0, 0x13, 0x88, 0]); // within 5 s, for real
    let answer = ask(port, [0, 19, 0, 4], &request);
    let error = &answer[14 + topic.len()..][..2];
    assert_eq!(error, [0, 0], "{topic} cannot be created");
}

/// How many records a topic of three partitions has, where none was ever taken away (ListOffsets, version 1).
fn count(port: u16, topic: &str) -> usize {
    let mut request = [vec![0xff; 4], number(1), text(topic), number(3)].concat();
    for partition in 0..3 {
        request.extend(number(partition));
        request.extend([0xff; 8]); // the end
    }
    let answer = ask(port, [0, 2, 0, 1], &request);
    // Of each: its number, an error, a time, an offset.
    let partitions = answer[14 + topic.len()..].chunks_exact(22);
    let ends = partitions.map(|one| {
        assert_eq!(one[4..6], [0, 0], "{topic} cannot be counted");
        u64::from_be_bytes(one[14..].try_into().unwrap())
    });
    usize::try_from(ends.sum::<u64>()).unwrap()
}

/// Asks for something, by the number and version of its API, and gives the answer from its own number on.
fn ask(port: u16, api: [u8; 4], body: &[u8]) -> Vec<u8> {
    let request = [&api[..], &number(7), &text("test"), body].concat();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(&number(request.len())).unwrap();
    connection.write_all(&request).unwrap();
    let mut length = [0; 4];
    connection.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    connection.read_exact(&mut answer).unwrap();
    answer
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

fn number(number: usize) -> Vec<u8> {
    u32::try_from(number).unwrap().to_be_bytes().to_vec()
}

/// Reads a topic of three partitions with an implementation that is not ours, and remembers how far.
pub(super) struct Reader {
    kcat: PathBuf,
    brokers: String,
    topic: String,
    read: Mutex<[Partition; 3]>,
}

/// What was read of a partition.
#[derive(Default)]
struct Partition {
    records: Vec<Value>,
    /// Of the first of these, what they say.
    received: Vec<Received>,
}

impl Reader {
    pub(super) fn of(kcat: PathBuf, brokers: &str, topic: &str) -> Self {
        Self {
            kcat,
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            read: Mutex::default(),
        }
    }

    /// All records, partition by partition.
    pub(super) async fn records(&self) -> Vec<Vec<Value>> {
        self.read_on().await;
        let read = self.read.lock().unwrap();
        read.iter().map(|one| one.records.clone()).collect()
    }

    async fn read_on(&self) {
        let mut read = std::mem::take(&mut *self.read.lock().unwrap());
        for (partition, one) in read.iter_mut().enumerate() {
            let last = one.records.last();
            let next = last.map_or(0, |last| last["offset"].as_i64().unwrap() + 1);
            one.records.extend(self.after(partition, next).await);
        }
        *self.read.lock().unwrap() = read;
    }

    async fn after(&self, partition: usize, offset: i64) -> Vec<Value> {
        let (partition, offset) = (partition.to_string(), offset.to_string());
        let mut kcat = Command::new(&self.kcat);
        kcat.args(["-C", "-e", "-q", "-J", "-b", &self.brokers])
            .args(["-t", &self.topic, "-p", &partition, "-o", &offset])
            .args(["-X", "check.crcs=true", "-X", "fetch.wait.max.ms=5"])
            .args(["-X", "log_level=0"])
            .kill_on_drop(true);
        // It waits for a broker that is away.
        let Ok(output) = tokio::time::timeout(Duration::from_secs(3), kcat.output()).await else {
            return Vec::new();
        };
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout); // Avro is no text
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(super) async fn received(&self) -> Vec<Received> {
        self.read_on().await;
        let mut read = self.read.lock().unwrap();
        for one in read.iter_mut() {
            let new = one.records[one.received.len()..].iter().map(received);
            one.received.extend(new.collect::<Vec<_>>());
        }
        read.iter().flat_map(|one| one.received.clone()).collect()
    }

    /// Waits until so many are there, and looks that these are the first events, each once and in order.
    pub(super) async fn has(&self, count: usize) {
        let received = eventually(&format!("{count} records"), async || {
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

/// What a record says, and that it has the key and the headers that it should.
fn received(record: &Value) -> Received {
    let event: Value = serde_json::from_str(record["payload"].as_str().unwrap()).unwrap();
    assert_eq!(record["key"], event["subject"]);
    let id = format!("accounts:{}", event["id"].as_str().unwrap());
    let kind = "application/cloudevents+json; charset=UTF-8";
    let expected = ["content-type", kind, "idempotency-key", &id];
    assert_eq!(texts(&record["headers"]), expected);
    Received::of(&event)
}

pub(super) fn texts(list: &Value) -> Vec<&str> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

/// The folder of the tests' own files.
pub(super) fn here() -> PathBuf {
    project().join(Path::new("tests/it/handlers/kafka"))
}
