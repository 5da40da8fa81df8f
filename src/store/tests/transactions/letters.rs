//! Dead letters that a handler with a transaction of its own is given once more.

use tokio::sync::oneshot;

use super::super::bed::{Park, letter};
use super::*;
use crate::store::LetterSelection;

pub(in crate::store::tests) async fn a_dead_letter_is_resolved_with_the_rows(bed: &Bed) {
    let (store, lease) = ready(bed).await;
    let id = store
        .park(&lease, &letter("001A", Some("rows")))
        .await
        .unwrap();
    let open = || async {
        let count = "select count(*) from orgstream.dead_letter where state = 'open'";
        bed.column::<i64>(count).await[0]
    };
    let marks = [Mark::Letter(id)];
    let refused = transact(&*store, &lease, &marks, |_, _| {
        Box::pin(async { Ok(vec![false]) })
    });
    refused.await.unwrap();
    assert_eq!(open().await, 1);
    let told = transact(&*store, &lease, &marks, write_all).await.unwrap();
    assert_eq!(told, [false]);
    assert_eq!((open().await, stored(bed).await), (0, (1, 0)));
    let told = transact(&*store, &lease, &marks, write_all).await.unwrap();
    assert_eq!(told, [true]);
    assert_eq!(stored(bed).await, (1, 0));
    store.close().await;
}

/// Tries a letter once more, in a transaction that ends when it is told to; tells when it has begun.
async fn try_slowly(
    store: &dyn Store,
    lease: &Lease,
    id: i64,
    begun: oneshot::Sender<()>,
    end: oneshot::Receiver<()>,
) -> Result<Vec<bool>, TransactionError> {
    let mut both = Some((begun, end));
    let marks = [Mark::Letter(id)];
    let slow = transact(store, lease, &marks, move |conn, finished| {
        let both = both.take();
        Box::pin(async move {
            if let Some((begun, end)) = both {
                let _ = begun.send(());
                let _ = end.await;
            }
            write_all(conn, finished).await
        })
    });
    slow.await
}

pub(in crate::store::tests) async fn a_position_waits_for_no_letter_that_is_with_a_handler(
    bed: &Bed,
) {
    let (store, lease) = ready(bed).await;
    let letter = letter("001A", Some("rows"));
    let id = store.park(&lease, &letter).await.unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (end, ends) = oneshot::channel();
    let passed = async {
        has_begun.await.unwrap();
        let progress = Progress {
            position: Some(replay("0a")),
            letters_passed: vec![id],
            ..Progress::default()
        };
        let saved = store.save_progress(&lease, &progress);
        let saved = tokio::time::timeout(Duration::from_secs(5), saved).await;
        // Seen by all, before the handler is done.
        let ahead = "select count(*) from orgstream.dead_letter where ahead";
        let ahead = bed.column::<i64>(ahead).await[0];
        end.send(()).unwrap();
        (saved, ahead)
    };
    let tried = try_slowly(&*store, &lease, id, begun, ends);
    let (told, (saved, ahead)) = futures_util::future::join(tried, passed).await;
    saved.expect("it waits for the handler").unwrap();
    assert_eq!((told.unwrap(), ahead), (vec![false], 0));
    let handled =
        "select count(*) from orgstream.dead_letter where state = 'handled' and not ahead";
    assert_eq!(bed.column::<i64>(handled).await, [1]);
    store.close().await;
}

pub(in crate::store::tests) async fn a_letter_is_settled_by_one_transaction_while_others_and_people_wait(
    bed: &Bed,
) {
    let (store, lease) = ready(bed).await;
    let letter = letter("001A", Some("rows"));
    let id = store.park(&lease, &letter).await.unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (end, ends) = oneshot::channel();
    let selection = LetterSelection {
        ids: vec![id],
        ..LetterSelection::default()
    };
    let others = async {
        has_begun.await.unwrap();
        let marks = [Mark::Letter(id)];
        let second = transact(&*store, &lease, &marks, write_all);
        let person = store.discard(&selection);
        let blocked = async {
            let waiting = "select count(*) from pg_stat_activity \
                           where datname = current_database() and wait_event_type = 'Lock'";
            let began = Instant::now();
            // A pooler has its own limits.
            let expected = if bed.is_pooled() { 0 } else { 2 };
            while bed.column::<i64>(waiting).await[0] < expected {
                assert!(began.elapsed() < LIMIT, "nobody waits");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            end.send(()).unwrap();
        };
        futures_util::join!(second, person, blocked)
    };
    let tried = try_slowly(&*store, &lease, id, begun, ends);
    let (first, (second, discarded, ())) = futures_util::future::join(tried, others).await;
    assert_eq!((first.unwrap(), second.unwrap()), (vec![false], vec![true]));
    assert_eq!((discarded.unwrap(), stored(bed).await), (vec![], (1, 0)));
    store.close().await;
}
