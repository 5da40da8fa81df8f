//! Brings the tables up to date.
//!
//! Not sqlx's migrator: its lock belongs to the session, and behind a pooler in transaction mode a
//! session is nobody's.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use tracing::info;

use super::sql;
use crate::postgres::{Limits, Tx};
use crate::store::StoreError;
use crate::store::migrations::{self, Migration, POSTGRES};

/// Names the advisory lock: `orgstrea` in ASCII.
const LOCK: i64 = 0x6f72_6773_7472_6561;

/// How long migrating may take in all, and one change of a large table.
pub(super) const BUDGET: Duration = Duration::from_secs(600);

/// A change takes the strongest lock of a table, and whoever comes while it waits for that waits behind it:
/// the workers of the previous release, for all that a long query has done. So it waits for a moment only, lets them
/// by, and asks again.
pub(super) const LIMITS: Limits = Limits {
    statement: BUDGET,
    lock: Duration::from_secs(2),
    pause: BUDGET,
};

/// What came of [`apply_next`].
pub(super) enum Attempt {
    /// This one ran.
    Applied(i64),
    /// None is due.
    NothingToDo,
    /// A table, or the right to migrate, stayed locked by somebody else: nothing has changed.
    Locked(StoreError),
}

/// When to ask again for what is locked, and when no more.
pub(super) struct Patience {
    began: Instant,
}

impl Patience {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// Waits a moment.
    ///
    /// # Errors
    ///
    /// What it was refused with, where it has waited long enough.
    pub(super) async fn pause(&mut self, error: StoreError) -> Result<(), StoreError> {
        if self.began.elapsed() >= BUDGET {
            return Err(error);
        }
        // As long as the wait, about: half of the time nobody waits behind us.
        let pause = LIMITS.lock.mul_f64(0.5 + fastrand::f64());
        info!(
            error = %error,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "what is to be migrated is locked by another session; it is asked for again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Versions and checksums that ran; empty where there is no such table.
async fn applied(conn: &mut PgConnection) -> Result<Vec<(i64, String)>, StoreError> {
    // The catalogue itself, because to_regclass() may answer from a cache of before we waited for the lock.
    let exists: bool = sql::query_scalar(
        "select exists (select from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = 'orgstream' and c.relname = 'migration')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        return Ok(Vec::new());
    }
    Ok(
        sql::query_as("select version, checksum from orgstream.migration order by version")
            .fetch_all(conn)
            .await?,
    )
}

/// What is due.
pub(super) async fn due(conn: &mut PgConnection) -> Result<Vec<&'static Migration>, StoreError> {
    migrations::due(POSTGRES, &applied(conn).await?)
}

/// Applies the first migration that is due, in its own transaction. The lock makes others wait, who then find it
/// applied.
pub(super) async fn apply_next(mut tx: Tx<'_>) -> Result<Attempt, StoreError> {
    let applied = match apply(tx.connection()).await {
        Ok(applied) => applied,
        Err(Failed::Locked(error)) => return Ok(Attempt::Locked(error)),
        Err(Failed::Other(error)) => return Err(error),
    };
    tx.commit().await?;
    Ok(applied.map_or(Attempt::NothingToDo, Attempt::Applied))
}

/// Why a change could not be made.
enum Failed {
    Locked(StoreError),
    Other(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Other(error)
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        // lock_not_available; deadlock_detected, where the server took our side of it away
        let locked = code.is_some_and(|code| matches!(code.as_ref(), "55P03" | "40P01"));
        match locked {
            true => Self::Locked(error.into()),
            false => Self::Other(error.into()),
        }
    }
}

async fn apply(conn: &mut PgConnection) -> Result<Option<i64>, Failed> {
    sql::query("select pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *conn)
        .await?;
    let Some(migration) = due(conn).await?.into_iter().next() else {
        return Ok(None);
    };
    begin_schema(conn).await?;
    sqlx::raw_sql(migration.sql).execute(&mut *conn).await?;
    sql::query("insert into orgstream.migration (version, name, checksum) values ($1, $2, $3)")
        .bind(migration.version)
        .bind(migration.name)
        .bind(migration.checksum())
        .execute(conn)
        .await?;
    Ok(Some(migration.version))
}

/// Creates the schema and the table of migrations, unless they are there: asking first spares a user who
/// may not create schemas an error where somebody else created it.
async fn begin_schema(conn: &mut PgConnection) -> Result<(), StoreError> {
    let exists: bool = sql::query_scalar(
        "select exists (select from pg_catalog.pg_namespace where nspname = 'orgstream')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        sqlx::raw_sql(
            "create schema orgstream; \
             comment on schema orgstream is 'What orgstream keeps: positions, parked events, holes.'",
        )
        .execute(&mut *conn)
        .await?;
    }
    sqlx::raw_sql(
        "create table if not exists orgstream.migration ( \
             version bigint primary key, \
             name text not null, \
             checksum text not null, \
             applied_at timestamptz not null default now() \
         ); \
         comment on table orgstream.migration is 'Changes of this schema that orgstream migrate has made.'",
    )
    .execute(conn)
    .await?;
    Ok(())
}
