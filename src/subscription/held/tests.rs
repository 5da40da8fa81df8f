//! What holds what, and what may go when.

use proptest::prelude::*;

use super::*;

mod to_come;
mod units;

const BOTH: usize = 2;

fn held() -> Held {
    let names = (0..BOTH).map(|index| format!("h{index}")).collect();
    Held::new(names, Drawing::default())
}

fn identity(name: &str) -> EventIdentity {
    EventIdentity::from_stored(name)
}

fn new(slot: Slot, name: &str, records: &[RecordHash]) -> NewLetter {
    NewLetter {
        slot,
        identity: identity(name),
        records: records.into(),
        unit: None,
        bytes: 10,
        behind: false,
        since: Since::Always,
        ahead: false,
        came: None,
        met: None,
        received_at: SystemTime::UNIX_EPOCH,
        commit: None,
        until: None,
    }
}

fn behind(name: &str, records: &[RecordHash]) -> NewLetter {
    NewLetter {
        behind: true,
        ..new(MINE, name, records)
    }
}

const MINE: Slot = Slot::Handler(0);
const OTHERS: Slot = Slot::Handler(1);

/// Takes it in, and writes it under this number.
fn store(held: &mut Held, letter: NewLetter, id: i64) -> Ticket {
    let ticket = held.insert(letter);
    held.written(ticket, Placed { place: id, id });
    ticket
}

fn ask(held: &mut Held, ticket: Ticket) {
    held.letters.get_mut(&ticket).unwrap().asked = true;
    held.consider(ticket);
}

/// Draws, and does not put into the lanes yet.
fn load(held: &mut Held) -> Vec<Ticket> {
    let drawn = held.draw();
    let letters = drawn.iter().flat_map(|drawn| &drawn.letters);
    letters.map(|(ticket, _)| *ticket).collect()
}

/// Draws into the lanes.
fn draw(held: &mut Held) -> Vec<Ticket> {
    let drawn = load(held);
    drawn.iter().for_each(|ticket| held.in_lanes(*ticket));
    drawn
}

fn live(seq: Seq) -> Origin {
    Origin::Live(seq)
}

#[test]
fn a_letter_holds_its_records_for_its_handler_from_the_moment_it_is_decided() {
    let mut held = held();
    assert!(held.is_empty());
    let ticket = held.insert(new(MINE, "a", &[1, 2]));
    assert_eq!(held.holder(MINE, &[2, 3], live(9)), Some(ticket));
    assert_eq!(held.holder(MINE, &[3], live(9)), None);
    assert_eq!(held.holder(OTHERS, &[1], live(9)), None);
    assert_eq!(held.known(ticket), Some(Known::Event(identity("a"))));
    assert_eq!(held.stored(), 0);
    held.written(ticket, Placed { place: 7, id: 7 });
    assert_eq!((held.known(ticket), held.stored()), (Some(Known::Id(7)), 1));
    held.remove(ticket);
    assert_eq!(held.holder(MINE, &[1], live(9)), None);
    assert!(held.is_empty() && held.by_record.is_empty() && held.by_identity.is_empty());
}

#[test]
fn what_nobody_could_decode_holds_for_all_but_what_came_before_it() {
    let mut held = held();
    let ticket = held.insert(NewLetter {
        since: Since::After(5),
        came: Some(5),
        ..new(Slot::Everyone, "u", &[1])
    });
    for slot in [MINE, OTHERS] {
        assert_eq!(held.holder(slot, &[1], live(4)), None);
        assert_eq!(held.holder(slot, &[1], live(6)), Some(ticket));
        assert_eq!(held.open(slot, &identity("u")), Some(ticket));
    }
    // An older one that comes to be parked belongs before it.
    let older = held.insert(new(MINE, "a", &[1]));
    held.written(ticket, Placed { place: 10, id: 10 });
    assert_eq!(held.place_of(&[older], live(4), false), Place::At(9));
    let younger = held.insert(new(MINE, "b", &[1]));
    assert_eq!(held.place_of(&[younger], live(6), false), Place::Last);
    held.passed(6);
    assert_eq!(held.place_of(&[younger], live(4), false), Place::Last);
}

#[test]
fn a_letter_of_two_records_goes_before_the_younger_of_one_and_behind_the_older_of_the_other() {
    let mut held = held();
    let younger = NewLetter {
        since: Since::After(5),
        came: Some(5),
        ..new(Slot::Everyone, "u", &[1, 5])
    };
    store(&mut held, younger, 10);
    store(&mut held, behind("v", &[5, 3]), 15);
    store(&mut held, behind("w", &[3]), 16);
    store(&mut held, behind("x", &[4]), 17);
    let older = held.insert(new(MINE, "o", &[2]));
    let between = held.insert(behind("b", &[1, 2]));
    let place = |held: &Held, first| held.place_of(&[between], live(4), first);
    assert_eq!(
        place(&held, false),
        Place::Unknown,
        "the older has no number"
    );
    held.written(older, Placed { place: 20, id: 20 });
    let before = Place::Before(vec![10, 15, 16]);
    assert_eq!(place(&held, true), before, "with all that waits behind it");
    held.written(between, Placed { place: 21, id: 21 });
    for (place, id) in [(22, 10), (23, 15), (24, 16)] {
        held.moved(Placed { place, id });
    }
    let order: Vec<i64> = {
        let mut letters: Vec<_> = held.letters.values().map(|letter| letter.rank).collect();
        letters.sort();
        letters.into_iter().map(|rank| rank.id).collect()
    };
    assert_eq!(order, [17, 20, 21, 10, 15, 16]);
}

#[test]
fn where_one_of_a_unit_goes_behind_others_all_of_it_does_and_what_is_behind_any_of_it() {
    let mut held = held();
    let came = |name, records, seq| NewLetter {
        since: Since::After(seq),
        came: Some(seq),
        ..behind(name, records)
    };
    let of_unit = |name, records, seq| NewLetter {
        unit: Some("transaction:t".to_owned()),
        ..came(name, records, seq)
    };
    store(&mut held, of_unit("first", &[5], 6), 10);
    store(&mut held, came("in nobody's way", &[4], 8), 11);
    store(&mut held, came("behind the first", &[5], 9), 12);
    store(&mut held, of_unit("second", &[1], 7), 15);
    store(&mut held, came("older", &[2], 1), 20);
    let between = held.insert(came("between", &[1, 2], 4));
    let place = held.place_of(&[between], live(4), true);
    assert_eq!(place, Place::Before(vec![10, 12, 15]));
}

#[test]
fn what_goes_behind_others_waits_for_what_is_behind_them_and_not_written_yet() {
    let mut held = held();
    let younger = NewLetter {
        since: Since::After(5),
        came: Some(5),
        ..new(Slot::Everyone, "u", &[1, 5])
    };
    store(&mut held, younger, 10);
    store(&mut held, behind("v", &[5, 3]), 15);
    store(&mut held, new(MINE, "o", &[2]), 20);
    // Shares no record with the one between: only with what that has to go before.
    let late = held.insert(behind("l", &[3]));
    let between = held.insert(behind("b", &[1, 2]));
    let place = |held: &Held, first| held.place_of(&[between], live(4), first);
    assert_eq!(place(&held, false), Place::Unknown);
    held.written(late, Placed { place: 21, id: 21 });
    assert_eq!(place(&held, false), Place::Before(vec![10, 15, 21]));
    // What is decided later is written later.
    held.insert(behind("m", &[3]));
    assert_eq!(place(&held, false), Place::Before(vec![10, 15, 21]));
}

#[test]
fn a_head_that_nobody_asked_for_keeps_all_behind_it_and_lets_them_go_in_order() {
    let mut held = held();
    let head = store(&mut held, new(MINE, "a", &[1]), 1);
    let second = store(&mut held, behind("b", &[1, 2]), 2);
    let third = store(&mut held, behind("c", &[2]), 3);
    let free = store(&mut held, behind("d", &[4]), 4);
    assert_eq!(draw(&mut held), [free]);
    ask(&mut held, head);
    // All at once: the lanes keep their order.
    assert_eq!(draw(&mut held), [head, second, third]);
    held.handled(head);
    assert!(!held.must_wait(&[second]));
    assert_eq!(
        held.holder(MINE, &[1], live(9)),
        Some(head),
        "until it is written"
    );
    held.remove(head);
    assert_eq!(held.holder(MINE, &[1], live(9)), Some(second));
    held.refused(second);
    assert!(held.must_wait(&[third]));
    held.put_back(third);
    held.rests(second);
    assert_eq!(draw(&mut held), [0u64; 0]);
    // Given up: what is next goes.
    held.remove(second);
    assert_eq!(draw(&mut held), [third]);
}

#[test]
fn what_is_in_the_lanes_waits_for_one_before_it_that_is_loaded_once_more() {
    let mut held = held();
    let head = store(&mut held, new(MINE, "a", &[1]), 1);
    let second = store(&mut held, behind("b", &[1]), 2);
    ask(&mut held, head);
    assert_eq!(draw(&mut held), [head, second]);
    held.refused(head);
    held.rests(head);
    ask(&mut held, head);
    assert_eq!(load(&mut held), [head]);
    assert!(held.must_wait(&[second]));
    held.in_lanes(head);
    assert!(!held.must_wait(&[second]), "the lanes keep it behind");
}

#[test]
fn a_withdrawn_letter_does_not_go() {
    let mut held = held();
    let head = store(&mut held, new(MINE, "a", &[1]), 1);
    ask(&mut held, head);
    assert_eq!(draw(&mut held), [head]);
    assert!(!held.must_wait(&[head]));
    held.letters.get_mut(&head).unwrap().asked = false;
    assert!(held.must_wait(&[head]));
    assert!(held.must_wait(&[4711]), "and neither does one that is gone");
}

#[test]
fn what_could_not_be_decoded_goes_when_asked_and_holds_until_each_handler_has_its_own() {
    let mut held = held();
    let all = store(&mut held, new(Slot::Everyone, "u", &[1]), 1);
    let waits = store(&mut held, behind("b", &[1]), 2);
    assert!(held.has_undecoded());
    assert_eq!(draw(&mut held), [0u64; 0]);
    ask(&mut held, all);
    assert_eq!(draw(&mut held), [all]);
    let own = held.insert(behind("u2", &[1]));
    held.written(own, Placed { place: 1, id: 3 });
    held.remove(all);
    assert_eq!(draw(&mut held), [own, waits]);
    assert!(!held.has_undecoded());
}

#[test]
fn a_unit_goes_whole_or_not_at_all() {
    let mut held = held();
    let of = |name, records: &[RecordHash]| NewLetter {
        unit: Some("t".to_owned()),
        ..new(MINE, name, records)
    };
    let head = store(&mut held, new(MINE, "x", &[2]), 1);
    let first = store(&mut held, of("a", &[1]), 2);
    let second = store(&mut held, of("b", &[2]), 3);
    ask(&mut held, first);
    assert_eq!(draw(&mut held), [0u64; 0], "a part of it waits");
    held.remove(head);
    assert_eq!(draw(&mut held), [first, second]);
    held.put_back(first);
    held.put_back(second);
    // A part of it cannot be decoded.
    let all = store(
        &mut held,
        NewLetter {
            slot: Slot::Everyone,
            ..of("c", &[3])
        },
        4,
    );
    held.consider(first);
    assert_eq!(draw(&mut held), [0u64; 0]);
    held.remove(all);
    assert_eq!(draw(&mut held), [first, second]);
}

#[test]
fn a_unit_waits_for_older_letters_that_it_would_overtake_where_its_first_letter_is() {
    let mut held = held();
    let of = |name, records: &[RecordHash]| NewLetter {
        unit: Some("t".to_owned()),
        ..behind(name, records)
    };
    let before = store(&mut held, behind("before", &[1]), 1);
    let first = store(&mut held, of("a", &[1]), 2);
    let between = store(&mut held, new(MINE, "between", &[2]), 3);
    let second = store(&mut held, of("b", &[2]), 4);
    // The lanes keep the unit behind the one before all of it.
    assert_eq!(draw(&mut held), [before]);
    ask(&mut held, between);
    assert_eq!(draw(&mut held), [between]);
    held.consider(first);
    assert_eq!(
        draw(&mut held),
        [0u64; 0],
        "it would overtake the one between"
    );
    held.handled(between);
    assert_eq!(draw(&mut held), [first, second]);
    assert!(
        !held.must_wait(&[first, second]),
        "the one before is on its way before it"
    );
    for phase in [Phase::Loading, Phase::Underway] {
        held.letters.get_mut(&between).unwrap().phase = phase;
        assert!(held.must_wait(&[first, second]), "{phase:?}");
    }
}

#[test]
fn what_is_on_its_way_is_bounded_for_each_handler() {
    let mut held = Held::new(
        vec!["h0".to_owned(), "h1".to_owned()],
        Drawing::bounded(2, 100),
    );
    let tickets: Vec<Ticket> = (1..=5)
        .map(|id| store(&mut held, behind(&id.to_string(), &[id as u64]), id))
        .collect();
    let other = NewLetter {
        behind: true,
        ..new(OTHERS, "o", &[1])
    };
    let other = store(&mut held, other, 6);
    assert_eq!(draw(&mut held), [tickets[0], tickets[1], other]);
    held.handled(tickets[0]);
    assert_eq!(draw(&mut held), [tickets[2]]);
    held.remove(tickets[1]);
    assert_eq!(draw(&mut held), [tickets[3]]);
}

#[test]
fn a_look_at_the_store_brings_what_people_changed() {
    let mut held = held();
    let summary = |id: i64, handler: Option<&str>, asked| LetterSummary {
        placed: Placed { place: id, id },
        subscription: "s".to_owned(),
        topic: "/data/AccountChangeEvent".to_owned(),
        handler: handler.map(str::to_owned),
        identity: identity(&id.to_string()),
        state: "open".to_owned(),
        reason: "rejected".to_owned(),
        error: String::new(),
        record_ids: vec![],
        unit: None,
        asked,
        replay_id: None,
        bytes: 1,
        received_at: SystemTime::UNIX_EPOCH,
        commit: None,
        to_come: false,
        until: None,
    };
    let records = |summary: &LetterSummary| Records::from_slice(&[summary.placed.id as u64]);
    let first = [
        summary(1, Some("h0"), false),
        summary(2, Some("h0"), false),
        summary(3, Some("gone"), false),
    ];
    for one in first {
        let of = records(&one);
        held.load(one, of, false);
    }
    assert_eq!((held.stored(), draw(&mut held)), (3, vec![]));
    let gone = held.sync(
        vec![summary(2, Some("h0"), true), summary(4, None, true)],
        records,
    );
    assert_eq!(gone.len(), 1);
    gone.iter().for_each(|ticket| held.remove(*ticket));
    assert_eq!(held.stored(), 2);
    assert_eq!(draw(&mut held).len(), 2);
}

proptest! {
    /// Whatever is asked for, refused, discarded and parked meanwhile: letters of a record are handled in their
    /// order, none goes past one that stays, and none that may go is forgotten.
    #[test]
    fn letters_of_a_record_are_tried_in_order_and_none_is_forgotten(
        script in proptest::collection::vec((0u8..8, 0usize..64, proptest::collection::btree_set(0u64..4, 0..3), 0u8..3), 1..120),
    ) {
        let mut held = held();
        let mut next_id = 1;
        // In the lanes of each handler, as drawn.
        let mut lanes: Vec<Ticket> = vec![];
        // Drawn, one portion at a time, and not there yet.
        let mut loading: Vec<Ticket> = vec![];
        let mut handled: Vec<Ticket> = vec![];
        for (what, which, records, slot) in script {
            let records: Vec<RecordHash> = records.into_iter().collect();
            let slot = match slot { 0 => MINE, 1 => OTHERS, _ => Slot::Everyone };
            let all: Vec<Ticket> = { let mut all: Vec<_> = held.letters.keys().copied().collect(); all.sort_unstable(); all };
            let chosen = (!all.is_empty()).then(|| all[which % all.len()]);
            match (what, chosen) {
                (0..3, _) => {
                    let letter = NewLetter { behind: what == 0 && slot != Slot::Everyone, ..new(slot, &next_id.to_string(), &records) };
                    store(&mut held, letter, next_id);
                    next_id += 1;
                }
                (3, Some(ticket)) if held.letters[&ticket].phase == Phase::Open => ask(&mut held, ticket),
                (4, Some(ticket)) if !handled.contains(&ticket) => {
                    lanes.retain(|other| *other != ticket);
                    loading.retain(|other| *other != ticket);
                    held.remove(ticket);
                }
                (5, _) if loading.is_empty() => loading = load(&mut held),
                (5, _) => {
                    for ticket in std::mem::take(&mut loading) {
                        if held.letters[&ticket].slot == Slot::Everyone {
                            held.remove(ticket);
                        } else {
                            held.in_lanes(ticket);
                            lanes.push(ticket);
                        }
                    }
                    // As lanes keep them.
                    lanes.sort_by_key(|ticket| held.letters[ticket].rank);
                }
                // The first of its records in the lanes is answered for.
                (6 | 7, _) if !lanes.is_empty() => {
                    let ticket = lanes[which % lanes.len()];
                    let letter = &held.letters[&ticket];
                    let first = !lanes.iter().take_while(|other| **other != ticket).any(|other| {
                        let other = &held.letters[other];
                        other.slot == letter.slot && other.records.iter().any(|r| letter.records.contains(r))
                    });
                    if !first { continue }
                    lanes.retain(|other| *other != ticket);
                    if held.must_wait(&[ticket]) {
                        held.put_back(ticket);
                    } else if what == 6 {
                        let letter = &held.letters[&ticket];
                        for older in held.letters.values().filter(|other| other.rank < letter.rank) {
                            let shares = older.records.iter().any(|r| letter.records.contains(r));
                            let same = older.slot == letter.slot || older.slot == Slot::Everyone;
                            prop_assert!(!(shares && same) || older.phase == Phase::Handled, "went past one that stays");
                        }
                        held.handled(ticket);
                        handled.push(ticket);
                    } else {
                        held.refused(ticket);
                        held.rests(ticket);
                    }
                }
                _ => {}
            }
            if which % 3 == 0 && let Some(ticket) = handled.first().copied() {
                handled.remove(0);
                held.remove(ticket);
            }
        }
        loading.iter().for_each(|ticket| held.in_lanes(*ticket));
        draw(&mut held);
        let tickets: Vec<Ticket> = held.letters.keys().copied().collect();
        for ticket in tickets {
            prop_assert!(held.free_to_go(ticket).is_none(), "forgotten: {:?}", held.letters[&ticket]);
        }
    }
}
