//! `orgstream publish`: platform events from JSON.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Failure;
use super::connect::{self, JsonFlag, call_failure};
use super::output::{note, one_line, print_json_line, print_line};
use super::schema::field_names;
use crate::app::Org;
use crate::avro::Schema;
use crate::event::{SchemaId, Topic};
use crate::salesforce::pubsub::{OutgoingEvent, PublishOutcome};

/// What Salesforce advises for one request (facts 5.1).
const REQUEST_EVENTS: usize = 200;
/// Likewise, in bytes of payload.
const REQUEST_BYTES: usize = 3_000_000;
/// Who created an event where nobody says so. The schema wants a value; the org does not look at it.
const NOBODY: &str = "005000000000000AAA";

/// Publish platform events.
///
/// The JSON is one object with the event's fields by their API names, an array of such objects, or
/// objects one after the other, as in JSON lines; given as it is, as @FILE, or as - for standard input.
/// Optional fields may be left out. CreatedDate (milliseconds since 1970) is now and CreatedById is
/// 005000000000000AAA where the JSON has none.
///
/// Prints the replay ID and the event ID of each published event. Exits with 1 if any was refused. If a
/// field does not fit the schema, nothing is published. Each event counts against the org's hourly
/// publishing allocation.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream publish Order__e '{\"OrderNumber__c\": \"1001\"}'\n  orgstream publish /event/Order__e @orders.json\n  jq -c '.[]' orders.json | orgstream publish Order__e - --json"
)]
pub(super) struct PublishArgs {
    /// A platform event, such as /event/Order__e or Order__e
    topic: Topic,
    /// The events: JSON, @FILE, or - for standard input
    #[arg(value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    events: String,
    #[command(flatten)]
    output: JsonFlag,
}

pub(super) async fn run(path: Option<&Path>, args: PublishArgs) -> Result<ExitCode, Failure> {
    let events = parse(&input(&args.events)?)?;
    let config = connect::salesforce(path)?;
    connect::with_org(path, &config, async |org| publish(org, &args, events).await).await
}

/// Publishes the events and tells of each what became of it.
async fn publish(
    org: &Org,
    args: &PublishArgs,
    events: Vec<Map<String, Value>>,
) -> Result<ExitCode, Failure> {
    let (id, schema) = schema(org, &args.topic).await?;
    let outgoing = encode(&id, &schema, events, SystemTime::now())?;
    let mut published = 0;
    let mut refused = false;
    for request in requests(outgoing) {
        let ids: Vec<String> = request.iter().map(|event| event.id.clone()).collect();
        let outcomes = org
            .bus
            .publish(&args.topic, request)
            .await
            .map_err(|error| {
                if published > 0 {
                    note(&format!(
                        "events 1 to {published} were sent before this; whether those from {} on are on the bus \
                         is not known",
                        published + 1
                    ));
                }
                call_failure(&error)
            })?;
        for (event_id, outcome) in ids.iter().zip(outcomes) {
            published += 1;
            refused |= matches!(outcome, PublishOutcome::Refused(_));
            report(published, event_id, &outcome, args.output.json)?;
        }
    }
    Ok(ExitCode::from(u8::from(refused)))
}

/// The text that the argument is or names.
fn input(argument: &str) -> Result<String, Failure> {
    let text = match argument.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("cannot read {file}: {error}"))?,
        None if argument == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| anyhow::anyhow!("cannot read standard input: {error}"))?;
            text
        }
        None => argument.to_owned(),
    };
    Ok(text)
}

/// All events of the text, in order: objects, and the objects of arrays.
fn parse(text: &str) -> Result<Vec<Map<String, Value>>, anyhow::Error> {
    let mut events = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value.map_err(|error| anyhow::anyhow!("the events are not JSON: {error}"))? {
            Value::Array(list) => events.extend(list),
            one => events.push(one),
        }
    }
    if events.is_empty() {
        anyhow::bail!("there are no events to publish: expected a JSON object, or several");
    }
    let object = |(index, event)| match event {
        Value::Object(fields) => Ok(fields),
        _ => anyhow::bail!("event {} is not a JSON object", index + 1),
    };
    events.into_iter().enumerate().map(object).collect()
}

/// The topic's newest schema, where this user may publish to it at all.
async fn schema(org: &Org, topic: &Topic) -> Result<(SchemaId, Schema), Failure> {
    let info = org
        .bus
        .topic(topic)
        .await
        .map_err(|error| call_failure(&error))?;
    let id = match info.schema_id {
        Some(id) if info.can_publish => id,
        _ => {
            return Err(Failure::Failed(anyhow::anyhow!(
                "this user may not publish to {topic}: only platform events can be published, not change events \
                 or channels; for a platform event, give the user Create on it in a permission set"
            )));
        }
    };
    let text = org
        .bus
        .schema(&id)
        .await
        .map_err(|error| call_failure(&error))?;
    let schema = Schema::parse(&text)
        .map_err(|error| anyhow::anyhow!("schema {id} of {topic} cannot be used: {error}"))?;
    Ok((id, schema))
}

/// Events as bytes, or what is wrong with the first that does not fit.
fn encode(
    id: &SchemaId,
    schema: &Schema,
    events: Vec<Map<String, Value>>,
    now: SystemTime,
) -> Result<Vec<OutgoingEvent>, anyhow::Error> {
    let fields = field_names(schema);
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let mut outgoing = Vec::with_capacity(events.len());
    for (index, mut event) in events.into_iter().enumerate() {
        if fields.contains("CreatedDate") {
            event.entry("CreatedDate").or_insert_with(|| now.into());
        }
        if fields.contains("CreatedById") {
            event.entry("CreatedById").or_insert_with(|| NOBODY.into());
        }
        let payload = schema.encode_json(&Value::Object(event)).map_err(|error| {
            anyhow::anyhow!(
                "event {}: {error}; nothing was published. `orgstream schema {id}` shows what fits",
                index + 1
            )
        })?;
        outgoing.push(OutgoingEvent {
            id: Uuid::new_v4().to_string(),
            schema_id: id.clone(),
            payload: Bytes::from(payload),
        });
    }
    Ok(outgoing)
}

/// The events in requests of a size that Salesforce advises. A single event is sent whatever its size:
/// the org says what is too large.
fn requests(events: Vec<OutgoingEvent>) -> Vec<Vec<OutgoingEvent>> {
    let mut requests: Vec<Vec<OutgoingEvent>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        let size = event.payload.len();
        match requests.last_mut() {
            Some(last) if last.len() < REQUEST_EVENTS && bytes + size <= REQUEST_BYTES => {
                bytes += size;
                last.push(event);
            }
            _ => {
                bytes = size;
                requests.push(vec![event]);
            }
        }
    }
    requests
}

/// Prints how one event fared; `number` counts from 1.
fn report(
    number: usize,
    event_id: &str,
    outcome: &PublishOutcome,
    as_json: bool,
) -> Result<(), Failure> {
    match outcome {
        PublishOutcome::Published(replay_id) if as_json => print_json_line(&json!({
            "event": number, "id": event_id, "replay_id": replay_id.to_string(),
        })),
        PublishOutcome::Refused(why) if as_json => print_json_line(&json!({
            "event": number, "id": event_id, "error": why,
        })),
        PublishOutcome::Published(replay_id) => {
            print_line(&format!("published  {replay_id}  {event_id}"))
        }
        PublishOutcome::Refused(why) => {
            print_line(&format!("refused    event {number}: {}", one_line(why)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Schema {
        Schema::parse(
            r#"{"type":"record","name":"Order__e","fields":[
                {"name":"CreatedDate","type":"long"},{"name":"CreatedById","type":"string"},
                {"name":"Number__c","type":["null","string"],"default":null}]}"#,
        )
        .unwrap()
    }

    fn encoded(text: &str) -> Result<Vec<String>, anyhow::Error> {
        let schema = order();
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(77);
        let events = encode(&SchemaId::new("s"), &schema, parse(text)?, now)?;
        let data = |event: &OutgoingEvent| {
            let decoded = schema.decode(&event.payload).unwrap();
            String::from_utf8(decoded.data.to_vec()).unwrap()
        };
        Ok(events.iter().map(data).collect())
    }

    #[test]
    fn objects_arrays_and_lines_are_all_taken_and_what_the_schema_requires_is_filled_in() {
        let events =
            encoded("{\"Number__c\":\"1\"}\n[{\"CreatedDate\":5,\"CreatedById\":\"u\"}]{}")
                .unwrap();
        assert_eq!(
            events,
            [
                r#"{"CreatedDate":77,"CreatedById":"005000000000000AAA","Number__c":"1"}"#,
                r#"{"CreatedDate":5,"CreatedById":"u"}"#,
                r#"{"CreatedDate":77,"CreatedById":"005000000000000AAA"}"#,
            ]
        );
    }

    #[test]
    fn what_does_not_fit_names_the_event_and_the_field() {
        let cases = [
            ("", "no events"),
            ("{", "not JSON"),
            ("[{}, 4]", "event 2 is not a JSON object"),
            (
                "{}{\"Nmber__c\":\"1\"}",
                "event 2: the schema has no field Nmber__c",
            ),
            ("{\"Number__c\":1}", "event 1: field Number__c is not"),
        ];
        for (text, expected) in cases {
            let error = encoded(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn requests_keep_to_the_advised_size_in_events_and_in_bytes() {
        let event = |size: usize| OutgoingEvent {
            id: String::new(),
            schema_id: SchemaId::new("s"),
            payload: Bytes::from(vec![0; size]),
        };
        let sizes = |events: Vec<OutgoingEvent>| -> Vec<usize> {
            requests(events).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes((0..401).map(|_| event(1)).collect()), [200, 200, 1]);
        assert_eq!(
            sizes(vec![event(1_600_000), event(1_400_000), event(1)]),
            [2, 1]
        );
        assert_eq!(sizes(vec![event(5_000_000), event(1)]), [1, 1]);
    }
}
