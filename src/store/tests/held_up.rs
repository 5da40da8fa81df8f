//! Who is held up by what another session does, and for how long: Postgres, and behind a pooler.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::oneshot;

use super::bed::{BRIEF, Bed, replay, take};
use crate::event::EventIdentity;
use crate::store::migrations::POSTGRES;
use crate::store::{HandOver, Lease, Mark, Progress, Sample, StateReport, Store, Work, Worker};

const LIMIT: Duration = Duration::from_secs(60);

/// Work that takes long, in one statement.
struct Sleeps(Option<oneshot::Sender<()>>);

#[async_trait]
impl Work for Sleeps {
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        if let Some(begun) = self.0.take() {
            let _ = begun.send(());
        }
        sqlx::raw_sql("select pg_sleep(60)")
            .execute(connection)
            .await?;
        Ok(vec![true; finished.len()])
    }
}

async fn statements(bed: &Bed, like: &str) -> i64 {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = current_database() \
         and state = 'active' and pid <> pg_backend_pid() and query like '{like}'"
    );
    bed.column(&sql).await[0]
}

async fn until(bed: &Bed, like: &str, count: i64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while statements(bed, like).await != count {
        assert!(Instant::now() < deadline, "{like}: not {count} in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a process leaves behind that is killed: a closed socket, and a statement that goes on.
async fn a_killed_workers_statement_holds_nobody_up(bed: Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let (begun, has_begun) = oneshot::channel();
    let working = {
        let (store, lease) = (bed.open().await, lease.clone());
        tokio::spawn(async move {
            let marks = [Mark::Ahead(EventIdentity::from_stored("a"))];
            let hand_over = HandOver {
                lease: &lease,
                handler: "rows",
                marks: &marks,
            };
            let _ = store
                .transact(hand_over, LIMIT, &mut Sleeps(Some(begun)))
                .await;
        })
    };
    has_begun.await.unwrap();
    until(&bed, "%pg_sleep(60)%", 1).await;
    working.abort();
    let killed = Instant::now();
    let configured = [lease.key.name.clone()];
    let taken = store.take_over(&lease.key, "next", BRIEF, &configured, false);
    taken.await.unwrap();
    // Two seconds until the server looks; by itself the statement would end after four fifths of a lease.
    assert!(killed.elapsed() < Duration::from_secs(8));
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_killed_workers_running_statement_keeps_nobody_out() {
    if let Some(bed) = Bed::postgres().await {
        a_killed_workers_statement_holds_nobody_up(bed).await;
    }
}

#[tokio::test]
async fn a_killed_workers_running_statement_keeps_nobody_out_behind_pgbouncer() {
    if let Some(bed) = Bed::pgbouncer().await {
        a_killed_workers_statement_holds_nobody_up(bed).await;
    }
}

/// The tables as an earlier release left them, which knew so many migrations.
async fn release_with(bed: &Bed, migrations: usize) {
    bed.execute(
        "create schema orgstream; create table orgstream.migration (version bigint primary key, \
             name text not null, checksum text not null, applied_at timestamptz not null default now())",
    )
    .await;
    for migration in &POSTGRES[..migrations] {
        bed.execute(migration.sql).await;
        let (version, name) = (migration.version, migration.name);
        bed.execute(&format!(
            "insert into orgstream.migration (version, name, checksum) \
             values ({version}, '{name}', '{}')",
            migration.checksum()
        ))
        .await;
    }
}

/// What a worker of the release before goes on doing, which knows nothing of later tables.
async fn works(bed: &Bed, store: &dyn Store, lease: &Lease) {
    let worker = Worker {
        holder: lease.holder.clone(),
        name: "worker.1".to_owned(),
        version: "0".to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    };
    let keys = [lease.key.clone()];
    let beat = store.heartbeat(&worker, LIMIT, &keys, false).await;
    assert_eq!(beat.unwrap().held, ["accounts"]);
    let progress = Progress {
        position: Some(replay("0a")),
        received: 1,
        ..Progress::default()
    };
    store.save_progress(lease, &progress).await.unwrap();
    // By hand: what parks here knows columns that the release before does not.
    bed.execute(
        "insert into orgstream.dead_letter (org_id, subscription, topic, handler, identity, reason, error, \
             attempts, event_uuid, schema_id, payload, record_ids, received_at, ahead) \
         select org_id, name, topic, 'hook', 'a', 'rejected', '', 1, 'a', 's', '', '{001A}', now(), true \
         from orgstream.subscription on conflict do nothing",
    )
    .await;
    store.survey(&lease.key.org_id, LIMIT).await.unwrap();
}

#[tokio::test]
async fn workers_of_a_new_release_change_the_tables_under_one_of_the_release_before() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    release_with(&bed, 3).await;
    let before = bed.open().await;
    let lease = take(&*before).await;
    works(&bed, &*before, &lease).await;
    let (one, two) = (bed.open().await, bed.open().await);
    let (one, two, ()) = tokio::join!(one.migrate(), two.migrate(), works(&bed, &*before, &lease));
    let mut applied = one.unwrap();
    applied.extend(two.unwrap());
    applied.sort_unstable();
    assert_eq!(applied, [4, 5]);
    works(&bed, &*before, &lease).await;
    // Its state is of before there was a log of them; the next one is the first in it.
    let next = bed.open().await;
    assert_eq!(
        next.state_changes(&lease.key.org_id, None, 9)
            .await
            .unwrap(),
        []
    );
    next.report_state(&lease, &StateReport::default())
        .await
        .unwrap();
    assert_eq!(
        next.state_changes(&lease.key.org_id, None, 9)
            .await
            .unwrap()
            .len(),
        1
    );
    bed.end().await;
}

/// Work that is done at once.
struct Done;

#[async_trait]
impl Work for Done {
    async fn run(
        &mut self,
        _: &mut PgConnection,
        finished: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        Ok(vec![true; finished.len()])
    }
}

#[tokio::test]
async fn marks_that_the_release_before_wrote_are_kept_and_follow_their_subscription() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    release_with(&bed, 4).await;
    let before = bed.open().await;
    let lease = take(&*before).await;
    let finish = async |name: String| {
        let marks = [Mark::Ahead(EventIdentity::from_stored(&name))];
        let hand_over = HandOver {
            lease: &lease,
            handler: "rows",
            marks: &marks,
        };
        before.transact(hand_over, LIMIT, &mut Done).await.unwrap();
    };
    finish("a".to_owned()).await;
    let next = bed.open().await;
    let goes_on = async {
        for number in 0..20 {
            finish(number.to_string()).await;
        }
    };
    let (migrated, ()) = tokio::join!(next.migrate(), goes_on);
    assert_eq!(migrated.unwrap(), [5]);
    finish("z".to_owned()).await;
    // As the release before would rename it, and as a person would delete it.
    let marks = "select count(*) from orgstream.finished_ahead where subscription = 'customers'";
    bed.execute("update orgstream.subscription set name = 'customers'")
        .await;
    assert_eq!(bed.column::<i64>(marks).await, [22]);
    bed.execute("update orgstream.subscription set received = received + 1")
        .await;
    bed.execute("delete from orgstream.subscription").await;
    assert_eq!(bed.column::<i64>(marks).await, [0]);
    before.close().await;
    next.close().await;
    bed.end().await;
}

#[tokio::test]
async fn posts_that_wait_for_a_lock_keep_no_heartbeat_and_no_position_waiting() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    works(&bed, &*store, &lease).await;
    let mut other = PgConnection::connect(&bed.url).await.unwrap();
    let lock = "begin; lock table orgstream.worker_snapshot, orgstream.subscription_sample \
                in access exclusive mode";
    let lock = other.begin_with(lock).await.unwrap();
    let sample = Sample {
        at: SystemTime::now(),
        lag: None,
        received: 1,
        parked: 0,
    };
    let posts = async {
        tokio::join!(
            store.post_snapshot(&lease.holder, "a 1\n"),
            store.post_sample(&lease, &sample)
        )
    };
    let work = async {
        until(&bed, "%orgstream.worker_snapshot%", 1).await;
        until(&bed, "%orgstream.subscription_sample%", 1).await;
        let began = Instant::now();
        works(&bed, &*store, &lease).await;
        began.elapsed()
    };
    let began = Instant::now();
    let ((snapshot, sampled), worked) = tokio::join!(posts, work);
    assert!(worked < Duration::from_secs(3), "{worked:?}");
    // They give up by themselves, long before a call that has to be made would.
    assert!(snapshot.is_err() && sampled.is_err());
    assert!(began.elapsed() < Duration::from_secs(15));
    lock.rollback().await.unwrap();
    store.post_snapshot(&lease.holder, "a 1\n").await.unwrap();
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_change_that_waits_for_a_table_keeps_others_from_it_for_a_moment_only() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    release_with(&bed, 1).await;
    // A report of somebody's that takes a while.
    let mut report = PgConnection::connect(&bed.url).await.unwrap();
    let reads = "begin; lock table orgstream.subscription in access share mode";
    let report = report.begin_with(reads).await.unwrap();
    let store = bed.open().await;
    let migrating = tokio::spawn(async move { store.migrate().await });
    until(&bed, "%alter table orgstream.subscription%", 1).await;
    // What the workers of the previous release do meanwhile.
    let mut worker = PgConnection::connect(&bed.url).await.unwrap();
    let reading = "select count(*) from orgstream.subscription";
    let since = Instant::now();
    let mut longest = Duration::ZERO;
    while since.elapsed() < Duration::from_secs(7) {
        let asked = Instant::now();
        let read = sqlx::raw_sql(AssertSqlSafe(reading)).execute(&mut worker);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("a worker that waits behind the change")
            .unwrap();
        longest = longest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert!(!migrating.is_finished());
    report.rollback().await.unwrap();
    assert_eq!(migrating.await.unwrap().unwrap(), [2, 3, 4, 5]);
    bed.end().await;
}
