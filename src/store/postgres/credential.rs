//! The rotated refresh token and the right to refresh.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::sql;
use crate::store::StoreError;

/// Takes the right to refresh. The outer `None`: another holder has it. The inner one: nothing is stored.
pub(super) async fn lock(
    conn: &mut PgConnection,
    key: &str,
    holder: &str,
    ttl: Duration,
) -> Result<Option<Option<Vec<u8>>>, StoreError> {
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    Ok(sql::query_scalar(
        "insert into orgstream.credential as c (key, holder, locked_until) \
         values ($1, $2, now() + $3::bigint * interval '1 millisecond') \
         on conflict (key) do update set holder = excluded.holder, locked_until = excluded.locked_until \
         where c.holder is null or c.holder = excluded.holder or c.locked_until <= now() \
         returning ciphertext",
    )
    .bind(key)
    .bind(holder)
    // A year is for ever, and stays within what an interval holds.
    .bind(ttl.min(365 * 86_400_000))
    .fetch_optional(conn)
    .await?)
}

/// Stores a sealed token; false where the holder has lost the right.
pub(super) async fn save(
    conn: &mut PgConnection,
    key: &str,
    holder: &str,
    ciphertext: &[u8],
) -> Result<bool, StoreError> {
    let written = sql::query(
        "update orgstream.credential set ciphertext = $3, updated_at = now() \
         where key = $1 and holder = $2 and locked_until > now()",
    )
    .bind(key)
    .bind(holder)
    .bind(ciphertext)
    .execute(conn)
    .await?
    .rows_affected();
    Ok(written > 0)
}

/// Gives the right back; nothing where another has it by now.
pub(super) async fn unlock(
    conn: &mut PgConnection,
    key: &str,
    holder: &str,
) -> Result<(), StoreError> {
    sql::query(
        "update orgstream.credential set holder = null, locked_until = null \
         where key = $1 and holder = $2",
    )
    .bind(key)
    .bind(holder)
    .execute(conn)
    .await?;
    Ok(())
}
