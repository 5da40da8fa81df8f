//! What the owner of a subscription does with its dead letters.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::super::lease::hold;
use super::super::sql;
use super::park;
use crate::event::EventIdentity;
use crate::store::common::{from_sql_count, plain, replay_id};
use crate::store::{DeadLetter, Lease, LetterSummary, Placed, Refusal, StoreError};

/// What [`summary_from`] reads, less `to_come`.
macro_rules! summary_columns {
    () => {
        "d.id, coalesce(d.place, d.id) as place, d.subscription, d.handler, d.identity, d.state, \
         d.reason, d.error, d.record_ids, d.unit, d.retry_asked_at is not null as asked, d.replay_id, \
         octet_length(d.payload)::bigint as bytes"
    };
}
pub(super) use summary_columns;

/// All that are open. One whose event is finished above the position, or was parked since that was last
/// written, is still to come again, unless it is older than anything that the bus keeps (three days).
pub(super) async fn open_letters(
    conn: &mut PgConnection,
    lease: &Lease,
) -> Result<Vec<LetterSummary>, StoreError> {
    hold(conn, lease).await?;
    let rows = sql::query(concat!(
        "select ",
        summary_columns!(),
        ", d.received_at > now() - interval '4 days' \
           and (s.position_at is null or d.parked_at > s.position_at \
                or exists (select 1 from orgstream.finished_ahead f where f.org_id = d.org_id \
                           and f.subscription = d.subscription and f.identity = d.identity \
                           and f.handler = coalesce(d.handler, f.handler))) as to_come \
         from orgstream.dead_letter d \
         join orgstream.subscription s on s.org_id = d.org_id and s.name = d.subscription \
         where d.org_id = $1 and d.subscription = $2 and d.state = 'open' order by place, d.id"
    ))
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?;
    rows.iter().map(summary_from).collect()
}

/// What was settled since the position was last written. A letter of everyone counts where it was given up;
/// handled, it was passed on to letters of the handlers.
pub(super) async fn settled_ahead(
    conn: &mut PgConnection,
    lease: &Lease,
) -> Result<Vec<(Option<String>, EventIdentity)>, StoreError> {
    hold(conn, lease).await?;
    let rows: Vec<(Option<String>, String)> = sql::query_as(
        "select d.handler, d.identity from orgstream.dead_letter d \
         join orgstream.subscription s on s.org_id = d.org_id and s.name = d.subscription \
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

/// Handled. Locks the rows in the order of their numbers, as a person's calls do, so that two who change
/// several wait for each other instead of holding each other up.
pub(super) async fn resolve(
    conn: &mut PgConnection,
    lease: &Lease,
    ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    hold(conn, lease).await?;
    Ok(sql::query_scalar(
        "with chosen as (select id from orgstream.dead_letter \
                         where id = any($1) and org_id = $2 and subscription = $3 \
                         and state = 'open' order by id for update) \
         update orgstream.dead_letter d \
         set state = 'handled', resolved_at = now(), retry_asked_at = null \
         from chosen where d.id = chosen.id returning d.id",
    )
    .bind(ids)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?)
}

/// Refused once more.
pub(super) async fn park_again(
    conn: &mut PgConnection,
    lease: &Lease,
    ids: &[i64],
    refusal: &Refusal,
) -> Result<Vec<i64>, StoreError> {
    hold(conn, lease).await?;
    Ok(sql::query_scalar(
        "with chosen as (select id from orgstream.dead_letter \
                         where id = any($1) and org_id = $2 and subscription = $3 \
                         and state = 'open' order by id for update) \
         update orgstream.dead_letter d \
         set reason = $4, error = $5, attempts = least(d.attempts::bigint + $6, 2147483647)::integer, \
             retry_asked_at = null \
         from chosen where d.id = chosen.id returning d.id",
    )
    .bind(ids)
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
    conn: &mut PgConnection,
    lease: &Lease,
    ids: &[i64],
    letters: &[DeadLetter],
) -> Result<Option<Vec<Placed>>, StoreError> {
    hold(conn, lease).await?;
    let open: Vec<i64> = sql::query_scalar(
        "select id from orgstream.dead_letter where id = any($1) and org_id = $2 and subscription = $3 \
         and state = 'open' order by id for update",
    )
    .bind(ids)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(&mut *conn)
    .await?;
    if open.len() < ids.len() {
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
pub(super) fn summary_from(row: &PgRow) -> Result<LetterSummary, StoreError> {
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
        record_ids: row.try_get("record_ids")?,
        unit: row.try_get("unit")?,
        asked: row.try_get("asked")?,
        replay_id: replay_id(row.try_get("replay_id")?),
        bytes: from_sql_count(row.try_get("bytes")?),
        to_come: row.try_get("to_come")?,
    })
}
