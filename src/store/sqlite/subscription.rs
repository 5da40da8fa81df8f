//! Taking over, progress, state.

use std::time::SystemTime;

use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::event::{EventIdentity, OrgId, ReplayId};
use crate::store::common::{
    MARK_INTERVAL_MS, from_ms, from_sql_count, mark_ms, not_a_rename, org_from, plain, replay_id,
    same_org, same_topic, to_ms, to_sql_count, topic_from,
};
use crate::store::{
    FinishedAhead, Lease, Progress, StateReport, StoreError, SubscriptionKey, SubscriptionStatus,
    TakenOver,
};

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
    configured: &[String],
    start_is_explicit: bool,
) -> Result<TakenOver, StoreError> {
    bind_org(conn, &key.org_id).await?;
    create(conn, key, configured, start_is_explicit).await?;
    let row = sqlx::query(
        "select topic, position, position_at, \
                begun_at is not null as begun, begun_with \
         from subscription where org_id = $1 and name = $2",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_one(&mut *conn)
    .await?;
    same_topic(row.try_get("topic")?, key)?;
    let epoch: i64 = sqlx::query_scalar(
        "update subscription \
         set epoch = epoch + 1, write_number = 0, holder = $3, taken_at = $4 \
         where org_id = $1 and name = $2 returning epoch",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(holder)
    .bind(to_ms(SystemTime::now()))
    .fetch_one(&mut *conn)
    .await?;
    let position = replay_id(row.try_get("position")?);
    Ok(TakenOver {
        lease: Lease {
            key: key.clone(),
            holder: holder.to_owned(),
            epoch,
        },
        begun_without_position: row.try_get("begun")? && position.is_none(),
        begun_with: replay_id(row.try_get("begun_with")?).filter(|_| position.is_none()),
        position,
        finished_ahead: finished_ahead(conn, key).await?,
        position_at: row.try_get::<Option<i64>, _>("position_at")?.map(from_ms),
    })
}

/// Notes that a stream is about to begin at LATEST.
pub(super) async fn mark_begun(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sqlx::query(
        "update subscription set begun_at = coalesce(begun_at, $3) \
         where org_id = $1 and name = $2",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes the first replay ID that came on a stream that began at LATEST.
pub(super) async fn mark_first(
    conn: &mut SqliteConnection,
    lease: &Lease,
    first: &ReplayId,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sqlx::query(
        "update subscription set begun_with = $3 \
         where org_id = $1 and name = $2 and position is null and begun_with is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(first.as_bytes())
    .execute(conn)
    .await?;
    Ok(())
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

fn fenced(lease: &Lease) -> StoreError {
    StoreError::Fenced {
        subscription: lease.key.name.clone(),
        ours: lease.epoch,
    }
}

/// Writes progress. `number` orders this write among those of the same epoch: one that was given up but
/// reaches the database after a newer one is refused.
pub(super) async fn save_progress(
    conn: &mut SqliteConnection,
    lease: &Lease,
    number: i64,
    progress: &Progress,
) -> Result<(), StoreError> {
    let written = sqlx::query(
        "update subscription set \
             position = coalesce($5, position), \
             position_at = case when $5 is null then position_at else $9 end, \
             caught_up_at = coalesce($6, caught_up_at), \
             received = received + $7, finished = finished + $8, write_number = $4 \
         where org_id = $1 and name = $2 and epoch = $3 and write_number < $4",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(number)
    .bind(progress.position.as_ref().map(|id| id.as_bytes()))
    .bind(progress.caught_up_at.map(to_ms))
    .bind(to_sql_count(progress.received))
    .bind(to_sql_count(progress.finished))
    .bind(to_ms(SystemTime::now()))
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if written == 0 {
        hold(conn, lease).await?;
        return Err(StoreError::Unavailable(
            "a newer write of the same worker came first".to_owned(),
        ));
    }
    replace_finished_ahead(conn, lease, &progress.finished_ahead).await?;
    mark_position(conn, lease, progress).await
}

/// Makes the stored set the given one, touching only what differs.
async fn replace_finished_ahead(
    conn: &mut SqliteConnection,
    lease: &Lease,
    given: &[FinishedAhead],
) -> Result<(), StoreError> {
    let pairs: Vec<_> = given
        .iter()
        .map(|ahead| json!([ahead.handler, ahead.identity.as_str()]))
        .collect();
    let pairs = serde_json::Value::from(pairs).to_string();
    sqlx::query(
        "delete from finished_ahead where org_id = $1 and subscription = $2 \
         and (handler, identity) not in (select value ->> 0, value ->> 1 from json_each($3))",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&pairs)
    .execute(&mut *conn)
    .await?;
    if given.is_empty() {
        return Ok(());
    }
    // `where true` tells SQLite's parser that `on` does not begin a join.
    sqlx::query(
        "insert into finished_ahead (org_id, subscription, handler, identity) \
         select $1, $2, value ->> 0, value ->> 1 from json_each($3) where true \
         on conflict do nothing",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&pairs)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes which position belonged to which time, unless a mark is near.
async fn mark_position(
    conn: &mut SqliteConnection,
    lease: &Lease,
    progress: &Progress,
) -> Result<(), StoreError> {
    let (Some(position), Some(at)) = (&progress.position, progress.marked_at.and_then(mark_ms))
    else {
        return Ok(());
    };
    sqlx::query(
        "insert into position_mark (org_id, subscription, at, position) \
         select $1, $2, $3, $5 \
         where not exists (select 1 from position_mark \
                           where org_id = $1 and subscription = $2 \
                           and at > $3 - $4)",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(at)
    .bind(MARK_INTERVAL_MS)
    .bind(position.as_bytes())
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes a state for people to see.
pub(super) async fn report_state(
    conn: &mut SqliteConnection,
    lease: &Lease,
    report: &StateReport,
) -> Result<(), StoreError> {
    let written = sqlx::query(
        "update subscription set state = $4, state_detail = $5, state_at = $6 \
         where org_id = $1 and name = $2 and epoch = $3",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(plain(&report.state))
    .bind(report.detail.as_deref().map(plain))
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?
    .rows_affected();
    if written == 0 {
        return Err(fenced(lease));
    }
    Ok(())
}

/// Every subscription, by name.
pub(super) async fn all(
    conn: &mut SqliteConnection,
) -> Result<Vec<SubscriptionStatus>, StoreError> {
    let rows = sqlx::query(
        "select s.org_id, s.name, s.topic, s.state, s.state_detail, s.holder, s.epoch, s.position, \
                s.received, s.finished, \
                s.state_at, \
                s.position_at, \
                s.caught_up_at, \
                (select count(*) from dead_letter d where d.org_id = s.org_id \
                 and d.subscription = s.name and d.state = 'open') as parked, \
                (select count(*) from hole h where h.org_id = s.org_id \
                 and h.subscription = s.name and h.acknowledged_at is null) as holes \
         from subscription s order by s.name, s.org_id",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let time =
                |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(from_ms));
            let count = |column| Ok::<_, sqlx::Error>(from_sql_count(row.try_get(column)?));
            Ok(SubscriptionStatus {
                key: SubscriptionKey {
                    org_id: org_from(row.try_get("org_id")?)?,
                    name: row.try_get("name")?,
                    topic: topic_from(row.try_get("topic")?)?,
                },
                state: row.try_get("state")?,
                detail: row.try_get("state_detail")?,
                state_at: time("state_at")?,
                holder: row.try_get("holder")?,
                epoch: row.try_get("epoch")?,
                position: replay_id(row.try_get("position")?),
                position_at: time("position_at")?,
                caught_up_at: time("caught_up_at")?,
                received: count("received")?,
                finished: count("finished")?,
                parked: count("parked")?,
                holes: count("holes")?,
            })
        })
        .collect()
}
