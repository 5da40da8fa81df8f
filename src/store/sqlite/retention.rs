//! Deletes what is kept for a while only.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, WRITE};
use crate::config::RetentionConfig;
use crate::store::common::{span_ms, to_ms};
use crate::store::{
    PRUNE_PORTION, Pruned, Retention, STATE_CHANGES_KEPT, STATE_CHANGES_MOST, StoreError,
};

#[async_trait]
impl Retention for SqliteStore {
    async fn prune(&self, retention: &RetentionConfig) -> Result<Pruned, StoreError> {
        // A transaction each: others write between them.
        let letters = retention.dead_letters;
        let dead_letters = transaction!(self, WRITE, |conn| portion(conn, DEAD_LETTERS, letters))?;
        let holes = transaction!(self, WRITE, |conn| portion(conn, HOLES, retention.holes))?;
        let marks = retention.position_marks;
        let position_marks =
            transaction!(self, WRITE, |conn| portion(conn, POSITION_MARKS, marks))?;
        let samples = retention.samples;
        let samples = transaction!(self, WRITE, |conn| portion(conn, SAMPLES, samples))?;
        let changes = retention.state_changes;
        let state_changes = transaction!(self, WRITE, |conn| state_changes(conn, changes))?;
        let readings = retention.allocation;
        let allocation = transaction!(self, WRITE, |conn| portion(conn, ALLOCATION, readings))?;
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

const DEAD_LETTERS: &str = "delete from dead_letter where id in \
    (select id from dead_letter where state <> 'open' and resolved_at < $1 \
     order by resolved_at limit $2)";
const HOLES: &str = "delete from hole where id in \
    (select id from hole where acknowledged_at < $1 order by acknowledged_at limit $2)";
const POSITION_MARKS: &str = "delete from position_mark where (org_id, subscription, at) in \
    (select org_id, subscription, at from position_mark where at < $1 limit $2)";

const SAMPLES: &str = "delete from subscription_sample where (org_id, subscription, at) in \
    (select org_id, subscription, at from subscription_sample where at < $1 limit $2)";
const ALLOCATION: &str = "delete from allocation where (org_id, at) in \
    (select org_id, at from allocation where at < $1 limit $2)";
// Numbered from the newest.
const STATE_CHANGES: &str = "delete from state_change where id in \
    (select id from (select id, at, row_number() over newest_first as number from state_change \
                     window newest_first as (partition by org_id, subscription order by id desc)) \
     where number > $4 or number > $3 and at < $1 limit $2)";

/// Those beyond the newest of each subscription.
async fn state_changes(
    conn: &mut SqliteConnection,
    older_than: Duration,
) -> Result<u64, StoreError> {
    let before = to_ms(SystemTime::now()).saturating_sub(span_ms(older_than));
    let deleted = sqlx::query(STATE_CHANGES)
        .bind(before)
        .bind(PRUNE_PORTION)
        .bind(STATE_CHANGES_KEPT)
        .bind(STATE_CHANGES_MOST)
        .execute(conn)
        .await?;
    Ok(deleted.rows_affected())
}

async fn portion(
    conn: &mut SqliteConnection,
    delete: &'static str,
    older_than: Duration,
) -> Result<u64, StoreError> {
    let before = to_ms(SystemTime::now()).saturating_sub(span_ms(older_than));
    let deleted = sqlx::query(delete)
        .bind(before)
        .bind(PRUNE_PORTION)
        .execute(conn)
        .await?;
    Ok(deleted.rows_affected())
}
