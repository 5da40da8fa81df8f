//! A Postgres cluster of our own, because it is restarted and frozen: not the one that other tests use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

/// How Postgres is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// Connections are ended, then everything is written: what an orderly failover does.
    Fast,
    /// No goodbye and recovery at the next start: what a crash does.
    Immediate,
}

/// A running cluster, in a folder of its own; gone when dropped.
pub(crate) struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    /// Runs a program as a user that Postgres accepts.
    prefix: Vec<String>,
    password: String,
    port: u16,
    server: Option<Child>,
    /// PgBouncer in transaction mode, with its port, where it is installed.
    pooler: Option<(Child, u16)>,
}

/// Long enough for a recovery on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Cluster {
    /// Makes and starts one. `None` where Postgres is not installed.
    pub(crate) async fn start() -> anyhow::Result<Option<Self>> {
        let Some(bin) = find_bin() else {
            return Ok(None);
        };
        // Not the environment's folder for temporary files: another user must be able to enter.
        let dir = PathBuf::from(format!(
            "/tmp/orgstream-chaos-{}",
            uuid::Uuid::new_v4().simple()
        ));
        fs::create_dir(&dir)?;
        let mut cluster = Self {
            prefix: prefix(&dir)?,
            bin,
            dir,
            password: uuid::Uuid::new_v4().simple().to_string(),
            port: 0,
            server: None,
            pooler: None,
        };
        cluster.initialise()?;
        for _ in 0..8 {
            // Below the ephemeral range, so that no connection of ours takes it during a restart.
            cluster.port = fastrand::u16(20_000..32_000);
            cluster.launch()?;
            if cluster.answers().await.is_ok() {
                cluster.start_pooler().await?;
                return Ok(Some(cluster));
            }
        }
        bail!("Postgres did not start: {}", cluster.log());
    }

    fn initialise(&self) -> anyhow::Result<()> {
        let file = self.dir.join("password");
        fs::write(&file, &self.password)?;
        let made = self
            .command("initdb")
            .args([
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "-A",
                "password",
            ])
            .args(["--no-sync", "--pwfile"])
            .arg(&file)
            .arg("-D")
            .arg(self.dir.join("data"))
            .output()?;
        ensure!(
            made.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        self.command_of(&self.bin.join(program))
    }

    fn command_of(&self, program: &Path) -> Command {
        let program = program.display().to_string();
        let mut words = self.prefix.iter().chain([&program]);
        let first = words.next().map_or("", String::as_str);
        let mut command = Command::new(first);
        command.args(words).current_dir(&self.dir);
        command
    }

    /// Starts the server on the same port and data as before.
    fn launch(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("server.log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.dir.join("data"));
        command.args(["-p", &self.port.to_string()]);
        let sockets = format!("unix_socket_directories={}", self.dir.display());
        for setting in [
            "listen_addresses=127.0.0.1",
            "max_connections=300",
            // Nothing here survives a power failure, but everything a crash of Postgres alone: a commit that
            // was answered has to be there after an immediate shutdown, so `synchronous_commit` stays on.
            "fsync=off",
            "full_page_writes=off",
            &sockets,
        ] {
            command.args(["-c", setting]);
        }
        let server = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start Postgres")?;
        self.server = Some(server);
        Ok(())
    }

    /// Starts PgBouncer before the server; nothing where it is not installed.
    async fn start_pooler(&mut self) -> anyhow::Result<()> {
        let found = [
            "/usr/sbin/pgbouncer",
            "/usr/local/sbin/pgbouncer",
            "/usr/bin/pgbouncer",
        ]
        .into_iter()
        .find(|path| Path::new(path).exists());
        let Some(program) = found else { return Ok(()) };
        for _ in 0..8 {
            let port = fastrand::u16(20_000..32_000);
            let (server, password, dir) = (self.port, &self.password, self.dir.display());
            let settings = format!(
                "[databases]\n* = host=127.0.0.1 port={server} user=postgres password={password}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = plain\nauth_file = {dir}/users\npool_mode = transaction\n\
                 default_pool_size = 8\nmax_client_conn = 200\nlogfile = {dir}/pgbouncer.log\n\
                 server_login_retry = 1\n"
            );
            fs::write(self.dir.join("pgbouncer.ini"), settings)?;
            fs::write(
                self.dir.join("users"),
                format!("\"postgres\" \"{password}\"\n"),
            )?;
            let mut pooler = self
                .command_of(Path::new(program))
                .arg("-q")
                .arg(self.dir.join("pgbouncer.ini"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                if pooler.try_wait()?.is_some() {
                    break;
                }
                if connected.is_ok() {
                    self.pooler = Some((pooler, port));
                    return Ok(());
                }
            }
            let _ = pooler.kill();
            let _ = pooler.wait();
        }
        bail!("PgBouncer did not start")
    }

    /// Waits until the server takes connections; an error where it ends instead.
    async fn answers(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(server) = &mut self.server
                && let Some(status) = server.try_wait()?
            {
                self.server = None;
                bail!("Postgres ended with {status}");
            }
            let options: PgConnectOptions = self.url("postgres").parse()?;
            let connected = tokio::time::timeout(Duration::from_secs(2), options.connect()).await;
            if let Ok(Ok(connection)) = connected {
                let _ = PgConnection::close(connection).await;
                return Ok(());
            }
            ensure!(began.elapsed() < START_LIMIT, "Postgres does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the server and starts it again.
    pub(crate) async fn restart(&mut self, how: Shutdown) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            signal(
                match how {
                    Shutdown::Fast => "INT",
                    Shutdown::Immediate => "QUIT",
                },
                &[server.id()],
            );
            let began = Instant::now();
            while server.try_wait()?.is_none() {
                ensure!(began.elapsed() < START_LIMIT, "Postgres does not end");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.launch()?;
        self.answers()
            .await
            .with_context(|| format!("after a restart: {}", self.log()))
    }

    /// Stops every process of the cluster where it stands, connections and all, for so long.
    pub(crate) async fn freeze(&self, length: Duration) {
        let Some(server) = &self.server else { return };
        let mut frozen = vec![server.id()];
        signal("STOP", &frozen);
        let children = children_of(server.id());
        signal("STOP", &children);
        frozen.extend(children);
        tokio::time::sleep(length).await;
        signal("CONT", &frozen);
    }

    /// Makes a fresh database and gives its name.
    pub(crate) async fn database(&self) -> anyhow::Result<String> {
        let name = format!("chaos_{}", uuid::Uuid::new_v4().simple());
        self.execute(format!("create database {name}")).await?;
        Ok(name)
    }

    /// Whether transactions of a database may write (`off`) or not (`on`), from now on and for everybody.
    pub(crate) async fn set_read_only(&self, name: &str, on: &str) -> anyhow::Result<()> {
        let alter = format!("alter database {name} set default_transaction_read_only = {on}");
        self.execute(alter).await?;
        self.execute(format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        ))
        .await
    }

    /// One statement of ours, in the maintenance database.
    async fn execute(&self, statement: String) -> anyhow::Result<()> {
        let options: PgConnectOptions = self.url("postgres").parse()?;
        let mut connection = options.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(())
    }

    /// Takes a database away, whoever is still connected.
    pub(crate) async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        self.execute(format!("drop database {name} with (force)"))
            .await
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where PgBouncer listens, or the server itself where there is none.
    pub(crate) fn pooled_address(&self) -> String {
        let port = self.pooler.as_ref().map_or(self.port, |(_, port)| *port);
        format!("127.0.0.1:{port}")
    }

    /// The URL of a database, reached directly.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_at(&self.address(), database)
    }

    /// The URL of a database, reached at another address.
    pub(crate) fn url_at(&self, address: &str, database: &str) -> String {
        format!("postgres://postgres:{}@{address}/{database}", self.password)
    }

    /// The end of the server's log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Leaves the folder, and the server, for a person to look at.
    pub(crate) fn keep(mut self) -> PathBuf {
        if let Some(server) = self.server.take() {
            println!(
                "Postgres goes on as process {} with {}; end it with `kill -INT {}`",
                server.id(),
                self.url("postgres"),
                server.id()
            );
        }
        let dir = std::mem::take(&mut self.dir);
        drop(self);
        dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((mut pooler, _)) = self.pooler.take() {
            let _ = pooler.kill();
            let _ = pooler.wait();
        }
        if let Some(mut server) = self.server.take() {
            let frozen = children_of(server.id());
            signal("CONT", &[server.id()]);
            signal("CONT", &frozen);
            signal("QUIT", &[server.id()]);
            let _ = server.wait();
        }
        if !self.dir.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Sends a signal to processes that we started.
pub(crate) fn signal(name: &str, processes: &[u32]) {
    if processes.is_empty() {
        return;
    }
    // One that has ended meanwhile is no matter.
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .args(processes.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status();
}

/// The processes that a process has started.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = entries.flatten().filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in brackets, may hold anything; state and parent follow it.
        let (_, after) = stat.rsplit_once(')')?;
        let of: u32 = after.split_whitespace().nth(1)?.parse().ok()?;
        (of == parent).then_some(id)
    });
    ids.collect()
}

/// Where `initdb` and `postgres` are: Debian and its like keep them out of PATH. The newest version wins.
fn find_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok();
    let mut found: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|bin| bin.join("initdb").exists())
    })
}

/// Postgres refuses to run as root: then it is another user that runs it, who owns the folder.
fn prefix(dir: &Path) -> anyhow::Result<Vec<String>> {
    let home = format!("HOME={}", dir.display());
    let env = ["env".to_owned(), home];
    if id(&["-u"])? != "0" {
        return Ok(env.to_vec());
    }
    let user = id(&["-u", "postgres"]).and(Ok("postgres"));
    let user = user.unwrap_or("nobody");
    let (uid, gid) = (id(&["-u", user])?, id(&["-g", user])?);
    let owned = Command::new("chown").arg(&uid).arg(dir).status()?;
    ensure!(owned.success(), "cannot give {} away", dir.display());
    let become_user = [
        "setpriv".to_owned(),
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        "--clear-groups".to_owned(),
    ];
    Ok(become_user.into_iter().chain(env).collect())
}

fn id(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("id").args(args).output()?;
    ensure!(output.status.success(), "id {args:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
