//! Parked events.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::lease::hold;
use super::{PostgresStore, sql};
use crate::event::{EventIdentity, SchemaId};
use crate::store::common::{from_ms, plain, plain_list, replay_id, to_ms};
use crate::store::{
    DeadLetter, DeadLetterFilter, DeadLetters, Lease, StoreError, StoredDeadLetter,
};

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError> {
        transaction!(self, |conn| park(conn, lease, letter))
    }

    async fn park_all(&self, lease: &Lease, letters: &[DeadLetter]) -> Result<(), StoreError> {
        transaction!(self, |conn| park_all(conn, lease, letters))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError> {
        transaction!(self, |conn| list(conn, filter))
    }

    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError> {
        transaction!(self, |conn| find(conn, id))
    }
}

/// Parks an event. The same one again changes nothing while it is open; one that a person had resolved
/// failed anew, and is open again.
pub(super) async fn park(
    conn: &mut PgConnection,
    lease: &Lease,
    letter: &DeadLetter,
) -> Result<i64, StoreError> {
    hold(conn, lease).await?;
    let parked: Option<i64> = sql::query_scalar(
        "insert into orgstream.dead_letter as d \
             (org_id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
              replay_id, schema_id, payload, record_ids, record_name, received_at, unit) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                 to_timestamp($15::bigint / 1000.0), $16) \
         on conflict (org_id, subscription, coalesce(handler, ''), identity) do update set \
             state = 'open', resolved_at = null, parked_at = now(), reason = excluded.reason, \
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
    .bind(plain_list(&letter.record_ids))
    .bind(letter.record_name.as_deref().map(plain))
    .bind(to_ms(letter.received_at))
    .bind(letter.unit.as_deref().map(plain))
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = parked {
        return Ok(id);
    }
    Ok(sql::query_scalar(
        "select id from orgstream.dead_letter where org_id = $1 and subscription = $2 \
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
    conn: &mut PgConnection,
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
                    (extract(epoch from received_at) * 1000)::bigint as received_at, \
                    (extract(epoch from parked_at) * 1000)::bigint as parked_at \
             from orgstream.dead_letter ",
            $rest
        )
    };
}

/// Those that a filter lets through, oldest first.
pub(super) async fn list(
    conn: &mut PgConnection,
    filter: &DeadLetterFilter,
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let rows = sql::query(select!(
        "where ($1::text is null or subscription = $1) and ($2::text is null or handler = $2) \
         and ($3::text is null or reason = $3) and ($4::text is null or state = $4) \
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
    conn: &mut PgConnection,
    id: i64,
) -> Result<Option<StoredDeadLetter>, StoreError> {
    let row = sql::query(select!("where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(from_row).transpose()
}

fn from_row(row: &PgRow) -> Result<StoredDeadLetter, StoreError> {
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
            record_ids: row.try_get("record_ids")?,
            record_name: row.try_get("record_name")?,
            unit: row.try_get("unit")?,
            received_at: from_ms(row.try_get("received_at")?),
        },
    })
}
