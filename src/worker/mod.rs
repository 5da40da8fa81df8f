//! A worker: one process that runs subscriptions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{BackoffConfig, SubscriptionConfig};
use crate::handler::Handler;
use crate::store::{StoreError, SubscriptionKey, TakenOver};
use crate::subscription::{self, Assignment, Ended, Shared, State, lease_clock};

/// Pauses while the store fails.
const STORE_RETRY: BackoffConfig = BackoffConfig {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(15),
};

/// Names this process as the holder of its leases.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Random for each start of the process.
    pub holder: String,
    /// How long a lease holds.
    pub ttl: Duration,
    /// Names of all configured subscriptions.
    pub configured: Vec<String>,
}

/// Takes one subscription over and runs it, until it is told to stop or another worker takes it over.
///
/// # Errors
///
/// Where one of its tasks panicked, which is a bug.
pub async fn run_one(
    shared: Shared,
    tenant: Tenant,
    config: SubscriptionConfig,
    handlers: Vec<Arc<dyn Handler>>,
    shown_state: watch::Sender<State>,
    stop: CancellationToken,
) -> Result<Ended, tokio::task::JoinError> {
    let Some(taken) = take_over(&shared, &tenant, &config, &shown_state, &stop).await else {
        shown_state.send_replace(State::Stopped);
        return Ok(Ended::Stopped);
    };
    let (_keeper, clock) = lease_clock(None);
    let (_ask, asked) = watch::channel(0);
    let assignment = Assignment { clock, asked };
    subscription::run(
        shared,
        config,
        handlers,
        taken,
        assignment,
        shown_state,
        stop,
    )
    .await
}

/// Takes the subscription over, however long the store takes to let us; `None` where told to stop.
async fn take_over(
    shared: &Shared,
    tenant: &Tenant,
    config: &SubscriptionConfig,
    shown_state: &watch::Sender<State>,
    stop: &CancellationToken,
) -> Option<TakenOver> {
    let key = SubscriptionKey {
        org_id: shared.org_id.clone(),
        name: config.name.clone(),
        topic: config.topic.clone(),
    };
    let mut failures = 0;
    loop {
        let attempt = shared.store.take_over(
            &key,
            &tenant.holder,
            tenant.ttl,
            &tenant.configured,
            config.start_is_explicit,
        );
        let error = tokio::select! {
            () = stop.cancelled() => return None,
            taken = attempt => match taken {
                Ok(taken) => {
                    info!(
                        subscription = key.name,
                        topic = %key.topic,
                        epoch = taken.lease.epoch,
                        position = taken.position.as_ref().map(tracing::field::display),
                        "subscription taken over"
                    );
                    return Some(taken);
                }
                Err(error) => error,
            },
        };
        let pause = match error {
            StoreError::Unavailable(_) => subscription::pause(&STORE_RETRY, failures),
            // Waits for a person, who may mend it in the store while we run.
            _ => subscription::pause(&shared.salesforce.blocked_retry, 0),
        };
        failures += 1;
        warn!(
            subscription = key.name,
            topic = %key.topic,
            error = %error,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "subscription cannot begin"
        );
        shown_state.send_replace(State::Blocked {
            detail: error.to_string(),
        });
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
