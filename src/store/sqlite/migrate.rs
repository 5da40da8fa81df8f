//! Brings the tables up to date.

use sqlx::sqlite::SqliteConnection;

use crate::store::StoreError;
use crate::store::common::to_ms;
use crate::store::migrations::{self, Migration, SQLITE};

/// Versions and checksums that ran; empty where there is no such table.
async fn applied(conn: &mut SqliteConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let exists: bool = sqlx::query_scalar(
        "select exists (select 1 from sqlite_master where type = 'table' and name = 'migration')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        return Ok(Vec::new());
    }
    Ok(
        sqlx::query_as("select version, checksum from migration order by version")
            .fetch_all(conn)
            .await?,
    )
}

/// What is due.
pub(super) async fn due(
    conn: &mut SqliteConnection,
) -> Result<Vec<&'static Migration>, StoreError> {
    migrations::due(SQLITE, &applied(conn).await?)
}

/// Applies what is due, in the caller's one transaction, which lets no other process write meanwhile.
pub(super) async fn apply(conn: &mut SqliteConnection) -> Result<Vec<i64>, StoreError> {
    sqlx::raw_sql(
        "create table if not exists migration ( \
             version integer primary key, name text not null, checksum text not null, \
             applied_at integer not null \
         ) strict",
    )
    .execute(&mut *conn)
    .await?;
    let mut versions = Vec::new();
    for migration in due(conn).await? {
        sqlx::raw_sql(migration.sql).execute(&mut *conn).await?;
        sqlx::query(
            "insert into migration (version, name, checksum, applied_at) values ($1, $2, $3, $4)",
        )
        .bind(migration.version)
        .bind(migration.name)
        .bind(migration.checksum())
        .bind(to_ms(std::time::SystemTime::now()))
        .execute(&mut *conn)
        .await?;
        versions.push(migration.version);
    }
    Ok(versions)
}
