//! Holes.

use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::lease::hold;
use super::{PostgresStore, sql};
use crate::event::ReplayId;
use crate::store::common::{
    MAX_HOLE_RECORDS, from_ms, from_sql_count, kind_from, plain, plain_list, replay_id, to_ms,
    to_sql_count,
};
use crate::store::hole::NOTHING_SKIPPED;
use crate::store::{
    Hole, HoleFilter, HoleKind, Holes, Lease, StoreError, StoredHole, SubscriptionKey,
};

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

    async fn record_gaps(&self, lease: &Lease, gaps: &[Hole]) -> Result<(), StoreError> {
        transaction!(self, |conn| async {
            hold(&mut *conn, lease).await?;
            add_gaps(conn, lease, gaps).await
        })
    }

    async fn nothing_skipped(&self, lease: &Lease, from: &ReplayId) -> Result<(), StoreError> {
        transaction!(self, |conn| nothing_skipped(conn, lease, from))
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
    match hole.kind {
        HoleKind::Gap => record_gap(conn, lease, hole).await,
        HoleKind::Lost => match same_lost(conn, lease, hole).await? {
            Some(id) => Ok(id),
            None => add_lost(conn, lease, hole).await,
        },
    }
}

/// Makes the row that tells of the same lost stretch say what is known now.
async fn same_lost(
    conn: &mut PgConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<Option<i64>, StoreError> {
    Ok(sql::query_scalar(
        "update orgstream.hole set to_replay_id = $4, to_time = to_timestamp($5::bigint / 1000.0), \
             acknowledged_at = case when $4::bytea is null then null else acknowledged_at end, \
             reason = case when reason = 'perhaps_skipped_by_rewind' then $6 else reason end, \
             explanation = case when strpos(explanation, $7) > 0 then explanation \
                                else explanation || ' ' || $7 end \
         where id = (select id from orgstream.hole \
             where org_id = $1 and subscription = $2 and kind = 'lost' \
             and (reason <> 'perhaps_skipped_by_rewind' or acknowledged_at is null) \
             and (from_replay_id is not distinct from $3 \
                     and (to_replay_id is null or to_replay_id = $4 \
                          or $3 is not null and acknowledged_at is null) \
                  or $3 is null and acknowledged_at is null \
                     and (to_replay_id is null or to_replay_id = $4)) \
             order by from_replay_id is not distinct from $3 desc, to_replay_id is null desc, id desc \
             limit 1) \
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

async fn add_lost(conn: &mut PgConnection, lease: &Lease, hole: &Hole) -> Result<i64, StoreError> {
    Ok(sql::query_scalar(
        "insert into orgstream.hole \
             (org_id, subscription, kind, from_replay_id, to_replay_id, reason, entity, record_ids, \
              record_count, explanation, from_time, to_time) \
         values ($1, $2, 'lost', $3, $4, $5, $6, '{}', 0, $7, to_timestamp($8::bigint / 1000.0), \
                 to_timestamp($9::bigint / 1000.0)) returning id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(hole.to.as_ref().map(ReplayId::as_bytes))
    .bind(plain(&hole.reason))
    .bind(hole.entity.as_deref().map(plain))
    .bind(plain(&hole.explanation))
    .bind(hole.from_time.map(to_ms))
    .bind(hole.to_time.map(to_ms))
    .fetch_one(conn)
    .await?)
}

/// Records a gap, and finds its row.
async fn record_gap(
    conn: &mut PgConnection,
    lease: &Lease,
    hole: &Hole,
) -> Result<i64, StoreError> {
    add_gaps(conn, lease, std::slice::from_ref(hole)).await?;
    Ok(sql::query_scalar(
        "select id from orgstream.hole \
         where org_id = $1 and subscription = $2 and kind = 'gap' \
         and (from_replay_id = $3 or $3 is null and from_replay_id is null) and reason = $4 \
         and entity is not distinct from $5 and record_ids = $6 order by id desc limit 1",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(hole.from.as_ref().map(ReplayId::as_bytes))
    .bind(plain(&hole.reason))
    .bind(hole.entity.as_deref().map(plain))
    .bind(plain_list(kept(hole)))
    .fetch_one(conn)
    .await?)
}

/// Adds the gaps that no row tells of yet. One statement, however many: a change of thousands of records
/// whose content is missing comes as thousands of events.
async fn add_gaps(conn: &mut PgConnection, lease: &Lease, gaps: &[Hole]) -> Result<(), StoreError> {
    let from: Vec<_> = gaps
        .iter()
        .map(|gap| gap.from.as_ref().map(ReplayId::as_bytes))
        .collect();
    let reasons: Vec<_> = gaps.iter().map(|gap| plain(&gap.reason)).collect();
    let entities: Vec<_> = gaps
        .iter()
        .map(|gap| gap.entity.as_deref().map(plain))
        .collect();
    // No array of arrays: the inner ones differ in length.
    let records: Vec<_> = gaps
        .iter()
        .map(|gap| Value::from(plain_list(kept(gap))).to_string())
        .collect();
    let counts: Vec<_> = gaps
        .iter()
        .map(|gap| to_sql_count(gap.record_ids.len() as u64))
        .collect();
    let explanations: Vec<_> = gaps.iter().map(|gap| plain(&gap.explanation)).collect();
    let times: Vec<_> = gaps.iter().map(|gap| gap.to_time.map(to_ms)).collect();
    sql::query(
        "with given as ( \
             select g.place, g.reason, g.entity, g.record_count, g.explanation, g.at, \
                    array(select r.id from jsonb_array_elements_text(g.records::jsonb) \
                          with ordinality as r (id, number) order by r.number) as record_ids, g.number \
             from unnest($3::bytea[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], \
                         $9::bigint[]) with ordinality \
                  as g (place, reason, entity, records, record_count, explanation, at, number)) \
         insert into orgstream.hole \
             (org_id, subscription, kind, from_replay_id, reason, entity, record_ids, record_count, \
              explanation, to_time) \
         select $1, $2, 'gap', g.place, g.reason, g.entity, g.record_ids, g.record_count, g.explanation, \
                to_timestamp(g.at / 1000.0) \
         from (select distinct on (place, reason, entity, record_ids) * from given \
               order by place, reason, entity, record_ids, number) g \
         where not exists (select from orgstream.hole h \
             where h.org_id = $1 and h.subscription = $2 and h.kind = 'gap' \
             and h.from_replay_id = g.place and h.reason = g.reason \
             and h.entity is not distinct from g.entity and h.record_ids = g.record_ids) \
         order by g.number",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&from)
    .bind(&reasons)
    .bind(&entities)
    .bind(&records)
    .bind(&counts)
    .bind(&explanations)
    .bind(&times)
    .execute(conn)
    .await?;
    Ok(())
}

/// The records of a gap that its row keeps.
fn kept(gap: &Hole) -> &[String] {
    &gap.record_ids[..gap.record_ids.len().min(MAX_HOLE_RECORDS)]
}

/// Closes the hole of a rewind that skipped nothing.
pub(super) async fn nothing_skipped(
    conn: &mut PgConnection,
    lease: &Lease,
    from: &ReplayId,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "update orgstream.hole set acknowledged_at = now(), explanation = $4, \
             to_replay_id = coalesce(to_replay_id, from_replay_id) \
         where org_id = $1 and subscription = $2 and from_replay_id = $3 and kind = 'lost' \
         and reason = 'perhaps_skipped_by_rewind' and acknowledged_at is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(from.as_bytes())
    .bind(NOTHING_SKIPPED)
    .execute(conn)
    .await?;
    Ok(())
}

/// Where rewinds left from that perhaps skipped something.
pub(super) async fn rewound_from(
    conn: &mut PgConnection,
    key: &SubscriptionKey,
) -> Result<Vec<ReplayId>, StoreError> {
    let places: Vec<Vec<u8>> = sql::query_scalar(
        "select from_replay_id from orgstream.hole \
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
