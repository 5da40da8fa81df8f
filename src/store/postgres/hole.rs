//! Holes.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::lease::hold;
use super::{PostgresStore, sql};
use crate::event::ReplayId;
use crate::store::common::{
    MAX_HOLE_RECORDS, from_ms, from_sql_count, kind_from, kind_text, plain, plain_list, replay_id,
    to_ms, to_sql_count,
};
use crate::store::{Hole, HoleFilter, Holes, Lease, StoreError, StoredHole};

#[async_trait]
impl Holes for PostgresStore {
    async fn record_hole(&self, lease: &Lease, hole: &Hole) -> Result<i64, StoreError> {
        transaction!(self, |conn| record(conn, lease, hole))
    }

    async fn close_holes(
        &self,
        lease: &Lease,
        to: &ReplayId,
        at: SystemTime,
    ) -> Result<(), StoreError> {
        transaction!(self, |conn| close(conn, lease, to, at))
    }

    async fn holes(&self, filter: &HoleFilter) -> Result<Vec<StoredHole>, StoreError> {
        transaction!(self, |conn| list(conn, filter))
    }

    async fn acknowledge_holes(
        &self,
        filter: &HoleFilter,
        open_ended: bool,
    ) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| acknowledge(conn, filter, open_ended))
    }
}

/// Records a hole, or finds the row that is the same one ([`Holes::record_hole`]).
pub(super) async fn record(
    conn: &mut PgConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<i64, StoreError> {
    hold(conn, lease).await?;
    let kept = hole.record_ids.len().min(MAX_HOLE_RECORDS);
    let record_ids = plain_list(&hole.record_ids[..kept]);
    let same: Option<i64> = sql::query_scalar(
        "update orgstream.hole set to_replay_id = $5, to_time = to_timestamp($9::bigint / 1000.0), \
             acknowledged_at = case when kind = 'lost' and $5::bytea is null then null \
                                    else acknowledged_at end, \
             explanation = case when strpos(explanation, $10) > 0 then explanation \
                                else explanation || ' ' || $10 end \
         where id = (select id from orgstream.hole \
             where org_id = $1 and subscription = $2 and kind = $3 \
             and (kind = 'lost' and from_replay_id is not distinct from $4 \
                     and (to_replay_id is null or to_replay_id = $5 \
                          or $4 is not null and acknowledged_at is null) \
                  or kind = 'lost' and $4 is null and acknowledged_at is null \
                     and (to_replay_id is null or to_replay_id = $5) \
                  or kind = 'gap' and from_replay_id = $4 and reason = $6 \
                     and entity is not distinct from $7 and record_ids = $8) \
             order by from_replay_id is not distinct from $4 desc, to_replay_id is null desc, id desc \
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
    Ok(sql::query_scalar(
        "insert into orgstream.hole \
             (org_id, subscription, kind, from_replay_id, to_replay_id, reason, entity, record_ids, \
              record_count, explanation, from_time, to_time) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, to_timestamp($11::bigint / 1000.0), \
                 to_timestamp($12::bigint / 1000.0)) returning id",
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
    .fetch_one(conn)
    .await?)
}

/// Fills in the end of open `lost` holes.
pub(super) async fn close(
    conn: &mut PgConnection,
    lease: &Lease,
    to: &ReplayId,
    at: SystemTime,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "update orgstream.hole \
         set to_replay_id = $3, to_time = to_timestamp($4::bigint / 1000.0) \
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
    conn: &mut PgConnection,
    filter: &HoleFilter,
    open_ended: bool,
) -> Result<Vec<i64>, StoreError> {
    let mut ids: Vec<i64> = sql::query_scalar(
        "update orgstream.hole set acknowledged_at = now() where acknowledged_at is null \
         and ($1::text is null or subscription = $1) and ($2::bigint[] is null or id = any($2)) \
         and (kind <> 'lost' or to_replay_id is not null or $3) returning id",
    )
    .bind(&filter.subscription)
    .bind(&filter.ids)
    .bind(open_ended)
    .fetch_all(conn)
    .await?;
    ids.sort_unstable();
    Ok(ids)
}

/// Those that a filter lets through, newest first.
pub(super) async fn list(
    conn: &mut PgConnection,
    filter: &HoleFilter,
) -> Result<Vec<StoredHole>, StoreError> {
    let rows = sql::query(
        "select id, subscription, kind, reason, from_replay_id, to_replay_id, entity, record_ids, \
                record_count, explanation, \
                (extract(epoch from from_time) * 1000)::bigint as from_time, \
                (extract(epoch from to_time) * 1000)::bigint as to_time, \
                (extract(epoch from recorded_at) * 1000)::bigint as recorded_at, \
                (extract(epoch from acknowledged_at) * 1000)::bigint as acknowledged_at \
         from orgstream.hole where (not $1 or acknowledged_at is null) \
         and ($2::text is null or subscription = $2) and ($3::bigint[] is null or id = any($3)) \
         order by id desc limit $4",
    )
    .bind(filter.open_only)
    .bind(&filter.subscription)
    .bind(&filter.ids)
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
                    record_ids: row.try_get("record_ids")?,
                    explanation: row.try_get("explanation")?,
                },
            })
        })
        .collect()
}
