//! The position: everything up to it is finished whenever it is written, not only at the end.

use std::collections::HashMap;

use super::{Case, Key, Parking, covers, first_handlings};

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
