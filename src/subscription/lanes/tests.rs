//! What is ready when.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::*;
use crate::config::Ordering;
use crate::event::{
    ChangeEventHeader, ChangeType, Decoded, Event, RawEvent, SchemaId, Shown, Source,
};
use crate::subscription::tracker::Seq;
use proptest::prelude::*;

/// A change event of these records.
pub(in crate::subscription) fn event(records: &[&str]) -> Arc<Event> {
    let header = ChangeEventHeader {
        entity_name: "Account".into(),
        record_ids: records.iter().map(|r| (*r).into()).collect(),
        change_type: ChangeType::Update,
        change_origin: "".into(),
        transaction_key: "".into(),
        sequence_number: 1,
        commit_timestamp: 0,
        commit_number: 0,
        commit_user: "".into(),
        nulled_fields: crate::event::FieldNames::default(),
        diff_fields: crate::event::FieldNames::default(),
        changed_fields: crate::event::FieldNames::default(),
    };
    Arc::new(Event {
        source: Arc::new(Source::new(
            crate::event::OrgId::parse("00D58000000arpq").unwrap(),
            "h",
            "Account".parse().unwrap(),
        )),
        raw: RawEvent {
            id: "u".into(),
            schema_id: SchemaId::new("s"),
            payload: bytes::Bytes::new(),
            replay_id: None,
        },
        decoded: Decoded {
            record_name: "AccountChangeEvent".into(),
            header: Some(Box::new(header)),
            data: bytes::Bytes::from_static(b"{}"),
            ignored_bits: 0,
        },
        received_at: SystemTime::UNIX_EPOCH,
        epoch: 1,
        replayed: false,
        partial: false,
        key: None,
        shown: Shown::Whole,
        known_as: OnceLock::new(),
    })
}

fn waiting(seq: Seq, records: &[&str]) -> Waiting {
    Waiting::new(
        Origin::Live(seq),
        Unit::One(event(records)),
        Ordering::Record,
    )
}

/// Its place in the stream.
pub(in crate::subscription) fn seq(waiting: &Waiting) -> Seq {
    match waiting.origin {
        Origin::Live(seq) => seq,
        other => panic!("{other:?}"),
    }
}

fn lanes(events: &[&[&str]]) -> Lanes {
    let mut lanes = Lanes::default();
    for (seq, records) in events.iter().enumerate() {
        lanes.put(waiting(seq as Seq, records));
    }
    lanes
}

const ONE: BatchLimits = BatchLimits {
    events: 1,
    bytes: 1 << 20,
};
const TEN: BatchLimits = BatchLimits {
    events: 10,
    bytes: 1 << 20,
};

/// A batch where nothing is held.
impl Lanes {
    fn batch(&mut self, now: Instant, limits: BatchLimits) -> Option<(CallId, Vec<Waiting>)> {
        as_call(next(self, now, limits, &|_| false))
    }
}

/// The next batch, full or not.
fn next(lanes: &mut Lanes, now: Instant, limits: BatchLimits, held: IsHeld<'_>) -> Option<Next> {
    match lanes.next_batch(now, limits, false, held) {
        Batch::Next(next) => Some(next),
        Batch::Nothing => None,
        Batch::Part => panic!("a part stays that was not to be full"),
    }
}

fn as_call(next: Option<Next>) -> Option<(CallId, Vec<Waiting>)> {
    next.map(|next| match next {
        Next::Call(call, batch) => (call, batch),
        other => panic!("{other:?}"),
    })
}

fn seqs(batch: Option<(CallId, Vec<Waiting>)>) -> Vec<Seq> {
    batch.map_or(vec![], |(_, b)| b.iter().map(seq).collect())
}

#[test]
fn where_only_a_full_batch_will_do_less_stays_unless_nothing_could_be_added() {
    let now = Instant::now();
    let two = BatchLimits {
        events: 2,
        bytes: 1 << 20,
    };
    let full = |lanes: &mut Lanes, limits| match lanes.next_batch(now, limits, true, &|_| false) {
        Batch::Next(next) => seqs(as_call(Some(next))),
        Batch::Part => vec![Seq::MAX],
        Batch::Nothing => vec![],
    };
    let mut three = lanes(&[&["A"], &["B"], &["C"]]);
    assert_eq!(full(&mut three, two), [0, 1]);
    assert_eq!(full(&mut three, two), [Seq::MAX]);
    assert_eq!(three.waiting(), 1);
    // What waits for a record that is with the handler is no part of a batch.
    let mut blocked = lanes(&[&["A"], &["B"], &["A"]]);
    assert_eq!(full(&mut blocked, two), [0, 1]);
    assert_eq!(full(&mut blocked, two), [0; 0]);
    // Its bytes fill it.
    let mut large = lanes(&[&["A"], &["B"]]);
    let no_bytes = BatchLimits {
        events: 2,
        bytes: 0,
    };
    assert_eq!(full(&mut large, no_bytes), [0]);
    // Nothing is added to what goes alone, and nothing to what comes before it.
    let mut lone = lanes(&[&["A"]]);
    let mut waiting = waiting(1, &["B"]);
    waiting.alone = true;
    lone.put(waiting);
    assert_eq!(full(&mut lone, two), [0]);
    assert_eq!(full(&mut lone, two), [1]);
}

#[test]
fn different_records_run_side_by_side_and_one_record_waits() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
    let (first, batch) = lanes.batch(now, ONE).unwrap();
    assert_eq!(seq(&batch[0]), 0);
    assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
    assert!(seqs(lanes.batch(now, ONE)).is_empty());
    lanes.end_call(first);
    assert_eq!(seqs(lanes.batch(now, ONE)), [1]);
}

#[test]
fn an_event_of_several_records_waits_for_all_of_theirs_and_they_for_it() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["A", "B"], &["B"]]);
    let (first, _) = lanes.batch(now, ONE).unwrap();
    assert!(
        seqs(lanes.batch(now, ONE)).is_empty(),
        "B must not overtake"
    );
    lanes.end_call(first);
    let (second, batch) = lanes.batch(now, ONE).unwrap();
    assert_eq!(seq(&batch[0]), 1);
    assert!(seqs(lanes.batch(now, ONE)).is_empty());
    lanes.end_call(second);
    assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
}

#[test]
fn a_batch_takes_events_of_one_record_in_order() {
    let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
    assert_eq!(seqs(lanes.batch(Instant::now(), TEN)), [0, 1, 2]);
}

#[test]
fn an_overflow_is_a_barrier() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["000000000000000AAA"], &["B"]]);
    let (first, batch) = lanes.batch(now, TEN).unwrap();
    assert_eq!(batch.len(), 1);
    assert!(seqs(lanes.batch(now, TEN)).is_empty());
    lanes.end_call(first);
    let (barrier, batch) = lanes.batch(now, TEN).unwrap();
    assert_eq!(seq(&batch[0]), 1);
    assert!(seqs(lanes.batch(now, TEN)).is_empty());
    lanes.end_call(barrier);
    assert_eq!(seqs(lanes.batch(now, TEN)), [2]);
}

#[test]
fn a_retry_holds_its_record_back_and_no_other() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["A"], &["B"]]);
    let (call, mut batch) = lanes.batch(now, ONE).unwrap();
    lanes.end_call(call);
    let mut failed = batch.remove(0);
    failed.trouble().not_before = Some(now + Duration::from_secs(1));
    lanes.put(failed);
    assert_eq!(seqs(lanes.batch(now, ONE)), [2]);
    assert!(seqs(lanes.batch(now, ONE)).is_empty());
    assert_eq!(lanes.next_due(now), Some(now + Duration::from_secs(1)));
    assert_eq!(seqs(lanes.batch(now + Duration::from_secs(1), ONE)), [0]);
}

#[test]
fn a_probe_prefers_an_event_that_was_not_tried_yet() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["B"]]);
    let (call, mut batch) = lanes.batch(now, ONE).unwrap();
    lanes.end_call(call);
    batch[0].attempts = 3;
    lanes.put(batch.remove(0));
    assert_eq!(seqs(as_call(lanes.probe(now, &|_| false))), [1]);
}

/// What goes aside where these records are held.
fn aside(lanes: &mut Lanes, now: Instant, held: &[&str]) -> Vec<Seq> {
    let names: Vec<String> = held.iter().map(|name| (*name).to_owned()).collect();
    let topic = "Account".parse().unwrap();
    let held = Holding::new(Ordering::Record, &topic).records(&names);
    let is_held = |w: &Waiting| w.records.iter().any(|r| held.contains(r));
    match next(lanes, now, TEN, &is_held) {
        Some(Next::Aside(aside)) => aside.iter().map(seq).collect(),
        Some(Next::Call(call, batch)) => {
            lanes.end_call(call);
            batch.into_iter().for_each(|waiting| lanes.put(waiting));
            vec![]
        }
        Some(Next::Look(..)) | None => vec![],
    }
}

#[test]
fn what_is_held_leaves_in_its_turn_with_all_that_shares_a_record_with_it() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["A", "B"], &["C"], &["B"], &["D"]]);
    assert_eq!(aside(&mut lanes, now, &["A"]), [0, 1, 3]);
    assert_eq!(aside(&mut lanes, now, &["A"]), [0; 0]);
    assert_eq!(lanes.waiting(), 2);
}

#[test]
fn what_a_side_replay_brings_does_not_go_aside_for_a_live_event_that_does() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["A"]]);
    let replayed = |seq| {
        let unit = Unit::One(event(&["A"]));
        Waiting::new(Origin::Replay(seq), unit, Ordering::Record)
    };
    lanes.put(replayed(7));
    // Held is what the live stream brings: what is replayed is older.
    let live_only = |w: &Waiting| matches!(w.origin, Origin::Live(_));
    let Some(Next::Aside(aside)) = next(&mut lanes, now, TEN, &live_only) else {
        panic!("nothing goes aside");
    };
    assert_eq!(aside.iter().map(seq).collect::<Vec<_>>(), [0, 1]);
    let Some(Next::Call(_, batch)) = next(&mut lanes, now, TEN, &live_only) else {
        panic!("nothing is handed over");
    };
    assert_eq!(batch[0].origin, Origin::Replay(7));
}

#[test]
fn what_is_held_by_one_record_waits_for_what_is_before_it_of_another() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["B"], &["A", "B"]]);
    let (call, batch) = lanes.batch(now, ONE).unwrap();
    assert_eq!(seq(&batch[0]), 0);
    assert_eq!(
        aside(&mut lanes, now, &["A"]),
        [0; 0],
        "B is with the handler"
    );
    lanes.end_call(call);
    assert_eq!(aside(&mut lanes, now, &["A"]), [1]);
}

#[test]
fn what_waits_for_another_attempt_goes_aside_all_the_same() {
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"]]);
    let (call, mut batch) = lanes.batch(now, ONE).unwrap();
    lanes.end_call(call);
    let mut failed = batch.remove(0);
    failed.trouble().not_before = Some(now + Duration::from_secs(60));
    lanes.put(failed);
    assert_eq!(aside(&mut lanes, now, &["A"]), [0]);
}

/// One move of the two that are compared.
#[derive(Debug, Clone)]
enum Move {
    /// Something comes: from the stream, a replay or a letter, of these records, or a barrier.
    Put(u8, std::collections::BTreeSet<u8>),
    Look(usize),
    /// A call ends; what it had is done, or comes back at once, later, or in doubt.
    End(usize, u8),
    /// A letter holds this record, or no more.
    Hold(u8),
    Later(u64),
    Forget,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0u8..6, proptest::collection::btree_set(0u8..4, 1..3)).prop_map(|(from, records)| Move::Put(from, records)),
        6 => (1usize..4).prop_map(Move::Look),
        4 => (0usize..8, 0u8..5).prop_map(|(which, how)| Move::End(which, how)),
        1 => (0u8..4).prop_map(Move::Hold),
        1 => (1u64..50).prop_map(Move::Later),
        1 => Just(Move::Forget),
    ];
    proptest::collection::vec(one, 0..200)
}

fn described(next: &Option<Next>) -> String {
    let origins = |all: &[Waiting]| all.iter().map(|w| w.origin).collect::<Vec<_>>();
    match next {
        None => "nothing".to_owned(),
        Some(Next::Call(_, batch)) => format!("call {:?}", origins(batch)),
        Some(Next::Look(_, batch)) => format!("look {:?}", origins(batch)),
        Some(Next::Aside(batch)) => format!("aside {:?}", origins(batch)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// What is remembered of the last look changes nothing but its cost.
    #[test]
    fn what_is_known_to_be_stuck_is_stuck(moves in moves()) {
        let start = Instant::now();
        let (mut now, mut next_place) = (start, 0);
        let (mut known, mut looking) = (Lanes::default(), Lanes::default());
        let mut calls: Vec<(CallId, Vec<Waiting>)> = vec![];
        let mut holding = std::collections::BTreeSet::new();
        for one in moves {
            match one {
                Move::Put(from, records) => {
                    next_place += 1;
                    let origin = match from {
                        0 => Origin::Letter { place: next_place, id: next_place },
                        1 => Origin::Replay(next_place as Seq),
                        _ => Origin::Live(next_place as Seq),
                    };
                    let names: Vec<String> = match from {
                        5 => vec!["001*".to_owned()],
                        _ => records.iter().map(|r| format!("r{r}")).collect(),
                    };
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let new = Waiting::new(origin, Unit::One(event(&names)), Ordering::Record);
                    known.put(new.clone());
                    looking.put(new);
                }
                Move::Look(events) => {
                    let limits = BatchLimits { events, bytes: 1 << 20 };
                    let records = Holding::new(Ordering::Record, &"Account".parse().unwrap());
                    let held: Vec<RecordHash> =
                        holding.iter().flat_map(|r| records.records(&[format!("r{r}")])).collect();
                    let is_held = |w: &Waiting| w.records.iter().any(|r| held.contains(r));
                    looking.stuck = None;
                    let look = |lanes: &mut Lanes| match lanes.look(now) {
                        Some(look) => Some(look),
                        None => next(lanes, now, limits, &is_held),
                    };
                    let (found, expected) = (look(&mut known), look(&mut looking));
                    prop_assert_eq!(described(&found), described(&expected));
                    if let Some(Next::Call(call, batch) | Next::Look(call, batch)) = found {
                        calls.push((call, batch));
                    }
                }
                Move::End(which, how) if which < calls.len() => {
                    let (call, batch) = calls.remove(which);
                    for lanes in [&mut known, &mut looking] {
                        lanes.end_call(call);
                        for mut waiting in batch.iter().filter(|_| how > 0).cloned() {
                            waiting.trouble().not_before = (how == 2).then(|| now + Duration::from_secs(20));
                            waiting.in_doubt = how == 3;
                            waiting.alone = how == 4;
                            lanes.put(waiting);
                        }
                    }
                }
                Move::End(..) => {}
                Move::Hold(record) => {
                    if !holding.remove(&record) {
                        holding.insert(record);
                    }
                }
                Move::Later(seconds) => now += Duration::from_secs(seconds),
                Move::Forget => {
                    for lanes in [&mut known, &mut looking] {
                        lanes.forget(|origin| matches!(origin, Origin::Replay(_)));
                    }
                }
            }
        }
    }
}

proptest! {
    /// Whatever fails in between and however calls overlap, first successes of a record follow bus order.
    #[test]
    fn events_of_a_record_are_handled_in_bus_order(
        events in proptest::collection::vec(proptest::collection::btree_set(0u8..4, 1..3), 1..40),
        script in proptest::collection::vec((any::<bool>(), 0usize..8), 0..400),
    ) {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        for (seq, records) in events.iter().enumerate() {
            let names: Vec<String> = records.iter().map(|r| format!("r{r}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            lanes.put(waiting(seq as Seq, &names));
        }
        let limits = BatchLimits { events: 3, bytes: 1 << 20 };
        let mut calls: Vec<(CallId, Vec<Waiting>)> = vec![];
        let mut handled: Vec<Seq> = vec![];
        let finish = |lanes: &mut Lanes, (call, batch): (CallId, Vec<Waiting>), ok: bool, handled: &mut Vec<Seq>| {
            lanes.end_call(call);
            for waiting in batch {
                if ok { handled.push(seq(&waiting)) } else { lanes.put(waiting) }
            }
        };
        for (ok, which) in script {
            if calls.len() < 4 && let Some(call) = lanes.batch(now, limits) {
                calls.push(call);
            }
            if which < calls.len() {
                let call = calls.remove(which);
                finish(&mut lanes, call, ok, &mut handled);
            }
        }
        loop {
            while let Some(call) = calls.pop() {
                finish(&mut lanes, call, true, &mut handled);
            }
            match lanes.batch(now, limits) {
                Some(call) => calls.push(call),
                None => break,
            }
        }
        prop_assert_eq!(handled.len(), events.len(), "nothing is stuck");
        for record in 0..4u8 {
            let of_record: Vec<_> = handled.iter().filter(|seq| events[**seq as usize].contains(&record)).collect();
            prop_assert!(of_record.is_sorted(), "record {} out of order: {:?}", record, of_record);
        }
    }
}

fn replayed(seq: Seq, records: &[&str]) -> Waiting {
    let unit = Unit::One(event(records));
    Waiting::new(Origin::Replay(seq), unit, Ordering::Record)
}

#[test]
fn a_barrier_does_not_wait_for_what_came_after_it() {
    const WIDE: &str = "000000000000000AAA";
    let now = Instant::now();
    let mut lanes = lanes(&[&["A"], &["B"]]);
    lanes.put(replayed(0, &[WIDE]));
    lanes.put(replayed(1, &["C"]));
    // One call after the other, so that there is always one under way, and always something newer.
    let (mut last, batch) = lanes.batch(now, ONE).unwrap();
    assert_eq!(seq(&batch[0]), 0);
    let mut before = 0;
    for next in 2.. {
        lanes.put(waiting(next, &[&format!("r{next}")]));
        let call = lanes.batch(now, ONE);
        lanes.end_call(last);
        let Some((call, batch)) = call.or_else(|| lanes.batch(now, ONE)) else {
            panic!("nothing is ready");
        };
        if matches!(batch[0].origin, Origin::Replay(0)) {
            assert!(lanes.batch(now, ONE).is_none(), "nothing beside it");
            break;
        }
        before += 1;
        assert!(before < 10, "newer ones went past it");
        last = call;
    }
    assert_eq!(before, 1, "only what came before it");
}

#[test]
fn a_barrier_that_has_to_wait_for_an_older_one_stands_in_nobodys_way_before() {
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    let mut lanes = lanes(&[&["A"]]);
    let (call, mut batch) = lanes.batch(now, ONE).unwrap();
    lanes.end_call(call);
    batch[0].trouble().not_before = Some(later);
    lanes.put(replayed(0, &["001*"]));
    lanes.put(batch.remove(0));
    lanes.put(waiting(1, &["B"]));
    assert_eq!(seqs(lanes.batch(now, ONE)), [1], "of the live stream");
}

#[test]
fn a_key_holds_its_record_whatever_it_looks_like() {
    let ids = |id: &str| vec![id.to_owned()];
    let of = |topic: &str| Holding::new(Ordering::Record, &topic.parse().unwrap());
    for id in ["SKU-*", "000000000000000AAA"] {
        assert_eq!(of("/event/Order__e").records(&ids(id)).len(), 1);
        assert_eq!(of("/data/AccountChangeEvent").records(&ids(id)).len(), 0);
        let mut keyed = (*event(&[])).clone();
        keyed.decoded.header = None;
        keyed.key = Some(id.into());
        let unit = Unit::One(Arc::new(keyed));
        let waiting = Waiting::new(Origin::Live(0), unit, Ordering::Record);
        assert_eq!(waiting.records.len(), 1);
    }
    let strict = Holding::new(Ordering::Strict, &"/event/Order__e".parse().unwrap());
    assert_eq!(strict.records(&ids("A")).len(), 0);
}

#[test]
fn what_is_left_of_a_unit_comes_in_stretches_that_say_so() {
    let events: Vec<_> = ["a", "b", "c", "d"].map(|record| event(&[record])).into();
    let waiting = Waiting::new(
        Origin::Live(5),
        Unit::Several(events.into()),
        Ordering::Record,
    );
    let left = waiting.without(&[Origin::Live(6)], Ordering::Record);
    let places: Vec<Vec<Origin>> = left.iter().map(|w| w.places().collect()).collect();
    assert_eq!(
        places,
        [
            vec![Origin::Live(5)],
            vec![Origin::Live(7), Origin::Live(8)]
        ]
    );
    let records: Vec<_> = left.iter().map(|w| w.records.len()).collect();
    assert_eq!(records, [1, 2]);
    let events = || left.iter().flat_map(|w| w.unit.events());
    assert!(events().all(|event| event.partial));
    let ids: Vec<_> = events().flat_map(|event| event.record_ids()).collect();
    assert_eq!(ids, ["a", "c", "d"]);
    let all: Vec<Origin> = waiting.places().collect();
    assert!(waiting.without(&all, Ordering::Record).is_empty());
}
