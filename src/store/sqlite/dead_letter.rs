//! Parked events.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::lease::hold;
use super::{READ, SqliteStore, WRITE, from_json, to_json};
use crate::event::{EventIdentity, SchemaId};
use crate::store::common::{from_ms, plain, replay_id, to_ms};
use crate::store::{
    DeadLetter, DeadLetterFilter, DeadLetters, Lease, StoreError, StoredDeadLetter,
};

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError> {
        transaction!(self, WRITE, |conn| park(conn, lease, letter))
    }

    async fn park_all(&self, lease: &Lease, letters: &[DeadLetter]) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| park_all(conn, lease, letters))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError> {
        transaction!(self, READ, |conn| list(conn, filter))
    }

    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError> {
        transaction!(self, READ, |conn| find(conn, id))
    }
}

/// Parks an event. The same one again changes nothing while it is open; one that a person had resolved
/// failed anew, and is open again.
pub(super) async fn park(
    conn: &mut SqliteConnection,
    lease: &Lease,
    letter: &DeadLetter,
) -> Result<i64, StoreError> {
    hold(conn, lease).await?;
    let parked: Option<i64> = sqlx::query_scalar(
        "insert into dead_letter as d \
             (org_id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
              replay_id, schema_id, payload, record_ids, record_name, received_at, parked_at, \
              unit) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                 $15, $16, $17) \
         on conflict (org_id, subscription, coalesce(handler, ''), identity) do update set \
             state = 'open', resolved_at = null, parked_at = excluded.parked_at, reason = excluded.reason, \
             error = excluded.error, attempts = excluded.attempts, unit = excluded.unit \
         where d.state <> 'open' \
         returning id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.key.topic.as_str())
    .bind(&letter.handler)
    .bind(letter.identity.as_str())
    .bind(plain(&letter.reason))
    .bind(plain(&letter.error))
    .bind(i32::try_from(letter.attempts).unwrap_or(i32::MAX))
    .bind(plain(&letter.event_uuid))
    .bind(letter.replay_id.as_ref().map(|id| id.as_bytes()))
    .bind(plain(letter.schema_id.as_str()))
    .bind(letter.payload.as_ref())
    .bind(to_json(&letter.record_ids))
    .bind(letter.record_name.as_deref().map(plain))
    .bind(to_ms(letter.received_at))
    .bind(to_ms(SystemTime::now()))
    .bind(letter.unit.as_deref().map(plain))
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = parked {
        return Ok(id);
    }
    Ok(sqlx::query_scalar(
        "select id from dead_letter where org_id = $1 and subscription = $2 \
         and coalesce(handler, '') = coalesce($3, '') and identity = $4",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&letter.handler)
    .bind(letter.identity.as_str())
    .fetch_one(conn)
    .await?)
}

/// Parks the events of a unit, all or none.
async fn park_all(
    conn: &mut SqliteConnection,
    lease: &Lease,
    letters: &[DeadLetter],
) -> Result<(), StoreError> {
    for letter in letters {
        park(conn, lease, letter).await?;
    }
    Ok(())
}

/// What [`from_row`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "select id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
                    replay_id, schema_id, payload, record_ids, record_name, unit, state, \
                    received_at, \
                    parked_at \
             from dead_letter ",
            $rest
        )
    };
}

/// Those that a filter lets through, oldest first.
pub(super) async fn list(
    conn: &mut SqliteConnection,
    filter: &DeadLetterFilter,
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let rows = sqlx::query(select!(
        "where ($1 is null or subscription = $1) and ($2 is null or handler = $2) \
         and ($3 is null or reason = $3) and ($4 is null or state = $4) \
         order by id limit $5"
    ))
    .bind(&filter.subscription)
    .bind(&filter.handler)
    .bind(&filter.reason)
    .bind(&filter.state)
    .bind(i64::from(filter.limit))
    .fetch_all(conn)
    .await?;
    rows.iter().map(from_row).collect()
}

/// One, by its number.
pub(super) async fn find(
    conn: &mut SqliteConnection,
    id: i64,
) -> Result<Option<StoredDeadLetter>, StoreError> {
    let row = sqlx::query(select!("where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(from_row).transpose()
}

fn from_row(row: &SqliteRow) -> Result<StoredDeadLetter, StoreError> {
    Ok(StoredDeadLetter {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        topic: row.try_get("topic")?,
        state: row.try_get("state")?,
        parked_at: from_ms(row.try_get("parked_at")?),
        letter: DeadLetter {
            identity: EventIdentity::from_stored(row.try_get("identity")?),
            handler: row.try_get("handler")?,
            reason: row.try_get("reason")?,
            error: row.try_get("error")?,
            attempts: u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or(0),
            event_uuid: row.try_get("event_uuid")?,
            replay_id: replay_id(row.try_get("replay_id")?),
            schema_id: SchemaId::new(row.try_get("schema_id")?),
            payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
            record_ids: from_json(row.try_get("record_ids")?)?,
            record_name: row.try_get("record_name")?,
            unit: row.try_get("unit")?,
            received_at: from_ms(row.try_get("received_at")?),
        },
    })
}
