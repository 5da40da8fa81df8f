//! `orgstream check`: what is wrong, and how to mend it.

mod finding;
mod org;
mod store;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use self::finding::Report;
use super::Failure;
use super::connect::JsonFlag;
use crate::app;
use crate::config::{
    self, Checks, ConfigError, ProcessEnv, SalesforceConfig, StoreConfig, SubscriptionConfig,
    Subscriptions,
};
use crate::handler::Registry;
use crate::salesforce::auth::check_private_key;
use crate::store::Store;

/// How long a handler's own check may take.
const HANDLER_PATIENCE: Duration = Duration::from_secs(30);

/// Look for what is wrong, from configuration to permissions, and say how to mend it.
///
/// Checks the configuration, the store, this machine's clock, the login, the Pub/Sub API, each topic and
/// its schema, and each handler. One line each: `ok`, `warning` or `failed`, what it is about, why, and
/// what to change. A failure does not keep the checks that can do without it from being made. No event is
/// fetched, and no position moves.
///
/// Exits with 78 if the configuration is wrong, with 1 if anything else failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  orgstream check\n  orgstream check --json")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    output: JsonFlag,
}

/// What there is to check, as far as it could be read.
#[derive(Default)]
struct Parts {
    salesforce: Option<SalesforceConfig>,
    store: Option<StoreConfig>,
    subscriptions: Vec<SubscriptionConfig>,
}

pub(super) async fn run(path: Option<&Path>, args: CheckArgs) -> Result<ExitCode, Failure> {
    let registry = Registry::builtin();
    let mut report = Report::new(args.output.json);
    let parts = configuration(path, &registry, &mut report)?;
    let configured = !report.has_failed();
    let store = match &parts.store {
        Some(config) => store::open(config, &mut report).await?,
        None => None,
    };
    if let Some(config) = &parts.salesforce {
        org::check(config, &parts.subscriptions, store.as_ref(), &mut report).await?;
    }
    handlers(&parts.subscriptions, &registry, &mut report).await?;
    if let Some(store) = store {
        close(store.store).await;
    }
    report.finish()?;
    Ok(match (configured, report.has_failed()) {
        (false, _) => ExitCode::from(ConfigError::EXIT_CODE),
        (true, failed) => ExitCode::from(u8::from(failed)),
    })
}

async fn close(store: Arc<dyn Store>) {
    store.close().await;
}

/// Reads the configuration; where it is wrong, the sections that are not.
fn configuration(
    path: Option<&Path>,
    registry: &Registry,
    report: &mut Report,
) -> Result<Parts, Failure> {
    let error = match app::load_config(path, Subscriptions::Required, &ProcessEnv, registry) {
        Ok(loaded) => {
            let count = match loaded.config.subscriptions.len() {
                1 => "1 subscription".to_owned(),
                several => format!("{several} subscriptions"),
            };
            let why = format!("from {}, {count}", loaded.origin);
            report.ok("configuration", &why)?;
            for warning in &loaded.warnings {
                let what = format!("configuration, {}", warning.place);
                report.warning(&what, &warning.message, None)?;
            }
            return Ok(Parts {
                salesforce: Some(loaded.config.salesforce),
                store: Some(loaded.config.store),
                subscriptions: loaded.config.subscriptions,
            });
        }
        Err(error) => error,
    };
    if error.problems().is_empty() {
        report.failed("configuration", &error.to_string(), None)?;
        return Ok(Parts::default());
    }
    for problem in error.problems() {
        let what = format!("configuration, {}", problem.place);
        report.failed(&what, &problem.message, None)?;
    }
    let checks = Checks {
        private_key: &check_private_key,
        ..Checks::NONE
    };
    Ok(Parts {
        salesforce: config::load_salesforce(path, &ProcessEnv, &checks).ok(),
        store: config::load_store(path, &ProcessEnv).ok(),
        subscriptions: Vec::new(),
    })
}

/// Asks each handler whether its other side would take events.
async fn handlers(
    subscriptions: &[SubscriptionConfig],
    registry: &Registry,
    report: &mut Report,
) -> Result<(), Failure> {
    for subscription in subscriptions {
        for config in &subscription.handlers {
            let what = format!("handler {} of {}", config.name, subscription.name);
            let handler = match registry.build(config) {
                Ok(handler) => handler,
                Err(error) => {
                    report.failed(&what, &error.to_string(), None)?;
                    continue;
                }
            };
            match tokio::time::timeout(HANDLER_PATIENCE, handler.check()).await {
                Ok(Ok(())) => report.ok(&what, &format!("ready, of type {}", config.kind))?,
                Ok(Err(why)) => report.failed(&what, &why, None)?,
                Err(_) => {
                    let patience = HANDLER_PATIENCE.as_secs();
                    report.failed(&what, &format!("no answer within {patience} s"), None)?;
                }
            }
        }
    }
    Ok(())
}
