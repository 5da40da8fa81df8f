//! Letters whose events a stream is still to bring once more, or never will.

use std::time::Duration;

use super::*;

#[test]
fn what_is_still_to_come_again_holds_nothing_until_it_has_come_by() {
    let mut held = held();
    let ticket = held.insert(NewLetter {
        since: Since::ToCome,
        ahead: true,
        ..behind("a", &[1])
    });
    held.written(ticket, Placed { place: 3, id: 3 });
    assert_eq!(held.holder(MINE, &[1], live(0)), None);
    assert_eq!(draw(&mut held), [0u64; 0], "what is older comes first");
    assert_eq!(held.open(MINE, &identity("a")), Some(ticket));
    held.came_by(ticket, Since::Always, 4);
    assert_eq!(held.holder(MINE, &[1], live(5)), Some(ticket));
    assert_eq!(draw(&mut held), [ticket]);
    assert_eq!(held.ahead.pass(4), [0i64; 0]);
    assert_eq!(held.ahead.pass(5), [3]);
}

#[test]
fn what_lies_before_the_beginning_of_a_stream_is_older_than_all_that_it_brings() {
    let mut held = held();
    let to_come = |name, records| NewLetter {
        since: Since::ToCome,
        ahead: true,
        ..new(MINE, name, records)
    };
    store(&mut held, to_come("before", &[1]), 10);
    let younger = store(&mut held, to_come("younger", &[1]), 20);
    held.brought(0, &identity("between"));
    held.brought(1, &identity("younger"));
    held.all_came_by(2);
    assert_eq!(
        held.holder(MINE, &[1], live(1)),
        None,
        "nothing is known of them"
    );
    let between = held.insert(NewLetter {
        came: Some(0),
        ..new(MINE, "between", &[1])
    });
    // The younger one still waits for its turn.
    assert_eq!(held.place_of(&[between], live(0), true), Place::Last);
    held.written(between, Placed { place: 30, id: 30 });
    held.came_by(younger, Since::Always, 1);
    assert!(held.is_misplaced(younger, live(1)));
    assert_eq!(held.moves(younger), Some(20));
    held.moved(Placed { place: 40, id: 20 });
    assert_eq!(load(&mut held), [0u64; 0], "its own move is not written");
    held.has_moved(younger);
    assert!(!held.is_misplaced(younger, live(1)));
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn id(text: &str) -> ReplayId {
    text.parse().unwrap()
}

/// A change of these records, committed at that second.
fn change(second: u64, number: Option<i64>, records: &[RecordHash]) -> Change {
    Change {
        commit: Commit {
            at: at(second),
            number,
        },
        records: records.into(),
    }
}

#[test]
fn what_was_received_so_long_ago_that_the_bus_has_forgotten_it_holds_and_can_be_tried() {
    let mut held = held();
    let to_come = |name, received: u64| NewLetter {
        since: Since::ToCome,
        ahead: true,
        received_at: at(received),
        ..behind(name, &[1])
    };
    let old = store(&mut held, to_come("a", 1000), 1);
    store(&mut held, to_come("b", 1001), 2);
    let days = 4 * 24 * 3600;
    held.it_is(at(1000 + days), 5);
    assert_eq!((draw(&mut held), held.to_come_count()), (vec![], 2));
    held.it_is(at(1001 + days), 5);
    assert_eq!(held.holder(MINE, &[1], live(4)), None);
    assert_eq!(held.holder(MINE, &[1], live(5)), Some(old));
    held.passed(6);
    assert_eq!((draw(&mut held), held.to_come_count()), (vec![old], 1));
}

#[test]
fn what_does_not_come_again_holds_from_where_that_is_sure() {
    let mut held = held();
    let to_come = |name, received: u64, until: Option<&str>| NewLetter {
        since: Since::ToCome,
        ahead: true,
        received_at: at(received),
        until: until.map(id),
        ..behind(name, &[1])
    };
    let by_time = store(&mut held, to_come("a", 1000, None), 1);
    let by_place = store(&mut held, to_come("b", 5000, Some("0b")), 2);
    let by_keepalive = store(&mut held, to_come("c", 5000, None), 3);
    let holder = |held: &Held, seq| held.holder(MINE, &[1], live(seq));
    held.live_at(1, Some(&id("0a")), Some(&change(1030, None, &[])));
    assert_eq!(holder(&held, 1), None, "clocks may differ so far");
    held.live_at(2, Some(&id("0b")), Some(&change(1100, None, &[])));
    assert_eq!(holder(&held, 1), None, "what came before may be older");
    assert_eq!(holder(&held, 2), Some(by_time));
    held.passed(9);
    held.remove(by_time);
    // A sibling under the same place.
    held.live_at(3, Some(&id("0b")), Some(&change(1100, None, &[])));
    assert_eq!(holder(&held, 3), None);
    held.live_at(4, Some(&id("0c")), Some(&change(1100, None, &[])));
    assert_eq!((holder(&held, 3), holder(&held, 4)), (None, Some(by_place)));
    held.remove(by_place);
    held.all_came_by(7);
    assert_eq!(
        (holder(&held, 6), holder(&held, 7)),
        (None, Some(by_keepalive))
    );
    assert!(held.awaits_some(), "its event may wait for its turn");
    held.passed(8);
    assert!(!held.awaits_some());
    assert_eq!(held.ahead.pass(8), [1, 2, 3]);
}

#[test]
fn what_was_committed_before_a_change_of_its_record_holds_that_although_its_event_does_not_come() {
    let mut held = held();
    let to_come = |name, number, records: &[RecordHash]| NewLetter {
        since: Since::ToCome,
        ahead: true,
        received_at: at(5000),
        commit: Some(change(1000, number, &[]).commit),
        ..behind(name, records)
    };
    let numbered = store(&mut held, to_come("a", Some(7), &[1, 2]), 1);
    let bare = store(&mut held, to_come("b", None, &[3]), 2);
    let platform = NewLetter {
        commit: None,
        ..to_come("c", None, &[4])
    };
    let platform = store(&mut held, platform, 3);
    let comes = |held: &mut Held, seq, second, number, records: &[RecordHash]| {
        let change = change(second, number, records);
        held.live_at(seq, None, Some(&change));
        records
            .iter()
            .find_map(|record| held.holder(MINE, &[*record], live(seq)))
    };
    assert_eq!(comes(&mut held, 1, 999, Some(9), &[1]), None, "it is older");
    assert_eq!(
        comes(&mut held, 2, 1000, Some(7), &[1]),
        None,
        "of its own commit"
    );
    assert_eq!(comes(&mut held, 3, 1000, None, &[1]), None, "who knows");
    assert_eq!(
        comes(&mut held, 4, 1001, Some(9), &[5]),
        None,
        "of another record"
    );
    assert_eq!(comes(&mut held, 5, 1000, Some(8), &[1]), Some(numbered));
    assert_eq!(
        comes(&mut held, 6, 1000, Some(6), &[2]),
        Some(numbered),
        "the bus has one order"
    );
    assert_eq!(
        held.holder(MINE, &[2], live(4)),
        None,
        "what came before is not known to be younger"
    );
    assert_eq!(comes(&mut held, 7, 1000, Some(8), &[3]), None);
    assert_eq!(
        comes(&mut held, 8, 1001, None, &[3]),
        Some(bare),
        "another number, another database"
    );
    assert_eq!(comes(&mut held, 9, 1001, None, &[4]), None);
    assert_eq!(held.to_come_count(), 1);
    held.passed(10);
    assert_eq!(
        held.ahead.pass(10),
        [1, 2],
        "the store is told that they do not come"
    );
    held.came_by(platform, Since::Always, 10);
    assert!(!held.awaits_some());
}

#[test]
fn what_has_come_again_and_waits_for_its_turn_holds_nothing_before_it_though_committed_earlier() {
    let mut held = held();
    let letter = NewLetter {
        since: Since::ToCome,
        ahead: true,
        commit: Some(change(1000, None, &[]).commit),
        ..behind("a", &[1, 2])
    };
    let ticket = store(&mut held, letter, 1);
    held.brought(4, &identity("a"));
    held.live_at(5, None, Some(&change(1001, None, &[1])));
    assert_eq!(held.holder(MINE, &[2], live(3)), None);
    assert_eq!(held.to_come_count(), 1, "it has its turn still");
    held.came_by(ticket, Since::Always, 4);
    assert_eq!(held.holder(MINE, &[1], live(5)), Some(ticket));
}

#[test]
fn a_letter_whose_event_comes_after_a_change_committed_later_goes_behind_what_it_held() {
    let mut held = held();
    let letter = NewLetter {
        since: Since::ToCome,
        ahead: true,
        received_at: at(5000),
        commit: Some(change(1000, None, &[]).commit),
        ..new(MINE, "a", &[1])
    };
    let early = store(&mut held, letter, 1);
    held.live_at(0, None, Some(&change(1001, None, &[1])));
    assert_eq!(held.holder(MINE, &[1], live(0)), Some(early));
    let older = NewLetter {
        came: Some(0),
        ..behind("b", &[1])
    };
    store(&mut held, older, 2);
    // The bus was not in the order of commits.
    held.brought(1, &identity("a"));
    held.came_by(early, Since::Always, 1);
    assert!(held.is_misplaced(early, live(1)));
}

#[test]
fn in_a_side_replay_a_letter_holds_what_comes_after_its_event() {
    let mut held = held();
    let ticket = store(&mut held, new(MINE, "a", &[1]), 1);
    let holder = |held: &Held, seq| held.holder(MINE, &[1], Origin::Replay(seq));
    held.replay_begins(&[], 0);
    assert_eq!(holder(&held, 100), None, "it is older");
    assert_eq!(held.holder(MINE, &[1], live(0)), Some(ticket));
    held.met(ticket, 101);
    assert_eq!(
        (holder(&held, 101), holder(&held, 102)),
        (None, Some(ticket))
    );
    held.replay_begins(&[], 0);
    assert_eq!(holder(&held, 200), None);
    held.replay_at(201, None, Some(&change(61, None, &[])));
    assert_eq!(
        holder(&held, 201),
        Some(ticket),
        "it began behind the letter"
    );
    let committed = NewLetter {
        received_at: at(5000),
        commit: Some(change(1000, None, &[]).commit),
        ..new(MINE, "b", &[2])
    };
    let committed = store(&mut held, committed, 2);
    held.replay_begins(&[], 0);
    let holder = |held: &Held, seq| held.holder(MINE, &[2], Origin::Replay(seq));
    held.replay_at(7, None, Some(&change(1000, None, &[2])));
    assert_eq!(holder(&held, 7), None);
    held.replay_at(8, None, Some(&change(1001, None, &[2])));
    assert_eq!(holder(&held, 8), Some(committed));
}

#[test]
fn a_side_replay_that_goes_on_knows_which_letters_it_had_met() {
    let mut held = held();
    let met = store(&mut held, new(MINE, "a", &[1]), 1);
    let later = store(&mut held, new(MINE, "b", &[2]), 2);
    store(&mut held, new(MINE, "c", &[3]), 3);
    held.replay_begins(&[], 99);
    held.met(met, 100);
    held.met(later, 105);
    assert_eq!(held.met_before(105), [1], "it goes on before the second");
    // After a restart, where nobody remembers.
    held.replay_begins(&[1, 77], 199);
    assert_eq!(
        held.met_before(200),
        [1],
        "told on, though nothing came yet"
    );
    let holder = |record, seq| held.holder(MINE, &[record], Origin::Replay(seq));
    assert_eq!(holder(1, 200), Some(met));
    assert_eq!((holder(2, 200), holder(3, 200)), (None, None));
}

#[test]
fn what_a_side_replay_parks_before_the_live_stream_has_come_so_far_holds_nothing_older() {
    let parked_at = |held: &mut Held, name: &str, second: u64| {
        let commit = change(second, None, &[]).commit;
        let replayed = NewLetter {
            since: held.since(Moment::InTurn, Origin::Replay(9), Some(commit), &[1]),
            commit: Some(commit),
            met: Some(9),
            received_at: at(5000),
            ..behind(name, &[1])
        };
        store(held, replayed, i64::from(name.as_bytes()[0]))
    };
    let holder = |held: &Held, seq| held.holder(MINE, &[1], live(seq));
    // The stream begins with all that the bus keeps, has brought something, or begins at a place of which the time is known.
    let mut begun = held();
    begun.begins(Reach::Nothing);
    let mut under_way = held();
    under_way.reached(change(900, None, &[]).commit);
    under_way.reached(change(800, None, &[]).commit);
    let mut resumed = held();
    resumed.begins(Reach::To(change(999, None, &[]).commit));
    for mut held in [begun, under_way, resumed] {
        let letter = parked_at(&mut held, "a", 1000);
        assert_eq!(holder(&held, 0), None, "older ones come first");
        assert!(
            draw(&mut held).is_empty(),
            "they may yet be parked before it"
        );
        held.live_at(1, None, Some(&change(999, None, &[1])));
        assert_eq!(holder(&held, 1), None);
        held.live_at(2, None, Some(&change(1001, None, &[1])));
        assert_eq!(holder(&held, 2), Some(letter));
        held.passed(2);
        assert_eq!(draw(&mut held), [letter]);
        assert_eq!(
            held.ahead.pass(10),
            [0i64; 0],
            "the store knows nothing of it"
        );
    }
    // It comes with its own event, too.
    let mut held = held();
    held.begins(Reach::Nothing);
    let letter = parked_at(&mut held, "a", 1000);
    held.brought(3, &identity("a"));
    held.came_by(letter, Since::Always, 3);
    assert_eq!(
        (holder(&held, 4), draw(&mut held)),
        (Some(letter), vec![letter])
    );
}

#[test]
fn what_a_side_replay_parks_behind_the_live_stream_holds_all_that_comes() {
    let committed = Some(change(1000, None, &[]).commit);
    let since = |held: &Held, commit, records: &[RecordHash]| {
        held.since(Moment::InTurn, Origin::Replay(9), commit, records)
    };
    let mut held = held();
    assert_eq!(since(&held, committed, &[1]), Since::Always, "nobody knows");
    held.reached(change(1000, None, &[]).commit);
    assert_eq!(since(&held, committed, &[1]), Since::Always);
    held.begins(Reach::Nothing);
    assert_eq!(since(&held, committed, &[1]), Since::ToCome);
    assert_eq!(since(&held, None, &[1]), Since::Always, "a platform event");
    assert_eq!(since(&held, committed, &[]), Since::Always, "of no record");
    held.all_came_by(7);
    assert_eq!(
        since(&held, committed, &[1]),
        Since::Always,
        "it has caught up"
    );
    let live_event = held.since(Moment::OnArrival, live(3), committed, &[1]);
    assert_eq!(live_event, Since::After(3));
}
