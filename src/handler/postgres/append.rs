//! The modes `append` and `notify`: events as rows, and notifications of them.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, PgConnection};

use super::table::Table;
use super::trouble::{Side, character};
use crate::event::rfc3339;
use crate::handler::transactional::{has_context, is_refusal, retry};
use crate::handler::{Answer, EventBatch, reason_of, sql};

/// Appends each event to a table, and may notify of it.
#[derive(Debug)]
pub(super) struct Append {
    table: Table,
    /// The channel to notify.
    channel: Option<String>,
    side: Side,
    /// The table was seen by a transaction.
    seen: AtomicBool,
}

impl Append {
    pub(super) fn new(table: Table, channel: Option<String>, side: Side) -> Self {
        Self {
            table,
            channel,
            side,
            seen: AtomicBool::new(false),
        }
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Makes the table where it is missing, then writes; gives how many rows were written. Without rows, it shows what
    /// is wrong with the table.
    ///
    /// # Errors
    ///
    /// What it means for the events.
    pub(super) async fn run(
        &self,
        conn: &mut PgConnection,
        rows: &Rows<'_>,
    ) -> Result<u64, Answer> {
        let written = self.write(conn, rows).await;
        written.map_err(|error| self.answer_to(&error))
    }

    async fn write(&self, conn: &mut PgConnection, rows: &Rows<'_>) -> Result<u64, sqlx::Error> {
        if !self.seen.load(Ordering::Relaxed) {
            // One that this transaction makes is seen by the next: it may yet be rolled back.
            let seen = self.table.exists_or_is_made(conn).await?;
            self.seen.store(seen, Ordering::Relaxed);
        }
        rows.insert(conn, &self.table, self.channel.as_deref())
            .await
    }

    /// What an error means for the events. The table is the user's: where it differs from what is expected,
    /// no event is to blame.
    pub(super) fn answer_to(&self, error: &sqlx::Error) -> Answer {
        let code = error.as_database_error().and_then(|error| error.code());
        let code = code.as_deref().unwrap_or_default();
        if let Some(rejected) = character(code) {
            return rejected;
        }
        let (table, why) = (&self.table, reason_of(error));
        let reason = match code {
            _ if is_refusal(code) => return Answer::Reject { reason: why },
            _ if code.starts_with("23") => format!(
                "table {table} has a rule of its own that refuses rows: {why}; take that away, or set `table` \
                 to another name"
            ),
            // A trigger of the table's, most likely.
            _ if has_context(error) => why,
            // Undefined table or schema.
            "42P01" | "3F000" => {
                self.seen.store(false, Ordering::Relaxed);
                format!("{why}: a schema that `table` names has to be there, a table is made anew")
            }
            "42501" => format!(
                "{why}: let the database user of {} write to table {table}, and where it is missing create \
                 it in its schema",
                self.side.key()
            ),
            // Columns, their types, or the key are not those of the table that we make.
            "42703" | "42804" | "42846" | "42P10" | "42809" | "428C9" => format!(
                "table {table} is not one that orgstream made: {why}; set `table` to another name, or rename \
                 that one"
            ),
            _ => why,
        };
        Answer::Retry(retry(error, reason))
    }
}

/// Rows to insert, column by column. Texts are those of the CloudEvent.
#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    subscription: &'a str,
    ids: Vec<String>,
    topics: Vec<&'a str>,
    types: Vec<String>,
    subjects: Vec<Option<&'a str>>,
    times: Vec<String>,
    replay_ids: Vec<Option<String>>,
    sources: Vec<String>,
    schema_ids: Vec<&'a str>,
    event_uuids: Vec<&'a str>,
    epochs: Vec<i64>,
    replayed: Vec<bool>,
    received: Vec<String>,
    data: Vec<&'a str>,
}

impl<'a> Rows<'a> {
    /// The rows of a batch, in its order.
    ///
    /// # Errors
    ///
    /// Why an event cannot be a row.
    pub(super) fn of(batch: &'a EventBatch) -> Result<Self, String> {
        let mut rows = Self {
            subscription: &batch.subscription,
            ..Self::default()
        };
        for event in &batch.events {
            let cloud_event = event.cloud_event();
            let data = std::str::from_utf8(&event.decoded.data)
                .map_err(|error| format!("its data is no text: {error}"))?;
            rows.ids.push(event.identity().as_str().to_owned());
            rows.topics.push(event.source.topic.as_str());
            rows.types.push(cloud_event.type_name());
            rows.subjects.push(cloud_event.subject());
            rows.times.push(rfc3339(event.occurred_at()));
            let replay_id = event.raw.replay_id.as_ref().map(ToString::to_string);
            rows.replay_ids.push(replay_id);
            rows.sources.push(cloud_event.source());
            rows.schema_ids.push(event.raw.schema_id.as_str());
            rows.event_uuids.push(&event.raw.id);
            rows.epochs.push(event.epoch);
            rows.replayed.push(event.replayed);
            rows.received.push(rfc3339(event.received_at));
            rows.data.push(data);
        }
        Ok(rows)
    }

    /// Inserts them in their order, in one statement, and notifies of those that were not there yet; gives how many
    /// these are.
    async fn insert(
        &self,
        conn: &mut PgConnection,
        table: &Table,
        channel: Option<&str>,
    ) -> Result<u64, sqlx::Error> {
        // Numbers are given in the order of the rows, which is that of the batch.
        let mut statement = format!(
            "insert into {table} (subscription, id, topic, type, subject, time, replay_id, source, schema_id, \
                                  event_uuid, epoch, replayed, received_at, data) \
             select $1, e.id, e.topic, e.type, e.subject, e.time::timestamptz, e.replay_id, e.source, e.schema_id, \
                    e.event_uuid, e.epoch, e.replayed, e.received_at::timestamptz, e.data::jsonb \
             from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
                         $9::text[], $10::text[], $11::bigint[], $12::boolean[], $13::text[], $14::text[]) \
             with ordinality as e (id, topic, type, subject, time, replay_id, source, schema_id, event_uuid, \
                                   epoch, replayed, received_at, data, place) \
             order by e.place on conflict (subscription, id) do nothing"
        );
        if channel.is_some() {
            statement = format!("with rows as ({statement} returning *) {NOTIFY}");
        }
        // The table's name is quoted, and all else is ours.
        let mut insert = sql::query(AssertSqlSafe(statement))
            .bind(self.subscription)
            .bind(&self.ids)
            .bind(&self.topics)
            .bind(&self.types)
            .bind(&self.subjects)
            .bind(&self.times)
            .bind(&self.replay_ids)
            .bind(&self.sources)
            .bind(&self.schema_ids)
            .bind(&self.event_uuids)
            .bind(&self.epochs)
            .bind(&self.replayed)
            .bind(&self.received)
            .bind(&self.data);
        if let Some(channel) = channel {
            insert = insert.bind(channel);
        }
        // Of a query it is the number of its rows.
        Ok(insert.execute(conn).await?.rows_affected())
    }
}

/// Notifies of `rows`, in their order. A notification has less than 8000 bytes (Postgres manual, NOTIFY): where a long
/// `id` or `subject` would not fit, both are left out, and the row is found by its number.
const NOTIFY: &str = "\
    select pg_notify($15, case when octet_length(whole.text) < 8000 then whole.text else \
        json_build_object('subscription', r.subscription, 'type', r.type, 'topic', r.topic, 'number', r.number)::text \
        end) \
    from rows r cross join lateral (select json_strip_nulls(json_build_object('subscription', r.subscription, \
        'id', r.id, 'subject', r.subject, 'type', r.type, 'topic', r.topic, 'number', r.number))::text as text) whole \
    order by r.number";
