//! The `postgres` handler, in the store's own database and in another.

mod call;
mod elsewhere;
mod examples;
mod notify;
mod unheard;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::task::JoinHandle;

use self::notify::{Heard, hear};
use super::endurance::{FarSide, Received, endure};
use super::throughput::measure;
use crate::support::cluster::Cluster;
use crate::support::{Store, eventually};

/// A database that is looked at past the daemon.
struct Db(String);

impl Db {
    /// One of a cluster, as its superuser.
    fn of(cluster: &Cluster, name: &str) -> Self {
        Self(Cluster::url(&cluster.addr(), "postgres", name))
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.0).await.unwrap()
    }

    async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await;
        done.unwrap();
    }

    /// A query of one text column; nothing while it cannot be answered.
    async fn texts(&self, sql: &str) -> Vec<String> {
        let Ok(mut connection) = PgConnection::connect(&self.0).await else {
            return Vec::new();
        };
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&mut connection)
            .await
            .unwrap_or_default()
    }

    /// Waits until a query gives so many rows.
    async fn until(&self, sql: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} rows of: {sql}"), async || {
            Some(self.texts(sql).await).filter(|rows| rows.len() >= count)
        })
        .await
    }

    /// Waits for so many rows of a query, the numbers of events, and looks that they are the first ones, each once and
    /// in order per record, as [`Bench`](super::trouble::Bench) publishes them.
    async fn has(&self, sql: &str, count: usize) {
        let rows = self.until(sql, count).await;
        let mut numbers: Vec<usize> = rows.iter().map(|number| number.parse().unwrap()).collect();
        for one in 0..3 {
            let of_one: Vec<usize> = numbers.iter().copied().filter(|n| n % 3 == one).collect();
            assert!(of_one.is_sorted(), "{of_one:?}");
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

/// The numbers of appended events.
const APPENDED: &str = "select data ->> 'Name' from orgstream_events order by number";

/// A table and functions that write to it, without any key: a call that comes again shows.
const FUNCTIONS: &str = "create table heard (number bigint generated always as identity, subject text, name text); \
    create function on_event(event jsonb) returns void language sql as \
    $$ insert into heard (subject, name) values (event ->> 'subject', event -> 'data' ->> 'Name') $$; \
    create function on_events(events jsonb[]) returns void language sql as \
    $$ insert into heard (subject, name) select e.event ->> 'subject', e.event -> 'data' ->> 'Name' \
       from unnest(events) with ordinality as e (event, place) order by e.place $$";

/// The numbers of events that the functions were called with.
const HEARD: &str = "select name from heard order by number";

/// What a server keeps: rows of a table.
struct Rows {
    cluster: Arc<Cluster>,
    /// Of the handler, without the URL.
    handler: &'static str,
    /// Subject and number.
    query: &'static str,
}

impl Rows {
    async fn start(handler: &'static str, query: &'static str) -> Option<Self> {
        let cluster = Arc::new(Cluster::start().await?);
        Db::of(&cluster, "postgres").execute(FUNCTIONS).await;
        Some(Self {
            cluster,
            handler,
            query,
        })
    }

    fn url(&self) -> String {
        Cluster::url(&self.cluster.addr(), "postgres", "postgres")
    }

    fn restart(&self) {
        self.cluster.down("immediate");
        self.cluster.up();
    }

    async fn received(&self) -> Vec<Received> {
        let mut connection = self.cluster.connection("postgres").await;
        let rows: Vec<(String, String)> = sqlx::query_as(self.query)
            .fetch_all(&mut connection)
            .await
            .unwrap_or_default(); // no table yet
        rows.iter()
            .map(|(subject, number)| Received::new(subject, number))
            .collect()
    }
}

const APPENDED_ROWS: &str = "select subject, data ->> 'Name' from orgstream_events order by number";

const HEARD_ROWS: &str = "select subject, name from heard order by number";

/// The server is the store's too.
struct Beside(Rows);

impl FarSide for Beside {
    const EXACTLY_ONCE: bool = true;

    fn handler(&self) -> String {
        format!("type = \"postgres\"\n{}", self.0.handler)
    }

    fn store(&self) -> Option<Store> {
        Some(Store::at(self.0.url()))
    }

    async fn restart(&mut self) {
        self.0.restart();
    }

    async fn received(&self) -> Vec<Received> {
        self.0.received().await
    }
}

/// The store is on another server. `ONCE` where a key in the database keeps repeats out.
struct Elsewhere<const ONCE: bool>(Rows);

impl<const ONCE: bool> FarSide for Elsewhere<ONCE> {
    const EXACTLY_ONCE: bool = ONCE;

    fn handler(&self) -> String {
        let url = self.0.url();
        format!(
            "type = \"postgres\"\ndatabase_url = \"{url}\"\n{}",
            self.0.handler
        )
    }

    async fn restart(&mut self) {
        self.0.restart();
    }

    async fn received(&self) -> Vec<Received> {
        self.0.received().await
    }
}

#[tokio::test]
async fn ten_thousand_events_are_appended_once_through_kills_and_restarts() {
    if let Some(rows) = Rows::start("mode = \"append\"", APPENDED_ROWS).await {
        endure(Beside(rows)).await;
    }
}

#[tokio::test]
async fn ten_thousand_events_are_given_to_a_function_once_through_kills_and_restarts() {
    let handler = "mode = \"call\"\nfunction = \"public.on_event\"";
    if let Some(rows) = Rows::start(handler, HEARD_ROWS).await {
        endure(Beside(rows)).await;
    }
}

#[tokio::test]
async fn ten_thousand_events_are_appended_elsewhere_once_through_kills_and_restarts() {
    if let Some(rows) = Rows::start("mode = \"append\"", APPENDED_ROWS).await {
        endure(Elsewhere::<true>(rows)).await;
    }
}

#[tokio::test]
async fn ten_thousand_events_are_given_to_a_function_elsewhere_through_kills_and_restarts() {
    let handler = "mode = \"call\"\nfunction = \"on_events\"\nbatch = true";
    if let Some(rows) = Rows::start(handler, HEARD_ROWS).await {
        endure(Elsewhere::<false>(rows)).await;
    }
}

/// Hears of rows, too.
struct Notified {
    beside: Beside,
    heard: Arc<Mutex<Vec<Heard>>>,
    listener: JoinHandle<()>,
}

impl FarSide for Notified {
    const EXACTLY_ONCE: bool = true;

    fn handler(&self) -> String {
        self.beside.handler()
    }

    fn store(&self) -> Option<Store> {
        self.beside.store()
    }

    async fn restart(&mut self) {
        self.beside.restart().await;
    }

    async fn received(&self) -> Vec<Received> {
        self.beside.received().await
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[tokio::test]
async fn ten_thousand_events_are_notified_of_at_most_once_each_through_kills_and_restarts() {
    let Some(rows) = Rows::start("mode = \"notify\"", APPENDED_ROWS).await else {
        return;
    };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let cluster = rows.cluster.clone();
    let listener = tokio::spawn({
        let (url, heard) = (rows.url(), heard.clone());
        async move {
            // A restart ends the connection, and what is sent until the next one nobody hears.
            loop {
                hear(&url, "orgstream_events", &heard).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let far = Notified {
        beside: Beside(rows),
        heard: heard.clone(),
        listener,
    };
    let heard = far.heard.clone();
    endure(far).await;
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    println!("{} notifications", heard.len());
    assert!(heard.len() > 1_000, "{}", heard.len());
    let rows =
        "select json_build_array(number, subscription, id, subject)::text from orgstream_events";
    let rows = Db::of(&cluster, "postgres").texts(rows).await;
    let rows: std::collections::HashSet<serde_json::Value> = rows
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    notify::assert_each_once_and_in_order(&heard);
    for heard in heard {
        let row = serde_json::json!([
            heard["number"],
            heard["subscription"],
            heard["id"],
            heard["subject"]
        ]);
        assert!(rows.contains(&row), "{row} is no row");
    }
}

#[tokio::test]
#[ignore = "a bench: run scripts/bench-handlers"]
async fn bench_postgres() {
    let call = "mode = \"call\"\nfunction = \"on_event\"";
    let calls = "mode = \"call\"\nfunction = \"on_events\"\nbatch = true";
    for (name, handler, query) in [
        ("append", "mode = \"append\"", APPENDED_ROWS),
        ("notify", "mode = \"notify\"", APPENDED_ROWS),
        ("call", call, HEARD_ROWS),
        ("call, batch", calls, HEARD_ROWS),
    ] {
        let start = async || Rows::start(handler, query).await.map(Beside);
        measure(&format!("postgres, {name}"), start).await;
        let start = async || Rows::start(handler, query).await.map(Elsewhere::<false>);
        measure(&format!("postgres, {name}, elsewhere"), start).await;
    }
}
