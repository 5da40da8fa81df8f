//! What becomes of parked events: tried again, passed on, handled, discarded.

use super::bed::{Bed, Park, letter, org, replay, take};
use crate::config::Start;
use crate::store::{
    CommandKind, DeadLetter, DeadLetterFilter, Lease, LetterSelection, LetterSummary, Progress,
    Refusal, SettledAhead, StoreError,
};

const HANDLER: &str = "fulfilment";

fn behind(record: &str) -> DeadLetter {
    DeadLetter {
        reason: "parked_behind".to_owned(),
        ..letter(record, Some(HANDLER))
    }
}

fn refusal() -> Refusal {
    Refusal {
        reason: "exhausted".to_owned(),
        error: "503".to_owned(),
        attempts: 4,
    }
}

fn only(ids: &[i64]) -> LetterSelection {
    LetterSelection {
        ids: ids.to_vec(),
        ..LetterSelection::default()
    }
}

fn ids(letters: &[LetterSummary]) -> Vec<i64> {
    letters.iter().map(|letter| letter.placed.id).collect()
}

pub(super) async fn letters_parked_together_keep_their_order_and_one_open_again_is_the_newest(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let given = [
        letter("001A", Some(HANDLER)),
        behind("001B"),
        behind("001C"),
    ];
    let placed = store.park_all(&lease, &given).await.unwrap();
    assert!(placed.is_sorted(), "{placed:?}");
    assert!(placed.iter().all(|placed| placed.place == placed.id));
    let first = placed[0].id;
    assert_eq!(store.resolve(&lease, &[first]).await.unwrap(), [first]);
    // Both come again; a third is new.
    let again = [given[0].clone(), given[1].clone(), behind("001D")];
    let newest = again[2].clone();
    let again = store.park_all(&lease, &again).await.unwrap();
    assert_eq!((again[0].id, again[1]), (first, placed[1]));
    assert!(placed[2] < again[0] && again[0] < again[2], "{again:?}");
    let open = store.open_letters(&lease).await.unwrap();
    assert_eq!(
        ids(&open),
        [placed[1].id, placed[2].id, first, again[2].id],
        "{open:?}"
    );
    let filter = DeadLetterFilter {
        state: Some("open".to_owned()),
        limit: 10,
        ..DeadLetterFilter::default()
    };
    let listed = store.dead_letters(&filter).await.unwrap();
    let listed: Vec<i64> = listed.iter().map(|stored| stored.id).collect();
    assert_eq!(listed, ids(&open), "as they are handed over");
    let with_payload = store.letters(&[again[2].id, first, 4711]).await.unwrap();
    let found: Vec<i64> = with_payload.iter().map(|stored| stored.id).collect();
    assert_eq!(found, [first, again[2].id]);
    assert_eq!(with_payload[1].letter, newest);
}

pub(super) async fn an_open_letter_is_summed_up_without_its_payload(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let given = DeadLetter {
        unit: Some("t1".to_owned()),
        ..letter("001A", Some(HANDLER))
    };
    let placed = store
        .park_all(&lease, std::slice::from_ref(&given))
        .await
        .unwrap()[0];
    let summary = LetterSummary {
        placed,
        subscription: "accounts".to_owned(),
        topic: "/data/AccountChangeEvent".to_owned(),
        handler: given.handler,
        identity: given.identity,
        state: "open".to_owned(),
        reason: "rejected".to_owned(),
        error: "400 Bad Request".to_owned(),
        record_ids: given.record_ids,
        unit: given.unit,
        asked: false,
        replay_id: given.replay_id,
        bytes: 5,
        received_at: given.received_at,
        commit: given.commit,
        to_come: true,
        until: None,
    };
    let open = store.open_letters(&lease).await.unwrap();
    assert_eq!(open, std::slice::from_ref(&summary));
    let selected = store.letter_summaries(&[placed.id]).await.unwrap();
    let seen_by_people = LetterSummary {
        to_come: false,
        ..summary
    };
    assert_eq!(selected, [seen_by_people]);
}

pub(super) async fn a_letter_above_the_position_is_still_to_come_again(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let letters = ["001A", "001B"].map(|record| letter(record, Some(HANDLER)));
    let placed = store.park_all(&lease, &letters).await.unwrap();
    let to_come = async || {
        let open = store.open_letters(&lease).await.unwrap();
        open.iter().map(|one| one.to_come).collect::<Vec<bool>>()
    };
    assert_eq!(to_come().await, [true, true], "there is no position");
    let ancient = DeadLetter {
        received_at: std::time::SystemTime::UNIX_EPOCH,
        ..letter("001Z", Some(HANDLER))
    };
    let ancient = store.park(&lease, &ancient).await.unwrap();
    assert_eq!(to_come().await, [true, true, false], "the bus forgot it");
    store.discard(&only(&[ancient])).await.unwrap();
    let progress = Progress {
        position: Some(replay("0a")),
        letters_passed: vec![placed[0].id, ancient],
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    assert_eq!(to_come().await, [false, true], "the position passed one");
    let late = Progress {
        position: Some(replay("0b")),
        ..Progress::default()
    };
    store.save_progress(&lease, &late).await.unwrap();
    assert_eq!(to_come().await, [false, true], "however late it is written");
    // Off the stream of a side replay, below the position.
    let replayed = DeadLetter {
        ahead: false,
        ..letter("001C", Some(HANDLER))
    };
    store.park(&lease, &replayed).await.unwrap();
    assert_eq!(to_come().await, [false, true, false]);
    // The live stream brings it, too.
    let live = DeadLetter {
        ahead: true,
        ..replayed
    };
    store.park(&lease, &live).await.unwrap();
    assert_eq!(to_come().await, [false, true, true]);
}

pub(super) async fn what_is_settled_before_the_position_follows_is_known_to_the_next_holder(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let replayed = DeadLetter {
        ahead: false,
        ..letter("001F", Some(HANDLER))
    };
    let given = [
        letter("001B", Some(HANDLER)),
        letter("001C", Some("ledger")),
        letter("001D", None),
        letter("001E", None),
        letter("001A", Some(HANDLER)),
        replayed,
        letter("001G", Some(HANDLER)),
    ];
    let placed = store.park_all(&lease, &given).await.unwrap();
    let [b, c, d, e, a, f] = [0, 1, 2, 3, 4, 5].map(|number| placed[number].id);
    store.resolve(&lease, &[b, a, f]).await.unwrap();
    // What is passed on has successors, which stand for it.
    store.pass_on(&lease, &[d], &[]).await.unwrap();
    store.discard(&only(&[c, e])).await.unwrap();
    let progress = Progress {
        position: Some(replay("0a")),
        letters_passed: vec![a],
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    let mut settled = store.settled_ahead(&lease).await.unwrap();
    settled.sort();
    let expected = [(b, Some(HANDLER), 0), (c, Some("ledger"), 1), (e, None, 3)];
    let expected = expected.map(|(id, handler, number)| SettledAhead {
        id,
        handler: handler.map(str::to_owned),
        identity: given[number].identity.clone(),
    });
    assert_eq!(settled, expected);
}

pub(super) async fn after_a_rewind_open_letters_are_to_come_again_at_the_latest_at_the_old_position(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let letters = ["001A", "001B", "001C", "001D"].map(|record| letter(record, Some(HANDLER)));
    let placed = store.park_all(&lease, &letters).await.unwrap();
    let [passed, ahead, settled, gone] = [0, 1, 2, 3].map(|number| placed[number].id);
    let position = replay("0a");
    let progress = Progress {
        position: Some(position.clone()),
        letters_passed: vec![passed, gone],
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    store.resolve(&lease, &[settled, gone]).await.unwrap();
    let rewind = async |lease: &Lease, to: Start| {
        let kind = CommandKind::Rewind;
        let nothing = serde_json::json!({});
        let org = org();
        let asked = store.ask(&org, "accounts", kind, &nothing, None);
        let id = asked.await.unwrap().unwrap();
        let taken = store.rewind(lease, id, &to, "").await.unwrap();
        let lease = taken.unwrap().lease;
        let open = store.open_letters(&lease).await.unwrap();
        let seen = open
            .into_iter()
            .map(|one| (one.placed.id, one.to_come, one.until));
        assert_eq!(store.settled_ahead(&lease).await.unwrap(), []);
        (lease, seen.collect::<Vec<_>>())
    };
    let (lease, seen) = rewind(&lease, Start::After(position.clone())).await;
    let same = [(passed, false, None), (ahead, true, None)];
    assert_eq!(seen, same, "it goes on where it was");
    let (lease, seen) = rewind(&lease, Start::Earliest).await;
    let old = Some(position);
    assert_eq!(seen, [(passed, true, old.clone()), (ahead, true, None)]);
    // Once more, before any of them has come: the first rewind still tells.
    let progress = Progress {
        position: Some(replay("05")),
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    let (lease, seen) = rewind(&lease, Start::After(replay("01"))).await;
    assert_eq!(seen, [(passed, true, old), (ahead, true, None)]);
    let (_, seen) = rewind(&lease, Start::Latest).await;
    assert_eq!(seen, [(passed, false, None), (ahead, false, None)]);
}

pub(super) async fn letters_go_behind_those_that_are_parked_before_them(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let letters = ["001A", "001B", "001C"].map(|record| letter(record, Some(HANDLER)));
    let placed = store.park_all(&lease, &letters).await.unwrap();
    let [a, b, c] = [0, 1, 2].map(|number| placed[number].id);
    store.resolve(&lease, &[b]).await.unwrap();
    let older = [letter("001O", Some(HANDLER))];
    let (placed, moved) = store.park_before(&lease, &older, &[c, b, a]).await.unwrap();
    let moved_ids: Vec<i64> = moved.iter().map(|placed| placed.id).collect();
    assert_eq!(moved_ids, [c, a], "what is settled stays where it was");
    let open = store.open_letters(&lease).await.unwrap();
    assert_eq!(ids(&open), [placed[0].id, c, a]);
    assert_eq!([open[1].placed, open[2].placed], moved[..]);
}

pub(super) async fn a_letter_that_is_refused_once_more_says_why_and_asks_for_nothing(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let id = store
        .park(&lease, &letter("001A", Some(HANDLER)))
        .await
        .unwrap();
    store.ask_retry(&only(&[id])).await.unwrap();
    let open = store.park_again(&lease, &[id], &refusal()).await.unwrap();
    assert_eq!(open, [id]);
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(
        (stored.state.as_str(), stored.retry_asked_at),
        ("open", None)
    );
    let letter = stored.letter;
    assert_eq!(
        (
            letter.reason.as_str(),
            letter.error.as_str(),
            letter.attempts
        ),
        ("exhausted", "503", 7)
    );
    // One that a person gave up meanwhile stays as it is.
    store.discard(&only(&[id])).await.unwrap();
    let open = store.park_again(&lease, &[id], &refusal()).await.unwrap();
    assert_eq!(open, [0i64; 0]);
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(
        (stored.state.as_str(), stored.letter.attempts),
        ("discarded", 7)
    );
}

pub(super) async fn a_letter_that_can_be_decoded_now_gives_every_handler_one_in_its_place(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let undecodable = DeadLetter {
        reason: "undecodable".to_owned(),
        ..letter("001A", None)
    };
    let placed = store
        .park_all(&lease, &[undecodable, behind("001A")])
        .await
        .unwrap();
    let own = ["fulfilment-2", "ledger"].map(|handler| DeadLetter {
        place: Some(placed[0].place),
        ..letter("001A", Some(handler))
    });
    let passed = store.pass_on(&lease, &[placed[0].id], &own).await.unwrap();
    let passed = passed.unwrap();
    assert!(passed.iter().all(|one| one.place == placed[0].place));
    let open = store.open_letters(&lease).await.unwrap();
    assert_eq!(ids(&open), [passed[0].id, passed[1].id, placed[1].id]);
    let asked: Vec<bool> = open.iter().map(|one| one.asked).collect();
    assert_eq!(asked, [true, true, false]);
    assert!(open.iter().all(|one| one.to_come), "as far ahead as it was");
    let first = store.dead_letter(placed[0].id).await.unwrap().unwrap();
    assert_eq!(first.state, "handled");
    assert!(first.resolved_at.is_some());
    let twice = store.pass_on(&lease, &[placed[0].id], &own).await.unwrap();
    assert_eq!(twice, None);
}

pub(super) async fn a_unit_is_passed_on_and_given_up_whole(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let of = |unit: &str, record: &str, handler: Option<&str>| DeadLetter {
        unit: Some(unit.to_owned()),
        ..letter(record, handler)
    };
    let given = [
        of("transaction:1", "001A", None),
        of("transaction:1", "001B", None),
        of("transaction:1", "001A", Some(HANDLER)),
        of("transaction:2", "001C", None),
        of("transaction:2", "001D", None),
        letter("001E", None),
    ];
    let placed = store.park_all(&lease, &given).await.unwrap();
    let id = |number: usize| placed[number].id;
    let states = async || -> Vec<String> {
        let all: Vec<i64> = placed.iter().map(|placed| placed.id).collect();
        let all = store.letter_summaries(&all).await.unwrap();
        all.into_iter().map(|one| one.state).collect()
    };
    // One of another handler, of another transaction or of none stays.
    let mut discarded = store.discard(&only(&[id(1)])).await.unwrap();
    discarded.sort_unstable();
    assert_eq!(discarded, [id(0), id(1)]);
    assert_eq!(
        states().await,
        ["discarded", "discarded", "open", "open", "open", "open"]
    );
    let by_reason = LetterSelection {
        reason: Some("no such reason".to_owned()),
        ..LetterSelection::default()
    };
    assert_eq!(store.discard(&by_reason).await.unwrap(), [0i64; 0]);
    // Where one of them is gone, none is passed on.
    let own = [letter("001C", Some(HANDLER)), letter("001D", Some(HANDLER))];
    let none = store.pass_on(&lease, &[id(0), id(3)], &own).await.unwrap();
    assert_eq!(none, None);
    assert_eq!(states().await[3], "open");
    let passed = store.pass_on(&lease, &[id(3), id(4)], &own).await.unwrap();
    assert_eq!(passed.unwrap().len(), 2);
    assert_eq!(states().await[3..], ["handled", "handled", "open"]);
}

pub(super) async fn people_ask_withdraw_and_discard_and_the_owner_hears_of_it(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let letters = [
        letter("001A", Some(HANDLER)),
        behind("001A2"),
        letter("001B", Some("ledger")),
    ];
    let placed = store.park_all(&lease, &letters).await.unwrap();
    let [a, b, c] = [placed[0].id, placed[1].id, placed[2].id];
    let asked = async || {
        bed.column::<i64>("select asked from orgstream.subscription")
            .await
    };
    let before = asked().await[0];
    let by = |handler: Option<&str>, reason: Option<&str>| LetterSelection {
        handler: handler.map(str::to_owned),
        reason: reason.map(str::to_owned),
        ..LetterSelection::default()
    };
    let sorted = |mut ids: Vec<i64>| {
        ids.sort_unstable();
        ids
    };
    let found = store
        .select_letters(&by(Some(HANDLER), None))
        .await
        .unwrap();
    assert_eq!(ids(&found), [a, b]);
    let rejected = store.ask_retry(&by(None, Some("rejected"))).await.unwrap();
    assert_eq!(sorted(rejected), [a, c]);
    assert_eq!(asked().await, [before + 1]);
    let first = store.dead_letter(a).await.unwrap().unwrap().retry_asked_at;
    assert!(first.is_some());
    assert_eq!(sorted(store.ask_retry(&only(&[a])).await.unwrap()), [a]);
    let again = store.dead_letter(a).await.unwrap().unwrap().retry_asked_at;
    assert_eq!(again, first, "asking twice is asking once");
    let withdrawn = store.withdraw_retry(&[a, b]).await.unwrap();
    assert_eq!(withdrawn, [a], "nobody asked for the other");
    assert_eq!(store.withdraw_retry(&[]).await.unwrap(), [0i64; 0]);
    assert_eq!(asked().await, [before + 3]);
    // Whoever comes first decides.
    assert_eq!(store.discard(&only(&[a, b])).await.unwrap().len(), 2);
    assert_eq!(asked().await, [before + 4]);
    assert_eq!(store.resolve(&lease, &[a, c]).await.unwrap(), [c]);
    assert_eq!(store.discard(&only(&[c])).await.unwrap(), [0i64; 0]);
    assert_eq!(asked().await, [before + 4], "nothing to tell");
    let states: Vec<String> = store
        .letter_summaries(&[a, b, c])
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.state)
        .collect();
    assert_eq!(states, ["discarded", "discarded", "handled"]);
    assert_eq!(store.open_letters(&lease).await.unwrap(), []);
    let everything = store.ask_retry(&LetterSelection::default()).await.unwrap();
    assert_eq!(everything, [0i64; 0]);
}

pub(super) async fn a_holder_whose_epoch_has_passed_moves_no_letter(bed: &Bed) {
    let store = bed.ready().await;
    let old = take(&*store).await;
    let given = letter("001A", Some(HANDLER));
    let id = store.park(&old, &given).await.unwrap();
    let new = take(&*store).await;
    assert!(new.epoch > old.epoch);
    let refusals = [
        store.resolve(&old, &[id]).await.map(drop),
        store.park_again(&old, &[id], &refusal()).await.map(drop),
        store.pass_on(&old, &[id], &[]).await.map(drop),
        store.open_letters(&old).await.map(drop),
        store.settled_ahead(&old).await.map(drop),
        store.park_all(&old, &[behind("001B")]).await.map(drop),
    ];
    for refusal in refusals {
        assert!(
            matches!(refusal, Err(StoreError::Fenced { .. })),
            "{refusal:?}"
        );
    }
    let open = store.open_letters(&new).await.unwrap();
    assert_eq!(
        (ids(&open), open[0].reason.as_str()),
        (vec![id], "rejected")
    );
}
