//! What people do with dead letters, whoever owns the subscription.

use std::time::SystemTime;

use sqlx::sqlite::SqliteConnection;

use super::super::ids_json;
use super::owner::{summary_columns, summary_from};
use crate::store::common::to_ms;
use crate::store::{LetterSelection, LetterSummary, StoreError};

/// Which open letters a selection means: parameters $1 to $4.
macro_rules! chosen {
    () => {
        "d.state = 'open' and ($1 = '[]' or d.id in (select value from json_each($1))) \
         and ($2 is null or d.subscription = $2) and ($3 is null or d.handler = $3) \
         and ($4 is null or d.reason = $4)"
    };
}

/// A statement with a selection bound to its first four parameters.
macro_rules! with_selection {
    ($query:expr, $selection:expr) => {
        $query
            .bind(ids_json(&$selection.ids))
            .bind(&$selection.subscription)
            .bind(&$selection.handler)
            .bind(&$selection.reason)
    };
}

/// What a person means.
pub(super) async fn select(
    conn: &mut SqliteConnection,
    selection: &LetterSelection,
) -> Result<Vec<LetterSummary>, StoreError> {
    let query = sqlx::query(concat!(
        "select ",
        summary_columns!(),
        ", false as to_come from dead_letter d where ",
        chosen!(),
        " order by coalesce(d.place, d.id), d.id"
    ));
    let rows = with_selection!(query, selection).fetch_all(conn).await?;
    rows.iter().map(summary_from).collect()
}

/// What became of these.
pub(super) async fn summaries(
    conn: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<LetterSummary>, StoreError> {
    let rows = sqlx::query(concat!(
        "select ",
        summary_columns!(),
        ", false as to_come from dead_letter d \
         where d.id in (select value from json_each($1)) order by coalesce(d.place, d.id), d.id"
    ))
    .bind(ids_json(ids))
    .fetch_all(conn)
    .await?;
    rows.iter().map(summary_from).collect()
}

/// Another attempt, please.
pub(super) async fn ask_retry(
    conn: &mut SqliteConnection,
    selection: &LetterSelection,
) -> Result<Vec<i64>, StoreError> {
    tell_owners(conn, selection).await?;
    let query = sqlx::query_scalar(concat!(
        "update dead_letter as d set retry_asked_at = coalesce(d.retry_asked_at, $5) where ",
        chosen!(),
        " returning id"
    ));
    let query = with_selection!(query, selection).bind(to_ms(SystemTime::now()));
    Ok(query.fetch_all(conn).await?)
}

/// No attempt after all.
pub(super) async fn withdraw_retry(
    conn: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let selection = LetterSelection {
        ids: ids.to_vec(),
        ..LetterSelection::default()
    };
    tell_owners(conn, &selection).await?;
    Ok(sqlx::query_scalar(
        "update dead_letter set retry_asked_at = null \
         where id in (select value from json_each($1)) and state = 'open' \
         and retry_asked_at is not null returning id",
    )
    .bind(ids_json(ids))
    .fetch_all(conn)
    .await?)
}

/// Given up.
pub(super) async fn discard(
    conn: &mut SqliteConnection,
    selection: &LetterSelection,
) -> Result<Vec<i64>, StoreError> {
    tell_owners(conn, selection).await?;
    // A transaction is given up whole: what would be left of it must not pass for all of it.
    let query = sqlx::query_scalar(concat!(
        "with named as materialized (select d.org_id, d.subscription, d.handler, d.unit \
                                     from dead_letter d where d.unit is not null and ",
        chosen!(),
        ") update dead_letter as d \
         set state = 'discarded', resolved_at = $5, retry_asked_at = null where (",
        chosen!(),
        ") or (d.state = 'open' and d.unit is not null \
               and exists (select 1 from named n where n.org_id = d.org_id \
                           and n.subscription = d.subscription and n.unit = d.unit \
                           and n.handler is d.handler)) \
         returning id"
    ));
    let query = with_selection!(query, selection).bind(to_ms(SystemTime::now()));
    Ok(query.fetch_all(conn).await?)
}

/// Whoever owns their subscriptions looks anew.
async fn tell_owners(
    conn: &mut SqliteConnection,
    selection: &LetterSelection,
) -> Result<(), StoreError> {
    let query = sqlx::query(concat!(
        "update subscription as s set asked = s.asked + 1 \
         where exists (select 1 from dead_letter d \
                       where d.org_id = s.org_id and d.subscription = s.name and ",
        chosen!(),
        ")"
    ));
    with_selection!(query, selection).execute(conn).await?;
    Ok(())
}
