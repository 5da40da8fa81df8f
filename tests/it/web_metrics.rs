//! `orgstream web` over the workers: their metrics in one place, beside what the store tells when they are dead; and
//! when the store is away.

use std::time::{Duration, SystemTime};

use orgstream::event::OrgId;
use orgstream::store::AllocationReading;
use reqwest::StatusCode;
use serde_json::json;

use crate::support::cluster::Cluster;
use crate::support::page::Web;
use crate::support::{
    Daemon, Emulator, LOG, Store, account_update, configured, eventually, record,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";
const OURS: (&str, &str, &str) = ("accounts", ACCOUNTS, "start = \"earliest\"");

/// The value of a sample whose line holds all of these texts.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    let line = text.lines().find(is_it)?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn metrics_of_all_workers_stand_beside_what_the_store_tells() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let both: String = ["one", "two"]
        .map(|name| format!("[[subscription]]\nname = \"{name}\"\ntopic = \"{ACCOUNTS}\"\nstart = \"earliest\"\n{LOG}"))
        .concat();
    let config = format!(
        "{}\n[store]\nurl = \"{}\"\nlease = \"4s\"\n{both}",
        org.salesforce(),
        store.url
    );
    let first = Daemon::run_with(&config, &[("DYNO", "worker.1")]);
    let second = Daemon::run_with(&config, &[("DYNO", "worker.2")]);
    let web = Web::start(&store, &config).await;
    org.publish(ACCOUNTS, &[account_update(&record(1), "one")])
        .await;
    store
        .until("one", "an event finished", |one| one.finished == 1)
        .await;
    let live = "orgstream_stored_state{subscription=\"one\",state=\"live\"} 1";
    let text = web
        .metrics_until("both workers", |text| {
            text.contains("orgstream_events_received_total")
                && text.contains(live)
                && text.contains("dyno=\"worker.1\"")
                && text.contains("dyno=\"worker.2\"")
        })
        .await;
    for family in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let times = text.lines().filter(|line| *line == family).count();
        assert_eq!(times, 1, "{family}");
    }
    assert_eq!(value(&text, "orgstream_stored_up", &[]), Some(1.0));
    assert_eq!(value(&text, "orgstream_stored_held", &["one"]), Some(1.0));
    assert!(
        !text
            .lines()
            .any(|line| line.starts_with("orgstream_stored_") && line.contains("dyno="))
    );
    promtool(&text);
    // The one that runs `one` is killed: its metrics go, the lag grows, nobody holds it, and then the other does.
    let owner = store.subscription("one").await.unwrap().worker.unwrap();
    let (killed, left, other) = if owner == "worker.1" {
        (first, second, "worker.2")
    } else {
        (second, first, "worker.1")
    };
    let before = value(&text, "orgstream_stored_lag_seconds", &["one"]).unwrap();
    assert!(before.is_finite(), "{text}");
    // The other one looks away meanwhile.
    left.signal("STOP");
    killed.kill();
    let gone = format!("dyno=\"{owner}\"");
    web.metrics_until("nobody to hold it", |text| {
        let lag = value(text, "orgstream_stored_lag_seconds", &["one"]);
        value(text, "orgstream_stored_held", &["one"]) == Some(0.0)
            && lag.is_some_and(|lag| lag > before + 3.0)
            && !text.contains(&gone)
    })
    .await;
    left.signal("CONT");
    let text = web
        .metrics_until("the other worker", |text| {
            value(text, "orgstream_stored_held", &["one"]) == Some(1.0)
                && value(text, "orgstream_workers_alive", &[]) == Some(1.0)
                && text.contains(&format!("dyno=\"{other}\""))
        })
        .await;
    assert!(text.contains(&format!("dyno=\"{other}\"")), "{text}");
    assert!(!text.contains(&gone), "{text}");
    assert_eq!(left.stop().await.1, 0);
    let text = web
        .metrics_until("no worker", |text| {
            value(text, "orgstream_workers_alive", &[]) == Some(0.0)
        })
        .await;
    assert_eq!(value(&text, "orgstream_stored_held", &["one"]), Some(0.0));
    promtool(&text);
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// No series is there twice: Prometheus would refuse the whole text.
fn each_once(text: &str) {
    let mut seen = std::collections::HashSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        assert!(seen.insert(series), "{series} is there twice:\n{text}");
    }
}

#[tokio::test]
async fn a_worker_that_was_killed_and_started_again_under_its_name_is_there_once() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = configured(&org, &store, "", OURS, LOG);
    let start = || Daemon::run_with(&config, &[("DYNO", "worker.1")]);
    let began = |text: &str| value(text, "orgstream_process_start_time_seconds", &["worker.1"]);
    let first = start();
    let web = Web::start(&store, &config).await;
    let text = web
        .metrics_until("the first one", |text| began(text).is_some())
        .await;
    let before = began(&text);
    first.kill();
    let second = start();
    // For as long as the lease of the first, both count as living.
    let text = web
        .metrics_until("the second one", |text| {
            each_once(text);
            began(text) != before
        })
        .await;
    assert_eq!(
        value(&text, "orgstream_workers_alive", &[]),
        Some(2.0),
        "{text}"
    );
    promtool(&text);
    assert_eq!(second.stop().await.1, 0);
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// An alert that the deliveries are used up would fire for a day after the last worker, or the permission, is gone.
#[tokio::test]
async fn what_the_org_said_of_its_deliveries_hours_ago_is_not_told() {
    let store = Store::sqlite();
    let org = Emulator::start().await;
    org.settings(json!({"limits": "forbidden"})).await;
    let config = configured(&org, &store, "", OURS, LOG);
    let worker = Daemon::run(&config);
    let live = store
        .until("accounts", "live", |one| one.state == "live")
        .await;
    let org_id: OrgId = live.key.org_id;
    let opened = store.opened().await;
    let read = async |at, remaining| {
        let max = 1000;
        let reading = AllocationReading { at, max, remaining };
        opened.record_allocation(&org_id, &reading).await.unwrap();
    };
    let now = SystemTime::now();
    read(now - Duration::from_secs(2 * 3600), 0).await;
    let web = Web::start(&store, &config).await;
    let text = web.metrics().await;
    assert_eq!(value(&text, "orgstream_stored_up", &[]), Some(1.0));
    assert!(!text.contains("orgstream_stored_deliveries"), "{text}");
    read(now, 400).await;
    web.metrics_until("what it says now", |text| {
        value(text, "orgstream_stored_deliveries_remaining", &[]) == Some(400.0)
    })
    .await;
    opened.close().await;
    assert_eq!(worker.stop().await.1, 0);
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// A worker that crashes in a loop begins its own counters anew each time.
#[tokio::test]
async fn each_start_of_a_worker_that_takes_a_subscription_is_seen() {
    let store = Store::sqlite();
    let org = Emulator::start().await;
    let config = configured(&org, &store, "", OURS, LOG);
    let web = Web::start(&store, &config).await;
    let mut before = 0.0;
    for _ in 0..3 {
        let worker = Daemon::run(&config);
        let text = web
            .metrics_until("a change of hands", |text| {
                value(text, "orgstream_stored_epoch", &["accounts"])
                    .is_some_and(|epoch| epoch > before)
            })
            .await;
        before = value(&text, "orgstream_stored_epoch", &["accounts"]).unwrap();
        worker.kill();
    }
    assert_eq!(web.daemon.stop().await.1, 0);
}

/// Prometheus' own judgement of a text, where it is installed.
fn promtool(text: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let tool = crate::support::server::find("promtool", "ORGSTREAM_REQUIRE_PROMTOOL");
    let Some(tool) = tool else { return };
    let mut child = Command::new(tool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{text}");
}

/// Connections to the database but this one.
async fn connections(conn: &mut sqlx::PgConnection) -> Vec<i32> {
    let others = "select pid from pg_stat_activity \
                  where datname = current_database() and pid <> pg_backend_pid() order by pid";
    sqlx::query_scalar(others).fetch_all(conn).await.unwrap()
}

#[tokio::test]
async fn who_asks_and_goes_away_leaves_no_connection_in_the_middle_of_something() {
    use sqlx::Connection as _;
    let Some(store) = Store::postgres().await else {
        return;
    };
    let env = std::collections::BTreeMap::from([("DATABASE_URL", store.url.clone())]);
    assert_eq!(Daemon::output(&["migrate"], "", &env).await.0, 0);
    let web = Web::start(&store, "").await;
    let ready = async |limit| {
        let asked = web.get("/readyz").timeout(Duration::from_millis(limit));
        asked.send().await.map(|answer| answer.status())
    };
    assert_eq!(ready(10_000).await.unwrap(), StatusCode::OK);
    let mut conn = sqlx::PgConnection::connect(&store.url).await.unwrap();
    let before = connections(&mut conn).await;
    let mut holding = sqlx::PgConnection::connect(&store.url).await.unwrap();
    let mut held = holding.begin().await.unwrap();
    sqlx::query("lock table orgstream.subscription in access exclusive mode")
        .execute(&mut *held)
        .await
        .unwrap();
    // What was just seen is told again for two seconds.
    eventually("somebody to go away", async || ready(100).await.err()).await;
    for _ in 0..5 {
        let _ = ready(50).await;
    }
    held.rollback().await.unwrap();
    holding.close().await.unwrap();
    assert_eq!(ready(10_000).await.unwrap(), StatusCode::OK);
    assert_eq!(connections(&mut conn).await, before);
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_database_that_is_away_is_told_and_what_was_known_stays_to_be_seen() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.sql("postgres", "create database orgstream").await;
    let url = Cluster::url(&cluster.addr(), "postgres", "orgstream");
    let store = Store::at(url);
    let org = Emulator::start().await;
    let config = configured(&org, &store, "", OURS, LOG);
    let worker = Daemon::run(&config);
    store
        .until("accounts", "live", |one| one.state == "live")
        .await;
    let web = Web::start(&store, &config).await;
    let visit = web.sign_in().await;
    visit.page_says("/", "live").await;
    assert_eq!(worker.stop().await.1, 0);
    cluster.down("fast");
    let word = async |path: &str| web.get(path).send().await.unwrap();
    eventually("not ready", async || {
        (word("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    assert_eq!(word("/readyz").await.text().await.unwrap(), "unavailable\n");
    assert_eq!(word("/healthz").await.status(), StatusCode::OK);
    let page = visit.page("/").await;
    assert!(
        page.contains("The database does not answer.") && page.contains("accounts"),
        "{page}"
    );
    let text = web.metrics().await;
    assert_eq!(value(&text, "orgstream_stored_up", &[]), Some(0.0));
    assert!(text.contains("orgstream_build_info"), "{text}");
    assert!(!text.contains("orgstream_stored_lag"), "{text}");
    promtool(&text);
    let letters = visit.answer("/dead-letters").await;
    assert_eq!(letters.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Started without a database, it says the same, and is well once there is one.
    let early = Web::start(&store, &config).await;
    let page = early.sign_in().await.page("/").await;
    assert!(page.contains("Nothing is known until it does."), "{page}");
    cluster.up();
    for web in [&web, &early] {
        eventually("ready again", async || {
            let ready = web.get("/readyz").send().await.unwrap();
            (ready.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
    let page = visit.page("/").await;
    assert!(!page.contains("The database does not answer."), "{page}");
    assert_eq!(early.daemon.stop().await.1, 0);
    assert_eq!(web.daemon.stop().await.1, 0);
}

#[tokio::test]
async fn tables_of_an_older_release_show_what_they_have_and_none_at_all_are_told_as_such() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let none = Web::start(&store, "").await;
    let page = none.sign_in().await.page("/").await;
    assert!(page.contains("The database is not migrated."), "{page}");
    assert!(page.contains("orgstream migrate"), "{page}");
    let env = std::collections::BTreeMap::from([("DATABASE_URL", store.url.clone())]);
    assert_eq!(Daemon::output(&["migrate"], "", &env).await.0, 0);
    store
        .execute("drop table orgstream.subscription_sample, orgstream.worker_snapshot, orgstream.allocation")
        .await;
    let web = Web::start(&store, "").await;
    let page = web.sign_in().await.page("/").await;
    assert!(page.contains("No subscription yet"), "{page}");
    assert!(!page.contains("The database"), "{page}");
    assert!(web.metrics().await.contains("orgstream_stored_up 1"));
    for web in [none, web] {
        assert_eq!(web.daemon.stop().await.1, 0);
    }
}
