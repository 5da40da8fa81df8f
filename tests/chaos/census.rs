//! How often the seeds of a run met what: trouble that no seed meets is trouble that nothing is known about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::account::{Account, Case};
use super::plan::{HandlerKind, Plan, Step};
use super::run::Outcome;

/// Seeds with a thing, and how often it was there in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    seeds: usize,
    counts: BTreeMap<String, (usize, usize)>,
}

impl Census {
    /// Adds what a seed was and what came of it.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        let mut things = planned(&outcome.plan);
        things.extend(
            outcome
                .accounts
                .iter()
                .flat_map(|account| account.met.clone()),
        );
        self.count_one(things);
    }

    fn count_one(&mut self, things: Vec<String>) {
        self.seeds += 1;
        let mut seen = BTreeSet::new();
        for thing in things {
            let (seeds, times) = self.counts.entry(thing.clone()).or_default();
            *times += 1;
            *seeds += usize::from(seen.insert(thing));
        }
    }

    /// Adds what another has counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        for (thing, (seeds, times)) in other.counts {
            let count = self.counts.entry(thing).or_default();
            *count = (count.0 + seeds, count.1 + times);
        }
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "census of {} seed(s): seeds with it, and how often in all",
            self.seeds
        )?;
        for (thing, (seeds, times)) in &self.counts {
            writeln!(f, "  {thing:<52} {seeds:>5} {times:>7}")?;
        }
        Ok(())
    }
}

/// What a plan has in it.
fn planned(plan: &Plan) -> Vec<String> {
    let mut things = vec![format!("plan: {} worker(s)", plan.workers)];
    let mut also = |there: bool, what: &str| {
        if there {
            things.push(format!("plan: {what}"));
        }
    };
    also(plan.pooled, "PgBouncer");
    also(plan.tidy, "tidied at the end");
    also(plan.traffic.poison > 0, "poison");
    for s in &plan.subscriptions {
        also(true, &format!("topic {}", s.feed.topic()));
        also(true, &format!("ordering {}", s.ordering));
        also(true, &format!("on_expired {}", s.on_expired));
        also(s.handlers.len() > 1, "two handlers");
        also(s.grouped, "group = transaction");
        let append = |h: &super::plan::Handler| h.kind == HandlerKind::Append;
        also(s.handlers.iter().any(append), "append handler, in batches");
    }
    things.extend(
        plan.steps
            .iter()
            .map(|(_, step)| format!("step: {}", kind(step))),
    );
    things
}

/// A step without its numbers.
fn kind(step: &Step) -> String {
    match step {
        Step::Freeze { length, .. } if length.as_millis() > 2_000 => {
            "Freeze, beyond the lease".to_owned()
        }
        Step::Fault(fault) => format!("Fault {}", fault["kind"].as_str().unwrap_or("")),
        Step::StoreLine { trouble, .. } => format!("StoreLine {trouble:?}"),
        Step::OrgLine { trouble, .. } => format!("OrgLine {trouble:?}"),
        Step::Replay { beside: true, .. } => "Replay beside, without an end".to_owned(),
        Step::Replay { .. } => "Replay, a rewind".to_owned(),
        Step::ReplayTo { .. } => "Replay beside, with an end".to_owned(),
        Step::RestartPostgres(how) => format!("RestartPostgres {how:?}"),
        Step::Behave { mode, .. } => format!("handler {}", word(&format!("{mode:?}"))),
        other => word(&format!("{other:?}")),
    }
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// What has come of the trouble: without it, a step may have come to nothing.
pub(crate) fn met(case: &Case, account: &Account) -> Vec<String> {
    let mut met = Vec::new();
    let mut add = |what: &str, times: usize| {
        met.extend(std::iter::repeat_n(format!("met: {what}"), times));
    };
    let raised = |w: &&super::account::Write| w.after.epoch != w.before.epoch;
    add(
        "takeover",
        case.writes.iter().filter(raised).count().saturating_sub(1),
    );
    for letter in &case.letters {
        add(
            &format!("letter {}, {} in the end", letter.reason, letter.state),
            1,
        );
    }
    for hole in &case.holes {
        add(&format!("hole {}", hole.reason), 1);
    }
    for line in &account.lines {
        add("repeat under a later epoch", line.repeats);
        add("repeat under the same epoch", line.again);
        add("late hand-over", line.late);
    }
    met
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_trouble_is_in_many_of_two_hundred_seeds() {
        let mut census = Census::default();
        for seed in 1_000..1_200 {
            census.count_one(planned(&Plan::of(seed)));
        }
        let rare: Vec<_> = census
            .counts
            .iter()
            .filter(|(_, (seeds, _))| *seeds < 6)
            .collect();
        assert!(rare.is_empty(), "{rare:?}\n{census}");
        for wanted in [
            "step: Kill",
            "step: Freeze",
            "step: Freeze, beyond the lease",
            "step: RestartPostgres Fast",
            "step: RestartPostgres Immediate",
            "step: FreezePostgres",
            "step: ReadOnly",
            "step: Fault reset",
            "step: Fault silence",
            "step: Fault half_open",
            "step: ExpireTokens",
            "step: RevokeTokens",
            "step: Fault error",
            "step: handler Slow",
            "step: handler Failing",
            "step: handler Hanging",
            "step: handler Refusing",
            "step: ChangeSchema",
            "step: ExpireBus",
            "step: ResetBus",
            "step: Pause",
            "step: Replay, a rewind",
            "step: Replay beside, without an end",
            "step: Replay beside, with an end",
            "step: Retry",
            "step: Discard",
            "step: Rename",
            "step: Scale",
            "plan: poison",
            "plan: two handlers",
            "plan: append handler, in batches",
            "plan: group = transaction",
            "plan: ordering strict",
            "plan: ordering none",
            "plan: PgBouncer",
        ] {
            assert!(
                census.counts.contains_key(wanted),
                "{wanted} is in no seed\n{census}"
            );
        }
    }

    #[test]
    fn a_census_counts_seeds_and_times() {
        let mut census = Census::default();
        census.count_one(vec!["a".to_owned(), "a".to_owned(), "b".to_owned()]);
        let mut other = Census::default();
        other.count_one(vec!["a".to_owned()]);
        census.add(other);
        assert_eq!(
            (census.seeds, census.counts["a"], census.counts["b"]),
            (2, (2, 3), (1, 1))
        );
    }
}
