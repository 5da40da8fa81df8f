//! Connections to Postgres, and the transactions that everything runs in: those of the store, and of handlers
//! that write to a database of their own.
//!
//! Not sqlx's pool: that one retries a refused connection until its deadline and then does not say why,
//! and takes a connection back whose call was given up. Here a failure to connect is told at once, and a
//! connection whose transaction did not commit is closed, whatever state it was left in.

mod facts;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

pub(crate) use facts::{Encryption, Facts, facts};

/// How long a connection that rested may take to show that it lives.
const PING_LIMIT: Duration = Duration::from_secs(3);

/// An older connection is not used again, so that a change of address or password behind the URL is
/// noticed some time.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// How often a server looks whether whoever asked is still there while it works for them: a statement of a
/// process that was killed ends then, and with it the locks that keep the next owner out. Without that it runs to
/// its end, because a server notices nothing before it answers.
const LOOK_FOR_CLIENT_MS: u32 = 2_000;

/// Makes the commit of a transaction durable where it would not be; its row, if there is one, nobody reads.
const DURABLE: &str = "select pg_catalog.set_config('synchronous_commit', 'on', true) \
                       where pg_catalog.current_setting('synchronous_commit') = 'off'";

/// What the server itself ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A statement that takes longer.
    pub(crate) statement: Duration,
    /// A wait for a lock that takes longer.
    pub(crate) lock: Duration,
    /// A pause between two statements that takes longer.
    pub(crate) pause: Duration,
}

/// A connection at rest.
struct Idle {
    connection: PgConnection,
    opened: Instant,
}

/// No connection, and to where not. Does not show the URL, which holds the password.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {error}")]
pub(crate) struct ConnectError {
    /// Host and port, or the socket.
    pub(crate) place: String,
    /// What is wrong.
    pub(crate) error: sqlx::Error,
}

/// At most so many connections to one database.
pub(crate) struct Connections {
    options: PgConnectOptions,
    /// What the URL names for TLS: the parameter, and the file.
    files: Vec<(&'static str, PathBuf)>,
    permits: Semaphore,
    max: usize,
    idle: Mutex<Vec<Idle>>,
    /// No statement is given longer.
    longest_statement: Duration,
    /// The server can look for its clients; known from the first connection on.
    looks_for_client: OnceLock<bool>,
}

impl Connections {
    /// Reads the URL; connects to nothing yet. No statement is given longer than `longest_statement`.
    pub(crate) fn new(
        url: &str,
        max_connections: u32,
        longest_statement: Duration,
    ) -> Result<Self, sqlx::Error> {
        let max = usize::try_from(max_connections).unwrap_or(usize::MAX);
        let max = max.clamp(1, 1_000);
        Ok(Self {
            options: connect_options(url)?,
            files: files(url),
            permits: Semaphore::new(max),
            max,
            idle: Mutex::new(Vec::new()),
            longest_statement,
            looks_for_client: OnceLock::new(),
        })
    }

    /// Begins a transaction whose every statement, lock wait and pause the server itself ends after
    /// `limit`: what this process gave up, or died in, does not hold locks for long.
    pub(crate) async fn begin(&self, limit: Duration) -> Result<Tx<'_>, ConnectError> {
        let statement = limit.min(self.longest_statement);
        self.begin_within(Limits {
            statement,
            lock: statement / 2,
            pause: limit,
        })
        .await
    }

    /// Begins a transaction under these limits.
    pub(crate) async fn begin_within(&self, limits: Limits) -> Result<Tx<'_>, ConnectError> {
        let mut lent = self.seat().await?.connect().await?;
        // Numbers of ours only.
        let begin = AssertSqlSafe(lent.begin_statement(limits));
        let begun = sqlx::raw_sql(begin).execute(lent.connection()).await;
        begun.map_err(|error| self.failed(error))?;
        Ok(Tx(lent))
    }

    /// Connects, and finds out once what the server can do.
    async fn open(&self) -> Result<Idle, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        if self.looks_for_client.get().is_none() {
            let looks = looks_for_client(&mut connection).await?;
            let _ = self.looks_for_client.set(looks);
        }
        Ok(Idle {
            connection,
            opened: Instant::now(),
        })
    }

    /// Waits for the right to use one connection, however long all are in use.
    pub(crate) async fn seat(&self) -> Result<Seat<'_>, ConnectError> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| self.failed(sqlx::Error::PoolClosed))?;
        Ok(Seat { home: self, permit })
    }

    /// A connection that rested and still lives.
    async fn rested(&self) -> Option<Idle> {
        loop {
            let mut candidate = self.idle().pop()?;
            if candidate.opened.elapsed() > MAX_AGE {
                farewell(candidate.connection).await;
            } else if let Ok(Ok(())) = timeout(PING_LIMIT, candidate.connection.ping()).await {
                return Some(candidate);
            }
        }
    }

    /// How many rest, how many are with somebody or being opened, and how many there may be.
    pub(crate) fn in_use(&self) -> (usize, usize, usize) {
        let free = self.permits.available_permits();
        (self.idle().len(), self.max.saturating_sub(free), self.max)
    }

    /// One was opened once.
    pub(crate) fn was_used(&self) -> bool {
        self.looks_for_client.get().is_some()
    }

    /// Host and port, or the socket: what may be told of the URL.
    pub(crate) fn place(&self) -> String {
        match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }

    fn failed(&self, error: sqlx::Error) -> ConnectError {
        let place = self.place();
        ConnectError { place, error }
    }

    /// A file that cannot be read is told as that: of the address it would say nothing.
    fn not_opened(&self, error: sqlx::Error) -> ConnectError {
        let about_file = matches!(&error, sqlx::Error::Io(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied));
        let unreadable = || {
            self.files.iter().find_map(|(key, file)| {
                let why = File::open(file).err()?;
                let file = file.display();
                Some(format!(
                    "{file}, which `{key}` names, cannot be read: {why}"
                ))
            })
        };
        match about_file.then(unreadable).flatten() {
            // The kind of what goes wrong with certificates.
            Some(why) => self.failed(io::Error::new(ErrorKind::InvalidData, why).into()),
            None => self.failed(error),
        }
    }

    /// Closes connections; later calls fail.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let rested = std::mem::take(&mut *self.idle());
        for idle in rested {
            farewell(idle.connection).await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes a connection at rest; a server that does not take the message will notice the closed socket.
async fn farewell(connection: PgConnection) {
    let _ = timeout(PING_LIMIT, connection.close()).await;
}

/// Whether the server knows how to look for its clients: Postgres 14 and later do, on most systems. Not a startup
/// parameter, which a pooler would refuse, and not asked by version, which a pooler may make up.
async fn looks_for_client(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let attempt = format!(
        "begin; set local client_connection_check_interval = {LOOK_FOR_CLIENT_MS}; rollback"
    );
    let error = match sqlx::raw_sql(AssertSqlSafe(attempt))
        .execute(&mut *connection)
        .await
    {
        Ok(_) => return Ok(true),
        Err(error) => error,
    };
    // Unknown to this version, or not to be had on this system.
    let refused = error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| code == "42704" || code == "22023");
    if !refused {
        return Err(error);
    }
    sqlx::raw_sql("rollback").execute(connection).await?;
    Ok(false)
}

/// The right to use one connection.
pub(crate) struct Seat<'a> {
    home: &'a Connections,
    permit: SemaphorePermit<'a>,
}

impl<'a> Seat<'a> {
    /// Where the connection is to lead.
    pub(crate) fn place(&self) -> String {
        self.home.place()
    }

    /// Takes a connection that rested, or makes one.
    pub(crate) async fn connect(self) -> Result<Lent<'a>, ConnectError> {
        let home = self.home;
        let idle = match home.rested().await {
            Some(idle) => idle,
            None => home.open().await.map_err(|error| home.not_opened(error))?,
        };
        Ok(Lent {
            idle,
            home,
            _permit: self.permit,
        })
    }
}

/// A connection in use. Dropped without being given back it is closed, and the server rolls back what was
/// open.
pub(crate) struct Lent<'a> {
    idle: Idle,
    home: &'a Connections,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    /// For the next statement.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.idle.connection
    }

    /// No statement is to be given longer.
    pub(crate) fn longest_statement(&self) -> Duration {
        self.home.longest_statement
    }

    /// Begins a transaction under these limits. One round trip, and valid behind PgBouncer, because `set local`
    /// ends with the transaction. The words of triggers and functions (`raise notice`) may hold what a row holds, and
    /// would be logged: they are not asked for. A commit is waited for until it is on the disk, even where the database
    /// or the user has `synchronous_commit = off`: what was told to be stored has to outlive a crash of the server. Other
    /// values, which say how far standbys are waited for, stay.
    pub(crate) fn begin_statement(&self, limits: Limits) -> String {
        // Zero would switch a limit off.
        let ms = |limit: Duration| limit.as_millis().clamp(1, 86_400_000);
        let mut begin = format!(
            "begin isolation level read committed; set local statement_timeout = {}; set local lock_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}; set local client_min_messages = error; {DURABLE}",
            ms(limits.statement),
            ms(limits.lock),
            ms(limits.pause)
        );
        if self.home.looks_for_client.get() == Some(&true) {
            begin.push_str(&format!(
                "; set local client_connection_check_interval = {LOOK_FOR_CLIENT_MS}"
            ));
        }
        begin
    }

    /// No transaction is open on it: it rests until the next call.
    pub(crate) fn give_back(self) {
        if !self.home.permits.is_closed() {
            self.home.idle().push(self.idle);
        }
    }
}

/// A transaction. Dropped without a commit, its connection is closed, and the server rolls back.
pub(crate) struct Tx<'a>(Lent<'a>);

impl Tx<'_> {
    /// For the next statement.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.0.connection()
    }

    /// Commits; the connection rests until the next call.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("commit").execute(self.connection()).await?;
        self.0.give_back();
        Ok(())
    }
}

/// Adds to the URL what it leaves open and what a pooler in transaction mode needs.
fn connect_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(url)?
        // There is nothing to keep: see `super::sql`.
        .statement_cache_capacity(0)
        // PgBouncer refuses this startup parameter unless told otherwise, and no float is read here.
        .extra_float_digits(None);
    if options.get_application_name().is_none() {
        options = options.application_name("orgstream");
    }
    if parameter(url, SSLMODE).is_none() && std::env::var_os("PGSSLMODE").is_none() {
        if parameter(url, SSLROOTCERT).is_some() && !is_socket(&options) {
            // Otherwise the file would not even be opened, and whoever names a CA wants it to be looked at.
            options = options.ssl_mode(PgSslMode::VerifyCa);
        } else if !is_local(&options) {
            // The default would fall back to plain text. This one encrypts without verifying, because
            // hosted Postgres presents certificates that nobody signs; `verify-full` in the URL verifies.
            options = options.ssl_mode(PgSslMode::Require);
        }
    }
    Ok(options)
}

// A parameter's names, as sqlx knows them.
const SSLMODE: &[&str] = &["sslmode", "ssl-mode"];
const SSLROOTCERT: &[&str] = &["sslrootcert", "ssl-root-cert", "ssl-ca"];
const SSLCERT: &[&str] = &["sslcert", "ssl-cert"];
const SSLKEY: &[&str] = &["sslkey", "ssl-key"];

/// The last value of a parameter of the URL.
fn parameter(url: &str, names: &[&str]) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| names.contains(&&**name))
        .last()
        .map(|(_, value)| value.into_owned())
}

/// The files that the URL names. What is written out in place of a file is none.
fn files(url: &str) -> Vec<(&'static str, PathBuf)> {
    let named = [
        ("sslrootcert", SSLROOTCERT),
        ("sslcert", SSLCERT),
        ("sslkey", SSLKEY),
    ];
    let file = |value: &String| !value.trim_start().starts_with("-----BEGIN");
    named
        .into_iter()
        .filter_map(|(key, names)| Some((key, parameter(url, names).filter(file)?.into())))
        .collect()
}

/// True for a socket, where there is no TLS.
fn is_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// True for a socket or an address of this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    is_socket(options)
        || host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encrypts(url: &str) -> bool {
        matches!(
            connect_options(url).unwrap().get_ssl_mode(),
            PgSslMode::Require
        )
    }

    #[test]
    fn a_remote_database_is_never_spoken_to_in_plain_text_unless_the_url_says_so() {
        for url in [
            "postgres://u:p@ec2-1.compute.amazonaws.com:5432/d",
            "postgres://u:p@db/d?application_name=x",
            "postgres://u:p@10.0.0.1/d?sslmode=require",
        ] {
            assert!(encrypts(url), "{url}");
        }
        for url in [
            "postgres://u:p@db/d?sslmode=disable",
            "postgres://u:p@localhost/d",
            "postgres://u:p@127.0.0.1:5433/d",
            "postgres://u:p@[::1]/d",
            "postgres:///d?host=/var/run/postgresql",
            "postgres://%2Fvar%2Frun%2Fpostgresql/d",
        ] {
            assert!(!encrypts(url), "{url}");
        }
    }

    #[test]
    fn a_ca_that_is_named_is_looked_at_unless_the_url_says_otherwise() {
        let verifies = |url: &str| {
            let mode = connect_options(url).unwrap().get_ssl_mode();
            matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
        };
        for url in [
            "postgres://u:p@db/d?sslrootcert=/ca.pem",
            "postgres://u:p@db/d?application_name=x&ssl-root-cert=ca.pem",
            "postgres://u:p@localhost/d?sslrootcert=ca.pem",
            "postgres://u:p@db/d?sslrootcert=ca.pem&sslmode=verify-full",
        ] {
            assert!(verifies(url), "{url}");
        }
        for url in [
            "postgres://u:p@db/d?sslrootcert=ca.pem&sslmode=require",
            "postgres://u:p@db/d?sslcert=c.pem&sslkey=k.pem",
            "postgres:///d?host=/var/run/postgresql&sslrootcert=ca.pem",
        ] {
            assert!(!verifies(url), "{url}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named_and_not_the_address() {
        let url = "postgres://u:p@db/d?sslrootcert=/not%20there/ca.pem&sslkey=-----BEGIN";
        let connections = Connections::new(url, 1, PING_LIMIT).unwrap();
        let not_found = || sqlx::Error::Io(ErrorKind::NotFound.into());
        let error = connections.not_opened(not_found()).to_string();
        assert!(
            error.contains("/not there/ca.pem, which `sslrootcert` names"),
            "{error}"
        );
        // A socket that is not there, for example.
        let connections = Connections::new("postgres://u:p@db/d", 1, PING_LIMIT).unwrap();
        let error = connections.not_opened(not_found()).error;
        assert!(matches!(&error, sqlx::Error::Io(error) if error.kind() == ErrorKind::NotFound));
    }

    #[test]
    fn a_url_that_cannot_be_read_is_a_configuration_error_without_its_password() {
        for url in [
            "postgres://u:hunter2@host:port/d",
            "postgres://u:hunter2@host/d?sslmode=maybe",
        ] {
            let error = connect_options(url).err().unwrap();
            assert!(matches!(error, sqlx::Error::Configuration(_)), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
