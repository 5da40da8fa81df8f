//! What is handed over together, and what is known to be a part.

use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::event::{RawEvent, SchemaId};
use crate::subscription::lanes::tests::event as change_event;

const WAIT: Duration = Duration::from_secs(1);

fn grouping(events: usize, over: Option<&str>, doubt: bool) -> Grouping {
    Grouping::new(Some(Limits { wait: WAIT, events }), over, doubt)
}

/// A change event of the transaction, the so-many-th in it; of none where the key is empty.
fn of(key: &str, number: i32) -> Member {
    let mut event = change_event(&["r"]);
    let inner = Arc::make_mut(&mut event);
    inner.raw.id = format!("{key}.{number}").into();
    let header = inner.decoded.header.as_deref_mut().unwrap();
    header.transaction_key = key.into();
    header.sequence_number = number;
    Member {
        what: What::Event(event),
        finished: 0,
        unwanted: 0,
    }
}

/// An event that cannot be decoded; without a key nothing of it can be read.
fn undecodable(key: Option<&str>) -> Member {
    let header = change_event(&["r"]).decoded.header.clone().unwrap();
    Member {
        what: What::Undecodable(Arc::new(Undecodable {
            raw: RawEvent {
                id: "x".into(),
                schema_id: SchemaId::new("s"),
                payload: bytes::Bytes::new(),
                replay_id: None,
            },
            received_at: SystemTime::UNIX_EPOCH,
            header: key.map(|key| ChangeEventHeader {
                transaction_key: key.into(),
                ..*header
            }),
            reason: "undecodable",
            error: "no".to_owned(),
            replayed: false,
        })),
        finished: 0,
        unwanted: 0,
    }
}

/// Takes members in, in order from place 0, and gives what came of each, then of a keepalive.
fn grouped(mut grouping: Grouping, members: Vec<Member>) -> Vec<String> {
    let now = Instant::now();
    let mut groups = Vec::new();
    for (seq, member) in members.into_iter().enumerate() {
        groups.extend(grouping.take(seq as Seq, member, now));
    }
    groups.extend(grouping.close(false));
    groups.iter().map(described).collect()
}

/// `0: a.1 a.2` for a whole transaction at place 0, `2: b.1 partial` for a part.
fn described(group: &Group) -> String {
    let names = group.members.iter().map(|member| match &member.what {
        What::Event(event) => {
            assert_eq!(event.partial, group.partial, "the events say so");
            event.raw.id.to_string()
        }
        What::Undecodable(_) => "?".to_owned(),
    });
    let partial = group.partial.then(|| "partial".to_owned());
    let words: Vec<String> = names.chain(partial).collect();
    format!("{}: {}", group.first, words.join(" "))
}

#[test]
fn a_transaction_is_over_with_the_next_one_or_a_keepalive() {
    let members = vec![of("a", 1), of("a", 2), of("b", 1), of("", 1), of("c", 1)];
    let groups = grouped(grouping(10, None, false), members);
    assert_eq!(groups, ["0: a.1 a.2", "2: b.1", "3: .1", "4: c.1"]);
}

#[test]
fn a_transaction_is_over_after_the_wait_and_what_follows_is_a_part() {
    let mut grouping = grouping(10, None, false);
    let now = Instant::now();
    assert_eq!(grouping.due(), None);
    grouping.take(0, of("a", 1), now);
    grouping.take(1, of("a", 2), now + WAIT / 2);
    assert_eq!(grouping.due(), Some(now + WAIT + WAIT / 2));
    assert_eq!(grouping.open_from(), Some(0));
    let over = grouping.close(false);
    assert_eq!(described(&over[0]), "0: a.1 a.2");
    assert_eq!(grouping.open_from(), None);
    assert!(grouping.take(2, of("a", 3), now).is_empty());
    let over = grouping.close(false);
    assert_eq!(described(&over[0]), "2: a.3 partial");
}

#[test]
fn a_larger_transaction_comes_in_parts_and_the_last_is_one_too() {
    let members = (1..=5).map(|n| of("a", n)).chain([of("b", 1), of("b", 2)]);
    let groups = grouped(grouping(2, None, false), members.collect());
    assert_eq!(
        groups,
        [
            "0: a.1 a.2 partial",
            "2: a.3 a.4 partial",
            "4: a.5 partial",
            "5: b.1 b.2"
        ]
    );
}

#[test]
fn without_grouping_each_event_is_by_itself() {
    let members = vec![of("a", 1), of("a", 2), undecodable(Some("a"))];
    let groups = grouped(Grouping::new(None, Some("a"), true), members);
    assert_eq!(groups, ["0: a.1", "1: a.2", "2: ?"]);
}

#[test]
fn after_a_restart_more_of_the_transaction_at_the_position_is_a_part() {
    let members = vec![of("a", 3), of("b", 2)];
    let groups = grouped(grouping(10, Some("a"), false), members);
    assert_eq!(groups, ["0: a.3 partial", "1: b.2"]);
}

#[test]
fn where_the_beginning_is_not_known_only_a_first_event_begins_a_whole_transaction() {
    for (number, group) in [(1, "0: a.1"), (2, "0: a.2 partial")] {
        let groups = grouped(grouping(10, None, true), vec![of("a", number), of("b", 7)]);
        assert_eq!(groups, [group, "1: b.7"]);
    }
}

#[test]
fn a_stream_that_goes_on_where_it_broke_goes_on_with_the_transaction() {
    let mut grouping = grouping(10, None, false);
    let now = Instant::now();
    grouping.take(0, of("a", 1), now);
    assert!(grouping.resumed(true, now + 5 * WAIT).is_empty());
    assert_eq!(grouping.due(), Some(now + 6 * WAIT), "the wait begins anew");
    grouping.take(1, of("a", 2), now);
    assert_eq!(described(&grouping.close(false)[0]), "0: a.1 a.2");
}

#[test]
fn a_stream_that_begins_elsewhere_leaves_a_part_on_either_side() {
    let mut grouping = grouping(10, None, false);
    let now = Instant::now();
    grouping.take(0, of("a", 1), now);
    let broken = grouping.resumed(false, now);
    assert_eq!(described(&broken[0]), "0: a.1 partial");
    grouping.take(1, of("b", 4), now);
    assert_eq!(described(&grouping.close(false)[0]), "1: b.4 partial");
}

#[test]
fn an_event_that_cannot_be_decoded_stays_with_its_transaction() {
    let members = vec![of("a", 1), undecodable(Some("a")), of("a", 3), of("b", 1)];
    let groups = grouped(grouping(10, None, false), members);
    assert_eq!(groups, ["0: a.1 ? a.3", "3: b.1"]);
}

#[test]
fn an_event_that_cannot_be_read_is_of_the_transaction_that_goes_on_after_it() {
    let members = vec![of("a", 1), undecodable(None), of("a", 3), of("b", 1)];
    let groups = grouped(grouping(10, None, false), members);
    assert_eq!(groups, ["0: a.1 ? a.3", "3: b.1"]);
}

#[test]
fn an_event_that_cannot_be_read_between_two_transactions_may_be_of_either() {
    let members = vec![of("a", 1), undecodable(None), of("b", 2), of("c", 2)];
    let groups = grouped(grouping(10, None, false), members);
    assert_eq!(
        groups,
        ["0: a.1 partial", "1: ?", "2: b.2 partial", "3: c.2"]
    );
    let members = vec![undecodable(None), of("b", 1), of("c", 2)];
    let groups = grouped(grouping(10, None, false), members);
    assert_eq!(groups, ["0: ?", "1: b.1", "2: c.2"], "1 is the first");
}

#[test]
fn a_handler_is_given_the_whole_or_what_it_has_not_finished_as_parts() {
    let mut group = Group {
        first: 7,
        places: None,
        members: (1..=5).map(|n| of("a", n)).collect(),
        partial: false,
    };
    for finished in [0, 3] {
        group.members[finished].finished = 0b10;
    }
    let given = |handler| -> Vec<(Seq, usize, bool)> {
        let told = |unit: &Unit| unit.events().iter().all(|event| event.partial);
        (group.left_for(handler).iter())
            .map(|left| (left.first, left.unit().unwrap()))
            .map(|(seq, unit)| (seq, unit.events().len(), told(&unit)))
            .collect()
    };
    assert_eq!(given(0b01), [(7, 5, false)]);
    assert_eq!(given(0b10), [(8, 2, true), (11, 1, true)]);
    for member in &mut group.members {
        member.finished = 0b10;
    }
    assert!(group.left_for(0b10).is_empty());
}

#[test]
fn what_a_handler_has_left_of_a_unit_is_not_kept_by_an_event_that_it_has_finished() {
    let mut group = Group {
        first: 0,
        places: None,
        members: smallvec![of("a", 1), undecodable(Some("a")), of("a", 3)],
        partial: false,
    };
    assert!(group.is_new() && group.unit().is_none());
    group.members[1].finished = 0b01;
    assert!(!group.is_new());
    let left = |handler| -> Vec<(Seq, usize, bool)> {
        (group.left_for(handler).iter())
            .map(|left| (left.first, left.members.len(), left.undecodable().is_some()))
            .collect()
    };
    assert_eq!(left(0b01), [(0, 1, false), (2, 1, false)]);
    assert_eq!(left(0b10), [(0, 3, true)]);
}

#[test]
fn dead_letters_of_a_unit_have_its_name_and_those_of_parts_differ() {
    let name = |first, members: Vec<Member>, partial| {
        let members = Members::from(members);
        let group = Group {
            first,
            places: None,
            members,
            partial,
        };
        let group = if partial {
            let open = Open {
                key: "a".into(),
                first,
                members: group.members,
                unread: vec![],
                partial,
                until: Instant::now(),
            };
            Group::of(open, true)
        } else {
            group
        };
        let left = group.left_for(1);
        assert_eq!(unit_name(&left[0].unit().unwrap()), group.name());
        group.name()
    };
    assert_eq!(name(0, vec![of("a", 1)], false), None);
    let whole = name(0, vec![of("a", 1), of("a", 2)], false).unwrap();
    assert_eq!(whole, "transaction:a");
    let one = name(0, vec![of("a", 1)], true).unwrap();
    let other = name(1, vec![of("a", 2)], true).unwrap();
    assert!(one.starts_with(PART) && other.starts_with(PART));
    assert_ne!(one, other);
}

#[derive(Debug, Clone)]
enum Step {
    /// An event; of another transaction than the one before where it says so.
    Event {
        new: bool,
    },
    Undecodable {
        new: bool,
    },
    Unread,
    NoKey,
    Keepalive,
    WaitOver,
    Resumed {
        continues: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => proptest::bool::weighted(0.3).prop_map(|new| Step::Event { new }),
        1 => any::<bool>().prop_map(|new| Step::Undecodable { new }),
        1 => Just(Step::Unread),
        1 => Just(Step::NoKey),
        1 => Just(Step::Keepalive),
        1 => Just(Step::WaitOver),
        1 => any::<bool>().prop_map(|continues| Step::Resumed { continues }),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever comes: every event leaves once, in order, with its own transaction alone; a part is never
    /// taken for the whole, except where a transaction was silent for longer than the wait and what came
    /// late is then told to be a part.
    #[test]
    fn no_event_is_lost_or_moved_and_no_part_passes_for_a_whole(steps in steps(), max in 1usize..5) {
        let mut grouping = grouping(max, None, false);
        let now = Instant::now();
        let mut groups: Vec<Group> = Vec::new();
        // Key and number of each transaction's events that there were, seen or not.
        let (mut key, mut number, mut seq) = (0u32, 0i32, 0u64);
        let mut events = std::collections::HashMap::<String, usize>::new();
        let mut waited = std::collections::HashSet::new();
        let mut lossy = false;
        for step in steps {
            let next = |key: &mut u32, number: &mut i32, new: bool| {
                if new || *key == 0 {
                    *key += 1;
                    *number = 0;
                }
                *number += 1;
                key.to_string()
            };
            let member = match step {
                Step::Event { new } => {
                    let key = next(&mut key, &mut number, new);
                    *events.entry(key.clone()).or_default() += 1;
                    of(&key, number)
                }
                Step::Undecodable { new } => {
                    let key = next(&mut key, &mut number, new);
                    *events.entry(key.clone()).or_default() += 1;
                    undecodable(Some(&key))
                }
                // Of the present transaction, though nobody can know.
                Step::Unread => {
                    let key = next(&mut key, &mut number, false);
                    *events.entry(key).or_default() += 1;
                    undecodable(None)
                }
                Step::NoKey => {
                    key += 1; // transactions do not interleave with anything
                    number = 0;
                    of("", 1)
                }
                Step::Keepalive => {
                    groups.extend(grouping.close(false));
                    key += 1;
                    number = 0;
                    continue;
                }
                Step::WaitOver => {
                    waited.insert(key.to_string());
                    groups.extend(grouping.close(false));
                    continue;
                }
                Step::Resumed { continues } => {
                    if !continues {
                        // An event is lost.
                        let key = next(&mut key, &mut number, false);
                        *events.entry(key).or_default() += 1;
                        lossy = true;
                    }
                    groups.extend(grouping.resumed(continues, now));
                    continue;
                }
            };
            groups.extend(grouping.take(seq, member, now));
            seq += 1;
            let handed: usize = groups.iter().map(|group| group.members.len()).sum();
            prop_assert_eq!(grouping.open_from(), (handed < seq as usize).then_some(handed as Seq));
        }
        groups.extend(grouping.close(false));
        let mut at = 0;
        let mut seen = std::collections::HashSet::new();
        for group in &groups {
            prop_assert_eq!(group.first, at);
            at += group.members.len() as Seq;
            let keys: std::collections::HashSet<_> = group
                .members
                .iter()
                .filter_map(|member| transaction(member.what.header()))
                .collect();
            prop_assert!(keys.len() <= 1, "{}", described(group));
            let poisoned = group.undecodable().is_some();
            prop_assert!(poisoned || group.members.len() <= max);
            let Some(key) = keys.into_iter().next() else { continue };
            let first = seen.insert(key.to_owned());
            if !group.partial && !poisoned {
                prop_assert!(first, "{} is not the first of its transaction", described(group));
                let whole = group.members.len() == events[key.as_str()];
                prop_assert!(
                    whole || waited.contains(key.as_str()),
                    "{} of {} (lossy: {})", described(group), events[key.as_str()], lossy
                );
            }
        }
        prop_assert_eq!(at, seq);
    }
}

#[test]
fn what_a_handler_does_not_want_is_no_part_of_its_unit_and_the_rest_keeps_its_places() {
    let mut group = Group {
        first: 7,
        places: None,
        members: (1..=5).map(|n| of("a", n)).collect(),
        partial: false,
    };
    for unwanted in [0, 2] {
        group.members[unwanted].unwanted = 0b01;
    }
    let given = |group: &Group, handler| -> Vec<(Seq, Vec<Seq>, bool)> {
        (group.left_for(handler).iter())
            .map(|left| (left.first, left.places(), left.partial))
            .collect()
    };
    assert_eq!(given(&group, 0b10), [(7, vec![7, 8, 9, 10, 11], false)]);
    // It is all that it will ever get of the transaction, so no part.
    assert_eq!(given(&group, 0b01), [(8, vec![8, 10, 11], false)]);
    group.members[3].finished = 0b01;
    let parts = [(8, vec![8], true), (11, vec![11], true)];
    assert_eq!(given(&group, 0b01), parts);
    for member in &mut group.members {
        member.unwanted = 0b01;
    }
    assert!(group.left_for(0b01).is_empty());
    assert!(group.wanted(|member| member.unwanted != 0b01).is_none());
}
