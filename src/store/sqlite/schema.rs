//! Avro schemas.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::{READ, SqliteStore, WRITE};
use crate::event::SchemaId;
use crate::store::common::to_ms;
use crate::store::{Schemas, StoreError};

#[async_trait]
impl Schemas for SqliteStore {
    async fn load_schema(&self, id: &SchemaId) -> Result<Option<Arc<str>>, StoreError> {
        transaction!(self, READ, |conn| load(conn, id))
    }

    async fn save_schema(&self, id: &SchemaId, json: &str) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| save(conn, id, json))
    }
}

/// A schema's JSON text, where it is known.
pub(super) async fn load(
    conn: &mut SqliteConnection,
    id: &SchemaId,
) -> Result<Option<Arc<str>>, StoreError> {
    let json: Option<String> = sqlx::query_scalar("select json from schema where id = $1")
        .bind(id.as_str())
        .fetch_optional(conn)
        .await?;
    Ok(json.map(Arc::from))
}

/// Keeps a schema's JSON text.
pub(super) async fn save(
    conn: &mut SqliteConnection,
    id: &SchemaId,
    json: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into schema (id, json, fetched_at) values ($1, $2, $3) \
         on conflict (id) do update set json = excluded.json, fetched_at = excluded.fetched_at \
         where schema.json <> excluded.json",
    )
    .bind(id.as_str())
    .bind(json)
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(())
}
