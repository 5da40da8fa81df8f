//! The handler's keys.

use std::time::Duration;

use super::append::Append;
use super::call::Call;
use super::name::{self, Name};
use super::table::Table;
use super::trouble::Side;
use super::{Job, PostgresHandler};
use crate::config::HandlerConfig;
use crate::handler::transactional::TIMEOUT;
use crate::handler::{HandlerConfigError, Options};
use crate::postgres::Connections;

/// The table where none is named, and the channel.
const TABLE: &str = "orgstream_events";

/// What `mode` may be.
const MODES: &str = "\"append\", \"call\" or \"notify\"";

/// Rows of one statement.
const ROWS: usize = 500;

/// Calls with `batch = true` get so many events where nothing is said.
const BATCH_EVENTS: i64 = 100;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Append,
    Call,
    Notify,
}

/// The handler, and the connections to its database where that is not the store's.
pub(super) fn read(
    config: &HandlerConfig,
) -> Result<(PostgresHandler, Option<Connections>), HandlerConfigError> {
    let mut options = Options::new(config);
    let mode = mode(&mut options);
    let timeout = options.duration("timeout", TIMEOUT);
    let side = match options.has("database_url") {
        true => Side::Elsewhere,
        false => Side::Store,
    };
    let connections = connections(&mut options, timeout);
    let table = table(&mut options);
    let channel = channel(&mut options);
    let (function, batch, batch_events) = function(&mut options, mode);
    for (key, modes, names) in [
        (
            "table",
            &[Mode::Append, Mode::Notify] as &[Mode],
            "append and notify",
        ),
        ("channel", &[Mode::Notify], "notify"),
        ("function", &[Mode::Call], "call"),
        ("batch", &[Mode::Call], "call"),
        ("batch_events", &[Mode::Call], "call"),
    ] {
        if options.has(key) && mode.is_some_and(|mode| !modes.contains(&mode)) {
            options.invalid(key, format!("goes with mode {names}"));
        }
    }
    let job = mode.and_then(|mode| {
        Some(match mode {
            Mode::Append => (Job::Append(Append::new(table?, None, side)), ROWS),
            Mode::Notify => (Job::Append(Append::new(table?, Some(channel?), side)), ROWS),
            Mode::Call => (Job::Call(Call::new(function?, batch, side)), batch_events),
        })
    });
    let (job, events) = options.finish(job)?;
    let handler = PostgresHandler {
        name: config.name.clone(),
        job,
        events,
        timeout,
    };
    Ok((handler, connections))
}

fn mode(options: &mut Options<'_>) -> Option<Mode> {
    match options.required_text("mode", MODES)?.as_str() {
        "append" => Some(Mode::Append),
        "call" => Some(Mode::Call),
        "notify" => Some(Mode::Notify),
        _ => {
            options.invalid("mode", format!("must be {MODES}"));
            None
        }
    }
}

/// Connections to a database of the handler's own; none where it has none, or where something is wrong with it, which
/// is noted then.
fn connections(options: &mut Options<'_>, timeout: Duration) -> Option<Connections> {
    let max = options.integer("max_connections", 4, 1..=100);
    let url = options.text("database_url");
    if url.is_none() && options.has("max_connections") {
        options.invalid(
            "max_connections",
            "goes with `database_url`; of connections to the store's database `store.max_connections` decides",
        );
    }
    if options.is_blank("database_url") {
        // A variable that is empty must not lead events into another database.
        let reason =
            "is blank: give it an address, or leave it out to write to the store's database";
        options.invalid("database_url", reason);
    }
    let url = url?;
    let url = url.trim();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        options.invalid(
            "database_url",
            "must be postgres://USER:PASSWORD@HOST:PORT/DATABASE; without it, the store's database is written to",
        );
        return None;
    }
    let max = u32::try_from(max).unwrap_or(1);
    Connections::new(url, max, timeout)
        .map_err(|error| {
            let why = match error {
                sqlx::Error::Configuration(why) => why.to_string(),
                other => other.to_string(),
            };
            options.invalid("database_url", format!("cannot be used: {why}"));
        })
        .ok()
}

fn table(options: &mut Options<'_>) -> Option<Table> {
    let table = options.text("table").unwrap_or_else(|| TABLE.to_owned());
    Name::parse(&table, "table")
        .map_err(|reason| options.invalid("table", reason))
        .ok()
        .map(Table)
}

fn channel(options: &mut Options<'_>) -> Option<String> {
    let channel = options.text("channel").unwrap_or_else(|| TABLE.to_owned());
    name::channel(channel)
        .map_err(|reason| options.invalid("channel", reason))
        .ok()
}

/// The function, whether it takes a batch, and how many events one transaction has.
fn function(options: &mut Options<'_>, mode: Option<Mode>) -> (Option<Name>, bool, usize) {
    let function = match mode {
        Some(Mode::Call) => {
            options.required_text("function", "the name of a function, as \"schema.name\"")
        }
        _ => options.text("function"),
    };
    let batch = options.boolean("batch", false);
    let default = if batch { BATCH_EVENTS } else { 1 };
    let events = options.integer("batch_events", default, 1..=1000);
    let function = function.and_then(|function| {
        Name::parse(&function, "function")
            .map_err(|reason| options.invalid("function", reason))
            .ok()
    });
    (function, batch, usize::try_from(events).unwrap_or(1))
}
