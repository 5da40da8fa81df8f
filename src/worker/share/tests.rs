use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::Peer;

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
        footing: Footing::Placed,
    }
}

fn peer(holder: &str, names: &[&str]) -> Peer {
    Peer {
        holder: holder.to_owned(),
        subscriptions: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn survey(workers: &[Peer], subscriptions: Vec<Surveyed>) -> Survey {
    Survey {
        workers: workers.to_vec(),
        stopping: 0,
        subscriptions,
    }
}

const READY: Standing = Standing::Idle { ready: true };

fn running(since: u64) -> Standing {
    Standing::Running { since }
}

#[test]
fn one_worker_takes_all_that_is_free_and_nobody_paused() {
    let survey = survey(
        &[peer("me", &["a", "b", "c", "d", "new"])],
        vec![
            row("a", held("other")),
            row("b", Tenure::Free),
            Surveyed {
                paused: true,
                ..row("c", Tenure::Free)
            },
            row("d", held("me")),
        ],
    );
    let configured = ["a", "b", "c", "d", "new"].map(|name| (name, READY));
    let plan = plan("me", &configured, &survey, true);
    assert_eq!((plan.share, plan.claim), (4, vec![1, 3, 4]));
    assert!(plan.give_up.is_empty());
}

#[test]
fn what_is_beyond_the_share_goes_the_most_recently_taken_first() {
    let names = ["a", "b", "c", "d"];
    let survey = survey(
        &[peer("me", &names), peer("you", &names)],
        names.map(|name| row(name, held("me"))).to_vec(),
    );
    let configured = [
        ("a", running(4)),
        ("b", running(1)),
        ("c", running(3)),
        ("d", running(2)),
    ];
    let plan = plan("me", &configured, &survey, true);
    assert_eq!((plan.share, plan.give_up), (2, vec![0, 2]));
    assert!(plan.claim.is_empty());
}

#[test]
fn what_began_at_latest_stays_until_it_has_a_position_and_what_has_one_goes_first() {
    let names = ["a", "b", "c", "d"];
    let rows = |[a, b, c, d]: [Footing; 4]| {
        let row = |name, footing| Surveyed {
            footing,
            ..row(name, held("me"))
        };
        vec![row("a", a), row("b", b), row("c", c), row("d", d)]
    };
    let configured = [
        ("a", running(1)),
        ("b", running(2)),
        ("c", running(3)),
        ("d", running(4)),
    ];
    let workers = [peer("me", &names), peer("you", &names)];
    let give_up = |footings| {
        let survey = survey(&workers, rows(footings));
        plan("me", &configured, &survey, true).give_up
    };
    use Footing::{Begun, New, Placed};
    assert_eq!(give_up([Placed, Placed, New, Begun]), [0, 1]);
    assert_eq!(give_up([Begun, New, Placed, Begun]), [1, 2]);
    assert_eq!(give_up([Begun; 4]), [0usize; 0]);
    assert_eq!(give_up([Begun, Begun, Begun, Placed]), [3]);
}

#[test]
fn what_a_person_paused_is_let_go_and_makes_the_shares_smaller() {
    let mut a = row("a", held("me"));
    a.paused = true;
    let names = ["a", "b", "c"];
    let survey = survey(
        &[peer("me", &names), peer("you", &names)],
        vec![a, row("b", held("me")), row("c", Tenure::Free)],
    );
    let configured = [("a", running(1)), ("b", running(2)), ("c", READY)];
    let plan = plan("me", &configured, &survey, true);
    assert_eq!((plan.share, plan.give_up, plan.claim), (1, vec![0], vec![]));
}

#[test]
fn a_lease_that_lapsed_is_taken_where_that_is_allowed() {
    let survey = survey(&[], vec![row("lapsed", Tenure::Lapsed)]);
    let configured = [
        ("waits", Standing::Idle { ready: false }),
        ("lapsed", READY),
    ];
    let claim = |take_lapsed| plan("me", &configured, &survey, take_lapsed).claim;
    assert_eq!(claim(true), [1]);
    assert_eq!(claim(false), [0usize; 0]);
}

#[test]
fn what_was_refused_is_left_to_those_who_can_run_it_and_tried_again_where_nobody_can() {
    let configured = [("a", Standing::Refused { ready: true }), ("b", READY)];
    let free = || vec![row("a", Tenure::Free), row("b", Tenure::Free)];
    let claim = |workers: &[Peer]| plan("me", &configured, &survey(workers, free()), true).claim;
    assert_eq!(claim(&[peer("me", &["b"])]), [0, 1]);
    assert_eq!(claim(&[peer("me", &["b"]), peer("you", &["a", "b"])]), [1]);
    let waits = [("a", Standing::Refused { ready: false })];
    let plan = plan("me", &waits, &survey(&[], free()), true);
    assert_eq!(plan, Plan::default());
}

#[test]
fn workers_with_roles_of_their_own_leave_nothing_alone() {
    // Four of two roles: by a share of all, each would stop at one.
    let (left, right) = (["a", "b", "c"], ["x"]);
    let workers = [
        peer("one", &left),
        peer("two", &right),
        peer("three", &right),
        peer("four", &right),
    ];
    let rows = || {
        let names = left.iter().chain(&right);
        names.map(|name| row(name, Tenure::Free)).collect()
    };
    let configured = left.map(|name| (name, READY));
    let plan = plan("one", &configured, &survey(&workers, rows()), true);
    assert_eq!((plan.share, plan.claim), (3, vec![0, 1, 2]));
}

/// A worker of a simulated fleet.
#[derive(Debug, Default)]
struct Simulated {
    names: BTreeSet<String>,
    /// What it runs, by when it was taken.
    running: BTreeMap<String, u64>,
    /// What it was told to let go.
    leaving: BTreeSet<String>,
    taken: u64,
}

#[derive(Debug, Clone)]
struct Row {
    owner: Option<usize>,
    footing: Footing,
    paused: bool,
    /// Rounds from its beginning to its first position.
    slow: u8,
}

#[derive(Debug, Default)]
struct World {
    rows: BTreeMap<String, Row>,
    fleet: BTreeMap<usize, Simulated>,
}

impl World {
    fn survey(&self) -> Survey {
        let workers = self.fleet.iter().map(|(holder, worker)| Peer {
            holder: holder.to_string(),
            subscriptions: worker.names.iter().cloned().collect(),
        });
        let rows = self.rows.iter().map(|(name, row)| Surveyed {
            name: name.clone(),
            tenure: row.owner.map_or(Tenure::Free, |by| held(&by.to_string())),
            paused: row.paused,
            asked: 0,
            footing: row.footing,
        });
        Survey {
            workers: workers.collect(),
            stopping: 0,
            subscriptions: rows.collect(),
        }
    }

    /// One round of one worker, which saw this: what moved. What it lets go is gone by its next round.
    fn turn(&mut self, me: usize, survey: &Survey) -> Result<usize, TestCaseError> {
        let Some(worker) = self.fleet.get_mut(&me) else {
            return Ok(0);
        };
        for name in std::mem::take(&mut worker.leaving) {
            worker.running.remove(&name);
            self.rows.get_mut(&name).unwrap().owner = None;
        }
        let configured: Vec<(&str, Standing)> = worker
            .names
            .iter()
            .map(|name| {
                let since = worker.running.get(name).copied();
                (name.as_str(), since.map_or(READY, running))
            })
            .collect();
        let plan = plan(&me.to_string(), &configured, survey, true);
        let name = |place: &usize| configured[*place].0.to_owned();
        let give_up: Vec<String> = plan.give_up.iter().map(name).collect();
        let claim: Vec<String> = plan.claim.iter().map(name).collect();
        for name in &give_up {
            let seen = survey.subscriptions.iter().find(|row| row.name == *name);
            let seen = seen.unwrap();
            prop_assert!(
                seen.paused || seen.footing != Footing::Begun,
                "lost: {}",
                name
            );
            worker.leaving.insert(name.clone());
        }
        for name in &claim {
            let row = self.rows.get_mut(name).unwrap();
            if row.owner.is_none() && !row.paused {
                row.owner = Some(me);
                worker.taken += 1;
                worker.running.insert(name.clone(), worker.taken);
            }
        }
        Ok(give_up.len() + claim.len())
    }

    /// All of them, in this order, with what they see now or saw before the round.
    fn round(&mut self, stale: bool, backwards: bool) -> Result<usize, TestCaseError> {
        let mut workers: Vec<usize> = self.fleet.keys().copied().collect();
        if backwards {
            workers.reverse();
        }
        let before = self.survey();
        let mut moved = 0;
        for me in workers {
            let survey = if stale { before.clone() } else { self.survey() };
            moved += self.turn(me, &survey)?;
        }
        for row in self.rows.values_mut().filter(|row| row.owner.is_some()) {
            row.footing = match (row.footing, row.slow) {
                (Footing::New, _) => Footing::Begun,
                (Footing::Begun, 1..) => {
                    row.slow -= 1;
                    Footing::Begun
                }
                _ => Footing::Placed,
            };
            moved += usize::from(row.footing != Footing::Placed);
        }
        Ok(moved)
    }

    fn load(&self, worker: usize) -> usize {
        self.rows
            .values()
            .filter(|row| row.owner == Some(worker))
            .count()
    }

    /// Every subscription that somebody can run is run, and evenly.
    fn is_well(&self) -> Result<(), TestCaseError> {
        for (name, row) in &self.rows {
            let able: Vec<usize> = self
                .fleet
                .iter()
                .filter(|(_, worker)| worker.names.contains(name))
                .map(|(holder, _)| *holder)
                .collect();
            let Some(owner) = row.owner else {
                prop_assert!(able.is_empty() || row.paused, "{} is run by nobody", name);
                continue;
            };
            prop_assert!(able.contains(&owner) && !row.paused);
            for other in able {
                prop_assert!(
                    self.load(owner) < self.load(other) + 2,
                    "{} is uneven",
                    name
                );
            }
        }
        let mut sets = self.fleet.values().map(|worker| &worker.names);
        let first = sets.next();
        if sets.all(|set| Some(set) == first) && first.is_some() {
            let run = self.rows.values().filter(|row| row.owner.is_some()).count();
            let share = run.div_ceil(self.fleet.len());
            prop_assert!(self.fleet.keys().all(|one| self.load(*one) <= share));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_fleet_comes_to_rest_with_all_run_that_somebody_can_run_and_nobody_above_the_share(
        subscriptions in 1usize..10,
        changes in prop::collection::vec((0usize..6, prop::option::weighted(0.7, any::<u16>())), 1..10),
        alike in any::<bool>(),
        paused in prop::collection::hash_set(0usize..10, 0..3),
        slow in prop::collection::vec(0u8..5, 10),
        rounds in prop::collection::vec(any::<(bool, bool)>(), 4),
    ) {
        let name = |n: usize| format!("s{n}");
        let mut world = World::default();
        for (n, slow) in slow.into_iter().enumerate().take(subscriptions) {
            let row = Row {
                owner: None,
                footing: Footing::New,
                paused: paused.contains(&n),
                slow,
            };
            world.rows.insert(name(n), row);
        }
        for (worker, comes) in changes {
            let gone = world.fleet.remove(&worker);
            for name in gone.iter().flat_map(|gone| gone.running.keys()) {
                world.rows.get_mut(name).unwrap().owner = None;
            }
            if let Some(runs) = comes {
                let names = (0..subscriptions).filter(|n| alike || runs >> n & 1 == 1);
                let worker = world.fleet.entry(worker).or_default();
                worker.names = names.map(name).collect();
            }
            let mut quiet = 0;
            for round in 0..60 {
                let (stale, backwards) = rounds[round % rounds.len()];
                // What was let go is free only a round later.
                quiet = if world.round(stale, backwards)? == 0 { quiet + 1 } else { 0 };
                if quiet == 2 {
                    break;
                }
            }
            prop_assert_eq!(quiet, 2, "it goes on and on");
            world.is_well()?;
        }
    }
}
