//! What the owner of a subscription does with its dead letters.

use std::time::{Duration, SystemTime};

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::lease::hold;
use super::super::{from_json, ids_json};
use super::park;
use crate::event::EventIdentity;
use crate::store::common::{commit, from_ms, from_sql_count, plain, replay_id, to_ms};
use crate::store::vault::Sealer;
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, SettledAhead, StoreError};

/// What [`summary_from`] reads, less `to_come`.
macro_rules! summary_columns {
    () => {
        "d.id, coalesce(d.place, d.id) as place, d.subscription, d.topic, d.handler, d.identity, d.state, \
         d.reason, d.error, d.record_ids, d.unit, d.retry_asked_at is not null as asked, d.replay_id, \
         d.received_at, d.ahead_until, d.committed_at, d.commit_number, \
         length(d.payload) as bytes"
    };
}
pub(super) use summary_columns;

/// All that are open. One whose event is above the position is still to come again, unless it is older than
/// anything that the bus keeps (three days).
pub(super) async fn open_letters(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<Vec<LetterSummary>, StoreError> {
    hold(conn, lease).await?;
    let rows = sqlx::query(concat!(
        "select ",
        summary_columns!(),
        ", d.ahead and d.received_at > $3 as to_come from dead_letter d \
         where d.org_id = $1 and d.subscription = $2 and d.state = 'open' order by place, d.id"
    ))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to_ms(SystemTime::now() - Duration::from_secs(4 * 86_400)))
    .fetch_all(conn)
    .await?;
    rows.iter().map(summary_from).collect()
}

/// What is settled although its event is above the position.
pub(super) async fn settled_ahead(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<Vec<SettledAhead>, StoreError> {
    hold(conn, lease).await?;
    let rows: Vec<(i64, Option<String>, String)> = sqlx::query_as(
        "select id, handler, identity from dead_letter \
         where org_id = $1 and subscription = $2 and ahead and state <> 'open'",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?;
    let settled = rows
        .into_iter()
        .map(|(id, handler, identity)| SettledAhead {
            id,
            handler,
            identity: EventIdentity::from_stored(&identity),
        });
    Ok(settled.collect())
}

/// Handled.
pub(super) async fn resolve(
    conn: &mut SqliteConnection,
    lease: &Lease,
    ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    hold(conn, lease).await?;
    Ok(sqlx::query_scalar(
        "update dead_letter set state = 'handled', resolved_at = $4, retry_asked_at = null \
         where id in (select value from json_each($1)) and org_id = $2 and subscription = $3 \
         and state = 'open' returning id",
    )
    .bind(ids_json(ids))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to_ms(SystemTime::now()))
    .fetch_all(conn)
    .await?)
}

/// Refused once more.
pub(super) async fn park_again(
    conn: &mut SqliteConnection,
    lease: &Lease,
    ids: &[i64],
    refusal: &Refusal,
) -> Result<Vec<i64>, StoreError> {
    hold(conn, lease).await?;
    Ok(sqlx::query_scalar(
        "update dead_letter set reason = $4, error = $5, \
             attempts = min(attempts + $6, 2147483647), retry_asked_at = null \
         where id in (select value from json_each($1)) and org_id = $2 and subscription = $3 \
         and state = 'open' returning id",
    )
    .bind(ids_json(ids))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(plain(&refusal.reason))
    .bind(plain(&refusal.error))
    .bind(i64::from(refusal.attempts))
    .fetch_all(conn)
    .await?)
}

/// Gives every handler letters of its own in the place of those that nobody could decode.
pub(super) async fn pass_on(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    lease: &Lease,
    ids: &[i64],
    letters: &[DeadLetter],
) -> Result<Option<Vec<Placed>>, StoreError> {
    hold(conn, lease).await?;
    let open: i64 = sqlx::query_scalar(
        "select count(*) from dead_letter where id in (select value from json_each($1)) \
         and org_id = $2 and subscription = $3 and state = 'open'",
    )
    .bind(ids_json(ids))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_one(&mut *conn)
    .await?;
    if usize::try_from(open).unwrap_or(0) < ids.len() {
        return Ok(None);
    }
    // The position passes all of a unit at once.
    let (ahead, until): (bool, Option<Vec<u8>>) = sqlx::query_as(
        "select ahead, ahead_until from dead_letter where id in (select value from json_each($1)) \
         order by ahead desc, ahead_until nulls last limit 1",
    )
    .bind(ids_json(ids))
    .fetch_one(&mut *conn)
    .await?;
    resolve(conn, lease, ids).await?;
    let mut placed = Vec::with_capacity(letters.len());
    for letter in letters {
        let letter = DeadLetter {
            ahead: false,
            ..letter.clone()
        };
        let own = park(conn, sealer, lease, &letter, true).await?;
        set_ahead(conn, own.id, ahead, until.as_deref()).await?;
        placed.push(own);
    }
    for id in ids {
        set_ahead(conn, *id, false, None).await?;
    }
    Ok(Some(placed))
}

/// Says whether a letter's event is above the position.
async fn set_ahead(
    conn: &mut SqliteConnection,
    id: i64,
    ahead: bool,
    until: Option<&[u8]>,
) -> Result<(), StoreError> {
    sqlx::query("update dead_letter set ahead = $2, ahead_until = $3 where id = $1")
        .bind(id)
        .bind(ahead)
        .bind(until)
        .execute(conn)
        .await?;
    Ok(())
}

/// A letter without its payload.
pub(super) fn summary_from(row: &SqliteRow) -> Result<LetterSummary, StoreError> {
    Ok(LetterSummary {
        placed: Placed {
            place: row.try_get("place")?,
            id: row.try_get("id")?,
        },
        subscription: row.try_get("subscription")?,
        topic: row.try_get("topic")?,
        handler: row.try_get("handler")?,
        identity: EventIdentity::from_stored(row.try_get("identity")?),
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        record_ids: from_json(row.try_get("record_ids")?)?,
        unit: row.try_get("unit")?,
        asked: row.try_get("asked")?,
        replay_id: replay_id(row.try_get("replay_id")?),
        bytes: from_sql_count(row.try_get("bytes")?),
        received_at: from_ms(row.try_get("received_at")?),
        commit: commit(row.try_get("committed_at")?, row.try_get("commit_number")?),
        to_come: row.try_get("to_come")?,
        until: replay_id(row.try_get("ahead_until")?),
    })
}
