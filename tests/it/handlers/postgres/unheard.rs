//! Commits of which nobody hears how they ended.

use super::super::trouble::Bench;
use super::{Db, FUNCTIONS, HEARD};
use crate::support::{Store, record};

/// Rows of this name take their time to be committed: longer than their call, and less than the server needs to see
/// that its client is gone.
const SLOW_COMMIT: &str = "create function at_commit() returns trigger language plpgsql as $$ begin \
    if new.name = 'slow' then perform pg_sleep(1.6); end if; return null; end $$; \
    create constraint trigger at_commit after insert on heard deferrable initially deferred \
    for each row execute function at_commit()";

/// What is tried again meanwhile has to wait for the marks, finds them locked, and has learnt nothing: that must not
/// count against an event that is about to be finished.
#[tokio::test]
async fn an_event_whose_commit_goes_through_unheard_is_not_parked_and_not_handled_twice() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    db.execute(FUNCTIONS).await;
    db.execute(SLOW_COMMIT).await;
    let handler =
        "type = \"postgres\"\nmode = \"call\"\nfunction = \"on_event\"\ntimeout = \"500ms\"";
    let mut bench = Bench::start_trying(
        store,
        "attempts = 1, initial = \"20ms\", max = \"40ms\"",
        handler,
    )
    .await;
    for round in 0..3 {
        bench.publish_about(&record(9), "slow").await;
        let slow = "select name from heard where name = 'slow'";
        // Others succeed all the while, so that an attempt which fails would count.
        while db.texts(slow).await.len() <= round {
            bench.publish(3).await;
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            bench.nothing_parked().await;
        }
        bench.publish_about(&record(9), "next").await;
        let next = "select name from heard where name = 'next'";
        db.until(next, round + 1).await;
        assert_eq!(db.texts(slow).await.len(), round + 1);
    }
    bench.nothing_parked().await;
    let others = HEARD.replace("order", "where name ~ '^[0-9]+$' order");
    db.has(&others, bench.published()).await;
    bench.stop().await;
}
