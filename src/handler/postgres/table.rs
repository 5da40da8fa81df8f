//! The table of the modes `append` and `notify`, and how it is made.

use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection};

use super::name::Name;
use crate::handler::sql;

/// Names the advisory lock of those who make a table: `orgsappd` in ASCII.
const LOCK: i64 = 0x6f72_6773_6170_7064;

/// A table by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table(pub(super) Name);

impl Table {
    /// True where it is there; else makes it, and gives false.
    pub(super) async fn exists_or_is_made(
        &self,
        conn: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        if self.exists(conn).await? {
            return Ok(true);
        }
        // Of several who find it missing one makes it, the others wait and find it.
        sql::query("select pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *conn)
            .await?;
        if !self.exists(conn).await? {
            // Its name is quoted, and all else is ours.
            sqlx::raw_sql(AssertSqlSafe(self.definition()))
                .execute(conn)
                .await?;
        }
        Ok(false)
    }

    /// Asked of the catalogue, because `create table if not exists` wants the right to create even where there
    /// is nothing to.
    async fn exists(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        sql::query_scalar(
            "select exists (select from pg_catalog.pg_class c \
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                 where c.relname = $2 and c.relkind in ('r', 'p', 'v', 'f') \
                 and case when $1::text is null then pg_catalog.pg_table_is_visible(c.oid) \
                          else n.nspname = $1 end)",
        )
        .bind(self.0.schema.as_deref())
        .bind(&self.0.name)
        .fetch_one(conn)
        .await
    }

    fn definition(&self) -> String {
        format!(
            "create table {self} ( \
                 number bigint generated always as identity, \
                 subscription text not null, \
                 id text not null, \
                 topic text not null, \
                 type text not null, \
                 subject text, \
                 time timestamptz not null, \
                 replay_id text, \
                 source text not null, \
                 schema_id text not null, \
                 event_uuid text not null, \
                 epoch bigint not null, \
                 replayed boolean not null, \
                 received_at timestamptz not null, \
                 appended_at timestamptz not null default now(), \
                 data jsonb not null, \
                 primary key (subscription, id) \
             ); \
             comment on table {self} is 'Events of Salesforce, appended by orgstream: each once for its subscription.'; \
             comment on column {self}.number is 'Grows in bus order among the events of one record.'; \
             comment on column {self}.id is 'Names the event: the id of its CloudEvent.'; \
             comment on column {self}.subject is 'The record it is about, or the value of its key.'; \
             comment on column {self}.time is 'When the change was committed; of a platform event, when it was received.'; \
             comment on column {self}.replay_id is 'Its place on the bus, as orgstream replay takes it.'; \
             comment on column {self}.schema_id is 'The Avro schema that wrote it.'; \
             comment on column {self}.event_uuid is 'What its publisher called it.'; \
             comment on column {self}.epoch is 'Of the lease under which it was received.'; \
             comment on column {self}.replayed is 'True where a replay brought it.'; \
             comment on column {self}.data is 'The data of its CloudEvent.'"
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
