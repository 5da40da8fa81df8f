//! What a worker does beside running subscriptions: deletes what is done with, and keeps an eye on positions
//! that nobody can work on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::{Config, RetentionConfig};
use crate::store::{Pruned, Store};
use crate::subscription::PositionAge;

/// A worker that begins has better things to do first.
const FIRST_PRUNING: Duration = Duration::from_secs(10);

/// How often what is done with is deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Most portions in a row, and the pause between them: the database has other work.
const PORTIONS: u32 = 100;
const BETWEEN_PORTIONS: Duration = Duration::from_millis(500);

/// How often positions are looked at while nobody works on them.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
            "deleted what is done with"
        );
    }
}

/// Warns of positions that come near to leaving the bus, for as long as no subscription can begin.
pub(super) async fn watch_positions(store: &dyn Store, config: &Config) -> Infallible {
    let retention = config.salesforce.retention;
    let warning = config.salesforce.retention_warning;
    let mut ages: HashMap<String, PositionAge> = config
        .subscriptions
        .iter()
        .map(|one| {
            let age = PositionAge::new((retention, warning), None);
            (one.name.clone(), age)
        })
        .collect();
    loop {
        match store.subscriptions().await {
            Ok(all) => {
                for one in all.iter().filter(|one| one.position.is_some()) {
                    let place = one.position_time.or(one.position_at);
                    if let (Some(age), Some(place)) = (ages.get_mut(&one.key.name), place) {
                        age.look_from_afar(place, &one.key);
                    }
                }
            }
            Err(error) => warn!(error = %error, "the age of positions cannot be looked up"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
