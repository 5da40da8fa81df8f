//! Handlers that write into the store's own Postgres: their rows and the events' finished marks are
//! committed together, so that each event is handled exactly once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use sqlx::postgres::PgDatabaseError;

use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Retry};

/// Receives events within a transaction of the store's database.
///
/// What it writes is committed together with the mark that the events are finished, or not at all: after a
/// crash, a lost connection or a change of hands an event whose rows are there is not handed over again,
/// and one that is handed over again has left no rows. Needs a store in Postgres.
///
/// The contract, beyond that of [`Handler`]:
///
/// - **`?` is enough.** An error of a statement rolls everything back, and [`answer_to`](Self::answer_to) says what it
///   means. Where the database refused a value
///   (SQLSTATE classes 22 and 23), or a function of the user's raised `OS001`, the event is to blame: a batch is split
///   until the one is found, and that one is parked. After any other error (no connection, deadlock, time limit,
///   missing right or table) the batch comes again after a pause.
/// - **Answers.** What was written is committed if any event was answered [`Answer::Handled`]; otherwise it is
///   rolled back. Where it answers for each, what it wrote for events that it did not handle is committed
///   with the rest: write nothing for those, or write within a savepoint (`connection.begin()`).
/// - **Not its own commit.** It must not end the transaction.
/// - **Statements** are made with [`sql`](super::sql), else they fail behind PgBouncer.
/// - **Time.** A call takes at most [`timeout`](TransactionalHandler::timeout), and pauses between two
///   statements at most 10 s: others wait for what it locked.
///
/// ```
/// use orgstream::handler::{BatchAnswer, EventBatch, TransactionalHandler, sql};
/// use orgstream::sqlx::{self, PgConnection};
///
/// struct Shipments;
///
/// #[async_trait::async_trait]
/// impl TransactionalHandler for Shipments {
///     async fn handle(
///         &self,
///         connection: &mut PgConnection,
///         batch: &EventBatch,
///     ) -> Result<BatchAnswer, sqlx::Error> {
///         for event in &batch.events {
///             let order = event.cloud_event();
///             sql::query("insert into shipment (id, about) values ($1, $2)")
///                 .bind(event.identity().as_str())
///                 .bind(order.subject())
///                 .execute(&mut *connection)
///                 .await?;
///         }
///         Ok(BatchAnswer::HANDLED)
///     }
/// }
///
/// let mut registry = orgstream::handler::Registry::builtin();
/// registry.register_transactional("shipments", |config| {
///     orgstream::handler::Options::new(config).finish(Some(()))?; // it has no keys of its own
///     Ok(std::sync::Arc::new(Shipments))
/// });
/// ```
#[async_trait]
pub trait TransactionalHandler: Send + Sync {
    /// Handles a batch.
    ///
    /// # Errors
    ///
    /// Those of its statements.
    async fn handle(
        &self,
        connection: &mut PgConnection,
        batch: &EventBatch,
    ) -> Result<BatchAnswer, sqlx::Error>;

    /// What an error means for the events that were written with it: one that [`handle`](Self::handle) gave, or the
    /// commit, where constraints and triggers have their say that are deferred until then. [`answer_to`] where nothing
    /// else is said.
    fn answer_to(&self, error: &sqlx::Error) -> Answer {
        answer_to(error)
    }

    /// How much to hand over in one transaction.
    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 100,
            bytes: 1 << 20,
        }
    }

    /// How long a call may take, commit included; 30 s.
    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    /// Looks whether it could write, for `orgstream check`. What it does in this transaction is rolled back.
    ///
    /// # Errors
    ///
    /// Why it could not, for a person.
    async fn check(&self, _connection: &mut PgConnection) -> Result<(), String> {
        Ok(())
    }
}

/// How long a call may take if nothing is said.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// What a function of the user's raises to reject an event. Postgres has no class `OS`.
pub(super) const REJECT: &str = "OS001";

/// What it raises to have the event again after a pause.
pub(super) const RETRY: &str = "OS002";

/// A sequence is at its end: of class 22, and yet no event is to blame.
const EXHAUSTED: &str = "2200H";

/// A transactional handler among the others.
pub(super) struct InTransaction(pub(super) Arc<dyn TransactionalHandler>);

#[async_trait]
impl Handler for InTransaction {
    /// Only for whoever calls handlers without looking at [`Handler::transactional`].
    async fn handle(&self, _: &EventBatch) -> BatchAnswer {
        BatchAnswer::retry("this handler has to be called within a transaction of the store")
    }

    fn batch_limits(&self) -> BatchLimits {
        self.0.batch_limits()
    }

    fn transactional(&self) -> Option<&dyn TransactionalHandler> {
        Some(&*self.0)
    }
}

/// What an error of a handler's statement means for the events: theirs, or none of theirs.
pub fn answer_to(error: &sqlx::Error) -> Answer {
    answer_with(error, reason_of(error))
}

/// As [`answer_to`], with this reason.
pub(super) fn answer_with(error: &sqlx::Error, reason: String) -> Answer {
    let refused = match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            is_refusal(&code) || code.starts_with("23")
        }
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    if refused {
        Answer::Reject { reason }
    } else {
        Answer::Retry(retry(error, reason))
    }
}

/// A retry after this error; it does not count where no event can be to blame.
pub(super) fn retry(error: &sqlx::Error, reason: String) -> Retry {
    let retry = Retry::because(reason);
    if is_of_database(error) {
        retry.uncounted()
    } else {
        retry
    }
}

/// Whether it is the database that is away, full, or refuses the login, or a function that asked for time: what an event
/// is says nothing about that. One that is slow, or locked, may be so for a certain event.
fn is_of_database(error: &sqlx::Error) -> bool {
    let error = match error {
        sqlx::Error::Database(error) => error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed => return true,
        _ => return false,
    };
    let code = error.code().unwrap_or_default();
    let code = &*code;
    let classes = ["08", "28", "53", "58"];
    classes.iter().any(|class| code.starts_with(class))
        || matches!(
            code,
            RETRY | EXHAUSTED | "25006" | "57P01" | "57P02" | "57P03"
        )
}

/// Whether a SQLSTATE says that a value cannot be, or that a function rejects the event. A violated constraint (class
/// 23) is another matter: whose fault it is depends on whose table it is.
pub(super) fn is_refusal(code: &str) -> bool {
    (code.starts_with("22") && code != EXHAUSTED) || code == REJECT
}

/// An error of a statement for a person: never with what a row holds, nor with the URL and its password.
pub fn reason_of(error: &sqlx::Error) -> String {
    reason(error, has_context(error))
}

/// As [`reason_of`], of a statement that calls a function of the user's. One that the server wrote into the statement,
/// as it may do with `language sql`, is not told of in the error's context, so that only what the server says about
/// itself is shown: connections (08), transactions that stood in each other's way (40), what it has too little of (53),
/// what is not as it has to be (55), an operator (57), its system (58).
pub(super) fn reason_of_call(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let own = code.is_some_and(|code| {
        ["08", "40", "53", "55", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class))
    });
    reason(error, has_context(error) || !own)
}

/// `in_function` says that the message may be that of a function.
fn reason(error: &sqlx::Error, in_function: bool) -> String {
    let error = match error {
        sqlx::Error::Database(error) => error,
        sqlx::Error::Io(error) => return format!("the connection to the database failed: {error}"),
        sqlx::Error::Encode(_) => {
            return "a value cannot be written as the database wants it".into();
        }
        // Decoding errors name a column and a type, no value.
        other => return other.to_string(),
    };
    let code = error.code().unwrap_or_default();
    let constraint = error
        .constraint()
        .map(|name| format!(", constraint {name}"))
        .unwrap_or_default();
    let context = error
        .try_downcast_ref::<PgDatabaseError>()
        .and_then(PgDatabaseError::r#where);
    let place = context
        .and_then(place)
        .map(|place| format!(", in {place}"))
        .unwrap_or_default();
    let what = match &*code {
        "57014" => "a statement took too long and was cancelled",
        "55P03" => "a row stayed locked by another session",
        "40P01" => "it and another session waited for each other (deadlock)",
        "25006" => "the database is read-only, a standby perhaps",
        "53100" => "the disk of the database is full",
        "25P02" => "a statement failed and the handler went on",
        REJECT => "a function of the database rejected it",
        RETRY => "a function of the database asked for it again",
        EXHAUSTED => "a sequence of the database has no number left",
        // What a value, a trigger's or a function's own words may hold is not ours to tell.
        _ if code.starts_with("22") || code.starts_with("23") => "the database refused a value",
        _ if code.starts_with("P0") => "a function of the database raised an error",
        _ if in_function => "a function of the database failed",
        _ => error.message(),
    };
    format!("{what} (SQLSTATE {code}{constraint}{place})")
}

/// Whether the server says in the course of what it came to an error: within a function or a trigger, most likely. Its
/// message may then be somebody's own words.
pub(super) fn has_context(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| error.r#where().is_some())
}

/// The innermost function and line of an error's context. Of these lines alone it is known that they hold names and
/// no values.
fn place(context: &str) -> Option<&str> {
    let line = context
        .lines()
        .find(|line| line.starts_with("PL/pgSQL function "))?;
    Some(
        line.char_indices()
            .nth(200)
            .map_or(line, |(at, _)| &line[..at]),
    )
}

#[cfg(test)]
mod tests {
    use super::{is_refusal, place};

    #[test]
    fn a_sequence_at_its_end_is_no_fault_of_the_event() {
        for code in ["22P02", "22021", "22003", "OS001"] {
            assert!(is_refusal(code), "{code}");
        }
        for code in ["2200H", "23505", "42P01", "OS002"] {
            assert!(!is_refusal(code), "{code}");
        }
    }

    #[test]
    fn of_an_errors_context_only_the_place_in_a_function_is_told() {
        let context = "SQL statement \"insert into t values ('hidden')\"\n\
                       PL/pgSQL function inner(jsonb) line 3 at EXECUTE\n\
                       PL/pgSQL function outer(jsonb) line 5 at PERFORM";
        assert_eq!(
            place(context),
            Some("PL/pgSQL function inner(jsonb) line 3 at EXECUTE")
        );
        assert_eq!(place("JSON data, line 1: hidden"), None);
        let long = format!("PL/pgSQL function {}", "é".repeat(500));
        assert_eq!(place(&long).map(|place| place.chars().count()), Some(200));
    }
}
