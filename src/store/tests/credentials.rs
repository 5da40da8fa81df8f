//! The vault.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::bed::Bed;
use crate::config::StoreConfig;
use crate::salesforce::auth::StoredCredential;
use crate::store::open;

const HOUR: Duration = Duration::from_secs(3_600);
const TOKEN: &str = "5Aep861TSESvWeug_xvFHRBTTbf_YrTWgEyjBJrLQ";

fn text(stored: Option<StoredCredential>) -> Option<String> {
    let token = stored.expect("the right to refresh").refresh_token?;
    Some(token.expose_secret().to_owned())
}

pub(super) async fn only_one_holder_refreshes_until_its_time_is_up(bed: &Bed) {
    let store = bed.ready().await;
    let token = SecretString::from(TOKEN);
    assert_eq!(text(store.lock("app", "a", HOUR).await.unwrap()), None);
    assert!(store.lock("app", "b", HOUR).await.unwrap().is_none());
    // Another credential is another right, and the holder may take its own again.
    assert!(store.lock("other", "b", HOUR).await.unwrap().is_some());
    let short = Duration::from_millis(1);
    assert!(store.lock("app", "a", short).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(30)).await;

    // Its time is up: it must not store what another may have rotated by now.
    let late = store.save("app", "a", &token).await.unwrap_err();
    assert!(late.to_string().contains("lost"), "{late}");
    assert!(store.lock("app", "b", HOUR).await.unwrap().is_some());
    store.unlock("app", "a").await.unwrap();
    assert!(store.lock("app", "a", HOUR).await.unwrap().is_none());
    store.save("app", "b", &token).await.unwrap();
    store.unlock("app", "b").await.unwrap();
    let stored = store.lock("app", "a", HOUR).await.unwrap();
    assert_eq!(text(stored).as_deref(), Some(TOKEN));
}

pub(super) async fn a_rotated_token_is_found_again_and_rests_encrypted(bed: &Bed) {
    let store = bed.ready().await;
    for token in ["an older one", TOKEN] {
        store.lock("app", "a", HOUR).await.unwrap().unwrap();
        store.save("app", "a", &token.into()).await.unwrap();
        store.unlock("app", "a").await.unwrap();
    }
    let stored: Vec<Vec<u8>> = bed
        .column("select ciphertext from orgstream.credential")
        .await;
    assert_eq!(stored.len(), 1);
    let token = TOKEN.as_bytes();
    assert!(
        !stored[0]
            .windows(8)
            .any(|part| token.windows(8).any(|t| t == part))
    );
    store.close().await;

    let store = bed.open().await;
    let found = store.lock("app", "b", HOUR).await.unwrap();
    assert_eq!(text(found).as_deref(), Some(TOKEN));
}

pub(super) async fn a_token_that_cannot_be_read_or_kept_names_the_variable(bed: &Bed) {
    let store = bed.ready().await;
    let keyless = StoreConfig {
        encryption_key: None,
        ..bed.config()
    };
    let keyless = open(&keyless).await.unwrap();
    // Before anything is sent: a rotated token that cannot be kept is lost.
    let refused = keyless.lock("app", "z", HOUR).await.unwrap_err();
    assert!(refused.to_string().contains("ORGSTREAM_ENCRYPTION_KEY"));
    let refused = keyless.save("app", "a", &TOKEN.into()).await.unwrap_err();
    assert!(refused.to_string().contains("ORGSTREAM_ENCRYPTION_KEY"));
    assert!(!refused.to_string().contains(TOKEN));

    store.lock("app", "a", HOUR).await.unwrap().unwrap();
    store.save("app", "a", &TOKEN.into()).await.unwrap();
    store.unlock("app", "a").await.unwrap();
    let other = StoreConfig {
        encryption_key: Some("another key, just as long".into()),
        ..bed.config()
    };
    let other = open(&other).await.unwrap();
    for store in [&keyless, &other] {
        let unreadable = store.lock("app", "b", HOUR).await.unwrap_err();
        assert!(unreadable.to_string().contains("ORGSTREAM_ENCRYPTION_KEY"));
    }
    // Who could not read it has not taken the right either.
    assert!(store.lock("app", "c", HOUR).await.unwrap().is_some());

    let weak = StoreConfig {
        encryption_key: Some("short".into()),
        ..bed.config()
    };
    let weak = open(&weak).await.err().unwrap();
    assert!(weak.to_string().contains("ORGSTREAM_ENCRYPTION_KEY"));
}
