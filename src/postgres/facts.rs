//! What is between this process and a database: encryption, a pooler, limits. For a person who asks
//! (`orgstream check`); nothing in the daemon depends on it.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::time::timeout;

use super::{ConnectError, Connections, is_local, is_socket};

/// How often a pooler is given the chance to show itself.
const TRIES: u32 = 3;

/// One row, all of which any user may read. `datid` is null for processes of the server's own.
const ASK: &str = "select \
    current_setting('server_version') as version, \
    current_setting('max_connections')::bigint as most, \
    coalesce(nullif(current_setting('superuser_reserved_connections', true), ''), '0')::bigint \
        + coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::bigint as reserved, \
    (select r.rolconnlimit::bigint from pg_catalog.pg_roles r where r.rolname = current_user) as of_role, \
    (select d.datconnlimit::bigint from pg_catalog.pg_database d where d.datname = current_database()) as of_database, \
    (select count(*) from pg_catalog.pg_stat_activity a \
        where a.datid is not null and a.application_name <> 'orgstream') as others, \
    (select s.ssl from pg_catalog.pg_stat_ssl s where s.pid = pg_catalog.pg_backend_pid()) as ssl, \
    (select s.version from pg_catalog.pg_stat_ssl s where s.pid = pg_catalog.pg_backend_pid()) as tls_version";

/// How what is sent to the database is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// A socket of this machine: nothing is sent over a network.
    Socket,
    /// Not at all.
    None {
        /// To this machine.
        local: bool,
    },
    /// TLS.
    Tls {
        /// The certificate was compared with a CA.
        verified: bool,
        /// `TLSv1.3`, where the server tells of this connection and not of a pooler's.
        version: Option<String>,
    },
    /// It was tried, and would go on without; a pooler hides what came of it.
    Unknown,
}

/// What there is to know of a database without changing anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The server's version.
    pub(crate) version: String,
    /// How the connection is protected.
    pub(crate) encryption: Encryption,
    /// A pooler gives one server process to several connections in turn: transaction mode.
    pub(crate) pooled: bool,
    /// How many connections this user may have to this database, with what says so.
    pub(crate) limit: (u64, &'static str),
    /// How many connections others have to the server; not ours, by their `application_name`.
    pub(crate) others: u64,
}

/// Looks at the database, within about `patience`. Opens two connections, and leaves nothing behind.
pub(crate) async fn facts(url: &str, patience: Duration) -> Result<Facts, ConnectError> {
    let home = Connections::new(url, 2, patience).map_err(|error| ConnectError {
        place: "store.url".to_owned(),
        error,
    })?;
    match timeout(patience, look(&home.options)).await {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(error)) => Err(home.not_opened(error)),
        Err(_) => Err(home.failed(sqlx::Error::PoolTimedOut)),
    }
}

async fn look(options: &PgConnectOptions) -> Result<Facts, sqlx::Error> {
    let mut first = PgConnection::connect_with(options).await?;
    let mut second = PgConnection::connect_with(options).await?;
    let pooled = is_pooled(&mut first, &mut second).await?;
    let row = one_row(&mut first, ASK).await?;
    let server_tls = (
        row.try_get::<Option<bool>, _>("ssl")?.unwrap_or(false),
        row.try_get::<Option<String>, _>("tls_version")?,
    );
    let facts = Facts {
        version: row.try_get("version")?,
        encryption: encryption(options, pooled, server_tls),
        pooled,
        limit: limit(&row)?,
        others: count(row.try_get("others")?),
    };
    super::farewell(first).await;
    super::farewell(second).await;
    Ok(facts)
}

/// Whether two connections share a server process, or one has several: without a pooler, and with one in session
/// mode, neither happens. Leaves no setting behind, which the next user of that process would have.
async fn is_pooled(
    first: &mut PgConnection,
    second: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    for _ in 0..TRIES {
        let before = process(first).await?;
        // What the first has just left is what a pooler gives next, and keeps for as long as the transaction is open.
        sqlx::raw_sql("begin").execute(&mut *second).await?;
        let other = process(second).await?;
        let after = match other == before {
            true => None,
            false => Some(process(first).await?),
        };
        sqlx::raw_sql("rollback").execute(&mut *second).await?;
        if after.is_none_or(|after| after != before) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = one_row(connection, "select pg_catalog.pg_backend_pid() as pid").await?;
    row.try_get("pid")
}

/// In one message, so that a pooler cannot come between its parts.
async fn one_row(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow, sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
}

fn encryption(
    options: &PgConnectOptions,
    pooled: bool,
    (server_says, version): (bool, Option<String>),
) -> Encryption {
    let local = is_local(options);
    let version = version.filter(|_| !pooled);
    let tls = |verified| Encryption::Tls { verified, version };
    match options.get_ssl_mode() {
        _ if is_socket(options) => Encryption::Socket,
        PgSslMode::VerifyCa | PgSslMode::VerifyFull => tls(true),
        PgSslMode::Require => tls(false),
        PgSslMode::Disable => Encryption::None { local },
        PgSslMode::Prefer | PgSslMode::Allow if pooled => Encryption::Unknown,
        PgSslMode::Prefer | PgSslMode::Allow if server_says => tls(false),
        PgSslMode::Prefer | PgSslMode::Allow => Encryption::None { local },
    }
}

/// The narrowest of the limits; -1 is none.
fn limit(row: &PgRow) -> Result<(u64, &'static str), sqlx::Error> {
    let number = |column| row.try_get::<Option<i64>, _>(column);
    let server = number("most")?.unwrap_or(0) - number("reserved")?.unwrap_or(0);
    let limits = [
        (Some(server), "the server"),
        (number("of_role")?, "the user's limit"),
        (number("of_database")?, "the database's limit"),
    ];
    let set = limits
        .into_iter()
        .filter_map(|(limit, of)| Some((limit.filter(|limit| *limit >= 0)?, of)));
    let (limit, of) = set
        .min_by_key(|(limit, _)| *limit)
        .unwrap_or((0, "the server"));
    Ok((count(limit), of))
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
