//! Schemas by their ID: memory, then the store, then a folder, then GetSchema.
//!
//! An event is decoded with the schema its own ID names, never with its topic's: around a change of an
//! object's definition, and on channels always, one stream mixes them (facts 4.2). A schema never
//! changes under its ID, so it is kept for good.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use metrics::Counter;
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use super::Schema;
use super::folder;
use crate::event::SchemaId;
use crate::telemetry::metrics::SCHEMA_LOOKUPS;

/// How long a refusal is remembered, so that a poison ID does not cost a call for each event.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// How long the shelf may take. It saves calls, but nothing has to wait for it: a database that hangs
/// must not hold up a stream.
const SHELF_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no schema for an ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaUnavailable {
    /// Not just now: the org cannot be reached, the login is being mended. Worth waiting for.
    #[error("the schema cannot be had just now: {0}")]
    Later(String),
    /// For good: the org knows no such schema, or what it answers is none.
    #[error("{0}")]
    Refused(String),
}

/// Where schemas come from: GetSchema.
#[async_trait]
pub trait SchemaSource: Send + Sync {
    /// The schema's JSON text.
    async fn fetch(&self, id: &SchemaId) -> Result<String, SchemaUnavailable>;
}

/// Where schemas outlive the process: the store. Errors are words for the log.
#[async_trait]
pub trait SchemaShelf: Send + Sync {
    /// A schema's JSON text, if it was saved before.
    async fn load(&self, id: &SchemaId) -> Result<Option<Arc<str>>, String>;

    /// Keeps a schema's JSON text.
    async fn save(&self, id: &SchemaId, json: &str) -> Result<(), String>;
}

type Found = Result<Arc<Schema>, SchemaUnavailable>;
type Lookup = BoxFuture<'static, Found>;

/// What memory knows about an ID.
enum Entry {
    Known(Arc<Schema>),
    Refused {
        why: SchemaUnavailable,
        until: Instant,
    },
    /// Somebody is looking. Held weakly: when all who waited have gone, the search ends, and the next
    /// one who asks begins anew.
    Sought(WeakShared<Lookup>),
}

/// Schemas by ID. Clones share everything.
#[derive(Clone)]
pub struct SchemaCache {
    shared: Arc<Library>,
}

struct Library {
    source: Arc<dyn SchemaSource>,
    shelf: Option<Arc<dyn SchemaShelf>>,
    dir: Option<PathBuf>,
    /// The folder's schemas, read when first needed.
    folder: OnceCell<HashMap<SchemaId, Arc<Schema>>>,
    entries: Mutex<HashMap<SchemaId, Entry>>,
    refused_for: Duration,
    lookups: Lookups,
}

/// Schemas that were found, by where. Handles are made once, for memory is looked into for each event.
struct Lookups {
    memory: Counter,
    store: Counter,
    folder: Counter,
    org: Counter,
}

impl Lookups {
    fn new() -> Self {
        let found_in = |source| SCHEMA_LOOKUPS.counter(&[source]);
        Self {
            memory: found_in("memory"),
            store: found_in("store"),
            folder: found_in("folder"),
            org: found_in("org"),
        }
    }
}

impl SchemaCache {
    /// `dir` is a folder of `*.avsc` files, named `<anything>.<schema id>.avsc` or by any other name.
    pub fn new(
        source: Arc<dyn SchemaSource>,
        shelf: Option<Arc<dyn SchemaShelf>>,
        dir: Option<PathBuf>,
    ) -> Self {
        Self::with_memory(source, shelf, dir, REFUSED_FOR)
    }

    fn with_memory(
        source: Arc<dyn SchemaSource>,
        shelf: Option<Arc<dyn SchemaShelf>>,
        dir: Option<PathBuf>,
        refused_for: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(Library {
                source,
                shelf,
                dir,
                folder: OnceCell::new(),
                entries: Mutex::default(),
                refused_for,
                lookups: Lookups::new(),
            }),
        }
    }

    /// The schema of this ID. However many wait for one, it is sought once, and all get the same answer.
    /// Safe to cancel.
    pub async fn get(&self, id: &SchemaId) -> Found {
        match self.known(id) {
            Ok(found) => found,
            Err(lookup) => lookup.await,
        }
    }

    /// What [`SchemaCache::get`] gave was used once more, for so many events: a schema never changes under its ID.
    pub(crate) fn used_again(&self, events: u64) {
        self.shared.lookups.memory.increment(events);
    }

    /// As [`SchemaCache::get`], without regard to a refusal that is remembered: a person has asked.
    pub async fn get_anew(&self, id: &SchemaId) -> Found {
        {
            let mut entries = self.shared.entries();
            if matches!(entries.get(id), Some(Entry::Refused { .. })) {
                entries.remove(id);
            }
        }
        self.get(id).await
    }

    /// What memory has, or the search to wait for.
    fn known(&self, id: &SchemaId) -> Result<Found, Shared<Lookup>> {
        if id.as_str().trim().is_empty() {
            let why = "the event names no schema: its schema ID is blank".to_owned();
            return Ok(Err(SchemaUnavailable::Refused(why)));
        }
        let mut entries = self.shared.entries();
        match entries.get(id) {
            Some(Entry::Known(schema)) => {
                self.shared.lookups.memory.increment(1);
                return Ok(Ok(Arc::clone(schema)));
            }
            Some(Entry::Refused { why, until }) if Instant::now() < *until => {
                return Ok(Err(why.clone()));
            }
            Some(Entry::Sought(lookup)) => {
                if let Some(lookup) = lookup.upgrade() {
                    return Err(lookup);
                }
            }
            _ => {}
        }
        let library = Arc::clone(&self.shared);
        let lookup = library.seek(id.clone()).boxed().shared();
        if let Some(weak) = lookup.downgrade() {
            entries.insert(id.clone(), Entry::Sought(weak));
        }
        Err(lookup)
    }
}

impl Library {
    fn entries(&self) -> MutexGuard<'_, HashMap<SchemaId, Entry>> {
        // Every change is a single insert or remove: a panic elsewhere leaves no half of one.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seeks a schema everywhere and remembers the answer.
    async fn seek(self: Arc<Self>, id: SchemaId) -> Found {
        let found = self.find(&id).await;
        let mut entries = self.entries();
        match &found {
            Ok(schema) => _ = entries.insert(id, Entry::Known(Arc::clone(schema))),
            Err(SchemaUnavailable::Later(_)) => _ = entries.remove(&id),
            Err(why @ SchemaUnavailable::Refused(_)) => {
                let now = Instant::now();
                // IDs come from outside, so those of no more use must not pile up.
                entries.retain(|_, entry| match entry {
                    Entry::Known(_) => true,
                    Entry::Refused { until, .. } => now < *until,
                    Entry::Sought(lookup) => lookup.upgrade().is_some(),
                });
                let why = why.clone();
                let until = now + self.refused_for;
                entries.insert(id, Entry::Refused { why, until });
            }
        }
        found
    }

    async fn find(&self, id: &SchemaId) -> Found {
        if let Some(schema) = self.ask_shelf(id).await {
            self.lookups.store.increment(1);
            return Ok(schema);
        }
        if let Some(schema) = self.ask_folder(id).await {
            self.lookups.folder.increment(1);
            return Ok(schema);
        }
        let json = self.source.fetch(id).await?;
        let schema = Schema::parse(&json).map_err(|error| {
            SchemaUnavailable::Refused(format!("schema {id} cannot be used: {error}"))
        })?;
        let fingerprint = schema.fingerprint();
        if fingerprint != *id {
            warn!(schema_id = %id, %fingerprint, "the fingerprint of a schema is not its ID; it is used all the same");
        }
        self.lookups.org.increment(1);
        self.put_on_shelf(id, &json).await;
        Ok(Arc::new(schema))
    }

    async fn ask_shelf(&self, id: &SchemaId) -> Option<Arc<Schema>> {
        let loading = self.shelf.as_ref()?.load(id);
        let json = match tokio::time::timeout(SHELF_PATIENCE, loading).await {
            Ok(Ok(json)) => json?,
            Ok(Err(error)) => {
                warn!(schema_id = %id, error, "a schema could not be read from the store; it is sought elsewhere");
                return None;
            }
            Err(_) => {
                warn!(schema_id = %id, "the store takes too long to give a schema; it is sought elsewhere");
                return None;
            }
        };
        match Schema::parse(&json) {
            Ok(schema) => Some(Arc::new(schema)),
            Err(error) => {
                warn!(schema_id = %id, %error, "the store's copy of a schema cannot be used; it is sought elsewhere");
                None
            }
        }
    }

    async fn put_on_shelf(&self, id: &SchemaId, json: &str) {
        let Some(shelf) = &self.shelf else { return };
        let error = match tokio::time::timeout(SHELF_PATIENCE, shelf.save(id, json)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "it takes too long".to_owned(),
        };
        warn!(schema_id = %id, error, "a schema could not be stored; it is fetched again after a restart");
    }

    async fn ask_folder(&self, id: &SchemaId) -> Option<Arc<Schema>> {
        let dir = self.dir.as_ref()?;
        let read = || async {
            let dir = dir.clone();
            let reading = tokio::task::spawn_blocking(move || folder::read(&dir));
            reading.await.unwrap_or_default()
        };
        let schemas = self.folder.get_or_init(read).await;
        let schema = schemas.get(id)?;
        debug!(schema_id = %id, "schema taken from the folder");
        Some(Arc::clone(schema))
    }
}

#[cfg(test)]
mod tests;
