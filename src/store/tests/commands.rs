//! Commands: asked, carried out, withdrawn; rewinding; which position belonged to a time.

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::bed::{BRIEF, Bed, hole, now, org, replay, take};
use crate::config::Start;
use crate::event::{EventIdentity, ReplayId};
use crate::store::{
    CommandKind, CommandState, FinishedAhead, HoleFilter, HoleKind, Lease, Progress, Store,
    StoreError, TakenOver,
};

async fn ask(store: &dyn Store, kind: CommandKind) -> i64 {
    let arguments = json!({"from": "earliest", "handlers": ["it's \"quoted\""]});
    let org = org();
    let asked = store.ask(&org, "accounts", kind, &arguments, Some("ada"));
    asked.await.unwrap().unwrap()
}

async fn state(store: &dyn Store, id: i64) -> CommandState {
    store.command(id).await.unwrap().unwrap().state
}

async fn asked(bed: &Bed) -> i64 {
    let rows = bed.column::<i64>("select asked from orgstream.subscription");
    rows.await[0]
}

pub(super) async fn a_command_is_asked_begun_saved_and_ended(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    assert_eq!(
        store
            .ask(&org(), "nobody", CommandKind::Replay, &json!({}), None)
            .await
            .unwrap(),
        None
    );
    let before = now();
    let id = ask(&*store, CommandKind::Replay).await;
    let next = ask(&*store, CommandKind::Rewind).await;
    assert_eq!(asked(bed).await, 2, "the owner is told to look");
    let open = store.open_commands(&lease).await.unwrap();
    assert_eq!(open.iter().map(|c| c.id).collect::<Vec<_>>(), [id, next]);
    assert_eq!(open[0].kind, CommandKind::Replay);
    assert_eq!(open[0].subscription, "accounts");
    assert_eq!(open[0].arguments["handlers"][0], "it's \"quoted\"");
    assert_eq!(open[0].asked_by.as_deref(), Some("ada"));
    assert!(open[0].asked_at >= before && open[0].begun_at.is_none());

    assert!(!store.save_command(&lease, id, &json!({})).await.unwrap());
    assert!(store.begin_command(&lease, id).await.unwrap());
    assert!(store.begin_command(&lease, id).await.unwrap(), "goes on");
    let progress = json!({"place": "0a", "received": 7});
    assert!(store.save_command(&lease, id, &progress).await.unwrap());
    let open = store.open_commands(&lease).await.unwrap();
    assert_eq!(
        (open[0].state, &open[0].progress),
        (CommandState::Running, &progress)
    );
    let done = CommandState::Done;
    let ended = store.end_command(&lease, id, done, "7 events", None);
    assert!(ended.await.unwrap());
    let ended = store.end_command(&lease, id, done, "again", None);
    assert!(!ended.await.unwrap(), "it is over");
    let stored = store.command(id).await.unwrap().unwrap();
    assert_eq!(stored.outcome.as_deref(), Some("7 events"));
    assert_eq!((stored.state, &stored.progress), (done, &progress));
    assert!(stored.begun_at >= Some(before) && stored.ended_at >= stored.begun_at);

    let listed = store.commands(Some("accounts"), 10).await.unwrap();
    assert_eq!(listed.iter().map(|c| c.id).collect::<Vec<_>>(), [next, id]);
    assert_eq!(store.commands(None, 1).await.unwrap()[0].id, next);
    assert!(store.commands(Some("other"), 10).await.unwrap().is_empty());
    assert_eq!(store.command(999).await.unwrap(), None);
}

pub(super) async fn a_withdrawn_command_is_stopped_and_one_that_is_over_stays_as_it_is(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let id = ask(&*store, CommandKind::Replay).await;
    assert!(store.begin_command(&lease, id).await.unwrap());
    let before = asked(bed).await;
    let withdrawn = store.withdraw(id).await.unwrap().unwrap();
    assert_eq!(withdrawn.state, CommandState::Withdrawn);
    assert!(withdrawn.ended_at.is_some());
    assert_eq!(asked(bed).await, before + 1, "the owner is told to look");
    assert!(store.open_commands(&lease).await.unwrap().is_empty());
    assert!(!store.begin_command(&lease, id).await.unwrap());
    assert!(!store.save_command(&lease, id, &json!({})).await.unwrap());
    let ended = store.end_command(&lease, id, CommandState::Done, "late", None);
    assert!(!ended.await.unwrap());
    assert_eq!(state(&*store, id).await, CommandState::Withdrawn);

    let id = ask(&*store, CommandKind::Rewind).await;
    let progress = json!({"a": 1});
    let failed = CommandState::Failed;
    let ended = store.end_command(&lease, id, failed, "no", Some(&progress));
    assert!(ended.await.unwrap());
    let late = store.withdraw(id).await.unwrap().unwrap();
    assert_eq!(late.state, CommandState::Failed);
    assert_eq!(late.progress, json!({"a": 1}));
    assert_eq!(store.withdraw(999).await.unwrap(), None);
}

pub(super) async fn commands_are_carried_out_by_the_holder_only(bed: &Bed) {
    let store = bed.ready().await;
    let old = take(&*store).await;
    let id = ask(&*store, CommandKind::Replay).await;
    take(&*store).await;
    let refusals = [
        store.open_commands(&old).await.map(drop),
        store.begin_command(&old, id).await.map(drop),
        store.save_command(&old, id, &json!({})).await.map(drop),
        store
            .end_command(&old, id, CommandState::Done, "", None)
            .await
            .map(drop),
        store.rewind(&old, id, &Start::Earliest, "").await.map(drop),
    ];
    for refusal in refusals {
        assert!(
            matches!(refusal, Err(StoreError::Fenced { .. })),
            "{refusal:?}"
        );
    }
    assert_eq!(state(&*store, id).await, CommandState::Asked);
}

pub(super) async fn a_command_of_a_later_release_is_left_alone(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    bed.execute(
        "insert into orgstream.command (org_id, subscription, kind, asked_at) \
         select org_id, name, 'reshape', created_at from orgstream.subscription",
    )
    .await;
    assert!(store.open_commands(&lease).await.unwrap().is_empty());
    assert!(store.commands(None, 10).await.unwrap().is_empty());
}

async fn standing_at(store: &dyn Store, hex: &str) -> Lease {
    let lease = take(store).await;
    store.mark_begun(&lease).await.unwrap();
    store.mark_first(&lease, &replay("01")).await.unwrap();
    let progress = Progress {
        position: Some(replay(hex)),
        finished_ahead: vec![FinishedAhead {
            handler: "out".to_owned(),
            identity: EventIdentity::from_stored("u:0c"),
        }],
        ..Progress::default()
    };
    store.save_progress(&lease, &progress).await.unwrap();
    lease
}

async fn rewound(store: &dyn Store, lease: &Lease, to: &Start) -> TakenOver {
    let id = ask(store, CommandKind::Rewind).await;
    let taken = store.rewind(lease, id, to, "rewound").await.unwrap();
    let stored = store.command(id).await.unwrap().unwrap();
    assert_eq!(stored.state, CommandState::Done);
    assert_eq!(stored.outcome.as_deref(), Some("rewound"));
    taken.unwrap()
}

/// What the next worker finds is what the rewind gave.
async fn found(store: &dyn Store, lease: &Lease) -> TakenOver {
    let configured = [lease.key.name.clone()];
    let taken = store.take_over(&lease.key, &lease.holder, BRIEF, &configured, false);
    taken.await.unwrap()
}

pub(super) async fn a_rewind_raises_the_epoch_and_sets_the_position(bed: &Bed) {
    let store = bed.ready().await;
    let lease = standing_at(&*store, "0a").await;
    let taken = rewound(&*store, &lease, &Start::After(replay("05"))).await;
    assert_eq!(taken.lease.epoch, lease.epoch + 1);
    assert_eq!(taken.lease.holder, lease.holder);
    assert_eq!(taken.position, Some(replay("05")));
    // The row is young, the place may be of any age.
    assert_eq!((taken.position_time, taken.position_at), (None, None));
    assert_eq!(taken.begin_from, None);
    assert!(taken.finished_ahead.is_empty());
    // The writer of before is refused, the one of now is not.
    let progress = Progress {
        position: Some(replay("0b")),
        ..Progress::default()
    };
    let late = store.save_progress(&lease, &progress).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    let next = found(&*store, &taken.lease).await;
    assert_eq!(next.position, Some(replay("05")));
    assert!(next.finished_ahead.is_empty() && !next.begun_without_position);
    store.save_progress(&next.lease, &progress).await.unwrap();
}

pub(super) async fn a_rewind_to_a_marked_position_knows_how_old_it_is(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let then = now() - Duration::from_secs(60 * 3600);
    for (hex, at) in [("0a", then), ("0b", now())] {
        let progress = Progress {
            position: Some(replay(hex)),
            marked_at: Some(at),
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
    }
    let taken = rewound(&*store, &lease, &Start::After(replay("0a"))).await;
    assert_eq!(taken.position_time, Some(then));
    assert_eq!(
        store.subscriptions().await.unwrap()[0].position_time,
        Some(then)
    );
}

pub(super) async fn a_rewind_to_earliest_or_latest_is_found_again_until_there_is_a_position(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let mut lease = standing_at(&*store, "0a").await;
    for to in [Start::Earliest, Start::Latest] {
        let taken = rewound(&*store, &lease, &to).await;
        let next = found(&*store, &taken.lease).await;
        for taken in [&taken, &next] {
            assert_eq!(taken.position, None);
            assert_eq!(taken.begin_from, Some(to.clone()));
            assert!(!taken.begun_without_position, "it has not begun there yet");
            assert_eq!(taken.begun_with, None);
        }
        lease = next.lease;
    }
    // A start at LATEST is recorded there, too.
    store.mark_begun(&lease).await.unwrap();
    let next = found(&*store, &lease).await;
    assert!(next.begun_without_position);
    let progress = Progress {
        position: Some(replay("0b")),
        ..Progress::default()
    };
    store.save_progress(&next.lease, &progress).await.unwrap();
    let next = found(&*store, &next.lease).await;
    assert_eq!(next.begin_from, None, "there is a position");
}

pub(super) async fn a_rewind_to_latest_records_what_it_skips(bed: &Bed) {
    let store = bed.ready().await;
    let lease = standing_at(&*store, "0a").await;
    let taken = rewound(&*store, &lease, &Start::Latest).await;
    let holes = store.holes(&HoleFilter::default()).await.unwrap();
    assert_eq!(holes.len(), 1);
    assert_eq!(holes[0].hole.reason, "skipped_by_rewind");
    assert_eq!(holes[0].hole.from, Some(replay("0a")));
    assert_eq!(holes[0].hole.to, None);
    let end = replay("0f");
    store.close_holes(&taken.lease, &end, now()).await.unwrap();
    assert_eq!(
        store.holes(&HoleFilter::default()).await.unwrap()[0]
            .hole
            .to,
        Some(end)
    );
}

/// Holes that nobody has acknowledged: reason, from, to.
async fn open_holes(store: &dyn Store) -> Vec<(String, Option<ReplayId>, Option<ReplayId>)> {
    let filter = HoleFilter {
        open_only: true,
        ..HoleFilter::default()
    };
    let holes = store.holes(&filter).await.unwrap().into_iter();
    holes
        .map(|h| (h.hole.reason, h.hole.from, h.hole.to))
        .collect()
}

fn perhaps(from: &str, to: Option<&str>) -> (String, Option<ReplayId>, Option<ReplayId>) {
    let reason = "perhaps_skipped_by_rewind".to_owned();
    (reason, Some(replay(from)), to.map(replay))
}

pub(super) async fn a_rewind_leaves_a_hole_until_the_stream_shows_that_it_went_back(bed: &Bed) {
    let store = bed.ready().await;
    let mut lease = standing_at(&*store, "0a").await;
    for (to, end) in [
        (Start::After(replay("05")), Some("05")),
        (Start::Earliest, None),
    ] {
        // A keepalive moved the position on from the last event, and is never brought again.
        for (position, event) in [("0a", Some("0a")), ("0b", None)] {
            let progress = Progress {
                position: Some(replay(position)),
                position_event: event.map(replay),
                ..Progress::default()
            };
            store.save_progress(&lease, &progress).await.unwrap();
        }
        let taken = rewound(&*store, &lease, &to).await;
        assert_eq!(taken.rewound_from, [replay("0a")]);
        assert_eq!(open_holes(&*store).await, [perhaps("0a", end)]);
        let next = found(&*store, &taken.lease).await;
        assert_eq!(
            next.rewound_from,
            [replay("0a")],
            "told to the next one, too"
        );
        lease = next.lease;
        let elsewhere = replay("07");
        store.nothing_skipped(&lease, &elsewhere).await.unwrap();
        assert_eq!(open_holes(&*store).await.len(), 1);
        store.nothing_skipped(&lease, &replay("0a")).await.unwrap();
        assert_eq!(open_holes(&*store).await, []);
        let next = found(&*store, &lease).await;
        assert_eq!(next.rewound_from, [], "nothing is left to be told");
        lease = next.lease;
    }
    let told = store.holes(&HoleFilter::default()).await.unwrap();
    assert!(told[0].hole.explanation.contains("nothing was skipped"));
}

pub(super) async fn a_rewind_to_where_it_stands_or_back_again_skips_nothing(bed: &Bed) {
    let store = bed.ready().await;
    let lease = standing_at(&*store, "0a").await;
    let taken = rewound(&*store, &lease, &Start::After(replay("0a"))).await;
    assert_eq!(open_holes(&*store).await, []);
    // A leap, and back to before it: what begins where that one left comes by it.
    let taken = rewound(&*store, &taken.lease, &Start::After(replay("0f"))).await;
    assert_eq!(open_holes(&*store).await, [perhaps("0a", Some("0f"))]);
    let taken = rewound(&*store, &taken.lease, &Start::After(replay("0a"))).await;
    assert_eq!(open_holes(&*store).await, [perhaps("0f", Some("0a"))]);
    assert_eq!(taken.rewound_from, [replay("0f")]);
    // The same leap once more is told once more, although the first is settled.
    rewound(&*store, &taken.lease, &Start::After(replay("0f"))).await;
    assert_eq!(open_holes(&*store).await, [perhaps("0a", Some("0f"))]);
}

pub(super) async fn a_rewind_before_the_first_position_leaves_a_hole_too(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    // It never began: nothing is promised.
    let taken = rewound(&*store, &lease, &Start::After(replay("05"))).await;
    assert_eq!(open_holes(&*store).await, []);
    let lease = rewound(&*store, &taken.lease, &Start::Latest).await.lease;
    store
        .acknowledge_holes(&HoleFilter::default(), true)
        .await
        .unwrap();
    // It began at LATEST, and nothing came; then something did, and was not finished.
    store.mark_begun(&lease).await.unwrap();
    let taken = rewound(&*store, &lease, &Start::After(replay("0a"))).await;
    let (reason, _, to) = perhaps("00", Some("0a"));
    assert_eq!(open_holes(&*store).await, [(reason, None, to)]);
    let lease = rewound(&*store, &taken.lease, &Start::Earliest).await.lease;
    store
        .acknowledge_holes(&HoleFilter::default(), true)
        .await
        .unwrap();
    store.mark_first(&lease, &replay("0c")).await.unwrap();
    rewound(&*store, &lease, &Start::After(replay("0f"))).await;
    assert_eq!(open_holes(&*store).await, [perhaps("0c", Some("0f"))]);
}

pub(super) async fn a_rewind_forward_and_one_more_are_two_holes(bed: &Bed) {
    let store = bed.ready().await;
    let lease = standing_at(&*store, "0a").await;
    let lease = rewound(&*store, &lease, &Start::After(replay("0f")))
        .await
        .lease;
    let taken = rewound(&*store, &lease, &Start::After(replay("1f"))).await;
    let holes = [perhaps("0f", Some("1f")), perhaps("0a", Some("0f"))];
    assert_eq!(open_holes(&*store).await, holes);
    let mut left = taken.rewound_from.clone();
    left.sort_by_key(ToString::to_string);
    assert_eq!(left, [replay("0a"), replay("0f")]);
    // A place that is lost for sure is not closed by what the stream brings.
    let lost = hole(HoleKind::Lost, Some("0a"));
    store.record_hole(&taken.lease, &lost).await.unwrap();
    store
        .nothing_skipped(&taken.lease, &replay("0a"))
        .await
        .unwrap();
    assert_eq!(open_holes(&*store).await.len(), 2);
}

pub(super) async fn a_withdrawn_rewind_changes_nothing(bed: &Bed) {
    let store = bed.ready().await;
    let lease = standing_at(&*store, "0a").await;
    let id = ask(&*store, CommandKind::Rewind).await;
    store.withdraw(id).await.unwrap();
    let taken = store.rewind(&lease, id, &Start::Latest, "").await.unwrap();
    assert!(taken.is_none());
    assert!(
        store
            .holes(&HoleFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    let next = found(&*store, &lease).await;
    assert_eq!(next.position, Some(replay("0a")));
    assert_eq!(
        next.lease.epoch,
        lease.epoch + 1,
        "only that of taking over"
    );
    assert_eq!(next.finished_ahead.len(), 1);
}

pub(super) async fn a_time_is_found_among_the_marks(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let hour = Duration::from_secs(3600);
    let first = now() - 4 * hour;
    for (hex, at) in [
        ("0a", first),
        ("0b", first + hour),
        ("0c", first + 2 * hour),
    ] {
        let progress = Progress {
            position: Some(replay(hex)),
            marked_at: Some(at),
            ..Progress::default()
        };
        store.save_progress(&lease, &progress).await.unwrap();
    }
    let around = async |at: SystemTime| {
        let found = store.marks_around(&org(), "accounts", at).await.unwrap();
        assert_eq!(found.oldest.map(|mark| mark.at), Some(first));
        found.before.map(|mark| (mark.position, mark.at))
    };
    let second = first + hour;
    assert_eq!(around(second).await, Some((replay("0b"), second)));
    assert_eq!(
        around(second + hour / 2).await,
        Some((replay("0b"), second))
    );
    assert_eq!(around(first - hour).await, None);
    let none = store.marks_around(&org(), "other", second).await.unwrap();
    assert_eq!((none.before, none.oldest), (None, None));
}
