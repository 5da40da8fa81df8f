//! Who runs what: what this worker starts and what it hands over, from a survey alone (design 3.1,
//! rule 11). Pure; every worker decides for itself, and together they come to rest.

mod division;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::store::{Footing, Survey, Surveyed, Tenure};

use division::{Division, Ease, Part};

/// How a configured subscription stands with this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not run here. Not `ready` while it waits to be tried again.
    Idle {
        /// It may be tried.
        ready: bool,
    },
    /// The store refused it to this worker's configuration. Another worker's may do better.
    Refused {
        /// It may be tried once more, where nobody else can run it.
        ready: bool,
    },
    /// The store was asked for it.
    Claiming,
    /// Run here.
    Running {
        /// Grows with each that this worker took.
        since: u64,
    },
    /// Run here, and told to end.
    Leaving,
}

/// What to do now, as places in the list of configured subscriptions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many of all this worker should have.
    pub(super) share: usize,
    /// To be handed over: finish what is in flight, write the position, let go.
    pub(super) give_up: Vec<usize>,
    /// To be taken over.
    pub(super) claim: Vec<usize>,
}

/// Decides what this worker, `holder`, does.
///
/// From what is held now, each worker divides the subscriptions that nobody paused among those that live,
/// each within what it can run, so that none could pass one on to another that has two less. With one
/// configuration everywhere no worker keeps more than ceil(subscriptions / workers). What this worker has
/// beyond that division it hands over; what is free and falls to it, it takes. A subscription that began at
/// LATEST and has no position yet stays where it is; among the others the most recently taken goes first.
/// Leases that lapsed are left alone unless `take_lapsed`.
pub(super) fn plan(
    holder: &str,
    configured: &[(&str, Standing)],
    survey: &Survey,
    take_lapsed: bool,
) -> Plan {
    let rows: HashMap<&str, &Surveyed> = survey
        .subscriptions
        .iter()
        .map(|row| (row.name.as_str(), row))
        .collect();
    let paused = |name: &str| rows.get(name).is_some_and(|row| row.paused);
    let division = divide(holder, configured, survey, &rows);
    let mine: HashSet<&str> = division.of(holder).collect();
    let mut plan = Plan {
        share: mine.len(),
        ..Plan::default()
    };
    for (place, (name, standing)) in configured.iter().enumerate() {
        match standing {
            Standing::Running { .. } if paused(name) || !mine.contains(name) => {
                plan.give_up.push(place);
            }
            Standing::Idle { ready: true } | Standing::Refused { ready: true }
                if mine.contains(name) =>
            {
                let free = match rows.get(name).map(|row| &row.tenure) {
                    None | Some(Tenure::Free) => true,
                    Some(Tenure::Lapsed) => take_lapsed,
                    // Taken by a call of ours whose answer was lost.
                    Some(Tenure::Held { holder: by, .. }) => by == holder,
                };
                if free {
                    plan.claim.push(place);
                }
            }
            _ => {}
        }
    }
    plan
}

/// The division that all workers come to who see the same.
fn divide<'a>(
    holder: &'a str,
    configured: &[(&'a str, Standing)],
    survey: &'a Survey,
    rows: &HashMap<&'a str, &'a Surveyed>,
) -> Division<'a> {
    let others: Vec<_> = survey
        .workers
        .iter()
        .filter(|peer| peer.holder != holder)
        .collect();
    let mut workers: Vec<&str> = others.iter().map(|peer| peer.holder.as_str()).collect();
    workers.push(holder);
    workers.sort_unstable();
    let place = |holder: &str| workers.binary_search(&holder).ok();
    // By name, so that all go through them in the same order.
    let mut able: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for peer in others {
        for name in &peer.subscriptions {
            able.entry(name).or_default().extend(place(&peer.holder));
        }
    }
    let mut here: HashMap<&str, Standing> = HashMap::new();
    for (name, standing) in configured {
        let able = able.entry(name).or_default();
        // What was refused here is left to whoever can run it.
        if !matches!(standing, Standing::Refused { ready } if !able.is_empty() || !ready) {
            able.extend(place(holder));
        }
        here.insert(name, *standing);
    }
    let parts = able
        .into_iter()
        .filter(|(name, _)| rows.get(name).is_none_or(|row| !row.paused));
    let parts = parts.map(|(name, mut able)| {
        let row = rows.get(name);
        let (owner, rank) = match here.get(name) {
            Some(Standing::Running { since }) => (place(holder), u64::MAX - since),
            Some(Standing::Claiming) => (place(holder), 0),
            _ => match row.map(|row| &row.tenure) {
                Some(Tenure::Held { holder: by, .. }) if by != holder => (place(by), 0),
                _ => (None, 0),
            },
        };
        // Whoever runs it evidently can.
        able.extend(owner.filter(|owner| !able.contains(owner)));
        let ease = match (owner, row.map(|row| row.footing)) {
            (None, _) => Ease::Free,
            (Some(_), Some(Footing::Placed)) => Ease::Easy,
            (Some(_), Some(Footing::New) | None) => Ease::Hard,
            (Some(_), Some(Footing::Begun)) => Ease::Never,
        };
        Part {
            name,
            able,
            owner,
            ease,
            rank,
        }
    });
    Division::new(workers.clone(), parts.collect())
}

#[cfg(test)]
mod tests;
