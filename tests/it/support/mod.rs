//! Processes to test with, and waits with deadlines.

pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod emulator;
pub(crate) mod hook;
pub(crate) mod inside;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod peek;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod server;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use daemon::{Daemon, Store};
pub(crate) use emulator::Emulator;
pub(crate) use hook::{Hook, Reply};
pub(crate) use metrics::Metrics;
pub(crate) use peek::{LOG, configured, names, texts, webhook};
pub(crate) use proxy::{Line, Proxy};
pub(crate) use receiver::Receiver;

/// How long anything may take that is expected to happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something; panics with `what` after [`DEADLINE`].
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(DEADLINE, what, look).await
}

/// As [`eventually`], with a deadline of one's own.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A change event of our own Account schema, as the emulator's admin API takes it.
pub(crate) fn account_update(record: &str, name: &str) -> Value {
    json!({
        "ChangeEventHeader": {
            "entityName": "Account",
            "recordIds": [record],
            "changeType": "UPDATE",
            "changedFields": ["Name", "LastModifiedDate"],
        },
        "Name": name,
        "LastModifiedDate": 1_790_000_000_000_i64,
    })
}

/// An 18-character record ID.
pub(crate) fn record(number: usize) -> String {
    format!("001A0000{number:07}AAA")
}
