//! `orgstream check`: what is wrong, and how to mend it.

mod database;
mod finding;
mod org;
mod reach;
mod store;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use sqlx::PgConnection;

pub(super) use self::finding::Report;
use super::Failure;
use super::connect::JsonFlag;
use crate::app;
use crate::config::{
    self, Checks, ConfigError, ProcessEnv, SalesforceConfig, StoreConfig, SubscriptionConfig,
    Subscriptions, WebConfig,
};
use crate::handler::{Registry, TransactionalHandler, reason_of};
use crate::salesforce::auth::check_private_key;
use crate::store::{Store, TransactionError, Work};

/// How long a handler's own check may take.
const HANDLER_PATIENCE: Duration = Duration::from_secs(30);

/// Look for what is wrong, from configuration to permissions, and say how to mend it.
///
/// Checks the configuration; the store, its tables, encryption, pooler, connections and key; the way to the login host
/// and to the Pub/Sub API (name, port, TLS); this machine's clock; the login, its token and scopes; the positions; what is
/// left of the event deliveries; each topic and its schema; and each handler. One line each: `ok`, `warning` or `failed`, what it
/// is about, why, and what to change. A failure does not keep the checks that can do without it from being made. No
/// event is fetched, and no position moves.
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
    let mut report = Report::new(args.output.json);
    let configured = examine(path, &mut report).await?;
    report.finish()?;
    Ok(match (configured, report.has_failed()) {
        (false, _) => ExitCode::from(ConfigError::EXIT_CODE),
        (true, failed) => ExitCode::from(u8::from(failed)),
    })
}

/// Looks at everything. False where the configuration is wrong.
pub(super) async fn examine(path: Option<&Path>, report: &mut Report) -> Result<bool, Failure> {
    let registry = super::registry();
    let parts = configuration(path, registry, report)?;
    let configured = !report.has_failed();
    let store = match &parts.store {
        Some(config) => {
            let opened = store::open(config, report).await?;
            if let Some(opened) = &opened {
                let transactional = database::has_transactional(&parts.subscriptions, registry);
                database::check(config, opened, transactional, report).await?;
                if opened.ready {
                    database::encryption_key(config, opened, report).await?;
                }
            }
            opened
        }
        None => None,
    };
    if let Some(config) = &parts.salesforce {
        org::check(config, &parts.subscriptions, store.as_ref(), report).await?;
    }
    let store = store.map(|opened| opened.store);
    handlers(&parts.subscriptions, registry, store.as_deref(), report).await?;
    if let Some(store) = store {
        store.close().await;
    }
    Ok(configured)
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
            report.ok("status page", &status_page(&loaded.config.web))?;
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

/// Where `orgstream web` would serve the status page, and to whom.
fn status_page(web: &WebConfig) -> String {
    let Some(_) = &web.token else {
        return "`orgstream web` is not set up: it would need ORGSTREAM_WEB_TOKEN".to_owned();
    };
    let proxy = match web.behind_proxy {
        true => "behind a proxy",
        false => "with no proxy in front",
    };
    format!("`orgstream web` serves it on {}, {proxy}", web.addr)
}

/// Asks each handler whether its other side would take events.
async fn handlers(
    subscriptions: &[SubscriptionConfig],
    registry: &Registry,
    store: Option<&dyn Store>,
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
            let checked = async {
                match handler.transactional() {
                    Some(handler) => within_transaction(handler, store).await,
                    None => handler.check().await,
                }
            };
            match tokio::time::timeout(HANDLER_PATIENCE, checked).await {
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

/// A transactional handler's own check, in a transaction that is rolled back.
async fn within_transaction(
    handler: &dyn TransactionalHandler,
    store: Option<&dyn Store>,
) -> Result<(), String> {
    let Some(store) = store else {
        return Err("the store, whose database it writes to, does not answer".to_owned());
    };
    let mut trial = Trial {
        handler,
        found: Ok(()),
    };
    match store.try_out(HANDLER_PATIENCE, &mut trial).await {
        Ok(()) => trial.found,
        Err(TransactionError::Store(error)) => Err(error.to_string()),
        Err(TransactionError::Work(error)) => Err(reason_of(&error)),
        // It commits nothing.
        Err(error @ TransactionError::Unheard(_)) => Err(error.to_string()),
    }
}

/// What a transactional handler's check does and finds.
struct Trial<'a> {
    handler: &'a dyn TransactionalHandler,
    found: Result<(), String>,
}

#[async_trait]
impl Work for Trial<'_> {
    async fn run(
        &mut self,
        connection: &mut PgConnection,
        _: &[bool],
    ) -> Result<Vec<bool>, sqlx::Error> {
        self.found = self.handler.check(connection).await;
        Ok(Vec::new())
    }
}
