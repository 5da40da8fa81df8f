//! Pausing, resuming, renaming.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, WRITE};
use crate::event::OrgId;
use crate::store::common::to_ms;
use crate::store::{Controls, Renamed, StoreError};

#[async_trait]
impl Controls for SqliteStore {
    async fn pause(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, WRITE, |conn| set_paused(conn, org_id, name, true))
    }

    async fn pause_to_rename(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, WRITE, |conn| pause_to_rename(conn, org_id, name))
    }

    async fn resume_unrenamed(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, WRITE, |conn| resume_unrenamed(conn, org_id, name))
    }

    async fn resume(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, WRITE, |conn| set_paused(conn, org_id, name, false))
    }

    async fn rename(&self, org_id: &OrgId, old: &str, new: &str) -> Result<Renamed, StoreError> {
        transaction!(self, WRITE, |conn| rename(conn, org_id, old, new))
    }
}

async fn set_paused(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    name: &str,
    paused: bool,
) -> Result<bool, StoreError> {
    let updated = sqlx::query(
        "update subscription \
         set paused_at = case when $3 then coalesce(paused_at, $4) end, paused_to_rename_at = null, \
             asked = asked + 1 \
         where org_id = $1 and name = $2",
    )
    .bind(org_id.as_str())
    .bind(name)
    .bind(paused)
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

/// The pause is a rename's as long as both times are the same.
async fn pause_to_rename(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    name: &str,
) -> Result<bool, StoreError> {
    let updated = sqlx::query(
        "update subscription \
         set paused_to_rename_at = iif(paused_at is null, $3, paused_to_rename_at), \
             paused_at = coalesce(paused_at, $3), asked = asked + 1 \
         where org_id = $1 and name = $2",
    )
    .bind(org_id.as_str())
    .bind(name)
    .bind(to_ms(SystemTime::now()))
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

async fn resume_unrenamed(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    name: &str,
) -> Result<bool, StoreError> {
    let updated = sqlx::query(
        "update subscription set paused_at = null, paused_to_rename_at = null, asked = asked + 1 \
         where org_id = $1 and name = $2 and paused_at = paused_to_rename_at",
    )
    .bind(org_id.as_str())
    .bind(name)
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

async fn rename(
    conn: &mut SqliteConnection,
    org_id: &OrgId,
    old: &str,
    new: &str,
) -> Result<Renamed, StoreError> {
    let row = sqlx::query(
        "select w.name as worker, coalesce(s.lease_until > $3, false) as held \
         from subscription s left join worker w on w.holder = s.holder \
         where s.org_id = $1 and s.name = $2",
    )
    .bind(org_id.as_str())
    .bind(old)
    .bind(to_ms(SystemTime::now()))
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else {
        let renamed: Option<i32> = sqlx::query_scalar(
            "select 1 from former_name where org_id = $1 and name = $2 and subscription = $3",
        )
        .bind(org_id.as_str())
        .bind(old)
        .bind(new)
        .fetch_optional(&mut *conn)
        .await?;
        return Ok(renamed.map_or(Renamed::Unknown, |_| Renamed::Done));
    };
    if row.try_get("held")? {
        return Err(StoreError::Held {
            subscription: old.to_owned(),
            by: row.try_get("worker")?,
        });
    }
    let taken: Option<i32> =
        sqlx::query_scalar("select 1 from subscription where org_id = $1 and name = $2")
            .bind(org_id.as_str())
            .bind(new)
            .fetch_optional(&mut *conn)
            .await?;
    if taken.is_some() {
        return Ok(Renamed::NameTaken);
    }
    sqlx::query("delete from former_name where org_id = $1 and name = $2")
        .bind(org_id.as_str())
        .bind(new)
        .execute(&mut *conn)
        .await?;
    // Tables with a foreign key follow by themselves; these two outlive their subscription. The old name is
    // kept from being begun anew by a worker whose configuration still has it.
    for statement in [
        "update subscription set name = $3, epoch = epoch + 1, asked = asked + 1, \
             lease_until = null, paused_to_rename_at = null, \
             paused_at = iif(paused_at = paused_to_rename_at, null, paused_at) \
         where org_id = $1 and name = $2",
        "update dead_letter set subscription = $3 where org_id = $1 and subscription = $2",
        "update hole set subscription = $3 where org_id = $1 and subscription = $2",
        "insert into former_name (org_id, name, subscription, renamed_at) \
         values ($1, $2, $3, unixepoch() * 1000) on conflict (org_id, name) \
         do update set subscription = excluded.subscription, renamed_at = excluded.renamed_at",
    ] {
        sqlx::query(statement)
            .bind(org_id.as_str())
            .bind(old)
            .bind(new)
            .execute(&mut *conn)
            .await?;
    }
    Ok(Renamed::Done)
}
