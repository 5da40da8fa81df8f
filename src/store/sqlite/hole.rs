//! Holes.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::lease::hold;
use super::{READ, SqliteStore, WRITE, from_json, to_json};
use crate::event::ReplayId;
use crate::store::common::{
    MAX_HOLE_RECORDS, from_ms, from_sql_count, kind_from, kind_text, plain, replay_id, to_ms,
    to_sql_count,
};
use crate::store::{Hole, HoleFilter, Holes, Lease, StoreError, StoredHole};

#[async_trait]
impl Holes for SqliteStore {
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError> {
        transaction!(self, WRITE, |conn| record(conn, lease, hole))
    }

    async fn close_holes(
        &self,
        lease: &Lease,
        to: &ReplayId,
        at: SystemTime,
    ) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| close(conn, lease, to, at))
    }

    async fn holes(&self, filter: &HoleFilter) -> Result<Vec<StoredHole>, StoreError> {
        transaction!(self, READ, |conn| list(conn, filter))
    }

    async fn acknowledge_holes(
        &self,
        filter: &HoleFilter,
        open_ended: bool,
    ) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| acknowledge(conn, filter, open_ended))
    }
}

/// Records a hole, or finds the row that is the same one ([`Holes::record_hole`]).
pub(super) async fn record(
    conn: &mut SqliteConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<i64, StoreError> {
    hold(conn, lease).await?;
    let kept = hole.record_ids.len().min(MAX_HOLE_RECORDS);
    let record_ids = to_json(&hole.record_ids[..kept]);
    let same: Option<i64> = sqlx::query_scalar(
        "update hole set to_replay_id = $5, to_time = $9, \
             acknowledged_at = case when kind = 'lost' and $5 is null then null \
                                    else acknowledged_at end, \
             explanation = case when instr(explanation, $10) > 0 then explanation \
                                else explanation || ' ' || $10 end \
         where id = (select id from hole \
             where org_id = $1 and subscription = $2 and kind = $3 \
             and (kind = 'lost' and from_replay_id is $4 \
                     and (to_replay_id is null or to_replay_id = $5 \
                          or $4 is not null and acknowledged_at is null) \
                  or kind = 'lost' and $4 is null and acknowledged_at is null \
                     and (to_replay_id is null or to_replay_id = $5) \
                  or kind = 'gap' and from_replay_id = $4 and reason = $6 \
                     and entity is $7 and record_ids = $8) \
             order by from_replay_id is $4 desc, to_replay_id is null desc, id desc \
             limit 1) \
         returning id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(kind_text(hole.kind))
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(hole.to.as_ref().map(ReplayId::as_bytes))
    .bind(plain(&hole.reason))
    .bind(hole.entity.as_deref().map(plain))
    .bind(&record_ids)
    .bind(hole.to_time.map(to_ms))
    .bind(plain(&hole.explanation))
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = same {
        return Ok(id);
    }
    Ok(sqlx::query_scalar(
        "insert into hole \
             (org_id, subscription, kind, from_replay_id, to_replay_id, reason, entity, record_ids, \
              record_count, explanation, from_time, to_time, recorded_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) returning id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(kind_text(hole.kind))
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(hole.to.as_ref().map(ReplayId::as_bytes))
    .bind(plain(&hole.reason))
    .bind(hole.entity.as_deref().map(plain))
    .bind(&record_ids)
    .bind(to_sql_count(hole.record_ids.len() as u64))
    .bind(plain(&hole.explanation))
    .bind(hole.from_time.map(to_ms))
    .bind(hole.to_time.map(to_ms))
    .bind(to_ms(SystemTime::now()))
    .fetch_one(conn)
    .await?)
}

/// Fills in the end of open `lost` holes.
pub(super) async fn close(
    conn: &mut SqliteConnection,
    lease: &Lease,
    to: &ReplayId,
    at: SystemTime,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sqlx::query(
        "update hole \
         set to_replay_id = $3, to_time = $4 \
         where org_id = $1 and subscription = $2 and kind = 'lost' and to_replay_id is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to.as_bytes())
    .bind(to_ms(at))
    .execute(conn)
    .await?;
    Ok(())
}

/// Acknowledges holes.
pub(super) async fn acknowledge(
    conn: &mut SqliteConnection,
    filter: &HoleFilter,
    open_ended: bool,
) -> Result<Vec<i64>, StoreError> {
    let mut ids: Vec<i64> = sqlx::query_scalar(
        "update hole set acknowledged_at = $4 where acknowledged_at is null \
         and ($1 is null or subscription = $1) and ($2 is null or id in (select value from json_each($2))) \
         and (kind <> 'lost' or to_replay_id is not null or $3) returning id",
    )
    .bind(&filter.subscription)
    .bind(filter.ids.as_deref().map(numbers))
    .bind(open_ended)
    .bind(to_ms(SystemTime::now()))
    .fetch_all(conn)
    .await?;
    ids.sort_unstable();
    Ok(ids)
}

/// Those that a filter lets through, newest first.
pub(super) async fn list(
    conn: &mut SqliteConnection,
    filter: &HoleFilter,
) -> Result<Vec<StoredHole>, StoreError> {
    let rows = sqlx::query(
        "select id, subscription, kind, reason, from_replay_id, to_replay_id, entity, record_ids, \
                record_count, explanation, \
                from_time, \
                to_time, \
                recorded_at, \
                acknowledged_at \
         from hole where (not $1 or acknowledged_at is null) \
         and ($2 is null or subscription = $2) and ($3 is null or id in (select value from json_each($3))) \
         order by id desc limit coalesce($4, -1)",
    )
    .bind(filter.open_only)
    .bind(&filter.subscription)
    .bind(filter.ids.as_deref().map(numbers))
    .bind(filter.limit.map(i64::from))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let time =
                |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(from_ms));
            Ok(StoredHole {
                id: row.try_get("id")?,
                subscription: row.try_get("subscription")?,
                recorded_at: from_ms(row.try_get("recorded_at")?),
                acknowledged_at: time("acknowledged_at")?,
                record_count: from_sql_count(row.try_get("record_count")?),
                hole: Hole {
                    kind: kind_from(row.try_get("kind")?),
                    reason: row.try_get("reason")?,
                    from: replay_id(row.try_get("from_replay_id")?),
                    to: replay_id(row.try_get("to_replay_id")?),
                    from_time: time("from_time")?,
                    to_time: time("to_time")?,
                    entity: row.try_get("entity")?,
                    record_ids: from_json(row.try_get("record_ids")?)?,
                    explanation: row.try_get("explanation")?,
                },
            })
        })
        .collect()
}

/// Numbers as the JSON array that `json_each` reads.
fn numbers(ids: &[i64]) -> String {
    serde_json::Value::from(ids).to_string()
}
