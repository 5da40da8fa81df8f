//! Avro schemas, by their ID.

use std::sync::Arc;

use async_trait::async_trait;

use super::StoreError;
use crate::event::SchemaId;

/// Schemas fetched from the org.
#[async_trait]
pub trait Schemas: Send + Sync {
    /// A schema's JSON text, where it is known.
    async fn load_schema(&self, id: &SchemaId) -> Result<Option<Arc<str>>, StoreError>;

    /// Keeps a schema's JSON text.
    async fn save_schema(&self, id: &SchemaId, json: &str) -> Result<(), StoreError>;
}
