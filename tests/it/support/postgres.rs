//! A database for each test, in the Postgres that `scripts/test` starts.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// Makes a database and gives its URL; `None`, with a line that says so, where there is no Postgres.
pub(crate) async fn database() -> Option<String> {
    let Ok(url) = std::env::var("ORGSTREAM_TEST_POSTGRES") else {
        assert!(
            std::env::var_os("ORGSTREAM_REQUIRE_POSTGRES").is_none(),
            "ORGSTREAM_TEST_POSTGRES is not set: run scripts/test"
        );
        println!("skipped: no Postgres (run scripts/test, which brings one)");
        return None;
    };
    let name = format!("it_{}", uuid::Uuid::new_v4().simple());
    let options: PgConnectOptions = url.parse().unwrap();
    let mut connection: PgConnection = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let (base, _) = url.rsplit_once('/').unwrap();
    Some(format!("{base}/{name}"))
}

/// As [`database`], with the URL of a pooler in transaction mode before it as the second; `None` where there
/// is no PgBouncer.
pub(crate) async fn pooled_database() -> Option<(String, String)> {
    let Ok(pooler) = std::env::var("ORGSTREAM_TEST_PGBOUNCER") else {
        assert!(
            std::env::var_os("ORGSTREAM_REQUIRE_PGBOUNCER").is_none(),
            "ORGSTREAM_TEST_PGBOUNCER is not set: run scripts/test"
        );
        println!("skipped: no PgBouncer");
        return None;
    };
    let direct = database().await?;
    let (_, name) = direct.rsplit_once('/').unwrap();
    let (base, _) = pooler.rsplit_once('/').unwrap();
    let pooled = format!("{base}/{name}");
    Some((direct, pooled))
}
