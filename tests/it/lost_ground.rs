//! Positions that are gone, starts at LATEST that die: what was not seen is a recorded hole.

use serde_json::json;

use crate::stream::{ACCOUNTS, accounts, called, calls, publish};
use crate::support::{Daemon, Emulator, Hook, Store, configured, eventually, names, webhook};

/// A stored position that the bus has forgotten, with an event lost and one kept after it. Gives the
/// replay IDs of the position and of the kept event.
pub(crate) async fn expired(org: &Emulator, store: &Store, policy: &str) -> (String, String) {
    let position = publish(org, "before").await;
    let mut daemon = Daemon::run(&accounts(org, store, "", policy));
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    publish(org, "lost").await;
    org.post("/bus/expire", &json!({})).await;
    let kept = publish(org, "kept").await;
    (position, kept)
}

#[tokio::test]
async fn an_expired_position_begins_again_at_the_earliest_event_with_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"earliest\"";
    let (position, kept) = expired(&org, &store, policy).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        let holes = store.holes().await;
        assert!(holes.len() <= 1, "{holes:?}");
        holes.into_iter().find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "expired_replay_id");
    assert_eq!(hole.hole.from.unwrap().to_string(), position);
    assert_eq!(hole.hole.to.unwrap().to_string(), kept);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("kept".to_owned(), 0));
    assert_eq!(store.subscription("accounts").await.unwrap().holes, 1);
}

#[tokio::test]
async fn an_expired_position_begins_again_at_the_latest_event_with_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"latest\"";
    let (position, _) = expired(&org, &store, policy).await;
    let mut daemon = Daemon::run(&accounts(&org, &store, "", policy));
    daemon.logged(&["stream open", "from=latest"]).await;
    let after = publish(&org, "after").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.from.unwrap().to_string(), position);
    assert_eq!(hole.hole.to.unwrap().to_string(), after);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("after".to_owned(), 0));
}

#[tokio::test]
async fn an_expired_position_stops_a_subscription_that_is_told_to_and_it_recovers() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"stop\"";
    publish(&org, "before").await;
    let config = accounts(&org, &store, "", policy);
    let mut daemon = Daemon::run(&config);
    daemon.handled(1).await;
    daemon.stop().await;
    // Told that its position is gone, for as long as the fault is on.
    org.fault(json!({"rpc": "Subscribe", "kind": "error",
                     "code": "subscription.fetch.replayid.corrupted"}))
        .await;
    publish(&org, "after").await;
    let mut daemon = Daemon::run(&config);
    store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    let before = calls(&org, "Subscribe").await;
    called(&org, "Subscribe", before + 2).await;
    assert_eq!(names(&daemon.events()), Vec::<String>::new());
    let holes = store.holes().await;
    assert_eq!(holes.len(), 1, "a hole is recorded in any case");
    assert_eq!(holes[0].hole.reason, "expired_replay_id");
    org.clear_faults().await;
    daemon.handled(1).await;
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("after".to_owned(), 0));
}

#[tokio::test]
async fn a_start_at_latest_that_dies_before_its_first_response_is_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = accounts(&org, &store, "", "start = \"latest\"");
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    daemon.kill();
    publish(&org, "lost").await;
    let mut daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "latest_before_first_response");
    assert_eq!(hole.hole.to.unwrap().to_string(), next);
    let (events, code) = daemon.stop().await;
    assert_eq!((names(&events).join(" "), code), ("next".to_owned(), 0));
}

#[tokio::test]
async fn a_start_at_latest_whose_stream_breaks_before_its_first_response_is_a_hole() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let mut daemon = Daemon::run(&accounts(&org, &store, "", "start = \"latest\""));
    daemon.logged(&["stream open"]).await;
    org.fault(json!({"rpc": "Subscribe", "kind": "reset", "times": 1, "after_events": 0}))
        .await;
    called(&org, "Subscribe", 2).await;
    daemon.logged(&["stream broke"]).await;
    eventually("a stream", async || {
        org.state().await["streams"][0]["pending"]
            .as_u64()
            .filter(|pending| *pending > 0)
    })
    .await;
    let next = publish(&org, "next").await;
    daemon.handled(1).await;
    let hole = eventually("the end of the hole", async || {
        store
            .holes()
            .await
            .into_iter()
            .find(|hole| hole.hole.to.is_some())
    })
    .await;
    assert_eq!(hole.hole.reason, "latest_before_first_response");
    assert_eq!(hole.hole.to.unwrap().to_string(), next);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_start_at_latest_whose_first_event_is_never_finished_loses_no_other() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, "start = \"latest\"");
    let config = configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    let mut first = None;
    for run in 0..3 {
        let daemon = Daemon::run(&config);
        daemon.logged(&["stream open"]).await;
        let before = hook.came().len();
        let published = publish(&org, &run.to_string()).await;
        eventually("a call that hangs", async || {
            (hook.came().len() > before).then_some(())
        })
        .await;
        first.get_or_insert(published);
        eventually("its place in the store", async || {
            store.has_seen_the_first().await.then_some(())
        })
        .await;
        daemon.kill();
    }
    let mended = Hook::start(|_, _| 200.into()).await;
    let daemon = Daemon::run(&config.replace(&hook.url(), &mended.url()));
    assert_eq!(names(&mended.accepts(2).await), ["1", "2"]);
    let holes = store.holes().await;
    assert_eq!(holes.len(), 1, "{holes:?}");
    assert_eq!(
        holes[0].hole.to.as_ref().unwrap().to_string(),
        first.unwrap()
    );
    assert_eq!(daemon.stop().await.1, 0);
}

/// Waits for the only hole to have an end, and gives its bounds.
async fn ended(store: &Store) -> (Option<String>, String) {
    let hole = eventually("the end of the hole", async || {
        let holes = store.holes().await;
        assert!(holes.len() <= 1, "{holes:?}");
        holes.into_iter().find(|hole| hole.hole.to.is_some())
    })
    .await;
    let text = |id: &orgstream::event::ReplayId| id.to_string();
    (
        hole.hole.from.as_ref().map(text),
        text(hole.hole.to.as_ref().unwrap()),
    )
}

/// A daemon whose handler never answers, on an expired position with this policy.
async fn never_finishing(org: &Emulator, store: &Store, policy: &str) -> (String, String, Hook) {
    let (position, _) = expired(org, store, policy).await;
    let hook = Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, policy);
    let config = configured(org, store, "", subscription, &webhook(&hook.url(), ""));
    (position, config, hook)
}

#[tokio::test]
async fn an_expired_position_that_went_on_at_latest_loses_no_more_through_restarts_before_anything_is_finished()
 {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"latest\"";
    let (position, config, hook) = never_finishing(&org, &store, policy).await;
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open", "from=latest"]).await;
    let first = publish(&org, "first").await;
    eventually("a call that hangs", async || {
        (!hook.came().is_empty()).then_some(())
    })
    .await;
    let bounds = (Some(position), first);
    assert_eq!(ended(&store).await, bounds);
    eventually("its place in the store", async || {
        store.has_seen_the_first().await.then_some(())
    })
    .await;
    daemon.kill();
    let (mut asked, mut came) = (calls(&org, "Subscribe").await, hook.came().len());
    for name in ["second", "third"] {
        publish(&org, name).await;
        let daemon = Daemon::run(&config);
        daemon.logged(&["stream open"]).await;
        eventually("a call that hangs", async || {
            (hook.came().len() > came).then_some(())
        })
        .await;
        // The dead position is not asked for again, nor LATEST.
        asked += 1;
        assert_eq!(calls(&org, "Subscribe").await, asked);
        came = hook.came().len();
        daemon.kill();
    }
    let mended = Hook::start(|_, _| 200.into()).await;
    let daemon = Daemon::run(&config.replace(&hook.url(), &mended.url()));
    assert_eq!(names(&mended.accepts(2).await), ["second", "third"]);
    assert_eq!(ended(&store).await, bounds, "one row, which says so");
    let explanation = store.holes().await[0].hole.explanation.clone();
    assert_eq!(explanation.matches("is not delivered again").count(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn an_expired_position_that_went_on_at_earliest_is_one_hole_through_restarts() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"latest\"\non_expired_replay_id = \"earliest\"";
    // Its first run begins at EARLIEST all the same, so that nothing is lost before the position.
    let first = "start = \"earliest\"";
    let (position, kept) = expired(&org, &store, first).await;
    let hook = Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, policy);
    let config = configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    let bounds = (Some(position.clone()), kept);
    for run in 1..=3 {
        let daemon = Daemon::run(&config);
        daemon.logged(&["stream open", "from=earliest"]).await;
        eventually("a call that hangs", async || {
            (hook.came().len() >= run).then_some(())
        })
        .await;
        assert_eq!(ended(&store).await, bounds);
        daemon.kill();
    }
    // Nothing was finished, and now that first event is gone too.
    org.post("/bus/expire", &json!({})).await;
    let next = publish(&org, "next").await;
    let mended = Hook::start(|_, _| 200.into()).await;
    let daemon = Daemon::run(&config.replace(&hook.url(), &mended.url()));
    assert_eq!(names(&mended.accepts(1).await), ["next"]);
    let holes = eventually("a second hole", async || {
        Some(store.holes().await).filter(|holes| holes.len() == 2)
    })
    .await;
    let second = &holes[0].hole;
    assert_eq!(second.from.as_ref().unwrap().to_string(), bounds.1);
    assert_eq!(second.to.as_ref().unwrap().to_string(), next);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_position_that_waits_for_a_person_is_one_hole_through_restarts() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let policy = "start = \"earliest\"\non_expired_replay_id = \"stop\"";
    let (position, kept) = expired(&org, &store, policy).await;
    let config = accounts(&org, &store, "", policy);
    for _ in 0..2 {
        let daemon = Daemon::run(&config);
        daemon.logged(&["subscription blocked"]).await;
        eventually("a hole", async || {
            let holes = store.holes().await;
            assert!(holes.len() <= 1, "{holes:?}");
            (!holes.is_empty()).then_some(())
        })
        .await;
        daemon.kill();
    }
    assert!(store.holes().await[0].is_open_ended());
    // The person decides.
    let mut daemon = Daemon::run(&config.replace("\"stop\"", "\"earliest\""));
    daemon.handled(1).await;
    assert_eq!(ended(&store).await, (Some(position), kept));
    assert_eq!(names(&daemon.stop().await.0), ["kept"]);
}

#[tokio::test]
async fn what_was_in_flight_when_the_position_was_lost_is_a_hole_if_the_process_dies() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let policy = "start = \"earliest\"\non_expired_replay_id = \"earliest\"";
    let subscription = ("accounts", ACCOUNTS, policy);
    let open = Hook::start(|_, _| 200.into()).await;
    let at = |hook: &Hook| configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    let position = publish(&org, "handled").await;
    let daemon = Daemon::run(&at(&open));
    open.accepts(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    // Both are received, none is finished, and the stream breaks where the bus has forgotten both.
    let daemon = Daemon::run(&at(&hook));
    publish(&org, "in flight").await;
    eventually("a call that hangs", async || {
        (!hook.came().is_empty()).then_some(())
    })
    .await;
    let last = publish(&org, "received").await;
    store
        .until("accounts", "all received", |s| s.received == 3)
        .await;
    org.fault(json!({"rpc": "Subscribe", "kind": "error", "code": "service.unavailable"}))
        .await;
    org.post("/connections/drop", &json!({})).await;
    org.post("/bus/expire", &json!({})).await;
    org.clear_faults().await;
    daemon.logged(&["stream open", "from=earliest"]).await;
    assert_eq!(
        store.holes().await[0]
            .hole
            .from
            .as_ref()
            .unwrap()
            .to_string(),
        last
    );
    daemon.kill();
    let kept = publish(&org, "kept").await;
    let daemon = Daemon::run(&at(&open));
    assert_eq!(names(&open.accepts(2).await), ["handled", "kept"]);
    let hole = eventually("a hole of what was in flight", async || {
        let from = |hole: &orgstream::store::StoredHole| {
            let from = hole.hole.from.as_ref().map(ToString::to_string);
            from == Some(position.clone()) && hole.hole.to.is_some()
        };
        store.holes().await.into_iter().find(from)
    })
    .await;
    assert_eq!(hole.hole.to.unwrap().to_string(), kept);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_bus_that_is_reset_under_a_running_stream_is_a_hole_and_no_dead_place_is_stored_again() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let policy = "start = \"earliest\"\non_expired_replay_id = \"earliest\"";
    let subscription = ("accounts", ACCOUNTS, policy);
    let config = configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    let before = publish(&org, "before").await;
    eventually("a call that hangs", async || {
        (!hook.came().is_empty()).then_some(())
    })
    .await;
    org.post("/bus/reset", &json!({})).await;
    let after = publish(&org, "after").await;
    assert_eq!(ended(&store).await, (Some(before.clone()), after));
    // What came from the old line finishes now, and its place means nothing any more.
    hook.open();
    assert_eq!(names(&hook.accepts(2).await), ["before", "after"]);
    let status = store
        .until("accounts", "two finished", |s| s.finished == 2)
        .await;
    assert_ne!(status.position.unwrap().to_string(), before);
    daemon.kill();
    let last = publish(&org, "last").await;
    let daemon = Daemon::run(&config);
    assert_eq!(names(&hook.accepts(3).await), ["before", "after", "last"]);
    store
        .until("accounts", "the last position", |s| {
            s.position.as_ref().is_some_and(|p| p.to_string() == last)
        })
        .await;
    assert_eq!(store.holes().await.len(), 1);
    assert_eq!(daemon.stop().await.1, 0);
}
