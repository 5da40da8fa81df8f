//! The `postgres` handler: each event is one row, exactly once, whatever is killed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::support::{
    Daemon, Emulator, LOG, Store, account_update, configured, eventually, record, within,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// What the handler says of a row that was there already. With marks in the same transaction that never is.
const SKIPPED: &str = "not appended";

/// A database to look at, and how the daemon reaches it.
struct Place {
    direct: String,
    store: Store,
}

impl Place {
    async fn postgres() -> Option<Self> {
        let store = Store::postgres().await?;
        let direct = store.url.clone();
        Some(Self { direct, store })
    }

    /// With a pooler in transaction mode between.
    async fn pgbouncer() -> Option<Self> {
        let mut place = Self::postgres().await?;
        let Ok(pooler) = std::env::var("ORGSTREAM_TEST_PGBOUNCER") else {
            println!("skipped: no PgBouncer");
            return None;
        };
        let (base, _) = pooler.rsplit_once('/').unwrap();
        let (_, name) = place.direct.rsplit_once('/').unwrap();
        place.store.url = format!("{base}/{name}");
        Some(place)
    }

    /// A configuration with an `append` handler of these further lines, and short waits.
    fn config(&self, org: &Emulator, more: &str) -> String {
        let append = format!(
            "[[subscription.handler]]\nname = \"rows\"\ntype = \"postgres\"\nmode = \"append\"\n\
             retry = {{ attempts = 50, initial = \"20ms\", max = \"200ms\" }}\n{more}\n"
        );
        let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
        configured(org, &self.store, "", subscription, &append)
            .replace("[[subscription]]", "lease = \"2s\"\n[[subscription]]")
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.direct).await.unwrap()
    }

    async fn execute(&self, sql: &str) {
        let mut conn = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut conn)
            .await
            .unwrap();
    }

    /// Subject and field `Name` of each row, in the order of their numbers; none while there is no table.
    async fn rows(&self, table: &str) -> Vec<(String, String)> {
        let mut conn = self.connect().await;
        let rows = format!("select subject, data ->> 'Name' from {table} order by number");
        sqlx::query_as(AssertSqlSafe(rows))
            .fetch_all(&mut conn)
            .await
            .unwrap_or_default()
    }

    async fn until_rows(&self, count: usize) -> Vec<(String, String)> {
        within(
            Duration::from_secs(180),
            &format!("{count} rows"),
            async || {
                let rows = self.rows("orgstream_events").await;
                (rows.len() >= count).then_some(rows)
            },
        )
        .await
    }
}

async fn publish(org: &Emulator, numbers: std::ops::Range<usize>, records: usize) {
    let event = |n: usize| account_update(&record(n % records), &n.to_string());
    let events: Vec<Value> = numbers.map(event).collect();
    org.publish(ACCOUNTS, &events).await;
}

/// Every number once, and those of one record in order.
fn assert_once_and_in_order(rows: &[(String, String)], count: usize) {
    let names: HashSet<&str> = rows.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!((names.len(), rows.len()), (count, count));
    let mut newest: HashMap<&str, usize> = HashMap::new();
    for (record, name) in rows {
        let number: usize = name.parse().unwrap();
        let before = newest.insert(record, number);
        assert!(
            before.is_none_or(|before| before < number),
            "{record}: {number} came after {before:?}"
        );
    }
}

/// Ends a session of this database now and then: one of those that are in a transaction, where there are any. Rests in
/// between, or on a busy machine no transaction would ever come to its end.
fn cut_sessions(direct: String, seed: u64) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut conn = PgConnection::connect(&direct).await.unwrap();
        let mut cut = 0;
        while !stopped.load(Ordering::Relaxed) {
            let pause = if cut % 8 == 7 { 1_500..2_500 } else { 20..300 };
            tokio::time::sleep(Duration::from_millis(random.u64(pause))).await;
            let ended: Vec<bool> = sqlx::query_scalar(
                "select pg_terminate_backend(pid) from (select pid from pg_stat_activity \
                 where datname = current_database() and pid <> pg_backend_pid() \
                 and backend_type = 'client backend' \
                 order by xact_start is null, random() limit 1) as one",
            )
            .fetch_all(&mut conn)
            .await
            .unwrap();
            cut += ended.len();
        }
        cut
    });
    (stop, task)
}

/// Five kills and many cut connections under load; beside the `append` handler one that is called by itself.
async fn killed_and_cut(place: Place) {
    const EVENTS: usize = 5_000;
    let seed = std::env::var("ORGSTREAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("ORGSTREAM_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let org = Arc::new(Emulator::start().await);
    let config = place.config(&org, LOG);
    let load = tokio::spawn({
        let org = org.clone();
        async move {
            for first in (0..EVENTS).step_by(50) {
                publish(&org, first..first + 50, 40).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let (stop_cutting, cutting) = cut_sessions(place.direct.clone(), random.u64(..));
    let mut logged: HashSet<String> = HashSet::new();
    let mut seen = |daemon: &Daemon| {
        let skipped = daemon.log().into_iter().find(|line| line.contains(SKIPPED));
        assert_eq!(skipped, None);
        let name = |event: &Value| event["data"]["Name"].as_str().unwrap().to_owned();
        logged.extend(daemon.events().iter().map(name));
    };
    for _ in 0..5 {
        let before = place.rows("orgstream_events").await.len();
        let mut daemon = Daemon::run(&config);
        // It has work to do, and is in the middle of it.
        eventually("more rows", async || {
            let rows = place.rows("orgstream_events").await.len();
            (rows > before || rows == EVENTS).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
        daemon.signal("KILL");
        daemon.ended().await;
        seen(&daemon);
    }
    load.await.unwrap();
    let daemon = Daemon::run(&config);
    let rows = place.until_rows(EVENTS).await;
    stop_cutting.store(true, Ordering::Relaxed);
    let cut = cutting.await.unwrap();
    assert_once_and_in_order(&rows, EVENTS);
    eventually("no marks left above the position", async || {
        let mut conn = place.connect().await;
        let marks: i64 = sqlx::query_scalar("select count(*) from orgstream.finished_ahead")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        (marks == 0).then_some(())
    })
    .await;
    seen(&daemon);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(logged.len(), EVENTS, "the handler beside it missed some");
    assert!(place.store.parked().await.is_empty());
    assert_eq!(place.rows("orgstream_events").await.len(), EVENTS);
    println!("{EVENTS} events, 5 kills, {cut} connections cut: each row once");
}

#[tokio::test]
async fn killed_and_cut_off_from_the_database_every_event_is_appended_exactly_once_in_order() {
    if let Some(place) = Place::postgres().await {
        killed_and_cut(place).await;
    }
}

#[tokio::test]
async fn killed_and_cut_off_behind_a_pooler_every_event_is_appended_exactly_once_in_order() {
    if let Some(place) = Place::pgbouncer().await {
        killed_and_cut(place).await;
    }
}

#[tokio::test]
async fn a_worker_frozen_within_a_transaction_is_taken_over_and_commits_nothing_when_it_wakes() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = place.config(&org, "");
    let first = Daemon::run(&config);
    publish(&org, 0..20, 5).await;
    place.until_rows(20).await;
    // Its next transaction gets as far as the table.
    let mut lock = place.connect().await;
    sqlx::raw_sql("begin; lock table orgstream_events in access exclusive mode")
        .execute(&mut lock)
        .await
        .unwrap();
    publish(&org, 20..100, 5).await;
    eventually("a transaction that waits for the table", async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
             where d.datname = current_database() and not granted",
        )
        .fetch_one(&mut lock)
        .await
        .unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    first.signal("STOP");
    sqlx::raw_sql("rollback").execute(&mut lock).await.unwrap();
    // The server has carried its rows out by now, but nobody says commit.
    let second = Daemon::run(&config);
    second.logged(&["subscription taken over"]).await;
    let rows = place.until_rows(100).await;
    assert_once_and_in_order(&rows, 100);
    first.signal("CONT");
    publish(&org, 100..200, 5).await;
    let rows = place.until_rows(200).await;
    assert_once_and_in_order(&rows, 200);
    for daemon in [first, second] {
        let log = daemon.log().join("\n");
        assert!(!log.contains(SKIPPED), "{log}");
        assert_eq!(daemon.stop().await.1, 0);
    }
    assert_once_and_in_order(&place.rows("orgstream_events").await, 200);
}

#[tokio::test]
async fn a_row_holds_what_the_cloud_event_holds() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    place.execute("create schema audit").await;
    let table = "table = \"audit.Events\"";
    let mut daemon = Daemon::run(&place.config(&org, &format!("{table}\n{LOG}")));
    let mut event = account_update(&record(1), "Ünïcode \"quoted\" \\u0041");
    event["LastModifiedDate"] = 9_007_199_254_740_993_i64.into();
    org.publish(ACCOUNTS, &[event]).await;
    let logged = daemon.handled(1).await.remove(0);
    let row = eventually("the row", async || {
        let mut conn = place.connect().await;
        sqlx::query_scalar::<_, String>(
            "select json_build_object('id', id, 'subscription', subscription, 'topic', topic, \
                 'type', type, 'subject', subject, 'time', to_json(time at time zone 'UTC') #>> '{}' || 'Z', \
                 'replayid', replay_id, 'source', source, 'dataschema', 'urn:salesforce:avro:' || schema_id, \
                 'eventuuid', event_uuid, 'epoch', epoch, 'replayed', replayed, 'data', data)::text \
             from audit.\"Events\" where received_at <= appended_at + interval '1 second'",
        )
        .fetch_optional(&mut conn)
        .await
        .unwrap_or_default()
    })
    .await;
    assert!(row.contains("9007199254740993"), "{row}");
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["subscription"], "accounts");
    assert_eq!(row["replayed"], false);
    let mut compared = 0;
    for (key, value) in row.as_object().unwrap() {
        if !matches!(key.as_str(), "subscription" | "replayed") {
            assert_eq!(*value, logged[key], "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, 11);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn an_event_that_postgres_cannot_keep_is_parked_and_all_others_are_appended() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = place.config(&org, "");
    let events: Vec<Value> = (0..100)
        .map(|n| match n {
            33 => account_update(&record(33), "a\0b"),
            _ => account_update(&record(n), &n.to_string()),
        })
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let daemon = Daemon::run(&config);
    let parked = place.store.parks(1).await;
    let rows = place.until_rows(99).await;
    assert_eq!(rows.len(), 99);
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].letter.reason, "rejected");
    assert!(
        parked[0].letter.error.contains("U+0000"),
        "{}",
        parked[0].letter.error
    );
    assert!(!parked[0].letter.payload.is_empty());
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_table_that_is_not_ours_is_named_with_a_cure_and_the_events_wait() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    place.execute("create table orgstream_events (n int)").await;
    publish(&org, 0..10, 5).await;
    let daemon = Daemon::run(&place.config(&org, ""));
    daemon
        .logged(&[
            "fails for all",
            "handler=rows",
            "is not one that orgstream made",
        ])
        .await;
    let status = place
        .store
        .until("accounts", "blocked", |status| status.state == "blocked")
        .await;
    let detail = status.detail.unwrap();
    assert!(detail.contains("handler `rows`"), "{detail}");
    assert!(detail.contains("another name"), "{detail}");
    place.execute("drop table orgstream_events").await;
    let rows = place.until_rows(10).await;
    assert_once_and_in_order(&rows, 10);
    place
        .execute(
            "alter table orgstream_events add n int not null default 1; \
             alter table orgstream_events alter n drop default",
        )
        .await;
    // A rule that refuses every row is no event's fault either.
    publish(&org, 10..20, 5).await;
    daemon
        .logged(&["fails for all", "a rule of its own", "23502"])
        .await;
    place.execute("alter table orgstream_events drop n").await;
    let rows = place.until_rows(20).await;
    assert_once_and_in_order(&rows, 20);
    assert!(place.store.parked().await.is_empty());
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn check_tries_the_table_out_and_leaves_nothing() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let check = async |more: &str| {
        let config = place.config(&org, more);
        Daemon::output(&["check"], &config, &BTreeMap::new()).await
    };
    let (_, out, err) = check("").await;
    assert!(out.contains("handler rows of accounts"), "{out}{err}");
    assert!(out.contains("ready, of type postgres"), "{out}{err}");
    let mut conn = place.connect().await;
    let made: bool =
        sqlx::query_scalar("select to_regclass('public.orgstream_events') is not null")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert!(!made);
    let (code, out, _) = check("table = \"nowhere.events\"").await;
    assert_eq!(code, 1);
    assert!(out.contains("3F000"), "{out}");
    // One who may read only.
    place
        .execute("create table orgstream_events (n int); revoke all on schema public from public")
        .await;
    let (code, out, _) = check("").await;
    assert_eq!(code, 1);
    assert!(out.contains("not one that orgstream made"), "{out}");
}

#[tokio::test]
async fn with_sqlite_the_handler_is_refused_before_anything_runs() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let direct = store.url.clone();
    let config = Place { direct, store }.config(&org, "");
    for command in ["run", "check"] {
        let (code, out, err) = Daemon::output(&[command], &config, &BTreeMap::new()).await;
        assert_eq!(code, 78, "{out}{err}");
        let said = format!("{out}{err}");
        assert!(said.contains("has to be Postgres"), "{said}");
        assert!(said.contains("DATABASE_URL"), "{said}");
        assert!(said.contains("`database_url` of the handler"), "{said}");
    }
}
