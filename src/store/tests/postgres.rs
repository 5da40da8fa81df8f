//! What only Postgres has to show.

use std::time::{Duration, Instant};

use sqlx::Connection;

use super::bed::{BRIEF, Bed, KEY, Park, key, letter, replay, take};
use crate::config::StoreConfig;
use crate::store::{Progress, StoreError, Worker, open};

fn config(url: &str) -> StoreConfig {
    StoreConfig {
        timeout: Duration::from_secs(20),
        encryption_key: Some(KEY.into()),
        ..StoreConfig::new(url)
    }
}

#[tokio::test]
async fn a_database_that_is_down_is_told_at_once_and_without_its_password() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("postgres://u:hunter2@{address}/d");
    let store = open(&config(&url)).await.unwrap();
    let begun = Instant::now();
    let error = store.ping().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_database_that_hangs_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let impatient = StoreConfig {
        timeout: Duration::from_millis(300),
        ..config(&format!("postgres://u:hunter2@{address}/d?sslmode=disable"))
    };
    let store = open(&impatient).await.unwrap();
    let begun = Instant::now();
    // More calls than connections: none waits for ever.
    let calls = (0..8).map(|_| store.ping());
    for answer in futures_util::future::join_all(calls).await {
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("longer than 300ms"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn connections_that_calls_hang_on_are_counted_by_what_they_are_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let few = StoreConfig {
        max_connections: 2,
        ..config(&format!(
            "postgres://u@{}/d",
            listener.local_addr().unwrap()
        ))
    };
    let store = open(&few).await.unwrap();
    let pools = || {
        let pools = store.connections().into_iter();
        let pools = pools.map(|pool| (pool.pool, pool.in_use, pool.max));
        pools.collect::<Vec<_>>()
    };
    // No handler has a transaction here.
    assert_eq!(pools(), [("calls", 0, 1), ("lease", 0, 1)]);
    let hangs = tokio::spawn({
        let store = store.clone();
        async move { store.ping().await }
    });
    let begun = Instant::now();
    while pools() != [("calls", 1, 1), ("lease", 0, 1)] {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", pools());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hangs.abort();
}

#[tokio::test]
async fn a_database_without_tls_is_refused_with_a_cure_unless_the_url_allows_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        // Eight bytes ask for TLS, one says no; whoever went on would send the user's name now.
        let mut request = [0; 8];
        socket.read_exact(&mut request).await.unwrap();
        socket.write_all(b"N").await.unwrap();
        socket.read(&mut request).await.unwrap_or(0)
    });
    let url = format!("postgres://u:hunter2@{address}/d?sslmode=require");
    let error = open(&config(&url)).await.unwrap().ping().await.unwrap_err();
    assert!(error.to_string().contains("sslmode=disable"), "{error}");
    assert_eq!(server.await.unwrap(), 0);
}

#[tokio::test]
async fn a_refused_login_says_so_without_the_password() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let (scheme, rest) = bed.url.split_once("://").unwrap();
    let (_, place) = rest.rsplit_once('@').unwrap();
    let config = config(&format!("{scheme}://postgres:hunter2@{place}"));
    let error = open(&config).await.unwrap().ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains("28P01"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    bed.end().await;
}

#[tokio::test]
async fn a_certificate_that_nobody_signed_still_encrypts() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let ssl: Vec<i64> = bed
        .column("select count(*) from pg_settings where name = 'ssl' and setting = 'on'")
        .await;
    if ssl == [0] {
        println!("skipped: the server offers no TLS");
    } else {
        let config = config(&format!("{}?sslmode=require", bed.url));
        let store = open(&config).await.unwrap();
        store.migrate().await.unwrap();
        // The store's connection rests, and the server tells how it is spoken to.
        let encrypted: Vec<i64> = bed
            .column(
                "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                 where ssl and datname = current_database() and application_name = 'orgstream'",
            )
            .await;
        assert_eq!(encrypted, [1]);
        store.close().await;
    }
    bed.end().await;
}

#[tokio::test]
async fn a_row_that_stays_locked_costs_one_call_and_leaves_nothing_behind() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut other = sqlx::PgConnection::connect(&bed.url).await.unwrap();
    let lock = other
        .begin_with("begin; lock table orgstream.subscription in access exclusive mode")
        .await
        .unwrap();
    let impatient = StoreConfig {
        timeout: Duration::from_millis(600),
        ..bed.config()
    };
    let impatient = open(&impatient).await.unwrap();
    let progress = Progress {
        position: Some(replay("0a")),
        ..Progress::default()
    };
    let error = impatient.save_progress(&lease, &progress).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("55P03"), "{error}");
    lock.rollback().await.unwrap();
    impatient.save_progress(&lease, &progress).await.unwrap();
    let waiting: Vec<i64> = bed
        .column(
            "select count(*) from pg_stat_activity where datname = current_database() \
             and application_name = 'orgstream' and state <> 'idle'",
        )
        .await;
    assert_eq!(waiting, [0]);
    store.close().await;
    impatient.close().await;
    bed.end().await;
}

#[tokio::test]
async fn connections_that_the_server_ended_are_replaced_unnoticed() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    bed.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where datname = current_database() and application_name = 'orgstream'",
    )
    .await;
    store
        .park(&lease, &letter("001A", Some("fulfilment")))
        .await
        .unwrap();
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_call_that_was_given_up_half_way_leaves_no_lock_and_no_open_transaction() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut other = sqlx::PgConnection::connect(&bed.url).await.unwrap();
    let lock = other
        .begin_with("begin; lock table orgstream.finished_ahead in access exclusive mode")
        .await
        .unwrap();
    let progress = Progress::default();
    // It holds the subscription's row by now, and waits for the other table.
    let call = store.save_progress(&lease, &progress);
    let given_up = tokio::time::timeout(Duration::from_millis(500), call).await;
    assert!(given_up.is_err());
    lock.rollback().await.unwrap();
    let begun = Instant::now();
    store.save_progress(&lease, &progress).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_database_made_read_only_is_unavailable_and_comes_back() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let name = bed.url.rsplit('/').next().unwrap();
    bed.execute(&format!(
        "alter database {name} set default_transaction_read_only = on"
    ))
    .await;
    let standby = bed.open().await;
    let progress = Progress::default();
    let error = standby.save_progress(&lease, &progress).await.unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    bed.execute(&format!(
        "begin read write; \
         alter database {name} reset default_transaction_read_only; commit"
    ))
    .await;
    // The refused connection was closed: the next one is another server's, after a failover.
    standby.save_progress(&lease, &progress).await.unwrap();
    standby.close().await;
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_handlers_long_transaction_blocks_no_write_of_the_owner_and_every_change_of_hands() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut handler = sqlx::PgConnection::connect(&bed.url).await.unwrap();
    // What `hold` does, in a transaction that goes on for long.
    let fence = handler
        .begin_with("begin; select epoch from orgstream.subscription for key share")
        .await
        .unwrap();
    let impatient = StoreConfig {
        timeout: Duration::from_millis(600),
        ..bed.config()
    };
    let impatient = open(&impatient).await.unwrap();
    let progress = Progress::default();
    impatient.save_progress(&lease, &progress).await.unwrap();
    impatient.mark_begun(&lease).await.unwrap();
    let worker = Worker {
        holder: lease.holder.clone(),
        name: "w".to_owned(),
        version: "0".to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    };
    let long = Duration::from_secs(60);
    let keys = [lease.key.clone()];
    let beat = impatient.heartbeat(&worker, long, &keys, false).await;
    assert_eq!(beat.unwrap().renewed, ["accounts"]);
    let configured = ["accounts".to_owned()];
    let take = || impatient.take_over(&lease.key, &lease.holder, long, &configured, false);
    let refused = take().await.unwrap_err();
    assert!(refused.to_string().contains("55P03"), "{refused}");
    fence.commit().await.unwrap();
    assert_eq!(take().await.unwrap().lease.epoch, lease.epoch + 1);
    store.close().await;
    impatient.close().await;
    bed.end().await;
}

#[tokio::test]
async fn a_locked_row_keeps_no_other_lease_from_being_renewed() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let accounts = take(&*store).await;
    let contacts = key("contacts", "Contact");
    let both = ["accounts".to_owned(), "contacts".to_owned()];
    let taken = store.take_over(&contacts, &accounts.holder, BRIEF, &both, false);
    taken.await.unwrap();
    let mut other = sqlx::PgConnection::connect(&bed.url).await.unwrap();
    let lock = other
        .begin_with(
            "begin; select 1 from orgstream.subscription where name = 'accounts' for update",
        )
        .await
        .unwrap();
    let worker = Worker {
        holder: accounts.holder.clone(),
        name: "w".to_owned(),
        version: "0".to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    };
    let keys = [accounts.key.clone(), contacts];
    let long = Duration::from_secs(60);
    let beat = store.heartbeat(&worker, long, &keys, false).await.unwrap();
    assert_eq!(beat.renewed, ["contacts"]);
    assert_eq!(beat.held.len(), 2, "locked is not lost");
    lock.rollback().await.unwrap();
    store.close().await;
    bed.end().await;
}

#[tokio::test]
async fn heartbeats_do_not_wait_for_connections_that_other_calls_keep_busy() {
    let Some(bed) = Bed::postgres().await else {
        return;
    };
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut other = sqlx::PgConnection::connect(&bed.url).await.unwrap();
    let lock = other
        .begin_with("begin; lock table orgstream.finished_ahead in access exclusive mode")
        .await
        .unwrap();
    let progress = Progress::default();
    let busy = (0..8).map(|_| store.save_progress(&lease, &progress));
    let busy = futures_util::future::join_all(busy);
    let worker = Worker {
        holder: lease.holder.clone(),
        name: "w".to_owned(),
        version: "0".to_owned(),
        subscriptions: Vec::new(),
        refused: Vec::new(),
    };
    let beats = async {
        let ttl = Duration::from_secs(20);
        for _ in 0..5 {
            store.heartbeat(&worker, ttl, &[], false).await.unwrap();
            store.survey(&lease.key.org_id, ttl).await.unwrap();
        }
        lock.rollback().await.unwrap();
    };
    let began = Instant::now();
    tokio::join!(busy, beats);
    assert!(began.elapsed() < Duration::from_secs(10));
    store.close().await;
    bed.end().await;
}
