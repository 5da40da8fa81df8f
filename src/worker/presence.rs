//! A worker that cannot run anything yet: it waits for the org's login, and the others, and whoever looks at the
//! store, see that it is there and what it waits for.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tracing::debug;

use super::{RETIRE_LIMIT, SETTLE_LIMIT, sleep_until};
use crate::store::{Refused, Store, Worker as Identity};

/// Does `start`, and says meanwhile that this process lives, can run nothing, and what is `refused` to it. It holds no
/// lease, asks for none, and is given no share of the subscriptions. What it said is answered before this ends, so that
/// it does not come after what the worker says then.
pub async fn live_while<T>(
    store: &Arc<dyn Store>,
    identity: &Identity,
    lease: Duration,
    refused: impl Fn() -> Vec<Refused> + Send + Sync,
    start: impl Future<Output = T> + Send,
) -> T {
    let mut start = pin!(start);
    let mut beat: Option<BoxFuture<'static, ()>> = None;
    let mut next = Instant::now();
    let done = loop {
        let now = Instant::now();
        if beat.is_none() && now >= next {
            next = now + lease / 5;
            beat = Some(say(store.clone(), identity, lease, refused()));
        }
        let due = beat.is_none().then_some(next);
        tokio::select! {
            biased;
            done = &mut start => break done,
            () = answered(&mut beat) => beat = None,
            () = sleep_until(due) => {}
        }
    };
    if let Some(beat) = beat {
        let _ = tokio::time::timeout(SETTLE_LIMIT, beat).await;
    }
    done
}

fn say(
    store: Arc<dyn Store>,
    identity: &Identity,
    lease: Duration,
    refused: Vec<Refused>,
) -> BoxFuture<'static, ()> {
    let identity = Identity {
        subscriptions: Vec::new(),
        refused,
        ..identity.clone()
    };
    Box::pin(async move {
        // It is tried again soon, and nobody counts on this worker.
        if let Err(error) = store.heartbeat(&identity, lease, &[], false).await {
            debug!(error = %error, "the store was not told that this worker lives");
        }
    })
}

async fn answered(beat: &mut Option<BoxFuture<'static, ()>>) {
    match beat {
        Some(beat) => beat.await,
        None => pending().await,
    }
}

/// A worker that ends before it could run anything is forgotten.
pub async fn retire(store: &Arc<dyn Store>, holder: &str) {
    let retired = tokio::time::timeout(RETIRE_LIMIT, store.retire(holder)).await;
    if !matches!(retired, Ok(Ok(()))) {
        debug!("the end of this worker could not be stored: its lease runs out");
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::store;

    #[tokio::test]
    async fn a_worker_that_waits_is_there_with_what_it_waits_for_and_can_run_nothing() {
        let store = store::open(&StoreConfig::new("sqlite::memory:"))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let identity = Identity {
            holder: "me".to_owned(),
            name: "me.1".to_owned(),
            version: "0".to_owned(),
            subscriptions: vec!["orders".to_owned()],
            refused: Vec::new(),
        };
        let refused = || {
            vec![Refused {
                name: "orders".to_owned(),
                topic: "/event/Order__e".to_owned(),
                why: "cannot sign in".to_owned(),
            }]
        };
        let seen = async {
            loop {
                let workers = store.workers().await.unwrap();
                if let [one] = &workers[..] {
                    break one.worker.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        let lease = Duration::from_secs(15);
        let seen = live_while(&store, &identity, lease, refused, seen).await;
        assert_eq!(seen.subscriptions, Vec::<String>::new());
        assert_eq!(seen.refused, refused());
        retire(&store, "me").await;
        assert_eq!(store.workers().await.unwrap().len(), 0);
    }
}
