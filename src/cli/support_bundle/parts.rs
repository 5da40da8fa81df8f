//! The parts of the bundle.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::Bundle;
use super::redact::detail;
use crate::app;
use crate::config::{
    self, Env as _, Loaded, ProcessEnv, StoreConfig, Subscriptions, masked_url, show,
};
use crate::event::{OrgId, rfc3339};
use crate::postgres::{Encryption, Facts, facts};
use crate::status::Overview;
use crate::store::{self, HoleFilter, HoleKind, LetterSelection, Store, StoreError};
use crate::telemetry::metrics::COMMIT;

/// How long the database's own facts may take.
const FACTS_PATIENCE: Duration = Duration::from_secs(10);

/// How many changes of state of all subscriptions, and how many holes.
const CHANGES: u32 = 500;
const HOLES: u32 = 200;

/// How far back the readings of the event deliveries go.
const READINGS: Duration = Duration::from_secs(24 * 3600);

/// What runs, and on what.
pub(super) fn program(bundle: &mut Bundle) {
    let features: Vec<&str> = [
        ("sqlite", cfg!(feature = "sqlite")),
        ("redis", cfg!(feature = "redis")),
        ("nats", cfg!(feature = "nats")),
    ]
    .into_iter()
    .filter_map(|(name, on)| on.then_some(name))
    .collect();
    let commit = match COMMIT {
        "" => Value::Null,
        commit => commit.into(),
    };
    bundle.put(
        "program",
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": commit,
            "features": features,
            "debug_build": cfg!(debug_assertions),
        }),
    );
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    bundle.put(
        "platform",
        json!({
            "os": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
            "kernel": line_of("/proc/sys/kernel/osrelease"),
            "processors": processors,
            "memory": line_of("/proc/meminfo"),
            "dyno": ProcessEnv.var("DYNO"),
            "stack": ProcessEnv.var("STACK"),
        }),
    );
    // Which are set says much; what they hold is nobody's business.
    const OURS: [&str; 9] = [
        "ORGSTREAM_",
        "SALESFORCE_",
        "SF_",
        "SFDC_",
        "OTEL_",
        "DATABASE_",
        "PG",
        "SSL_",
        "HEROKU_",
    ];
    const OTHERS: [&str; 10] = [
        "PORT",
        "DYNO",
        "RUST_LOG",
        "NO_COLOR",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ];
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| {
            OURS.iter().any(|ours| name.starts_with(ours)) || OTHERS.contains(&name.as_str())
        })
        .collect();
    bundle.put("variables_set", json!(names));
}

/// The first line of a file of the kernel's.
fn line_of(file: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

/// The configuration, or what is wrong with it.
pub(super) fn configuration(path: Option<&Path>, bundle: &mut Bundle) -> Option<Loaded> {
    let registry = crate::cli::registry();
    match app::load_config(path, Subscriptions::Optional, &ProcessEnv, registry) {
        Ok(loaded) => {
            let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            let text = show(&loaded.config);
            let lines: Vec<&str> = text.lines().collect();
            bundle.put(
                "configuration",
                json!({"origin": loaded.origin.to_string(), "warnings": warnings, "toml": lines}),
            );
            Some(loaded)
        }
        Err(error) => {
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().collect();
            bundle.put("configuration", json!({"wrong": lines}));
            bundle.lacks("configuration", "it is wrong; see there");
            None
        }
    }
}

/// Everything that is read from the store.
pub(super) async fn store(path: Option<&Path>, loaded: Option<&Loaded>, bundle: &mut Bundle) {
    let alone;
    let config = match loaded {
        Some(loaded) => &loaded.config.store,
        // Its section may be right where another is wrong.
        None => match config::load_store(path, &ProcessEnv) {
            Ok(config) => {
                alone = config;
                &alone
            }
            Err(_) => return bundle.lacks("store", "its configuration is wrong"),
        },
    };
    let opened = match store::open(config).await {
        Ok(opened) => opened,
        Err(error) => return bundle.lacks("store", &error.to_string()),
    };
    let place = place(config, opened.as_ref()).await;
    bundle.put("store", place);
    let org_id = overview(path, opened.as_ref(), bundle).await;
    if let Some(org_id) = org_id {
        let reader = Reader {
            store: opened.as_ref(),
            org_id: &org_id,
        };
        reader.all(bundle).await;
    }
    opened.close().await;
}

async fn place(config: &StoreConfig, store: &dyn Store) -> Value {
    let url = config.url.expose_secret().trim();
    let mut place = json!({
        "url": masked_url(url),
        "max_connections": config.max_connections,
        "lease_seconds": config.lease.as_secs_f64(),
        "encryption_key_is_set": config.encryption_key.is_some(),
    });
    place["pending_migrations"] = match store.pending_migrations().await {
        Ok(pending) => json!(pending),
        Err(error) => json!(error.to_string()),
    };
    if url.starts_with("postgres") {
        place["database"] = match facts(url, FACTS_PATIENCE).await {
            Ok(facts) => database(&facts),
            Err(error) => json!(StoreError::from(error).to_string()),
        };
    }
    place
}

fn database(facts: &Facts) -> Value {
    let encryption = match &facts.encryption {
        Encryption::Socket => "socket",
        Encryption::None { .. } => "none",
        Encryption::Tls { verified: true, .. } => "tls, verified",
        Encryption::Tls {
            verified: false, ..
        } => "tls, not verified",
        Encryption::Unknown => "unknown",
    };
    json!({
        "version": facts.version,
        "encryption": encryption,
        "transaction_pooler": facts.pooled,
        "connections_allowed": facts.limit.0,
        "connections_limited_by": facts.limit.1,
        "connections_of_others": facts.others,
    })
}

/// Subscriptions and workers. Gives the org.
async fn overview(path: Option<&Path>, store: &dyn Store, bundle: &mut Bundle) -> Option<OrgId> {
    let bus = config::load_bus_retention(path, &ProcessEnv);
    let (retention, warning) = bus.unwrap_or((
        config::SalesforceConfig::RETENTION,
        config::SalesforceConfig::RETENTION_WARNING,
    ));
    let mut overview = match Overview::read(store, retention, warning).await {
        Ok(overview) => overview,
        Err(error) => {
            bundle.lacks("overview", &error.to_string());
            return None;
        }
    };
    for one in &mut overview.subscriptions {
        one.detail = one.detail.as_deref().map(detail);
        // It repeats the detail, and is made of what is here.
        one.advice.clear();
    }
    let org_id = overview
        .org_id
        .as_deref()
        .and_then(|id| OrgId::parse(id).ok());
    match serde_json::to_value(&overview) {
        Ok(value) => bundle.put("overview", value),
        Err(error) => bundle.lacks("overview", &error.to_string()),
    }
    org_id
}

/// Reads of one org what is not in the overview.
struct Reader<'a> {
    store: &'a dyn Store,
    org_id: &'a OrgId,
}

impl Reader<'_> {
    async fn all(&self, bundle: &mut Bundle) {
        for (name, part) in [
            ("state_changes", self.state_changes().await),
            ("holes", self.holes().await),
            ("dead_letters", self.dead_letters().await),
            ("deliveries", self.deliveries().await),
            ("metrics", self.metrics().await),
        ] {
            match part {
                Ok(value) => bundle.put(name, value),
                Err(error) => bundle.lacks(name, &error.to_string()),
            }
        }
    }

    async fn state_changes(&self) -> Result<Value, StoreError> {
        let changes = self.store.state_changes(self.org_id, None, CHANGES).await?;
        let shown = changes.iter().map(|change| {
            json!({
                "at": rfc3339(change.at),
                "subscription": change.subscription,
                "state": change.state,
                "detail": change.detail.as_deref().map(detail),
                "rpc_id": change.rpc_id,
                "replay_id": change.replay_id.as_ref().map(ToString::to_string),
                "worker": change.worker,
                "epoch": change.epoch,
            })
        });
        Ok(shown.collect())
    }

    /// Without the records that they concern.
    async fn holes(&self) -> Result<Value, StoreError> {
        let filter = HoleFilter {
            limit: Some(HOLES),
            ..HoleFilter::default()
        };
        let holes = self.store.holes(&filter).await?;
        let shown = holes.iter().map(|stored| {
            let hole = &stored.hole;
            json!({
                "id": stored.id,
                "subscription": stored.subscription,
                "kind": match hole.kind { HoleKind::Lost => "lost", HoleKind::Gap => "gap" },
                "reason": hole.reason,
                "recorded_at": rfc3339(stored.recorded_at),
                "acknowledged_at": stored.acknowledged_at.map(rfc3339),
                "from": hole.from.as_ref().map(ToString::to_string),
                "to": hole.to.as_ref().map(ToString::to_string),
                "from_time": hole.from_time.map(rfc3339),
                "to_time": hole.to_time.map(rfc3339),
                "entity": hole.entity,
                "records": stored.record_count,
            })
        });
        Ok(shown.collect())
    }

    /// Counted: what they hold, and what was said of them, stays.
    async fn dead_letters(&self) -> Result<Value, StoreError> {
        let letters = self
            .store
            .select_letters(&LetterSelection::default())
            .await?;
        // By subscription, handler and reason: how many, the oldest, the newest.
        let mut counts = BTreeMap::<_, (u64, SystemTime, SystemTime)>::new();
        for letter in letters {
            let key = (letter.subscription, letter.handler, letter.reason);
            let at = letter.received_at;
            let (count, oldest, newest) = counts.entry(key).or_insert((0, at, at));
            *count += 1;
            *oldest = at.min(*oldest);
            *newest = at.max(*newest);
        }
        let shown = counts.into_iter().map(
            |((subscription, handler, reason), (count, oldest, newest))| {
                json!({
                    "subscription": subscription,
                    "handler": handler,
                    "reason": reason,
                    "open": count,
                    "oldest_received_at": rfc3339(oldest),
                    "newest_received_at": rfc3339(newest),
                })
            },
        );
        Ok(shown.collect())
    }

    async fn deliveries(&self) -> Result<Value, StoreError> {
        let now = SystemTime::now();
        let since = now.checked_sub(READINGS).unwrap_or(now);
        let readings = self.store.allocation(self.org_id, since).await?;
        let shown = readings.iter().map(|reading| {
            json!({"at": rfc3339(reading.at), "max": reading.max, "remaining": reading.remaining})
        });
        Ok(shown.collect())
    }

    async fn metrics(&self) -> Result<Value, StoreError> {
        let snapshots = self.store.snapshots().await?;
        let shown = snapshots.iter().map(|snapshot| {
            // Help and types are known.
            let lines: Vec<&str> = snapshot
                .body
                .lines()
                .filter(|line| !line.starts_with('#'))
                .collect();
            json!({
                "worker": snapshot.worker,
                "version": snapshot.version,
                "at": rfc3339(snapshot.at),
                "lines": lines,
            })
        });
        Ok(shown.collect())
    }
}
