//! `orgstream migrate`: the store's tables.

use std::path::Path;
use std::process::ExitCode;

use super::Failure;
use crate::config::{self, ProcessEnv};
use crate::store::{self, StoreError};

pub(super) async fn run(path: Option<&Path>) -> Result<ExitCode, Failure> {
    let config = config::load_store(path, &ProcessEnv)?;
    let store = store::open(&config).await.map_err(store_failure)?;
    let applied = store.migrate().await.map_err(store_failure)?;
    store.close().await;
    if applied.is_empty() {
        println!("the store's tables are up to date");
    } else {
        println!("applied {} migration(s): {applied:?}", applied.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// A store that can never work is a matter of configuration.
pub(super) fn store_failure(error: StoreError) -> Failure {
    match error {
        StoreError::Config(text) => Failure::Config(text),
        other => Failure::Failed(other.into()),
    }
}
