//! Parked events.

mod owner;
mod person;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::lease::hold;
use super::{PostgresStore, sql};
use crate::event::{EventIdentity, SchemaId};
use crate::store::common::{commit, from_ms, plain, plain_list, replay_id, to_ms};
use crate::store::vault::{LetterOf, Sealer};
use crate::store::{
    DeadLetter, DeadLetterFilter, DeadLetters, Lease, LetterSelection, LetterSummary, Placed,
    Refusal, SettledAhead, StoreError, StoredDeadLetter,
};

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn park_before(
        &self,
        lease: &Lease,
        letters: &[DeadLetter],
        behind: &[i64],
    ) -> Result<(Vec<Placed>, Vec<Placed>), StoreError> {
        transaction!(self, |conn| park_before(
            conn,
            &self.sealer,
            lease,
            letters,
            behind
        ))
    }

    async fn open_letters(&self, lease: &Lease) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, |conn| owner::open_letters(conn, lease))
    }

    async fn settled_ahead(&self, lease: &Lease) -> Result<Vec<SettledAhead>, StoreError> {
        transaction!(self, |conn| owner::settled_ahead(conn, lease))
    }

    async fn letters(&self, ids: &[i64]) -> Result<Vec<StoredDeadLetter>, StoreError> {
        transaction!(self, |conn| letters(conn, &self.sealer, ids))
    }

    async fn resolve(&self, lease: &Lease, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| owner::resolve(conn, lease, ids))
    }

    async fn park_again(
        &self,
        lease: &Lease,
        ids: &[i64],
        refusal: &Refusal,
    ) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| owner::park_again(conn, lease, ids, refusal))
    }

    async fn pass_on(
        &self,
        lease: &Lease,
        ids: &[i64],
        letters: &[DeadLetter],
    ) -> Result<Option<Vec<Placed>>, StoreError> {
        transaction!(self, |conn| owner::pass_on(
            conn,
            &self.sealer,
            lease,
            ids,
            letters
        ))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<Vec<StoredDeadLetter>, StoreError> {
        transaction!(self, |conn| list(conn, &self.sealer, filter))
    }

    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError> {
        transaction!(self, |conn| find(conn, &self.sealer, id))
    }

    async fn select_letters(
        &self,
        selection: &LetterSelection,
    ) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, |conn| person::select(conn, selection))
    }

    async fn letter_summaries(&self, ids: &[i64]) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, |conn| person::summaries(conn, ids))
    }

    async fn ask_retry(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| person::ask_retry(conn, selection))
    }

    async fn withdraw_retry(&self, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| person::withdraw_retry(conn, ids))
    }

    async fn discard(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError> {
        transaction!(self, |conn| person::discard(conn, selection))
    }
}

/// Parks events in this order. The same one again changes nothing while it is open; one that had been
/// resolved failed anew, and is open again.
async fn park_before(
    conn: &mut PgConnection,
    sealer: &Sealer,
    lease: &Lease,
    letters: &[DeadLetter],
    behind: &[i64],
) -> Result<(Vec<Placed>, Vec<Placed>), StoreError> {
    hold(conn, lease).await?;
    let mut placed = Vec::with_capacity(letters.len());
    for letter in letters {
        placed.push(park(conn, sealer, lease, letter, false).await?);
    }
    let moved = move_last(conn, lease, behind).await?;
    Ok((placed, moved))
}

/// Puts those of these letters that are open behind all others, in this order: at the numbers that new ones would
/// have. All that wait behind a letter may have to move with it, so one statement does it for all.
async fn move_last(
    conn: &mut PgConnection,
    lease: &Lease,
    ids: &[i64],
) -> Result<Vec<Placed>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut moved: Vec<(i64, i64)> = sql::query_as(
        // Materialised: numbers are drawn once, in the order given.
        "with numbered as materialized ( \
             select id, nextval(pg_get_serial_sequence('orgstream.dead_letter', 'id')) as place \
             from (select id from unnest($1::bigint[]) with ordinality as given (id, n) order by n) in_order) \
         update orgstream.dead_letter d set place = numbered.place from numbered \
         where d.id = numbered.id and d.org_id = $2 and d.subscription = $3 and d.state = 'open' \
         returning d.place, d.id",
    )
    .bind(ids)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .fetch_all(conn)
    .await?;
    moved.sort_unstable();
    let placed = moved.into_iter().map(|(place, id)| Placed { place, id });
    Ok(placed.collect())
}

/// Parks one under a lease that is held; `asked` asks for another attempt in the same breath.
async fn park(
    conn: &mut PgConnection,
    sealer: &Sealer,
    lease: &Lease,
    letter: &DeadLetter,
    asked: bool,
) -> Result<Placed, StoreError> {
    let of = LetterOf {
        org_id: lease.key.org_id.as_str(),
        topic: lease.key.topic.as_str(),
    };
    let payload = sealer.seal_letter(of, letter)?;
    // One that is open again is the newest: its new place is the number that it would have had.
    let parked: Option<(i64, i64)> = sql::query_as(
        "insert into orgstream.dead_letter as d \
             (org_id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
              replay_id, schema_id, payload, record_ids, record_name, unit, received_at, place, \
              retry_asked_at, ahead, replayed, sealed, committed_at, commit_number) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
                 to_timestamp($16::bigint / 1000.0), $17, case when $18 then now() end, $19, $20, $21, \
                 to_timestamp($22::bigint / 1000.0), $23) \
         on conflict (org_id, subscription, coalesce(handler, ''), identity) do update set \
             state = 'open', resolved_at = null, parked_at = now(), reason = excluded.reason, \
             error = excluded.error, attempts = excluded.attempts, unit = excluded.unit, \
             place = coalesce(excluded.place, excluded.id), retry_asked_at = excluded.retry_asked_at, \
             ahead = d.ahead or excluded.ahead, \
             ahead_until = case when not excluded.ahead then d.ahead_until end, \
             replayed = excluded.replayed, payload = excluded.payload, sealed = excluded.sealed, \
             committed_at = excluded.committed_at, commit_number = excluded.commit_number \
         where d.state <> 'open' \
         returning coalesce(place, id), id",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.key.topic.as_str())
    .bind(&letter.handler)
    .bind(letter.identity.as_str())
    .bind(plain(&letter.reason))
    .bind(plain(&letter.error))
    .bind(i32::try_from(letter.attempts).unwrap_or(i32::MAX))
    .bind(plain(&letter.event_uuid))
    .bind(letter.replay_id.as_ref().map(|id| id.as_bytes()))
    .bind(plain(letter.schema_id.as_str()))
    .bind(payload.as_ref())
    .bind(plain_list(&letter.record_ids))
    .bind(letter.record_name.as_deref().map(plain))
    .bind(letter.unit.as_deref().map(plain))
    .bind(to_ms(letter.received_at))
    .bind(letter.place)
    .bind(asked)
    .bind(letter.ahead)
    .bind(letter.replayed)
    .bind(letter.sealed)
    .bind(letter.commit.map(|commit| to_ms(commit.at)))
    .bind(letter.commit.and_then(|commit| commit.number))
    .fetch_optional(&mut *conn)
    .await?;
    let (place, id) = match parked {
        Some(parked) => parked,
        None => {
            sql::query_as(
                "update orgstream.dead_letter set ahead = ahead or $5, \
                     ahead_until = case when not $5 then ahead_until end \
                 where org_id = $1 and subscription = $2 \
                 and coalesce(handler, '') = coalesce($3, '') and identity = $4 \
                 returning coalesce(place, id), id",
            )
            .bind(lease.key.org_id.as_str())
            .bind(&lease.key.name)
            .bind(&letter.handler)
            .bind(letter.identity.as_str())
            .bind(letter.ahead)
            .fetch_one(conn)
            .await?
        }
    };
    Ok(Placed { place, id })
}

/// What [`from_row`] reads.
macro_rules! select {
    ($rest:literal) => {
        select!("payload", $rest)
    };
    ($payload:literal, $rest:literal) => {
        concat!(
            "select id, org_id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
                    replay_id, schema_id, ",
            $payload,
            " as payload, record_ids, record_name, unit, place, ahead, replayed, \
                    sealed, state, (extract(epoch from received_at) * 1000)::bigint as received_at, \
                    (extract(epoch from committed_at) * 1000)::bigint as committed_at, commit_number, \
                    (extract(epoch from parked_at) * 1000)::bigint as parked_at, \
                    (extract(epoch from retry_asked_at) * 1000)::bigint as retry_asked_at, \
                    (extract(epoch from resolved_at) * 1000)::bigint as resolved_at \
             from orgstream.dead_letter ",
            $rest
        )
    };
}

/// Those that a filter lets through, in its order.
async fn list(
    conn: &mut PgConnection,
    sealer: &Sealer,
    filter: &DeadLetterFilter,
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let statement = if filter.newest_first {
        select!(
            "case when not $6 then payload end",
            "where ($1::text is null or subscription = $1) and ($2::text is null or handler = $2) \
         and ($3::text is null or reason = $3) and ($4::text is null or state = $4) and ($8::bigint is null or id = $8) \
         and ($7::bigint is null or id < $7) order by id desc limit $5"
        )
    } else {
        select!(
            "case when not $6 then payload end",
            "where ($1::text is null or subscription = $1) and ($2::text is null or handler = $2) \
         and ($3::text is null or reason = $3) and ($4::text is null or state = $4) and ($8::bigint is null or id = $8) \
         and ($7::bigint is null or (coalesce(place, id), id) \
              > (select coalesce(d.place, d.id), d.id from orgstream.dead_letter d where d.id = $7)) \
         order by coalesce(place, id), id limit $5"
        )
    };
    let rows = sql::query(statement)
        .bind(&filter.subscription)
        .bind(&filter.handler)
        .bind(&filter.reason)
        .bind(&filter.state)
        .bind(i64::from(filter.limit))
        .bind(filter.bare)
        .bind(filter.behind)
        .bind(filter.id)
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| from_row(row, sealer)).collect()
}

/// One, by its number.
async fn find(
    conn: &mut PgConnection,
    sealer: &Sealer,
    id: i64,
) -> Result<Option<StoredDeadLetter>, StoreError> {
    let row = sql::query(select!("where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(|row| from_row(row, sealer)).transpose()
}

/// These with their payloads.
async fn letters(
    conn: &mut PgConnection,
    sealer: &Sealer,
    ids: &[i64],
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let rows = sql::query(select!(
        "where id = any($1) order by coalesce(place, id), id"
    ))
    .bind(ids)
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| from_row(row, sealer)).collect()
}

fn from_row(row: &PgRow, sealer: &Sealer) -> Result<StoredDeadLetter, StoreError> {
    let time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(from_ms));
    let mut letter = DeadLetter {
        identity: EventIdentity::from_stored(row.try_get("identity")?),
        handler: row.try_get("handler")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        attempts: u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or(0),
        event_uuid: row.try_get("event_uuid")?,
        replay_id: replay_id(row.try_get("replay_id")?),
        schema_id: SchemaId::new(row.try_get("schema_id")?),
        payload: Bytes::new(),
        record_ids: row.try_get("record_ids")?,
        record_name: row.try_get("record_name")?,
        unit: row.try_get("unit")?,
        place: row.try_get("place")?,
        received_at: from_ms(row.try_get("received_at")?),
        commit: commit(row.try_get("committed_at")?, row.try_get("commit_number")?),
        ahead: row.try_get("ahead")?,
        replayed: row.try_get("replayed")?,
        sealed: row.try_get("sealed")?,
    };
    let (org_id, topic): (String, String) = (row.try_get("org_id")?, row.try_get("topic")?);
    let of = LetterOf {
        org_id: &org_id,
        topic: &topic,
    };
    let payload: Option<Vec<u8>> = row.try_get("payload")?;
    // Nothing is opened where nobody asked for it.
    let unreadable = payload.and_then(|payload| sealer.open_letter(of, &mut letter, payload));
    Ok(StoredDeadLetter {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        topic,
        state: row.try_get("state")?,
        parked_at: from_ms(row.try_get("parked_at")?),
        retry_asked_at: time("retry_asked_at")?,
        resolved_at: time("resolved_at")?,
        unreadable,
        letter,
    })
}
