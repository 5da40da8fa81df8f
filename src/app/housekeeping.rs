//! What a worker does beside running subscriptions: deletes what is done with, and keeps an eye on positions
//! that nobody can work on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::{Config, RetentionConfig};
use crate::store::{Pruned, Store, SubscriptionKey};
use crate::subscription::{self, PositionAge};

/// A worker that begins has better things to do first.
const FIRST_PRUNING: Duration = Duration::from_secs(10);

/// How often what is done with is deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Most portions in a row, and the pause between them: the database has other work.
const PORTIONS: u32 = 100;
const BETWEEN_PORTIONS: Duration = Duration::from_millis(500);

/// How often positions are looked at that nobody works on; more often where the margin for a warning is short.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Deletes what is done with, once an hour, until it is dropped. Other workers may do the same.
pub(super) async fn prune(store: Arc<dyn Store>, retention: RetentionConfig) -> Infallible {
    tokio::time::sleep(FIRST_PRUNING).await;
    loop {
        prune_portions(store.as_ref(), &retention).await;
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}

async fn prune_portions(store: &dyn Store, retention: &RetentionConfig) {
    let mut total = Pruned::default();
    for _ in 0..PORTIONS {
        let pruned = match store.prune(retention).await {
            Ok(pruned) => pruned,
            Err(error) => {
                // Nothing waits for it.
                info!(error = %error, "what is done with could not be deleted; it is tried again in an hour");
                break;
            }
        };
        total.dead_letters += pruned.dead_letters;
        total.holes += pruned.holes;
        total.position_marks += pruned.position_marks;
        total.samples += pruned.samples;
        total.state_changes += pruned.state_changes;
        total.allocation += pruned.allocation;
        if !pruned.is_full_portion() {
            break;
        }
        tokio::time::sleep(BETWEEN_PORTIONS).await;
    }
    if total != Pruned::default() {
        info!(
            dead_letters = total.dead_letters,
            holes = total.holes,
            position_marks = total.position_marks,
            samples = total.samples,
            state_changes = total.state_changes,
            allocation = total.allocation,
            "deleted what is done with"
        );
    }
}

/// Looks after positions that nobody works on, because nobody can sign in, a person paused them, the store
/// refuses them to every configuration, or no worker has them: warns where one comes near to leaving the bus,
/// and shows how far behind it is. What runs looks after itself.
pub(super) async fn watch_positions(
    store: &dyn Store,
    config: &Config,
    holder: &str,
) -> Infallible {
    let (retention, warning) = (
        config.salesforce.retention,
        config.salesforce.retention_warning,
    );
    // A position may have to be renamed first, so that of another name counts on one of these topics.
    let ours = |key: &SubscriptionKey| {
        config
            .subscriptions
            .iter()
            .any(|one| one.name == key.name || one.topic == key.topic)
    };
    let look_every = (warning / 4).clamp(LOOK_AT_MOST_EVERY, LOOK_EVERY);
    let mut ages: HashMap<String, PositionAge> = HashMap::new();
    loop {
        match store.subscriptions().await {
            Ok(all) => {
                for one in all.iter().filter(|one| ours(&one.key)) {
                    let name = one.key.name.as_str();
                    if one.held {
                        let was_left = ages.remove(name).is_some();
                        if was_left && one.holder.as_deref() != Some(holder) {
                            subscription::shown_elsewhere(name);
                        }
                        continue;
                    }
                    let age = ages
                        .entry(name.to_owned())
                        .or_insert_with(|| PositionAge::new((retention, warning), None));
                    age.look_from_afar(one);
                }
                // Renamed, or left for good: nobody would ever say anything else of it.
                ages.retain(|name, _| {
                    let there = all.iter().any(|one| one.key.name == *name);
                    if !there {
                        subscription::shown_elsewhere(name);
                    }
                    there
                });
            }
            Err(error) => warn!(error = %error, "the age of positions cannot be looked up"),
        }
        tokio::time::sleep(look_every).await;
    }
}
