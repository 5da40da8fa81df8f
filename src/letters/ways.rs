//! Which parked events stand in whose way (design 3.1, rule 7), as the owner of a subscription sees it. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::config::Ordering;
use crate::store::LetterSummary;
use crate::subscription::Holding;

/// Why an open parked event is not handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is, as soon as its handler takes it.
    Free,
    /// Nobody has asked for it.
    Rests,
    /// This one rests, and holds one of its records, directly or through others.
    Behind(i64),
}

/// Events that are handed over together.
type Unit<'a> = Vec<&'a LetterSummary>;

/// For each open letter what keeps it; `unordered` names subscriptions where nothing is held back.
pub(crate) fn ways(open: &[LetterSummary], unordered: &HashSet<String>) -> HashMap<i64, Way> {
    let mut letters: Vec<&LetterSummary> = open.iter().collect();
    letters.sort_by_key(|letter| letter.placed);
    // Who rests, by what it holds. A letter of all handlers holds for each.
    let mut rests: HashMap<(&str, Option<&str>, &str), i64> = HashMap::new();
    let mut ways = HashMap::with_capacity(letters.len());
    for unit in units(&letters) {
        let Some(first) = unit.first() else { continue };
        let (subscription, handler) = (first.subscription.as_str(), first.handler.as_deref());
        let records = || {
            let held = unit.iter().filter(|letter| holds(letter, unordered));
            held.flat_map(|letter| letter.record_ids.iter().map(String::as_str))
        };
        let behind = records().find_map(|record| {
            let mine = rests.get(&(subscription, handler, record));
            let all = rests.get(&(subscription, None, record));
            mine.or(all).copied()
        });
        let is_behind = |letter: &&LetterSummary| letter.reason == "parked_behind";
        let wanted = unit.iter().any(|letter| letter.asked)
            || unit.iter().all(is_behind)
            || handler.is_some() && unit.iter().any(is_behind);
        let way = match behind {
            // It is passed on to the handlers, and waits there.
            Some(_) if handler.is_none() && wanted => Way::Free,
            Some(id) => Way::Behind(id),
            None if wanted => Way::Free,
            None => Way::Rests,
        };
        let root = match way {
            Way::Free => None,
            Way::Rests => Some(first.placed.id),
            Way::Behind(id) => Some(id),
        };
        if let Some(root) = root {
            for record in records() {
                rests.entry((subscription, handler, record)).or_insert(root);
            }
        }
        ways.extend(unit.iter().map(|letter| (letter.placed.id, way)));
    }
    ways
}

/// As the owner takes it.
fn holds(letter: &LetterSummary, unordered: &HashSet<String>) -> bool {
    if unordered.contains(&letter.subscription) {
        return false;
    }
    // Ours, so that it is one.
    let Ok(topic) = letter.topic.parse() else {
        return !letter.record_ids.is_empty();
    };
    let holding = Holding::new(Ordering::Record, &topic);
    !holding.records(&letter.record_ids).is_empty()
}

/// Letters in their order, those of a unit where its first one is.
fn units<'a>(letters: &[&'a LetterSummary]) -> Vec<Unit<'a>> {
    let mut units: Vec<Unit<'a>> = Vec::new();
    let mut of: BTreeMap<(&str, Option<&str>, &str), usize> = BTreeMap::new();
    for letter in letters {
        let Some(unit) = letter.unit.as_deref() else {
            units.push(vec![letter]);
            continue;
        };
        let key = (
            letter.subscription.as_str(),
            letter.handler.as_deref(),
            unit,
        );
        let at = *of.entry(key).or_insert(units.len());
        match units.get_mut(at) {
            Some(unit) => unit.push(letter),
            None => units.push(vec![letter]),
        }
    }
    units
}

/// These with all of their units.
pub(crate) fn whole(open: &[LetterSummary], named: &HashSet<i64>) -> HashSet<i64> {
    let all: Vec<&LetterSummary> = open.iter().collect();
    let is_named = |letter: &&LetterSummary| named.contains(&letter.placed.id);
    let units = units(&all)
        .into_iter()
        .filter(|unit| unit.iter().any(is_named));
    let theirs = units.flatten().map(|letter| letter.placed.id);
    theirs.chain(named.iter().copied()).collect()
}

/// How many letters behind `gone` will be handed over once those are given up, and were not before.
pub(crate) fn released(
    open: &[LetterSummary],
    gone: &HashSet<i64>,
    unordered: &HashSet<String>,
) -> usize {
    let before = ways(open, unordered);
    let left: Vec<LetterSummary> = open
        .iter()
        .filter(|letter| !gone.contains(&letter.placed.id))
        .cloned()
        .collect();
    let free = |(id, way): (&i64, &Way)| *way == Way::Free && before.get(id) != Some(&Way::Free);
    ways(&left, unordered)
        .iter()
        .filter(|one| free(*one))
        .count()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::event::EventIdentity;
    use crate::store::Placed;

    pub(crate) fn letter(
        id: i64,
        handler: Option<&str>,
        records: &[&str],
        reason: &str,
    ) -> LetterSummary {
        LetterSummary {
            placed: Placed { place: id, id },
            subscription: "accounts".into(),
            topic: "/data/AccountChangeEvent".into(),
            handler: handler.map(str::to_owned),
            identity: EventIdentity::from_stored(&id.to_string()),
            state: "open".into(),
            reason: reason.into(),
            error: "422".into(),
            record_ids: records.iter().map(|record| (*record).to_owned()).collect(),
            unit: None,
            asked: false,
            replay_id: None,
            bytes: 1,
            received_at: std::time::SystemTime::UNIX_EPOCH,
            commit: None,
            to_come: false,
            until: None,
        }
    }

    fn behind(id: i64, records: &[&str]) -> LetterSummary {
        letter(id, Some("hook"), records, "parked_behind")
    }

    #[test]
    fn what_rests_is_in_the_way_of_all_behind_it_and_what_is_asked_for_is_not() {
        let mut open = vec![
            letter(1, Some("hook"), &["A"], "rejected"),
            behind(2, &["A", "B"]),
            behind(3, &["B"]),
            behind(4, &["C"]),
            letter(5, Some("log"), &["A"], "rejected"),
            letter(6, Some("hook"), &["001*"], "rejected"),
        ];
        let none = HashSet::new();
        let found = ways(&open, &none);
        assert_eq!(found[&1], Way::Rests);
        assert_eq!((found[&2], found[&3]), (Way::Behind(1), Way::Behind(1)));
        assert_eq!(
            (found[&4], found[&5], found[&6]),
            (Way::Free, Way::Rests, Way::Rests)
        );
        assert_eq!(released(&open, &HashSet::from([1]), &none), 2);
        assert_eq!(released(&open, &HashSet::from([1, 2]), &none), 1);
        assert_eq!(released(&open, &HashSet::from([5]), &none), 0);
        open[0].asked = true;
        assert_eq!(ways(&open, &none)[&3], Way::Free);
    }

    #[test]
    fn a_key_holds_whatever_it_looks_like() {
        let order = |letter: LetterSummary| LetterSummary {
            topic: "/event/Order__e".into(),
            ..letter
        };
        let open = [
            order(letter(1, Some("hook"), &["O-1*"], "rejected")),
            order(behind(2, &["O-1*"])),
        ];
        assert_eq!(ways(&open, &HashSet::new())[&2], Way::Behind(1));
        assert_eq!(released(&open, &HashSet::from([1]), &HashSet::new()), 1);
    }

    #[test]
    fn what_could_not_be_decoded_is_in_the_way_of_every_handler() {
        let open = [letter(1, None, &["A"], "undecodable"), behind(2, &["A"])];
        assert_eq!(ways(&open, &HashSet::new())[&2], Way::Behind(1));
        let unordered = HashSet::from(["accounts".to_owned()]);
        assert_eq!(ways(&open, &unordered)[&2], Way::Free);
    }

    #[test]
    fn events_of_a_transaction_wait_together() {
        let of = |letter: LetterSummary| LetterSummary {
            unit: Some("t".into()),
            ..letter
        };
        let open = [
            letter(1, Some("hook"), &["B"], "rejected"),
            of(behind(2, &["A"])),
            of(behind(3, &["B"])),
        ];
        assert_eq!(ways(&open, &HashSet::new())[&2], Way::Behind(1));
        assert_eq!(whole(&open, &HashSet::from([3])), HashSet::from([2, 3]));
        assert_eq!(whole(&open, &HashSet::from([1])), HashSet::from([1]));
    }
}
