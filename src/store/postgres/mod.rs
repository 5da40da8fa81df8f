//! The store in Postgres: schema `orgstream`, every call one transaction, bounded in time.
//!
//! Safe behind PgBouncer in transaction mode: no session locks, no named prepared statements, every
//! statement inside an explicit transaction.

/// Runs `$work`, which is given the connection `$conn`, in one bounded transaction.
macro_rules! transaction {
    ($store:expr, |$conn:ident| $work:expr) => {
        $crate::store::postgres::bounded($store.timeout, async {
            let mut tx = $store.connections.begin($store.timeout).await?;
            let $conn = tx.connection();
            let done = $work.await?;
            tx.commit().await?;
            Ok(done)
        })
        .await
    };
}

mod command;
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
mod sql;
mod transaction;

use std::future::Future;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use self::migrate::{Attempt, Patience};
use super::common::to_ms;
use super::crypto::Cipher;
use super::vault::Sealer;
use super::{ConnectionUse, Store, StoreError};
use crate::config::StoreConfig;
use crate::event::OrgId;
use crate::postgres::Connections;
use crate::salesforce::auth::{CredentialVault, StoredCredential, VaultError};

/// The store in Postgres.
pub(super) struct PostgresStore {
    connections: Connections,
    /// One for heartbeats and surveys alone: a lease must not run out because all others are busy, or wait
    /// for an answer that does not come.
    lease_connection: Connections,
    /// For transactions of handlers, as many again: they may take long, and must not keep positions from being
    /// written.
    handler_connections: Connections,
    /// The longest pause within one of them.
    longest_pause: Duration,
    timeout: Duration,
    sealer: Sealer,
    /// Numbers the progress writes of this process. Begins at the clock, so that a store opened anew goes
    /// on above the one before.
    last_write: AtomicI64,
}

impl PostgresStore {
    /// Reads the URL; connects at the first call.
    pub(super) fn open(config: &StoreConfig, cipher: Option<Cipher>) -> Result<Self, StoreError> {
        let url = config.url.expose_secret().trim();
        // A machine that dies within a statement, so that nothing tells the server of it, keeps its subscriptions
        // not much longer than the lease.
        let longest = config.lease * 4 / 5;
        let connections = |most| Connections::new(url, most, longest);
        Ok(Self {
            connections: connections(config.max_connections.saturating_sub(1))?,
            lease_connection: connections(1)?,
            handler_connections: connections(config.max_connections)?,
            longest_pause: transaction::longest_pause(config.lease),
            timeout: config.timeout,
            sealer: Sealer(cipher),
            last_write: AtomicI64::new(to_ms(SystemTime::now())),
        })
    }
}

/// Ends work that takes too long; what it held is dropped, and with it the connection.
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

#[async_trait]
impl Store for PostgresStore {
    async fn ping(&self) -> Result<(), StoreError> {
        transaction!(self, |conn| async {
            sql::query("select 1").execute(conn).await?;
            Ok::<_, StoreError>(())
        })
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        let mut versions = Vec::new();
        let mut patience = Patience::begin();
        // Asking, and connecting, take no longer than any other call: only a change itself may, and a
        // database that hangs at the start is found out soon.
        while !self.pending_migrations().await?.is_empty() {
            let begun = async { Ok(self.connections.begin_within(migrate::LIMITS).await?) };
            let tx = bounded(self.timeout, begun).await?;
            match bounded(migrate::BUDGET, migrate::apply_next(tx)).await? {
                Attempt::Applied(version) => versions.push(version),
                Attempt::NothingToDo => {}
                Attempt::Locked(error) => patience.pause(error).await?,
            }
        }
        Ok(versions)
    }

    async fn pending_migrations(&self) -> Result<Vec<i64>, StoreError> {
        let due = transaction!(self, |conn| migrate::due(conn))?;
        Ok(due.iter().map(|migration| migration.version).collect())
    }

    async fn bind_org(&self, org_id: &OrgId) -> Result<(), StoreError> {
        transaction!(self, |conn| lease::bind_org(conn, org_id))
    }

    async fn bound_org(&self) -> Result<Option<OrgId>, StoreError> {
        transaction!(self, |conn| lease::bound_org(conn))
    }

    fn connections(&self) -> Vec<ConnectionUse> {
        let pools = [
            ("calls", &self.connections),
            ("lease", &self.lease_connection),
            ("handlers", &self.handler_connections),
        ];
        // Without a handler that writes here, its connections are never opened.
        let pools = pools
            .into_iter()
            .filter(|(pool, connections)| *pool != "handlers" || connections.was_used());
        let uses = pools.map(|(pool, connections)| {
            let (idle, in_use, max) = connections.in_use();
            ConnectionUse {
                pool,
                idle,
                in_use,
                max,
            }
        });
        uses.collect()
    }

    async fn close(&self) {
        self.connections.close().await;
        self.lease_connection.close().await;
        self.handler_connections.close().await;
    }
}

#[async_trait]
impl CredentialVault for PostgresStore {
    async fn lock(
        &self,
        key: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<StoredCredential>, VaultError> {
        self.sealer.ready()?;
        // A token that cannot be read would leave the right taken: it is read before the commit.
        bounded(self.timeout, async {
            let mut tx = self.connections.begin(self.timeout).await?;
            let stored = credential::lock(tx.connection(), key, holder, ttl).await?;
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
        let saved = transaction!(self, |conn| credential::save(
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
        transaction!(self, |conn| credential::unlock(conn, key, holder))?;
        Ok(())
    }
}
