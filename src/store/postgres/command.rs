//! Commands. Every transaction that writes both locks the subscription's row before the command's.

use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::lease::{fenced, hold, taken};
use super::{PostgresStore, hole, sql};
use crate::config::Start;
use crate::event::{OrgId, ReplayId};
use crate::store::command::{Left, begin_from_text, command_json, position_mark};
use crate::store::common::{from_ms, plain, replay_id, to_ms};
use crate::store::{
    CommandKind, CommandState, Commands, Lease, MarksAround, StoreError, StoredCommand, TakenOver,
};

#[async_trait]
impl Commands for PostgresStore {
    async fn ask(
        &self,
        org_id: &OrgId,
        subscription: &str,
        kind: CommandKind,
        arguments: &Value,
        asked_by: Option<&str>,
    ) -> Result<Option<i64>, StoreError> {
        transaction!(self, |conn| ask(
            conn,
            org_id,
            subscription,
            kind,
            arguments,
            asked_by
        ))
    }

    async fn withdraw(&self, id: i64) -> Result<Option<StoredCommand>, StoreError> {
        transaction!(self, |conn| withdraw(conn, id))
    }

    async fn command(&self, id: i64) -> Result<Option<StoredCommand>, StoreError> {
        transaction!(self, |conn| one(conn, id))
    }

    async fn commands(
        &self,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<StoredCommand>, StoreError> {
        transaction!(self, |conn| list(conn, subscription, limit))
    }

    async fn open_commands(&self, lease: &Lease) -> Result<Vec<StoredCommand>, StoreError> {
        transaction!(self, |conn| open(conn, lease))
    }

    async fn begin_command(&self, lease: &Lease, id: i64) -> Result<bool, StoreError> {
        transaction!(self, |conn| begin(conn, lease, id))
    }

    async fn save_command(
        &self,
        lease: &Lease,
        id: i64,
        progress: &Value,
    ) -> Result<bool, StoreError> {
        transaction!(self, |conn| save(conn, lease, id, progress))
    }

    async fn end_command(
        &self,
        lease: &Lease,
        id: i64,
        state: CommandState,
        outcome: &str,
        progress: Option<&Value>,
    ) -> Result<bool, StoreError> {
        transaction!(self, |conn| async {
            hold(&mut *conn, lease).await?;
            end(conn, lease, id, state, outcome, progress).await
        })
    }

    async fn rewind(
        &self,
        lease: &Lease,
        id: i64,
        to: &Start,
        outcome: &str,
    ) -> Result<Option<TakenOver>, StoreError> {
        transaction!(self, |conn| rewind(conn, lease, id, to, outcome))
    }

    async fn marks_around(
        &self,
        org_id: &OrgId,
        subscription: &str,
        at: SystemTime,
    ) -> Result<MarksAround, StoreError> {
        transaction!(self, |conn| marks_around(conn, org_id, subscription, at))
    }
}

async fn ask(
    conn: &mut PgConnection,
    org_id: &OrgId,
    subscription: &str,
    kind: CommandKind,
    arguments: &Value,
    asked_by: Option<&str>,
) -> Result<Option<i64>, StoreError> {
    let known = sql::query(
        "update orgstream.subscription set asked = asked + 1 where org_id = $1 and name = $2",
    )
    .bind(org_id.as_str())
    .bind(subscription)
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if known == 0 {
        return Ok(None);
    }
    let id = sql::query_scalar(
        "insert into orgstream.command (org_id, subscription, kind, arguments, asked_by) \
         values ($1, $2, $3, $4::text::jsonb, $5) returning id",
    )
    .bind(org_id.as_str())
    .bind(subscription)
    .bind(kind.name())
    .bind(arguments.to_string())
    .bind(asked_by.map(plain))
    .fetch_one(conn)
    .await?;
    Ok(Some(id))
}

async fn withdraw(conn: &mut PgConnection, id: i64) -> Result<Option<StoredCommand>, StoreError> {
    sql::query(
        "update orgstream.subscription s set asked = asked + 1 from orgstream.command c \
         where c.id = $1 and s.org_id = c.org_id and s.name = c.subscription",
    )
    .bind(id)
    .execute(&mut *conn)
    .await?;
    sql::query(
        "update orgstream.command set state = 'withdrawn', ended_at = now() \
         where id = $1 and state in ('asked', 'running')",
    )
    .bind(id)
    .execute(&mut *conn)
    .await?;
    one(conn, id).await
}

async fn one(conn: &mut PgConnection, id: i64) -> Result<Option<StoredCommand>, StoreError> {
    let row = sql::query(
        "select id, subscription, kind, arguments::text as arguments, state, \
                progress::text as progress, outcome, asked_by, \
                (extract(epoch from asked_at) * 1000)::bigint as asked_at, \
                (extract(epoch from begun_at) * 1000)::bigint as begun_at, \
                (extract(epoch from ended_at) * 1000)::bigint as ended_at \
         from orgstream.command where id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(row.as_ref().map(stored).transpose()?.flatten())
}

async fn list(
    conn: &mut PgConnection,
    subscription: Option<&str>,
    limit: u32,
) -> Result<Vec<StoredCommand>, StoreError> {
    let rows = sql::query(
        "select id, subscription, kind, arguments::text as arguments, state, \
                progress::text as progress, outcome, asked_by, \
                (extract(epoch from asked_at) * 1000)::bigint as asked_at, \
                (extract(epoch from begun_at) * 1000)::bigint as begun_at, \
                (extract(epoch from ended_at) * 1000)::bigint as ended_at \
         from orgstream.command where $1::text is null or subscription = $1 \
         order by id desc limit $2",
    )
    .bind(subscription)
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    all(&rows)
}

async fn open(conn: &mut PgConnection, lease: &Lease) -> Result<Vec<StoredCommand>, StoreError> {
    hold(conn, lease).await?;
    let rows = sql::query(
        "select id, subscription, kind, arguments::text as arguments, state, \
                progress::text as progress, outcome, asked_by, \
                (extract(epoch from asked_at) * 1000)::bigint as asked_at, \
                (extract(epoch from begun_at) * 1000)::bigint as begun_at, \
                (extract(epoch from ended_at) * 1000)::bigint as ended_at \
         from orgstream.command \
         where org_id = $1 and subscription = $2 and state in ('asked', 'running') order by id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?;
    all(&rows)
}

fn all(rows: &[PgRow]) -> Result<Vec<StoredCommand>, StoreError> {
    let read: Result<Vec<_>, _> = rows.iter().map(stored).collect();
    Ok(read?.into_iter().flatten().collect())
}

fn stored(row: &PgRow) -> Result<Option<StoredCommand>, StoreError> {
    let Some(kind) = CommandKind::from_name(row.try_get("kind")?) else {
        return Ok(None);
    };
    let time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(from_ms));
    Ok(Some(StoredCommand {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        kind,
        arguments: command_json(row.try_get("arguments")?),
        state: CommandState::from_name(row.try_get("state")?),
        progress: command_json(row.try_get("progress")?),
        outcome: row.try_get("outcome")?,
        asked_at: from_ms(row.try_get("asked_at")?),
        asked_by: row.try_get("asked_by")?,
        begun_at: time("begun_at")?,
        ended_at: time("ended_at")?,
    }))
}

async fn begin(conn: &mut PgConnection, lease: &Lease, id: i64) -> Result<bool, StoreError> {
    hold(conn, lease).await?;
    let begun = sql::query(
        "update orgstream.command set state = 'running', begun_at = coalesce(begun_at, now()) \
         where id = $1 and org_id = $2 and subscription = $3 and state in ('asked', 'running')",
    )
    .bind(id)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .execute(conn)
    .await?
    .rows_affected();
    Ok(begun > 0)
}

async fn save(
    conn: &mut PgConnection,
    lease: &Lease,
    id: i64,
    progress: &Value,
) -> Result<bool, StoreError> {
    hold(conn, lease).await?;
    let saved = sql::query(
        "update orgstream.command set progress = $4::text::jsonb \
         where id = $1 and org_id = $2 and subscription = $3 and state = 'running'",
    )
    .bind(id)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(progress.to_string())
    .execute(conn)
    .await?
    .rows_affected();
    Ok(saved > 0)
}

async fn end(
    conn: &mut PgConnection,
    lease: &Lease,
    id: i64,
    state: CommandState,
    outcome: &str,
    progress: Option<&Value>,
) -> Result<bool, StoreError> {
    let ended = sql::query(
        "update orgstream.command set state = $4, outcome = $5, ended_at = now(), \
             begun_at = coalesce(begun_at, now()), progress = coalesce($6::text::jsonb, progress) \
         where id = $1 and org_id = $2 and subscription = $3 and state in ('asked', 'running')",
    )
    .bind(id)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(state.name())
    .bind(plain(outcome))
    .bind(progress.map(Value::to_string))
    .execute(conn)
    .await?
    .rows_affected();
    Ok(ended > 0)
}

async fn rewind(
    conn: &mut PgConnection,
    lease: &Lease,
    id: i64,
    to: &Start,
    outcome: &str,
) -> Result<Option<TakenOver>, StoreError> {
    let left = left(conn, lease).await?;
    let old = left.position.clone();
    if !end(conn, lease, id, CommandState::Done, outcome, None).await? {
        return Ok(None);
    }
    if let Start::After(place) = to {
        // What begins there comes by it.
        hole::nothing_skipped(conn, lease, place).await?;
    }
    if let Some(hole) = left.hole(to) {
        hole::record(conn, lease, &hole).await?;
    }
    rewind_letters(conn, lease, to, old.as_ref()).await?;
    let (position, begin_from) = begin_from_text(to);
    // The place is as old as its mark, and of unknown age without one: the row is younger.
    let epoch: i64 = sql::query_scalar(
        "update orgstream.subscription set epoch = epoch + 1, write_number = 0, position = $3, \
             position_at = null, \
             position_time = (select min(at) from orgstream.position_mark m \
                 where m.org_id = $1 and m.subscription = $2 and m.position = $3), \
             position_event = null, begin_from = $4, \
             position_transaction = case when $3::bytea is null then null else '' end, begun_at = null, begun_with = null, \
             lost_position = null \
         where org_id = $1 and name = $2 returning epoch",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(position.as_ref().map(ReplayId::as_bytes))
    .bind(begin_from)
    .fetch_one(&mut *conn)
    .await?;
    sql::query("delete from orgstream.finished_ahead where org_id = $1 and subscription = $2")
        .bind(lease.key.org_id.as_str())
        .bind(&lease.key.name)
        .execute(&mut *conn)
        .await?;
    let lease = Lease {
        epoch,
        ..lease.clone()
    };
    Ok(Some(taken(conn, &lease).await?))
}

/// The stream brings the events of open letters once more, unless they lie before where it begins: those that
/// `old`, the position until now, had passed, come at the latest there. What is settled is handed over anew.
async fn rewind_letters(
    conn: &mut PgConnection,
    lease: &Lease,
    to: &Start,
    old: Option<&ReplayId>,
) -> Result<(), StoreError> {
    let back = match to {
        Start::Latest => false,
        Start::Earliest => true,
        Start::After(place) => old != Some(place),
    };
    sql::query(
        "update orgstream.dead_letter set ahead = state = 'open' and ($3 or ahead and not $5), \
             ahead_until = case when state <> 'open' or $5 then null \
                                when ahead then ahead_until when $3 then $4 end \
         where org_id = $1 and subscription = $2 and (state = 'open' or ahead)",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(back)
    .bind(old.map(ReplayId::as_bytes))
    .bind(*to == Start::Latest)
    .execute(conn)
    .await?;
    Ok(())
}

/// Where the subscription stands; keeps everybody else from moving it.
async fn left(conn: &mut PgConnection, lease: &Lease) -> Result<Left, StoreError> {
    let row = sql::query(
        "select position, position_event, begun_with, \
                (extract(epoch from position_time) * 1000)::bigint as position_time, \
                (extract(epoch from begun_at) * 1000)::bigint as begun_at \
         from orgstream.subscription where org_id = $1 and name = $2 and epoch = $3 for update",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .fetch_optional(conn)
    .await?
    .ok_or_else(|| fenced(lease))?;
    Ok(Left {
        position: replay_id(row.try_get("position")?),
        event: replay_id(row.try_get("position_event")?),
        time: row.try_get::<Option<i64>, _>("position_time")?.map(from_ms),
        begun_with: replay_id(row.try_get("begun_with")?),
        begun_at: row.try_get::<Option<i64>, _>("begun_at")?.map(from_ms),
    })
}

async fn marks_around(
    conn: &mut PgConnection,
    org_id: &OrgId,
    subscription: &str,
    at: SystemTime,
) -> Result<MarksAround, StoreError> {
    let before: Option<(i64, Vec<u8>)> = sql::query_as(
        "select (extract(epoch from at) * 1000)::bigint, position from orgstream.position_mark \
         where org_id = $1 and subscription = $2 and at <= to_timestamp($3::bigint / 1000.0) \
         order by at desc limit 1",
    )
    .bind(org_id.as_str())
    .bind(subscription)
    .bind(to_ms(at))
    .fetch_optional(&mut *conn)
    .await?;
    let oldest: Option<(i64, Vec<u8>)> = sql::query_as(
        "select (extract(epoch from at) * 1000)::bigint, position from orgstream.position_mark \
         where org_id = $1 and subscription = $2 order by at limit 1",
    )
    .bind(org_id.as_str())
    .bind(subscription)
    .fetch_optional(conn)
    .await?;
    Ok(MarksAround {
        before: before.and_then(position_mark),
        oldest: oldest.and_then(position_mark),
    })
}
