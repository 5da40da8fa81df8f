//! Events as rows.

use sqlx::{AssertSqlSafe, PgConnection};

use super::table::Table;
use crate::event::rfc3339;
use crate::handler::{EventBatch, sql};

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

    /// Inserts them in their order, in one statement; gives how many there were not yet.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        table: &Table,
    ) -> Result<u64, sqlx::Error> {
        // Numbers are given in the order of the rows, which is that of the batch.
        let insert = format!(
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
        // The table's name is quoted, and all else is ours.
        let inserted = sql::query(AssertSqlSafe(insert))
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
            .bind(&self.data)
            .execute(conn)
            .await?;
        Ok(inserted.rows_affected())
    }
}
