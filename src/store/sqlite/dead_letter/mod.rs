//! Parked events.

mod owner;
mod person;

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::lease::hold;
use super::{READ, SqliteStore, WRITE, from_json, ids_json, to_json};
use crate::event::{EventIdentity, SchemaId};
use crate::store::common::{commit, from_ms, plain, replay_id, to_ms};
use crate::store::vault::{LetterOf, Sealer};
use crate::store::{
    DeadLetter, DeadLetterFilter, DeadLetters, Lease, LetterSelection, LetterSummary, Placed,
    Refusal, SettledAhead, StoreError, StoredDeadLetter,
};

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn park_before(
        &self,
        lease: &Lease,
        letters: &[DeadLetter],
        behind: &[i64],
    ) -> Result<(Vec<Placed>, Vec<Placed>), StoreError> {
        transaction!(self, WRITE, |conn| park_before(
            conn,
            &self.sealer,
            lease,
            letters,
            behind
        ))
    }

    async fn open_letters(&self, lease: &Lease) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, READ, |conn| owner::open_letters(conn, lease))
    }

    async fn settled_ahead(&self, lease: &Lease) -> Result<Vec<SettledAhead>, StoreError> {
        transaction!(self, READ, |conn| owner::settled_ahead(conn, lease))
    }

    async fn letters(&self, ids: &[i64]) -> Result<Vec<StoredDeadLetter>, StoreError> {
        transaction!(self, READ, |conn| letters(conn, &self.sealer, ids))
    }

    async fn resolve(&self, lease: &Lease, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| owner::resolve(conn, lease, ids))
    }

    async fn park_again(
        &self,
        lease: &Lease,
        ids: &[i64],
        refusal: &Refusal,
    ) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| owner::park_again(
            conn, lease, ids, refusal
        ))
    }

    async fn pass_on(
        &self,
        lease: &Lease,
        ids: &[i64],
        letters: &[DeadLetter],
    ) -> Result<Option<Vec<Placed>>, StoreError> {
        transaction!(self, WRITE, |conn| owner::pass_on(
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
        transaction!(self, READ, |conn| list(conn, &self.sealer, filter))
    }

    async fn dead_letter(&self, id: i64) -> Result<Option<StoredDeadLetter>, StoreError> {
        transaction!(self, READ, |conn| find(conn, &self.sealer, id))
    }

    async fn select_letters(
        &self,
        selection: &LetterSelection,
    ) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, READ, |conn| person::select(conn, selection))
    }

    async fn letter_summaries(&self, ids: &[i64]) -> Result<Vec<LetterSummary>, StoreError> {
        transaction!(self, READ, |conn| person::summaries(conn, ids))
    }

    async fn ask_retry(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| person::ask_retry(conn, selection))
    }

    async fn withdraw_retry(&self, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| person::withdraw_retry(conn, ids))
    }

    async fn discard(&self, selection: &LetterSelection) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| person::discard(conn, selection))
    }
}

/// Parks events in this order. The same one again changes nothing while it is open; one that had been
/// resolved failed anew, and is open again.
async fn park_before(
    conn: &mut SqliteConnection,
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
    let mut moved = Vec::with_capacity(behind.len());
    for id in behind {
        moved.extend(move_last(conn, lease, *id).await?);
    }
    Ok((placed, moved))
}

/// Puts an open letter behind all others: at the number that a new one would have.
async fn move_last(
    conn: &mut SqliteConnection,
    lease: &Lease,
    id: i64,
) -> Result<Option<Placed>, StoreError> {
    let place = next_place(conn).await?;
    let moved = sqlx::query(
        "update dead_letter set place = $4 \
         where id = $1 and org_id = $2 and subscription = $3 and state = 'open'",
    )
    .bind(id)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(place)
    .execute(conn)
    .await?;
    Ok((moved.rows_affected() > 0).then_some(Placed { place, id }))
}

/// The number that a new one would have; it is used up.
async fn next_place(conn: &mut SqliteConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar(
        "update sqlite_sequence set seq = seq + 1 where name = 'dead_letter' returning seq",
    )
    .fetch_one(conn)
    .await?)
}

/// Parks one under a lease that is held; `asked` asks for another attempt in the same breath.
async fn park(
    conn: &mut SqliteConnection,
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
    let parked: Option<(i64, i64)> = sqlx::query_as(
        "insert into dead_letter as d \
             (org_id, subscription, topic, handler, identity, reason, error, attempts, event_uuid, \
              replay_id, schema_id, payload, record_ids, record_name, unit, received_at, place, \
              retry_asked_at, parked_at, ahead, replayed, sealed, committed_at, commit_number) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
                 iif($18, $19, null), $19, $20, $21, $22, $23, $24) \
         on conflict (org_id, subscription, coalesce(handler, ''), identity) do nothing \
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
    .bind(to_json(&letter.record_ids))
    .bind(letter.record_name.as_deref().map(plain))
    .bind(letter.unit.as_deref().map(plain))
    .bind(to_ms(letter.received_at))
    .bind(letter.place)
    .bind(asked)
    .bind(to_ms(SystemTime::now()))
    .bind(letter.ahead)
    .bind(letter.replayed)
    .bind(letter.sealed)
    .bind(letter.commit.map(|commit| to_ms(commit.at)))
    .bind(letter.commit.and_then(|commit| commit.number))
    .fetch_optional(&mut *conn)
    .await?;
    match parked {
        Some((place, id)) => Ok(Placed { place, id }),
        None => open_again(conn, lease, letter, &payload, asked).await,
    }
}

/// One that was parked before: as it is while it is open, else open again and the newest.
async fn open_again(
    conn: &mut SqliteConnection,
    lease: &Lease,
    letter: &DeadLetter,
    payload: &[u8],
    asked: bool,
) -> Result<Placed, StoreError> {
    let (place, id, state): (i64, i64, String) = sqlx::query_as(
        "select coalesce(place, id), id, state from dead_letter \
         where org_id = $1 and subscription = $2 \
         and coalesce(handler, '') = coalesce($3, '') and identity = $4",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&letter.handler)
    .bind(letter.identity.as_str())
    .fetch_one(&mut *conn)
    .await?;
    sqlx::query(
        "update dead_letter set ahead = ahead or $2, ahead_until = iif($2, null, ahead_until) \
         where id = $1",
    )
    .bind(id)
    .bind(letter.ahead)
    .execute(&mut *conn)
    .await?;
    if state == "open" {
        return Ok(Placed { place, id });
    }
    let place = match letter.place {
        Some(place) => place,
        None => next_place(conn).await?,
    };
    let now = to_ms(SystemTime::now());
    sqlx::query(
        "update dead_letter set state = 'open', resolved_at = null, parked_at = $2, reason = $3, \
             error = $4, attempts = $5, unit = $6, place = $7, retry_asked_at = iif($8, $2, null), \
             replayed = $9, payload = $10, sealed = $11, committed_at = $12, commit_number = $13 \
         where id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(plain(&letter.reason))
    .bind(plain(&letter.error))
    .bind(i32::try_from(letter.attempts).unwrap_or(i32::MAX))
    .bind(letter.unit.as_deref().map(plain))
    .bind(place)
    .bind(asked)
    .bind(letter.replayed)
    .bind(payload)
    .bind(letter.sealed)
    .bind(letter.commit.map(|commit| to_ms(commit.at)))
    .bind(letter.commit.and_then(|commit| commit.number))
    .execute(conn)
    .await?;
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
                    sealed, state, received_at, parked_at, retry_asked_at, resolved_at, committed_at, \
                    commit_number \
             from dead_letter ",
            $rest
        )
    };
}

/// Those that a filter lets through, in its order.
async fn list(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    filter: &DeadLetterFilter,
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let statement = if filter.newest_first {
        select!(
            "case when not $6 then payload end",
            "where ($1 is null or subscription = $1) and ($2 is null or handler = $2) \
         and ($3 is null or reason = $3) and ($4 is null or state = $4) and ($8 is null or id = $8) \
         and ($7 is null or id < $7) order by id desc limit $5"
        )
    } else {
        select!(
            "case when not $6 then payload end",
            "where ($1 is null or subscription = $1) and ($2 is null or handler = $2) \
         and ($3 is null or reason = $3) and ($4 is null or state = $4) and ($8 is null or id = $8) \
         and ($7 is null or (coalesce(place, id), id) \
              > (select coalesce(d.place, d.id), d.id from dead_letter d where d.id = $7)) \
         order by coalesce(place, id), id limit $5"
        )
    };
    let rows = sqlx::query(statement)
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
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    id: i64,
) -> Result<Option<StoredDeadLetter>, StoreError> {
    let row = sqlx::query(select!("where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(|row| from_row(row, sealer)).transpose()
}

/// These with their payloads.
async fn letters(
    conn: &mut SqliteConnection,
    sealer: &Sealer,
    ids: &[i64],
) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let rows = sqlx::query(select!(
        "where id in (select value from json_each($1)) order by coalesce(place, id), id"
    ))
    .bind(ids_json(ids))
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| from_row(row, sealer)).collect()
}

fn from_row(row: &SqliteRow, sealer: &Sealer) -> Result<StoredDeadLetter, StoreError> {
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
        record_ids: from_json(row.try_get("record_ids")?)?,
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
