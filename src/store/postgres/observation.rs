//! Snapshots, samples, state changes, readings of the allocation.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::lease::hold;
use super::{PostgresStore, bounded, sql};
use crate::event::OrgId;
use crate::store::common::{
    from_ms, from_sql_count, lag_from, minute_ms, plain, replay_id, span_ms, to_ms, to_sql_count,
};
use crate::store::observation::POST_LIMIT;
use crate::store::{
    AllocationReading, Lease, Observations, Sample, Snapshot, StateChange, StateReport, StoreError,
};

/// As `transaction!`, and bounded as a post is.
macro_rules! post {
    ($store:expr, |$conn:ident| $work:expr) => {{
        let limit = $store.timeout.min(POST_LIMIT);
        bounded(limit, async {
            let mut tx = $store.connections.begin(limit).await?;
            let $conn = tx.connection();
            let done = $work.await?;
            tx.commit().await?;
            Ok(done)
        })
        .await
    }};
}

#[async_trait]
impl Observations for PostgresStore {
    async fn post_snapshot(&self, holder: &str, body: &str) -> Result<(), StoreError> {
        post!(self, |conn| post_snapshot(conn, holder, body))
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError> {
        transaction!(self, |conn| snapshots(conn))
    }

    async fn post_sample(&self, lease: &Lease, sample: &Sample) -> Result<(), StoreError> {
        post!(self, |conn| post_sample(conn, lease, sample))
    }

    async fn samples(
        &self,
        org_id: &OrgId,
        since: SystemTime,
    ) -> Result<BTreeMap<String, Vec<Sample>>, StoreError> {
        transaction!(self, |conn| samples(conn, org_id, since))
    }

    async fn state_changes(
        &self,
        org_id: &OrgId,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<StateChange>, StoreError> {
        transaction!(self, |conn| state_changes(
            conn,
            org_id,
            subscription,
            limit
        ))
    }

    async fn claim_allocation(
        &self,
        org_id: &OrgId,
        every: Duration,
    ) -> Result<Option<SystemTime>, StoreError> {
        post!(self, |conn| claim_allocation(conn, org_id, every))
    }

    async fn record_allocation(
        &self,
        org_id: &OrgId,
        reading: &AllocationReading,
    ) -> Result<(), StoreError> {
        post!(self, |conn| record_allocation(conn, org_id, reading))
    }

    async fn allocation(
        &self,
        org_id: &OrgId,
        since: SystemTime,
    ) -> Result<Vec<AllocationReading>, StoreError> {
        transaction!(self, |conn| allocation(conn, org_id, since))
    }
}

/// The worker's row is asked for, because a foreign key's error would say that something is wrong.
async fn post_snapshot(
    conn: &mut PgConnection,
    holder: &str,
    body: &str,
) -> Result<(), StoreError> {
    sql::query(
        "insert into orgstream.worker_snapshot (holder, body) \
         select holder, $2 from orgstream.worker where holder = $1 \
         on conflict (holder) do update set body = excluded.body, at = now()",
    )
    .bind(holder)
    .bind(plain(body))
    .execute(conn)
    .await?;
    Ok(())
}

async fn snapshots(conn: &mut PgConnection) -> Result<Vec<Snapshot>, StoreError> {
    let rows = sql::query(
        "select w.holder, w.name, w.version, s.body, \
                (extract(epoch from now() - s.at) * 1000)::bigint as age \
         from orgstream.worker_snapshot s join orgstream.worker w using (holder) \
         where w.lives_until > now() order by w.name, w.holder",
    )
    .fetch_all(conn)
    .await?;
    // The reader's clock may be another one: what it compares with its own is told by that.
    let now = to_ms(SystemTime::now());
    rows.iter()
        .map(|row| {
            let age: i64 = row.try_get("age")?;
            Ok(Snapshot {
                holder: row.try_get("holder")?,
                worker: row.try_get("name")?,
                version: row.try_get("version")?,
                at: from_ms(now.saturating_sub(age)),
                body: row.try_get("body")?,
            })
        })
        .collect()
}

async fn post_sample(
    conn: &mut PgConnection,
    lease: &Lease,
    sample: &Sample,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "insert into orgstream.subscription_sample as s \
             (org_id, subscription, at, lag_seconds, received, parked) \
         values ($1, $2, to_timestamp($3::bigint / 1000.0), $4, $5, $6) \
         on conflict (org_id, subscription, at) do update \
             set lag_seconds = greatest(s.lag_seconds, excluded.lag_seconds), \
                 received = s.received + excluded.received, parked = s.parked + excluded.parked",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(minute_ms(sample.at))
    .bind(sample.lag.map(|lag| lag.as_secs_f64()))
    .bind(to_sql_count(sample.received))
    .bind(to_sql_count(sample.parked))
    .execute(conn)
    .await?;
    Ok(())
}

async fn samples(
    conn: &mut PgConnection,
    org_id: &OrgId,
    since: SystemTime,
) -> Result<BTreeMap<String, Vec<Sample>>, StoreError> {
    let rows = sql::query(
        "select subscription, (extract(epoch from at) * 1000)::bigint as at, lag_seconds, received, parked \
         from orgstream.subscription_sample \
         where org_id = $1 and at >= to_timestamp($2::bigint / 1000.0) order by subscription, at",
    )
    .bind(org_id.as_str())
    .bind(to_ms(since))
    .fetch_all(conn)
    .await?;
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for row in &rows {
        let of_one = samples.entry(row.try_get("subscription")?).or_default();
        of_one.push(Sample {
            at: from_ms(row.try_get("at")?),
            lag: lag_from(row.try_get("lag_seconds")?),
            received: from_sql_count(row.try_get("received")?),
            parked: from_sql_count(row.try_get("parked")?),
        });
    }
    Ok(samples)
}

/// Adds a row where state, detail or epoch are not those of the last one; to that one the name of its call, where
/// it has none. The caller has locked the subscription's row, so nobody adds another meanwhile.
pub(super) async fn log_state(
    conn: &mut PgConnection,
    lease: &Lease,
    report: &StateReport,
) -> Result<(), StoreError> {
    let last: Option<i64> = sql::query_scalar(
        "select id from (select id, state, detail, epoch from orgstream.state_change \
                         where org_id = $1 and subscription = $2 order by id desc limit 1) last \
         where state = $3 and detail is not distinct from $4 and epoch = $5",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(plain(&report.state))
    .bind(report.detail.as_deref().map(plain))
    .bind(lease.epoch)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(last) = last {
        return name_call(conn, last, report).await;
    }
    sql::query(
        "insert into orgstream.state_change \
             (org_id, subscription, state, detail, rpc_id, replay_id, worker, epoch, at) \
         values ($1, $2, $3, $4, $5, $6, (select name from orgstream.worker where holder = $7), $8, \
                 coalesce(to_timestamp($9::bigint / 1000.0), now()))",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(plain(&report.state))
    .bind(report.detail.as_deref().map(plain))
    .bind(report.rpc_id.as_deref().map(plain))
    .bind(report.replay_id.as_ref().map(|id| id.as_bytes()))
    .bind(&lease.holder)
    .bind(lease.epoch)
    .bind(report.at.map(to_ms))
    .execute(conn)
    .await?;
    Ok(())
}

async fn name_call(
    conn: &mut PgConnection,
    change: i64,
    report: &StateReport,
) -> Result<(), StoreError> {
    let Some(rpc_id) = report.rpc_id.as_deref() else {
        return Ok(());
    };
    sql::query("update orgstream.state_change set rpc_id = $2 where id = $1 and rpc_id is null")
        .bind(change)
        .bind(plain(rpc_id))
        .execute(conn)
        .await?;
    Ok(())
}

async fn state_changes(
    conn: &mut PgConnection,
    org_id: &OrgId,
    subscription: Option<&str>,
    limit: u32,
) -> Result<Vec<StateChange>, StoreError> {
    // Two statements: one that compares where there is something to compare with would use no index.
    let one = "select subscription, (extract(epoch from at) * 1000)::bigint as at, state, detail, rpc_id, \
                      replay_id, worker, epoch \
               from orgstream.state_change where org_id = $1 and subscription = $3 \
               order by id desc limit $2";
    let all = "select subscription, (extract(epoch from at) * 1000)::bigint as at, state, detail, rpc_id, \
                      replay_id, worker, epoch \
               from orgstream.state_change where org_id = $1 order by id desc limit $2";
    let query = sql::query(if subscription.is_some() { one } else { all })
        .bind(org_id.as_str())
        .bind(i64::from(limit));
    let query = match subscription {
        Some(name) => query.bind(name),
        None => query,
    };
    let rows = query.fetch_all(conn).await?;
    rows.iter().map(state_change).collect()
}

fn state_change(row: &PgRow) -> Result<StateChange, StoreError> {
    Ok(StateChange {
        subscription: row.try_get("subscription")?,
        at: from_ms(row.try_get("at")?),
        state: row.try_get("state")?,
        detail: row.try_get("detail")?,
        rpc_id: row.try_get("rpc_id")?,
        replay_id: replay_id(row.try_get("replay_id")?),
        worker: row.try_get("worker")?,
        epoch: row.try_get("epoch")?,
    })
}

/// A second worker waits for the row that the first one changes, and then finds it changed.
async fn claim_allocation(
    conn: &mut PgConnection,
    org_id: &OrgId,
    every: Duration,
) -> Result<Option<SystemTime>, StoreError> {
    let claimed: Option<i64> = sql::query_scalar(
        "update orgstream.org set limits_asked_at = now() where org_id = $1 \
         and (limits_asked_at is null \
              or limits_asked_at <= now() - $2::bigint * interval '1 millisecond') \
         returning (extract(epoch from limits_asked_at) * 1000)::bigint",
    )
    .bind(org_id.as_str())
    .bind(span_ms(every))
    .fetch_optional(conn)
    .await?;
    Ok(claimed.map(from_ms))
}

async fn record_allocation(
    conn: &mut PgConnection,
    org_id: &OrgId,
    reading: &AllocationReading,
) -> Result<(), StoreError> {
    sql::query(
        "insert into orgstream.allocation (org_id, at, max, remaining) \
         values ($1, to_timestamp($2::bigint / 1000.0), $3, $4) \
         on conflict (org_id, at) do update set max = excluded.max, remaining = excluded.remaining",
    )
    .bind(org_id.as_str())
    .bind(to_ms(reading.at))
    .bind(to_sql_count(reading.max))
    .bind(to_sql_count(reading.remaining))
    .execute(conn)
    .await?;
    Ok(())
}

async fn allocation(
    conn: &mut PgConnection,
    org_id: &OrgId,
    since: SystemTime,
) -> Result<Vec<AllocationReading>, StoreError> {
    let rows = sql::query(
        "select (extract(epoch from at) * 1000)::bigint as at, max, remaining \
         from orgstream.allocation \
         where org_id = $1 and at >= to_timestamp($2::bigint / 1000.0) order by at",
    )
    .bind(org_id.as_str())
    .bind(to_ms(since))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(AllocationReading {
                at: from_ms(row.try_get("at")?),
                max: from_sql_count(row.try_get("max")?),
                remaining: from_sql_count(row.try_get("remaining")?),
            })
        })
        .collect()
}
