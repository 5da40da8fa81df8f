//! Brings the tables up to date.
//!
//! Not sqlx's migrator: its lock belongs to the session, and behind a pooler in transaction mode a
//! session is nobody's.

use sqlx::postgres::PgConnection;

use super::connections::Tx;
use super::sql;
use crate::store::StoreError;
use crate::store::migrations::{self, Migration, POSTGRES};

/// Names the advisory lock: `orgstrea` in ASCII.
const LOCK: i64 = 0x6f72_6773_7472_6561;

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

/// Applies the first migration that is due, in its own transaction; `None` where none is. The lock makes
/// others wait, who then find it applied.
pub(super) async fn apply_next(mut tx: Tx<'_>) -> Result<Option<i64>, StoreError> {
    let conn = tx.connection();
    sql::query("select pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *conn)
        .await?;
    let Some(migration) = due(conn).await?.into_iter().next() else {
        tx.commit().await?;
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
    tx.commit().await?;
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
