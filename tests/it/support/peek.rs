//! A look into a daemon's store, beside the daemon, and configurations to run it with.

use std::sync::Arc;

use orgstream::config::StoreConfig;
use orgstream::store::{
    self, DeadLetterFilter, HoleFilter, StoredDeadLetter, StoredHole, SubscriptionStatus,
};
use serde_json::Value;
use sqlx::Connection;

use super::{Emulator, Store, eventually};

impl Store {
    pub(crate) async fn opened(&self) -> Arc<dyn store::Store> {
        let config = StoreConfig::new(self.url.clone());
        store::open(&config).await.unwrap()
    }

    /// Every subscription.
    pub(crate) async fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let store = self.opened().await;
        let found = store.subscriptions().await;
        store.close().await;
        found.unwrap_or_default()
    }

    /// The subscription of this name, once the daemon has made it.
    pub(crate) async fn subscription(&self, name: &str) -> Option<SubscriptionStatus> {
        let all = self.subscriptions().await;
        all.into_iter().find(|s| s.key.name == name)
    }

    /// Waits until a subscription is as asked.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        asked: impl Fn(&SubscriptionStatus) -> bool,
    ) -> SubscriptionStatus {
        eventually(what, async || self.subscription(name).await.filter(&asked)).await
    }

    /// All parked events, oldest first.
    pub(crate) async fn parked(&self) -> Vec<StoredDeadLetter> {
        let store = self.opened().await;
        let filter = DeadLetterFilter {
            limit: 10_000,
            ..DeadLetterFilter::default()
        };
        let parked = store.dead_letters(&filter).await.unwrap_or_default();
        store.close().await;
        parked
    }

    /// Waits until so many events are parked.
    pub(crate) async fn parks(&self, count: usize) -> Vec<StoredDeadLetter> {
        eventually(&format!("{count} parked events"), async || {
            Some(self.parked().await).filter(|parked| parked.len() >= count)
        })
        .await
    }

    /// All holes, newest first.
    pub(crate) async fn holes(&self) -> Vec<StoredHole> {
        let store = self.opened().await;
        let holes = store
            .holes(&HoleFilter::default())
            .await
            .unwrap_or_default();
        store.close().await;
        holes
    }
}

/// A configuration of one subscription. `salesforce` and `subscription` are further lines of their
/// sections, `handlers` whole sections.
pub(crate) fn configured(
    org: &Emulator,
    store: &Store,
    salesforce: &str,
    (name, topic, subscription): (&str, &str, &str),
    handlers: &str,
) -> String {
    format!(
        "{}{salesforce}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"{name}\"\n\
         topic = \"{topic}\"\n{subscription}\n{handlers}",
        org.salesforce(),
        store.url
    )
}

/// A `log` handler.
pub(crate) const LOG: &str = "[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n";

/// A `webhook` handler with short pauses; `more` is further lines.
pub(crate) fn webhook(url: &str, more: &str) -> String {
    format!(
        "[[subscription.handler]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"{url}\"\n\
         retry = {{ attempts = 3, initial = \"20ms\", max = \"100ms\" }}\n{more}\n"
    )
}

/// The field `Name` of each event.
pub(crate) fn names(events: &[Value]) -> Vec<String> {
    texts(events, "Name")
}

/// A text field of each event.
pub(crate) fn texts(events: &[Value], field: &str) -> Vec<String> {
    events
        .iter()
        .map(|event| event["data"][field].as_str().unwrap_or("?").to_owned())
        .collect()
}

impl Store {
    /// How many rows say that a handler has finished an event above the position; SQLite only.
    pub(crate) async fn finished_ahead(&self) -> i64 {
        self.number("select count(*) from finished_ahead").await
    }

    /// True once the first event of a start at LATEST is known; SQLite only.
    pub(crate) async fn has_seen_the_first(&self) -> bool {
        let rows = "select count(*) from subscription where begun_with is not null";
        self.number(rows).await > 0
    }

    /// Runs SQL past the daemon; Postgres only.
    pub(crate) async fn execute(&self, sql: &'static str) {
        let mut connection = sqlx::PgConnection::connect(&self.url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }

    async fn number(&self, query: &'static str) -> i64 {
        let Ok(mut connection) = sqlx::SqliteConnection::connect(&self.url).await else {
            return 0;
        };
        sqlx::query_scalar(query)
            .fetch_one(&mut connection)
            .await
            .unwrap_or(0)
    }
}
