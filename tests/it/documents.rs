//! Documents point at what is there, and what they say of rights in Postgres is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::support::daemon::project;
use crate::support::postgres;

fn markdown() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [".", "docs", "examples/handlers", "examples/sql"] {
        let entries = fs::read_dir(project().join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    found
}

/// Text without blocks of code, whose brackets are no links and whose `#` is no heading.
fn prose(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("```").step_by(2).collect()
}

/// Anchors of a document's headings, as GitHub makes them.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = prose(path);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    headings
        .map(|heading| {
            let words = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = words
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 {
                anchor
            } else {
                format!("{anchor}-{}", *count - 1)
            }
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for document in markdown() {
        for piece in prose(&document).split("](").skip(1) {
            let target = piece.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => document.clone(),
                _ => document.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{}: {target}", document.display());
            if !anchor.is_empty() {
                let known = anchors(&path);
                assert!(known.contains(anchor), "{}: {target}", document.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

/// Whoever reads the README finds each document.
#[test]
fn every_document_is_reached_from_the_readme() {
    let readme = prose(&project().join("README.md"));
    for entry in fs::read_dir(project().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(
            readme.contains(&format!("](docs/{name}")),
            "README.md does not link {name}"
        );
    }
}

/// Runs our program against a database; gives its exit code and what it said.
fn orgstream(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_orgstream"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("ORGSTREAM_TOPICS", "Account")
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code(), said)
}

/// The SQL of docs/SECURITY.md, with roles and a database of the test's own.
#[tokio::test]
async fn the_roles_that_are_told_of_may_do_what_they_are_for() {
    let Some(url) = postgres::database().await else {
        return;
    };
    let text = fs::read_to_string(project().join("docs/SECURITY.md")).unwrap();
    let blocks: Vec<&str> = text
        .split("```sql\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let [owner_sql, runner_sql] = blocks[..] else {
        panic!("{} blocks of SQL", blocks.len());
    };
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let (owner, runner) = (format!("o_{suffix}"), format!("r_{suffix}"));
    let of_the_test = |sql: &str| {
        sql.replace("orgstream_run", &runner)
            .replace("role orgstream ", &format!("role {owner} "))
            .replace(
                "authorization orgstream;",
                &format!("authorization {owner};"),
            )
            .replace('…', "secret")
    };
    let options: PgConnectOptions = url.parse().unwrap();
    let mut admin: PgConnection = options.connect().await.unwrap();
    let with = |user: &str| {
        let (scheme, rest) = url.split_once("://").unwrap();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        format!("{scheme}://{user}:secret@{host}")
    };
    sqlx::raw_sql(AssertSqlSafe(of_the_test(owner_sql)))
        .execute(&mut admin)
        .await
        .unwrap();
    let (code, said) = orgstream(&with(&owner), &["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = orgstream(&with(&owner), &["status"]);
    // No worker is alive, and there is no subscription yet: nothing needs a person.
    assert_eq!(code, Some(0), "{said}");

    sqlx::raw_sql(AssertSqlSafe(of_the_test(runner_sql)))
        .execute(&mut admin)
        .await
        .unwrap();
    // What is up to date needs no right to change tables.
    for arguments in [&["migrate"][..], &["status"], &["holes", "ack", "--all"]] {
        let (code, said) = orgstream(&with(&runner), arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables where table_schema = 'orgstream'",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert!(tables.len() > 8, "{tables:?}");
    let mut connection: PgConnection = with(&runner)
        .parse::<PgConnectOptions>()
        .unwrap()
        .connect()
        .await
        .unwrap();
    for table in tables {
        for right in ["select", "insert", "update", "delete"] {
            let may: bool = sqlx::query_scalar("select has_table_privilege($1, $2)")
                .bind(format!("orgstream.{table}"))
                .bind(right)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert!(may, "{right} on {table}");
        }
    }
    let may_create: bool = sqlx::query_scalar("select has_schema_privilege('orgstream', 'create')")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!may_create);
}
