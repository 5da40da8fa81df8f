//! Statements of transactional handlers, safe behind a pooler.
//!
//! sqlx names what it prepares, and a pooler in transaction mode (PgBouncer) soon shows that name to a
//! server that knows it for something else. These are sent without a name. The same can be had with
//! `.persistent(false)` on what sqlx's own functions give; `sqlx::raw_sql` prepares nothing.

use sqlx::SqlSafeStr;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::{Query, QueryAs, QueryScalar};

/// A statement.
pub fn query<'q>(sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// A statement whose rows are tuples, or a type that derives `FromRow`.
pub fn query_as<'q, O>(sql: impl SqlSafeStr) -> QueryAs<'q, Postgres, O, PgArguments>
where
    O: for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_as(sql).persistent(false)
}

/// A statement whose rows have one column.
pub fn query_scalar<'q, O>(sql: impl SqlSafeStr) -> QueryScalar<'q, Postgres, O, PgArguments>
where
    (O,): for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}
