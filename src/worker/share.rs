//! Who runs what: what this worker starts and what it hands over, from a survey alone (design 3.1,
//! rule 11). Pure; every worker decides for itself, and together they come to rest.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::store::{Survey, Surveyed, Tenure};

/// How a configured subscription stands with this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not run here. Not `ready` while it waits to be tried again.
    Idle {
        /// It may be tried.
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
    /// The most that this worker may keep.
    pub(super) share: usize,
    /// To be handed over: finish what is in flight, write the position, let go.
    pub(super) give_up: Vec<usize>,
    /// To be taken over.
    pub(super) claim: Vec<usize>,
}

/// Decides what this worker, `holder`, does. No worker keeps more than its share of the subscriptions that
/// nobody paused; what it has beyond that it hands over, the most recently taken first. What is free it
/// takes, in an order of its own, so that workers that look at the same moment rarely reach for the same
/// one. Leases that lapsed are left alone unless `take_lapsed`.
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
    let count = configured.iter().filter(|(name, _)| !paused(name)).count();
    let share = count.div_ceil(survey.workers.max(1));
    let mut give_up = Vec::new();
    let mut kept = Vec::new();
    let mut candidates = Vec::new();
    let mut claiming = 0;
    for (place, (name, standing)) in configured.iter().enumerate() {
        match standing {
            Standing::Running { .. } if paused(name) => give_up.push(place),
            Standing::Running { since } => kept.push((*since, place)),
            Standing::Claiming => claiming += 1,
            Standing::Idle { ready: true } if !paused(name) => {
                let free = match rows.get(name).map(|row| &row.tenure) {
                    None | Some(Tenure::Free) => true,
                    Some(Tenure::Lapsed) => take_lapsed,
                    // Taken by a call of ours whose answer was lost.
                    Some(Tenure::Held { holder: by, .. }) => by == holder,
                };
                if free {
                    candidates.push((order(holder, name), place));
                }
            }
            Standing::Idle { .. } | Standing::Leaving => {}
        }
    }
    kept.sort_unstable();
    give_up.extend(kept.iter().skip(share).map(|(_, place)| place));
    let room = share.saturating_sub(kept.len() + claiming);
    candidates.sort_unstable();
    Plan {
        share,
        give_up,
        claim: candidates
            .into_iter()
            .take(room)
            .map(|(_, place)| place)
            .collect(),
    }
}

fn order(holder: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (holder, name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn held(by: &str) -> Tenure {
        Tenure::Held {
            holder: by.to_owned(),
            rest: Duration::from_secs(5),
        }
    }

    fn row(name: &str, tenure: Tenure) -> Surveyed {
        Surveyed {
            name: name.to_owned(),
            tenure,
            paused: false,
            asked: 0,
        }
    }

    const READY: Standing = Standing::Idle { ready: true };

    #[test]
    fn one_worker_takes_all_that_is_free_and_nobody_paused() {
        let survey = Survey {
            workers: 1,
            stopping: 0,
            subscriptions: vec![
                row("a", held("other")),
                row("b", Tenure::Free),
                Surveyed {
                    paused: true,
                    ..row("c", Tenure::Free)
                },
                row("d", held("me")),
            ],
        };
        let configured = ["a", "b", "c", "d", "new"].map(|name| (name, READY));
        let mut plan = plan("me", &configured, &survey, true);
        plan.claim.sort_unstable();
        assert_eq!((plan.share, plan.claim), (4, vec![1, 3, 4]));
        assert!(plan.give_up.is_empty());
    }

    #[test]
    fn what_is_beyond_the_share_goes_the_most_recently_taken_first() {
        let survey = Survey {
            workers: 3,
            stopping: 0,
            subscriptions: Vec::new(),
        };
        let running = |since| Standing::Running { since };
        let configured = [
            ("a", running(4)),
            ("b", running(1)),
            ("c", running(3)),
            ("d", Standing::Leaving),
            ("e", READY),
        ];
        let plan = plan("me", &configured, &survey, true);
        assert_eq!((plan.share, plan.give_up), (2, vec![0]));
        assert!(plan.claim.is_empty(), "the share is full");
    }

    #[test]
    fn what_a_person_paused_is_let_go_and_makes_the_shares_smaller() {
        let mut a = row("a", held("me"));
        a.paused = true;
        let survey = Survey {
            workers: 2,
            stopping: 0,
            subscriptions: vec![a, row("b", held("me")), row("c", Tenure::Free)],
        };
        let configured = [
            ("a", Standing::Running { since: 1 }),
            ("b", Standing::Running { since: 2 }),
            ("c", READY),
        ];
        let plan = plan("me", &configured, &survey, true);
        assert_eq!((plan.share, plan.give_up, plan.claim), (1, vec![0], vec![]));
    }

    #[test]
    fn what_waits_to_be_tried_again_leaves_its_room_to_others() {
        let survey = Survey {
            workers: 2,
            stopping: 0,
            subscriptions: vec![row("lapsed", Tenure::Lapsed)],
        };
        let configured = [
            ("blocked", Standing::Idle { ready: false }),
            ("lapsed", READY),
        ];
        let claim = |take_lapsed| plan("me", &configured, &survey, take_lapsed).claim;
        assert_eq!(claim(true), [1]);
        assert_eq!(claim(false), [0usize; 0]);
    }

    /// A worker of a simulated fleet: what it runs, by when it was taken.
    #[derive(Default)]
    struct Simulated {
        running: HashMap<String, u64>,
        taken: u64,
    }

    /// One round of one worker, with the store's answers given at once.
    fn turn(
        me: usize,
        names: &[String],
        paused: &HashSet<usize>,
        owner: &mut HashMap<String, usize>,
        fleet: &mut HashMap<usize, Simulated>,
    ) -> usize {
        let survey = Survey {
            workers: fleet.len(),
            stopping: 0,
            subscriptions: names
                .iter()
                .enumerate()
                .map(|(place, name)| Surveyed {
                    paused: paused.contains(&place),
                    ..row(
                        name,
                        owner
                            .get(name)
                            .map_or(Tenure::Free, |by| held(&by.to_string())),
                    )
                })
                .collect(),
        };
        let Some(worker) = fleet.get_mut(&me) else {
            return 0;
        };
        let configured: Vec<(&str, Standing)> = names
            .iter()
            .map(|name| {
                let since = worker.running.get(name);
                let standing = since.map_or(READY, |since| Standing::Running { since: *since });
                (name.as_str(), standing)
            })
            .collect();
        let plan = plan(&me.to_string(), &configured, &survey, true);
        for place in &plan.give_up {
            worker.running.remove(&names[*place]);
            owner.remove(&names[*place]);
        }
        for place in &plan.claim {
            let name = &names[*place];
            assert!(!owner.contains_key(name), "reached for what is held");
            owner.insert(name.clone(), me);
            worker.taken += 1;
            worker.running.insert(name.clone(), worker.taken);
        }
        assert!(worker.running.len() <= plan.share);
        plan.give_up.len() + plan.claim.len()
    }

    proptest! {
        #[test]
        fn a_fleet_comes_to_rest_with_every_subscription_run_once_and_nobody_above_the_share(
            subscriptions in 1usize..12,
            changes in prop::collection::vec((0usize..6, any::<bool>()), 1..10),
            paused in prop::collection::hash_set(0usize..12, 0..4),
        ) {
            let names: Vec<String> = (0..subscriptions).map(|n| format!("s{n}")).collect();
            let mut owner: HashMap<String, usize> = HashMap::new();
            let mut fleet: HashMap<usize, Simulated> = HashMap::new();
            for (worker, comes) in changes {
                if comes {
                    fleet.entry(worker).or_default();
                } else if let Some(gone) = fleet.remove(&worker) {
                    owner.retain(|name, _| !gone.running.contains_key(name));
                }
                let mut workers: Vec<usize> = fleet.keys().copied().collect();
                workers.sort_unstable();
                let mut moved = 1;
                for _ in 0..4 {
                    moved = workers
                        .iter()
                        .map(|me| turn(*me, &names, &paused, &mut owner, &mut fleet))
                        .sum();
                }
                prop_assert_eq!(moved, 0, "it goes on and on");
                let runnable = (0..subscriptions).filter(|place| !paused.contains(place)).count();
                let expected = if fleet.is_empty() { 0 } else { runnable };
                prop_assert_eq!(owner.len(), expected);
            }
        }
    }
}
