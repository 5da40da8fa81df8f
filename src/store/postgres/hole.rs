//! Holes.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::lease::hold;
use super::{PostgresStore, sql};
use crate::event::ReplayId;
use crate::store::common::{
    MAX_HOLE_RECORDS, from_ms, kind_from, kind_text, plain, plain_list, replay_id, to_sql_count,
};
use crate::store::{Hole, Holes, Lease, StoreError, StoredHole};

#[async_trait]
impl Holes for PostgresStore {
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError> {
        transaction!(self, |conn| record(conn, lease, hole))
    }

    async fn close_holes(&self, lease: &Lease, to: &ReplayId) -> Result<(), StoreError> {
        transaction!(self, |conn| close(conn, lease, to))
    }

    async fn holes(&self, open_only: bool) -> Result<Vec<StoredHole>, StoreError> {
        transaction!(self, |conn| list(conn, open_only))
    }
}

/// Records a hole. What a restart records again is the same hole: a `lost` one that begins at the same
/// place and has no end yet or the same, a `gap` that the same event told of.
pub(super) async fn record(
    conn: &mut PgConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<i64, StoreError> {
    hold(conn, lease).await?;
    let kept = hole.record_ids.len().min(MAX_HOLE_RECORDS);
    let record_ids = plain_list(&hole.record_ids[..kept]);
    let same: Option<i64> = sql::query_scalar(
        "update orgstream.hole set to_replay_id = coalesce(to_replay_id, $5) \
         where org_id = $1 and subscription = $2 and kind = $3 \
         and from_replay_id is not distinct from $4 \
         and (kind = 'lost' and (to_replay_id is null or to_replay_id = $5) \
              or kind = 'gap' and $4 is not null and reason = $6 \
                 and entity is not distinct from $7 and record_ids = $8) \
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
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = same {
        return Ok(id);
    }
    Ok(sql::query_scalar(
        "insert into orgstream.hole \
             (org_id, subscription, kind, from_replay_id, to_replay_id, reason, entity, record_ids, \
              record_count, explanation) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning id",
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
    .fetch_one(conn)
    .await?)
}

/// Fills in the end of open `lost` holes.
pub(super) async fn close(
    conn: &mut PgConnection,
    lease: &Lease,
    to: &ReplayId,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "update orgstream.hole set to_replay_id = $3 \
         where org_id = $1 and subscription = $2 and kind = 'lost' and to_replay_id is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to.as_bytes())
    .execute(conn)
    .await?;
    Ok(())
}

/// All, or those that nobody acknowledged; newest first.
pub(super) async fn list(
    conn: &mut PgConnection,
    open_only: bool,
) -> Result<Vec<StoredHole>, StoreError> {
    let rows = sql::query(
        "select id, subscription, kind, reason, from_replay_id, to_replay_id, entity, record_ids, \
                explanation, \
                (extract(epoch from recorded_at) * 1000)::bigint as recorded_at, \
                (extract(epoch from acknowledged_at) * 1000)::bigint as acknowledged_at \
         from orgstream.hole where not $1 or acknowledged_at is null order by id desc",
    )
    .bind(open_only)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(StoredHole {
                id: row.try_get("id")?,
                subscription: row.try_get("subscription")?,
                recorded_at: from_ms(row.try_get("recorded_at")?),
                acknowledged_at: row
                    .try_get::<Option<i64>, _>("acknowledged_at")?
                    .map(from_ms),
                hole: Hole {
                    kind: kind_from(row.try_get("kind")?),
                    reason: row.try_get("reason")?,
                    from: replay_id(row.try_get("from_replay_id")?),
                    to: replay_id(row.try_get("to_replay_id")?),
                    entity: row.try_get("entity")?,
                    record_ids: row.try_get("record_ids")?,
                    explanation: row.try_get("explanation")?,
                },
            })
        })
        .collect()
}
