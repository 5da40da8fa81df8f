//! Who runs which subscription.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::hole::rewound_from;
use super::{PostgresStore, bounded, sql};
use crate::event::{EventIdentity, OrgId};
use crate::store::common::{
    begin_from, footing, from_ms, not_a_rename, not_given_up, not_paused, org_from, plain,
    plain_list, refused_from, refused_json, replay_id, same_org, same_topic, span_ms, tenure,
};
use crate::store::{
    FinishedAhead, Heartbeat, Lease, Leases, LivingWorker, Peer, StoreError, SubscriptionKey,
    Survey, Surveyed, TakenOver, Worker,
};

#[async_trait]
impl Leases for PostgresStore {
    fn leases_run_out(&self) -> bool {
        true
    }

    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        ttl: Duration,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError> {
        transaction!(self, |conn| take_over(
            conn,
            key,
            holder,
            ttl,
            configured,
            start_is_explicit
        ))
    }

    async fn taken(&self, lease: &Lease) -> Result<TakenOver, StoreError> {
        transaction!(self, |conn| taken(conn, lease))
    }

    async fn heartbeat(
        &self,
        worker: &Worker,
        ttl: Duration,
        running: &[SubscriptionKey],
        stopping: bool,
    ) -> Result<Heartbeat, StoreError> {
        // Short enough that another attempt fits in before the lease has to count as lost.
        let limit = self.timeout.min(ttl / 5);
        bounded(limit, async {
            let mut tx = self.lease_connection.begin(limit).await?;
            let conn = tx.connection();
            live(conn, worker, ttl, stopping).await?;
            let heartbeat = renew(conn, &worker.holder, ttl, running).await?;
            tx.commit().await?;
            Ok(heartbeat)
        })
        .await
    }

    async fn survey(&self, org_id: &OrgId, limit: Duration) -> Result<Survey, StoreError> {
        let limit = self.timeout.min(limit);
        bounded(limit, async {
            let mut tx = self.lease_connection.begin(limit).await?;
            let survey = survey(tx.connection(), org_id).await?;
            tx.commit().await?;
            Ok(survey)
        })
        .await
    }

    async fn workers(&self) -> Result<Vec<LivingWorker>, StoreError> {
        transaction!(self, |conn| workers(conn))
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        transaction!(self, |conn| release(conn, lease))
    }

    async fn retire(&self, holder: &str) -> Result<(), StoreError> {
        transaction!(self, |conn| async {
            sql::query("delete from orgstream.worker where holder = $1")
                .bind(holder)
                .execute(conn)
                .await?;
            Ok::<_, StoreError>(())
        })
    }
}

/// Binds the store to an org, or finds it bound to the same.
pub(super) async fn bind_org(conn: &mut PgConnection, org_id: &OrgId) -> Result<(), StoreError> {
    const STORED: &str = "select org_id from orgstream.org";
    let stored: Option<String> = sql::query_scalar(STORED).fetch_optional(&mut *conn).await?;
    let stored = match stored {
        Some(stored) => stored,
        None => {
            sql::query("insert into orgstream.org (org_id) values ($1) on conflict do nothing")
                .bind(org_id.as_str())
                .execute(&mut *conn)
                .await?;
            sql::query_scalar(STORED).fetch_one(conn).await?
        }
    };
    same_org(&stored, org_id)
}

/// The org that the store is bound to.
pub(super) async fn bound_org(conn: &mut PgConnection) -> Result<Option<OrgId>, StoreError> {
    let stored: Option<String> = sql::query_scalar("select org_id from orgstream.org")
        .fetch_optional(conn)
        .await?;
    stored.as_deref().map(org_from).transpose()
}

/// Raises the epoch and gives what the last holder left.
pub(super) async fn take_over(
    conn: &mut PgConnection,
    key: &SubscriptionKey,
    holder: &str,
    ttl: Duration,
    configured: &[String],
    start_is_explicit: bool,
) -> Result<TakenOver, StoreError> {
    bind_org(conn, &key.org_id).await?;
    create(conn, key, configured, start_is_explicit).await?;
    // The one lock that keeps out who holds the epoch ([`hold`]): whatever raises it takes this one first.
    let row = sql::query(
        "select topic, holder, paused_at is not null as paused, \
                coalesce(lease_until > clock_timestamp(), false) as held \
         from orgstream.subscription where org_id = $1 and name = $2 for update",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_one(&mut *conn)
    .await?;
    same_topic(row.try_get("topic")?, key)?;
    let last: Option<String> = row.try_get("holder")?;
    if row.try_get("held")? && last.as_deref() != Some(holder) {
        return Err(held(conn, &key.name, last.as_deref()).await?);
    }
    not_paused(row.try_get("paused")?, key)?;
    // From the moment it is ours, not from the transaction's beginning, which may have waited for the row.
    let epoch: i64 = sql::query_scalar(
        "update orgstream.subscription \
         set epoch = epoch + 1, write_number = 0, holder = $3, taken_at = now(), \
             lease_until = clock_timestamp() + $4 * interval '1 millisecond' \
         where org_id = $1 and name = $2 returning epoch",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(holder)
    .bind(span_ms(ttl))
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
pub(super) async fn taken(conn: &mut PgConnection, lease: &Lease) -> Result<TakenOver, StoreError> {
    hold(conn, lease).await?;
    let row = sql::query(
        "select position, (extract(epoch from position_at) * 1000)::bigint as position_at, \
                (extract(epoch from position_time) * 1000)::bigint as position_time, \
                (extract(epoch from begun_at) * 1000)::bigint as begun_at, begun_with, begin_from, \
                position_transaction, position_event, lost_position \
         from orgstream.subscription where org_id = $1 and name = $2",
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
    conn: &mut PgConnection,
    key: &SubscriptionKey,
    configured: &[String],
    start_is_explicit: bool,
) -> Result<(), StoreError> {
    let names: Vec<String> = sql::query_scalar(
        "select name from orgstream.subscription \
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
    // Looked up after the names: a rename in between shows in one or the other.
    let former = sql::query_as(
        "select s.name, s.topic from orgstream.former_name f \
         join orgstream.subscription s on s.org_id = f.org_id and s.name = f.subscription \
         where f.org_id = $1 and f.name = $2",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_optional(&mut *conn)
    .await?;
    not_given_up(key, former)?;
    not_a_rename(key, &names, configured, start_is_explicit)?;
    sql::query(
        "insert into orgstream.subscription (org_id, name, topic) values ($1, $2, $3) \
         on conflict do nothing",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(key.topic.as_str())
    .execute(conn)
    .await?;
    Ok(())
}

async fn finished_ahead(
    conn: &mut PgConnection,
    key: &SubscriptionKey,
) -> Result<Vec<FinishedAhead>, StoreError> {
    let rows: Vec<(String, String)> = sql::query_as(
        "select handler, identity from orgstream.finished_ahead \
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

/// Says who holds a subscription that somebody else asks for.
pub(super) async fn held(
    conn: &mut PgConnection,
    name: &str,
    holder: Option<&str>,
) -> Result<StoreError, StoreError> {
    let by = sql::query_scalar("select name from orgstream.worker where holder = $1")
        .bind(holder)
        .fetch_optional(conn)
        .await?;
    Ok(StoreError::Held {
        subscription: name.to_owned(),
        by,
    })
}

/// Says that a worker lives, and forgets those that are dead for long.
async fn live(
    conn: &mut PgConnection,
    worker: &Worker,
    ttl: Duration,
    stopping: bool,
) -> Result<(), StoreError> {
    sql::query(
        "insert into orgstream.worker (holder, name, version, lives_until, subscriptions, refused) \
         values ($1, $2, $3, now() + $4 * interval '1 millisecond', $5, $6::text::jsonb) \
         on conflict (holder) do update set seen_at = now(), lives_until = excluded.lives_until, \
             subscriptions = excluded.subscriptions, refused = excluded.refused",
    )
    .bind(&worker.holder)
    .bind(plain(&worker.name))
    .bind(&worker.version)
    .bind(if stopping { 0 } else { span_ms(ttl) })
    .bind(plain_list(&worker.subscriptions))
    .bind(refused_json(&worker.refused))
    .execute(&mut *conn)
    .await?;
    // Several may sweep at the same time.
    sql::query(
        "delete from orgstream.worker where holder in \
             (select holder from orgstream.worker where lives_until < now() - interval '1 day' \
              for update skip locked)",
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Renews what is still the holder's. From the transaction's beginning, which is not before the holder
/// asked: its own clock, which counts from there, is never ahead. A row that somebody has locked is
/// skipped: it must not keep the others from being renewed. One that was given back stays so.
async fn renew(
    conn: &mut PgConnection,
    holder: &str,
    ttl: Duration,
    running: &[SubscriptionKey],
) -> Result<Heartbeat, StoreError> {
    let orgs: Vec<&str> = running.iter().map(|key| key.org_id.as_str()).collect();
    let names: Vec<&str> = running.iter().map(|key| key.name.as_str()).collect();
    let renewed = sql::query_scalar(
        "with ours as ( \
             select s.org_id, s.name from orgstream.subscription s \
             join unnest($2::text[], $3::text[]) as g (org_id, name) using (org_id, name) \
             where s.holder = $1 and s.lease_until is not null \
             for no key update of s skip locked) \
         update orgstream.subscription s set lease_until = now() + $4 * interval '1 millisecond' \
         from ours where s.org_id = ours.org_id and s.name = ours.name and s.holder = $1 \
         and s.lease_until is not null \
         returning s.name",
    )
    .bind(holder)
    .bind(&orgs)
    .bind(&names)
    .bind(span_ms(ttl))
    .fetch_all(&mut *conn)
    .await?;
    let held = sql::query_scalar(
        "select s.name from orgstream.subscription s \
         join unnest($2::text[], $3::text[]) as g (org_id, name) using (org_id, name) \
         where s.holder = $1 and s.lease_until is not null",
    )
    .bind(holder)
    .bind(&orgs)
    .bind(&names)
    .fetch_all(conn)
    .await?;
    Ok(Heartbeat { renewed, held })
}

/// All workers and the subscriptions of an org, at one moment.
async fn survey(conn: &mut PgConnection, org_id: &OrgId) -> Result<Survey, StoreError> {
    let mut survey = Survey::default();
    let workers = sql::query(
        "select holder, subscriptions, lives_until > now() as lives from orgstream.worker \
         where lives_until > now() \
            or lives_until <= seen_at and seen_at > now() - interval '30 seconds' order by holder",
    )
    .fetch_all(&mut *conn)
    .await?;
    for row in &workers {
        if row.try_get("lives")? {
            survey.workers.push(Peer {
                holder: row.try_get("holder")?,
                subscriptions: row.try_get("subscriptions")?,
            });
        } else {
            survey.stopping += 1;
        }
    }
    let rows = sql::query(
        "select name, holder, asked, paused_at is not null as paused, \
                position is not null as placed, begun_at is not null and begin_from is distinct from 'earliest' as begun, \
                (extract(epoch from lease_until - now()) * 1000)::bigint as rest \
         from orgstream.subscription where org_id = $1 order by name",
    )
    .bind(org_id.as_str())
    .fetch_all(conn)
    .await?;
    for row in &rows {
        survey.subscriptions.push(Surveyed {
            name: row.try_get("name")?,
            tenure: tenure(row.try_get("holder")?, row.try_get("rest")?),
            paused: row.try_get("paused")?,
            asked: row.try_get("asked")?,
            footing: footing(row.try_get("placed")?, row.try_get("begun")?),
        });
    }
    Ok(survey)
}

/// The workers that live.
async fn workers(conn: &mut PgConnection) -> Result<Vec<LivingWorker>, StoreError> {
    let rows = sql::query(
        "select holder, name, version, subscriptions, refused::text as refused, \
                (extract(epoch from started_at) * 1000)::bigint as started_at, \
                (extract(epoch from seen_at) * 1000)::bigint as seen_at \
         from orgstream.worker where lives_until > now() order by name, holder",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let worker = Worker {
                holder: row.try_get("holder")?,
                name: row.try_get("name")?,
                version: row.try_get("version")?,
                subscriptions: row.try_get("subscriptions")?,
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

async fn release(conn: &mut PgConnection, lease: &Lease) -> Result<(), StoreError> {
    sql::query(
        "update orgstream.subscription set lease_until = null \
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

/// Refuses a writer whose epoch has passed, and keeps the epoch from passing until the transaction ends.
/// The weakest lock that does: other writes of the same owner (progress, heartbeats) go on beside a long
/// transaction of a handler, and only what raises the epoch, which locks the row `for update`, waits for it.
pub(super) async fn hold(conn: &mut PgConnection, lease: &Lease) -> Result<(), StoreError> {
    let epoch: Option<i64> = sql::query_scalar(
        "select epoch from orgstream.subscription where org_id = $1 and name = $2 for key share",
    )
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
