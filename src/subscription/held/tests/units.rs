//! Letters of transactions that come again, in parts or as a whole.

use super::*;

fn came(name: &str, records: &[RecordHash], seq: Seq) -> NewLetter {
    NewLetter {
        since: Since::After(seq),
        came: Some(seq),
        ..behind(name, records)
    }
}

fn of_unit(unit: &str, letter: NewLetter) -> NewLetter {
    NewLetter {
        unit: Some(unit.to_owned()),
        ..letter
    }
}

fn to_come(letter: NewLetter) -> NewLetter {
    NewLetter {
        since: Since::ToCome,
        ahead: true,
        ..letter
    }
}

/// The stream brings these events of a unit once more, from this place on, and it is decided that they are parked.
fn comes_by(held: &mut Held, unit: &str, seq: Seq, names: &[&'static str]) -> Vec<String> {
    let mut events = Vec::new();
    for (seq, name) in (seq..).zip(names.iter().copied()) {
        held.brought(seq, &identity(name));
        events.push((live(seq), name, held.open(MINE, &identity(name))));
    }
    let again = held.brought_again(MINE, Some(unit), events, Moment::InTurn);
    let tell = |again| match again {
        Again::New { events, apart } => {
            let names: Vec<&str> = events.iter().map(|(_, name)| *name).collect();
            let how = if apart { "apart" } else { "new" };
            format!("{} {how}", names.join(" "))
        }
        Again::Move(moving) => {
            let ids: Vec<String> = moving
                .iter()
                .map(|(_, named)| named.1.to_string())
                .collect();
            format!("{} move", ids.join(" "))
        }
        Again::Stay(origin) => format!("{origin:?} stays"),
    };
    again.into_iter().map(tell).collect()
}

#[test]
fn of_a_unit_that_comes_again_in_parts_the_second_moves_where_the_first_does() {
    let mut held = held();
    store(&mut held, to_come(of_unit("t", behind("a", &[1]))), 1);
    store(&mut held, to_come(of_unit("t", behind("b", &[2]))), 2);
    let older = held.insert(came("older", &[1], 0));
    assert_eq!(comes_by(&mut held, "part", 1, &["a"]), ["1 move"]);
    held.written(older, Placed { place: 3, id: 3 });
    held.moved(Placed { place: 4, id: 1 });
    held.has_moved(held.by_id[&1]);
    assert_eq!(comes_by(&mut held, "part", 2, &["b"]), ["2 move"]);
}

#[test]
fn what_is_new_of_a_unit_is_a_part_by_itself_where_the_rest_is_of_another() {
    for (unit, apart) in [("part", "apart"), ("t", "new")] {
        let mut held = held();
        store(&mut held, to_come(of_unit(unit, behind("b", &[1]))), 1);
        let again = comes_by(&mut held, "t", 1, &["a", "b", "c", "d"]);
        let [first, last] = ["a", "c d"].map(|names| format!("{names} {apart}"));
        assert_eq!(again, [first, "1 move".to_owned(), last]);
    }
}

#[test]
fn what_is_being_written_behind_others_is_behind_what_comes_again_meanwhile() {
    let mut held = held();
    store(&mut held, came("older", &[1], 0), 1);
    store(&mut held, to_come(behind("younger", &[1])), 2);
    assert!(comes_by(&mut held, "t", 1, &["younger"])[0].ends_with("stays"));
    store(&mut held, to_come(behind("youngest", &[1])), 3);
    held.goes_behind(1);
    assert_eq!(comes_by(&mut held, "t", 2, &["youngest"]), ["3 move"]);
    held.moved(Placed { place: 4, id: 1 });
    assert!(!held.letters[&held.by_id[&1]].goes_behind);
}

#[test]
fn what_moves_is_waited_for_by_what_goes_before_it_wherever_it_is_until_then() {
    let mut held = held();
    let last = store(&mut held, came("last", &[2], 9), 7);
    let first = store(&mut held, came("first", &[1], 6), 8);
    store(&mut held, came("older", &[1], 7), 10);
    store(&mut held, came("between", &[1, 2], 8), 11);
    held.moves(last);
    held.moves(first);
    assert_eq!(
        held.place_of(&[first], live(6), false),
        Place::Unknown,
        "the last would be before the one between"
    );
    assert_eq!(
        held.place_of(&[first], live(6), true),
        Place::Before(vec![10, 11])
    );
}

#[test]
fn letters_of_a_unit_are_never_at_one_place_for_one_that_is_open_again_would_be_first() {
    let mut held = held();
    store(&mut held, came("younger", &[1], 9), 10);
    let one = held.insert(came("one", &[1], 1));
    assert_eq!(held.place_of(&[one], live(1), true), Place::At(9));
    let other = held.insert(came("other", &[1], 2));
    let place = held.place_of(&[one, other], live(1), true);
    assert_eq!(place, Place::Before(vec![10]));
}
