//! Order: first handlings by record, and one call at a time.

use std::collections::{HashMap, HashSet};

use super::{Answered, Case, HandlerCase, Hole, Key, Lanes, NO_RECORD, Piece, Poison};

/// First handlings follow bus order, lane by lane. An event that was given up holds its own records, and
/// nothing else: where it has none, and in strict order, later ones pass it, and barriers pass it anywhere.
pub(super) fn in_order(
    case: &Case,
    handler: &HandlerCase,
    known: &HashMap<Key<'_>, &Piece>,
    broken: &mut Vec<String>,
) {
    let given_up = given_up(case, handler);
    let mut seen = HashSet::new();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    // The newest of all, and the newest that everything stays in order with.
    let (mut any, mut all) = (0, 0);
    let mut barrier: Option<Key<'_>> = None;
    for key in super::handled_live(handler)
        .iter()
        .filter(|key| seen.insert(**key))
    {
        let Some(piece) = known.get(key) else {
            continue;
        };
        let given_up = given_up.contains(key) || matches!(piece.poison, Poison::Fails(_));
        let before = match &piece.lanes {
            Lanes::All if !given_up => any,
            Lanes::Of(lanes) if !given_up || !lanes.iter().any(|lane| lane == NO_RECORD) => {
                let own = lanes.iter().filter_map(|lane| newest.get(lane.as_str()));
                let own = own.copied().max().unwrap_or(0);
                if given_up { own } else { own.max(all) }
            }
            _ => continue,
        };
        // Siblings share a place and have records of their own, but for `strict`.
        let passes = |barrier| before == all && is_unwritten(handler, *key, barrier);
        let may_be = || {
            (is_letter(case, piece.place) && case.nobody_knows(piece.place, before))
                || barrier.is_some_and(passes)
                || is_rewound_to(case, handler, *key, before)
        };
        if before > piece.place && !may_be() {
            broken.push(format!(
                "{}/{}: {key:?} of {:?} was first handled after {before}",
                case.name, handler.name, piece.lanes
            ));
        }
        if !given_up {
            any = any.max(piece.place);
        }
        match &piece.lanes {
            Lanes::None => {}
            Lanes::All => {
                if piece.place > all {
                    (all, barrier) = (piece.place, Some(*key));
                }
            }
            Lanes::Of(lanes) => {
                for lane in lanes {
                    let newest = newest.entry(lane).or_default();
                    *newest = piece.place.max(*newest);
                }
            }
        }
    }
}

fn is_letter(case: &Case, place: u64) -> bool {
    case.letters.iter().any(|letter| letter.place == place)
}

/// True where a worker let a barrier pass an event because it had given up one that was before it or it itself,
/// and was followed before it could write that: then the event comes again, in its turn, under a later epoch.
fn is_unwritten(handler: &HandlerCase, event: Key<'_>, barrier: Key<'_>) -> bool {
    let first = |(place, record): Key<'_>| {
        let mut live = super::successes(handler).filter(|answer| !answer.replayed);
        live.find(|answer| answer.place == place && answer.record == record)
    };
    let (Some(event), Some(barrier)) = (first(event), first(barrier)) else {
        return false;
    };
    let mut failures: HashMap<(u64, &str), u32> = HashMap::new();
    let failed = |answer: &&Answered| {
        answer.status != 200
            && answer.epoch == barrier.epoch
            && answer.at_us <= barrier.came_us
            && answer.place <= event.place
    };
    for answer in handler.answers.iter().filter(failed) {
        let key = (answer.place, answer.record.as_str());
        *failures.entry(key).or_default() += 1;
    }
    barrier.epoch < event.epoch && failures.values().any(|count| *count >= handler.attempts)
}

/// True where the position was lost and the stream went on at LATEST, past an event that a rewind then brought after
/// all.
fn is_rewound_to(case: &Case, handler: &HandlerCase, event: Key<'_>, before: u64) -> bool {
    let epoch = |is: &dyn Fn(&Answered) -> bool| {
        let mut live = super::successes(handler).filter(|answer| !answer.replayed);
        live.find(|answer| is(answer)).map(|answer| answer.epoch)
    };
    let its = epoch(&|answer| (answer.place, answer.record.as_str()) == event);
    let other = epoch(&|answer| answer.place == before);
    let is_past = |hole: &Hole| {
        let from = hole.from.is_none_or(|from| from < event.0);
        hole.lost && from && hole.to.is_some_and(|to| event.0 < to && to <= before)
    };
    let later = its.zip(other).is_some_and(|(its, other)| other < its);
    case.skips && case.replays && later && case.holes.iter().any(is_past)
}

/// What a handler has refused, or was ever parked for it.
fn given_up<'a>(case: &'a Case, handler: &'a HandlerCase) -> HashSet<Key<'a>> {
    let refused = handler.answers.iter().filter(|answer| answer.status == 422);
    let refused = refused.map(|answer| (answer.place, answer.record.as_str()));
    let letters = case.letters.iter();
    let letters = letters.map(|letter| (letter.place, letter.record.as_str()));
    refused.chain(letters).collect()
}

/// Under one epoch a handler has no two calls at once of events that stay in order with each other.
pub(super) fn one_at_a_time(
    case: &Case,
    handler: &HandlerCase,
    known: &HashMap<Key<'_>, &Piece>,
    broken: &mut Vec<String>,
) {
    let given_up = given_up(case, handler);
    let mut answers: Vec<&Answered> = handler.answers.iter().collect();
    answers.sort_by_key(|answer| (answer.epoch, answer.came_us));
    // The call that ended last, of each lane and of all.
    let mut calls: HashMap<&str, &Answered> = HashMap::new();
    let mut epoch = -1;
    for answer in answers {
        if answer.epoch != epoch {
            epoch = answer.epoch;
            calls.clear();
        }
        let key = (answer.place, answer.record.as_str());
        let Some(piece) = known.get(&key) else {
            continue;
        };
        // What is tried again is in no order with events of no record.
        let apart = given_up.contains(&key);
        let lanes: Vec<&str> = match &piece.lanes {
            Lanes::Of(lanes) => lanes.iter().map(String::as_str).collect(),
            Lanes::All if !apart => vec![EVERYTHING],
            _ => continue,
        };
        let meets = |lane: &&str| lanes.contains(lane) || lanes.contains(&EVERYTHING);
        let busy = calls
            .iter()
            .filter(|(lane, _)| meets(lane) || **lane == EVERYTHING)
            .filter(|(lane, _)| !(apart && [NO_RECORD, EVERYTHING].contains(*lane)))
            // The events of one call come at one moment.
            .find(|(_, call)| call.at_us > answer.came_us && call.came_us != answer.came_us);
        if let Some((_, call)) = busy {
            broken.push(format!(
                "{}/{}: {key:?} of {:?} was handed over while {} was with the handler",
                case.name, handler.name, piece.lanes, call.place
            ));
        }
        for lane in lanes {
            if apart && lane == NO_RECORD {
                continue;
            }
            let last = calls.entry(lane).or_insert(answer);
            if last.at_us < answer.at_us {
                *last = answer;
            }
        }
    }
}

/// The lane of what stays in order with everything.
const EVERYTHING: &str = "(everything)";
