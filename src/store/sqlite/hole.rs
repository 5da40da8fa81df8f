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
use crate::store::hole::NOTHING_SKIPPED;
use crate::store::{
    Hole, HoleFilter, HoleKind, Holes, Lease, StoreError, StoredHole, SubscriptionKey,
};

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

    async fn record_gaps(&self, lease: &Lease, gaps: &[Hole]) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| async {
            hold(&mut *conn, lease).await?;
            for gap in gaps {
                record_gap(&mut *conn, lease, gap).await?;
            }
            Ok::<_, StoreError>(())
        })
    }

    async fn nothing_skipped(&self, lease: &Lease, from: &ReplayId) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| nothing_skipped(conn, lease, from))
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
    match hole.kind {
        HoleKind::Gap => record_gap(conn, lease, hole).await,
        HoleKind::Lost => match same_lost(conn, lease, hole).await? {
            Some(id) => Ok(id),
            None => add(conn, lease, hole).await,
        },
    }
}

/// Makes the row that tells of the same lost stretch say what is known now.
async fn same_lost(
    conn: &mut SqliteConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "update hole set to_replay_id = $4, to_time = $5, \
             acknowledged_at = case when $4 is null then null else acknowledged_at end, \
             reason = case when reason = 'perhaps_skipped_by_rewind' then $6 else reason end, \
             explanation = case when instr(explanation, $7) > 0 then explanation \
                                else explanation || ' ' || $7 end \
         where id = (select id from hole \
             where org_id = $1 and subscription = $2 and kind = 'lost' \
             and (reason <> 'perhaps_skipped_by_rewind' or acknowledged_at is null) \
             and (from_replay_id is $3 \
                     and (to_replay_id is null or to_replay_id = $4 \
                          or $3 is not null and acknowledged_at is null) \
                  or $3 is null and acknowledged_at is null \
                     and (to_replay_id is null or to_replay_id = $4)) \
             order by from_replay_id is $3 desc, to_replay_id is null desc, id desc limit 1) \
         returning id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(hole.to.as_ref().map(ReplayId::as_bytes))
    .bind(hole.to_time.map(to_ms))
    .bind(plain(&hole.reason))
    .bind(plain(&hole.explanation))
    .fetch_optional(conn)
    .await?)
}

/// Records a gap, unless a row tells of it already.
async fn record_gap(
    conn: &mut SqliteConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<i64, StoreError> {
    let same: Option<i64> = sqlx::query_scalar(
        "select id from hole where org_id = $1 and subscription = $2 and kind = 'gap' \
         and from_replay_id = $3 and reason = $4 and entity is $5 and record_ids = $6",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(plain(&hole.reason))
    .bind(hole.entity.as_deref().map(plain))
    .bind(to_json(kept(hole)))
    .fetch_optional(&mut *conn)
    .await?;
    match same {
        Some(id) => Ok(id),
        None => add(conn, lease, hole).await,
    }
}

/// The records of a gap that its row keeps.
fn kept(gap: &Hole) -> &[String] {
    &gap.record_ids[..gap.record_ids.len().min(MAX_HOLE_RECORDS)]
}

async fn add(conn: &mut SqliteConnection, lease: &Lease, hole: &Hole) -> Result<i64, StoreError> {
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
    .bind(to_json(kept(hole)))
    .bind(to_sql_count(hole.record_ids.len() as u64))
    .bind(plain(&hole.explanation))
    .bind(hole.from_time.map(to_ms))
    .bind(hole.to_time.map(to_ms))
    .bind(to_ms(SystemTime::now()))
    .fetch_one(conn)
    .await?)
}

/// Closes the hole of a rewind that skipped nothing.
pub(super) async fn nothing_skipped(
    conn: &mut SqliteConnection,
    lease: &Lease,
    from: &ReplayId,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sqlx::query(
        "update hole set acknowledged_at = $4, explanation = $5, \
             to_replay_id = coalesce(to_replay_id, from_replay_id) \
         where org_id = $1 and subscription = $2 and from_replay_id = $3 and kind = 'lost' \
         and reason = 'perhaps_skipped_by_rewind' and acknowledged_at is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(from.as_bytes())
    .bind(to_ms(SystemTime::now()))
    .bind(NOTHING_SKIPPED)
    .execute(conn)
    .await?;
    Ok(())
}

/// Where rewinds left from that perhaps skipped something.
pub(super) async fn rewound_from(
    conn: &mut SqliteConnection,
    key: &SubscriptionKey,
) -> Result<Vec<ReplayId>, StoreError> {
    let places: Vec<Vec<u8>> = sqlx::query_scalar(
        "select from_replay_id from hole \
         where org_id = $1 and subscription = $2 and kind = 'lost' and acknowledged_at is null \
         and reason = 'perhaps_skipped_by_rewind' and from_replay_id is not null",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_all(conn)
    .await?;
    Ok(places
        .into_iter()
        .filter_map(|place| replay_id(Some(place)))
        .collect())
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
    .bind(filter.ids.as_deref().map(super::ids_json))
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
    .bind(filter.ids.as_deref().map(super::ids_json))
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
