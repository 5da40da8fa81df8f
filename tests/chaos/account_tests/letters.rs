//! What is parked, and what it holds.

use super::super::account::{Answered, Lanes, Poison};
use super::{answers, finds, letter, parking, passes, sound};

#[test]
fn what_was_given_up_holds_its_records_and_nothing_else() {
    let mut case = sound();
    answers(&mut case).swap(3, 5);
    case.letters.push(letter(4, Some("a"), "rejected"));
    case.letters[0].state = "handled".to_owned();
    let mut refused = answers(&mut case)[5].clone();
    refused.status = 422;
    answers(&mut case).insert(3, refused);
    finds(&case, "(4, \"record 0\")");
    for place in [4, 6] {
        case.pieces[place - 1].lanes = Lanes::Of(vec!["(no record)".to_owned()]);
    }
    passes(&case);
    for piece in &mut case.pieces[3..6] {
        piece.lanes = Lanes::All;
    }
    // Number 5 is passed by 6, which nothing explains.
    finds(&case, "(5, \"record 1\") of All was first handled after 6");
}

#[test]
fn a_barrier_passes_what_was_given_up_by_a_worker_that_could_not_write_it() {
    let mut case = sound();
    answers(&mut case).swap(3, 5);
    case.pieces[5].lanes = Lanes::All;
    finds(&case, "was first handled after 6");
    // The next worker is given numbers 4 and 5 again.
    for answer in &mut answers(&mut case)[4..] {
        answer.epoch += 1;
    }
    finds(&case, "was first handled after 6");
    for _ in 0..case.handlers[0].attempts {
        let barrier = answers(&mut case)[3].clone();
        let failed = Answered {
            place: 4,
            record: "record 0".to_owned(),
            at_us: barrier.came_us,
            status: 503,
            ..barrier
        };
        answers(&mut case).insert(3, failed);
    }
    passes(&case);
}

#[test]
fn a_letter_that_is_said_to_be_handled_stands_for_nothing() {
    let mut case = sound();
    answers(&mut case)[7].status = 422;
    case.letters.push(letter(8, Some("a"), "rejected"));
    case.letters[0].state = "handled".to_owned();
    finds(&case, "is neither handled nor parked nor in a hole");
}

#[test]
fn a_letter_that_is_left_after_tidying_or_that_nobody_discarded_is_found() {
    let mut case = sound();
    answers(&mut case)[7].status = 422;
    case.letters.push(letter(8, Some("a"), "rejected"));
    case.tidied = true;
    finds(&case, "was left");
    case.letters[0].state = "discarded".to_owned();
    finds(&case, "nobody discarded");
}

#[test]
fn an_event_parked_behind_another_needs_one_before_it() {
    let mut case = sound();
    case.letters.push(letter(8, Some("a"), "parked_behind"));
    finds(&case, "nothing explains");
    answers(&mut case)[5].status = 422;
    case.letters.push(letter(6, Some("a"), "rejected"));
    parking(&mut case, 6, Some("a"), 66, true);
    parking(&mut case, 6, Some("a"), 68, false);
    passes(&case);
    // One of another record is none.
    case.parkings[0].records = vec!["record 1".to_owned()];
    finds(&case, "nothing explains");
}

#[test]
fn an_event_handed_over_past_a_letter_of_its_record_is_found() {
    let mut case = sound();
    answers(&mut case)[5].status = 422;
    case.letters.push(letter(6, Some("a"), "rejected"));
    parking(&mut case, 6, Some("a"), 66, true);
    finds(&case, "8 was handed over past");
    // Put down anew by a side replay, or
    case.parkings[0].replayed = true;
    passes(&case);
    case.parkings[0].replayed = false;
    // discarded before the next came, or of a record that nobody else has.
    parking(&mut case, 6, Some("a"), 79, false);
    passes(&case);
    case.parkings.pop();
    case.parkings[0].records.clear();
    passes(&case);
}

#[test]
fn a_platform_event_may_pass_a_letter_that_the_bus_has_forgotten() {
    let mut case = sound();
    answers(&mut case)[5].status = 422;
    case.letters.push(letter(6, Some("a"), "rejected"));
    parking(&mut case, 6, Some("a"), 66, true);
    case.untimed = true;
    finds(&case, "8 was handed over past");
    // Number 8, too; or not yet number 6.
    for gone in [5, 20] {
        (case.forgotten, case.gone_up_to) = (vec![gone], gone);
        finds(&case, "8 was handed over past");
    }
    case.forgotten = vec![7, 20];
    passes(&case);
    case.untimed = false;
    finds(&case, "8 was handed over past");
    // Handled in the end, which is not in order either.
    let mut late = answers(&mut case)[5].clone();
    (late.came_us, late.at_us, late.status, late.epoch) = (300, 305, 200, 2);
    answers(&mut case).push(late);
    finds(&case, "(6, \"record 0\")");
    case.untimed = true;
    passes(&case);
}

#[test]
fn what_was_parked_behind_a_letter_goes_once_that_is_answered() {
    let mut case = sound();
    // Tried again with success; marked as handled afterwards.
    parking(&mut case, 6, Some("a"), 64, true);
    parking(&mut case, 6, Some("a"), 250, false);
    passes(&case);
}

#[test]
fn a_parked_event_is_accounted_for_where_its_handler_refused_it() {
    let mut case = sound();
    answers(&mut case)[7].status = 422;
    case.letters.push(letter(8, Some("a"), "rejected"));
    parking(&mut case, 8, Some("a"), 86, true);
    parking(&mut case, 8, Some("a"), 88, false);
    let account = passes(&case);
    assert_eq!(account.lines[0].parked, 1);
    case.letters[0].handler = Some("b".to_owned());
    finds(&case, "is neither handled nor parked nor in a hole");
}

#[test]
fn an_event_that_was_parked_without_need_is_found() {
    let mut case = sound();
    case.letters.push(letter(8, Some("a"), "rejected"));
    finds(&case, "nothing explains");
    case.letters = vec![letter(8, Some("a"), "exhausted")];
    finds(&case, "nothing explains");
    for grouped in [false, true] {
        case.grouped = grouped;
        for reason in ["undecodable", "schema_refused", "schema_unavailable"] {
            case.pieces[7].poison = Poison::None;
            case.letters = vec![letter(8, None, reason)];
            finds(&case, "nothing explains");
            case.pieces[7].poison = match reason {
                "schema_refused" => Poison::Schema,
                _ => Poison::Bytes,
            };
            passes(&case);
        }
    }
    // Only another attempt could have told whether it was one to give up.
    case.letters[0].state = "discarded".to_owned();
    case.tidied = true;
    finds(&case, "nobody discarded");
    case.letters[0].reason = "undecodable".to_owned();
    passes(&case);
    case.tidied = false;
    case.letters = vec![letter(21, None, "undecodable")];
    finds(&case, "is of no published event");
}
