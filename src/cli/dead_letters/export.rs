//! `orgstream dead-letters export`: parked events as lines of JSON.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use serde_json::Value;

use super::super::Failure;
use super::super::connect::read;
use super::super::output::{note, print_json_line};
use super::choice::Choice;
use super::summary;
use crate::avro::Schema;
use crate::event::{Event, OrgId, RawEvent, SchemaId, Shown, SmolStr, Source};
use crate::letters::shown::{self, Configured, Shapes};
use crate::store::{PART, Store, StoredDeadLetter};

/// Letters that are read at a time.
const PORTION: usize = 50;

/// Print parked events as lines of JSON.
///
/// Each line holds what is known of one: why it is parked, its payload as received, in base64, with the ID of
/// the schema that wrote it, and, where it decodes, `event`: the CloudEvent as a handler would be given it,
/// except that its `source` names no host, which the store does not know. Where its handler is not shown all of it
/// (`fields`), neither is it here, and there is no payload.
///
/// Changes nothing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream dead-letters export --all > parked.jsonl\n  orgstream dead-letters export 7 | jq .event.data"
)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    choice: Choice,
}

pub(super) async fn run(
    store: &dyn Store,
    configured: Configured,
    args: ExportArgs,
) -> Result<ExitCode, Failure> {
    let chosen = args.choice.open(store).await?;
    if chosen.is_empty() {
        note("no parked events are open that you name");
        return Ok(ExitCode::SUCCESS);
    }
    let ids: Vec<i64> = chosen.iter().map(|letter| letter.placed.id).collect();
    let mut decoder = Decoder::new(store, configured).await?;
    for portion in ids.chunks(PORTION) {
        for stored in read(store.letters(portion).await)? {
            print_json_line(&decoder.line(&stored).await?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Decodes with the schemas of the store.
struct Decoder<'a> {
    store: &'a dyn Store,
    configured: Configured,
    org_id: Option<OrgId>,
    /// The epoch of each subscription, as its next hand-over would have it.
    epochs: HashMap<String, i64>,
    schemas: HashMap<SchemaId, Result<Arc<Schema>, String>>,
}

impl<'a> Decoder<'a> {
    async fn new(store: &'a dyn Store, configured: Configured) -> Result<Self, Failure> {
        let all = read(store.subscriptions().await)?;
        Ok(Self {
            store,
            configured,
            org_id: read(store.bound_org().await)?,
            epochs: all
                .into_iter()
                .map(|one| (one.key.name, one.epoch))
                .collect(),
            schemas: HashMap::new(),
        })
    }

    async fn line(&mut self, stored: &StoredDeadLetter) -> Result<Value, Failure> {
        let mut line = summary(stored);
        let shapes = self.configured.shapes(stored);
        match shown::bytes(stored, shapes.as_ref()) {
            Ok(bytes) => line["payload"] = BASE64_STANDARD.encode(bytes).into(),
            Err(why) => line["payload_error"] = why.into(),
        }
        let event = match &shapes {
            Ok(shapes) => self.event(stored, shapes).await?,
            Err(why) => Err(why.clone()),
        };
        match event {
            Ok(event) => {
                let text = event.cloud_event().to_json();
                line["event"] = serde_json::from_slice(&text).map_err(anyhow::Error::from)?;
            }
            Err(why) => line["event_error"] = why.into(),
        }
        Ok(line)
    }

    async fn event(
        &mut self,
        stored: &StoredDeadLetter,
        shapes: &Shapes,
    ) -> Result<Result<Event, String>, Failure> {
        if let Some(why) = &stored.unreadable {
            return Ok(Err(why.clone()));
        }
        let letter = &stored.letter;
        let schema = match self.schema(&letter.schema_id).await? {
            Ok(schema) => schema,
            Err(why) => return Ok(Err(why)),
        };
        let decoded = match schema.decode(&letter.payload) {
            Ok(decoded) => shapes.apply(decoded),
            Err(failure) => return Ok(Err(failure.error.to_string())),
        };
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(why) => return Ok(Err(why)),
        };
        let (Some(org_id), Ok(topic)) = (self.org_id.clone(), stored.topic.parse()) else {
            return Ok(Err(
                "the store does not say which org or topic it is of".to_owned()
            ));
        };
        let platform_event = decoded.header.is_none();
        Ok(Ok(Event {
            source: Arc::new(Source::new(org_id, "", topic)),
            raw: RawEvent {
                id: letter.event_uuid.as_str().into(),
                schema_id: letter.schema_id.clone(),
                payload: letter.payload.clone(),
                replay_id: letter.replay_id.clone(),
            },
            decoded,
            received_at: letter.received_at,
            epoch: self.epochs.get(&stored.subscription).copied().unwrap_or(0),
            replayed: letter.replayed,
            partial: letter
                .unit
                .as_deref()
                .is_some_and(|unit| unit.starts_with(PART)),
            key: letter
                .record_ids
                .first()
                .filter(|_| platform_event)
                .map(SmolStr::from),
            shown: Shown::Whole,
            known_as: OnceLock::new(),
        }))
    }

    async fn schema(&mut self, id: &SchemaId) -> Result<Result<Arc<Schema>, String>, Failure> {
        if let Some(known) = self.schemas.get(id) {
            return Ok(known.clone());
        }
        let found = match read(self.store.load_schema(id).await)? {
            None => Err("the store does not have its schema".to_owned()),
            Some(text) => Schema::parse(&text)
                .map(Arc::new)
                .map_err(|error| error.to_string()),
        };
        self.schemas.insert(id.clone(), found.clone());
        Ok(found)
    }
}
