//! `orgstream schema`: a schema's text.

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tonic::Code;

use super::Failure;
use super::connect::{self, call_failure};
use super::output::{indented, note, print_line};
use crate::app::Org;
use crate::avro::Schema;
use crate::event::{SchemaId, Topic};
use crate::salesforce::pubsub::PubSubError;

/// Print the schema of a topic, or the schema of an ID.
///
/// The Avro schema as JSON, indented, on standard output; its ID and what it describes on standard
/// error. A topic gives its newest schema. An ID, as events carry it in `dataschema`, gives that one,
/// which may be older. A channel, such as /data/ChangeEvents, has no schema of its own.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream schema /event/Order__e\n  orgstream schema T2gsoDAd40J5FRpynIKZmQ --raw"
)]
pub(super) struct SchemaArgs {
    /// A topic (/event/Order__e, or the short forms Order__e and Account) or a schema ID (22 characters)
    #[arg(value_name = "TOPIC_OR_ID", value_parser = parse_wanted)]
    wanted: Wanted,
    /// Print the text exactly as the org sent it
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print a JSON object with the schema, its ID and its record name
    #[arg(long)]
    json: bool,
}

/// A schema, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    schema_id: &'a str,
    topic: Option<&'a str>,
    record_name: &'a str,
    fingerprint: &'a str,
    /// As it came: the order of keys and the digits of defaults are part of a schema.
    schema: &'a RawValue,
}

/// Whose schema.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Topic(Topic),
    Id(SchemaId),
}

/// Tells an ID from a topic: it is base64url of exactly 16 bytes. No `…__e` and no `…ChangeEvent` is, for
/// its last letter holds bits that would be left over.
fn parse_wanted(text: &str) -> Result<Wanted, String> {
    let text = text.trim();
    let fingerprint = BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .is_ok_and(|bytes| bytes.len() == 16);
    if fingerprint {
        return Ok(Wanted::Id(SchemaId::new(text)));
    }
    text.parse().map(Wanted::Topic).map_err(|error| {
        format!("neither a schema ID, which has 22 characters, nor a topic: {error}")
    })
}

pub(super) async fn run(path: Option<&Path>, args: SchemaArgs) -> Result<ExitCode, Failure> {
    let config = connect::salesforce(path)?;
    let (id, text) =
        connect::with_org(path, &config, async |org| fetch(org, &args.wanted).await).await?;
    let topic = match &args.wanted {
        Wanted::Topic(topic) => Some(topic),
        Wanted::Id(_) => None,
    };
    if args.raw {
        print_line(&text)?;
    } else {
        show(&id, topic, &text, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A schema's ID and its text.
async fn fetch(org: &Org, wanted: &Wanted) -> Result<(SchemaId, String), Failure> {
    let id = match wanted {
        Wanted::Id(id) => id.clone(),
        Wanted::Topic(topic) => newest(org, topic).await?,
    };
    let text = org.bus.schema(&id).await.map_err(|error| match error {
        PubSubError::Rpc {
            status: Code::NotFound | Code::InvalidArgument,
            ..
        } => Failure::Failed(anyhow::anyhow!(
            "this org has no schema {id}: copy the ID as `orgstream topics` or an event's `dataschema` shows it, \
             and see that the login is for the same org"
        )),
        other => call_failure(&other),
    })?;
    Ok((id, text))
}

/// ID of a topic's newest schema.
async fn newest(org: &Org, topic: &Topic) -> Result<SchemaId, Failure> {
    let info = org
        .bus
        .topic(topic)
        .await
        .map_err(|error| call_failure(&error))?;
    info.schema_id.ok_or_else(|| {
        Failure::Failed(anyhow::anyhow!(
            "{topic} is a channel: several kinds of event share it, and each event names its own schema. Ask \
             for one of its members, such as /data/AccountChangeEvent, or for an ID: `orgstream tail {topic}` \
             shows it in `dataschema`"
        ))
    })
}

fn show(id: &SchemaId, topic: Option<&Topic>, text: &str, as_json: bool) -> Result<(), Failure> {
    let schema = Schema::parse(text).map_err(|error| {
        anyhow::anyhow!("schema {id} cannot be used: {error}; `--raw` prints what the org sent")
    })?;
    if as_json {
        let fingerprint = schema.fingerprint();
        let shown = Shown {
            schema_id: id.as_str(),
            topic: topic.map(Topic::as_str),
            record_name: schema.record_name(),
            fingerprint: fingerprint.as_str(),
            schema: serde_json::from_str(text).map_err(anyhow::Error::from)?,
        };
        let line = serde_json::to_string(&shown).map_err(anyhow::Error::from)?;
        return print_line(&indented(&line));
    }
    let of = topic.map_or_else(String::new, |topic| format!(", the newest of {topic}"));
    note(&format!("schema {id} of {}{of}", schema.record_name()));
    if schema.fingerprint() != *id {
        note(&format!(
            "its text has the fingerprint {}, which is not its ID",
            schema.fingerprint()
        ));
    }
    print_line(&indented(text))
}

/// Names of the event's own fields.
pub(super) fn field_names(schema: &Schema) -> HashSet<String> {
    let text: Value = serde_json::from_str(schema.json()).unwrap_or_default();
    let fields = text["fields"].as_array();
    fields
        .into_iter()
        .flatten()
        .filter_map(|field| field["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_topics_are_told_apart() {
        let topic = |text: &str| Wanted::Topic(text.parse().unwrap());
        for (given, wanted) in [
            (
                "T2gsoDAd40J5FRpynIKZmQ",
                Wanted::Id(SchemaId::new("T2gsoDAd40J5FRpynIKZmQ")),
            ),
            ("/event/Order__e", topic("/event/Order__e")),
            ("Account", topic("/data/AccountChangeEvent")),
            // 22 characters, but not 16 bytes.
            (
                "AccountContactRelation",
                topic("/data/AccountContactRelationChangeEvent"),
            ),
            (
                "ABCDEFGHIJKLMNOPQRS__e",
                topic("/event/ABCDEFGHIJKLMNOPQRS__e"),
            ),
            (
                "ABCDEFGHIJKChangeEvent",
                topic("/data/ABCDEFGHIJKChangeEvent"),
            ),
        ] {
            assert_eq!(parse_wanted(given), Ok(wanted), "{given}");
        }
        assert!(parse_wanted("not a topic").is_err());
    }
}
