//! A database that is away: the events go on, and the position follows when it is back.

use std::time::{Duration, Instant};

use orgstream::store::SubscriptionStatus;
use sqlx::Connection;

use crate::support::{
    Daemon, Emulator, Hook, LOG, Line, Proxy, Store, account_update, configured, eventually, names,
    record, webhook,
};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// A Postgres database with a proxy before it.
pub(crate) struct Database {
    /// Past the proxy, to look with.
    pub(crate) direct: Store,
    pub(crate) proxy: Proxy,
    /// Through the proxy.
    url: String,
}

impl Database {
    pub(crate) async fn make() -> Option<Self> {
        let direct = Store::postgres().await?;
        let (before, rest) = direct.url.split_once('@').unwrap();
        let (target, name) = rest.split_once('/').unwrap();
        let proxy = Proxy::before(target.to_owned()).await;
        let url = format!("{before}@{}/{name}", proxy.addr);
        Some(Self { direct, proxy, url })
    }

    /// A configuration whose store calls may take half a second.
    pub(crate) fn config(&self, org: &Emulator, handlers: &str) -> String {
        let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
        configured(org, &self.direct, "", subscription, handlers).replace(
            &format!("url = \"{}\"", self.direct.url),
            &format!("url = \"{}\"\ntimeout = \"500ms\"", self.url),
        )
    }

    async fn status(&self) -> Option<SubscriptionStatus> {
        self.direct.subscription("accounts").await
    }

    /// Waits until the store says that so many events are finished; gives the position.
    async fn finished(&self, count: u64) -> String {
        let status = self
            .direct
            .until("accounts", &format!("{count} finished events"), |s| {
                s.finished == count
            })
            .await;
        status.position.unwrap().to_string()
    }
}

async fn publish(org: &Emulator, name: &str) -> String {
    publish_of(org, 1, name).await
}

async fn publish_of(org: &Emulator, account: usize, name: &str) -> String {
    let published = org
        .publish(ACCOUNTS, &[account_update(&record(account), name)])
        .await;
    published["events"][0]["replay_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn subscribe_calls(org: &Emulator) -> u64 {
    org.state().await["calls"]["Subscribe"]
        .as_u64()
        .unwrap_or(0)
}

/// While the database is away as `line` says, events are handled and the stream stays; when it is back,
/// the position is written and a restart repeats nothing.
async fn goes_on_without_a_database(line: Line) {
    let Some(database) = Database::make().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = database.config(&org, LOG);
    let mut daemon = Daemon::run(&config);
    publish(&org, "0").await;
    daemon.handled(1).await;
    let before = database.finished(1).await;

    database.proxy.set(line);
    let mut last = String::new();
    let began = Instant::now();
    let mut count = 1;
    while began.elapsed() < Duration::from_secs(3) {
        last = publish(&org, &count.to_string()).await;
        count += 1;
        daemon.handled(count).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.logged(&["the position could not be stored"]).await;
    assert_eq!(
        database
            .status()
            .await
            .unwrap()
            .position
            .unwrap()
            .to_string(),
        before
    );
    database.proxy.set(Line::Carry);
    assert_eq!(database.finished(count as u64).await, last);
    assert_eq!(subscribe_calls(&org).await, 1);
    let seen = names(&daemon.kill());
    assert_eq!(seen, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());

    publish(&org, "more").await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("more".to_owned(), 0));
}

#[tokio::test]
async fn a_database_that_hangs_costs_no_event_and_no_stream() {
    goes_on_without_a_database(Line::Hang).await;
}

#[tokio::test]
async fn a_database_that_is_stopped_costs_no_event_and_no_stream() {
    goes_on_without_a_database(Line::Cut).await;
}

/// A daemon that begins while the database is away as `line` says waits for it, and then misses nothing.
async fn waits_for_a_database(line: Line) {
    let Some(database) = Database::make().await else {
        return;
    };
    let org = Emulator::start().await;
    database.proxy.set(line);
    let mut daemon = Daemon::run(&database.config(&org, LOG));
    publish(&org, "one").await;
    daemon.logged(&["cannot begin yet"]).await;
    assert_eq!(subscribe_calls(&org).await, 0);
    database.proxy.set(Line::Carry);
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_database_that_is_down_at_the_start_is_waited_for() {
    waits_for_a_database(Line::Cut).await;
}

#[tokio::test]
async fn a_database_that_hangs_at_the_start_is_waited_for() {
    waits_for_a_database(Line::Hang).await;
}

#[tokio::test]
async fn a_stop_while_the_database_hangs_is_in_time_and_what_follows_repeats_at_most() {
    let Some(database) = Database::make().await else {
        return;
    };
    let org = Emulator::start().await;
    let config = database.config(&org, LOG);
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    database.finished(1).await;
    database.proxy.set(Line::Hang);
    publish(&org, "two").await;
    daemon.handled(2).await;
    let asked_at = Instant::now();
    let (_, code) = daemon.stop().await;
    assert_eq!(code, 0);
    assert!(asked_at.elapsed() < Duration::from_secs(25));
    database.proxy.set(Line::Carry);
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("two".to_owned(), 0));
}

#[tokio::test]
async fn an_event_that_cannot_be_parked_now_holds_the_position_and_is_parked_later() {
    let Some(database) = Database::make().await else {
        return;
    };
    let org = Emulator::start().await;
    let hook = Hook::start(|event, _| {
        if event["data"]["Name"] == "bad" {
            400.into()
        } else {
            200.into()
        }
    })
    .await;
    let daemon = Daemon::run(&database.config(&org, &webhook(&hook.url(), "")));
    publish(&org, "one").await;
    hook.accepts(1).await;
    let before = database.finished(1).await;
    database.proxy.set(Line::Hang);
    publish(&org, "bad").await;
    // Of another account: its own waits behind it.
    let last = publish_of(&org, 2, "two").await;
    hook.accepts(2).await;
    daemon.logged(&["the store did not take a write"]).await;
    assert_eq!(
        database
            .status()
            .await
            .unwrap()
            .position
            .unwrap()
            .to_string(),
        before
    );
    database.proxy.set(Line::Carry);
    assert_eq!(database.finished(3).await, last);
    assert_eq!(database.direct.parked().await.len(), 1);
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(hook.calls().len(), 3);
}

#[tokio::test]
async fn a_sqlite_file_that_another_program_locks_costs_no_event_and_no_stream() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let config = configured(&org, &store, "", subscription, LOG)
        .replace("[[subscription]]", "timeout = \"500ms\"\n[[subscription]]");
    let mut daemon = Daemon::run(&config);
    publish(&org, "one").await;
    daemon.handled(1).await;
    store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    let mut other = sqlx::SqliteConnection::connect(&store.url).await.unwrap();
    sqlx::query("begin immediate")
        .execute(&mut other)
        .await
        .unwrap();
    publish(&org, "two").await;
    daemon.handled(2).await;
    daemon.logged(&["the position could not be stored"]).await;
    let last = publish(&org, "three").await;
    daemon.handled(3).await;
    sqlx::query("rollback").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let status = eventually("three finished", async || {
        store
            .subscription("accounts")
            .await
            .filter(|s| s.finished == 3)
    })
    .await;
    assert_eq!(status.position.unwrap().to_string(), last);
    assert_eq!(subscribe_calls(&org).await, 1);
    daemon.kill();
    publish(&org, "four").await;
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("four".to_owned(), 0));
}
