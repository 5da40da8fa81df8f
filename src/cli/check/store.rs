//! The store: whether it opens, has its tables, and belongs to this org and these subscriptions.

use std::sync::Arc;
use std::time::SystemTime;

use secrecy::ExposeSecret as _;

use super::finding::Report;
use crate::cli::Failure;
use crate::config::{SalesforceConfig, StoreConfig, SubscriptionConfig, masked_url};
use crate::event::{OrgId, rfc3339};
use crate::status::{Bus, Overview};
use crate::store::{self, Store, StoreError, SubscriptionStatus};

const WHAT: &str = "store";

/// A store that answers.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    /// Its tables are there.
    pub(super) ready: bool,
}

/// Opens it and looks at its tables; `None` where it does not answer.
pub(super) async fn open(
    config: &StoreConfig,
    report: &mut Report,
) -> Result<Option<Opened>, Failure> {
    let url = masked_url(config.url.expose_secret().trim());
    let opened = async {
        let store = store::open(config).await?;
        let pending = store.pending_migrations().await?;
        Ok::<_, StoreError>((store, pending))
    };
    match opened.await {
        Ok((store, pending)) => {
            let ready = pending.is_empty();
            if ready {
                report.ok(WHAT, &format!("{url}, tables up to date"))?;
            } else {
                let why = format!("{url} answers; its tables are missing or of an older version");
                let cure = "Run `orgstream migrate`; `orgstream run` does it too";
                report.warning(WHAT, &why, Some(cure))?;
            }
            Ok(Some(Opened { store, ready }))
        }
        Err(error) => {
            report.failed(WHAT, &format!("{url}: {error}"), cure(&error))?;
            Ok(None)
        }
    }
}

/// What to do about a store that does not open. Where TLS is in the way, the error says it.
fn cure(error: &StoreError) -> Option<&'static str> {
    let StoreError::Unavailable(why) = error else {
        return None;
    };
    // PgBouncer's words.
    if why.contains("statement pooling") {
        return Some(
            "Set `pool_mode = transaction` (or `session`) for this database in the pooler: in statement mode there are \
             no transactions",
        );
    }
    Some(
        "See that the database runs and that `store.url` (DATABASE_URL) is right; `run` waits for it \
         and begins by itself",
    )
}

/// Compares what the store holds with the org signed in to and the subscriptions configured.
pub(super) async fn positions(
    opened: &Opened,
    (org_id, salesforce): (&OrgId, &SalesforceConfig),
    configured: &[SubscriptionConfig],
    report: &mut Report,
) -> Result<(), Failure> {
    if !opened.ready || configured.is_empty() {
        return Ok(());
    }
    const WHAT: &str = "positions";
    let found = async {
        let bound = opened.store.bound_org().await?;
        Ok::<_, StoreError>((bound, opened.store.subscriptions().await?))
    };
    let (bound, stored) = match found.await {
        Ok(found) => found,
        Err(error) => return report.failed(WHAT, &error.to_string(), None),
    };
    if let Some(stored) = bound.filter(|bound| bound != org_id) {
        let other = StoreError::OtherOrg {
            stored,
            given: org_id.clone(),
        };
        return report.failed(WHAT, &other.to_string(), None);
    }
    let faults = faults(&stored, configured);
    for fault in &faults {
        report.failed(WHAT, &fault.to_string(), None)?;
    }
    let bus = Bus {
        retention: salesforce.retention,
        warning: salesforce.retention_warning,
    };
    let overview = Overview::of(&stored, Vec::new(), Some(org_id), bus, SystemTime::now());
    for one in overview
        .subscriptions
        .iter()
        .filter(|one| one.kept_is_short)
    {
        let what = format!("position of {}", one.name);
        let until = one.kept_until.map(rfc3339).unwrap_or_default();
        let cure = "Let `orgstream run` catch up before that; what the bus has forgotten by then is a recorded hole";
        match one.kept() {
            Some(_) => {
                let why = format!("the bus keeps what follows it until {until} only");
                report.warning(&what, &why, Some(cure))?;
            }
            None => {
                let why = format!(
                    "the bus kept what follows it until {until}: events may be lost already"
                );
                report.warning(&what, &why, Some(cure))?;
            }
        }
    }
    if faults.is_empty() {
        let count = stored
            .iter()
            .filter(|one| configured.iter().any(|wanted| wanted.name == one.key.name))
            .count();
        let total = configured.len();
        let why = match (count, total) {
            (0, _) => "none yet; each subscription begins where its `start` says".to_owned(),
            _ => format!("{count} of {total} subscriptions are in the store"),
        };
        report.ok(WHAT, &why)?;
    }
    Ok(())
}

/// What `run` would refuse (design 3.1, rule 4).
fn faults(stored: &[SubscriptionStatus], configured: &[SubscriptionConfig]) -> Vec<StoreError> {
    let is_configured = |name: &str| configured.iter().any(|wanted| wanted.name == name);
    let fault = |wanted: &SubscriptionConfig| {
        let named = stored.iter().find(|one| one.key.name == wanted.name);
        if let Some(one) = named {
            return (one.key.topic != wanted.topic).then(|| StoreError::TopicChanged {
                name: wanted.name.clone(),
                stored: one.key.topic.to_string(),
                given: wanted.topic.to_string(),
            });
        }
        let old = stored
            .iter()
            .find(|one| one.key.topic == wanted.topic && !is_configured(&one.key.name));
        old.filter(|_| !wanted.start_is_explicit)
            .map(|one| StoreError::RenameSuspected {
                name: wanted.name.clone(),
                old: one.key.name.clone(),
                topic: wanted.topic.to_string(),
            })
    };
    configured.iter().filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SubscriptionKey;

    const ORG: &str = "00D5g000004emu1EAA";

    fn stored(name: &str, topic: &str) -> SubscriptionStatus {
        SubscriptionStatus {
            key: SubscriptionKey {
                org_id: OrgId::parse(ORG).unwrap(),
                name: name.into(),
                topic: topic.parse().unwrap(),
            },
            state: "live".into(),
            detail: None,
            state_at: None,
            holder: None,
            held: false,
            worker: None,
            paused_at: None,
            epoch: 1,
            position: None,
            position_time: None,
            position_at: None,
            caught_up_at: None,
            received: 0,
            finished: 0,
            parked: 0,
            holes: 0,
        }
    }

    fn found(stored: &[SubscriptionStatus], name: &str, topic: &str) -> Vec<StoreError> {
        let wanted = SubscriptionConfig::new(name, topic.parse().unwrap());
        faults(stored, &[wanted])
    }

    #[test]
    fn what_run_would_refuse_is_found() {
        let rows = [stored("orders", "Order__e")];
        assert!(found(&rows, "orders", "Order__e").is_empty());
        assert!(found(&rows, "accounts", "Account").is_empty());
        assert!(matches!(
            found(&rows, "orders", "Account")[..],
            [StoreError::TopicChanged { .. }]
        ));
        assert!(matches!(
            found(&rows, "sales", "Order__e")[..],
            [StoreError::RenameSuspected { .. }]
        ));
    }

    #[test]
    fn a_pooler_in_statement_mode_is_told_what_to_set() {
        let refused = StoreError::Unavailable(
            "transaction blocks not allowed in statement pooling mode (SQLSTATE 08P01)".to_owned(),
        );
        assert!(cure(&refused).unwrap().contains("pool_mode = transaction"));
        let gone = StoreError::Unavailable("connection refused".to_owned());
        assert!(cure(&gone).unwrap().contains("DATABASE_URL"));
        assert!(cure(&StoreError::Config(String::new())).is_none());
    }

    #[test]
    fn a_new_name_that_says_where_to_begin_is_no_rename() {
        let mut wanted = SubscriptionConfig::new("sales", "Order__e".parse().unwrap());
        wanted.start_is_explicit = true;
        assert!(faults(&[stored("orders", "Order__e")], &[wanted]).is_empty());
    }
}
