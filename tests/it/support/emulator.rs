//! The emulator as a process.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// The program under test: `ORGSTREAM_TEST_PROGRAM` where it is set, so that another build of it, one broken on
/// purpose for instance, meets the same tests.
pub(crate) fn program() -> OsString {
    std::env::var_os("ORGSTREAM_TEST_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_orgstream").into())
}

/// An org in memory, in a process of its own; killed when dropped.
pub(crate) struct Emulator {
    child: Child,
    http: reqwest::Client,
    admin: String,
    pub(crate) info: Value,
}

impl Emulator {
    /// With defaults.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments of `orgstream emulator`.
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["emulator", "--json"])
            .args(args)
            .env_clear()
            .env("ORGSTREAM_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let info = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line)
                .unwrap_or_else(|error| panic!("emulator said {line:?}: {error}"))
        })
        .await
        .unwrap();
        Self {
            child,
            http: reqwest::Client::new(),
            admin: info["admin_url"].as_str().unwrap().to_owned(),
            info,
        }
    }

    /// A text of what the emulator printed at its start.
    pub(crate) fn text(&self, key: &str) -> String {
        self.info[key]
            .as_str()
            .unwrap_or_else(|| panic!("the emulator does not say {key}: {}", self.info))
            .to_owned()
    }

    /// The `[salesforce]` section of a configuration that signs in here, with pauses made short.
    pub(crate) fn salesforce(&self) -> String {
        format!(
            r#"
[salesforce]
login_url = "{}"
pubsub_endpoint = "{}"
auth = "client_credentials"
client_id = "{}"
client_secret = "{}"
reconnect = {{ initial = "50ms", max = "500ms" }}
blocked_retry = {{ initial = "200ms", max = "1s" }}
allocation_retry = {{ initial = "200ms", max = "1s" }}
"#,
            self.text("login_url"),
            self.text("pubsub_endpoint"),
            self.text("client_id"),
            self.text("client_secret"),
        )
    }

    /// Posts to the admin API.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self
            .http
            .post(format!("{}{path}", self.admin))
            .json(body)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Publishes events, JSON with field names, and gives the admin API's answer.
    pub(crate) async fn publish(&self, topic: &str, events: &[Value]) -> Value {
        self.post("/publish", &json!({"topic": topic, "events": events}))
            .await
    }

    /// Switches a fault on.
    pub(crate) async fn fault(&self, fault: Value) {
        self.post("/faults", &fault).await;
    }

    /// Switches all faults off.
    pub(crate) async fn clear_faults(&self) {
        let answer = self
            .http
            .delete(format!("{}/faults", self.admin))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success());
    }

    /// Changes settings.
    pub(crate) async fn settings(&self, settings: Value) {
        self.post("/settings", &settings).await;
    }

    /// Counts, streams, credits.
    pub(crate) async fn state(&self) -> Value {
        let answer = self
            .http
            .get(format!("{}/state", self.admin))
            .send()
            .await
            .unwrap();
        answer.json().await.unwrap()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
