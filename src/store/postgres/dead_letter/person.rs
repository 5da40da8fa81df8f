//! What people do with dead letters, whoever owns the subscription.

use sqlx::postgres::PgConnection;

use super::super::sql;
use super::owner::{summary_columns, summary_from};
use crate::store::{LetterSelection, LetterSummary, StoreError};

/// Which open letters a selection means: parameters $1 to $4.
macro_rules! chosen {
    () => {
        "d.state = 'open' and (cardinality($1::bigint[]) = 0 or d.id = any($1)) \
         and ($2::text is null or d.subscription = $2) and ($3::text is null or d.handler = $3) \
         and ($4::text is null or d.reason = $4)"
    };
}

/// A statement with a selection bound to its first four parameters.
macro_rules! with_selection {
    ($query:expr, $selection:expr) => {
        $query
            .bind(&$selection.ids)
            .bind(&$selection.subscription)
            .bind(&$selection.handler)
            .bind(&$selection.reason)
    };
}

/// What a person means.
pub(super) async fn select(
    conn: &mut PgConnection,
    selection: &LetterSelection,
) -> Result<Vec<LetterSummary>, StoreError> {
    let query = sql::query(concat!(
        "select ",
        summary_columns!(),
        ", false as to_come from orgstream.dead_letter d where ",
        chosen!(),
        " order by place, d.id"
    ));
    let rows = with_selection!(query, selection).fetch_all(conn).await?;
    rows.iter().map(summary_from).collect()
}

/// What became of these.
pub(super) async fn summaries(
    conn: &mut PgConnection,
    ids: &[i64],
) -> Result<Vec<LetterSummary>, StoreError> {
    let rows = sql::query(concat!(
        "select ",
        summary_columns!(),
        ", false as to_come from orgstream.dead_letter d where d.id = any($1) order by place, d.id"
    ))
    .bind(ids)
    .fetch_all(conn)
    .await?;
    rows.iter().map(summary_from).collect()
}

/// Another attempt, please.
pub(super) async fn ask_retry(
    conn: &mut PgConnection,
    selection: &LetterSelection,
) -> Result<Vec<i64>, StoreError> {
    tell_owners(conn, selection).await?;
    let query = sql::query_scalar(concat!(
        "with chosen as (select d.id from orgstream.dead_letter d where ",
        chosen!(),
        " order by d.id for update) \
         update orgstream.dead_letter d set retry_asked_at = coalesce(d.retry_asked_at, now()) \
         from chosen where d.id = chosen.id returning d.id"
    ));
    Ok(with_selection!(query, selection).fetch_all(conn).await?)
}

/// No attempt after all.
pub(super) async fn withdraw_retry(
    conn: &mut PgConnection,
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
    Ok(sql::query_scalar(
        "with chosen as (select id from orgstream.dead_letter where id = any($1) \
                         and state = 'open' and retry_asked_at is not null order by id for update) \
         update orgstream.dead_letter d set retry_asked_at = null \
         from chosen where d.id = chosen.id returning d.id",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?)
}

/// Given up.
pub(super) async fn discard(
    conn: &mut PgConnection,
    selection: &LetterSelection,
) -> Result<Vec<i64>, StoreError> {
    tell_owners(conn, selection).await?;
    // A transaction is given up whole: what would be left of it must not pass for all of it.
    let query = sql::query_scalar(concat!(
        "with named as (select d.org_id, d.subscription, d.handler, d.unit \
                        from orgstream.dead_letter d where d.unit is not null and ",
        chosen!(),
        "), chosen as (select d.id from orgstream.dead_letter d where (",
        chosen!(),
        ") or (d.state = 'open' and d.unit is not null \
               and exists (select 1 from named n where n.org_id = d.org_id \
                           and n.subscription = d.subscription and n.unit = d.unit \
                           and n.handler is not distinct from d.handler)) \
         order by d.id for update) \
         update orgstream.dead_letter d \
         set state = 'discarded', resolved_at = now(), retry_asked_at = null \
         from chosen where d.id = chosen.id returning d.id"
    ));
    Ok(with_selection!(query, selection).fetch_all(conn).await?)
}

/// Whoever owns their subscriptions looks anew. First of all, because owners lock the subscription before
/// its letters, too; in the order of names, because two people may ask at once.
async fn tell_owners(
    conn: &mut PgConnection,
    selection: &LetterSelection,
) -> Result<(), StoreError> {
    let query = sql::query(concat!(
        "with told as (select s.org_id, s.name from orgstream.subscription s \
                       where exists (select 1 from orgstream.dead_letter d \
                                     where d.org_id = s.org_id and d.subscription = s.name and ",
        chosen!(),
        ") order by s.org_id, s.name for no key update) \
         update orgstream.subscription s set asked = s.asked + 1 \
         from told where s.org_id = told.org_id and s.name = told.name"
    ));
    with_selection!(query, selection).execute(conn).await?;
    Ok(())
}
