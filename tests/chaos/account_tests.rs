//! The account itself is put to the test: every broken promise, made by hand, has to be found, and a run
//! without one has to pass.

use super::account::{
    Account, Ahead, Answered, Appended, Case, HandlerCase, Hole, Lanes, Letter, Parking, Piece,
    Poison, Row, Write, account,
};

mod letters;

/// Events of two records in turn, all handled in order, by a first worker and then by a second one.
fn sound() -> Case {
    let record = |place: u64| format!("record {}", place % 2);
    let pieces = (1..=20).map(|place| Piece {
        place,
        record: record(place),
        lanes: Lanes::Of(vec![record(place)]),
        gap: false,
        poison: Poison::None,
    });
    let answers = (1..=20).map(|place| Answered {
        place,
        record: record(place),
        epoch: if place <= 10 { 1 } else { 2 },
        replayed: false,
        came_us: place as i64 * 10,
        at_us: place as i64 * 10 + 5,
        status: 200,
    });
    Case {
        name: "accounts".to_owned(),
        max_in_flight: 3,
        concurrency: 1,
        pieces: pieces.collect(),
        handlers: vec![HandlerCase {
            name: "a".to_owned(),
            attempts: 2,
            answers: answers.collect(),
            rows: None,
        }],
        writes: vec![
            take_over(1, 1),
            progress(1, 55, 1, 5),
            progress(1, 86, 2, 8),
            progress(1, 106, 3, 10),
            take_over(2, 107),
            progress(2, 206, 1, 20),
        ],
        ..Case::default()
    }
}

fn row(epoch: i64, write_number: i64, position: u64) -> Row {
    Row {
        epoch,
        holder: (epoch > 0).then(|| format!("holder {epoch}")),
        write_number,
        position: (position > 0).then_some(position),
    }
}

fn take_over(epoch: i64, at_us: i64) -> Write {
    let (number, position) = if epoch == 1 { (0, 0) } else { (3, 10) };
    Write {
        at_us,
        writer: format!("worker-{epoch}"),
        before: row(epoch - 1, number, position),
        after: row(epoch, 0, position),
        ahead: Vec::new(),
    }
}

fn progress(epoch: i64, at_us: i64, number: i64, position: u64) -> Write {
    Write {
        at_us,
        writer: format!("worker-{epoch}"),
        before: row(epoch, number - 1, position.saturating_sub(1)),
        after: row(epoch, number, position),
        ahead: Vec::new(),
    }
}

fn answers(case: &mut Case) -> &mut Vec<Answered> {
    &mut case.handlers[0].answers
}

/// The same event, handled once more at a time and under an epoch.
fn handled_again(case: &mut Case, place: u64, at_us: i64, epoch: i64) {
    let mut again = answers(case)[place as usize - 1].clone();
    (again.came_us, again.at_us, again.epoch) = (at_us - 1, at_us, epoch);
    let list = answers(case);
    list.push(again);
    list.sort_by_key(|answer| answer.at_us);
}

#[track_caller]
fn finds(case: &Case, words: &str) -> Account {
    let account = account(case);
    assert!(
        account.broken.iter().any(|broken| broken.contains(words)),
        "does not find \"{words}\": {:?}",
        account.broken
    );
    account
}

#[track_caller]
fn passes(case: &Case) -> Account {
    let account = account(case);
    assert_eq!(account.broken, Vec::<String>::new());
    account
}

fn letter(place: u64, handler: Option<&str>, reason: &str) -> Letter {
    Letter {
        handler: handler.map(str::to_owned),
        place,
        record: format!("record {}", place % 2),
        reason: reason.to_owned(),
        state: "open".to_owned(),
    }
}

/// A letter is put down, or resolved, at a time.
fn parking(case: &mut Case, place: u64, handler: Option<&str>, at_us: i64, open: bool) {
    case.parkings.push(Parking {
        at_us,
        letter: place as i64,
        handler: handler.map(str::to_owned),
        place,
        records: vec![format!("record {}", place % 2)],
        open,
        replayed: false,
    });
}

fn hole(from: u64, to: Option<u64>) -> Hole {
    Hole {
        lost: true,
        reason: "expired_replay_id".to_owned(),
        from: Some(from),
        to,
    }
}

#[test]
fn a_sound_run_passes_and_its_table_adds_up() {
    let account = passes(&sound());
    let line = &account.lines[0];
    assert_eq!((line.published, line.handled, line.missing), (20, 20, 0));
    assert!(line.to_string().contains("20 published =     20 handled"));
}

#[test]
fn an_event_that_vanished_is_found() {
    let mut case = sound();
    answers(&mut case).remove(7);
    let account = finds(
        &case,
        "(8, \"record 0\") is neither handled nor parked nor in a hole",
    );
    assert_eq!(account.missing(), 1);
}

#[test]
fn an_event_that_was_only_ever_refused_is_not_handled() {
    let mut case = sound();
    answers(&mut case)[7].status = 503;
    finds(&case, "is neither handled nor parked nor in a hole");
}

#[test]
fn an_event_that_nobody_published_is_found() {
    let mut case = sound();
    case.pieces.remove(7);
    finds(&case, "which nobody published");
}

#[test]
fn an_event_handed_over_out_of_order_is_found() {
    let mut case = sound();
    // Numbers 4 and 6 are of one record.
    answers(&mut case).swap(3, 5);
    finds(
        &case,
        "(4, \"record 0\") of Of([\"record 0\"]) was first handled after 6",
    );
}

#[test]
fn a_replay_beside_the_live_stream_may_bring_what_that_has_lost() {
    let mut case = sound();
    answers(&mut case).swap(3, 5);
    answers(&mut case)[5].replayed = true;
    passes(&case);
}

#[test]
fn an_event_that_was_refused_once_and_then_passed_is_found() {
    let mut case = sound();
    answers(&mut case).swap(3, 5);
    let mut refused = answers(&mut case)[5].clone();
    refused.status = 422;
    answers(&mut case).insert(3, refused);
    finds(&case, "was first handled after 6");
}

#[test]
fn a_position_beyond_what_was_finished_by_then_is_found() {
    let mut case = sound();
    case.writes[2].after.position = Some(9);
    finds(
        &case,
        "position 9 was written under epoch 1 while (9, \"record 1\") was unfinished",
    );
    parking(&mut case, 9, None, 86, true);
    parking(&mut case, 9, None, 87, false);
    passes(&case);
}

#[test]
fn what_is_finished_ahead_and_not_marked_is_found() {
    let mut case = sound();
    for (write, at) in case
        .writes
        .iter_mut()
        .skip(2)
        .zip((1..).map(|n| n * 1_000_000))
    {
        write.at_us = at;
    }
    // The second write after number 9 was handled stays behind it.
    case.writes[3].before.position = Some(8);
    case.writes[3].after.position = Some(8);
    case.writes[4].before.position = Some(8);
    case.writes[4].after.position = Some(8);
    for answer in answers(&mut case).iter_mut().skip(10) {
        answer.came_us += 3_000_000;
        answer.at_us += 3_000_000;
    }
    finds(
        &case,
        "(9, \"record 1\") was finished long before a write under epoch 1",
    );
    for place in [9, 10] {
        case.writes[3].ahead.push(Ahead {
            handler: "a".to_owned(),
            place,
            record: format!("record {}", place % 2),
        });
    }
    passes(&case);
}

#[test]
fn an_event_that_a_write_knew_of_and_that_comes_again_is_found() {
    let mut case = sound();
    for (write, at) in case
        .writes
        .iter_mut()
        .skip(2)
        .zip((1..).map(|n| n * 1_000_000))
    {
        write.at_us = at;
    }
    for answer in answers(&mut case).iter_mut().skip(10) {
        answer.came_us += 3_000_000;
        answer.at_us += 3_000_000;
    }
    passes(&case);
    handled_again(&mut case, 9, 3_000_120, 2);
    finds(&case, "two writes followed, and it was handed over again");
    // The second may have begun before the event was answered.
    case.writes[2].at_us = 90;
    case.handlers[0].answers.retain(|answer| answer.place > 2);
    case.pieces.retain(|piece| piece.place > 2);
    passes(&case);
}

#[test]
fn two_calls_at_once_of_one_record_are_found() {
    let mut case = sound();
    answers(&mut case)[5].came_us = 44;
    finds(&case, "was handed over while 4 was with the handler");
    // Of one request they come together.
    answers(&mut case)[5].came_us = 40;
    passes(&case);
    for piece in &mut case.pieces {
        piece.lanes = Lanes::All;
    }
    finds(&case, "was handed over while");
}

#[test]
fn other_records_may_overtake_but_nothing_does_where_everything_is_in_order() {
    let mut case = sound();
    answers(&mut case).swap(3, 4);
    passes(&case);
    for piece in &mut case.pieces {
        piece.lanes = Lanes::All;
    }
    finds(&case, "was first handled after");
    let mut case = sound();
    answers(&mut case).swap(3, 4);
    case.pieces[3].lanes = Lanes::All;
    finds(&case, "was first handled after");
}

#[test]
fn an_event_of_several_records_is_in_order_with_each_of_them() {
    let mut case = sound();
    let both = vec!["record 1".to_owned(), "record 0".to_owned()];
    case.pieces[4].lanes = Lanes::Of(both);
    passes(&case);
    answers(&mut case).swap(3, 4);
    finds(&case, "(4, \"record 0\")");
}

#[test]
fn what_a_rewind_brings_of_a_hole_comes_after_what_is_younger() {
    let mut case = sound();
    // Number 4 is skipped by a stream that goes on at LATEST, and comes after the rewind.
    handled_again(&mut case, 4, 300, 3);
    answers(&mut case).retain(|answer| (answer.place, answer.epoch) != (4, 1));
    (case.skips, case.replays) = (true, true);
    case.holes = vec![hole(3, Some(5))];
    assert!(
        !account(&case)
            .broken
            .iter()
            .any(|text| text.contains("first handled after"))
    );
    // Nobody rewound, it did not go on at LATEST, or the hole is elsewhere.
    case.replays = false;
    finds(&case, "was first handled after 20");
    (case.skips, case.replays) = (false, true);
    finds(&case, "was first handled after 20");
    case.skips = true;
    case.holes = vec![hole(4, Some(7))];
    finds(&case, "was first handled after 20");
}

#[test]
fn a_repeat_is_out_of_no_order() {
    let mut case = sound();
    handled_again(&mut case, 9, 109, 2);
    let account = passes(&case);
    assert_eq!(account.lines[0].repeats, 1);
}

#[test]
fn more_repeats_than_were_in_flight_and_finished_since_the_last_write_are_found() {
    let mut case = sound();
    // In flight were at most 3; since the last write but one, two were handled.
    for (place, at) in (5..=9).zip((117..).step_by(10)) {
        handled_again(&mut case, place, at, 2);
    }
    passes(&case);
    handled_again(&mut case, 4, 167, 2);
    finds(
        &case,
        "6 repeats of what was handled in epoch 1, where 5 are allowed",
    );
    case.replays = true;
    passes(&case);
}

#[test]
fn what_an_epoch_left_may_be_repeated_by_any_later_one_but_each_event_only_once() {
    let mut case = sound();
    // Epoch 2 is followed before it has repeated anything, and epoch 3 goes on.
    case.writes.insert(5, take_over(3, 108));
    case.writes[6] = progress(3, 206, 1, 20);
    for answer in answers(&mut case).iter_mut().skip(10) {
        answer.epoch = 3;
    }
    for (place, at) in (5..=9).zip((117..).step_by(10)) {
        handled_again(&mut case, place, at, 3);
    }
    passes(&case);
    // Where epoch 2 had come to repeat one, epoch 3 repeats that of epoch 2.
    handled_again(&mut case, 9, 107, 2);
    assert_eq!(passes(&case).lines[0].repeats, 6);
    handled_again(&mut case, 4, 167, 3);
    finds(
        &case,
        "6 repeats of what was handled in epoch 1, where 5 are allowed",
    );
}

#[test]
fn a_repeat_within_one_epoch_needs_an_interruption() {
    let mut case = sound();
    handled_again(&mut case, 9, 97, 1);
    finds(&case, "1 repeats within one epoch, where 0 are allowed");
    case.interruptions = 1;
    passes(&case);
}

#[test]
fn an_event_that_is_twice_in_an_append_table_is_found() {
    let mut case = sound();
    let mut rows: Vec<_> = answers(&mut case)
        .drain(..)
        .map(|answer| Appended {
            place: answer.place,
            record: answer.record,
            at_us: answer.at_us,
            replayed: false,
        })
        .collect();
    case.handlers[0].rows = Some(rows.clone());
    passes(&case);
    rows.push(rows[3].clone());
    case.handlers[0].rows = Some(rows.clone());
    finds(&case, "(4, \"record 0\") is in the table more than once");
    rows.truncate(19);
    case.handlers[0].rows = Some(rows);
    finds(
        &case,
        "(20, \"record 0\") is neither handled nor parked nor in a hole",
    );
}

#[test]
fn a_lost_event_has_to_be_in_a_hole_of_what_the_bus_forgot() {
    let mut case = sound();
    answers(&mut case).drain(6..9);
    case.gone_up_to = 9;
    case.holes.push(hole(6, Some(10)));
    let account = passes(&case);
    assert_eq!(account.lines[0].lost, 3);
    case.gone_up_to = 8;
    finds(&case, "and the bus still has it");
    case.skips = true;
    passes(&case);
    case.holes[0].from = Some(7);
    finds(
        &case,
        "(7, \"record 1\") is neither handled nor parked nor in a hole",
    );
    case.holes[0] = hole(6, None);
    finds(&case, "was never filled in");
}

#[test]
fn a_hole_where_nothing_was_lost_is_found() {
    let mut case = sound();
    case.holes.push(hole(6, Some(7)));
    finds(&case, "nothing was lost");
    // A rewind from a keepalive's place, before all events.
    case.holes[0] = Hole {
        reason: "perhaps_skipped_by_rewind".to_owned(),
        ..hole(0, Some(1))
    };
    passes(&case);
}

#[test]
fn a_gap_event_needs_a_hole_of_its_own() {
    let mut case = sound();
    case.pieces[3].gap = true;
    finds(&case, "1 gap events, and 0 holes of kind gap");
    case.holes.push(Hole {
        lost: false,
        ..hole(4, None)
    });
    passes(&case);
}

#[test]
fn a_position_of_a_process_that_does_not_hold_the_epoch_is_found() {
    let mut case = sound();
    case.writes[5].writer = "worker-1".to_owned();
    finds(&case, "by a process that does not hold the epoch");
    case.writes[5].writer = String::new();
    finds(&case, "nobody knows who wrote this");
}

#[test]
fn a_position_or_an_epoch_that_goes_back_is_found() {
    let mut case = sound();
    case.writes[2].after.position = Some(1);
    finds(&case, "the position went back");
    case.writes[2].after.position = None;
    finds(&case, "the position went back");
    case.gone_up_to = 10;
    passes(&case);
    let mut case = sound();
    case.writes[2].after.write_number = 1;
    finds(&case, "a write came after a newer one");
    let mut case = sound();
    case.writes[4].after.epoch = 1;
    case.writes[4].before.epoch = 2;
    finds(&case, "the epoch went back");
    let mut case = sound();
    case.writes[2].after.holder = Some("another".to_owned());
    finds(&case, "it changed hands without a new epoch");
}

#[test]
fn events_handed_over_by_a_worker_that_was_followed_are_found() {
    let mut case = sound();
    handled_again(&mut case, 10, 150, 1);
    finds(
        &case,
        "1 events handed over by a worker that another had followed",
    );
    (case.pauses, case.interruptions) = (1, 1);
    passes(&case);
}
