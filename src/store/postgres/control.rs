//! Pausing, resuming, renaming.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::lease::held;
use super::{PostgresStore, sql};
use crate::event::OrgId;
use crate::store::{Controls, Renamed, StoreError};

#[async_trait]
impl Controls for PostgresStore {
    async fn pause(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, |conn| set_paused(conn, org_id, name, true))
    }

    async fn pause_to_rename(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, |conn| pause_to_rename(conn, org_id, name))
    }

    async fn resume_unrenamed(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, |conn| resume_unrenamed(conn, org_id, name))
    }

    async fn resume(&self, org_id: &OrgId, name: &str) -> Result<bool, StoreError> {
        transaction!(self, |conn| set_paused(conn, org_id, name, false))
    }

    async fn rename(&self, org_id: &OrgId, old: &str, new: &str) -> Result<Renamed, StoreError> {
        transaction!(self, |conn| rename(conn, org_id, old, new))
    }
}

async fn set_paused(
    conn: &mut PgConnection,
    org_id: &OrgId,
    name: &str,
    paused: bool,
) -> Result<bool, StoreError> {
    let updated = sql::query(
        "update orgstream.subscription \
         set paused_at = case when $3 then coalesce(paused_at, now()) end, paused_to_rename_at = null, \
             asked = asked + 1 \
         where org_id = $1 and name = $2",
    )
    .bind(org_id.as_str())
    .bind(name)
    .bind(paused)
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

/// The pause is a rename's as long as both times are the same.
async fn pause_to_rename(
    conn: &mut PgConnection,
    org_id: &OrgId,
    name: &str,
) -> Result<bool, StoreError> {
    let updated = sql::query(
        "update orgstream.subscription \
         set paused_to_rename_at = case when paused_at is null then now() else paused_to_rename_at end, \
             paused_at = coalesce(paused_at, now()), asked = asked + 1 \
         where org_id = $1 and name = $2",
    )
    .bind(org_id.as_str())
    .bind(name)
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

async fn resume_unrenamed(
    conn: &mut PgConnection,
    org_id: &OrgId,
    name: &str,
) -> Result<bool, StoreError> {
    let updated = sql::query(
        "update orgstream.subscription \
         set paused_at = null, paused_to_rename_at = null, asked = asked + 1 \
         where org_id = $1 and name = $2 and paused_at = paused_to_rename_at",
    )
    .bind(org_id.as_str())
    .bind(name)
    .execute(conn)
    .await?;
    Ok(updated.rows_affected() > 0)
}

async fn rename(
    conn: &mut PgConnection,
    org_id: &OrgId,
    old: &str,
    new: &str,
) -> Result<Renamed, StoreError> {
    let row = sql::query(
        "select holder, coalesce(lease_until > clock_timestamp(), false) as held \
         from orgstream.subscription where org_id = $1 and name = $2 for update",
    )
    .bind(org_id.as_str())
    .bind(old)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else {
        let renamed: Option<i32> = sql::query_scalar(
            "select 1 from orgstream.former_name where org_id = $1 and name = $2 and subscription = $3",
        )
        .bind(org_id.as_str())
        .bind(old)
        .bind(new)
        .fetch_optional(&mut *conn)
        .await?;
        return Ok(renamed.map_or(Renamed::Unknown, |_| Renamed::Done));
    };
    if row.try_get("held")? {
        let holder: Option<String> = row.try_get("holder")?;
        return Err(held(conn, old, holder.as_deref()).await?);
    }
    let taken: Option<i32> =
        sql::query_scalar("select 1 from orgstream.subscription where org_id = $1 and name = $2")
            .bind(org_id.as_str())
            .bind(new)
            .fetch_optional(&mut *conn)
            .await?;
    if taken.is_some() {
        return Ok(Renamed::NameTaken);
    }
    sql::query("delete from orgstream.former_name where org_id = $1 and name = $2")
        .bind(org_id.as_str())
        .bind(new)
        .execute(&mut *conn)
        .await?;
    // Tables with a foreign key follow by themselves, and marks by a trigger; these two outlive their subscription. The
    // old name is kept from being begun anew by a worker whose configuration still has it.
    for statement in [
        "update orgstream.subscription set name = $3, epoch = epoch + 1, asked = asked + 1, \
             lease_until = null, paused_to_rename_at = null, \
             paused_at = case when paused_at = paused_to_rename_at then null else paused_at end \
         where org_id = $1 and name = $2",
        "update orgstream.dead_letter set subscription = $3 where org_id = $1 and subscription = $2",
        "update orgstream.hole set subscription = $3 where org_id = $1 and subscription = $2",
        "insert into orgstream.former_name (org_id, name, subscription) values ($1, $2, $3) \
         on conflict (org_id, name) do update set subscription = excluded.subscription, renamed_at = now()",
    ] {
        sql::query(statement)
            .bind(org_id.as_str())
            .bind(old)
            .bind(new)
            .execute(&mut *conn)
            .await?;
    }
    Ok(Renamed::Done)
}
