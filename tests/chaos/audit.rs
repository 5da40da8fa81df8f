//! The database's own record of a run: every change of a subscription's row with who made it, and what is
//! parked and missed.

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::account::{Hole, Letter, Row, Write};

/// Made before anything runs, so that nothing escapes it. The writer is the process, by the name that it
/// gives its connections.
const TRIGGER: &str = "
create schema chaos;
create table chaos.change (
    id bigint generated always as identity primary key,
    at_us bigint not null,
    writer text not null,
    name text not null,
    old_epoch bigint not null, new_epoch bigint not null,
    old_holder text, new_holder text,
    old_number bigint not null, new_number bigint not null,
    old_position bytea, new_position bytea
);
create function chaos.note() returns trigger language plpgsql as $$
begin
    insert into chaos.change (at_us, writer, name, old_epoch, new_epoch, old_holder, new_holder,
                              old_number, new_number, old_position, new_position)
    values ((extract(epoch from clock_timestamp()) * 1000000)::bigint,
            current_setting('application_name'), new.name, old.epoch, new.epoch, old.holder, new.holder,
            old.write_number, new.write_number, old.position, new.position);
    return null;
end $$;
create trigger chaos_note after update on orgstream.subscription for each row
when ((old.epoch, old.holder, old.write_number, old.position)
      is distinct from (new.epoch, new.holder, new.write_number, new.position))
execute function chaos.note();

-- What an append handler committed, attempts that its table's key hides included. Its table is made on first
-- use, and watched from then on.
create table chaos.appended (
    id bigint generated always as identity primary key,
    table_name text not null,
    replay_id text not null,
    record text not null,
    first boolean not null
);
create function chaos.note_row() returns trigger language plpgsql as $$
declare there boolean;
begin
    execute format('select exists (select from %I where subscription = $1 and id = $2)', tg_table_name)
        into there using new.subscription, new.id;
    insert into chaos.appended (table_name, replay_id, record, first)
    values (tg_table_name, coalesce(new.replay_id, ''),
            coalesce(new.data->'ChangeEventHeader'->'recordIds'->>0, ''), not there);
    return new;
end $$;
create function chaos.watch() returns event_trigger language plpgsql as $$
declare made record;
begin
    for made in select * from pg_event_trigger_ddl_commands()
                where object_type = 'table' and schema_name = 'public' loop
        execute format('create trigger chaos_row before insert on %s for each row '
                       'execute function chaos.note_row()', made.object_identity);
    end loop;
end $$;
create event trigger chaos_watch on ddl_command_end when tag in ('CREATE TABLE')
execute function chaos.watch();
";

/// A place by the bytes of its replay ID. Only a test of the emulator's own bus may read them.
fn place(replay_id: &[u8]) -> u64 {
    super::place_of(&hex::encode(replay_id))
}

/// A look at one database, by a connection that no trouble is made for.
pub(crate) struct Audit {
    url: String,
}

/// What the store says of one subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub(crate) position: Option<u64>,
    /// State and why, for a person who wonders.
    pub(crate) state: String,
    pub(crate) writes: Vec<Write>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) holes: Vec<Hole>,
    /// Commands that are not carried out yet.
    pub(crate) commands: i64,
}

impl Audit {
    /// Puts the trigger into a migrated database.
    pub(crate) async fn install(url: String) -> anyhow::Result<Self> {
        let audit = Self { url };
        let mut connection = audit.connect().await?;
        sqlx::raw_sql(TRIGGER)
            .execute(&mut connection)
            .await
            .context("cannot install the audit")?;
        connection.close().await?;
        Ok(audit)
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options: PgConnectOptions = self.url.parse()?;
        Ok(options.application_name("chaos-audit").connect().await?)
    }

    /// True once a subscription stands somewhere.
    pub(crate) async fn has_position(&self, name: &str) -> anyhow::Result<bool> {
        let mut connection = self.connect().await?;
        let found: Option<bool> = sqlx::query_scalar(
            "select position is not null from orgstream.subscription where name = $1",
        )
        .bind(name)
        .fetch_optional(&mut connection)
        .await?;
        connection.close().await?;
        Ok(found == Some(true))
    }

    /// Everything stored about a subscription.
    pub(crate) async fn stored(&self, name: &str) -> anyhow::Result<Stored> {
        let mut connection = self.connect().await?;
        let row = sqlx::query(
            "select position, concat_ws(': ', state, state_detail) as state \
             from orgstream.subscription where name = $1",
        )
        .bind(name)
        .fetch_optional(&mut connection)
        .await?;
        let mut stored = Stored::default();
        if let Some(row) = row {
            let position: Option<Vec<u8>> = row.try_get("position")?;
            stored.position = position.as_deref().map(place);
            stored.state = row.try_get("state")?;
        }
        stored.writes = writes(&mut connection, name).await?;
        stored.letters = letters(&mut connection, name).await?;
        stored.holes = holes(&mut connection, name).await?;
        stored.commands = sqlx::query_scalar(
            "select count(*) from orgstream.command \
             where subscription = $1 and state in ('asked', 'running')",
        )
        .bind(name)
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        Ok(stored)
    }

    /// Everything that is parked or was, and every hole, as lines of JSON: for a person who wonders.
    pub(crate) async fn dump(&self) -> anyhow::Result<String> {
        let mut connection = self.connect().await?;
        let rows: Vec<String> = sqlx::query_scalar(
            "select (to_jsonb(d) - 'payload')::text from orgstream.dead_letter d \
             union all select to_jsonb(h)::text from orgstream.hole h \
             union all select to_jsonb(s)::text from orgstream.subscription s",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        Ok(rows.join("\n"))
    }

    /// What was committed to the table of an append handler, in order: every attempt, or only what its key let
    /// through.
    pub(crate) async fn appended(
        &self,
        table: &str,
        attempts: bool,
    ) -> anyhow::Result<Vec<(u64, String)>> {
        let mut connection = self.connect().await?;
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select replay_id, record from chaos.appended \
             where table_name = $1 and ($2 or first) order by id",
        )
        .bind(table)
        .bind(attempts)
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|(replay_id, record)| (super::place_of(&replay_id), record))
            .collect())
    }
}

async fn writes(connection: &mut PgConnection, name: &str) -> anyhow::Result<Vec<Write>> {
    let rows = sqlx::query("select * from chaos.change where name = $1 order by id")
        .bind(name)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let side = |epoch, holder, number, position| {
                let position: Option<Vec<u8>> = row.try_get(position)?;
                Ok::<_, sqlx::Error>(Row {
                    epoch: row.try_get(epoch)?,
                    holder: row.try_get(holder)?,
                    write_number: row.try_get(number)?,
                    position: position.as_deref().map(place),
                })
            };
            Ok(Write {
                at_us: row.try_get("at_us")?,
                writer: row.try_get("writer")?,
                before: side("old_epoch", "old_holder", "old_number", "old_position")?,
                after: side("new_epoch", "new_holder", "new_number", "new_position")?,
            })
        })
        .collect()
}

async fn letters(connection: &mut PgConnection, name: &str) -> anyhow::Result<Vec<Letter>> {
    let rows = sqlx::query(
        "select handler, replay_id, topic, coalesce(record_ids[1], '') as record, reason, state \
         from orgstream.dead_letter where subscription = $1 order by id",
    )
    .bind(name)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let replay_id: Option<Vec<u8>> = row.try_get("replay_id")?;
            let topic: String = row.try_get("topic")?;
            let record: String = row.try_get("record")?;
            Ok(Letter {
                handler: row.try_get("handler")?,
                place: replay_id.as_deref().map_or(0, place),
                // Of a platform event it is the value of its key, which tells nothing apart here.
                record: if topic.starts_with("/event/") {
                    String::new()
                } else {
                    record
                },
                reason: row.try_get("reason")?,
                state: row.try_get("state")?,
            })
        })
        .collect()
}

async fn holes(connection: &mut PgConnection, name: &str) -> anyhow::Result<Vec<Hole>> {
    let rows = sqlx::query(
        "select kind, reason, from_replay_id, to_replay_id from orgstream.hole \
         where subscription = $1 \
         and (reason <> 'perhaps_skipped_by_rewind' or acknowledged_at is null) order by id",
    )
    .bind(name)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let kind: String = row.try_get("kind")?;
            let from: Option<Vec<u8>> = row.try_get("from_replay_id")?;
            let to: Option<Vec<u8>> = row.try_get("to_replay_id")?;
            Ok(Hole {
                lost: kind == "lost",
                reason: row.try_get("reason")?,
                from: from.as_deref().map(place),
                to: to.as_deref().map(place),
            })
        })
        .collect()
}
