//! Any store, with its calls timed and its failures counted: one place for all of them, so that no call is left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::Value;

use super::{
    AllocationReading, CommandKind, CommandState, Commands, ConnectionUse, Controls, DeadLetter,
    DeadLetterFilter, DeadLetters, HandOver, Heartbeat, Hole, HoleFilter, Holes, Lease, Leases,
    LetterSelection, LetterSummary, LivingWorker, MarksAround, Observations, Placed, Positions,
    Progress, Pruned, Recent, Refusal, Renamed, Retention, Sample, Schemas, SettledAhead, Snapshot,
    StateChange, StateReport, Store, StoreError, StoredCommand, StoredDeadLetter, StoredHole,
    SubscriptionKey, SubscriptionStatus, Survey, TakenOver, TransactionError, Transactions, Work,
    Worker,
};
use crate::config::{RetentionConfig, Start};
use crate::event::{OrgId, ReplayId, SchemaId};
use crate::salesforce::auth::{CredentialVault, StoredCredential, VaultError};
use crate::telemetry::{self, metrics};

/// A store whose calls are measured.
pub(super) struct Measured<S>(pub(super) S);

/// What a failed call counts as; `None` for an answer that is no failure.
trait Failure {
    fn kind(&self) -> Option<&'static str>;
}

impl Failure for StoreError {
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Unavailable(_) => Some("unavailable"),
            Self::Fenced { .. } => Some("fenced"),
            Self::NotMigrated(_) => Some("not_migrated"),
            Self::Config(_) => Some("config"),
            Self::OtherOrg { .. }
            | Self::TopicChanged { .. }
            | Self::RenameSuspected { .. }
            | Self::Renamed { .. } => Some("refused"),
            // Somebody else runs it, or nobody is to: that is how it is meant.
            Self::Held { .. } | Self::Paused { .. } => None,
        }
    }
}

impl Failure for TransactionError {
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Store(error) => error.kind(),
            Self::Unheard(_) => Some("unavailable"),
            // The handler's own.
            Self::Work(_) => None,
        }
    }
}

impl Failure for VaultError {
    fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::Failed(_) => "unavailable",
            Self::LostRight => "fenced",
        })
    }
}

impl<S: Store> Measured<S> {
    fn show_connections(&self) {
        for pool in self.0.connections() {
            metrics::store_connections(pool.pool, pool.idle, pool.in_use, pool.max);
        }
    }

    async fn call<T, E: Failure>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let mut call_made = CallMade {
            operation,
            began: Instant::now(),
            failure: Some("abandoned"),
        };
        let answer = call.await;
        call_made.failure = answer.as_ref().err().and_then(Failure::kind);
        self.show_connections();
        answer
    }
}

/// A call, recorded at its end, which may be that whoever waited for it did so no longer.
struct CallMade {
    operation: &'static str,
    began: Instant,
    failure: Option<&'static str>,
}

impl Drop for CallMade {
    fn drop(&mut self) {
        metrics::store_called(self.operation, self.began.elapsed(), self.failure);
    }
}

/// The store with its calls measured, whose connections are counted, too, whenever metrics are asked for: calls that
/// hang have no end at which they could be.
pub(super) fn shown<S: Store + 'static>(store: S) -> Arc<dyn Store> {
    let store = Arc::new(Measured(store));
    let look = Arc::downgrade(&store);
    telemetry::when_asked(move || {
        let store = look.upgrade();
        store.inspect(|store| store.show_connections()).is_some()
    });
    store
}

/// Measures the calls of these traits. The name of a call is the method's.
macro_rules! measured {
    ($($of:ident {
        $(plain fn $plain:ident() -> $plain_answer:ty;)*
        $(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*
    })*) => {
        $(
            #[async_trait]
            impl<S: Store> $of for Measured<S> {
                $(fn $plain(&self) -> $plain_answer {
                    self.0.$plain()
                })*
                $(async fn $name(&self, $($argument: $type),*) -> $answer {
                    self.call(stringify!($name), self.0.$name($($argument),*)).await
                })*
            }
        )*
    };
}

measured! {
    Leases {
        plain fn leases_run_out() -> bool;
        fn take_over(key: &SubscriptionKey, holder: &str, ttl: Duration, configured: &[String], start_is_explicit: bool) -> Result<TakenOver, StoreError>;
        fn taken(lease: &Lease) -> Result<TakenOver, StoreError>;
        fn heartbeat(worker: &Worker, ttl: Duration, running: &[SubscriptionKey], stopping: bool) -> Result<Heartbeat, StoreError>;
        fn survey(org_id: &OrgId, limit: Duration) -> Result<Survey, StoreError>;
        fn workers() -> Result<Vec<LivingWorker>, StoreError>;
        fn release(lease: &Lease) -> Result<(), StoreError>;
        fn retire(holder: &str) -> Result<(), StoreError>;
    }
    Controls {
        fn pause(org_id: &OrgId, name: &str) -> Result<bool, StoreError>;
        fn pause_to_rename(org_id: &OrgId, name: &str) -> Result<bool, StoreError>;
        fn resume_unrenamed(org_id: &OrgId, name: &str) -> Result<bool, StoreError>;
        fn resume(org_id: &OrgId, name: &str) -> Result<bool, StoreError>;
        fn rename(org_id: &OrgId, old: &str, new: &str) -> Result<Renamed, StoreError>;
    }
    Positions {
        fn mark_begun(lease: &Lease) -> Result<(), StoreError>;
        fn mark_first(lease: &Lease, first: &ReplayId) -> Result<(), StoreError>;
        fn save_progress(lease: &Lease, progress: &Progress) -> Result<(), StoreError>;
        fn report_states(lease: &Lease, reports: &[StateReport]) -> Result<(), StoreError>;
        fn recent_events(key: &SubscriptionKey, window: Duration) -> Result<Option<Recent>, StoreError>;
        fn subscriptions() -> Result<Vec<SubscriptionStatus>, StoreError>;
    }
    DeadLetters {
        fn park_before(lease: &Lease, letters: &[DeadLetter], behind: &[i64]) -> Result<(Vec<Placed>, Vec<Placed>), StoreError>;
        fn open_letters(lease: &Lease) -> Result<Vec<LetterSummary>, StoreError>;
        fn settled_ahead(lease: &Lease) -> Result<Vec<SettledAhead>, StoreError>;
        fn letters(ids: &[i64]) -> Result<Vec<StoredDeadLetter>, StoreError>;
        fn resolve(lease: &Lease, ids: &[i64]) -> Result<Vec<i64>, StoreError>;
        fn park_again(lease: &Lease, ids: &[i64], refusal: &Refusal) -> Result<Vec<i64>, StoreError>;
        fn pass_on(lease: &Lease, ids: &[i64], letters: &[DeadLetter]) -> Result<Option<Vec<Placed>>, StoreError>;
        fn dead_letters(filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, StoreError>;
        fn dead_letter(id: i64) -> Result<Option<StoredDeadLetter>, StoreError>;
        fn select_letters(selection: &LetterSelection) -> Result<Vec<LetterSummary>, StoreError>;
        fn letter_summaries(ids: &[i64]) -> Result<Vec<LetterSummary>, StoreError>;
        fn ask_retry(selection: &LetterSelection) -> Result<Vec<i64>, StoreError>;
        fn withdraw_retry(ids: &[i64]) -> Result<Vec<i64>, StoreError>;
        fn discard(selection: &LetterSelection) -> Result<Vec<i64>, StoreError>;
    }
    Holes {
        fn record_hole(lease: &Lease, hole: &Hole) -> Result<i64, StoreError>;
        fn close_holes(lease: &Lease, to: &ReplayId, at: SystemTime) -> Result<(), StoreError>;
        fn record_gaps(lease: &Lease, gaps: &[Hole]) -> Result<(), StoreError>;
        fn nothing_skipped(lease: &Lease, from: &ReplayId) -> Result<(), StoreError>;
        fn holes(filter: &HoleFilter) -> Result<Vec<StoredHole>, StoreError>;
        fn acknowledge_holes(filter: &HoleFilter, open_ended: bool) -> Result<Vec<i64>, StoreError>;
    }
    Commands {
        fn ask(org_id: &OrgId, subscription: &str, kind: CommandKind, arguments: &Value, asked_by: Option<&str>) -> Result<Option<i64>, StoreError>;
        fn withdraw(id: i64) -> Result<Option<StoredCommand>, StoreError>;
        fn command(id: i64) -> Result<Option<StoredCommand>, StoreError>;
        fn commands(subscription: Option<&str>, limit: u32) -> Result<Vec<StoredCommand>, StoreError>;
        fn open_commands(lease: &Lease) -> Result<Vec<StoredCommand>, StoreError>;
        fn begin_command(lease: &Lease, id: i64) -> Result<bool, StoreError>;
        fn save_command(lease: &Lease, id: i64, progress: &Value) -> Result<bool, StoreError>;
        fn end_command(lease: &Lease, id: i64, state: CommandState, outcome: &str, progress: Option<&Value>) -> Result<bool, StoreError>;
        fn rewind(lease: &Lease, id: i64, to: &Start, outcome: &str) -> Result<Option<TakenOver>, StoreError>;
        fn marks_around(org_id: &OrgId, subscription: &str, at: SystemTime) -> Result<MarksAround, StoreError>;
    }
    Schemas {
        fn load_schema(id: &SchemaId) -> Result<Option<Arc<str>>, StoreError>;
        fn save_schema(id: &SchemaId, json: &str) -> Result<(), StoreError>;
    }
    Transactions {
        fn transact(hand_over: HandOver<'_>, limit: Duration, work: &mut dyn Work) -> Result<(), TransactionError>;
        fn try_out(limit: Duration, work: &mut dyn Work) -> Result<(), TransactionError>;
        fn transact_unmarked(limit: Duration, work: &mut dyn Work) -> Result<(), TransactionError>;
    }
    Retention {
        fn prune(retention: &RetentionConfig) -> Result<Pruned, StoreError>;
    }
    Observations {
        fn post_snapshot(holder: &str, body: &str) -> Result<(), StoreError>;
        fn snapshots() -> Result<Vec<Snapshot>, StoreError>;
        fn post_sample(lease: &Lease, sample: &Sample) -> Result<(), StoreError>;
        fn samples(org_id: &OrgId, since: SystemTime) -> Result<BTreeMap<String, Vec<Sample>>, StoreError>;
        fn state_changes(org_id: &OrgId, subscription: Option<&str>, limit: u32) -> Result<Vec<StateChange>, StoreError>;
        fn claim_allocation(org_id: &OrgId, every: Duration) -> Result<Option<SystemTime>, StoreError>;
        fn record_allocation(org_id: &OrgId, reading: &AllocationReading) -> Result<(), StoreError>;
        fn allocation(org_id: &OrgId, since: SystemTime) -> Result<Vec<AllocationReading>, StoreError>;
    }
    CredentialVault {
        fn lock(key: &str, holder: &str, ttl: Duration) -> Result<Option<StoredCredential>, VaultError>;
        fn save(key: &str, holder: &str, token: &SecretString) -> Result<(), VaultError>;
        fn unlock(key: &str, holder: &str) -> Result<(), VaultError>;
    }
}

#[async_trait]
impl<S: Store> Store for Measured<S> {
    async fn ping(&self) -> Result<(), StoreError> {
        self.call("ping", self.0.ping()).await
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        self.call("migrate", self.0.migrate()).await
    }

    async fn pending_migrations(&self) -> Result<Vec<i64>, StoreError> {
        self.call("pending_migrations", self.0.pending_migrations())
            .await
    }

    async fn bind_org(&self, org_id: &OrgId) -> Result<(), StoreError> {
        self.call("bind_org", self.0.bind_org(org_id)).await
    }

    async fn bound_org(&self) -> Result<Option<OrgId>, StoreError> {
        self.call("bound_org", self.0.bound_org()).await
    }

    fn connections(&self) -> Vec<ConnectionUse> {
        self.0.connections()
    }

    async fn close(&self) {
        self.0.close().await;
        self.show_connections();
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::config::StoreConfig;
    use crate::telemetry::exposition::Exposition;
    use crate::telemetry::metrics::{
        Metric, STORE_CONNECTIONS, STORE_CONNECTIONS_MAX, STORE_ERRORS,
    };

    /// The metrics that calls leave behind.
    fn recorded(calls: impl AsyncFnOnce(Arc<dyn Store>)) -> Exposition {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        ::metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let config = StoreConfig::new("sqlite::memory:");
                calls(super::super::open(&config).await.unwrap()).await;
            });
        });
        Exposition::parse(&handle.render()).unwrap()
    }

    fn value(exposition: &Exposition, metric: &Metric, labels: &[(&str, &str)]) -> Option<f64> {
        let mut samples = exposition.family(metric.name)?.samples.iter();
        let found = samples
            .find(|sample| (labels.iter()).all(|(name, value)| sample.label(name) == Some(*value)));
        found.map(|sample| sample.value)
    }

    #[test]
    fn a_call_is_timed_and_its_failure_counted_by_kind() {
        let seen = recorded(async |store| {
            store.ping().await.unwrap();
            // There are no tables yet.
            store.subscriptions().await.unwrap_err();
            store.migrate().await.unwrap();
            store.close().await;
            store.ping().await.unwrap_err();
            // Nobody waits for the end of this one.
            let config = StoreConfig::new("sqlite::memory:");
            let store = super::super::sqlite::SqliteStore::open(&config, None).unwrap();
            let never = std::future::pending::<Result<(), StoreError>>();
            let measured = Measured(store);
            let call = measured.call("hangs", never);
            let waited = tokio::time::timeout(Duration::from_millis(1), call).await;
            assert!(waited.is_err());
        });
        let errors = |operation, kind| {
            let labels = [("operation", operation), ("kind", kind)];
            value(&seen, &STORE_ERRORS, &labels)
        };
        assert_eq!(errors("subscriptions", "not_migrated"), Some(1.0));
        assert_eq!(errors("hangs", "abandoned"), Some(1.0));
        assert_eq!(errors("ping", "unavailable"), Some(1.0));
        assert_eq!(errors("migrate", "unavailable"), Some(0.0));
        let calls = seen.family("orgstream_store_seconds").unwrap();
        assert!(
            calls
                .samples
                .iter()
                .any(|one| one.label("operation") == Some("migrate"))
        );
        let pool = [("pool", "calls")];
        assert_eq!(value(&seen, &STORE_CONNECTIONS_MAX, &pool), Some(1.0));
        assert_eq!(
            value(&seen, &STORE_CONNECTIONS, &[("state", "idle")]),
            Some(0.0),
            "closed"
        );
    }

    #[test]
    fn an_answer_that_is_meant_so_is_no_failure() {
        assert_eq!(
            StoreError::Paused {
                subscription: "a".to_owned()
            }
            .kind(),
            None
        );
    }
}
