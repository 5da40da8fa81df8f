//! What every command that talks to the org or to the store does first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::migrate::store_failure;
use crate::app::Org;
use crate::config::{
    self, AuthConfig, Checks, Config, Env as _, ProcessEnv, SalesforceConfig, StoreConfig,
};
use crate::salesforce::auth::{CredentialVault, check_private_key};
use crate::salesforce::pubsub::PubSubError;
use crate::store::{self, Store, StoreError};

/// Output for programs.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct JsonFlag {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The `[salesforce]` section alone, so that a mistake elsewhere does not matter here.
pub(super) fn salesforce(path: Option<&Path>) -> Result<SalesforceConfig, Failure> {
    let checks = Checks {
        private_key: &check_private_key,
        ..Checks::NONE
    };
    Ok(config::load_salesforce(path, &ProcessEnv, &checks)?)
}

/// How long a sign-in under way at the end of a command is seen through: for as long as one request and the
/// attempts to store its result should take.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

/// Does `work` with an org to call, and sees a sign-in through that is still under way when it ends, however
/// it ends. A refresh token that rotates is kept in the store, so that flow opens the store too: using up
/// the configured token a second time would end the daemon's session.
pub(super) async fn with_org<T>(
    path: Option<&Path>,
    config: &SalesforceConfig,
    work: impl AsyncFnOnce(&Org) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let store = match &config.auth {
        AuthConfig::RefreshToken { .. } => {
            let store = config::load_vault(path, &ProcessEnv)?;
            Some(store::open(&store).await.map_err(store_failure)?)
        }
        _ => None,
    };
    let vault = store.clone().map(|store| store as Arc<dyn CredentialVault>);
    let org = Org::prepare(config, vault).map_err(|error| Failure::Config(error.to_string()))?;
    let result = work(&org).await;
    org.close(CLOSE_LIMIT).await;
    if let Some(store) = store {
        store.close().await;
    }
    result
}

/// The store, opened to be read.
pub(super) async fn store(config: &StoreConfig) -> Result<Arc<dyn Store>, Failure> {
    store::open(config).await.map_err(store_failure)
}

/// The store's answer, or why there is none.
pub(super) fn read<T>(answer: Result<T, StoreError>) -> Result<T, Failure> {
    answer.map_err(store_failure)
}

/// A failed call with what a person can do about it.
pub(super) fn call_failure(error: &PubSubError) -> Failure {
    Failure::Failed(anyhow::anyhow!(with_cure(error)))
}

/// The error's text, and its cure as a second sentence.
pub(super) fn with_cure(error: &PubSubError) -> String {
    match error.cure() {
        Some(cure) => {
            let text = error.to_string();
            format!("{}. {cure}", text.trim_end_matches('.'))
        }
        None => error.to_string(),
    }
}

/// Where schemas are looked for before the org is asked, for commands that read the org's section only.
pub(super) fn schemas_dir() -> PathBuf {
    ProcessEnv
        .var("ORGSTREAM_SCHEMAS_DIR")
        .map_or_else(|| PathBuf::from(Config::SCHEMAS_DIR), PathBuf::from)
}
