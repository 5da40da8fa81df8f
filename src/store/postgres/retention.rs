//! Deletes what is kept for a while only.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, sql};
use crate::config::RetentionConfig;
use crate::store::common::span_ms;
use crate::store::{PRUNE_PORTION, Pruned, Retention, StoreError};

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
        Ok(Pruned {
            dead_letters,
            holes,
            position_marks,
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
