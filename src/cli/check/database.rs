//! Postgres: what protects the connection, what is in between, and whether the connections suffice.

use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::finding::Report;
use super::store::Opened;
use crate::cli::Failure;
use crate::config::{StoreConfig, SubscriptionConfig};
use crate::handler::Registry;
use crate::postgres::{Encryption, Facts, facts};
use crate::store::{DeadLetterFilter, StoreError};

/// How long all questions to the database may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many parked events are tried to be read.
const LETTERS: u32 = 20;

/// Looks at a database that answers; says nothing of SQLite.
pub(super) async fn check(
    config: &StoreConfig,
    opened: &Opened,
    transactional: bool,
    report: &mut Report,
) -> Result<(), Failure> {
    let url = config.url.expose_secret().trim();
    if !url.starts_with("postgres") {
        return Ok(());
    }
    let facts = match facts(url, PATIENCE).await {
        Ok(facts) => facts,
        Err(error) => {
            let why = StoreError::from(error).to_string();
            return report.warning("database", &format!("not looked at: {why}"), None);
        }
    };
    encryption(&facts, report)?;
    pooler(&facts, report)?;
    let workers = opened
        .store
        .workers()
        .await
        .map_or(0, |living| living.len());
    connections(
        &facts,
        config.max_connections,
        transactional,
        workers,
        report,
    )
}

fn encryption(facts: &Facts, report: &mut Report) -> Result<(), Failure> {
    const WHAT: &str = "database encryption";
    const CURE: &str = "Take `sslmode` out of `store.url` (DATABASE_URL), so that TLS is required, or set it to \
                        `verify-full` with `sslrootcert`";
    let of = |version: &Option<String>| version.clone().unwrap_or_else(|| "TLS".to_owned());
    match &facts.encryption {
        Encryption::Socket => report.ok(WHAT, "a socket of this machine"),
        Encryption::Tls {
            verified: true,
            version,
        } => report.ok(
            WHAT,
            &format!("{}, and the certificate is verified", of(version)),
        ),
        Encryption::Tls {
            verified: false,
            version,
        } => {
            let why = format!(
                "{}; the certificate is not verified, for that of a hosted database is often signed by nobody known: \
                 `sslmode=verify-full` with `sslrootcert` in `store.url` verifies it",
                of(version)
            );
            report.ok(WHAT, &why)
        }
        Encryption::None { local: true } => {
            report.ok(WHAT, "none, and the database is on this machine")
        }
        Encryption::None { local: false } => {
            let why =
                "none: positions, parked events and the password cross the network as they are";
            report.warning(WHAT, why, Some(CURE))
        }
        Encryption::Unknown => {
            let why = "asked for, but not required, so it cannot be told whether it is there";
            report.warning(WHAT, why, Some(CURE))
        }
    }
}

fn pooler(facts: &Facts, report: &mut Report) -> Result<(), Failure> {
    let version = &facts.version;
    let why = match facts.pooled {
        true => format!(
            "one in transaction mode, as PgBouncer, before PostgreSQL {version}: nothing here depends on a session, so \
             that is fine"
        ),
        false => format!("none, or one in session mode, before PostgreSQL {version}"),
    };
    report.ok("database pooler", &why)
}

/// What all processes may need, against what there is.
fn connections(
    facts: &Facts,
    max_connections: u32,
    transactional: bool,
    workers: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    const WHAT: &str = "database connections";
    let each = u64::from(max_connections);
    // Transactions of handlers have as many again.
    let of_worker = if transactional { each * 2 } else { each };
    if facts.pooled {
        let why = format!(
            "a worker has up to {of_worker} to the pooler, whose own limits are not seen from here"
        );
        return report.ok(WHAT, &why);
    }
    let count = u64::try_from(workers.max(1)).unwrap_or(u64::MAX);
    // `orgstream web` is one more process.
    let needed = of_worker.saturating_mul(count).saturating_add(each);
    let (limit, by) = facts.limit;
    let left = limit.saturating_sub(facts.others);
    let processes = match count {
        1 => "one worker and `orgstream web`".to_owned(),
        _ => format!("{count} workers and `orgstream web`"),
    };
    let why = format!(
        "{processes} have up to {needed}, and {limit} are allowed by {by}, of which others use {}",
        facts.others
    );
    if needed <= left {
        return report.ok(WHAT, &why);
    }
    let cure = "Lower `store.max_connections` (2 are enough for a few subscriptions), put a pooler in transaction mode \
                before the database, or raise the limit (Heroku Postgres allows 20 with Essential-0 and -1, 40 with \
                Essential-2, 120 with Standard-0)";
    report.warning(WHAT, &why, Some(cure))
}

/// True where a handler writes in transactions of the store's database.
pub(super) fn has_transactional(subscriptions: &[SubscriptionConfig], registry: &Registry) -> bool {
    let mut handlers = subscriptions.iter().flat_map(|one| &one.handlers);
    handlers.any(|config| {
        let built = registry.build(config);
        built.is_ok_and(|handler| handler.transactional().is_some())
    })
}

/// Whether the encryption key, or none, reads what was parked encrypted.
pub(super) async fn encryption_key(
    config: &StoreConfig,
    opened: &Opened,
    report: &mut Report,
) -> Result<(), Failure> {
    const WHAT: &str = "encryption key";
    let filter = DeadLetterFilter {
        state: Some("open".to_owned()),
        limit: LETTERS,
        ..DeadLetterFilter::default()
    };
    let letters = match opened.store.dead_letters(&filter).await {
        Ok(letters) => letters,
        // The tables may not be there yet, which was said.
        Err(error) => return report.ok(WHAT, &format!("not tried: {error}")),
    };
    let unreadable = letters.iter().filter(|letter| letter.unreadable.is_some());
    match (unreadable.count(), &config.encryption_key) {
        (0, Some(_)) => report.ok(WHAT, "set; nothing that is stored contradicts it"),
        (0, None) => report.ok(WHAT, "none, and nothing here needs one"),
        (count, key) => {
            let with = match key {
                Some(_) => "with the key that is set",
                None => "without a key",
            };
            let why = format!(
                "of the {} oldest parked events {count} cannot be read {with}",
                letters.len()
            );
            let cure = "Set `store.encryption_key` (ORGSTREAM_ENCRYPTION_KEY) to the key with which they were parked";
            report.failed(WHAT, &why, Some(cure))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(limit: u64, others: u64) -> Facts {
        Facts {
            version: "17.2".to_owned(),
            encryption: Encryption::Tls {
                verified: false,
                version: None,
            },
            pooled: false,
            limit: (limit, "the user's limit"),
            others,
        }
    }

    fn said(check: impl FnOnce(&mut Report) -> Result<(), Failure>) -> String {
        let mut report = Report::kept();
        assert!(check(&mut report).is_ok());
        report.lines().join("\n")
    }

    #[test]
    fn connections_that_do_not_suffice_are_a_warning_that_names_the_plans() {
        let of = |facts: &Facts, transactional, workers| {
            said(|report| connections(facts, 4, transactional, workers, report))
        };
        // 2 workers and the web process: 12.
        assert!(of(&facts(20, 8), false, 2).starts_with("ok"));
        let text = of(&facts(20, 9), false, 2);
        assert!(text.starts_with("warning"), "{text}");
        for part in [
            "up to 12",
            "20 are allowed by the user's limit",
            "others use 9",
            "Essential-0",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        // Handlers' transactions have as many again.
        assert!(of(&facts(20, 1), true, 2).starts_with("warning"));
        // A pooler's own limits are not these.
        let pooled = Facts {
            pooled: true,
            ..facts(1, 1)
        };
        assert!(of(&pooled, true, 9).starts_with("ok"));
    }

    #[test]
    fn a_connection_over_the_network_without_encryption_is_a_warning() {
        for (encryption_is, level, part) in [
            (Encryption::Socket, "ok", "socket"),
            (Encryption::None { local: true }, "ok", "this machine"),
            (Encryption::None { local: false }, "warning", "sslmode"),
            (Encryption::Unknown, "warning", "sslmode"),
            (
                Encryption::Tls {
                    verified: true,
                    version: Some("TLSv1.3".to_owned()),
                },
                "ok",
                "TLSv1.3, and the certificate is verified",
            ),
            (
                Encryption::Tls {
                    verified: false,
                    version: None,
                },
                "ok",
                "not verified",
            ),
        ] {
            let facts = Facts {
                encryption: encryption_is,
                ..facts(20, 0)
            };
            let text = said(|report| encryption(&facts, report));
            assert!(text.starts_with(level) && text.contains(part), "{text}");
        }
    }
}
