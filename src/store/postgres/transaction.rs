//! A handler's rows and the marks of its events in one transaction.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::timeout;

use super::lease::{fenced, hold};
use super::{PostgresStore, sql};
use crate::postgres::{Limits, Seat};
use crate::store::{HandOver, Lease, Mark, StoreError, TransactionError, Transactions, Work};

/// The longest pause between two statements, whatever the lease.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The longest pause between two statements under such leases. A lease is renewed every fifth of it, so what
/// a worker had open when it froze is rolled back by the time another one may take over.
pub(super) fn longest_pause(lease: Duration) -> Duration {
    LONGEST_PAUSE.min(lease - lease / 5)
}

#[async_trait]
impl Transactions for PostgresStore {
    async fn transact(
        &self,
        hand_over: HandOver<'_>,
        limit: Duration,
        work: &mut dyn Work,
    ) -> Result<(), TransactionError> {
        // Waited for without a limit: whoever has one is bounded, and to be many is no failure.
        let seat = self
            .handler_connections
            .seat()
            .await
            .map_err(StoreError::from)?;
        let limits = (limit, self.longest_pause);
        let stage = Stage::default();
        let conversation = converse(seat, Purpose::HandOver(hand_over), limits, &stage, work);
        in_time(limit, &stage, conversation).await
    }

    async fn try_out(&self, limit: Duration, work: &mut dyn Work) -> Result<(), TransactionError> {
        self.converse_alone(Purpose::Trial, limit, work).await
    }

    async fn transact_unmarked(
        &self,
        limit: Duration,
        work: &mut dyn Work,
    ) -> Result<(), TransactionError> {
        self.converse_alone(Purpose::Unmarked, limit, work).await
    }
}

impl PostgresStore {
    /// A transaction of no subscription.
    async fn converse_alone(
        &self,
        purpose: Purpose<'_>,
        limit: Duration,
        work: &mut dyn Work,
    ) -> Result<(), TransactionError> {
        let stage = Stage::default();
        in_time(limit, &stage, async {
            let seat = self.handler_connections.seat().await;
            let seat = seat.map_err(StoreError::from)?;
            converse(seat, purpose, (limit, self.longest_pause), &stage, work).await
        })
        .await
    }
}

/// What a transaction is for.
enum Purpose<'a> {
    /// Events, whose marks are stored with it.
    HandOver(HandOver<'a>),
    /// To see whether it could be done: rolled back.
    Trial,
    /// Work that has no marks.
    Unmarked,
}

/// How far a conversation is: from the moment that it asks for the commit, nobody knows its outcome before
/// the answer is there.
#[derive(Debug, Default)]
struct Stage {
    commits: AtomicBool,
}

impl Stage {
    fn error(&self, why: String) -> TransactionError {
        match self.commits.load(Ordering::Relaxed) {
            true => TransactionError::Unheard(why),
            false => StoreError::Unavailable(why).into(),
        }
    }
}

/// Ends a conversation that takes too long; its connection is closed, and the server rolls back.
async fn in_time(
    limit: Duration,
    stage: &Stage,
    conversation: impl Future<Output = Result<(), TransactionError>> + Send,
) -> Result<(), TransactionError> {
    timeout(limit, conversation).await.unwrap_or_else(|_| {
        let why = format!("the transaction took longer than {limit:?}");
        Err(stage.error(why))
    })
}

/// One transaction from beginning to end, on a connection that rests afterwards if it is sound.
async fn converse(
    seat: Seat<'_>,
    purpose: Purpose<'_>,
    (limit, pause): (Duration, Duration),
    stage: &Stage,
    work: &mut dyn Work,
) -> Result<(), TransactionError> {
    let mut lent = seat.connect().await.map_err(StoreError::from)?;
    let statement = limit.min(lent.longest_statement());
    let limits = Limits {
        statement,
        lock: statement / 2,
        pause: limit.min(pause),
    };
    // Numbers of ours only.
    let begin = AssertSqlSafe(lent.begin_statement(limits));
    // Known to sqlx as a transaction, so that one that the work begins is a savepoint of it.
    let begun = lent.connection().begin_with(begin).await;
    let mut tx = begun.map_err(StoreError::from)?;
    let done = match purpose {
        Purpose::HandOver(hand_over) => hand_events_over(&mut tx, hand_over, work).await,
        Purpose::Trial => {
            let done = work.run(&mut tx, &[]).await.map(|_| false);
            done.map_err(TransactionError::Work)
        }
        Purpose::Unmarked => {
            let done = work
                .run(&mut tx, &[])
                .await
                .map(|done| done.contains(&true));
            done.map_err(TransactionError::Work)
        }
    };
    match done {
        Ok(true) => {
            stage.commits.store(true, Ordering::Relaxed);
            tx.commit().await.map_err(not_committed)?;
        }
        Ok(false) => tx.rollback().await.map_err(StoreError::from)?,
        Err(error) => {
            // It fails where the connection is lost, and then what was lost is the news. Where a statement of the
            // store failed the connection is closed: it may lead to a server that is not the primary any more.
            if tx.rollback().await.is_ok() && matches!(error, TransactionError::Work(_)) {
                lent.give_back();
            }
            return Err(error);
        }
    }
    lent.give_back();
    Ok(())
}

/// What it means that a commit failed. The server says no, as where a deferred constraint is violated; or it
/// says nothing, or that it is going away, which it may do after the commit.
fn not_committed(error: sqlx::Error) -> TransactionError {
    let code = error.as_database_error().and_then(|error| error.code());
    let says_no =
        code.is_some_and(|code| !["08", "57", "58", "XX"].contains(&code.get(..2).unwrap_or("")));
    match says_no {
        true => TransactionError::Work(error),
        false => TransactionError::Unheard(error.to_string()),
    }
}

/// All that happens between begin and commit. True where there is something to commit.
async fn hand_events_over(
    conn: &mut PgConnection,
    hand_over: HandOver<'_>,
    work: &mut dyn Work,
) -> Result<bool, TransactionError> {
    let taken = hold_and_take_marks(conn, hand_over).await?;
    let finished: Vec<bool> = hand_over
        .marks
        .iter()
        .map(|mark| !taken.has(mark))
        .collect();
    let done = work.run(conn, &finished).await;
    let done = done.map_err(TransactionError::Work)?;
    // What the work says nothing of is not done.
    let done = done.into_iter().chain(std::iter::repeat(false));
    let ours = (hand_over.marks.iter().zip(&finished).zip(done))
        .filter(|((_, before), _)| !**before)
        .map(|((mark, _), done)| (mark, done));
    let (now, not_yet): (Vec<_>, Vec<_>) = ours.partition(|(_, done)| *done);
    if now.is_empty() {
        return Ok(false);
    }
    settle(conn, hand_over, &now, &not_yet).await?;
    Ok(true)
}

/// The marks of events that nobody has finished before.
#[derive(Debug, Default)]
struct Taken {
    ahead: Ahead,
    letters: HashSet<i64>,
}

/// The identities of those off a stream.
#[derive(Debug)]
enum Ahead {
    /// All that were asked for, as most often.
    All,
    These(HashSet<String>),
}

impl Default for Ahead {
    fn default() -> Self {
        Self::These(HashSet::new())
    }
}

impl Taken {
    fn has(&self, mark: &Mark) -> bool {
        match (mark, &self.ahead) {
            (Mark::Ahead(_), Ahead::All) => true,
            (Mark::Ahead(identity), Ahead::These(these)) => these.contains(identity.as_str()),
            (Mark::Letter(id), _) => self.letters.contains(id),
            (Mark::Nothing, _) => true,
        }
    }
}

/// Holds the lease, as [`hold`] does, and takes the marks before the work is done: a transaction whose commit was given
/// up, and which the server may still be about to carry out, is waited for here and then seen.
async fn hold_and_take_marks(
    conn: &mut PgConnection,
    hand_over: HandOver<'_>,
) -> Result<Taken, StoreError> {
    let mut taken = Taken::default();
    let ahead: Vec<&str> = hand_over.marks.iter().filter_map(ahead).collect();
    if ahead.is_empty() {
        hold(conn, hand_over.lease).await?;
    } else {
        taken.ahead = hold_and_insert(conn, hand_over, &ahead).await?;
    }
    let letters: Vec<i64> = hand_over.marks.iter().filter_map(letter).collect();
    if !letters.is_empty() {
        taken.letters = take_letters(conn, hand_over.lease, &letters).await?;
    }
    Ok(taken)
}

/// Both in one statement, which spares a handler that is far from its database two round trips a call. The marks come
/// from the locked row: before it is locked, and where its epoch is another, there are none. Gives those that were not
/// there yet; by name only where these are not all.
async fn hold_and_insert(
    conn: &mut PgConnection,
    hand_over: HandOver<'_>,
    ahead: &[&str],
) -> Result<Ahead, StoreError> {
    let HandOver { lease, handler, .. } = hand_over;
    let (held, inserted): (Option<bool>, Option<Vec<String>>) = sql::query_as(
        "with held as (select epoch = $3 as ours from orgstream.subscription \
                       where org_id = $1 and name = $2 for key share), \
              taken as (insert into orgstream.finished_ahead (org_id, subscription, handler, identity) \
                        select $1, $2, $4, g.identity from held, unnest($5::text[]) as g (identity) \
                        where held.ours on conflict do nothing returning identity) \
         select (select ours from held), \
                case when (select count(*) from taken) < cardinality($5) then array(select identity from taken) end",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(lease.epoch)
    .bind(handler)
    .bind(ahead)
    .fetch_one(conn)
    .await?;
    match held {
        Some(true) => Ok(inserted.map_or(Ahead::All, |these| {
            Ahead::These(these.into_iter().collect())
        })),
        _ => Err(fenced(lease)),
    }
}

/// Names the locks of letters among the advisory locks of two numbers: `orgs` in ASCII.
const LETTER_LOCK: i32 = 0x6f72_6773;

/// Those of these letters that are open. Until the end of the transaction nobody settles them: neither a person,
/// whom the rows' locks keep out, nor another transaction like this one, which waits for the other locks. Of the rows
/// no more is locked, because a position that passes their events is written to them meanwhile, and must not wait
/// for the handler.
async fn take_letters(
    conn: &mut PgConnection,
    lease: &Lease,
    letters: &[i64],
) -> Result<HashSet<i64>, StoreError> {
    sql::query(
        // Two letters that share a lock wait for each other, which is harmless.
        "select pg_advisory_xact_lock($1, number) \
         from (select (id % 2147483647)::integer as number from unnest($2::bigint[]) as given (id) order by 1) \
              in_order",
    )
    .bind(LETTER_LOCK)
    .bind(letters)
    .execute(&mut *conn)
    .await?;
    let open: Vec<i64> = sql::query_scalar(
        "select id from orgstream.dead_letter where org_id = $1 and subscription = $2 \
         and id = any($3) and state = 'open' order by id for key share",
    )
    .bind(lease.key.org_id.as_str())
    .bind(&lease.key.name)
    .bind(letters)
    .fetch_all(conn)
    .await?;
    Ok(open.into_iter().collect())
}

/// Leaves marks of just the events that are finished now, and resolves their letters. The last word before
/// the commit: where a statement of the work had failed and the work passed over it, one of these fails too,
/// whereas the commit would be answered as if nothing were wrong, and roll back.
async fn settle(
    conn: &mut PgConnection,
    hand_over: HandOver<'_>,
    now: &[(&Mark, bool)],
    not_yet: &[(&Mark, bool)],
) -> Result<(), TransactionError> {
    let resolved: Vec<i64> = now.iter().filter_map(|(mark, _)| letter(mark)).collect();
    let mut unfinished: HashSet<&str> =
        not_yet.iter().filter_map(|(mark, _)| ahead(mark)).collect();
    if !unfinished.is_empty() {
        // Nothing forbids two events of one identity.
        now.iter()
            .filter_map(|(mark, _)| ahead(mark))
            .for_each(|finished| {
                unfinished.remove(finished);
            });
    }
    let unfinished: Vec<&str> = unfinished.into_iter().collect();
    let done = if unfinished.is_empty() && resolved.is_empty() {
        // Of nothing to delete the server makes a look at every mark of the handler. Any statement fails where one
        // has failed before.
        sqlx::raw_sql("select 1")
            .execute(&mut *conn)
            .await
            .map(drop)
    } else {
        settle_marks(conn, hand_over, &unfinished, &resolved).await
    };
    done.map_err(TransactionError::Work)
}

/// Takes the marks of unfinished events away, and resolves letters.
async fn settle_marks(
    conn: &mut PgConnection,
    HandOver { lease, handler, .. }: HandOver<'_>,
    unfinished: &[&str],
    resolved: &[i64],
) -> Result<(), sqlx::Error> {
    if !unfinished.is_empty() {
        sql::query(
            "delete from orgstream.finished_ahead \
             where org_id = $1 and subscription = $2 and handler = $3 and identity = any($4)",
        )
        .bind(lease.key.org_id.as_str())
        .bind(&lease.key.name)
        .bind(handler)
        .bind(unfinished)
        .execute(&mut *conn)
        .await?;
    }
    if !resolved.is_empty() {
        sql::query(
            "with chosen as (select id from orgstream.dead_letter where id = any($1) \
                             order by id for no key update) \
             update orgstream.dead_letter d \
             set state = 'handled', resolved_at = now(), retry_asked_at = null \
             from chosen where d.id = chosen.id",
        )
        .bind(resolved)
        .execute(conn)
        .await?;
    }
    Ok(())
}

fn ahead(mark: &Mark) -> Option<&str> {
    match mark {
        Mark::Ahead(identity) => Some(identity.as_str()),
        Mark::Letter(_) | Mark::Nothing => None,
    }
}

fn letter(mark: &Mark) -> Option<i64> {
    match mark {
        Mark::Letter(id) => Some(*id),
        Mark::Ahead(_) | Mark::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_of_a_frozen_worker_is_gone_before_its_lease() {
        for seconds in [2, 3, 10, 15, 300] {
            let lease = Duration::from_secs(seconds);
            let pause = longest_pause(lease);
            assert!(
                pause <= lease * 4 / 5 && pause <= LONGEST_PAUSE,
                "{lease:?}"
            );
        }
        assert_eq!(longest_pause(Duration::from_secs(15)), LONGEST_PAUSE);
    }
}
