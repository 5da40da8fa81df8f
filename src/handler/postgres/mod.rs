//! The `postgres` handler, mode `append`: each event becomes one row of a table beside the store.

mod append;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use tracing::info;

use super::registry::HandlerConfigError;
use super::transactional::{TIMEOUT, reason_of};
use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Options, Retry, TransactionalHandler};
use crate::config::HandlerConfig;
use crate::telemetry::metrics;
use append::Rows;
use table::Table;

/// The table where none is named.
const TABLE: &str = "orgstream_events";

/// Appends each event as a row to a table in the store's database, exactly once: the rows are committed
/// together with the events' finished marks ([`TransactionalHandler`]).
///
/// Options: `mode`, which is `append`; `table`, with its schema before a dot if need be
/// (`orgstream_events`), created on first use; `timeout` of one transaction (30 s).
///
/// An event that the database cannot hold, because a text of it has the character U+0000, is rejected. Whatever
/// else is wrong, with the connection, with rights or with the table, keeps the events waiting.
#[derive(Debug)]
pub struct PostgresHandler {
    name: String,
    table: Table,
    timeout: Duration,
    /// The table was seen by a transaction.
    seen: AtomicBool,
}

impl PostgresHandler {
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        let mut options = Options::new(config);
        let mode = options.required_text("mode", "\"append\"");
        if mode.as_deref().is_some_and(|mode| mode != "append") {
            options.invalid("mode", "must be \"append\"");
        }
        if options.text("url").is_some() {
            options.invalid(
                "url",
                "cannot be given: rows are written to the store's database, together with the marks that \
                 their events are finished",
            );
        }
        let table = options.text("table").unwrap_or_else(|| TABLE.to_owned());
        let table = Table::parse(&table)
            .map_err(|reason| options.invalid("table", reason))
            .ok();
        let timeout = options.duration("timeout", TIMEOUT);
        let (table, timeout) = options.finish(table.map(|table| (table, timeout)))?;
        Ok(Self {
            name: config.name.clone(),
            table,
            timeout,
            seen: AtomicBool::new(false),
        })
    }

    /// Makes the table where it is missing, then writes; gives how many rows were written.
    async fn append(&self, conn: &mut PgConnection, rows: &Rows<'_>) -> Result<u64, sqlx::Error> {
        if !self.seen.load(Ordering::Relaxed) {
            // One that this transaction makes is seen by the next: it may yet be rolled back.
            let seen = self.table.exists_or_is_made(conn).await?;
            self.seen.store(seen, Ordering::Relaxed);
        }
        rows.insert(conn, &self.table).await
    }

    /// What an error means for the events. The table is the user's: where it differs from what is expected,
    /// no event is to blame.
    fn answer_to(&self, error: &sqlx::Error) -> Answer {
        let code = error.as_database_error().and_then(|error| error.code());
        let code = code.as_deref().unwrap_or_default();
        let (table, why) = (&self.table, reason_of(error));
        let reason = match code {
            // An untranslatable character; a character that the encoding does not have.
            "22P05" | "22021" => {
                let reason = format!(
                    "a text of it has a character that Postgres cannot keep, U+0000 most likely (SQLSTATE {code})"
                );
                return Answer::Reject { reason };
            }
            _ if code.starts_with("22") => return Answer::Reject { reason: why },
            _ if code.starts_with("23") => format!(
                "table {table} has a rule of its own that refuses rows: {why}; take that away, or set `table` \
                 to another name"
            ),
            // Undefined table or schema.
            "42P01" | "3F000" => {
                self.seen.store(false, Ordering::Relaxed);
                format!("{why}: a schema that `table` names has to be there, a table is made anew")
            }
            "42501" => format!(
                "{why}: let the database user of store.url write to table {table}, and where it is missing create \
                 it in its schema"
            ),
            // Columns, their types, or the key are not those of the table that we make.
            "42703" | "42804" | "42846" | "42P10" | "42809" | "428C9" => format!(
                "table {table} is not one that orgstream made: {why}; set `table` to another name, or rename \
                 that one"
            ),
            _ => why,
        };
        Answer::Retry(Retry::because(reason))
    }
}

#[async_trait]
impl TransactionalHandler for PostgresHandler {
    async fn handle(
        &self,
        connection: &mut PgConnection,
        batch: &EventBatch,
    ) -> Result<BatchAnswer, sqlx::Error> {
        let rows = match Rows::of(batch) {
            Ok(rows) => rows,
            Err(reason) => return Ok(BatchAnswer::All(Answer::Reject { reason })),
        };
        let written = match self.append(connection, &rows).await {
            Ok(written) => written,
            Err(error) => return Ok(BatchAnswer::All(self.answer_to(&error))),
        };
        let skipped = (batch.events.len() as u64).saturating_sub(written);
        if skipped > 0 {
            metrics::append_skipped(&batch.subscription, &self.name, skipped);
            info!(
                subscription = &*batch.subscription,
                handler = self.name,
                table = %self.table,
                events = skipped,
                "not appended, because the table has these events already"
            );
        }
        Ok(BatchAnswer::HANDLED)
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 500,
            bytes: 4 << 20,
        }
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes the table, if it is missing, and inserts nothing into it: what is wrong with it shows.
    async fn check(&self, connection: &mut PgConnection) -> Result<(), String> {
        match self.append(connection, &Rows::default()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match self.answer_to(&error) {
                Answer::Retry(retry) => retry.reason,
                Answer::Reject { reason } => reason,
                Answer::Handled => String::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
