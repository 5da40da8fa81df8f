//! A store for one test, with a way around it to look at what is stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::config::StoreConfig;
use crate::event::{Commit, EventIdentity, OrgId, ReplayId, SchemaId};
use crate::store::{
    DeadLetter, Hole, HoleKind, Lease, Placed, Store, StoreError, SubscriptionKey, open,
};

/// The key that tests encrypt under.
pub(super) const KEY: &str = "a key of the tests, long enough";

/// A lease that has run out as soon as it is taken, so that whoever asks next gets it.
pub(super) const BRIEF: Duration = Duration::ZERO;

/// A database for one test.
pub(super) struct Bed {
    /// For the store.
    pub(super) url: String,
    /// To look around and to clean up: the database itself and the maintenance database, without a pooler.
    direct: Option<(String, String)>,
    _folder: Option<tempfile::TempDir>,
}

impl Bed {
    #[cfg(feature = "sqlite")]
    pub(super) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            url: format!("sqlite://{}", folder.path().join("store.db").display()),
            direct: None,
            _folder: Some(folder),
        }
    }

    /// A new database, or `None` where no server was named.
    pub(super) async fn postgres() -> Option<Self> {
        let maintenance = server("ORGSTREAM_TEST_POSTGRES", "ORGSTREAM_REQUIRE_POSTGRES")?;
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&maintenance).await.unwrap();
        run(&mut admin, format!("create database {name}")).await;
        admin.close().await.unwrap();
        let url = with_database(&maintenance, &name);
        Some(Self {
            url: url.clone(),
            direct: Some((url, maintenance)),
            _folder: None,
        })
    }

    /// The same, with a pooler in transaction mode before it.
    pub(super) async fn pgbouncer() -> Option<Self> {
        let pooler = server("ORGSTREAM_TEST_PGBOUNCER", "ORGSTREAM_REQUIRE_PGBOUNCER")?;
        let mut bed = Self::postgres().await?;
        let name = bed.url.rsplit('/').next().unwrap();
        bed.url = with_database(&pooler, name);
        Some(bed)
    }

    /// Drops the database. A test that failed leaves it to the end of its server.
    pub(super) async fn end(self) {
        if let Some((url, maintenance)) = self.direct {
            let name = url.rsplit('/').next().unwrap();
            let mut admin = PgConnection::connect(&maintenance).await.unwrap();
            run(&mut admin, format!("drop database {name} with (force)")).await;
        }
    }

    /// Past a pooler; Postgres only.
    pub(super) fn direct_url(&self) -> &str {
        self.direct.as_ref().map_or("", |(url, _)| url)
    }

    /// True where a pooler stands before the database.
    pub(super) fn is_pooled(&self) -> bool {
        self.direct
            .as_ref()
            .is_some_and(|(url, _)| *url != self.url)
    }

    pub(super) fn config(&self) -> StoreConfig {
        StoreConfig {
            timeout: Duration::from_secs(20),
            encryption_key: Some(KEY.into()),
            ..StoreConfig::new(self.url.clone())
        }
    }

    /// One more process on the same database.
    pub(super) async fn open(&self) -> Arc<dyn Store> {
        open(&self.config()).await.unwrap()
    }

    /// The first process, with tables.
    pub(super) async fn ready(&self) -> Arc<dyn Store> {
        let store = self.open().await;
        store.migrate().await.unwrap();
        store
    }

    /// Runs SQL past the store. `orgstream.` before a table is left out on SQLite.
    pub(super) async fn execute(&self, sql: &str) {
        match &self.direct {
            Some((url, _)) => {
                let mut conn = PgConnection::connect(url).await.unwrap();
                run(&mut conn, sql.to_owned()).await;
            }
            #[cfg(feature = "sqlite")]
            None => {
                let mut conn = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
                let sql = sql.replace("orgstream.", "");
                sqlx::raw_sql(AssertSqlSafe(sql))
                    .execute(&mut conn)
                    .await
                    .unwrap();
            }
            #[cfg(not(feature = "sqlite"))]
            None => unreachable!(),
        }
    }

    /// Reads one column past the store.
    pub(super) async fn column<T>(&self, sql: &str) -> Vec<T>
    where
        T: Send + Unpin + sqlx::Type<sqlx::Postgres> + ReadFromSqlite,
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres>,
    {
        match &self.direct {
            Some((url, _)) => {
                let mut conn = PgConnection::connect(url).await.unwrap();
                let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
                query.fetch_all(&mut conn).await.unwrap()
            }
            None => T::read(&self.url, &sql.replace("orgstream.", "")).await,
        }
    }
}

/// What [`Bed::column`] reads; a trait because the bounds on SQLite are there only with the feature.
pub(super) trait ReadFromSqlite: Sized {
    async fn read(url: &str, sql: &str) -> Vec<Self>;
}

macro_rules! read_from_sqlite {
    ($($type:ty),*) => {$(
        impl ReadFromSqlite for $type {
            #[cfg(feature = "sqlite")]
            async fn read(url: &str, sql: &str) -> Vec<Self> {
                let mut conn = sqlx::SqliteConnection::connect(url).await.unwrap();
                let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
                query.fetch_all(&mut conn).await.unwrap()
            }
            #[cfg(not(feature = "sqlite"))]
            async fn read(_: &str, _: &str) -> Vec<Self> {
                unreachable!()
            }
        }
    )*};
}
read_from_sqlite!(i64, Vec<u8>);

/// A server's URL from the environment, or a line that says what was skipped.
fn server(variable: &str, required: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        assert!(
            std::env::var_os(required).is_none(),
            "{required} is set, but {variable} is not"
        );
        println!("skipped: {variable} is not set");
    }
    url
}

/// The same server, another database.
fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

async fn run(conn: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(conn)
        .await
        .unwrap();
}

/// Shorter ways to park, for tests.
#[async_trait]
pub(super) trait Park {
    /// Parks an event; gives its number.
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError>;

    /// Several in this order.
    async fn park_all(
        &self,
        lease: &Lease,
        letters: &[DeadLetter],
    ) -> Result<Vec<Placed>, StoreError>;
}

#[async_trait]
impl Park for dyn Store + '_ {
    async fn park(&self, lease: &Lease, letter: &DeadLetter) -> Result<i64, StoreError> {
        let placed = self.park_all(lease, std::slice::from_ref(letter)).await?;
        Ok(placed[0].id)
    }

    async fn park_all(
        &self,
        lease: &Lease,
        letters: &[DeadLetter],
    ) -> Result<Vec<Placed>, StoreError> {
        Ok(self.park_before(lease, letters, &[]).await?.0)
    }
}

pub(super) fn org() -> OrgId {
    OrgId::parse("00D58000000arpq").unwrap()
}

pub(super) fn key(name: &str, topic: &str) -> SubscriptionKey {
    SubscriptionKey {
        org_id: org(),
        name: name.to_owned(),
        topic: topic.parse().unwrap(),
    }
}

pub(super) fn replay(hex: &str) -> ReplayId {
    hex.parse().unwrap()
}

/// Takes `accounts` over, on the topic `Account`.
pub(super) async fn take(store: &dyn Store) -> Lease {
    let key = key("accounts", "Account");
    let configured = [key.name.clone()];
    let taken = store.take_over(&key, "worker", BRIEF, &configured, false);
    taken.await.unwrap().lease
}

/// An event of account `record`, to be parked for `handler`.
pub(super) fn letter(record: &str, handler: Option<&str>) -> DeadLetter {
    let replay_id = replay(&hex::encode(record));
    DeadLetter {
        identity: EventIdentity::new("u-1", Some(&replay_id), Some(record)),
        handler: handler.map(str::to_owned),
        reason: "rejected".to_owned(),
        error: "400 Bad Request".to_owned(),
        attempts: 3,
        event_uuid: "u-1".to_owned(),
        replay_id: Some(replay_id),
        schema_id: SchemaId::new("2f5iZhzwvC8ewpQvcLkGDw"),
        payload: Bytes::from_static(&[0, 255, 2, 0, 10]),
        record_ids: vec![record.to_owned()],
        record_name: Some("AccountChangeEvent".to_owned()),
        unit: None,
        place: None,
        received_at: now(),
        commit: Some(Commit {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
            number: Some(1_790_000_000_123_456_789),
        }),
        ahead: true,
        replayed: false,
        sealed: false,
    }
}

pub(super) fn hole(kind: HoleKind, from: Option<&str>) -> Hole {
    Hole {
        kind,
        reason: "expired_replay_id".to_owned(),
        from: from.map(replay),
        to: None,
        from_time: None,
        to_time: None,
        entity: None,
        record_ids: Vec::new(),
        explanation: "The bus no longer had the stored position.".to_owned(),
    }
}

/// Now, as precisely as a store keeps it.
pub(super) fn now() -> SystemTime {
    crate::store::common::from_ms(crate::store::common::to_ms(SystemTime::now()))
}
