//! The embedded migrations and what decides which of them are due.
//!
//! A migration is applied once, whole or not at all, and never changes afterwards. Each must be safe
//! while the previous release still runs: add, do not take away.

use aws_lc_rs::digest;

use super::StoreError;

/// One step of the store's schema.
#[derive(Debug)]
pub(super) struct Migration {
    /// Its number, counted from 1.
    pub(super) version: i64,
    /// What it is for, in a word.
    pub(super) name: &'static str,
    /// Statements, run together in one transaction.
    pub(super) sql: &'static str,
}

impl Migration {
    /// Hexadecimal SHA-256 of its statements, kept to find a migration that was changed after it ran.
    pub(super) fn checksum(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, self.sql.as_bytes()))
    }
}

/// For Postgres, in order.
pub(super) const POSTGRES: &[Migration] = &[
    Migration {
        version: 1,
        name: "begin",
        sql: include_str!("../../migrations/postgres/0001_begin.sql"),
    },
    Migration {
        version: 2,
        name: "lease",
        sql: include_str!("../../migrations/postgres/0002_lease.sql"),
    },
    Migration {
        version: 3,
        name: "indexes",
        sql: include_str!("../../migrations/postgres/0003_indexes.sql"),
    },
    Migration {
        version: 4,
        name: "observe",
        sql: include_str!("../../migrations/postgres/0004_observe.sql"),
    },
    Migration {
        version: 5,
        name: "marks",
        sql: include_str!("../../migrations/postgres/0005_marks.sql"),
    },
];

/// For SQLite, in order; the same numbers.
#[cfg(feature = "sqlite")]
pub(super) const SQLITE: &[Migration] = &[
    Migration {
        version: 1,
        name: "begin",
        sql: include_str!("../../migrations/sqlite/0001_begin.sql"),
    },
    Migration {
        version: 2,
        name: "lease",
        sql: include_str!("../../migrations/sqlite/0002_lease.sql"),
    },
    Migration {
        version: 3,
        name: "indexes",
        sql: include_str!("../../migrations/sqlite/0003_indexes.sql"),
    },
    Migration {
        version: 4,
        name: "observe",
        sql: include_str!("../../migrations/sqlite/0004_observe.sql"),
    },
    Migration {
        version: 5,
        name: "marks",
        sql: include_str!("../../migrations/sqlite/0005_marks.sql"),
    },
];

/// Which of `all` are due where `applied` (version and checksum) ran. Versions that only a newer release
/// knows are none of our business: the previous release runs on while the next one migrates.
pub(super) fn due(
    all: &'static [Migration],
    applied: &[(i64, String)],
) -> Result<Vec<&'static Migration>, StoreError> {
    let mut due = Vec::new();
    for migration in all {
        match applied.iter().find(|(v, _)| *v == migration.version) {
            None => due.push(migration),
            Some((_, checksum)) if *checksum == migration.checksum() => {}
            Some(_) => {
                return Err(StoreError::NotMigrated(format!(
                    "migration {} (`{}`) was applied in another wording than this release has: the \
                     database was migrated by an unreleased build; use another database, or restore one \
                     from before",
                    migration.version, migration.name
                )));
            }
        }
    }
    Ok(due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_a_gap() {
        let versions = |all: &[Migration]| all.iter().map(|m| m.version).collect::<Vec<_>>();
        let expected: Vec<i64> = (1..).take(POSTGRES.len()).collect();
        assert_eq!(versions(POSTGRES), expected);
        #[cfg(feature = "sqlite")]
        assert_eq!(versions(SQLITE), expected);
    }

    #[test]
    fn what_was_applied_is_not_due_and_a_newer_releases_migration_is_ignored() {
        let mut applied: Vec<_> = POSTGRES.iter().map(|m| (m.version, m.checksum())).collect();
        applied.push((99, "future".to_owned()));
        assert!(due(POSTGRES, &applied).unwrap().is_empty());
        assert_eq!(due(POSTGRES, &[]).unwrap().len(), POSTGRES.len());
    }

    #[test]
    fn a_migration_that_changed_after_it_ran_is_refused() {
        let error = due(POSTGRES, &[(1, "other".to_owned())]).unwrap_err();
        assert!(matches!(error, StoreError::NotMigrated(_)));
    }
}
