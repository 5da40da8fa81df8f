//! A cluster of librdkafka's mock brokers in a process of its own, which does what it is told (`mock.py`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::broker::{self, Reader, TOPIC};
use crate::support::server::find;

pub(super) struct Mock {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    pub(super) brokers: String,
    pub(super) reader: Reader,
}

impl Mock {
    /// So many brokers, and the topic of the tests with three partitions. `None` where there is nothing to test with.
    pub(super) fn start(brokers: usize) -> Option<Self> {
        let python = find("python3", "ORGSTREAM_REQUIRE_KAFKA")?;
        let library = broker::tool("confluent_kafka.libs", "librdkafka")?;
        let kcat = broker::kcat()?;
        let mut child = Command::new(python)
            .arg(broker::here().join("mock.py"))
            .arg(library)
            .arg(brokers.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let say = child.stdin.take().unwrap();
        let mut hear = BufReader::new(child.stdout.take().unwrap());
        let mut brokers = String::new();
        hear.read_line(&mut brokers).unwrap();
        let brokers = brokers.trim().to_owned();
        let mut mock = Self {
            reader: Reader::of(kcat, &brokers, TOPIC),
            child,
            say,
            hear,
            brokers,
        };
        mock.tell(&format!("topic {TOPIC} 3"));
        Some(mock)
    }

    /// Has a command carried out.
    pub(super) fn tell(&mut self, command: &str) {
        writeln!(self.say, "{command}").unwrap();
        let mut answer = String::new();
        self.hear.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), "ok", "{command}");
    }

    /// Every batch that comes from now on is answered with this error.
    pub(super) fn refuse_batches(&mut self, code: i16) {
        let codes = format!("{code} ").repeat(5_000);
        self.tell(&format!("errors 0 {codes}"));
    }

    pub(super) fn handler(&self) -> String {
        broker::handler(&self.brokers)
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
