//! Deletes what is kept for a while only.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, sql};
use crate::config::RetentionConfig;
use crate::store::common::span_ms;
use crate::store::{
    PRUNE_PORTION, Pruned, Retention, STATE_CHANGES_KEPT, STATE_CHANGES_MOST, StoreError,
};

#[async_trait]
impl Retention for PostgresStore {
    async fn prune(&self, retention: &RetentionConfig) -> Result<Pruned, StoreError> {
        // A transaction each: none holds locks for what another table takes.
        let dead_letters = transaction!(self, |conn| portion(
            conn,
            DEAD_LETTERS,
            retention.dead_letters
        ))?;
        let holes = transaction!(self, |conn| portion(conn, HOLES, retention.holes))?;
        let marks = retention.position_marks;
        let position_marks = transaction!(self, |conn| portion(conn, POSITION_MARKS, marks))?;
        let samples = transaction!(self, |conn| portion(conn, SAMPLES, retention.samples))?;
        let state_changes =
            transaction!(self, |conn| state_changes(conn, retention.state_changes))?;
        let allocation =
            transaction!(self, |conn| portion(conn, ALLOCATION, retention.allocation))?;
        Ok(Pruned {
            dead_letters,
            holes,
            position_marks,
            samples,
            state_changes,
            allocation,
        })
    }
}

// `skip locked`: another worker is at those rows.
const DEAD_LETTERS: &str = "delete from orgstream.dead_letter where id in \
    (select id from orgstream.dead_letter where state <> 'open' \
     and resolved_at < now() - $1::bigint * interval '1 millisecond' \
     order by resolved_at limit $2 for update skip locked)";
const HOLES: &str = "delete from orgstream.hole where id in \
    (select id from orgstream.hole \
     where acknowledged_at < now() - $1::bigint * interval '1 millisecond' \
     order by acknowledged_at limit $2 for update skip locked)";
const POSITION_MARKS: &str = "delete from orgstream.position_mark where ctid = any(array( \
     select ctid from orgstream.position_mark \
     where at < now() - $1::bigint * interval '1 millisecond' \
     limit $2 for update skip locked))";

const SAMPLES: &str = "delete from orgstream.subscription_sample where ctid = any(array( \
     select ctid from orgstream.subscription_sample \
     where at < now() - $1::bigint * interval '1 millisecond' \
     limit $2 for update skip locked))";
const ALLOCATION: &str = "delete from orgstream.allocation where ctid = any(array( \
     select ctid from orgstream.allocation \
     where at < now() - $1::bigint * interval '1 millisecond' \
     limit $2 for update skip locked))";
// Numbered from the newest. Rows are only ever added and deleted, so two who prune at once delete the same.
const STATE_CHANGES: &str = "delete from orgstream.state_change where id = any(array( \
     select id from (select id, at, row_number() over newest_first as number \
                     from orgstream.state_change \
                     window newest_first as (partition by org_id, subscription order by id desc)) s \
     where number > $4 \
        or number > $3 and at < now() - $1::bigint * interval '1 millisecond' limit $2))";

/// Those beyond the newest of each subscription.
async fn state_changes(conn: &mut PgConnection, older_than: Duration) -> Result<u64, StoreError> {
    let deleted = sql::query(STATE_CHANGES)
        .bind(span_ms(older_than))
        .bind(i64::from(PRUNE_PORTION))
        .bind(i64::from(STATE_CHANGES_KEPT))
        .bind(i64::from(STATE_CHANGES_MOST))
        .execute(conn)
        .await?;
    Ok(deleted.rows_affected())
}

async fn portion(
    conn: &mut PgConnection,
    delete: &'static str,
    older_than: Duration,
) -> Result<u64, StoreError> {
    let deleted = sql::query(delete)
        .bind(span_ms(older_than))
        .bind(i64::from(PRUNE_PORTION))
        .execute(conn)
        .await?;
    Ok(deleted.rows_affected())
}
