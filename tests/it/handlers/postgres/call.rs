//! Functions in the store's database.

use super::super::trouble::Bench;
use super::{Db, FUNCTIONS, HEARD};
use crate::support::cluster::Cluster;
use crate::support::{Daemon, Emulator, LOG, Store, account_update, configured, record};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

fn handler(function: &str, more: &str) -> String {
    format!("type = \"postgres\"\nmode = \"call\"\nfunction = \"{function}\"\n{more}")
}

/// A fresh store with the functions of these tests.
async fn with(functions: &str) -> Option<(Store, Db)> {
    let store = Store::postgres().await?;
    let db = Db(store.url.clone());
    db.execute(functions).await;
    Some((store, db))
}

#[tokio::test]
async fn a_function_gets_the_cloud_event_and_the_name_of_the_subscription() {
    let functions = "create schema \"My Schema\"; create schema crm; create table crm.got (event jsonb); \
        create function crm.\"On-Event\"(event jsonb) returns void language sql as \
        'insert into crm.got values (event)'";
    let Some((store, db)) = with(functions).await else {
        return;
    };
    let org = Emulator::start().await;
    let rows = format!(
        "[[subscription.handler]]\nname = \"it\"\n{}\n{LOG}",
        handler("crm.On-Event", "")
    );
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let mut daemon = Daemon::run(&configured(&org, &store, "", subscription, &rows));
    let mut event = account_update(&record(1), "Ünïcode \"quoted\" \\u0041");
    event["LastModifiedDate"] = 9_007_199_254_740_993_i64.into();
    org.publish(ACCOUNTS, &[event]).await;
    let mut logged = daemon.handled(1).await.remove(0);
    let got = db.until("select event::text from crm.got", 1).await;
    assert!(got[0].contains("9007199254740993"), "{}", got[0]);
    logged["subscription"] = "accounts".into();
    let got: serde_json::Value = serde_json::from_str(&got[0]).unwrap();
    assert_eq!(got, logged);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_batch_is_an_array_in_the_order_of_the_bus() {
    let functions = "create table heard (number bigint generated always as identity, name text, batch bigint, size int); \
        create sequence batches; \
        create function on_events(events jsonb[]) returns void language plpgsql as $$ \
        declare one jsonb; batch bigint := nextval('batches'); begin \
        foreach one in array events loop \
        insert into heard (name, batch, size) values (one -> 'data' ->> 'Name', batch, cardinality(events)); \
        end loop; end $$";
    let Some((store, db)) = with(functions).await else {
        return;
    };
    let org = Emulator::start().await;
    let events: Vec<_> = (0..500)
        .map(|n| account_update(&record(1), &n.to_string()))
        .collect();
    org.publish(ACCOUNTS, &events).await;
    let handler = format!(
        "[[subscription.handler]]\nname = \"it\"\n{}\n",
        handler("on_events", "batch = true\nbatch_events = 50")
    );
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let daemon = Daemon::run(&configured(&org, &store, "", subscription, &handler));
    let rows = db.until(HEARD, 500).await;
    let expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(rows, expected);
    let largest = db.texts("select max(size)::text from heard").await;
    assert_eq!(largest, ["50"]);
    let wrong = "select batch::text from heard group by batch having count(*) <> max(size)";
    assert!(db.texts(wrong).await.is_empty());
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn behind_a_pooler_a_function_is_called_once_for_each_event() {
    for (function, more) in [("on_event", ""), ("public.on_events", "batch = true")] {
        let Some((direct, pooled)) = Store::pgbouncer().await else {
            return;
        };
        let db = Db(direct.url.clone());
        db.execute(FUNCTIONS).await;
        let mut bench = Bench::start_in(pooled, &handler(function, more)).await;
        bench.publish(200).await;
        db.has(HEARD, 200).await;
        bench.stop().await;
        let finished = direct.subscription("accounts").await.unwrap().finished;
        assert_eq!(finished, 200, "and the marks are there");
    }
}

/// What a function does with an event of each name. A sequence goes on whatever is rolled back.
const OPINIONS: &str = "create table heard (number bigint generated always as identity, name text); \
    create sequence tries; \
    create function on_event(event jsonb) returns void language plpgsql as $$ \
    declare name text := event -> 'data' ->> 'Name'; begin \
    raise warning 'hidden %', name; \
    case name \
    when 'reject' then raise exception 'hidden' using errcode = 'OS001', detail = 'hidden', hint = 'hidden'; \
    when 'again' then if nextval('tries') < 3 then raise exception 'hidden' using errcode = 'OS002'; end if; \
    when 'value' then perform ('hidden' || name)::int; \
    when 'plain' then raise exception 'hidden %', name; \
    when 'strange' then raise exception 'hidden' using errcode = '42P01'; \
    else null; end case; \
    insert into heard (name) values (name); end $$";

#[tokio::test]
async fn a_function_can_reject_ask_again_or_fail_and_its_words_are_not_told() {
    let Some((store, db)) = with(OPINIONS).await else {
        return;
    };
    for batch in [false, true] {
        if batch {
            db.execute(
                "truncate heard; alter sequence tries restart; create function on_events(events jsonb[]) \
                 returns void language sql as 'select on_event(e) from unnest(events) as e'",
            )
            .await;
        }
        let (function, more) = match batch {
            true => ("on_events", "batch = true"),
            false => ("on_event", ""),
        };
        let store = match batch {
            true => Store::postgres().await.unwrap(),
            false => Store::at(store.url.clone()),
        };
        if batch {
            // The functions stay where they are: elsewhere, seen from this store.
            let more = format!("{more}\ndatabase_url = \"{}\"", db.0);
            opinions(store, &db, &handler(function, &more)).await;
        } else {
            opinions(store, &db, &handler(function, more)).await;
        }
    }
}

async fn opinions(store: Store, db: &Db, handler: &str) {
    let mut bench = Bench::start_in(store, handler).await;
    for (n, name) in ["reject", "again", "value", "plain", "strange", "a\0b"]
        .iter()
        .enumerate()
    {
        bench.publish_about(&record(10 + n), name).await;
    }
    // Others succeed meanwhile: what fails always is given up.
    let mut parked = Vec::new();
    for _ in 0..60 {
        bench.publish(10).await;
        parked = bench.parked().await;
        if parked.len() >= 5 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    let error = |part: &str| {
        let found = parked.iter().find(|error| error.contains(part));
        found.unwrap_or_else(|| panic!("{part}: {parked:?}"))
    };
    assert_eq!(parked.len(), 5, "{parked:?}");
    assert!(error("OS001").starts_with("a function of the database rejected it"));
    assert!(error("22P02").contains("refused a value"));
    assert!(error("P0001").starts_with("given up after"));
    assert!(error("42P01").starts_with("given up after"));
    assert!(error("U+0000").contains("22P05"));
    for code in ["OS001", "22P02", "P0001", "42P01"] {
        let error = error(code);
        assert!(
            error.contains("in PL/pgSQL function on_event(jsonb) line "),
            "{error}"
        );
        assert!(!error.contains("hidden"), "{error}");
    }
    let again = "select name from heard where name = 'again'";
    db.until(again, 1).await;
    let log = bench.daemon.log().join("\n");
    assert!(!log.contains("hidden"), "{log}");
    bench.stop().await;
}

#[tokio::test]
async fn a_function_that_the_server_writes_into_the_statement_is_not_quoted_either() {
    // Of what goes wrong in it the error has no context, and its message names the value.
    let functions = "create function on_event(event jsonb) returns regclass language sql as \
        $$ select (event -> 'data' ->> 'Name')::regclass $$";
    let Some((store, _)) = with(functions).await else {
        return;
    };
    let mut bench = Bench::start_in(store, &handler("on_event", "")).await;
    bench.publish_named("hidden").await;
    bench
        .says_down(&["a function of the database failed", "42P01"])
        .await;
    let log = bench.daemon.log().join("\n");
    assert!(!log.contains("hidden"), "{log}");
    bench.stop().await;
}

#[tokio::test]
async fn a_function_that_cannot_be_called_is_named_with_the_cure_and_the_events_wait() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Db::of(&cluster, "postgres");
    // Not a superuser: whose rights nobody looks at.
    admin.execute("create role app login").await;
    admin.execute("create database app owner app").await;
    let db = Db::of(&cluster, "app");
    let store = Store::at(Cluster::url(&cluster.addr(), "app", "app"));
    let mut bench = Bench::start_in(store, &handler("crm.on_event", "")).await;
    bench.publish(6).await;
    bench
        .says_down(&["there is no schema", "create schema", "3F000"])
        .await;
    let steps: [(&str, &[&str]); 5] = [
        (
            "create schema crm",
            &[
                "may not be called",
                "grant usage on schema \"crm\" to",
                "42501",
            ],
        ),
        (
            "grant usage on schema crm to app",
            &[
                "there is no function \"crm\".\"on_event\"",
                "create function \"crm\".\"on_event\"(event jsonb) returns void",
                "42883",
            ],
        ),
        (
            "create function crm.on_event(n int) returns void language sql as ''",
            &["takes (n integer), and has to take (jsonb)"],
        ),
        (
            "create function crm.on_event(events jsonb[]) returns void language sql as ''",
            &["set `batch = true`, or create function"],
        ),
        (
            "create table crm.heard (number bigint generated always as identity, name text); \
             create function crm.on_event(event jsonb) returns void language sql as \
             $$ insert into crm.heard (name) values (event -> 'data' ->> 'Name') $$; \
             revoke execute on function crm.on_event(jsonb) from public",
            &[
                "may not be called",
                "grant execute on function \"crm\".\"on_event\"(jsonb) to",
                "store.url",
            ],
        ),
    ];
    for (sql, said) in steps {
        db.execute(sql).await;
        let (code, text) = bench.check().await;
        assert_eq!(code, 1, "{text}");
        for part in said {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    db.execute("grant execute on function crm.on_event(jsonb) to app")
        .await;
    // Within the function nothing is granted yet: it runs as we do.
    let (code, text) = bench.check().await;
    assert_eq!(code, 0, "{text}");
    bench
        .says("a function of the database failed (SQLSTATE 42501")
        .await;
    db.execute("grant insert on crm.heard to app").await;
    let heard = "select name from crm.heard order by number";
    db.has(heard, 6).await;
    // It goes away under a daemon that has called it.
    db.execute("alter function crm.on_event(jsonb) rename to gone")
        .await;
    bench.publish(6).await;
    bench.says_down(&["set `batch = true`"]).await;
    db.execute("alter function crm.gone(jsonb) rename to on_event")
        .await;
    db.has(heard, 12).await;
    bench.nothing_parked().await;
}
