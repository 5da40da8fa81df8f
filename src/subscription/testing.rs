//! What a subscription stands on, for tests without an org: SQLite in a folder of its own, and nobody to ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tempfile::TempDir;

use super::{Samples, Shared};
use crate::app::Org;
use crate::config::{Checks, StoreConfig, SubscriptionConfig, Subscriptions};
use crate::event::OrgId;
use crate::salesforce::limits::Limits;
use crate::store::{SubscriptionKey, TakenOver};

/// A subscription that was taken over and does not run.
pub(super) struct Site {
    pub(super) shared: Shared,
    pub(super) config: SubscriptionConfig,
    pub(super) taken: TakenOver,
    /// Where the store is.
    pub(super) folder: TempDir,
}

impl Site {
    pub(super) async fn new() -> Self {
        let env: BTreeMap<String, String> = [
            ("ORGSTREAM_TOPICS", "/data/AccountChangeEvent"),
            ("SALESFORCE_ACCESS_TOKEN", "00D!token"),
            ("SALESFORCE_INSTANCE_URL", "https://org.my.salesforce.com"),
            ("DATABASE_URL", "sqlite::memory:"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let loaded = crate::config::load(None, Subscriptions::Required, &env, &Checks::NONE);
        let mut config = loaded.unwrap().config;
        let folder = tempfile::tempdir().unwrap();
        config.store = StoreConfig {
            url: SecretString::from(format!("sqlite://{}/store.db", folder.path().display())),
            ..config.store
        };
        let store = crate::store::open(&config.store).await.unwrap();
        store.migrate().await.unwrap();
        let org = Org::prepare(&config.salesforce, None).unwrap();
        let subscription = config.subscriptions.swap_remove(0);
        let key = SubscriptionKey {
            org_id: OrgId::parse("00D58000000arpq").unwrap(),
            name: subscription.name.clone(),
            topic: subscription.topic.clone(),
        };
        store.bind_org(&key.org_id).await.unwrap();
        let names = [key.name.clone()];
        let taken = store.take_over(&key, "holder", Duration::from_secs(60), &names, false);
        let taken = taken.await.unwrap();
        let shared = Shared {
            limits: Limits::new(&config.salesforce, org.tokens.clone()).unwrap(),
            bus: org.bus.clone(),
            schemas: Arc::new(org.schemas(None, &config.schemas_dir)),
            store,
            salesforce: config.salesforce,
            org_id: key.org_id,
            host: String::new(),
            samples: Samples::default(),
        };
        Self {
            shared,
            config: subscription,
            taken,
            folder,
        }
    }
}
