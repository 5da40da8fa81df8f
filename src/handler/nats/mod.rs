//! The `nats` handler: each event is a message of a NATS JetStream stream.

mod connection;
mod rounds;

use std::time::Duration;

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{
    GetStreamByNameErrorKind, PublishAckFuture, PublishError, PublishErrorKind, RequestErrorKind,
};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{Context, ErrorCode};
use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::registry::HandlerConfigError;
use super::written::repeat_key;
use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Options, Retry, Template};
use crate::config::HandlerConfig;
use crate::event::Event;
use connection::{Connection, Login, Servers};
use rounds::rounds;

/// The subject where none is named.
const SUBJECT: &str = "orgstream.{topic}";

/// Structured content mode of CloudEvents.
const CLOUD_EVENT: &str = "application/cloudevents+json";

/// Publishes each event to NATS JetStream, and answers when a stream has acknowledged it.
///
/// Options: `url`, one server or several with commas between; `subject`, a [`Template`] (`orgstream.{topic}`); one of
/// `token`, `user` with `password`, `nkey`, `credentials`; `ca_file`; `timeout` of an acknowledgement (10 s),
/// `connect_timeout` (5 s).
///
/// The event's identity with the subscription's name and the subject is the `Nats-Msg-Id`: within its duplicate
/// window the stream keeps a repeat out.
///
/// Events of different records are published without waiting for each other, those of one record one after the other, the
/// next when the one before is acknowledged: a stream that is full may refuse a large event and take the small one behind
/// it.
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

    /// Publishes events that do not wait for each other, in bus order, and waits until streams have them; an answer for
    /// each.
    async fn publish(&self, subscription: &str, events: &[&Event]) -> Vec<Answer> {
        let deadline = Instant::now() + self.timeout;
        let connected = timeout_at(deadline, self.connection.jetstream()).await;
        let stream = match connected.unwrap_or_else(|_| Err(self.late())) {
            Ok(stream) => stream,
            Err(reason) => return vec![retry(reason); events.len()],
        };
        let mut sent = Vec::with_capacity(events.len());
        for event in events {
            let sending = timeout_at(deadline, self.send(&stream, subscription, event));
            sent.push(sending.await.unwrap_or_else(|_| Err(retry(self.late()))));
        }
        let answers = sent.into_iter().map(|sent| async {
            let (subject, acknowledgement) = match sent {
                Ok(sent) => sent,
                Err(answer) => return answer,
            };
            match timeout_at(deadline, acknowledgement.into_future()).await {
                Ok(Ok(_)) => Answer::Handled,
                Ok(Err(error)) => self.answer_to(&error, &subject),
                Err(_) => retry(self.late()),
            }
        });
        join_all(answers).await
    }

    /// Sends an event on its way; its subject, and what becomes of it.
    async fn send(
        &self,
        stream: &Context,
        subscription: &str,
        event: &Event,
    ) -> Result<(String, PublishAckFuture), Answer> {
        let payload = event.cloud_event().to_json();
        let subject = self.subject.render(subscription, event);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, message_id(subscription, &subject, event));
        headers.insert("Content-Type", CLOUD_EVENT);
        let sent = stream.publish_with_headers(subject.clone(), headers, payload.into());
        match sent.await {
            Ok(acknowledgement) => Ok((subject, acknowledgement)),
            Err(error) => Err(self.answer_to(&error, &subject)),
        }
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
        retry(reason)
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
        // Behind one that is not there, none may be.
        let behind = retry("an event before it could not be published".to_owned());
        let mut answers = vec![behind; batch.events.len()];
        let begun = Instant::now();
        for round in rounds(batch) {
            let events: Vec<&Event> = round.iter().map(|at| &*batch.events[*at]).collect();
            let published = self.publish(&batch.subscription, &events).await;
            for (at, answer) in round.iter().zip(published) {
                answers[*at] = answer;
            }
            // Nor is a call to go on for longer than a round may: what it has is not known to be there until it ends.
            let all_there = round.iter().all(|at| answers[*at] == Answer::Handled);
            if !all_there || begun.elapsed() >= self.timeout {
                break;
            }
        }
        BatchAnswer::Each(answers)
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 100,
            bytes: 1 << 20,
        }
    }

    /// Looks for JetStream and for a stream that takes the subject.
    async fn check(&self) -> Result<(), String> {
        tokio::time::timeout(self.timeout, self.look())
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }
}

/// Not now, and nothing against the event.
fn retry(reason: String) -> Answer {
    Answer::Retry(Retry::because(reason).uncounted())
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
mod scripted;
#[cfg(test)]
mod tests;
