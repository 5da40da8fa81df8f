//! Snapshots, samples, state changes, readings of the allocation.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::lease::hold;
use super::{READ, SqliteStore, WRITE, bounded};
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
    ($store:expr, |$conn:ident| $work:expr) => {
        bounded(POST_LIMIT, async {
            transaction!($store, WRITE, |$conn| $work)
        })
        .await
    };
}

#[async_trait]
impl Observations for SqliteStore {
    async fn post_snapshot(&self, holder: &str, body: &str) -> Result<(), StoreError> {
        post!(self, |conn| post_snapshot(conn, holder, body))
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError> {
        transaction!(self, READ, |conn| snapshots(conn))
    }

    async fn post_sample(&self, lease: &Lease, sample: &Sample) -> Result<(), StoreError> {
        post!(self, |conn| post_sample(conn, lease, sample))
    }

    async fn samples(
        &self,
        org_id: &OrgId,
        since: SystemTime,
    ) -> Result<BTreeMap<String, Vec<Sample>>, StoreError> {
        transaction!(self, READ, |conn| samples(conn, org_id, since))
    }

    async fn state_changes(
        &self,
        org_id: &OrgId,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<StateChange>, StoreError> {
        transaction!(self, READ, |conn| state_changes(
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
        transaction!(self, READ, |conn| allocation(conn, org_id, since))
    }
}

async fn post_snapshot(
    conn: &mut SqliteConnection,
    holder: &str,
    body: &str,
) -> Result<(), StoreError> {
    // `where` also tells SQLite's parser that `on` does not begin a join.
    sqlx::query(
        "insert into worker_snapshot (holder, at, body) \
         select holder, $3, $2 from worker where holder = $1 \
         on conflict (holder) do update set body = excluded.body, at = excluded.at",
    )
    .bind(holder)
    .bind(plain(body))
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(())
}

async fn snapshots(conn: &mut SqliteConnection) -> Result<Vec<Snapshot>, StoreError> {
    let rows = sqlx::query(
        "select w.holder, w.name, w.version, s.body, s.at \
         from worker_snapshot s join worker w using (holder) \
         where w.lives_until > $1 order by w.name, w.holder",
    )
    .bind(to_ms(SystemTime::now()))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Snapshot {
                holder: row.try_get("holder")?,
                worker: row.try_get("name")?,
                version: row.try_get("version")?,
                at: from_ms(row.try_get("at")?),
                body: row.try_get("body")?,
            })
        })
        .collect()
}

async fn post_sample(
    conn: &mut SqliteConnection,
    lease: &Lease,
    sample: &Sample,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    // max() of two is null where one of them is.
    sqlx::query(
        "insert into subscription_sample (org_id, subscription, at, lag_seconds, received, parked) \
         values ($1, $2, $3, $4, $5, $6) \
         on conflict (org_id, subscription, at) do update \
             set lag_seconds = coalesce(max(lag_seconds, excluded.lag_seconds), lag_seconds, \
                                        excluded.lag_seconds), \
                 received = received + excluded.received, parked = parked + excluded.parked",
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
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    since: SystemTime,
) -> Result<BTreeMap<String, Vec<Sample>>, StoreError> {
    let rows = sqlx::query(
        "select subscription, at, lag_seconds, received, parked from subscription_sample \
         where org_id = $1 and at >= $2 order by subscription, at",
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
/// it has none.
pub(super) async fn log_state(
    conn: &mut SqliteConnection,
    lease: &Lease,
    report: &StateReport,
) -> Result<(), StoreError> {
    let last: Option<i64> = sqlx::query_scalar(
        "select id from (select id, state, detail, epoch from state_change \
                         where org_id = $1 and subscription = $2 order by id desc limit 1) last \
         where state = $3 and detail is $4 and epoch = $5",
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
    sqlx::query(
        "insert into state_change \
             (org_id, subscription, at, state, detail, rpc_id, replay_id, worker, epoch) \
         values ($1, $2, $9, $3, $4, $5, $6, (select name from worker where holder = $7), $8)",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(plain(&report.state))
    .bind(report.detail.as_deref().map(plain))
    .bind(report.rpc_id.as_deref().map(plain))
    .bind(report.replay_id.as_ref().map(|id| id.as_bytes()))
    .bind(&lease.holder)
    .bind(lease.epoch)
    .bind(to_ms(report.at.unwrap_or_else(SystemTime::now)))
    .execute(conn)
    .await?;
    Ok(())
}

async fn name_call(
    conn: &mut SqliteConnection,
    change: i64,
    report: &StateReport,
) -> Result<(), StoreError> {
    let Some(rpc_id) = report.rpc_id.as_deref() else {
        return Ok(());
    };
    sqlx::query("update state_change set rpc_id = $2 where id = $1 and rpc_id is null")
        .bind(change)
        .bind(plain(rpc_id))
        .execute(conn)
        .await?;
    Ok(())
}

async fn state_changes(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    subscription: Option<&str>,
    limit: u32,
) -> Result<Vec<StateChange>, StoreError> {
    let rows = sqlx::query(
        "select subscription, at, state, detail, rpc_id, replay_id, worker, epoch from state_change \
         where org_id = $1 and ($2 is null or subscription = $2) order by id desc limit $3",
    )
    .bind(org_id.as_str())
    .bind(subscription)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.iter().map(state_change).collect()
}

fn state_change(row: &SqliteRow) -> Result<StateChange, StoreError> {
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

async fn claim_allocation(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    every: Duration,
) -> Result<Option<SystemTime>, StoreError> {
    let now = to_ms(SystemTime::now());
    let claimed = sqlx::query(
        "update org set limits_asked_at = $2 where org_id = $1 \
         and (limits_asked_at is null or limits_asked_at <= $3 or limits_asked_at > $2)",
    )
    .bind(org_id.as_str())
    .bind(now)
    .bind(now.saturating_sub(span_ms(every)))
    .execute(conn)
    .await?;
    Ok((claimed.rows_affected() > 0).then(|| from_ms(now)))
}

async fn record_allocation(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    reading: &AllocationReading,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into allocation (org_id, at, max, remaining) values ($1, $2, $3, $4) \
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
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    since: SystemTime,
) -> Result<Vec<AllocationReading>, StoreError> {
    let rows = sqlx::query(
        "select at, max, remaining from allocation where org_id = $1 and at >= $2 order by at",
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
