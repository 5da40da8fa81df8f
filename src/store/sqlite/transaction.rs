//! No transactions for handlers: they speak to Postgres.

use std::time::Duration;

use async_trait::async_trait;

use super::SqliteStore;
use crate::store::{HandOver, StoreError, TransactionError, Transactions, Work};

#[async_trait]
impl Transactions for SqliteStore {
    async fn transact(
        &self,
        _: HandOver<'_>,
        _: Duration,
        _: &mut dyn Work,
    ) -> Result<(), TransactionError> {
        Err(refused())
    }

    async fn try_out(&self, _: Duration, _: &mut dyn Work) -> Result<(), TransactionError> {
        Err(refused())
    }

    async fn transact_unmarked(
        &self,
        _: Duration,
        _: &mut dyn Work,
    ) -> Result<(), TransactionError> {
        Err(refused())
    }
}

fn refused() -> TransactionError {
    TransactionError::Store(StoreError::Config(
        "a handler that writes into the store's database needs Postgres: set store.url (DATABASE_URL) to a \
         postgres:// URL"
            .to_owned(),
    ))
}
