//! Who runs which subscription.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::hole::rewound_from;
use super::{READ, SqliteStore, WRITE, bounded};
use crate::event::{EventIdentity, OrgId};
use crate::store::common::{
    begin_from, footing, from_ms, not_a_rename, not_given_up, not_paused, org_from, refused_from,
    refused_json, replay_id, same_org, same_topic, span_ms, to_ms,
};
use crate::store::{
    FinishedAhead, Heartbeat, Lease, Leases, LivingWorker, StoreError, SubscriptionKey, Survey,
    Surveyed, TakenOver, Tenure, Worker,
};

#[async_trait]
impl Leases for SqliteStore {
    fn leases_run_out(&self) -> bool {
        false
    }

    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        ttl: Duration,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError> {
        self.database.claim()?;
        transaction!(self, WRITE, |conn| take_over(
            conn,
            key,
            holder,
            ttl,
            configured,
            start_is_explicit
        ))
    }

    async fn taken(&self, lease: &Lease) -> Result<TakenOver, StoreError> {
        transaction!(self, READ, |conn| taken(conn, lease))
    }

    async fn heartbeat(
        &self,
        worker: &Worker,
        ttl: Duration,
        running: &[SubscriptionKey],
        stopping: bool,
    ) -> Result<Heartbeat, StoreError> {
        transaction!(self, WRITE, |conn| async {
            live(conn, worker, ttl, stopping).await?;
            renew(conn, &worker.holder, ttl, running).await
        })
    }

    async fn survey(&self, org_id: &OrgId, limit: Duration) -> Result<Survey, StoreError> {
        bounded(limit, async {
            transaction!(self, READ, |conn| survey(conn, org_id))
        })
        .await
    }

    async fn workers(&self) -> Result<Vec<LivingWorker>, StoreError> {
        transaction!(self, READ, |conn| workers(conn))
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| release(conn, lease))
    }

    async fn retire(&self, holder: &str) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| async {
            sqlx::query("delete from worker where holder = $1")
                .bind(holder)
                .execute(conn)
                .await?;
            Ok::<_, StoreError>(())
        })
    }
}

/// Binds the store to an org, or finds it bound to the same.
pub(super) async fn bind_org(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
) -> Result<(), StoreError> {
    const STORED: &str = "select org_id from org";
    let stored: Option<String> = sqlx::query_scalar(STORED)
        .fetch_optional(&mut *conn)
        .await?;
    let stored = match stored {
        Some(stored) => stored,
        None => {
            sqlx::query("insert into org (org_id, bound_at) values ($1, $2)")
                .bind(org_id.as_str())
                .bind(to_ms(SystemTime::now()))
                .execute(&mut *conn)
                .await?;
            sqlx::query_scalar(STORED).fetch_one(conn).await?
        }
    };
    same_org(&stored, org_id)
}

/// The org that the store is bound to.
pub(super) async fn bound_org(conn: &mut SqliteConnection) -> Result<Option<OrgId>, StoreError> {
    let stored: Option<String> = sqlx::query_scalar("select org_id from org")
        .fetch_optional(conn)
        .await?;
    stored.as_deref().map(org_from).transpose()
}

/// Raises the epoch and gives what the last holder left.
pub(super) async fn take_over(
    conn: &mut SqliteConnection,
    key: &SubscriptionKey,
    holder: &str,
    ttl: Duration,
    configured: &[String],
    start_is_explicit: bool,
) -> Result<TakenOver, StoreError> {
    bind_org(conn, &key.org_id).await?;
    create(conn, key, configured, start_is_explicit).await?;
    let row = sqlx::query(
        "select topic, paused_at is not null as paused from subscription where org_id = $1 and name = $2",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_one(&mut *conn)
    .await?;
    same_topic(row.try_get("topic")?, key)?;
    not_paused(row.try_get("paused")?, key)?;
    let now = to_ms(SystemTime::now());
    let epoch: i64 = sqlx::query_scalar(
        "update subscription \
         set epoch = epoch + 1, write_number = 0, holder = $3, taken_at = $4, lease_until = $5 \
         where org_id = $1 and name = $2 returning epoch",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(holder)
    .bind(now)
    .bind(now.saturating_add(span_ms(ttl)))
    .fetch_one(&mut *conn)
    .await?;
    let lease = Lease {
        key: key.clone(),
        holder: holder.to_owned(),
        epoch,
    };
    taken(conn, &lease).await
}

/// What is there to go on from.
pub(super) async fn taken(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<TakenOver, StoreError> {
    hold(conn, lease).await?;
    let row = sqlx::query(
        "select position, position_at, \
                position_time, begun_at, begun_with, begin_from, \
                position_transaction, position_event, lost_position \
         from subscription where org_id = $1 and name = $2",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_one(&mut *conn)
    .await?;
    let position = replay_id(row.try_get("position")?);
    let begun_at = row.try_get::<Option<i64>, _>("begun_at")?.map(from_ms);
    Ok(TakenOver {
        lease: lease.clone(),
        begun_without_position: begun_at.is_some() && position.is_none(),
        begun_at,
        position_time: row.try_get::<Option<i64>, _>("position_time")?.map(from_ms),
        begun_with: replay_id(row.try_get("begun_with")?).filter(|_| position.is_none()),
        begin_from: begin_from(row.try_get("begin_from")?, position.as_ref()),
        lost_position: replay_id(row.try_get("lost_position")?).filter(|_| position.is_none()),
        position,
        position_event: replay_id(row.try_get("position_event")?),
        transaction: row.try_get("position_transaction")?,
        finished_ahead: finished_ahead(conn, &lease.key).await?,
        position_at: row.try_get::<Option<i64>, _>("position_at")?.map(from_ms),
        rewound_from: rewound_from(conn, &lease.key).await?,
    })
}

/// Creates the row of a new name, unless it looks like a rename.
async fn create(
    conn: &mut SqliteConnection,
    key: &SubscriptionKey,
    configured: &[String],
    start_is_explicit: bool,
) -> Result<(), StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "select name from subscription \
         where org_id = $1 and (name = $2 or topic = $3) order by created_at, name",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(key.topic.as_str())
    .fetch_all(&mut *conn)
    .await?;
    if names.contains(&key.name) {
        return Ok(());
    }
    let former = sqlx::query_as(
        "select s.name, s.topic from former_name f \
         join subscription s on s.org_id = f.org_id and s.name = f.subscription \
         where f.org_id = $1 and f.name = $2",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_optional(&mut *conn)
    .await?;
    not_given_up(key, former)?;
    not_a_rename(key, &names, configured, start_is_explicit)?;
    sqlx::query(
        "insert into subscription (org_id, name, topic, created_at) values ($1, $2, $3, $4)",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(key.topic.as_str())
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(())
}

async fn finished_ahead(
    conn: &mut SqliteConnection,
    key: &SubscriptionKey,
) -> Result<Vec<FinishedAhead>, StoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select handler, identity from finished_ahead \
         where org_id = $1 and subscription = $2",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(handler, identity)| FinishedAhead {
            handler,
            identity: EventIdentity::from_stored(&identity),
        })
        .collect())
}

/// Says that a worker lives, and forgets those that are dead for long.
async fn live(
    conn: &mut SqliteConnection,
    worker: &Worker,
    ttl: Duration,
    stopping: bool,
) -> Result<(), StoreError> {
    const DAY_MS: i64 = 86_400_000;
    let now = to_ms(SystemTime::now());
    let left = if stopping { 0 } else { span_ms(ttl) };
    sqlx::query(
        "insert into worker \
             (holder, name, version, started_at, seen_at, lives_until, subscriptions, refused) \
         values ($1, $2, $3, $4, $4, $5, $6, $7) \
         on conflict (holder) do update \
             set seen_at = excluded.seen_at, lives_until = excluded.lives_until, \
                 subscriptions = excluded.subscriptions, refused = excluded.refused",
    )
    .bind(&worker.holder)
    .bind(&worker.name)
    .bind(&worker.version)
    .bind(now)
    .bind(now.saturating_add(left))
    .bind(json!(worker.subscriptions).to_string())
    .bind(refused_json(&worker.refused))
    .execute(&mut *conn)
    .await?;
    sqlx::query("delete from worker where lives_until < $1")
        .bind(now - DAY_MS)
        .execute(conn)
        .await?;
    Ok(())
}

/// Renews what is still the holder's; what was given back stays so.
async fn renew(
    conn: &mut SqliteConnection,
    holder: &str,
    ttl: Duration,
    running: &[SubscriptionKey],
) -> Result<Heartbeat, StoreError> {
    let pairs = running
        .iter()
        .map(|key| json!([key.org_id.as_str(), key.name]));
    let pairs = serde_json::Value::from_iter(pairs).to_string();
    let renewed: Vec<String> = sqlx::query_scalar(
        "update subscription set lease_until = $3 where holder = $1 and lease_until is not null \
         and (org_id, name) in (select value ->> 0, value ->> 1 from json_each($2)) returning name",
    )
    .bind(holder)
    .bind(pairs)
    .bind(to_ms(SystemTime::now()).saturating_add(span_ms(ttl)))
    .fetch_all(conn)
    .await?;
    Ok(Heartbeat {
        held: renewed.clone(),
        renewed,
    })
}

/// The subscriptions of an org. One process runs them all, so to that one each is free, whatever a process
/// that is gone has left behind; any other learns from the lock that it may take none.
async fn survey(conn: &mut SqliteConnection, org_id: &OrgId) -> Result<Survey, StoreError> {
    let rows = sqlx::query(
        "select name, asked, paused_at is not null as paused, \
                position is not null as placed, \
                begun_at is not null and begin_from is not 'earliest' as begun \
         from subscription where org_id = $1 order by name",
    )
    .bind(org_id.as_str())
    .fetch_all(conn)
    .await?;
    let subscriptions = rows.iter().map(|row| {
        Ok(Surveyed {
            name: row.try_get("name")?,
            tenure: Tenure::Free,
            paused: row.try_get("paused")?,
            asked: row.try_get("asked")?,
            footing: footing(row.try_get("placed")?, row.try_get("begun")?),
        })
    });
    Ok(Survey {
        // Whoever looks counts itself.
        workers: Vec::new(),
        stopping: 0,
        subscriptions: subscriptions.collect::<Result<_, StoreError>>()?,
    })
}

/// The worker that lives, and what is left of one that died.
async fn workers(conn: &mut SqliteConnection) -> Result<Vec<LivingWorker>, StoreError> {
    let rows = sqlx::query(
        "select holder, name, version, subscriptions, refused, \
                started_at, seen_at \
         from worker where lives_until > $1 order by name, holder",
    )
    .bind(to_ms(SystemTime::now()))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let subscriptions: String = row.try_get("subscriptions")?;
            let worker = Worker {
                holder: row.try_get("holder")?,
                name: row.try_get("name")?,
                version: row.try_get("version")?,
                subscriptions: serde_json::from_str(&subscriptions).unwrap_or_default(),
                refused: refused_from(row.try_get("refused")?),
            };
            Ok(LivingWorker {
                worker,
                started_at: from_ms(row.try_get("started_at")?),
                seen_at: from_ms(row.try_get("seen_at")?),
            })
        })
        .collect()
}

async fn release(conn: &mut SqliteConnection, lease: &Lease) -> Result<(), StoreError> {
    sqlx::query(
        "update subscription set lease_until = null \
         where org_id = $1 and name = $2 and epoch = $3 and holder = $4",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(&lease.holder)
    .execute(conn)
    .await?;
    Ok(())
}

/// Refuses a writer whose epoch has passed.
pub(super) async fn hold(conn: &mut SqliteConnection, lease: &Lease) -> Result<(), StoreError> {
    let epoch: Option<i64> =
        sqlx::query_scalar("select epoch from subscription where org_id = $1 and name = $2")
            .bind(lease.key.org_id.as_str())
            .bind(&lease.key.name)
            .fetch_optional(conn)
            .await?;
    if epoch == Some(lease.epoch) {
        Ok(())
    } else {
        Err(fenced(lease))
    }
}

pub(super) fn fenced(lease: &Lease) -> StoreError {
    StoreError::Fenced {
        subscription: lease.key.name.clone(),
        ours: lease.epoch,
    }
}
