//! The store in a SQLite file, for where nothing else is installed.
//!
//! One connection for a process; other processes may read beside it, but only one may run subscriptions,
//! which a lock on `<file>.lock` sees to. Times are milliseconds since 1970, lists are JSON.

/// Runs `$work`, which is given the connection `$conn`, in one bounded transaction of kind `$begin`.
macro_rules! transaction {
    ($store:expr, $begin:expr, |$conn:ident| $work:expr) => {
        $crate::store::sqlite::bounded($store.timeout, async {
            let mut guard = $store.database.connection().await?;
            let mut tx = guard.begin($begin).await?;
            let $conn = &mut *tx;
            let done = $work.await?;
            tx.commit().await?;
            Ok(done)
        })
        .await
    };
}

mod command;
mod connection;
mod control;
mod credential;
mod dead_letter;
mod hole;
mod lease;
mod migrate;
mod observation;
mod position;
mod retention;
mod schema;
mod transaction;

use std::future::Future;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use self::connection::Database;
use super::common::to_ms;
use super::crypto::Cipher;
use super::vault::Sealer;
use super::{ConnectionUse, Store, StoreError};
use crate::config::StoreConfig;
use crate::event::OrgId;
use crate::salesforce::auth::{CredentialVault, StoredCredential, VaultError};

/// The store in a SQLite file.
pub(super) struct SqliteStore {
    database: Database,
    timeout: Duration,
    sealer: Sealer,
    /// Numbers the progress writes of this process. Begins at the clock, so that a store opened anew goes
    /// on above the one before.
    last_write: AtomicI64,
}

impl SqliteStore {
    /// Reads the URL and looks for the folder; opens the file at the first call.
    pub(super) fn open(config: &StoreConfig, cipher: Option<Cipher>) -> Result<Self, StoreError> {
        Ok(Self {
            database: Database::new(config.url.expose_secret().trim(), config.timeout)?,
            timeout: config.timeout,
            sealer: Sealer(cipher),
            last_write: AtomicI64::new(to_ms(SystemTime::now())),
        })
    }
}

/// A list as it rests in a column: JSON.
fn to_json(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

/// Numbers for `json_each`.
fn ids_json(ids: &[i64]) -> String {
    serde_json::Value::from(ids).to_string()
}

/// Reads what [`to_json`] wrote.
fn from_json(text: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(text).map_err(|_| {
        StoreError::Unavailable(
            "a row holds a list of record IDs that is no JSON array of text: correct the row"
                .to_owned(),
        )
    })
}

/// Ends work that takes too long; its transaction rolls back.
async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(StoreError::Unavailable(format!(
            "the call took longer than {limit:?}"
        )))
    })
}

/// A transaction that reads.
const READ: &str = "begin";

/// A transaction that writes: takes the lock at once, for one that began as a reader and finds another
/// process writing could only fail.
const WRITE: &str = "begin immediate";

#[async_trait]
impl Store for SqliteStore {
    async fn ping(&self) -> Result<(), StoreError> {
        transaction!(self, READ, |conn| async {
            sqlx::query("select 1").execute(conn).await?;
            Ok::<_, StoreError>(())
        })
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        transaction!(self, WRITE, |conn| migrate::apply(conn))
    }

    async fn pending_migrations(&self) -> Result<Vec<i64>, StoreError> {
        let due = transaction!(self, READ, |conn| migrate::due(conn))?;
        Ok(due.iter().map(|migration| migration.version).collect())
    }

    async fn bind_org(&self, org_id: &OrgId) -> Result<(), StoreError> {
        transaction!(self, WRITE, |conn| lease::bind_org(conn, org_id))
    }

    async fn bound_org(&self) -> Result<Option<OrgId>, StoreError> {
        transaction!(self, READ, |conn| lease::bound_org(conn))
    }

    fn connections(&self) -> Vec<ConnectionUse> {
        vec![self.database.connections()]
    }

    async fn close(&self) {
        self.database.close().await;
    }
}

#[async_trait]
impl CredentialVault for SqliteStore {
    async fn lock(
        &self,
        key: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<StoredCredential>, VaultError> {
        self.sealer.ready()?;
        // A token that cannot be read would leave the right taken: it is read before the commit.
        bounded(self.timeout, async {
            let mut guard = self.database.connection().await?;
            let mut tx = guard.begin(WRITE).await?;
            let stored = credential::lock(&mut tx, key, holder, ttl).await?;
            let opened = stored
                .map(|ciphertext| self.sealer.open(key, ciphertext.as_deref()))
                .transpose();
            if opened.is_ok() {
                tx.commit().await?;
            }
            Ok(opened)
        })
        .await?
    }

    async fn save(&self, key: &str, holder: &str, token: &SecretString) -> Result<(), VaultError> {
        let ciphertext = self.sealer.seal(key, token)?;
        let saved = transaction!(self, WRITE, |conn| credential::save(
            conn,
            key,
            holder,
            &ciphertext
        ))?;
        if saved {
            Ok(())
        } else {
            Err(VaultError::LostRight)
        }
    }

    async fn unlock(&self, key: &str, holder: &str) -> Result<(), VaultError> {
        transaction!(self, WRITE, |conn| credential::unlock(conn, key, holder))?;
        Ok(())
    }
}
