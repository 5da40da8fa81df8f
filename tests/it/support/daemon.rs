//! The daemon as a process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, eventually, postgres, within};

/// Where a daemon keeps its place.
pub(crate) struct Store {
    pub(crate) url: String,
    _dir: Option<TempDir>,
}

impl Store {
    /// A fresh SQLite file.
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            url: format!("sqlite://{}", dir.path().join("orgstream.db").display()),
            _dir: Some(dir),
        }
    }

    /// What is there already.
    pub(crate) fn at(url: String) -> Self {
        Self { url, _dir: None }
    }

    /// A fresh Postgres database; `None` where there is no Postgres to test with.
    pub(crate) async fn postgres() -> Option<Self> {
        Some(Self {
            url: postgres::database().await?,
            _dir: None,
        })
    }

    /// A fresh Postgres database as it is, and through a pooler in transaction mode; `None` where there is
    /// no PgBouncer.
    pub(crate) async fn pgbouncer() -> Option<(Self, Self)> {
        let (direct, pooled) = postgres::pooled_database().await?;
        let at = |url| Self { url, _dir: None };
        Some((at(direct), at(pooled)))
    }
}

/// Lines of a stream, as they come.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                lines.0.lock().unwrap().push(line);
            }
        })
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// `orgstream` as a process; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    out: Lines,
    err: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// `orgstream run` with this configuration text.
    pub(crate) fn run(config: &str) -> Self {
        Self::command(&["run"], config, &BTreeMap::new())
    }

    /// `orgstream run` with further variables.
    pub(crate) fn run_with(config: &str, env: &[(&'static str, &str)]) -> Self {
        let env = env.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        Self::command(&["run"], config, &env)
    }

    /// Any command, with this configuration text (none where it is empty) and these variables alone.
    pub(crate) fn command(args: &[&str], config: &str, env: &BTreeMap<&str, String>) -> Self {
        let daemon = super::emulator::program();
        Self::program(Path::new(&daemon), args, config, env)
    }

    /// As [`Daemon::command`], of another program than `orgstream` that is one too.
    pub(crate) fn program(
        program: &Path,
        args: &[&str],
        config: &str,
        env: &BTreeMap<&str, String>,
    ) -> Self {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("ORGSTREAM_LOG", "info")
            .env("ORGSTREAM_LOG_FORMAT", "logfmt")
            .envs(env)
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !config.is_empty() {
            command.env("ORGSTREAM_CONFIG", config);
        }
        let mut child = command.spawn().unwrap();
        let (out, err) = (Lines::default(), Lines::default());
        let readers = vec![
            out.follow(child.stdout.take().unwrap()),
            err.follow(child.stderr.take().unwrap()),
        ];
        Self {
            child,
            out,
            err,
            readers,
        }
    }

    /// Runs a command to its end; gives its exit code, standard output and standard error.
    pub(crate) async fn output(
        args: &[&str],
        config: &str,
        env: &BTreeMap<&str, String>,
    ) -> (i32, String, String) {
        let mut daemon = Self::command(args, config, env);
        let status = daemon.ended().await;
        (
            status.code().unwrap_or(-1),
            daemon.out.all().join("\n"),
            daemon.err.all().join("\n"),
        )
    }

    /// Events that the `log` handler has written, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.out
            .all()
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lines on standard error.
    pub(crate) fn log(&self) -> Vec<String> {
        self.err.all()
    }

    /// Waits until the `log` handler has written so many events.
    pub(crate) async fn handled(&mut self, count: usize) -> Vec<Value> {
        let what = format!("{count} events");
        let began = std::time::Instant::now();
        loop {
            let events = self.events();
            if events.len() >= count {
                return events;
            }
            let gone = self.child.try_wait().unwrap();
            assert!(
                began.elapsed() < DEADLINE && gone.is_none(),
                "waited for {what}, have {} (process: {gone:?}); log:\n{}",
                events.len(),
                self.log().join("\n")
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Waits for a log line that holds all of these texts.
    pub(crate) async fn logged(&self, texts: &[&str]) -> String {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let found = self
                .log()
                .into_iter()
                .find(|line| texts.iter().all(|text| line.contains(text)));
            if let Some(line) = found {
                return line;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "never logged {texts:?}:\n{}",
                self.log().join("\n")
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL, and the end of it.
    pub(crate) fn kill(mut self) -> Vec<Value> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for reader in std::mem::take(&mut self.readers) {
            reader.join().unwrap();
        }
        self.events()
    }

    /// Sends a signal by name, for example `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let status = eventually("the process to end", async || child.try_wait().unwrap()).await;
        for reader in std::mem::take(&mut self.readers) {
            reader.join().unwrap();
        }
        status
    }

    /// Waits for the end, with a limit of one's own.
    pub(crate) async fn ended_within(&mut self, limit: std::time::Duration) -> ExitStatus {
        let child = &mut self.child;
        within(limit, "the process to end", async || {
            child.try_wait().unwrap()
        })
        .await
    }

    /// Asks it to stop and waits for the end; gives the events written and the exit code.
    pub(crate) async fn stop(mut self) -> (Vec<Value>, i32) {
        self.signal("TERM");
        let status = self.ended().await;
        (self.events(), status.code().unwrap_or(-1))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let last = &log[log.len().saturating_sub(60)..];
            println!("the daemon's last words:\n{}", last.join("\n"));
        }
    }
}

/// The project's folder.
pub(crate) fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
