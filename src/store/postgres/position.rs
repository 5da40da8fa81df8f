//! Taking over, progress, state.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::lease::{fenced, hold};
use super::observation::log_state;
use super::{PostgresStore, sql};
use crate::event::{EventIdentity, ReplayId};
use crate::store::common::{
    MARK_INTERVAL_MS, begin_text, from_ms, from_sql_count, mark_ms, org_from, plain, recent,
    replay_id, span_ms, to_ms, to_sql_count, topic_from,
};
use crate::store::{
    FinishedAhead, Lease, Positions, Progress, Recent, StateReport, StoreError, SubscriptionKey,
    SubscriptionStatus,
};

#[async_trait]
impl Positions for PostgresStore {
    async fn mark_begun(&self, lease: &Lease) -> Result<(), StoreError> {
        transaction!(self, |conn| mark_begun(conn, lease))
    }

    async fn mark_first(&self, lease: &Lease, first: &ReplayId) -> Result<(), StoreError> {
        transaction!(self, |conn| mark_first(conn, lease, first))
    }

    async fn save_progress(&self, lease: &Lease, progress: &Progress) -> Result<(), StoreError> {
        let number = self.last_write.fetch_add(1, Ordering::Relaxed) + 1;
        transaction!(self, |conn| save_progress(conn, lease, number, progress))
    }

    async fn report_states(
        &self,
        lease: &Lease,
        reports: &[StateReport],
    ) -> Result<(), StoreError> {
        transaction!(self, |conn| async {
            for report in reports {
                report_state(&mut *conn, lease, report).await?;
            }
            Ok::<_, StoreError>(())
        })
    }

    async fn recent_events(
        &self,
        key: &SubscriptionKey,
        window: Duration,
    ) -> Result<Option<Recent>, StoreError> {
        transaction!(self, |conn| recent_events(conn, key, window))
    }

    async fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, StoreError> {
        transaction!(self, |conn| all(conn))
    }
}

/// Notes that a stream is about to begin at LATEST.
pub(super) async fn mark_begun(conn: &mut PgConnection, lease: &Lease) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "update orgstream.subscription set begun_at = coalesce(begun_at, now()) \
         where org_id = $1 and name = $2",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes the first replay ID that came on a stream that began at LATEST.
pub(super) async fn mark_first(
    conn: &mut PgConnection,
    lease: &Lease,
    first: &ReplayId,
) -> Result<(), StoreError> {
    hold(conn, lease).await?;
    sql::query(
        "update orgstream.subscription set begun_with = $3 \
         where org_id = $1 and name = $2 and position is null and begun_with is null",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(first.as_bytes())
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes progress. `number` orders this write among those of the same epoch: one that was given up but
/// reaches the database after a newer one is refused.
pub(super) async fn save_progress(
    conn: &mut PgConnection,
    lease: &Lease,
    number: i64,
    progress: &Progress,
) -> Result<(), StoreError> {
    let written = sql::query(
        "update orgstream.subscription set \
             lost_position = case when $5 is not null then null \
                                  when $13 then coalesce(lost_position, position, begun_with) \
                                  else lost_position end, \
             position = case when $5 is null and $11::text is not null then null \
                             else coalesce($5, position) end, \
             position_transaction = case when $5 is not null then $9 \
                                         when $11 is null then position_transaction end, \
             position_at = case when $5 is null then position_at else now() end, \
             position_time = case when $5 is not null then to_timestamp($10::bigint / 1000.0) \
                                  when $11 is null then position_time end, \
             position_event = case when $5 is not null then coalesce($12, position_event) \
                                   when $11 is null then position_event end, \
             begin_from = case when $5 is null then coalesce($11, begin_from) end, \
             begun_at = case when $5 is not null or $11 is null then begun_at \
                             when $11 = 'latest' then now() end, \
             begun_with = case when $5 is null and $11 is not null then null else begun_with end, \
             caught_up_at = coalesce(to_timestamp($6::bigint / 1000.0), caught_up_at), \
             received = received + $7, finished = finished + $8, write_number = $4 \
         where org_id = $1 and name = $2 and epoch = $3 and write_number < $4",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(number)
    .bind(progress.position.as_ref().map(|id| id.as_bytes()))
    .bind(progress.caught_up_at.map(to_ms))
    .bind(to_sql_count(progress.received))
    .bind(to_sql_count(progress.finished))
    .bind(progress.transaction.as_deref().map(plain))
    .bind(progress.position_time.and_then(mark_ms))
    .bind(progress.begin_from.as_ref().and_then(begin_text))
    .bind(progress.position_event.as_ref().map(ReplayId::as_bytes))
    .bind(progress.begin_from.is_some() && progress.unfinished)
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if written == 0 {
        hold(conn, lease).await?;
        return Err(StoreError::Unavailable(
            "a newer write of the same worker came first".to_owned(),
        ));
    }
    let given = &progress.finished_ahead;
    match &progress.passed {
        Some(passed) => forget_passed(conn, lease, passed).await?,
        None => forget_others(conn, lease, given).await?,
    }
    add_finished_ahead(conn, lease, given).await?;
    pass_letters(conn, lease, &progress.letters_passed).await?;
    mark_position(conn, lease, progress).await
}

/// The position has passed the events of these letters, and with them all others of their places: those that an
/// undecodable one was passed on to while this write was on its way. Locks them in the order in which those do who
/// settle letters, but no more than it changes: a handler's transaction that tries one again is not waited for.
async fn pass_letters(
    conn: &mut PgConnection,
    lease: &Lease,
    letters: &[i64],
) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    sql::query(
        "with chosen as (select id from orgstream.dead_letter \
                         where org_id = $2 and subscription = $3 and ahead and (id = any($1) \
                         or replay_id in (select replay_id from orgstream.dead_letter where id = any($1))) \
                         order by id for no key update) \
         update orgstream.dead_letter d set ahead = false, ahead_until = null \
         from chosen where d.id = chosen.id",
    )
    .bind(letters)
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes the marks of these events away, whatever handler finished them.
async fn forget_passed(
    conn: &mut PgConnection,
    lease: &Lease,
    passed: &[EventIdentity],
) -> Result<(), StoreError> {
    if passed.is_empty() {
        return Ok(());
    }
    let identities: Vec<&str> = passed.iter().map(EventIdentity::as_str).collect();
    sql::query(
        "delete from orgstream.finished_ahead f using unnest($3::text[]) as g (identity) \
         where f.org_id = $1 and f.subscription = $2 and f.identity = g.identity",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&identities)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes all marks away but the given ones, touching only what differs. Not `not exists`: of a table that comes and goes
/// the server never knows how much is in it, and would compare each mark with each of those given, which takes seconds
/// for some thousand.
async fn forget_others(
    conn: &mut PgConnection,
    lease: &Lease,
    given: &[FinishedAhead],
) -> Result<(), StoreError> {
    let (handlers, identities) = columns(given);
    sql::query(
        "delete from orgstream.finished_ahead f where f.org_id = $1 and f.subscription = $2 \
         and (f.handler, f.identity) not in \
             (select g.handler, g.identity from unnest($3::text[], $4::text[]) as g (handler, identity))",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&handlers)
    .bind(&identities)
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds the marks that are not there yet.
async fn add_finished_ahead(
    conn: &mut PgConnection,
    lease: &Lease,
    given: &[FinishedAhead],
) -> Result<(), StoreError> {
    if given.is_empty() {
        return Ok(());
    }
    let (handlers, identities) = columns(given);
    sql::query(
        "insert into orgstream.finished_ahead (org_id, subscription, handler, identity) \
         select $1, $2, g.handler, g.identity \
         from unnest($3::text[], $4::text[]) as g (handler, identity) on conflict do nothing",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(&handlers)
    .bind(&identities)
    .execute(conn)
    .await?;
    Ok(())
}

fn columns(given: &[FinishedAhead]) -> (Vec<&str>, Vec<&str>) {
    given
        .iter()
        .map(|ahead| (ahead.handler.as_str(), ahead.identity.as_str()))
        .unzip()
}

/// Notes which position belonged to which time, unless a mark is near.
async fn mark_position(
    conn: &mut PgConnection,
    lease: &Lease,
    progress: &Progress,
) -> Result<(), StoreError> {
    let (Some(position), Some(at)) = (&progress.position, progress.marked_at.and_then(mark_ms))
    else {
        return Ok(());
    };
    sql::query(
        "insert into orgstream.position_mark (org_id, subscription, at, position, received) \
         select $1, $2, to_timestamp($3::bigint / 1000.0), $5, \
                (select received from orgstream.subscription where org_id = $1 and name = $2) \
         where not exists (select 1 from orgstream.position_mark \
                           where org_id = $1 and subscription = $2 \
                           and at > to_timestamp(($3::bigint - $4::bigint) / 1000.0))",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(at)
    .bind(MARK_INTERVAL_MS)
    .bind(position.as_bytes())
    .execute(conn)
    .await?;
    Ok(())
}

/// Received events between the newest mark and the oldest within `window` before it.
pub(super) async fn recent_events(
    conn: &mut PgConnection,
    key: &SubscriptionKey,
    window: Duration,
) -> Result<Option<Recent>, StoreError> {
    let newest: Option<(i64, i64)> = sql::query_as(
        "select (extract(epoch from at) * 1000)::bigint, received from orgstream.position_mark \
         where org_id = $1 and subscription = $2 and received is not null \
         order by at desc limit 1",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(newest) = newest else {
        return Ok(None);
    };
    let oldest: Option<(i64, i64)> = sql::query_as(
        "select (extract(epoch from at) * 1000)::bigint, received from orgstream.position_mark \
         where org_id = $1 and subscription = $2 and received is not null \
         and at >= to_timestamp($3::bigint / 1000.0) order by at limit 1",
    )
    .bind(key.org_id.as_str())
    .bind(&key.name)
    .bind(newest.0.saturating_sub(span_ms(window)))
    .fetch_optional(conn)
    .await?;
    Ok(oldest.and_then(|oldest| recent(oldest, newest)))
}

/// Writes a state for people to see.
pub(super) async fn report_state(
    conn: &mut PgConnection,
    lease: &Lease,
    report: &StateReport,
) -> Result<(), StoreError> {
    let written = sql::query(
        "update orgstream.subscription set state = $4, state_detail = $5, state_at = now() \
         where org_id = $1 and name = $2 and epoch = $3",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(plain(&report.state))
    .bind(report.detail.as_deref().map(plain))
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if written == 0 {
        return Err(fenced(lease));
    }
    log_state(conn, lease, report).await
}

/// Every subscription, by name.
pub(super) async fn all(conn: &mut PgConnection) -> Result<Vec<SubscriptionStatus>, StoreError> {
    let rows = sql::query(
        "select s.org_id, s.name, s.topic, s.state, s.state_detail, s.holder, s.epoch, s.position, \
                s.received, s.finished, w.name as worker, \
                coalesce(s.lease_until > now(), false) as held, \
                (extract(epoch from s.paused_at) * 1000)::bigint as paused_at, \
                (extract(epoch from s.state_at) * 1000)::bigint as state_at, \
                (extract(epoch from s.position_at) * 1000)::bigint as position_at, \
                (extract(epoch from s.position_time) * 1000)::bigint as position_time, \
                (extract(epoch from s.caught_up_at) * 1000)::bigint as caught_up_at, \
                (select count(*) from orgstream.dead_letter d where d.org_id = s.org_id \
                 and d.subscription = s.name and d.state = 'open') as parked, \
                (select count(*) from orgstream.hole h where h.org_id = s.org_id \
                 and h.subscription = s.name and h.acknowledged_at is null) as holes \
         from orgstream.subscription s left join orgstream.worker w on w.holder = s.holder \
         order by s.name, s.org_id",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let time =
                |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(from_ms));
            let count = |column| Ok::<_, sqlx::Error>(from_sql_count(row.try_get(column)?));
            Ok(SubscriptionStatus {
                key: SubscriptionKey {
                    org_id: org_from(row.try_get("org_id")?)?,
                    name: row.try_get("name")?,
                    topic: topic_from(row.try_get("topic")?)?,
                },
                state: row.try_get("state")?,
                detail: row.try_get("state_detail")?,
                state_at: time("state_at")?,
                holder: row.try_get("holder")?,
                held: row.try_get("held")?,
                worker: row.try_get("worker")?,
                paused_at: time("paused_at")?,
                epoch: row.try_get("epoch")?,
                position: replay_id(row.try_get("position")?),
                position_at: time("position_at")?,
                position_time: time("position_time")?,
                caught_up_at: time("caught_up_at")?,
                received: count("received")?,
                finished: count("finished")?,
                parked: count("parked")?,
                holes: count("holes")?,
            })
        })
        .collect()
}
