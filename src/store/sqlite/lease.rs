//! Who runs which subscription.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, WRITE};
use crate::event::{EventIdentity, OrgId};
use crate::store::common::{
    begin_from, from_ms, not_a_rename, org_from, replay_id, same_org, same_topic, to_ms,
};
use crate::store::{FinishedAhead, Lease, Leases, StoreError, SubscriptionKey, TakenOver};

#[async_trait]
impl Leases for SqliteStore {
    async fn take_over(
        &self,
        key: &SubscriptionKey,
        holder: &str,
        configured: &[String],
        start_is_explicit: bool,
    ) -> Result<TakenOver, StoreError> {
        self.database.claim()?;
        transaction!(self, WRITE, |conn| take_over(
            conn,
            key,
            holder,
            configured,
            start_is_explicit
        ))
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
    configured: &[String],
    start_is_explicit: bool,
) -> Result<TakenOver, StoreError> {
    bind_org(conn, &key.org_id).await?;
    create(conn, key, configured, start_is_explicit).await?;
    let row = sqlx::query(
        "select topic, position, position_at, \
                begun_at is not null as begun, begun_with, begin_from \
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
        begin_from: begin_from(row.try_get("begin_from")?, position.as_ref()),
        position,
        finished_ahead: finished_ahead(conn, key).await?,
        position_at: row.try_get::<Option<i64>, _>("position_at")?.map(from_ms),
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

pub(super) fn fenced(lease: &Lease) -> StoreError {
    StoreError::Fenced {
        subscription: lease.key.name.clone(),
        ours: lease.epoch,
    }
}
