//! The database's own record of a run: every change of a subscription's row with who made it, and what is
//! parked and missed.

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::account::{Ahead, Appended, Hole, Letter, Parking, Row, Write};

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
    old_position bytea, new_position bytea,
    ahead text[] not null
);
create function chaos.note() returns trigger language plpgsql as $$
begin
    insert into chaos.change (at_us, writer, name, old_epoch, new_epoch, old_holder, new_holder,
                              old_number, new_number, old_position, new_position, ahead)
    values ((extract(epoch from clock_timestamp()) * 1000000)::bigint,
            current_setting('application_name'), new.name, old.epoch, new.epoch, old.holder, new.holder,
            old.write_number, new.write_number, old.position, new.position,
            array(select handler || ' ' || identity from orgstream.finished_ahead f
                  where f.org_id = new.org_id and f.subscription = new.name));
    return null;
end $$;
-- At the commit: what is finished ahead is written after the position.
create constraint trigger chaos_note after update on orgstream.subscription deferrable initially deferred
for each row when ((old.epoch, old.holder, old.write_number, old.position)
      is distinct from (new.epoch, new.holder, new.write_number, new.position))
execute function chaos.note();

-- What became of letters, by when.
create table chaos.parking (
    id bigint generated always as identity primary key,
    at_us bigint not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    subscription text not null,
    letter bigint not null,
    handler text,
    replay_id bytea,
    records text[] not null,
    open boolean not null,
    replayed boolean not null
);
create function chaos.note_letter() returns trigger language plpgsql as $$
declare
    row orgstream.dead_letter := case when tg_op = 'DELETE' then old else new end;
begin
    insert into chaos.parking (subscription, letter, handler, replay_id, records, open, replayed)
    values (row.subscription, row.id, row.handler, row.replay_id, row.record_ids,
            tg_op <> 'DELETE' and row.state = 'open', row.replayed);
    return null;
end $$;
create trigger chaos_letter after insert or delete on orgstream.dead_letter for each row
execute function chaos.note_letter();
create trigger chaos_letter_state after update on orgstream.dead_letter for each row
when (old.state is distinct from new.state) execute function chaos.note_letter();

-- What an append handler committed, attempts that its table's key hides included. Its table is made on first
-- use, and watched from then on.
create table chaos.appended (
    id bigint generated always as identity primary key,
    table_name text not null,
    replay_id text not null,
    record text not null,
    at_us bigint not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    first boolean not null,
    replayed boolean not null
);
create function chaos.note_row() returns trigger language plpgsql as $$
declare there boolean;
begin
    execute format('select exists (select from %I where subscription = $1 and id = $2)', tg_table_name)
        into there using new.subscription, new.id;
    insert into chaos.appended (table_name, replay_id, record, first, replayed)
    values (tg_table_name, coalesce(new.replay_id, ''),
            coalesce(new.data->'ChangeEventHeader'->'recordIds'->>0, ''), not there,
            new.replayed);
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
    pub(crate) parkings: Vec<Parking>,
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

    /// Everything stored about a subscription, by the names that it may have.
    pub(crate) async fn stored(&self, names: &[String]) -> anyhow::Result<Stored> {
        let mut connection = self.connect().await?;
        let row = sqlx::query(
            "select position, concat_ws(': ', state, state_detail) as state \
             from orgstream.subscription where name = any($1)",
        )
        .bind(names)
        .fetch_optional(&mut connection)
        .await?;
        let mut stored = Stored::default();
        if let Some(row) = row {
            let position: Option<Vec<u8>> = row.try_get("position")?;
            stored.position = position.as_deref().map(place);
            stored.state = row.try_get("state")?;
        }
        stored.writes = writes(&mut connection, names).await?;
        stored.letters = letters(&mut connection, names).await?;
        stored.parkings = parkings(&mut connection, names).await?;
        stored.holes = holes(&mut connection, names).await?;
        stored.commands = sqlx::query_scalar(
            "select count(*) from orgstream.command \
             where subscription = any($1) and state in ('asked', 'running')",
        )
        .bind(names)
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
    ) -> anyhow::Result<Vec<Appended>> {
        let mut connection = self.connect().await?;
        let rows: Vec<(String, String, i64, bool)> = sqlx::query_as(
            "select replay_id, record, at_us, replayed from chaos.appended \
             where table_name = $1 and ($2 or first) order by id",
        )
        .bind(table)
        .bind(attempts)
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|(replay_id, record, at_us, replayed)| Appended {
                place: super::place_of(&replay_id),
                record,
                at_us,
                replayed,
            })
            .collect())
    }
}

async fn writes(connection: &mut PgConnection, names: &[String]) -> anyhow::Result<Vec<Write>> {
    let rows = sqlx::query("select * from chaos.change where name = any($1) order by id")
        .bind(names)
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
                ahead: row
                    .try_get::<Vec<String>, _>("ahead")?
                    .iter()
                    .filter_map(|mark| ahead(mark))
                    .collect(),
            })
        })
        .collect()
}

/// A mark of `finished_ahead`: the handler, and the identity with its place and, of a change event, its record.
fn ahead(mark: &str) -> Option<Ahead> {
    let (handler, identity) = mark.split_once(' ')?;
    let mut parts = identity.splitn(3, ':').skip(1);
    Some(Ahead {
        handler: handler.to_owned(),
        place: super::place_of(parts.next()?),
        record: parts.next().unwrap_or("").to_owned(),
    })
}

async fn letters(connection: &mut PgConnection, names: &[String]) -> anyhow::Result<Vec<Letter>> {
    let rows = sqlx::query(
        "select handler, replay_id, topic, coalesce(record_ids[1], '') as record, reason, state \
         from orgstream.dead_letter where subscription = any($1) order by id",
    )
    .bind(names)
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

async fn parkings(connection: &mut PgConnection, names: &[String]) -> anyhow::Result<Vec<Parking>> {
    let rows = sqlx::query(
        "select at_us, letter, handler, replay_id, records, open, replayed from chaos.parking \
         where subscription = any($1) order by id",
    )
    .bind(names)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let replay_id: Option<Vec<u8>> = row.try_get("replay_id")?;
            Ok(Parking {
                at_us: row.try_get("at_us")?,
                letter: row.try_get("letter")?,
                handler: row.try_get("handler")?,
                place: replay_id.as_deref().map_or(0, place),
                records: row.try_get("records")?,
                open: row.try_get("open")?,
                replayed: row.try_get("replayed")?,
            })
        })
        .collect()
}

async fn holes(connection: &mut PgConnection, names: &[String]) -> anyhow::Result<Vec<Hole>> {
    let rows = sqlx::query(
        "select kind, reason, from_replay_id, to_replay_id from orgstream.hole \
         where subscription = any($1) \
         and (reason <> 'perhaps_skipped_by_rewind' or acknowledged_at is null) order by id",
    )
    .bind(names)
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
