//! Statements that no pooler can mix up.
//!
//! sqlx names what it prepares, even with its cache switched off, and a pooler in transaction mode soon
//! shows that name to a server that knows it for something else (`42P05`). An unnamed statement is parsed
//! and run within one transaction. All of the store's queries are made here; `sqlx::raw_sql` prepares
//! nothing and is safe by itself.

use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::{Query, QueryAs, QueryScalar};

/// A statement.
pub(super) fn query<'q>(sql: &'static str) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// A statement whose rows are tuples.
pub(super) fn query_as<'q, O>(sql: &'static str) -> QueryAs<'q, Postgres, O, PgArguments>
where
    O: for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_as(sql).persistent(false)
}

/// A statement whose rows have one column.
pub(super) fn query_scalar<'q, O>(sql: &'static str) -> QueryScalar<'q, Postgres, O, PgArguments>
where
    (O,): for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}
