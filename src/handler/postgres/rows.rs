//! Events as rows, and the statement that inserts them.

use std::time::SystemTime;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Encode, PgConnection, Postgres, Type};

use super::table::Table;
use crate::handler::{EventBatch, sql};

/// Rows to insert, column by column. Texts are those of the CloudEvent.
#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    subscription: &'a str,
    ids: Vec<String>,
    subjects: Vec<Option<&'a str>>,
    times: Vec<Moment>,
    replay_ids: Vec<Option<String>>,
    event_uuids: Vec<&'a str>,
    received: Vec<Moment>,
    data: Vec<&'a str>,
    topics: Vec<&'a str>,
    types: Vec<String>,
    sources: Vec<&'a str>,
    schema_ids: Vec<&'a str>,
    epochs: Vec<i64>,
    replayed: Vec<bool>,
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
            rows.subjects.push(cloud_event.subject());
            rows.times.push(Moment::of(event.occurred_at()));
            let replay_id = event.raw.replay_id.as_ref().map(ToString::to_string);
            rows.replay_ids.push(replay_id);
            rows.event_uuids.push(&event.raw.id);
            rows.received.push(Moment::of(event.received_at));
            rows.data.push(data);
            rows.topics.push(event.source.topic().as_str());
            rows.types.push(cloud_event.type_name());
            rows.sources.push(cloud_event.source());
            rows.schema_ids.push(event.raw.schema_id.as_str());
            rows.epochs.push(event.epoch);
            rows.replayed.push(event.replayed);
        }
        Ok(rows)
    }

    /// Inserts them in their order, in one statement, and notifies of those that were not there yet; gives how many
    /// these are.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        table: &Table,
        channel: Option<&str>,
    ) -> Result<u64, sqlx::Error> {
        // The table's name is quoted, and all else is ours.
        let insert = sql::query(AssertSqlSafe(self.statement(table, channel.is_some())))
            .bind(self.subscription)
            .bind(&self.ids)
            .bind(&self.subjects)
            .bind(&self.times)
            .bind(&self.replay_ids)
            .bind(&self.event_uuids)
            .bind(&self.received)
            .bind(&self.data);
        let insert = bind(insert, &self.topics);
        let insert = bind(insert, &self.types);
        let insert = bind(insert, &self.sources);
        let insert = bind(insert, &self.schema_ids);
        let insert = bind(insert, &self.epochs);
        let mut insert = bind(insert, &self.replayed);
        if let Some(channel) = channel {
            insert = insert.bind(channel);
        }
        // Of a query it is the number of its rows.
        Ok(insert.execute(conn).await?.rows_affected())
    }

    /// What is the same in all rows, as most often, is given once: a column of an array costs the server as much as
    /// one of the table.
    fn statement(&self, table: &Table, notifies: bool) -> String {
        let columns = [
            ("topic", "text", same(&self.topics).is_some()),
            ("type", "text", same(&self.types).is_some()),
            ("source", "text", same(&self.sources).is_some()),
            ("schema_id", "text", same(&self.schema_ids).is_some()),
            ("epoch", "bigint", same(&self.epochs).is_some()),
            ("replayed", "boolean", same(&self.replayed).is_some()),
        ];
        let (mut values, mut arrays, mut names) = (String::new(), String::new(), String::new());
        for (number, (name, kind, same)) in (9..).zip(columns) {
            if same {
                values.push_str(&format!(", ${number}"));
            } else {
                values.push_str(&format!(", e.{name}"));
                arrays.push_str(&format!(", ${number}::{kind}[]"));
                names.push_str(&format!(", {name}"));
            }
        }
        // Numbers are given in the order of the rows, which is that of the batch.
        let insert = format!(
            "insert into {table} (subscription, id, subject, time, replay_id, event_uuid, received_at, data, \
                                  topic, type, source, schema_id, epoch, replayed) \
             select $1, e.id, e.subject, e.time, e.replay_id, e.event_uuid, e.received_at, e.data::jsonb{values} \
             from unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::timestamptz[], \
                         $8::text[]{arrays}) \
             with ordinality as e (id, subject, time, replay_id, event_uuid, received_at, data{names}, place) \
             order by e.place on conflict (subscription, id) do nothing"
        );
        match notifies {
            true => format!("with rows as ({insert} returning *) {NOTIFY}"),
            false => insert,
        }
    }
}

/// The value that all rows have, if there is one.
fn same<T: PartialEq>(values: &[T]) -> Option<&T> {
    let (first, others) = values.split_first()?;
    others.iter().all(|other| other == first).then_some(first)
}

type Insert<'q> = Query<'q, Postgres, PgArguments>;

/// Binds the value of all rows, or those of each.
fn bind<'q, T>(insert: Insert<'q>, values: &'q [T]) -> Insert<'q>
where
    T: PartialEq + Sync,
    &'q T: Encode<'q, Postgres> + Type<Postgres>,
    &'q [T]: Encode<'q, Postgres> + Type<Postgres>,
{
    match same(values) {
        Some(value) => insert.bind(value),
        None => insert.bind(values),
    }
}

/// A `timestamptz` in its binary form: microseconds since the year 2000 (Postgres manual, "Date/Time Types"). A text
/// would have to be read by the server, which costs as much as storing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment(i64);

/// `timestamptz` and its array, which have the same numbers everywhere (`pg_type.dat`).
const TIMESTAMPTZ: (Oid, Oid) = (Oid(1184), Oid(1185));

impl Moment {
    /// To the nearest microsecond, and between 1970 and 9999, as the CloudEvent shows it.
    fn of(time: SystemTime) -> Self {
        const YEAR_2000: i64 = 946_684_800_000_000;
        const LAST: i64 = 253_402_300_799_000_000;
        let since_1970 = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let micros = i64::try_from((since_1970.as_nanos() + 500) / 1000);
        Self(micros.unwrap_or(LAST).min(LAST) - YEAR_2000)
    }
}

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ.0)
    }
}

impl PgHasArrayType for Moment {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ.1)
    }
}

impl Encode<'_, Postgres> for Moment {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_counted_from_the_year_2000_and_stays_within_what_a_cloud_event_can_show() {
        let at = |nanos| Moment::of(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)).0;
        assert_eq!(at(946_684_800_000_000_000), 0);
        assert_eq!(at(946_684_800_000_001_499), 1);
        assert_eq!(at(946_684_800_000_001_500), 2);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Moment::of(before).0, at(0));
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(Moment::of(far).0, 252_455_615_999_000_000);
    }

    #[test]
    fn what_is_the_same_in_all_rows_is_no_array() {
        let rows = Rows {
            topics: vec!["a", "a"],
            types: vec!["x".to_owned(), "y".to_owned()],
            epochs: vec![1, 1],
            ..Rows::default()
        };
        let table = Table(super::super::name::Name::parse("t", "table").unwrap());
        let statement = rows.statement(&table, false);
        assert!(statement.contains("::jsonb, $9, e.type, "), "{statement}");
        assert!(
            statement.contains("$8::text[], $10::text[], "),
            "{statement}"
        );
        assert!(statement.contains("data, type, "), "{statement}");
    }
}
