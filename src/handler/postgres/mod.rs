//! The `postgres` handler: each event becomes a row (`append`), a row and a notification (`notify`), or a call of a
//! function (`call`); beside the store and exactly once, or in another database.

mod append;
mod call;
mod elsewhere;
mod name;
mod rows;
mod settings;
mod table;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use tracing::info;

use super::registry::HandlerConfigError;
use super::transactional::InTransaction;
use super::{
    Answer, BatchAnswer, BatchLimits, EventBatch, Handler, TransactionalHandler, reason_of,
};
use crate::config::HandlerConfig;
use crate::telemetry::metrics;
use append::Append;
use call::Call;
use elsewhere::Elsewhere;
use rows::Rows;

/// Writes events to Postgres, within a transaction that it is given: in the store's database exactly once, because what
/// it writes is committed together with the events' finished marks ([`TransactionalHandler`]).
///
/// Options: `mode`; `table`, with its schema before a dot if need be (`orgstream_events`), created on first use, and
/// `channel` to notify; or `function`, which is called with an event as `jsonb`, or with `batch` of them as `jsonb[]`, up to
/// `batch_events`; `timeout` of one transaction (30 s). With `database_url`, and `max_connections`, it writes to another
/// database, at least once.
///
/// An event that the database cannot hold, because a text of it has the character U+0000, is rejected, and what a
/// function rejects. Whatever else is wrong, with the connection, with rights, with the table or the function, keeps the
/// events waiting.
#[derive(Debug)]
pub(super) struct PostgresHandler {
    name: String,
    job: Job,
    /// At most so many events in one transaction.
    events: usize,
    timeout: Duration,
}

#[derive(Debug)]
enum Job {
    Append(Append),
    Call(Call),
}

/// Makes the handler that a configuration asks for.
pub(super) fn build(config: &HandlerConfig) -> Result<Arc<dyn Handler>, HandlerConfigError> {
    Ok(match settings::read(config)? {
        (handler, None) => Arc::new(InTransaction(Arc::new(handler))),
        (handler, Some(connections)) => Arc::new(Elsewhere::new(handler, connections)),
    })
}

impl PostgresHandler {
    async fn append(
        &self,
        conn: &mut PgConnection,
        append: &Append,
        batch: &EventBatch,
    ) -> Result<(), Answer> {
        let rows = Rows::of(batch).map_err(|reason| Answer::Reject { reason })?;
        let written = append.run(conn, &rows).await?;
        let skipped = (batch.events.len() as u64).saturating_sub(written);
        if skipped > 0 {
            metrics::append_skipped(&batch.subscription, &self.name, skipped);
            info!(
                subscription = &*batch.subscription,
                handler = self.name,
                table = %append.table(),
                events = skipped,
                "not appended, because the table has these events already"
            );
        }
        Ok(())
    }
}

#[async_trait]
impl TransactionalHandler for PostgresHandler {
    async fn handle(
        &self,
        connection: &mut PgConnection,
        batch: &EventBatch,
    ) -> Result<BatchAnswer, sqlx::Error> {
        let done = match &self.job {
            Job::Append(append) => self.append(connection, append, batch).await,
            Job::Call(call) => call.run(connection, batch).await,
        };
        Ok(BatchAnswer::All(done.err().unwrap_or(Answer::Handled)))
    }

    fn answer_to(&self, error: &sqlx::Error) -> Answer {
        match &self.job {
            Job::Append(append) => append.answer_to(error),
            Job::Call(call) => call.answer_to(error),
        }
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: self.events,
            bytes: 4 << 20,
        }
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes the table, if it is missing, and inserts nothing into it; or looks for the function, and does not call it:
    /// what is wrong shows.
    async fn check(&self, connection: &mut PgConnection) -> Result<(), String> {
        let read_only = super::sql::query_scalar(
            "select pg_catalog.current_setting('transaction_read_only') = 'on'",
        )
        .fetch_one(&mut *connection)
        .await;
        if read_only.map_err(|error| reason_of(&error))? {
            return Err("the database is read-only, a standby perhaps".to_owned());
        }
        match &self.job {
            Job::Append(append) => match append.run(connection, &Rows::default()).await {
                Err(Answer::Retry(retry)) => Err(retry.reason),
                Err(Answer::Reject { reason }) => Err(reason),
                Ok(_) | Err(Answer::Handled) => Ok(()),
            },
            Job::Call(call) => call.look(connection).await,
        }
    }
}

#[cfg(test)]
mod tests;
