//! Dead letters: each has a reason, and holds its records until it is gone.

use std::collections::HashMap;

use super::{
    Answered, Case, HandlerCase, Key, Lanes, Letter, Parking, Piece, Poison, first_handlings,
};

/// Nothing is parked without need.
pub(super) fn have_reasons(
    case: &Case,
    known: &HashMap<Key<'_>, &Piece>,
    broken: &mut Vec<String>,
) {
    for letter in &case.letters {
        let of_place = case
            .pieces
            .iter()
            .filter(|piece| piece.place == letter.place);
        let mut pieces = of_place.peekable();
        if pieces.peek().is_none() {
            broken.push(format!(
                "{}: {letter:?} is of no published event",
                case.name
            ));
            continue;
        }
        let explained = match letter.reason.as_str() {
            // The others of its transaction are parked behind it.
            "undecodable" => pieces.any(|piece| piece.poison == Poison::Bytes),
            "schema_refused" => pieces.any(|piece| piece.poison == Poison::Schema),
            // Retried while the org could not be asked once more.
            "schema_unavailable" => {
                pieces.any(|piece| matches!(piece.poison, Poison::Bytes | Poison::Schema))
            }
            "rejected" => answers_of(case, letter).any(|answer| answer.status == 422),
            "exhausted" => {
                let attempts = case
                    .handlers
                    .iter()
                    .find(|handler| Some(&handler.name) == letter.handler.as_ref())
                    .map_or(0, |handler| handler.attempts);
                let failed = answers_of(case, letter).filter(|answer| answer.status != 200);
                failed.count() >= attempts as usize
            }
            // What could not be decoded, and can be now, is exchanged for a letter of each handler.
            "parked_behind" => {
                pieces.any(|piece| matches!(piece.poison, Poison::Bytes | Poison::Schema))
                    || known
                        .get(&(letter.place, letter.record.as_str()))
                        .is_some_and(|piece| is_behind_another(case, letter, piece))
            }
            _ => false,
        };
        if !explained {
            broken.push(format!("{}: nothing explains {letter:?}", case.name));
        }
    }
}

/// What the letter's handler answered for its event.
fn answers_of<'a>(case: &'a Case, letter: &'a Letter) -> impl Iterator<Item = &'a Answered> {
    let of_letter = case
        .handlers
        .iter()
        .filter(|handler| Some(&handler.name) == letter.handler.as_ref());
    of_letter
        .flat_map(|handler| &handler.answers)
        .filter(|answer| answer.place == letter.place && answer.record == letter.record)
}

/// Another letter holds it: an older one of a record of its own, or one of its own transaction.
fn is_behind_another(case: &Case, letter: &Letter, piece: &Piece) -> bool {
    let mut put_down = case.parkings.iter().filter(|other| other.open);
    put_down.any(|other| {
        let together = other.handler.is_none() || other.handler == letter.handler;
        // A transaction is parked whole, whatever holds one event of it.
        let shares = case.grouped || shares(&piece.lanes, &other.records);
        other.place < letter.place && together && shares
    })
}

fn shares(lanes: &Lanes, records: &[String]) -> bool {
    match lanes {
        Lanes::Of(lanes) => lanes.iter().any(|lane| records.contains(lane)),
        _ => false,
    }
}

/// While a letter is open, nothing younger of its records is handed to its handler for the first time.
pub(super) fn held(
    case: &Case,
    handler: &HandlerCase,
    known: &HashMap<Key<'_>, &Piece>,
    broken: &mut Vec<String>,
) {
    let handlings = first_handlings(handler);
    let mut by_lane: HashMap<&str, Vec<(u64, i64)>> = HashMap::new();
    for (key, (came_us, _)) in &handlings {
        if let Some(Lanes::Of(lanes)) = known.get(key).map(|piece| &piece.lanes) {
            for lane in lanes {
                let of_lane = by_lane.entry(lane).or_default();
                of_lane.push((key.0, *came_us));
            }
        }
    }
    let stretches = stretches(case, handler);
    for stretch in stretches.iter().filter(|s| !s.letter.replayed) {
        let letter = stretch.letter;
        let own = letter.records.first().map_or("", String::as_str);
        let own = handlings
            .get(&(letter.place, own))
            .or(handlings.get(&(letter.place, "")));
        // What follows goes as soon as it is answered, or comes with it; the row is marked afterwards.
        let until = own.map_or(i64::MAX, |(_, at)| *at).min(stretch.until);
        let together = own.map(|(came_us, _)| *came_us);
        let passed = letter
            .records
            .iter()
            .flat_map(|record| by_lane.get(record.as_str()).into_iter().flatten());
        for (place, came_us) in passed {
            let meanwhile = (letter.at_us..until).contains(came_us) && Some(*came_us) != together;
            let younger = *place > letter.place && !case.nobody_knows(letter.place, *place);
            if younger && meanwhile {
                broken.push(format!(
                    "{}/{}: {place} was handed over past {letter:?}",
                    case.name, handler.name
                ));
            }
        }
    }
}

/// How long a letter was open.
struct Stretch<'a> {
    letter: &'a Parking,
    until: i64,
}

fn stretches<'a>(case: &'a Case, handler: &HandlerCase) -> Vec<Stretch<'a>> {
    let mut open: HashMap<i64, &Parking> = HashMap::new();
    let mut done = Vec::new();
    for parking in &case.parkings {
        if parking
            .handler
            .as_ref()
            .is_some_and(|of| *of != handler.name)
        {
            continue;
        }
        if parking.open {
            open.entry(parking.letter).or_insert(parking);
        } else if let Some(letter) = open.remove(&parking.letter) {
            done.push(Stretch {
                letter,
                until: parking.at_us,
            });
        }
    }
    let left = open.into_values().map(|letter| Stretch {
        letter,
        until: i64::MAX,
    });
    done.extend(left);
    done
}

/// After tidying nothing is parked any more, and nothing was given up that could be handled.
pub(super) fn seen_to(case: &Case, broken: &mut Vec<String>) {
    if case.tidied {
        let left = case.letters.iter().filter(|letter| letter.state == "open");
        broken.extend(left.map(|letter| format!("{}: {letter:?} was left", case.name)));
        let discarded = case.letters.iter().filter(|l| l.state == "discarded");
        let mut reasons = vec!["undecodable", "schema_refused"];
        if case.discards {
            reasons.push("rejected");
        }
        for letter in discarded.filter(|l| !reasons.contains(&&*l.reason)) {
            broken.push(format!("{}: nobody discarded {letter:?}", case.name));
        }
    }
}
