//! What only SQLite has to show.

use super::bed::{BRIEF, Bed, KEY, key, take};
use crate::store::{StoreError, open};

fn config(url: &str) -> crate::config::StoreConfig {
    crate::config::StoreConfig {
        timeout: std::time::Duration::from_secs(5),
        encryption_key: Some(KEY.into()),
        ..crate::config::StoreConfig::new(url)
    }
}

async fn config_error(url: &str) -> String {
    match open(&config(url)).await {
        Err(StoreError::Config(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{url} was accepted"),
    }
}

#[tokio::test]
async fn a_folder_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let text = config_error(&format!("sqlite://{}/store.db", missing.display())).await;
    assert!(text.contains(missing.to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn other_schemes_are_refused() {
    for url in ["mysql://u:hunter2@h/d", "orgstream.db", ""] {
        let text = config_error(url).await;
        assert!(text.contains("postgres://") && !text.contains("hunter2"));
    }
}

#[tokio::test]
async fn a_new_file_is_opened_from_many_places_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // Rarely is more than one in the middle of it.
    for number in 0..40 {
        let url = format!("sqlite://{}/{number}.db", folder.path().display());
        let mut stores = Vec::new();
        for _ in 0..6 {
            stores.push(open(&config(&url)).await.unwrap());
        }
        let opened = futures_util::future::join_all(stores.iter().map(|store| store.ping())).await;
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    let text = "not a database, but somebody's notes\n".repeat(100);
    std::fs::write(&file, &text).unwrap();
    let config = config(&format!("sqlite://{}", file.display()));
    let error = open(&config).await.unwrap().migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::Config(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn a_second_process_may_look_but_not_run_subscriptions() {
    let bed = Bed::sqlite();
    let first = bed.ready().await;
    take(&*first).await;
    let second = bed.open().await;
    assert_eq!(second.subscriptions().await.unwrap().len(), 1);
    assert_eq!(second.migrate().await.unwrap(), [0i64; 0]);
    let key = key("accounts", "Account");
    let refused = second.take_over(&key, "second", BRIEF, &[], false).await;
    let Err(StoreError::Config(text)) = refused else {
        panic!("{refused:?}");
    };
    assert!(text.contains("store.db.lock"), "{text}");
    // The lock ends with the first.
    first.close().await;
    take(&*second).await;
}

#[tokio::test]
async fn a_store_in_memory_lasts_as_long_as_it_is_open() {
    let store = open(&config("sqlite::memory:")).await.unwrap();
    store.migrate().await.unwrap();
    take(&*store).await;
    assert_eq!(store.subscriptions().await.unwrap().len(), 1);
}

#[tokio::test]
async fn readers_beside_the_writer_find_a_file_in_write_ahead_mode() {
    let bed = Bed::sqlite();
    let store = bed.ready().await;
    take(&*store).await;
    let mode: Vec<i64> = bed
        .column("select journal_mode = 'wal' from pragma_journal_mode")
        .await;
    assert_eq!(mode, [1]);
}

#[tokio::test]
async fn a_call_that_was_given_up_half_way_leaves_no_open_transaction() {
    use sqlx::Connection;
    let bed = Bed::sqlite();
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut other = sqlx::SqliteConnection::connect(&bed.url).await.unwrap();
    let nothing = crate::store::Progress::default();
    for _ in 0..5 {
        let lock = other.begin_with("begin immediate").await.unwrap();
        let call = store.save_progress(&lease, &nothing);
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), call).await;
        assert!(given_up.is_err());
        lock.rollback().await.unwrap();
        store.save_progress(&lease, &nothing).await.unwrap();
    }
    // Nothing of ours keeps another process out.
    let lock = other.begin_with("begin immediate").await.unwrap();
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_file_that_another_process_keeps_locked_is_told_in_time() {
    use sqlx::Connection;
    let bed = Bed::sqlite();
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let mut other = sqlx::SqliteConnection::connect(&bed.url).await.unwrap();
    let lock = other.begin_with("begin immediate").await.unwrap();
    let impatient = crate::config::StoreConfig {
        timeout: std::time::Duration::from_millis(400),
        ..bed.config()
    };
    let impatient = open(&impatient).await.unwrap();
    let nothing = crate::store::Progress::default();
    let error = impatient.save_progress(&lease, &nothing).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    lock.rollback().await.unwrap();
    impatient.save_progress(&lease, &nothing).await.unwrap();
}
