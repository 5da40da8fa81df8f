//! Another database than the store's, and whatever may be wrong with it.

use super::super::trouble::Bench;
use super::{APPENDED, Db, FUNCTIONS, HEARD};
use crate::support::cluster::Cluster;
use crate::support::disk::Disk;
use crate::support::server::free_port;
use crate::support::{Store, eventually};

/// Ends every session but the one that says so.
const END_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity \
                            where pid <> pg_backend_pid() and backend_type = 'client backend'";

fn append(url: &str) -> String {
    format!("type = \"postgres\"\nmode = \"append\"\ntimeout = \"3s\"\ndatabase_url = \"{url}\"")
}

fn call(url: &str) -> String {
    format!(
        "type = \"postgres\"\nmode = \"call\"\nfunction = \"on_event\"\ntimeout = \"3s\"\ndatabase_url = \"{url}\""
    )
}

/// A server of its own with a user `app`, who is no superuser: no limit holds for those.
async fn server() -> Option<Cluster> {
    let cluster = Cluster::start().await?;
    let admin = Db::of(&cluster, "postgres");
    admin.execute("create role app login").await;
    Some(cluster)
}

fn url(cluster: &Cluster) -> String {
    Cluster::url(&cluster.addr(), "app", "app")
}

#[tokio::test]
async fn whatever_is_wrong_with_the_database_is_named_and_the_events_wait() {
    let Some(cluster) = server().await else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    let db = Db::of(&cluster, "app");
    cluster.down("fast");
    let mut bench = Bench::start(&append(&url(&cluster))).await;
    bench.publish(6).await;
    bench
        .says_down(&["no connection to 127.0.0.1:", "`database_url`"])
        .await;
    cluster.up();
    bench
        .checks(&["the database that `database_url` names is not there"])
        .await;
    admin.execute("create database app owner app").await;
    db.has(APPENDED, 6).await;
    let mut count = 6;
    let troubles: [(&str, &[&str], &str); 6] = [
        (
            "alter database app set default_transaction_read_only = on",
            &["the database is read-only"],
            "alter database app reset default_transaction_read_only",
        ),
        (
            "alter database app connection limit 0",
            &["no connection left", "53300"],
            "alter database app connection limit -1",
        ),
        (
            "alter role app nologin",
            &["the login is refused", "`database_url`", "28000"],
            "alter role app login",
        ),
        (
            "revoke connect on database app from public, app",
            &["may not connect", "grant connect on database"],
            "grant connect on database app to app",
        ),
        (
            "revoke all on orgstream_events from app",
            &["42501", "database user of database_url"],
            "grant all on orgstream_events to app",
        ),
        // Where no disk can be mounted, this stands for a full one.
        (
            "create function no_room() returns trigger language plpgsql as $$ begin \
             raise exception 'hidden' using errcode = '53100'; end $$; \
             create trigger no_room before insert on orgstream_events for each statement execute function no_room()",
            &["the disk of the database is full", "53100"],
            "drop function no_room cascade",
        ),
    ];
    for (breaks, said, mends) in troubles {
        // Each within the database, as far as it is about tables.
        let place = if breaks.contains("orgstream_events") {
            &db
        } else {
            &admin
        };
        place.execute(breaks).await;
        admin.execute(END_SESSIONS).await;
        bench.publish(7).await;
        bench.says_down(said).await;
        bench.checks(said).await;
        place.execute(mends).await;
        admin.execute(END_SESSIONS).await;
        count += 7;
        db.has(APPENDED, count).await;
    }
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_table_that_stays_locked_and_sessions_that_are_ended_lose_and_repeat_nothing() {
    let Some(cluster) = server().await else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    admin.execute("create database app owner app").await;
    let db = Db::of(&cluster, "app");
    let mut bench = Bench::start(&append(&url(&cluster))).await;
    bench.publish(6).await;
    db.has(APPENDED, 6).await;
    let mut lock = db.connect().await;
    sqlx::raw_sql("begin; lock table orgstream_events in access exclusive mode")
        .execute(&mut lock)
        .await
        .unwrap();
    bench.publish(6).await;
    bench.says_down(&["stayed locked", "55P03"]).await;
    sqlx::raw_sql("rollback").execute(&mut lock).await.unwrap();
    drop(lock);
    db.has(APPENDED, 12).await;
    for round in 0..20 {
        admin.execute(END_SESSIONS).await;
        bench.publish(10).await;
        db.until(APPENDED, 12 + round * 10).await;
    }
    db.has(APPENDED, 212).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_standby_is_told_for_what_it_is_until_it_is_promoted() {
    let Some(cluster) = server().await else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    admin.execute("create database app owner app").await;
    Db::of(&cluster, "app").execute(FUNCTIONS).await;
    Db::of(&cluster, "app")
        .execute("grant all on heard to app")
        .await;
    let standby = cluster.standby();
    cluster.caught_up(&standby).await;
    let mut bench = Bench::start(&call(&url(&standby))).await;
    bench.publish(6).await;
    bench.says_down(&["read-only, a standby perhaps"]).await;
    bench.checks(&["read-only, a standby perhaps"]).await;
    standby.promote();
    Db::of(&standby, "app").has(HEARD, 6).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_wrong_password_keeps_events_waiting_until_it_is_the_right_one() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    db.execute(&format!(
        "create role {role} login password 'other'; grant create on schema public to {role}"
    ))
    .await;
    let (_, place) = store.url.rsplit_once('@').unwrap();
    let url = format!("postgres://{role}:correct-horse@{place}");
    let mut bench = Bench::start(&append(&url)).await;
    bench.publish(6).await;
    bench
        .says_down(&["the login is refused", "28P01", "`database_url`"])
        .await;
    let text = bench.checks(&["the login is refused"]).await;
    for hidden in ["correct-horse", &role] {
        assert!(!text.contains(hidden), "{text}");
        let log = bench.daemon.log().join("\n");
        assert!(!log.contains(hidden), "{log}");
    }
    let shown = bench.output(&["config"]).await;
    assert!(!shown.contains("correct-horse"), "{shown}");
    db.execute(&format!("alter role {role} password 'correct-horse'"))
        .await;
    db.has(APPENDED, 6).await;
    bench.nothing_parked().await;
    bench.stop().await;
    db.execute(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

#[tokio::test]
async fn the_certificate_is_looked_at_where_the_url_asks_for_it() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    if db.texts("show ssl").await != ["on"] {
        println!("skipped: this Postgres has no TLS");
        return;
    }
    let url = |mode: &str| format!("{}?sslmode={mode}", store.url);
    let bench = Bench::start(&append(&url("verify-full"))).await;
    bench.checks(&["TLS failed", "sslrootcert"]).await;
    bench.stop().await;
    // A CA alone is reason enough to look, and a file that is not there is named.
    let missing = format!("{}?sslrootcert=/not/there.pem", store.url);
    let bench = Bench::start(&append(&missing)).await;
    let said = bench
        .checks(&["/not/there.pem, which `sslrootcert` names, cannot be read"])
        .await;
    assert!(!said.contains("host and port"), "{said}");
    bench.stop().await;
    let mut bench = Bench::start(&append(&url("require"))).await;
    bench.publish(6).await;
    db.has(APPENDED, 6).await;
    bench.nothing_parked().await;
}

#[tokio::test]
async fn behind_a_pooler_another_database_takes_every_event() {
    let Some((direct, pooled)) = Store::pgbouncer().await else {
        return;
    };
    let db = Db(direct.url.clone());
    db.execute(FUNCTIONS).await;
    for (handler, query) in [(append(&pooled.url), APPENDED), (call(&pooled.url), HEARD)] {
        let mut bench = Bench::start(&handler).await;
        bench.publish(300).await;
        db.has(query, 300).await;
        bench.nothing_parked().await;
        bench.stop().await;
    }
}

/// A rule of the table that refuses rows, checked with the statement or with the commit.
const RULE: &str = "create function rule() returns trigger language plpgsql as $$ begin \
    if new.data ->> 'Name' >= '6' then raise exception 'hidden' using errcode = '23514'; end if; return null; end $$; \
    create constraint trigger rule after insert on orgstream_events deferrable initially deferred \
    for each row execute function rule()";

#[tokio::test]
async fn a_rule_of_the_table_keeps_events_waiting_at_the_commit_too() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    let beside = "type = \"postgres\"\nmode = \"append\"\ntimeout = \"3s\"".to_owned();
    for (store, handler) in [(store, beside), (Store::sqlite(), append(&db.0))] {
        db.execute("drop table if exists orgstream_events").await;
        let mut bench = Bench::start_in(store, &handler).await;
        bench.publish(6).await;
        db.has(APPENDED, 6).await;
        db.execute(RULE).await;
        bench.publish(3).await;
        bench
            .says_down(&["has a rule of its own that refuses rows", "23514"])
            .await;
        db.execute("drop function rule cascade").await;
        db.has(APPENDED, 9).await;
        bench.nothing_parked().await;
        bench.stop().await;
    }
}

#[tokio::test]
async fn what_is_handled_is_on_the_disk_whatever_the_database_is_set_to() {
    let Some(cluster) = server().await else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    admin.execute("create database app owner app").await;
    admin
        .execute("alter database app set synchronous_commit = off")
        .await;
    let db = Db::of(&cluster, "app");
    db.execute(
        "create table commits (how text); grant all on commits to app; \
         create function on_event(event jsonb) returns void language sql as \
         $$ insert into commits values (current_setting('synchronous_commit')) $$",
    )
    .await;
    let mut bench = Bench::start(&call(&url(&cluster))).await;
    bench.publish(3).await;
    let how = db.until("select how from commits", 3).await;
    assert_eq!(how, ["on"; 3]);
    bench.nothing_parked().await;
}

#[tokio::test]
async fn an_address_where_nothing_listens_is_named() {
    let port = free_port();
    let url = format!("postgres://app:hidden@127.0.0.1:{port}/hidden");
    let mut bench = Bench::start(&append(&url)).await;
    bench.publish(1).await;
    bench
        .says_down(&[&format!("no connection to 127.0.0.1:{port}")])
        .await;
    let text = bench.checks(&["look at host and port"]).await;
    assert!(!text.contains("hidden"), "{text}");
    bench.nothing_parked().await;
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_events_wait_for_room() {
    let Some(cluster) = server().await else {
        return;
    };
    let Some(disk) = Disk::mount("1m") else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    let folder = disk.path().join("small");
    cluster.folder(&folder);
    admin
        .execute(&format!(
            "create tablespace small location '{}'",
            folder.display()
        ))
        .await;
    admin
        .execute("grant create on tablespace small to app")
        .await;
    admin.execute("create database app owner app").await;
    admin
        .execute("alter database app set default_tablespace = small")
        .await;
    let db = Db::of(&cluster, "app");
    let mut bench = Bench::start(&append(&url(&cluster))).await;
    let mut published = 0;
    // Until there is no room.
    eventually("a full disk", async || {
        bench.publish(100).await;
        published += 100;
        let log = bench.daemon.log();
        let full = |line: &String| line.contains("the disk of the database is full");
        log.iter().any(full).then_some(())
    })
    .await;
    bench
        .says_down(&["the disk of the database is full", "53100"])
        .await;
    let there = db.texts(APPENDED).await.len();
    assert!(there < published, "{there} of {published}");
    disk.grow();
    db.has(APPENDED, published).await;
    bench.nothing_parked().await;
    bench.stop().await;
    drop(cluster);
}
