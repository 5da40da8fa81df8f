//! What the owner of a subscription does with its dead letters.

use std::time::{Duration, SystemTime};

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::lease::hold;
use super::super::{from_json, ids_json};
use super::park;
use crate::event::EventIdentity;
use crate::store::common::{from_sql_count, plain, replay_id, to_ms};
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, StoreError};

/// What [`summary_from`] reads, less `to_come`.
macro_rules! summary_columns {
    () => {
        "d.id, coalesce(d.place, d.id) as place, d.subscription, d.handler, d.identity, d.state, \
         d.reason, d.error, d.record_ids, d.unit, d.retry_asked_at is not null as asked, d.replay_id, \
         length(d.payload) as bytes"
    };
}
pub(super) use summary_columns;

/// All that are open. One whose event is finished above the position, or was parked since that was last
/// written, is still to come again, unless it is older than anything that the bus keeps (three days).
pub(super) async fn open_letters(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<Vec<LetterSummary>, StoreError> {
    hold(conn, lease).await?;
    let rows = sqlx::query(concat!(
        "select ",
        summary_columns!(),
        ", d.received_at > $3 \
           and (s.position_at is null or d.parked_at > s.position_at \
                or exists (select 1 from finished_ahead f where f.org_id = d.org_id \
                           and f.subscription = d.subscription and f.identity = d.identity \
                           and f.handler = coalesce(d.handler, f.handler))) as to_come \
         from dead_letter d \
         join subscription s on s.org_id = d.org_id and s.name = d.subscription \
         where d.org_id = $1 and d.subscription = $2 and d.state = 'open' order by place, d.id"
    ))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(to_ms(SystemTime::now() - Duration::from_secs(4 * 86_400)))
    .fetch_all(conn)
    .await?;
    rows.iter().map(summary_from).collect()
}

/// What was settled since the position was last written. A letter of everyone counts where it was given up;
/// handled, it was passed on to letters of the handlers.
pub(super) async fn settled_ahead(
    conn: &mut SqliteConnection,
    lease: &Lease,
) -> Result<Vec<(Option<String>, EventIdentity)>, StoreError> {
    hold(conn, lease).await?;
    let rows: Vec<(Option<String>, String)> = sqlx::query_as(
        "select d.handler, d.identity from dead_letter d \
         join subscription s on s.org_id = d.org_id and s.name = d.subscription \
         where d.org_id = $1 and d.subscription = $2 and d.state <> 'open' \
         and d.parked_at > s.position_at \
         and (d.handler is not null or d.state = 'discarded')",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?;
    let settled = rows.into_iter();
    Ok(settled
        .map(|(handler, identity)| (handler, EventIdentity::from_stored(&identity)))
        .collect())
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
    resolve(conn, lease, ids).await?;
    let mut placed = Vec::with_capacity(letters.len());
    for letter in letters {
        placed.push(park(conn, lease, letter, true).await?);
    }
    Ok(Some(placed))
}

/// A letter without its payload.
pub(super) fn summary_from(row: &SqliteRow) -> Result<LetterSummary, StoreError> {
    Ok(LetterSummary {
        placed: Placed {
            place: row.try_get("place")?,
            id: row.try_get("id")?,
        },
        subscription: row.try_get("subscription")?,
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
        to_come: row.try_get("to_come")?,
    })
}
