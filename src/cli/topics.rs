//! `orgstream topics`: what the org says about topics.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::connect::{self, JsonFlag, with_cure};
use super::output::{NONE, Table, note, print, print_json};
use crate::app::{self, Org};
use crate::config::{ProcessEnv, SalesforceConfig, Subscriptions};
use crate::event::Topic;

/// Show what the org says about topics.
///
/// Asks the org (GetTopic) about the topics given, or else about every configured one: whether this user
/// may subscribe and publish, and the newest schema. The Pub/Sub API has no call that lists all topics:
/// Setup > Platform Events and Setup > Change Data Capture do. Exits with 1 if any topic has an error.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  orgstream topics\n  orgstream topics Account /event/Order__e --json"
)]
pub(super) struct TopicsArgs {
    /// Topics, such as /data/AccountChangeEvent, /event/Order__e, or the short forms Account and Order__e
    topics: Vec<Topic>,
    #[command(flatten)]
    output: JsonFlag,
}

/// One topic, as printed.
#[derive(Debug, Serialize)]
struct Answer {
    topic: String,
    can_subscribe: Option<bool>,
    can_publish: Option<bool>,
    /// None of its own: each event names its schema.
    channel: bool,
    schema_id: Option<String>,
    error: Option<String>,
}

pub(super) async fn run(path: Option<&Path>, args: TopicsArgs) -> Result<ExitCode, Failure> {
    let (config, topics) = wanted(path, args.topics)?;
    if topics.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "no topics to ask about: name some, as in `orgstream topics Account Order__e`, or configure \
             subscriptions"
        )));
    }
    let answers = connect::with_org(path, &config, async |org| ask_all(org, &topics).await).await?;
    if args.output.json {
        print_json(&answers)?;
    } else {
        print(&table(&answers))?;
        for answer in &answers {
            if let Some(error) = &answer.error {
                note(&format!("{}: {error}", answer.topic));
            }
        }
    }
    let failed = answers.iter().any(|answer| answer.error.is_some());
    Ok(ExitCode::from(u8::from(failed)))
}

/// The topics given, else the configured ones, each once.
fn wanted(
    path: Option<&Path>,
    given: Vec<Topic>,
) -> Result<(SalesforceConfig, Vec<Topic>), Failure> {
    if !given.is_empty() {
        return Ok((connect::salesforce(path)?, given));
    }
    let registry = super::registry();
    let loaded = app::load_config(path, Subscriptions::Optional, &ProcessEnv, registry)?;
    let mut topics: Vec<Topic> = Vec::new();
    for subscription in loaded.config.subscriptions {
        if !topics.contains(&subscription.topic) {
            topics.push(subscription.topic);
        }
    }
    Ok((loaded.config.salesforce, topics))
}

async fn ask_all(org: &Org, topics: &[Topic]) -> Result<Vec<Answer>, Failure> {
    // Once, rather than the same failure for each topic.
    org.tokens.session().await.map_err(anyhow::Error::from)?;
    let mut answers = Vec::with_capacity(topics.len());
    for topic in topics {
        answers.push(ask(org, topic).await);
    }
    Ok(answers)
}

async fn ask(org: &Org, topic: &Topic) -> Answer {
    let answer = Answer {
        topic: topic.to_string(),
        can_subscribe: None,
        can_publish: None,
        channel: topic.is_channel(),
        schema_id: None,
        error: None,
    };
    match org.bus.topic(topic).await {
        Ok(info) => Answer {
            can_subscribe: Some(info.can_subscribe),
            can_publish: Some(info.can_publish),
            schema_id: info.schema_id.map(|id| id.to_string()),
            ..answer
        },
        Err(error) => Answer {
            error: Some(with_cure(&error)),
            ..answer
        },
    }
}

fn table(answers: &[Answer]) -> String {
    let word = |may: Option<bool>| match may {
        Some(true) => "yes",
        Some(false) => "no",
        None => NONE,
    };
    let mut table = Table::new(["TOPIC", "SUBSCRIBE", "PUBLISH", "SCHEMA"]);
    for answer in answers {
        let schema = match &answer.schema_id {
            Some(id) => id.clone(),
            None if answer.error.is_some() => "error, see below".to_owned(),
            None if answer.channel => "each event's own".to_owned(),
            None => NONE.to_owned(),
        };
        table.row([
            answer.topic.clone(),
            word(answer.can_subscribe).to_owned(),
            word(answer.can_publish).to_owned(),
            schema,
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_channels_and_errors_from_topics_with_a_schema() {
        let answer = |topic: &str, schema: Option<&str>, error: Option<&str>| Answer {
            topic: topic.to_owned(),
            can_subscribe: error.is_none().then_some(true),
            can_publish: error.is_none().then_some(false),
            channel: topic == "/data/ChangeEvents",
            schema_id: schema.map(str::to_owned),
            error: error.map(str::to_owned),
        };
        let text = table(&[
            answer("/event/Order__e", Some("abc"), None),
            answer("/data/ChangeEvents", None, None),
            answer("/event/No__e", None, Some("unknown")),
        ]);
        assert_eq!(
            text,
            "TOPIC               SUBSCRIBE  PUBLISH  SCHEMA\n\
             /event/Order__e     yes        no       abc\n\
             /data/ChangeEvents  yes        no       each event's own\n\
             /event/No__e        -          -        error, see below\n"
        );
    }
}
