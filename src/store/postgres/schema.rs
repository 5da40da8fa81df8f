//! Avro schemas.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, sql};
use crate::event::SchemaId;
use crate::store::common::plain;
use crate::store::{Schemas, StoreError};

#[async_trait]
impl Schemas for PostgresStore {
    async fn load_schema(&self, id: &SchemaId) -> Result<Option<Arc<str>>, StoreError> {
        transaction!(self, |conn| load(conn, id))
    }

    async fn save_schema(&self, id: &SchemaId, json: &str) -> Result<(), StoreError> {
        transaction!(self, |conn| save(conn, id, json))
    }
}

/// A schema's JSON text, where it is known.
pub(super) async fn load(
    conn: &mut PgConnection,
    id: &SchemaId,
) -> Result<Option<Arc<str>>, StoreError> {
    let json: Option<String> = sql::query_scalar("select json from orgstream.schema where id = $1")
        .bind(plain(id.as_str()))
        .fetch_optional(conn)
        .await?;
    Ok(json.map(Arc::from))
}

/// Keeps a schema's JSON text.
pub(super) async fn save(
    conn: &mut PgConnection,
    id: &SchemaId,
    json: &str,
) -> Result<(), StoreError> {
    sql::query(
        "insert into orgstream.schema (id, json) values ($1, $2) \
         on conflict (id) do update set json = excluded.json, fetched_at = now() \
         where schema.json <> excluded.json",
    )
    .bind(plain(id.as_str()))
    .bind(plain(json))
    .execute(conn)
    .await?;
    Ok(())
}
