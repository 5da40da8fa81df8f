//! Holes that the store does not take when they are found: no position goes past one, whatever ends the process.

use serde_json::json;
use sqlx::Connection;

use crate::lost_ground::expired;
use crate::stream::{ACCOUNTS, accounts, publish};
use crate::support::{Daemon, Emulator, Hook, Store, configured, eventually, names, webhook};

/// Has the store refuse holes, until [`take_holes`].
async fn refuse_holes(store: &Store) {
    run(
        store,
        "create trigger no_room before insert on hole begin select raise(abort, 'no room'); end",
    )
    .await;
}

async fn take_holes(store: &Store) {
    run(store, "drop trigger no_room").await;
}

async fn run(store: &Store, sql: &'static str) {
    let mut other = sqlx::SqliteConnection::connect(&store.url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut other).await.unwrap();
    other.close().await.unwrap();
}

/// Waits for the only hole to have an end, and gives its bounds.
async fn hole(store: &Store) -> (String, String) {
    let hole = eventually("a hole with both ends", async || {
        let holes = store.holes().await;
        assert!(holes.len() <= 1, "{holes:?}");
        let bounds = |hole: orgstream::store::StoredHole| hole.hole.from.zip(hole.hole.to);
        holes.into_iter().find_map(bounds)
    })
    .await;
    (hole.0.to_string(), hole.1.to_string())
}

#[tokio::test]
async fn a_lost_position_is_not_given_up_by_a_stop_before_its_hole_is_stored() {
    for begin in ["earliest", "latest"] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        let policy = format!("start = \"earliest\"\non_expired_replay_id = \"{begin}\"");
        let (position, kept) = expired(&org, &store, &policy).await;
        refuse_holes(&store).await;
        let config = accounts(&org, &store, "", &policy);
        let daemon = Daemon::run(&config);
        daemon
            .logged(&["the store did not take a write", "record a hole"])
            .await;
        assert_eq!(daemon.stop().await.1, 0);
        let status = store.subscription("accounts").await.unwrap();
        let stored = status.position.map(|position| position.to_string());
        assert_eq!(stored.as_ref(), Some(&position), "{begin}");
        take_holes(&store).await;
        let mut daemon = Daemon::run(&config);
        let first = match begin {
            "earliest" => kept,
            _ => {
                daemon.logged(&["stream open", "from=latest"]).await;
                publish(&org, "after").await
            }
        };
        daemon.handled(1).await;
        assert_eq!(hole(&store).await, (position, first));
        assert_eq!(daemon.stop().await.1, 0);
    }
}

#[tokio::test]
async fn a_position_does_not_pass_the_first_event_after_lost_ones_before_their_hole_is_stored() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let hook = Hook::closed().await;
    let subscription = ("accounts", ACCOUNTS, "start = \"earliest\"");
    let config = configured(&org, &store, "", subscription, &webhook(&hook.url(), ""));
    // The first event of all is received and not finished, and then gone.
    let lost = publish(&org, "lost").await;
    let daemon = Daemon::run(&config);
    eventually("its place in the store", async || {
        store.has_seen_the_first().await.then_some(())
    })
    .await;
    daemon.kill();
    org.post("/bus/expire", &json!({})).await;
    let next = publish(&org, "next").await;
    refuse_holes(&store).await;
    let mended = Hook::start(|_, _| 200.into()).await;
    let config = config.replace(&hook.url(), &mended.url());
    let daemon = Daemon::run(&config);
    assert_eq!(names(&mended.accepts(1).await), ["next"]);
    daemon
        .logged(&["the store did not take a write", "record a hole"])
        .await;
    let status = store
        .until("accounts", "one finished", |s| s.finished == 1)
        .await;
    assert_eq!(status.position, None);
    daemon.kill();
    take_holes(&store).await;
    let daemon = Daemon::run(&config);
    assert_eq!(hole(&store).await, (lost, next.clone()));
    store
        .until("accounts", "the position of the next one", |s| {
            s.position.as_ref().is_some_and(|p| p.to_string() == next)
        })
        .await;
    assert_eq!(daemon.stop().await.1, 0);
    assert_eq!(names(&mended.accepted()), ["next"]);
}
