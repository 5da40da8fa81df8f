//! Who runs which subscription.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, sql};
use crate::event::{EventIdentity, OrgId};
use crate::store::common::{
    begin_from, from_ms, not_a_rename, org_from, replay_id, same_org, same_topic,
};
use crate::store::{FinishedAhead, Lease, Leases, StoreError, SubscriptionKey, TakenOver};

#[async_trait]
impl Leases for PostgresStore {
    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError> {
        transaction!(self, |conn| take_over(
            conn,
            key,
            holder,
            configured,
            start_is_explicit
        ))
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
    configured: &[String],
    start_is_explicit: bool,
) -> Result<TakenOver, StoreError> {
    bind_org(conn, &key.org_id).await?;
    create(conn, key, configured, start_is_explicit).await?;
    let row = sql::query(
        "select topic, position, (extract(epoch from position_at) * 1000)::bigint as position_at, \
                begun_at is not null as begun, begun_with, begin_from \
         from orgstream.subscription where org_id = $1 and name = $2 for update",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_one(&mut *conn)
    .await?;
    same_topic(row.try_get("topic")?, key)?;
    let epoch: i64 = sql::query_scalar(
        "update orgstream.subscription \
         set epoch = epoch + 1, write_number = 0, holder = $3, taken_at = now() \
         where org_id = $1 and name = $2 returning epoch",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(holder)
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
        begin_from: begin_from(row.try_get("begin_from")?, position.as_ref()),
        position,
        finished_ahead: finished_ahead(conn, key).await?,
        position_at: row.try_get::<Option<i64>, _>("position_at")?.map(from_ms),
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

/// Refuses a writer whose epoch has passed, and keeps others from taking over until the transaction ends.
pub(super) async fn hold(conn: &mut PgConnection, lease: &Lease) -> Result<(), StoreError> {
    let epoch: Option<i64> = sql::query_scalar(
        "select epoch from orgstream.subscription where org_id = $1 and name = $2 for share",
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
