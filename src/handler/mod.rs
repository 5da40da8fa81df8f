//! What receives events: the [`Handler`] trait, the registry of types, and the built-in handlers.

mod exec;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod kafka;
mod log;
#[cfg(feature = "nats")]
mod nats;
mod options;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod registry;
mod retry_after;
pub mod sql;
mod template;
#[cfg(test)]
mod testing;
mod tls_client;
#[cfg(any(feature = "nats", feature = "redis"))]
mod tls_options;
mod transactional;
mod webhook;
mod written;

use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;

/// What an `impl Handler` is written with.
pub use async_trait::async_trait;
pub use log::{LineSink, LogHandler};
pub use options::{OptionProblem, Options};
pub use registry::{HandlerConfigError, Registry};
pub use template::Template;
pub use transactional::{TransactionalHandler, answer_to, reason_of};

/// Events handed over together, in bus order.
///
/// All of them belong to records that no other call of the same handler holds at that time. With
/// `group = "transaction"` they are all the events of one transaction, or of a part of it where they say so
/// ([`Event::partial`]), or events each of which is a transaction by itself.
#[derive(Debug, Clone)]
pub struct EventBatch {
    /// Name of the subscription they came through. With it and the event's identity an event is unique
    /// wherever several subscriptions meet.
    pub subscription: Arc<str>,
    /// At least one.
    pub events: Vec<Arc<Event>>,
    /// True where all of them are in one order (`ordering = "strict"`), and not only those of one record.
    pub strict: bool,
}

/// A handler's answer for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, durably: it is never handed to this handler again.
    Handled,
    /// Not now: hand it over again after a pause. Counts against the event only where others succeed meanwhile, and
    /// then not always: see [`Retry::counts`].
    Retry(Retry),
    /// Never: this event is bad in itself, and is parked.
    Reject {
        /// Why, for a person to read; without payload or secrets.
        reason: String,
    },
}

/// Why a handler wants an event again. Made with [`Retry::because`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Why, for a person to read; without payload or secrets.
    pub reason: String,
    /// The least pause, where the other side named one (`Retry-After`).
    pub after: Option<Duration>,
    /// Whether the attempt counts towards `retry.attempts`, where other events succeed meanwhile. Not one that is
    /// surely the far side's fault, or that was never made.
    pub counts: bool,
}

impl Retry {
    /// A retry after the subscription's own back-off.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            after: None,
            counts: true,
        }
    }

    /// The same, after this pause at least, of which an hour is kept.
    #[must_use]
    pub fn after(self, pause: Duration) -> Self {
        Self {
            after: Some(pause),
            ..self
        }
    }

    /// The same, not counting against the event whatever becomes of others: it was not attempted, because one before it
    /// was not handled, or the far side is to blame for certain, such as one of its partitions. `retry.total` still
    /// ends it.
    #[must_use]
    pub fn uncounted(self) -> Self {
        Self {
            counts: false,
            ..self
        }
    }
}

/// A handler's answer for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchAnswer {
    /// The same for all.
    All(Answer),
    /// One for each event, in the batch's order. A list of another length is taken as a retry of the
    /// whole batch. A handler that handles an event and wants an earlier one of the same record again, or refuses
    /// it, gives that record's order up: what is refused is parked, what follows it has to park behind it, and a person
    /// may have it tried again. So stop at the first that is not handled, at least of its record, and give
    /// [`Retry::uncounted`] for the rest. The events of a transaction that came together share the worst answer that
    /// one of them got.
    Each(Vec<Answer>),
}

impl BatchAnswer {
    /// All handled.
    pub const HANDLED: Self = Self::All(Answer::Handled);

    /// The whole batch again, after a pause.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::All(Answer::Retry(Retry::because(reason)))
    }
}

/// How much a handler wants in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Events, at least 1.
    pub events: usize,
    /// Bytes of payload; one event is handed over however large it is.
    pub bytes: usize,
}

/// Receives events.
///
/// The contract:
///
/// - **At least once.** After a crash or a lost connection an event may come again, with the same
///   identity (the CloudEvents `id`). What was answered [`Answer::Handled`] comes again only if the
///   process died before it was recorded.
/// - **Order.** First hand-overs of one record follow bus order. With `concurrency` above 1, calls for
///   different records run at the same time.
/// - **Acknowledge late.** Answer `Handled` only when the other side has the event durably.
/// - **Cancellation.** A call may be dropped at any await when the process is told to stop at once.
/// - A panic is taken as a retry.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Handles a batch.
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer;

    /// How much to hand over in one call.
    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 1,
            bytes: 1 << 20,
        }
    }

    /// True where it hands on events' bytes as received ([`Event::payload`]). With `fields` in its configuration,
    /// which hide a part of them, that is an error: then there are none.
    fn takes_payload(&self) -> bool {
        false
    }

    /// Looks whether the other side can be reached and would accept events, without sending one. Used
    /// by `orgstream check`.
    async fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Gives up what it holds at the other side: the process ends, and [`Handler::handle`] is not called any
    /// more. Dropped where it takes longer than `limit`, which is a few seconds at least. A handler without
    /// anything to give up in order, such as connections that simply end, needs none.
    async fn close(&self, _limit: Duration) {}

    /// The form in which it takes events within a transaction of the store, where it is of that kind
    /// ([`Registry::register_transactional`]): then that form is called, and [`Handler::handle`] never.
    fn transactional(&self) -> Option<&dyn TransactionalHandler> {
        None
    }
}
