//! Where the schema cache looks beyond its memory: the store, and the org.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::avro::{SchemaShelf, SchemaSource, SchemaUnavailable};
use crate::event::SchemaId;
use crate::salesforce::pubsub::{PubSub, PubSubError};
use crate::store::Store;
use crate::telemetry::metrics;

/// The store as a shelf of schemas.
pub(super) struct StoreShelf(pub(super) Arc<dyn Store>);

#[async_trait]
impl SchemaShelf for StoreShelf {
    async fn load(&self, id: &SchemaId) -> Result<Option<Arc<str>>, String> {
        self.0.load_schema(id).await.map_err(|e| e.to_string())
    }

    async fn save(&self, id: &SchemaId, json: &str) -> Result<(), String> {
        self.0
            .save_schema(id, json)
            .await
            .map_err(|e| e.to_string())
    }
}

/// GetSchema as a source of schemas.
pub(super) struct BusSource(pub(super) PubSub);

/// Before an answer that could be flapping metadata is taken as final.
const SECOND_LOOK: Duration = Duration::from_secs(2);

#[async_trait]
impl SchemaSource for BusSource {
    async fn fetch(&self, id: &SchemaId) -> Result<String, SchemaUnavailable> {
        let mut answer = self.0.schema(id).await;
        if let Err(error) = &answer
            && verdict(error) == Verdict::PerhapsForGood
        {
            tokio::time::sleep(SECOND_LOOK).await;
            answer = self.0.schema(id).await;
        }
        let error = match answer {
            Ok(json) => {
                metrics::schema_fetched("fetched");
                return Ok(json);
            }
            Err(error) => error,
        };
        match verdict(&error) {
            // Whatever a person or time can mend holds the event; it is not this event's fault.
            Verdict::Passing => {
                metrics::schema_fetched("unavailable");
                let text = error.to_string();
                let text = text.trim_end_matches('.');
                Err(SchemaUnavailable::Later(match error.cure() {
                    Some(cure) => format!("{text}. {cure}"),
                    None => text.to_owned(),
                }))
            }
            Verdict::ForGood | Verdict::PerhapsForGood => {
                metrics::schema_fetched("refused");
                Err(SchemaUnavailable::Refused(error.to_string()))
            }
        }
    }
}

/// What a failed GetSchema says about the schema ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passing,
    ForGood,
    /// NOT_FOUND and the like without a code, which was seen to come and go (facts 6.3).
    PerhapsForGood,
}

/// By code first, by status where there is none (facts 6.1).
fn verdict(error: &PubSubError) -> Verdict {
    let PubSubError::Rpc { status, code, .. } = error else {
        return Verdict::Passing;
    };
    match (code.as_deref(), status) {
        (Some(code), _) if code.ends_with("schema.validation.failed") => Verdict::ForGood,
        // Nobody has published what an unknown ID is answered with (facts 12).
        (Some(code), tonic::Code::NotFound) if code.ends_with("not.found") => {
            Verdict::PerhapsForGood
        }
        (Some(_), _) => Verdict::Passing,
        (None, tonic::Code::NotFound | tonic::Code::InvalidArgument) => Verdict::PerhapsForGood,
        (None, _) => Verdict::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::salesforce::pubsub::Rpc;

    #[test]
    fn only_an_answer_about_the_schema_id_itself_gives_an_event_up() {
        let error = |code: Option<&str>, status| PubSubError::Rpc {
            rpc: Rpc::GetSchema,
            status,
            code: code.map(str::to_owned),
            message: String::new(),
            rpc_id: None,
        };
        use tonic::Code;
        assert_eq!(
            verdict(&error(Some("schema.not.found"), Code::NotFound)),
            Verdict::PerhapsForGood
        );
        for (code, status, expected) in [
            (
                Some("schema.validation.failed"),
                Code::InvalidArgument,
                Verdict::ForGood,
            ),
            (
                Some("schema.api.unavailable"),
                Code::NotFound,
                Verdict::Passing,
            ),
            (
                Some("schema.meta.permission"),
                Code::PermissionDenied,
                Verdict::Passing,
            ),
            (
                Some("something.new"),
                Code::InvalidArgument,
                Verdict::Passing,
            ),
            (None, Code::NotFound, Verdict::PerhapsForGood),
            (None, Code::InvalidArgument, Verdict::PerhapsForGood),
            (None, Code::Unavailable, Verdict::Passing),
            (None, Code::Unauthenticated, Verdict::Passing),
        ] {
            assert_eq!(verdict(&error(code, status)), expected, "{code:?} {status}");
        }
    }
}
