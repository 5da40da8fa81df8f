//! The position: everything up to it is finished whenever it is written, not only at the end, and what is
//! finished above it is stored beside it.

use std::collections::{HashMap, HashSet};

use super::repeats::AN_ANSWER_TAKES_US;
use super::{Case, HandlerCase, Key, Parking, covers, first_handlings};

/// No write of the position passes an event that is neither handled, nor parked, nor in a hole by then.
pub(super) fn passes_nothing_unfinished(case: &Case, broken: &mut Vec<String>) {
    for handler in &case.handlers {
        let handled = first_handlings(handler);
        let parked = first_parkings(case, &handler.name);
        let done_at = |place, record: &str| {
            let handled = handled.get(&(place, record)).map(|(_, at)| *at);
            let parked = parked.get(&(place, record)).or(parked.get(&(place, "")));
            handled.into_iter().chain(parked.copied()).min()
        };
        let mut pieces = case.pieces.iter().peekable();
        for write in &case.writes {
            let Some(position) = write.after.position else {
                continue;
            };
            while let Some(piece) = pieces.next_if(|piece| piece.place <= position) {
                let done = done_at(piece.place, &piece.record).is_some_and(|at| at <= write.at_us);
                let lost = || {
                    case.holes
                        .iter()
                        .any(|hole| covers(case, hole, piece.place))
                };
                if !done && !lost() {
                    broken.push(format!(
                        "{}/{}: position {position} was written under epoch {} while ({}, {:?}) was unfinished",
                        case.name, handler.name, write.after.epoch, piece.place, piece.record
                    ));
                }
            }
        }
    }
}

/// When each event was first parked for a handler, or for everyone.
fn first_parkings<'a>(case: &'a Case, handler: &str) -> HashMap<Key<'a>, i64> {
    let mut first = HashMap::new();
    let of_handler = |parking: &&Parking| parking.handler.as_ref().is_none_or(|of| of == handler);
    for parking in case.parkings.iter().filter(of_handler).filter(|p| p.open) {
        // Of a platform event the key's value is held, which tells nothing apart: it is alone at its place.
        let record = parking.records.first().map_or("", String::as_str);
        for record in [record, ""] {
            if record.is_empty() && case.pieces_at(parking.place) > 1 && !parking.records.is_empty()
            {
                continue;
            }
            first
                .entry((parking.place, record))
                .or_insert(parking.at_us);
        }
    }
    first
}

/// What a handler had finished when the last write but one was done is in the store after the last: passed by
/// the position, or marked as finished ahead of it. Else it would come again after a crash.
pub(super) fn keeps_what_is_ahead(case: &Case, broken: &mut Vec<String>) {
    for handler in &case.handlers {
        let parked: HashSet<u64> = case.parkings.iter().map(|parking| parking.place).collect();
        let mut known_since = 0;
        let mut epoch = 0;
        for write in &case.writes {
            let (before, after) = (&write.before, &write.after);
            if after.epoch != epoch {
                (epoch, known_since) = (after.epoch, 0);
            }
            if after.write_number <= before.write_number {
                continue;
            }
            let until = known_since - AN_ANSWER_TAKES_US;
            known_since = write.at_us;
            let Some(position) = after.position else {
                continue;
            };
            let of_handler = write
                .ahead
                .iter()
                .filter(|mark| mark.handler == handler.name);
            let marks: HashSet<(u64, &str)> = of_handler
                .map(|mark| (mark.place, mark.record.as_str()))
                .collect();
            let places: HashSet<u64> = marks.iter().map(|(place, _)| *place).collect();
            let finished = finished_under(handler, epoch).filter(|(key, at)| {
                let marked =
                    marks.contains(key) || case.pieces_at(key.0) == 1 && places.contains(&key.0);
                key.0 > position && *at < until && !marked && !parked.contains(&key.0)
            });
            for (key, _) in finished {
                broken.push(format!(
                    "{}/{}: {key:?} was finished long before a write under epoch {epoch}, which neither passed \
                     it nor marked it as finished",
                    case.name, handler.name
                ));
            }
        }
    }
}

/// What a handler of a far end answered under an epoch, and when. Append handlers leave their marks with
/// their rows.
fn finished_under(handler: &HandlerCase, epoch: i64) -> impl Iterator<Item = (Key<'_>, i64)> {
    super::successes(handler)
        .filter(move |answer| answer.epoch == epoch && !answer.replayed)
        .map(|answer| ((answer.place, answer.record.as_str()), answer.at_us))
}
