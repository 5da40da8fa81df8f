//! The mode `call`: events go to a function of the user's.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::name::{Name, quoted};
use super::trouble::{Side, character};
use crate::handler::transactional::{answer_with, has_context, reason_of_call};
use crate::handler::{Answer, EventBatch, Retry, reason_of, sql};

/// Calls a function with each event, or with all of a batch.
#[derive(Debug)]
pub(super) struct Call {
    function: Name,
    /// Called with `jsonb[]` rather than `jsonb`.
    batch: bool,
    side: Side,
    statement: String,
    /// A transaction found the function, and that we may call it.
    seen: AtomicBool,
}

impl Call {
    pub(super) fn new(function: Name, batch: bool, side: Side) -> Self {
        let statement = statement(&function, batch);
        Self {
            function,
            batch,
            side,
            statement,
            seen: AtomicBool::new(false),
        }
    }

    /// Calls the function, in the order of the events.
    ///
    /// # Errors
    ///
    /// What it means for the events.
    pub(super) async fn run(
        &self,
        conn: &mut PgConnection,
        batch: &EventBatch,
    ) -> Result<(), Answer> {
        let events = texts(batch).map_err(|reason| Answer::Reject { reason })?;
        if !self.seen.load(Ordering::Relaxed) {
            let looked = self.look(conn).await;
            looked.map_err(|why| Answer::Retry(Retry::because(why)))?;
            self.seen.store(true, Ordering::Relaxed);
        }
        let called = self.call(conn, &events, &batch.subscription).await;
        called.map_err(|error| self.answer_to(&error))
    }

    /// Looks whether the function is there and may be called; it is not called. The transaction stays usable.
    ///
    /// # Errors
    ///
    /// Why not, with the cure.
    pub(super) async fn look(&self, conn: &mut PgConnection) -> Result<(), String> {
        let mut savepoint = conn.begin().await.map_err(|error| reason_of(&error))?;
        let looked = self.call(&mut savepoint, &[], "").await;
        let ended = savepoint.rollback().await;
        let Err(error) = looked else {
            return ended.map_err(|error| reason_of(&error));
        };
        let others = match (code(&error).as_str(), ended) {
            ("42883", Ok(())) => self.others(conn).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        Err(self
            .unfit(&error, &others)
            .unwrap_or_else(|| reason_of_call(&error)))
    }

    /// Without events no function is called, and yet the server looks for it and at our right to call it.
    async fn call(
        &self,
        conn: &mut PgConnection,
        events: &[String],
        subscription: &str,
    ) -> Result<(), sqlx::Error> {
        // The function's name is quoted, and all else is ours.
        sql::query(AssertSqlSafe(self.statement.clone()))
            .bind(events)
            .bind(subscription)
            .execute(conn)
            .await?;
        Ok(())
    }

    /// The arguments of the functions of that name.
    async fn others(&self, conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
        sql::query_scalar(
            "select pg_catalog.pg_get_function_identity_arguments(p.oid) from pg_catalog.pg_proc p \
             join pg_catalog.pg_namespace n on n.oid = p.pronamespace where p.proname = $2 \
             and case when $1::text is null then pg_catalog.pg_function_is_visible(p.oid) \
                      else n.nspname = $1 end order by 1 limit 3",
        )
        .bind(self.function.schema.as_deref())
        .bind(&self.function.name)
        .fetch_all(conn)
        .await
    }

    /// What an error means for the events.
    pub(super) fn answer_to(&self, error: &sqlx::Error) -> Answer {
        let code = code(error);
        if let Some(rejected) = character(&code) {
            return rejected;
        }
        if let Some(why) = self.unfit(error, &[]) {
            // The next attempt looks more closely.
            self.seen.store(false, Ordering::Relaxed);
            return Answer::Retry(Retry::because(why));
        }
        if code == "57014" {
            let why = reason_of_call(error);
            return Answer::Retry(Retry::because(format!(
                "{why}: the function has to be quicker, or `batch_events` lower"
            )));
        }
        answer_with(error, reason_of_call(error))
    }

    /// Why the function cannot be called at all, and the cure, where that is what the error says; `others` are the
    /// arguments of functions of the same name. What goes wrong within the function is not meant.
    fn unfit(&self, error: &sqlx::Error, others: &[String]) -> Option<String> {
        if has_context(error) {
            return None;
        }
        let (function, key) = (&self.function, self.side.key());
        let (argument, kind) = self.argument();
        let make = format!(
            "create function {function}({argument} {kind}) returns void language plpgsql as $$ begin … end $$"
        );
        let schema = self.function.schema.as_deref().map(quoted);
        let schema = schema.as_deref();
        let why = match code(error).as_str() {
            "42883" if others.is_empty() => {
                let whereabouts = schema.map_or(" in the search_path of our user", |_| "");
                format!("there is no function {function}{whereabouts}: {make}")
            }
            "42883" => {
                let other_form = if self.batch { "jsonb" } else { "jsonb[]" };
                let takes = |others: &[String]| {
                    let words = |one: &String| one.split(' ').any(|word| word == other_form);
                    others.iter().any(words)
                };
                let switch = match takes(others) {
                    true => format!("set `batch = {}`, or ", !self.batch),
                    false => String::new(),
                };
                format!(
                    "function {function} takes ({}), and has to take ({kind}): {switch}{make}",
                    others.join("), (")
                )
            }
            "3F000" => format!(
                "there is no schema {}: create schema {0}; {make}",
                schema.unwrap_or_default()
            ),
            "42501" => {
                let usage = schema
                    .map(|schema| format!("grant usage on schema {schema} to …; "))
                    .unwrap_or_default();
                format!(
                    "function {function} may not be called: {usage}grant execute on function {function}({kind}) to …, \
                     the database user of {key}"
                )
            }
            "42725" => format!(
                "several functions {function} would take what we give: have one that takes ({kind})"
            ),
            "42809" => format!("{function} is no plain function: {make}"),
            _ => return None,
        };
        Some(format!("{why} (SQLSTATE {})", code(error)))
    }

    /// Name and type of the function's argument.
    fn argument(&self) -> (&'static str, &'static str) {
        match self.batch {
            true => ("events", "jsonb[]"),
            false => ("event", "jsonb"),
        }
    }
}

/// Calls `function` with the events `$1`, which came through the subscription `$2`: with one after the other, or with
/// all at once, but not with none.
fn statement(function: &Name, batch: bool) -> String {
    const EVENT: &str = "e.event::jsonb || pg_catalog.jsonb_build_object('subscription', $2::text)";
    const EVENTS: &str = "from pg_catalog.unnest($1::text[]) with ordinality as e (event, place)";
    match batch {
        true => format!(
            "select {function}(pg_catalog.array_agg({EVENT} order by e.place)) {EVENTS} \
             having pg_catalog.count(*) > 0"
        ),
        // What may have effects is worked out after the sorting.
        false => format!("select {function}({EVENT}) {EVENTS} order by e.place"),
    }
}

/// The CloudEvents of a batch.
fn texts(batch: &EventBatch) -> Result<Vec<String>, String> {
    let text = |json: Vec<u8>| String::from_utf8(json).map_err(|error| error.to_string());
    let texts = (batch.events.iter()).map(|event| text(event.cloud_event().to_json()));
    texts
        .collect::<Result<_, _>>()
        .map_err(|why| format!("cannot be written as CloudEvents JSON: {why}"))
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_is_called_with_one_event_or_all_of_a_batch() {
        let name = Name::parse("crm.On Event", "function");
        assert!(name.is_err(), "a blank is no part of a name here");
        let name = Name::parse("crm.OnEvent", "function").unwrap();
        let one = statement(&name, false);
        assert!(
            one.starts_with("select \"crm\".\"OnEvent\"(e.event::jsonb"),
            "{one}"
        );
        let all = statement(&name, true);
        assert!(
            all.starts_with("select \"crm\".\"OnEvent\"(pg_catalog.array_agg("),
            "{all}"
        );
    }
}
