//! The modes `append` and `notify`: events as rows, and notifications of them.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::PgConnection;

use super::rows::Rows;
use super::table::Table;
use super::trouble::{Side, character};
use crate::handler::transactional::{has_context, is_refusal, retry};
use crate::handler::{Answer, reason_of};

/// Appends each event to a table, and may notify of it.
#[derive(Debug)]
pub(super) struct Append {
    table: Table,
    /// The channel to notify.
    channel: Option<String>,
    side: Side,
    /// The table was seen by a transaction.
    seen: AtomicBool,
}

impl Append {
    pub(super) fn new(table: Table, channel: Option<String>, side: Side) -> Self {
        Self {
            table,
            channel,
            side,
            seen: AtomicBool::new(false),
        }
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Makes the table where it is missing, then writes; gives how many rows were written. Without rows, it shows what
    /// is wrong with the table.
    ///
    /// # Errors
    ///
    /// What it means for the events.
    pub(super) async fn run(
        &self,
        conn: &mut PgConnection,
        rows: &Rows<'_>,
    ) -> Result<u64, Answer> {
        let written = self.write(conn, rows).await;
        written.map_err(|error| self.answer_to(&error))
    }

    async fn write(&self, conn: &mut PgConnection, rows: &Rows<'_>) -> Result<u64, sqlx::Error> {
        if !self.seen.load(Ordering::Relaxed) {
            // One that this transaction makes is seen by the next: it may yet be rolled back.
            let seen = self.table.exists_or_is_made(conn).await?;
            self.seen.store(seen, Ordering::Relaxed);
        }
        rows.insert(conn, &self.table, self.channel.as_deref())
            .await
    }

    /// What an error means for the events. The table is the user's: where it differs from what is expected,
    /// no event is to blame.
    pub(super) fn answer_to(&self, error: &sqlx::Error) -> Answer {
        let code = error.as_database_error().and_then(|error| error.code());
        let code = code.as_deref().unwrap_or_default();
        if let Some(rejected) = character(code) {
            return rejected;
        }
        let (table, why) = (&self.table, reason_of(error));
        let reason = match code {
            _ if is_refusal(code) => return Answer::Reject { reason: why },
            _ if code.starts_with("23") => format!(
                "table {table} has a rule of its own that refuses rows: {why}; take that away, or set `table` \
                 to another name"
            ),
            // A trigger of the table's, most likely.
            _ if has_context(error) => why,
            // Undefined table or schema.
            "42P01" | "3F000" => {
                self.seen.store(false, Ordering::Relaxed);
                format!("{why}: a schema that `table` names has to be there, a table is made anew")
            }
            "42501" => format!(
                "{why}: let the database user of {} write to table {table}, and where it is missing create \
                 it in its schema",
                self.side.key()
            ),
            // Columns, their types, or the key are not those of the table that we make.
            "42703" | "42804" | "42846" | "42P10" | "42809" | "428C9" => format!(
                "table {table} is not one that orgstream made: {why}; set `table` to another name, or rename \
                 that one"
            ),
            _ => why,
        };
        Answer::Retry(retry(error, reason))
    }
}
