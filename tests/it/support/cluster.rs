//! A Postgres server of a test's own, to be restarted, frozen and replaced.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use super::eventually;
use super::server::free_port;

/// How a server is stopped: `fast` ends sessions in good order, `immediate` is a crash.
pub(crate) type Mode = &'static str;

/// A server on loopback, gone with its data when dropped.
pub(crate) struct Cluster {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
}

impl Cluster {
    /// Makes and starts one; `None`, with a line that says so, where there is no Postgres to test with.
    pub(crate) async fn start() -> Option<Self> {
        let cluster = Self::prepare(find_bin().await?);
        cluster.tool(
            "initdb",
            &[
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
        );
        cluster.up();
        Some(cluster)
    }

    /// A standby that follows this server.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::prepare(self.bin.clone());
        let port = self.port.to_string();
        standby.tool(
            "pg_basebackup",
            &[
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-R",
                "--no-sync",
                "-c",
                "fast",
            ],
        );
        standby.up();
        standby
    }

    fn prepare(bin: PathBuf) -> Self {
        // A socket's path must be short, and another user must be able to enter.
        let dir = TempDir::with_prefix_in("orgstream-cluster-", "/tmp").unwrap();
        if let Some(user) = server_user() {
            let owned = Command::new("chown")
                .arg(user)
                .arg(dir.path())
                .status()
                .unwrap();
            assert!(owned.success());
        }
        let port = free_port();
        Self { bin, dir, port }
    }

    /// Makes a folder that the server owns.
    pub(crate) fn folder(&self, path: &Path) {
        std::fs::create_dir(path).unwrap();
        if let Some(user) = server_user() {
            let owned = Command::new("chown").arg(user).arg(path).status().unwrap();
            assert!(owned.success());
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn up(&self) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off -c max_connections=50",
            self.port,
            self.dir.path().display()
        );
        let log = self.dir.path().join("log");
        let log = log.to_str().unwrap();
        self.tool(
            "pg_ctl",
            &["-w", "-t", "60", "-l", log, "-o", &options, "start"],
        );
    }

    pub(crate) fn down(&self, mode: Mode) {
        self.tool("pg_ctl", &["-w", "-t", "60", "-m", mode, "stop"]);
    }

    pub(crate) fn promote(&self) {
        self.tool("pg_ctl", &["-w", "-t", "60", "promote"]);
    }

    /// Every process of the server gets this signal.
    pub(crate) fn signal(&self, name: &str) {
        let pids = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let postmaster = pids.lines().next().unwrap().to_owned();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = std::fs::read_to_string(children).unwrap();
        // A child may be gone by now; the postmaster is not.
        let _ = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(&postmaster)
            .args(children.split_whitespace())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }

    /// Waits until a standby has all that this server wrote up to now.
    pub(crate) async fn caught_up(&self, standby: &Self) {
        let place = async |cluster: &Self, sql: &'static str| -> String {
            let mut connection = cluster.connection("postgres").await;
            sqlx::query_scalar(sql)
                .fetch_one(&mut connection)
                .await
                .unwrap()
        };
        let ours = place(self, "select pg_current_wal_lsn()::text").await;
        eventually("the standby", async || {
            let mut connection = standby.connection("postgres").await;
            let behind: bool = sqlx::query_scalar("select pg_last_wal_replay_lsn() < $1::pg_lsn")
                .bind(&ours)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            (!behind).then_some(())
        })
        .await;
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a database, for a user who is let in without a password.
    pub(crate) fn url(addr: &str, user: &str, database: &str) -> String {
        format!("postgres://{user}@{addr}/{database}?sslmode=disable")
    }

    /// Runs SQL past the daemon.
    pub(crate) async fn sql(&self, database: &str, sql: &'static str) {
        let mut connection = self.connection(database).await;
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    pub(crate) async fn connection(&self, database: &str) -> PgConnection {
        let options: PgConnectOptions = Self::url(&self.addr(), "postgres", database)
            .parse()
            .unwrap();
        options.connect().await.unwrap()
    }

    /// A program of the server's, on this data folder, as a user that the server takes.
    fn tool(&self, name: &str, args: &[&str]) {
        let program = self.bin.join(name);
        let mut command = match server_user() {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={user}"))
                    .arg(format!("--regid={user}"))
                    .arg("--clear-groups")
                    .arg(program);
                command
            }
            None => Command::new(program),
        };
        let output = self.dir.path().join(format!("{name}.out"));
        let out = std::fs::File::create(&output).unwrap();
        // Into a file: a server that inherits a pipe keeps it open.
        let status = command
            .arg("-D")
            .arg(self.data())
            .args(args)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{name} {args:?}: {}",
            std::fs::read_to_string(output).unwrap()
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            self.signal("CONT");
            let stop = std::panic::AssertUnwindSafe(|| self.down("immediate"));
            let _ = std::panic::catch_unwind(stop);
        }
    }
}

/// Where the server's programs are: the server that the other tests use knows.
async fn find_bin() -> Option<PathBuf> {
    let Ok(url) = std::env::var("ORGSTREAM_TEST_POSTGRES") else {
        assert!(
            std::env::var_os("ORGSTREAM_REQUIRE_POSTGRES").is_none(),
            "ORGSTREAM_TEST_POSTGRES is not set: run scripts/test"
        );
        println!("skipped: no Postgres (run scripts/test, which brings one)");
        return None;
    };
    let options: PgConnectOptions = url.parse().unwrap();
    let mut connection: PgConnection = options.connect().await.unwrap();
    let found: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    Path::new(&found)
        .join("initdb")
        .exists()
        .then(|| PathBuf::from(found))
}

/// Postgres refuses to run as root: the user to run it as instead.
fn server_user() -> Option<&'static str> {
    let id = |args: &[&str]| Command::new("id").args(args).output().unwrap();
    if id(&["-u"]).stdout != b"0\n" {
        return None;
    }
    let known = id(&["-u", "postgres"]).status.success();
    Some(if known { "postgres" } else { "nobody" })
}
