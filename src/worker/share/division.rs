//! Subscriptions divided among workers that cannot all run the same: none could pass one on, directly or
//! through others, to a worker that has two less. That is the most even division there is (an optimal
//! semi-matching), and it is come to from the present one by few moves.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How much is against moving a subscription to another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ease {
    /// Nobody runs it.
    Free,
    /// It is handed over.
    Easy,
    /// The same, and it has no position yet.
    Hard,
    /// Something would be lost.
    Never,
}

/// A subscription to be divided.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    /// Who can run it, as places in the list of workers.
    pub(super) able: Vec<usize>,
    /// Who runs it.
    pub(super) owner: Option<usize>,
    pub(super) ease: Ease,
    /// Among those that are as easy to move the least goes first.
    pub(super) rank: u64,
}

/// Who should run what.
#[derive(Debug)]
pub(super) struct Division<'a> {
    workers: Vec<&'a str>,
    parts: Vec<Part<'a>>,
    load: Vec<usize>,
}

/// One subscription that goes to another worker.
type Move = (usize, usize);

/// What a way from one worker to another costs: who is disturbed by it, and how long it is.
type Cost = (usize, usize);

impl<'a> Division<'a> {
    /// Divides. What nobody can run stays with nobody.
    pub(super) fn new(workers: Vec<&'a str>, parts: Vec<Part<'a>>) -> Self {
        let mut load = vec![0; workers.len()];
        for owner in parts.iter().filter_map(|part| part.owner) {
            load[owner] += 1;
        }
        let mut division = Self {
            workers,
            parts,
            load,
        };
        division.give_out();
        // Each makes the sum of the squares of the loads less.
        while let Some(moves) = division.better() {
            for (part, to) in moves {
                division.assign(part, to);
            }
        }
        division
    }

    /// Names that fall to a worker.
    pub(super) fn of(&self, worker: &str) -> impl Iterator<Item = &'a str> {
        let place = self.workers.iter().position(|one| *one == worker);
        self.parts
            .iter()
            .filter(move |part| part.owner.is_some() && part.owner == place)
            .map(|part| part.name)
    }

    /// What nobody has goes to whoever has the least.
    fn give_out(&mut self) {
        for index in 0..self.parts.len() {
            let part = &self.parts[index];
            let least = |worker: &&usize| {
                let order = order(self.workers[**worker], part.name);
                (self.load[**worker], order)
            };
            let to = part.able.iter().min_by_key(least).copied();
            if let Some(to) = to.filter(|_| part.owner.is_none()) {
                self.assign(index, to);
            }
        }
    }

    fn assign(&mut self, part: usize, to: usize) {
        if let Some(from) = self.parts[part].owner.replace(to) {
            self.load[from] -= 1;
        }
        self.load[to] += 1;
    }

    /// Moves that leave one worker with one less, and one with one more that has two less; none where it
    /// cannot be more even.
    fn better(&self) -> Option<Vec<Move>> {
        let least = self.load.iter().min().copied()?;
        let mut from: Vec<usize> = (0..self.load.len())
            .filter(|worker| self.load[*worker] >= least + 2)
            .collect();
        if from.is_empty() {
            return None;
        }
        from.sort_by_key(|worker| Reverse(self.load[*worker]));
        let hops = self.hops();
        from.into_iter().find_map(|from| self.way(from, &hops))
    }

    /// The subscription that goes most easily from one worker to another, for each pair.
    fn hops(&self) -> Vec<Vec<Option<usize>>> {
        let count = self.workers.len();
        let mut hops = vec![vec![None; count]; count];
        let key = |part: usize| (self.parts[part].ease, self.parts[part].rank, part);
        for (index, part) in self.parts.iter().enumerate() {
            let Some(owner) = part.owner.filter(|_| part.ease != Ease::Never) else {
                continue;
            };
            for to in part.able.iter().filter(|to| **to != owner) {
                let best: &mut Option<usize> = &mut hops[owner][*to];
                if best.is_none_or(|best| key(index) < key(best)) {
                    *best = Some(index);
                }
            }
        }
        hops
    }

    /// The cheapest way from a worker to the one with the least of those it can reach.
    fn way(&self, from: usize, hops: &[Vec<Option<usize>>]) -> Option<Vec<Move>> {
        let count = self.workers.len();
        let mut reached: Vec<Option<(Cost, usize, usize)>> = vec![None; count];
        let mut work = vec![from];
        while let Some(at) = work.pop() {
            let so_far = reached[at].map_or((0, 0), |(cost, ..)| cost);
            for to in (0..count).filter(|to| *to != from) {
                let Some(part) = hops[at][to] else { continue };
                let disturbed = usize::from(self.parts[part].ease != Ease::Free);
                let cost = (so_far.0 + disturbed, so_far.1 + 1);
                if reached[to].is_none_or(|(known, ..)| cost < known) {
                    reached[to] = Some((cost, at, part));
                    work.push(to);
                }
            }
        }
        let enough = self.load[from].checked_sub(2)?;
        let mut to = (0..count)
            .filter(|to| self.load[*to] <= enough)
            .filter_map(|to| reached[to].map(|(cost, ..)| (self.load[to], cost, to)))
            .min()?
            .2;
        let mut moves = Vec::new();
        while let Some((_, before, part)) = reached[to].filter(|_| to != from) {
            moves.push((part, to));
            to = before;
        }
        Some(moves)
    }
}

/// An order of each worker's own, so that the first in the list does not get all that is left over.
fn order(worker: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (worker, name).hash(&mut hasher);
    hasher.finish()
}
