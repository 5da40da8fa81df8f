//! Transactions that a handler's rows and the events' marks share: Postgres, and behind a pooler.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{Connection, PgConnection};

use super::bed::{BRIEF, Bed, now, replay, take};
use crate::event::EventIdentity;
use crate::store::{
    FinishedAhead, HandOver, Lease, Mark, Progress, Store, StoreError, TransactionError, Work,
};

mod letters;

pub(super) use letters::*;

const LIMIT: Duration = Duration::from_secs(20);

/// Work made of a closure, which notes what it was told of the events.
struct Task<F> {
    told: Vec<bool>,
    work: F,
}

type Done<'c> = BoxFuture<'c, Result<Vec<bool>, sqlx::Error>>;

#[async_trait]
impl<F> Work for Task<F>
where
    F: for<'c> FnMut(&'c mut PgConnection, Vec<bool>) -> Done<'c> + Send,
{
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        self.told = finished.to_vec();
        (self.work)(connection, self.told.clone()).await
    }
}

fn task<F>(work: F) -> Task<F>
where
    F: for<'c> FnMut(&'c mut PgConnection, Vec<bool>) -> Done<'c> + Send,
{
    let told = Vec::new();
    Task { told, work }
}

/// Hands these events to handler `rows`; gives what the work was told, or why nothing was committed.
async fn transact<F>(
    store: &dyn Store,
    lease: &Lease,
    marks: &[Mark],
    work: F,
) -> Result<Vec<bool>, TransactionError>
where
    F: for<'c> FnMut(&'c mut PgConnection, Vec<bool>) -> Done<'c> + Send,
{
    let mut task = task(work);
    let hand_over = HandOver {
        lease,
        handler: "rows",
        marks,
    };
    store.transact(hand_over, LIMIT, &mut task).await?;
    Ok(task.told)
}

fn ahead(names: &[&str]) -> Vec<Mark> {
    let mark = |name: &&str| Mark::Ahead(EventIdentity::from_stored(name));
    names.iter().map(mark).collect()
}

/// Writes a row for each event that is not finished yet, and finishes all.
fn write_all(conn: &mut PgConnection, finished: Vec<bool>) -> Done<'_> {
    Box::pin(async move {
        for place in finished.iter().enumerate().filter(|(_, f)| !**f) {
            sqlx::query("insert into public.row values ($1)")
                .persistent(false)
                .bind(place.0 as i64)
                .execute(&mut *conn)
                .await?;
        }
        Ok(vec![true; finished.len()])
    })
}

async fn ready(bed: &Bed) -> (std::sync::Arc<dyn Store>, Lease) {
    let store = bed.ready().await;
    bed.execute("create table public.row (n bigint check (n < 1000))")
        .await;
    let lease = take(&*store).await;
    (store, lease)
}

/// Rows of the handler, and marks.
async fn stored(bed: &Bed) -> (i64, i64) {
    let rows = bed.column("select count(*) from public.row").await;
    let marks = bed
        .column("select count(*) from orgstream.finished_ahead")
        .await;
    (rows[0], marks[0])
}

async fn take_again(store: &dyn Store, lease: &Lease) -> Result<Lease, StoreError> {
    let configured = [lease.key.name.clone()];
    let taken = store.take_over(&lease.key, "next", BRIEF, &configured, false);
    Ok(taken.await?.lease)
}

pub(super) async fn rows_and_marks_are_committed_together_or_not_at_all(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let marks = ahead(&["a", "b"]);
    let nothing_finished = transact(&*store, &lease, &marks, |conn, finished| {
        Box::pin(async move {
            write_all(conn, finished).await?;
            Ok(vec![false, false])
        })
    });
    nothing_finished.await.unwrap();
    assert_eq!(stored(bed).await, (0, 0), "nothing was finished");

    let failed = transact(&*store, &lease, &marks, |conn, finished| {
        Box::pin(async move {
            write_all(&mut *conn, finished).await?;
            sqlx::raw_sql("select 1 / 0").execute(conn).await?;
            Ok(vec![true, true])
        })
    });
    let error = failed.await.unwrap_err();
    assert!(matches!(error, TransactionError::Work(_)), "{error:?}");
    assert_eq!(stored(bed).await, (0, 0), "a statement failed");

    let told = transact(&*store, &lease, &marks, write_all).await.unwrap();
    assert_eq!(told, [false, false]);
    assert_eq!(stored(bed).await, (2, 2));
    store.close().await;
}

pub(super) async fn an_event_that_an_earlier_transaction_finished_is_not_done_again(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    transact(&*store, &lease, &ahead(&["a", "b"]), write_all)
        .await
        .unwrap();
    let told = transact(&*store, &lease, &ahead(&["b", "c", "a"]), write_all).await;
    assert_eq!(told.unwrap(), [true, false, true]);
    assert_eq!(stored(bed).await, (3, 3));
    let told = transact(&*store, &lease, &ahead(&["b", "c", "a"]), write_all).await;
    assert_eq!(told.unwrap(), [true, true, true]);
    assert_eq!(stored(bed).await, (3, 3));
    // The next holder is told, too; another handler has its own marks.
    let lease = take_again(&*store, &lease).await.unwrap();
    let told = transact(&*store, &lease, &ahead(&["a"]), write_all).await;
    assert_eq!(told.unwrap(), [true]);
    let mut other = task(write_all);
    let hand_over = HandOver {
        lease: &lease,
        handler: "other",
        marks: &ahead(&["a"]),
    };
    store.transact(hand_over, LIMIT, &mut other).await.unwrap();
    assert_eq!(other.told, [false]);
    assert_eq!(stored(bed).await, (4, 4));
    store.close().await;
}

pub(super) async fn what_the_work_did_not_finish_keeps_no_mark(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let marks = ahead(&["a", "b", "c"]);
    let half = transact(&*store, &lease, &marks, |_, _| {
        Box::pin(async { Ok(vec![false, true, false]) })
    });
    half.await.unwrap();
    assert_eq!(stored(bed).await, (0, 1));
    let told = transact(&*store, &lease, &marks, write_all).await.unwrap();
    assert_eq!(told, [false, true, false]);
    store.close().await;
}

pub(super) async fn a_failed_statement_that_the_work_passes_over_is_not_committed(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let marks = ahead(&["a"]);
    let swallowed = transact(&*store, &lease, &marks, |conn, _| {
        Box::pin(async move {
            let _ = sqlx::raw_sql("select 1 / 0").execute(conn).await;
            Ok(vec![true])
        })
    });
    let error = swallowed.await.unwrap_err();
    assert!(matches!(error, TransactionError::Work(_)), "{error:?}");
    assert_eq!(stored(bed).await, (0, 0));
    store.close().await;
}

pub(super) async fn a_transaction_that_the_work_begins_is_a_savepoint(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let marks = ahead(&["a"]);
    let nested = transact(&*store, &lease, &marks, |conn, finished| {
        Box::pin(async move {
            let mut kept = conn.begin().await?;
            write_all(&mut kept, finished.clone()).await?;
            kept.commit().await?;
            let mut dropped = conn.begin().await?;
            write_all(&mut dropped, finished.clone()).await?;
            let refused = sqlx::raw_sql("select 1 / 0").execute(&mut *dropped).await;
            assert!(refused.is_err());
            drop(dropped);
            write_all(conn, finished).await
        })
    });
    nested.await.unwrap();
    assert_eq!(stored(bed).await, (2, 1));
    store.close().await;
}

pub(super) async fn a_constraint_that_fails_at_the_commit_is_an_error_of_the_work(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    bed.execute(
        "create table public.late (n int, constraint once unique (n) deferrable initially deferred); \
         insert into public.late values (1)",
    )
    .await;
    let marks = ahead(&["a"]);
    let twice = transact(&*store, &lease, &marks, |conn, _| {
        Box::pin(async move {
            sqlx::raw_sql("insert into public.late values (1)")
                .execute(conn)
                .await?;
            Ok(vec![true])
        })
    });
    let TransactionError::Work(error) = twice.await.unwrap_err() else {
        panic!("not an error of the work");
    };
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "23505");
    assert_eq!(stored(bed).await, (0, 0));
    // And the connection does for the next.
    let told = transact(&*store, &lease, &ahead(&["a"]), write_all).await;
    assert_eq!(told.unwrap(), [false]);
    store.close().await;
}

pub(super) async fn a_commit_waits_for_the_disk_whatever_the_database_is_set_to(bed: &Bed) {
    bed.execute(
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$",
    )
    .await;
    let store = bed.ready().await;
    // What the store writes by itself is seen by a trigger.
    bed.execute(
        "create table public.commits (how text); \
         create function public.note() returns trigger language plpgsql as $$ begin \
         insert into public.commits values (current_setting('synchronous_commit')); return null; end $$; \
         create trigger note after insert or update on orgstream.subscription \
         for each statement execute function public.note()",
    )
    .await;
    let lease = take(&*store).await;
    let note: for<'c> fn(&'c mut PgConnection, Vec<bool>) -> Done<'c> = |conn, finished| {
        Box::pin(async move {
            sqlx::raw_sql(
                "insert into public.commits values (current_setting('synchronous_commit'))",
            )
            .execute(conn)
            .await?;
            Ok(vec![true; finished.len().max(1)])
        })
    };
    transact(&*store, &lease, &ahead(&["a"]), note)
        .await
        .unwrap();
    store
        .transact_unmarked(LIMIT, &mut task(note))
        .await
        .unwrap();
    let counted = "select count(*) from public.commits where how = 'on'";
    assert!(bed.column::<i64>(counted).await[0] >= 3);
    let others = "select count(*) from public.commits where how <> 'on'";
    assert_eq!(bed.column::<i64>(others).await, [0]);
    store.close().await;
}

pub(super) async fn a_worker_whose_epoch_has_passed_commits_no_rows(bed: &Bed) {
    let (store, old) = ready(bed).await;
    let new = take_again(&*store, &old).await.unwrap();
    let late = transact(&*store, &old, &ahead(&["a"]), write_all).await;
    let error = late.unwrap_err();
    let fenced = matches!(
        error,
        TransactionError::Store(StoreError::Fenced { ours, .. }) if ours == old.epoch
    );
    assert!(fenced, "{error:?}");
    assert_eq!(stored(bed).await, (0, 0));
    transact(&*store, &new, &ahead(&["a"]), write_all)
        .await
        .unwrap();
    assert_eq!(stored(bed).await, (1, 1));
    store.close().await;
}

pub(super) async fn what_begins_while_another_takes_over_waits_and_is_refused(bed: &Bed) {
    let (store, old) = ready(bed).await;
    // Another that is about to take over.
    let mut next = PgConnection::connect(bed.direct_url()).await.unwrap();
    let raise = "begin; select from orgstream.subscription for update; \
                 update orgstream.subscription set epoch = epoch + 1";
    sqlx::raw_sql(raise).execute(&mut next).await.unwrap();
    let marks = ahead(&["a"]);
    let late = transact(&*store, &old, &marks, write_all);
    let taken = async {
        waits_for_a_lock(bed).await;
        sqlx::raw_sql("commit").execute(&mut next).await.unwrap();
    };
    let (late, ()) = futures_util::future::join(late, taken).await;
    let error = late.unwrap_err();
    let fenced = matches!(error, TransactionError::Store(StoreError::Fenced { .. }));
    assert!(fenced, "{error:?}");
    assert_eq!(stored(bed).await, (0, 0));
    store.close().await;
}

pub(super) async fn whoever_takes_over_waits_for_an_open_transaction_and_sees_its_marks(bed: &Bed) {
    let (store, old) = ready(bed).await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let (has_begun, begun) = tokio::sync::oneshot::channel::<()>();
    let mut signals = Some((has_begun, gone));
    let marks = ahead(&["a"]);
    let open = transact(&*store, &old, &marks, |conn, finished| {
        let signals = signals.take();
        Box::pin(async move {
            write_all(conn, finished).await?;
            if let Some((has_begun, gone)) = signals {
                let _ = has_begun.send(());
                let _ = gone.await;
            }
            Ok(vec![true])
        })
    });
    let taken = async {
        let next = bed.open().await;
        // On a busy machine the transaction may begin later than the other store opens.
        begun.await.unwrap();
        let taken = async {
            let taken = take_again(&*next, &old).await;
            next.close().await;
            taken
        };
        let released = async {
            waits_for_a_lock(bed).await;
            go.send(()).unwrap();
        };
        futures_util::future::join(taken, released).await.0
    };
    let (open, taken) = futures_util::future::join(open, taken).await;
    open.unwrap();
    let told = transact(&*store, &taken.unwrap(), &marks, write_all).await;
    assert_eq!(told.unwrap(), [true]);
    assert_eq!(stored(bed).await, (1, 1));
    store.close().await;
}

/// Waits until some session of the store waits for a lock.
async fn waits_for_a_lock(bed: &Bed) {
    let began = Instant::now();
    loop {
        let waiting: Vec<i64> = bed
            .column(
                "select count(*) from pg_stat_activity where datname = current_database() \
                 and wait_event_type = 'Lock'",
            )
            .await;
        if waiting[0] > 0 {
            return;
        }
        assert!(began.elapsed() < LIMIT, "nobody waits for a lock");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) async fn a_commit_whose_answer_was_lost_is_waited_for_and_then_seen(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    // The transaction of before, which the server is still about to commit.
    let mut before = PgConnection::connect(bed.direct_url()).await.unwrap();
    let mark = "begin; insert into orgstream.finished_ahead \
                select org_id, name, 'rows', 'a' from orgstream.subscription";
    sqlx::raw_sql(mark).execute(&mut before).await.unwrap();
    let marks = ahead(&["a", "b"]);
    let again = transact(&*store, &lease, &marks, write_all);
    let committed = async {
        waits_for_a_lock(bed).await;
        sqlx::raw_sql("commit").execute(&mut before).await.unwrap();
    };
    let (told, ()) = futures_util::future::join(again, committed).await;
    assert_eq!(told.unwrap(), [true, false]);
    assert_eq!(stored(bed).await, (1, 2));
    store.close().await;
}

pub(super) async fn a_connection_that_is_lost_half_way_leaves_nothing_and_the_next_call_goes_well(
    bed: &Bed,
) {
    let (store, lease) = ready(bed).await;
    let marks = ahead(&["a"]);
    let url = bed.direct_url().to_owned();
    let cut = transact(&*store, &lease, &marks, |conn, finished| {
        let url = url.clone();
        Box::pin(async move {
            write_all(&mut *conn, finished.clone()).await?;
            let mut other = PgConnection::connect(&url).await?;
            let cut = "select pg_terminate_backend(pid) from pg_stat_activity \
                       where datname = current_database() and state = 'idle in transaction'";
            sqlx::raw_sql(cut).execute(&mut other).await?;
            write_all(conn, finished).await
        })
    });
    assert!(cut.await.is_err());
    assert_eq!(stored(bed).await, (0, 0));
    let told = transact(&*store, &lease, &marks, write_all).await;
    assert_eq!(told.unwrap(), [false]);
    assert_eq!(stored(bed).await, (1, 1));
    store.close().await;
}

pub(super) async fn a_transaction_that_takes_too_long_is_given_up(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let mut endless = task(|conn, finished| {
        Box::pin(async move {
            write_all(conn, finished).await?;
            std::future::pending().await
        })
    });
    let marks = ahead(&["a"]);
    let hand_over = HandOver {
        lease: &lease,
        handler: "rows",
        marks: &marks,
    };
    let limit = Duration::from_millis(300);
    let error = store.transact(hand_over, limit, &mut endless).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("longer than 300ms"), "{error}");
    // Nothing of it is left in the way.
    take_again(&*store, &lease).await.unwrap();
    assert_eq!(stored(bed).await, (0, 0));
    store.close().await;
}

pub(super) async fn a_commit_whose_answer_does_not_come_is_no_failure_of_the_work(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    // What a row says is done as part of the commit.
    bed.execute(
        "create function public.at_commit() returns trigger language plpgsql as $f$ begin \
         if new.n = 0 then perform pg_sleep(2); \
         elsif new.n = 1 then perform pg_terminate_backend(pg_backend_pid()); \
         else raise unique_violation; end if; return null; end $f$; \
         create constraint trigger t after insert on public.row deferrable initially deferred \
         for each row execute function public.at_commit()",
    )
    .await;
    let run = async |number: i64, limit: u64| {
        let mut work = task(move |conn, finished| {
            Box::pin(async move {
                let insert = sqlx::query("insert into public.row select $1 where not $2");
                let insert = insert.persistent(false).bind(number).bind(finished[0]);
                insert.execute(conn).await?;
                Ok(vec![true])
            })
        });
        let marks = ahead(&[["a", "b", "c"][usize::try_from(number).unwrap()]]);
        let hand_over = HandOver {
            lease: &lease,
            handler: "rows",
            marks: &marks,
        };
        let limit = Duration::from_millis(limit);
        let done = store.transact(hand_over, limit, &mut work).await;
        done.map(|()| work.told)
    };
    for (number, limit) in [(0, 700), (1, 20_000)] {
        let error = run(number, limit).await.unwrap_err();
        assert!(matches!(error, TransactionError::Unheard(_)), "{error:?}");
    }
    let refused = run(2, 20_000).await.unwrap_err();
    assert!(matches!(refused, TransactionError::Work(_)), "{refused:?}");
    assert!(stored(bed).await.0 <= 1);
    // Only another attempt tells what became of it.
    let told = run(0, 20_000).await.unwrap();
    assert_eq!(stored(bed).await, (1, 1), "{told:?}");
    store.close().await;
}

pub(super) async fn an_event_of_a_side_replay_is_done_as_often_as_it_is_given(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    for count in 1..=2 {
        let told = transact(&*store, &lease, &[Mark::Nothing], write_all).await;
        assert_eq!(told.unwrap(), [false]);
        assert_eq!(stored(bed).await, (count, 0));
    }
    store.close().await;
}

pub(super) async fn a_trial_sees_the_database_and_leaves_nothing(bed: &Bed) {
    let (store, _) = ready(bed).await;
    let mut task = task(|conn, _| {
        Box::pin(async move {
            write_all(conn, vec![false]).await?;
            Ok(vec![true])
        })
    });
    store.try_out(LIMIT, &mut task).await.unwrap();
    assert!(task.told.is_empty());
    assert_eq!(stored(bed).await, (0, 0));
    store.close().await;
}

pub(super) async fn work_without_marks_is_committed_where_it_has_done_anything(bed: &Bed) {
    let (store, _) = ready(bed).await;
    for (done, rows) in [(false, 0), (true, 1)] {
        let mut task = task(move |conn, _| {
            Box::pin(async move {
                write_all(conn, vec![false]).await?;
                Ok(vec![done])
            })
        });
        store.transact_unmarked(LIMIT, &mut task).await.unwrap();
        assert_eq!(stored(bed).await, (rows, 0));
    }
    store.close().await;
}

pub(super) async fn a_position_written_late_takes_no_mark_that_it_has_not_passed(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    transact(&*store, &lease, &ahead(&["a", "b", "c"]), write_all)
        .await
        .unwrap();
    // Made up before these marks were made: it knows of none of them.
    let late = Progress {
        position: Some(replay("0a")),
        finished_ahead: vec![FinishedAhead {
            handler: "other".to_owned(),
            identity: EventIdentity::from_stored("b"),
        }],
        passed: Some(Vec::new()),
        ..Progress::default()
    };
    store.save_progress(&lease, &late).await.unwrap();
    assert_eq!(stored(bed).await.1, 4);
    let passed = Progress {
        position: Some(replay("0b")),
        passed: Some(vec![
            EventIdentity::from_stored("b"),
            EventIdentity::from_stored("never seen"),
        ]),
        ..Progress::default()
    };
    store.save_progress(&lease, &passed).await.unwrap();
    assert_eq!(stored(bed).await.1, 2, "b is gone for both handlers");
    store
        .save_progress(&lease, &Progress::default())
        .await
        .unwrap();
    assert_eq!(stored(bed).await.1, 0, "the whole set replaces them");
    store.close().await;
}

pub(super) async fn positions_are_written_while_all_handlers_are_in_their_transactions(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let (go, _) = tokio::sync::broadcast::channel::<()>(1);
    let marks: Vec<Vec<Mark>> = ["a", "b", "c", "d", "e"].map(|name| ahead(&[name])).into();
    // One more than there are connections for them.
    let calls = marks.iter().map(|marks| {
        let mut gone = go.subscribe();
        let mut waits = Some(async move { gone.recv().await });
        transact(&*store, &lease, marks, move |conn, finished| {
            let waits = waits.take();
            Box::pin(async move {
                write_all(conn, finished).await?;
                if let Some(waits) = waits {
                    let _ = waits.await;
                }
                Ok(vec![true])
            })
        })
    });
    let written = async {
        let open = "select count(*) from pg_stat_activity where datname = current_database() \
                    and state = 'idle in transaction'";
        let expected = if bed.is_pooled() { 1 } else { 4 };
        let began = Instant::now();
        while bed.column::<i64>(open).await[0] < expected {
            assert!(began.elapsed() < LIMIT, "too few open transactions");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if !bed.is_pooled() {
            // A pooler has its own limits.
            let began = now();
            let progress = Progress {
                position: Some(replay("0a")),
                passed: Some(Vec::new()),
                ..Progress::default()
            };
            store.save_progress(&lease, &progress).await.unwrap();
            assert!(now().duration_since(began).unwrap() < Duration::from_secs(5));
        }
        go.send(()).unwrap();
    };
    let calls = futures_util::future::join_all(calls);
    let (done, ()) = futures_util::future::join(calls, written).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    assert_eq!(stored(bed).await, (5, 5));
    store.close().await;
}
