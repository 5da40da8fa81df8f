//! Holes: each has a reason, and an end.

use super::{Case, covers};

/// A lost stretch is one that the bus forgot, and each change without content is a gap.
pub(super) fn have_reasons(case: &Case, broken: &mut Vec<String>) {
    for hole in case.holes.iter().filter(|hole| hole.lost) {
        // A place before all events was a keepalive's, which no rewind comes by again: nobody can know.
        let first = case.pieces.first().map(|piece| piece.place);
        let nobody_knows = hole.reason == "perhaps_skipped_by_rewind" && hole.from < first;
        if case.gone_up_to == 0 && !nobody_knows {
            broken.push(format!(
                "{}: nothing was lost, and there is {hole:?}",
                case.name
            ));
        }
        if hole.to.is_none() {
            broken.push(format!(
                "{}: the end of {hole:?} was never filled in",
                case.name
            ));
        }
    }
    let gaps = case.holes.iter().filter(|hole| !hole.lost).count();
    let handed = case.pieces.iter().filter(|piece| {
        let lost = case
            .holes
            .iter()
            .any(|hole| covers(case, hole, piece.place));
        piece.gap && !lost
    });
    let expected = handed.count();
    if gaps < expected {
        broken.push(format!(
            "{}: {expected} gap events, and {gaps} holes of kind gap",
            case.name
        ));
    }
}
