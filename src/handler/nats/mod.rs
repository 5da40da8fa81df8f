//! The `nats` handler: each event is a message of a NATS JetStream stream.

mod connection;

use std::time::Duration;

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{
    GetStreamByNameErrorKind, PublishError, PublishErrorKind, RequestErrorKind,
};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{Context, ErrorCode};
use async_trait::async_trait;
use serde_json::Value;
use tracing::warn;

use super::registry::HandlerConfigError;
use super::written::repeat_key;
use super::{Answer, BatchAnswer, EventBatch, Handler, Options, Retry, Template};
use crate::config::HandlerConfig;
use crate::event::Event;
use connection::{Connection, Login, Servers};

/// The subject where none is named.
const SUBJECT: &str = "orgstream.{topic}";

/// Structured content mode of CloudEvents.
const CLOUD_EVENT: &str = "application/cloudevents+json";

/// Publishes each event to NATS JetStream, and answers when a stream has acknowledged it.
///
/// Options: `url`, one server or several with commas between; `subject`, a [`Template`] (`orgstream.{topic}`); one of
/// `token`, `user` with `password`, `nkey`, `credentials`; `ca_file`; `timeout` of an event (10 s),
/// `connect_timeout` (5 s).
///
/// The event's identity with the subscription's name and the subject is the `Nats-Msg-Id`: within its duplicate
/// window the stream keeps a repeat out.
///
/// Events are published one by one, the next when the one before is acknowledged: a stream that is full may refuse a
/// large event and take the small one behind it. What runs side by side are calls, which share no record.
///
/// An event that is larger than the server or the stream takes is rejected; all other errors are a [`Retry`], which
/// counts only where nobody knows whose fault it was: a stream that is full takes small events and refuses large ones.
#[derive(Debug)]
pub(super) struct NatsHandler {
    connection: Connection,
    subject: Template,
    timeout: Duration,
}

impl NatsHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let servers = options
            .required_text(
                "url",
                "nats://HOST:PORT or tls://HOST:PORT, several with commas between",
            )
            .and_then(|text| Servers::read(&mut options, &text));
        let subject = options
            .text("subject")
            .unwrap_or_else(|| SUBJECT.to_owned());
        let subject = read_subject(&subject)
            .map_err(|reason| options.invalid("subject", reason))
            .ok();
        let login = Login::read(&mut options);
        let ca = super::tls_options::ca_file(&mut options).map(|ca| ca.path);
        let timeout = options.duration("timeout", Duration::from_secs(10));
        let connect_timeout = options.duration("connect_timeout", Duration::from_secs(5));
        let (servers, subject) = options.finish(servers.zip(subject))?;
        Ok(Self {
            connection: Connection::new(servers, login, ca, connect_timeout, timeout),
            subject,
            timeout,
        })
    }

    /// Publishes an event and waits until a stream has it.
    async fn publish(&self, subscription: &str, event: &Event) -> Answer {
        let payload = event.cloud_event().to_json();
        let retry = |reason| Answer::Retry(Retry::because(reason).uncounted());
        let subject = self.subject.render(subscription, event);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, message_id(subscription, &subject, event));
        headers.insert("Content-Type", CLOUD_EVENT);
        let published = async {
            let stream = match self.connection.jetstream().await {
                Ok(stream) => stream,
                Err(reason) => return retry(reason),
            };
            let acknowledged =
                stream.publish_with_headers(subject.clone(), headers, payload.into());
            let acknowledged = match acknowledged.await {
                Ok(acknowledgement) => acknowledgement.await,
                Err(error) => Err(error),
            };
            match acknowledged {
                Ok(_) => Answer::Handled,
                Err(error) => self.answer_to(&error, &subject),
            }
        };
        tokio::time::timeout(self.timeout, published)
            .await
            .unwrap_or_else(|_| retry(self.late()))
    }

    /// What an error means for the event.
    fn answer_to(&self, error: &PublishError, subject: &str) -> Answer {
        let server = self.connection.name();
        let reason = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                return Answer::Reject {
                    reason: format!("it is larger than NATS at {server} takes (max_payload)"),
                };
            }
            PublishErrorKind::StreamNotFound => no_stream(server, subject),
            PublishErrorKind::TimedOut => self.late(),
            PublishErrorKind::BrokenPipe => format!("the connection to NATS at {server} broke"),
            kind => match refusal(error) {
                Some(error) => return refused(server, error),
                None => {
                    return Answer::Retry(Retry::because(format!("NATS at {server}: {kind}")));
                }
            },
        };
        Answer::Retry(Retry::because(reason).uncounted())
    }

    fn late(&self) -> String {
        let (server, timeout) = (self.connection.name(), self.timeout);
        if !self.connection.was_made() {
            return format!("no connection to NATS at {server} within {timeout:?}");
        }
        // What the server minds about a publisher comes beside, and not as an answer.
        match self.connection.last_error() {
            Some(said) => format!(
                "no acknowledgement from NATS at {server} within {timeout:?}, which says: {said}; its user must be \
                 allowed to publish to `subject` = {} and to subscribe to _INBOX.>",
                self.subject
            ),
            None => format!(
                "no acknowledgement from NATS at {server} within {timeout:?}: look at its log; where its disk is full, \
                 make room and start it anew"
            ),
        }
    }

    async fn look(&self) -> Result<(), String> {
        let server = self.connection.name();
        let context = self.connection.jetstream().await?;
        // The library's own type for this answer wants fields that servers before 2.10 do not send.
        let asked: Result<Value, _> = context.request("INFO", &serde_json::json!({})).await;
        let why = match asked {
            Ok(account) => account.get("error").map(|error| {
                let said = error.get("description").and_then(Value::as_str);
                connection::plain(said.unwrap_or("an error"))
            }),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Some(error.kind().to_string())
            }
            Err(error) => {
                warn!(server, error = %error.kind(), "could not ask for the account's JetStream");
                None
            }
        };
        if let Some(why) = why {
            return Err(format!(
                "NATS at {server} has no JetStream for this user ({why}): start it with -js, or enable it for the \
                 account"
            ));
        }
        let subject = any_subject(&self.subject);
        let name = match context.stream_by_subject(subject.as_str()).await {
            Ok(name) => name,
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {
                return Err(no_stream(server, &subject));
            }
            // Not every user may ask.
            Err(error) => {
                warn!(server, subject, %error, "could not look for a stream of the subject");
                return Ok(());
            }
        };
        self.warn_of(&context, &name).await;
        Ok(())
    }

    /// Warns of a stream that does not outlive its server.
    async fn warn_of(&self, context: &Context, name: &str) {
        if let Ok(stream) = context.get_stream(name).await
            && stream.cached_info().config.storage == StorageType::Memory
        {
            warn!(
                server = self.connection.name(),
                stream = name,
                "the stream is kept in memory: a restart of the server loses events that it has acknowledged; \
                 give it storage \"file\""
            );
        }
    }
}

#[async_trait]
impl Handler for NatsHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let mut answers = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            let answer = self.publish(&batch.subscription, event).await;
            let handled = answer == Answer::Handled;
            answers.push(answer);
            if !handled {
                break;
            }
        }
        // Behind one that is not there, none may be.
        let after = Retry::because("an event before it could not be published").uncounted();
        answers.resize(batch.events.len(), Answer::Retry(after));
        BatchAnswer::Each(answers)
    }

    /// Looks for JetStream and for a stream that takes the subject.
    async fn check(&self) -> Result<(), String> {
        tokio::time::timeout(self.timeout, self.look())
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }
}

/// What a stream knows an event by, whatever other subscriptions and handlers publish to it: one ID is one message
/// of a stream, on whichever subject (nats-server issue #3645).
fn message_id(subscription: &str, subject: &str, event: &Event) -> String {
    format!("{}:{subject}", repeat_key(subscription, event))
}

/// A template of a subject: levels with dots between, none of them empty, no wildcards.
fn read_subject(text: &str) -> Result<Template, String> {
    let template = Template::parse(text)?;
    let written = template.filled("x");
    if written.contains(['*', '>']) {
        return Err("must not have the wildcards * and >".to_owned());
    }
    if written.split('.').any(str::is_empty) {
        return Err(
            "must not have an empty level: a dot at either end, or two together".to_owned(),
        );
    }
    if written.starts_with('$') {
        return Err("must not begin with $, where subjects of the server do".to_owned());
    }
    Ok(template)
}

/// All subjects of a template, as a subject with wildcards.
fn any_subject(template: &Template) -> String {
    const HOLE: &str = "\u{0}";
    let filled = template.filled(HOLE);
    let levels = filled
        .split('.')
        .map(|level| if level.contains(HOLE) { "*" } else { level });
    levels.collect::<Vec<_>>().join(".")
}

fn no_stream(server: &str, subject: &str) -> String {
    format!(
        "no JetStream stream at {server} takes the subject {subject}: add one, \
         nats stream add --subjects '{subject}', or set `subject` to one of a stream that is there"
    )
}

/// What a stream answered, where it did.
fn refusal(error: &PublishError) -> Option<&async_nats::jetstream::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// What it means for an event that a stream refuses it.
fn refused(server: &str, error: &async_nats::jetstream::Error) -> Answer {
    let code = error.error_code();
    let said = format!(
        "JetStream at {server} answers {}",
        connection::plain(&error.to_string())
    );
    let cure = match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            return Answer::Reject {
                reason: format!("{said}: it is larger than the stream takes (max_msg_size)"),
            };
        }
        ErrorCode::STREAM_STORE_FAILED => {
            ": the stream is full or its disk is: raise its limits (max_bytes, max_msgs), make room, or let it discard \
             old messages"
        }
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
            ": the server or the account has no room left: make room or raise the limits of JetStream"
        }
        ErrorCode::STREAM_SEALED => {
            ": the stream is sealed, so it takes nothing more: use another one"
        }
        _ => return Answer::Retry(Retry::because(said)),
    };
    Answer::Retry(Retry::because(format!("{said}{cure}")).uncounted())
}

#[cfg(test)]
mod tests;
