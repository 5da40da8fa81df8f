//! Parked events whose payloads are kept encrypted.

use bytes::Bytes;

use super::bed::{Bed, Park, letter, org, take};
use crate::config::StoreConfig;
use crate::store::{DeadLetter, Renamed, StoreError, open};

const PLANTED: &[u8] = b"planted in a payload";

fn sealed(record: &str, handler: Option<&str>) -> DeadLetter {
    DeadLetter {
        payload: Bytes::from_static(PLANTED),
        sealed: true,
        ..letter(record, handler)
    }
}

/// Everything in the column `payload`.
async fn payloads(bed: &Bed) -> Vec<Vec<u8>> {
    bed.column("select payload from orgstream.dead_letter order by id")
        .await
}

fn is_planted(payload: &[u8]) -> bool {
    payload.windows(7).any(|part| part == &PLANTED[..7])
}

pub(super) async fn a_sealed_payload_rests_encrypted_and_is_read_again(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    for given in [sealed("001A", Some("fulfilment")), sealed("001B", None)] {
        let id = store.park(&lease, &given).await.unwrap();
        let stored = store.dead_letter(id).await.unwrap().unwrap();
        assert_eq!((stored.unreadable, stored.letter), (None, given.clone()));
        let read = store.letters(&[id]).await.unwrap().remove(0);
        assert_eq!(read.letter, given);
    }
    assert!(
        !payloads(bed)
            .await
            .iter()
            .any(|payload| is_planted(payload))
    );
    // One that is passed on is sealed for its own row.
    let open = store.open_letters(&lease).await.unwrap();
    let undecoded = open.iter().find(|one| one.handler.is_none()).unwrap();
    let own = [sealed("001B", Some("fulfilment"))];
    let placed = store
        .pass_on(&lease, &[undecoded.placed.id], &own)
        .await
        .unwrap();
    let id = placed.unwrap()[0].id;
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(stored.letter.payload, PLANTED);
    assert!(
        !payloads(bed)
            .await
            .iter()
            .any(|payload| is_planted(payload))
    );
}

pub(super) async fn without_the_key_it_was_sealed_under_a_payload_is_not_read_and_the_letter_stays(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let id = store.park(&lease, &sealed("001A", None)).await.unwrap();
    let plain = letter("001B", None);
    let other = store.park(&lease, &plain).await.unwrap();
    for key in [None, Some("another key, which is long enough")] {
        let config = StoreConfig {
            encryption_key: key.map(Into::into),
            ..bed.config()
        };
        let blind = open(&config).await.unwrap();
        let stored = blind.dead_letter(id).await.unwrap().unwrap();
        let why = stored.unreadable.unwrap();
        assert!(why.contains("ORGSTREAM_ENCRYPTION_KEY"), "{why}");
        assert!(stored.letter.payload.is_empty());
        assert_eq!(stored.state, "open");
        // What is not sealed is read all the same.
        let all = blind.letters(&[id, other]).await.unwrap();
        assert_eq!(all[1].letter, plain);
        if key.is_none() {
            let refused = blind.park(&lease, &sealed("001C", None)).await;
            let Err(StoreError::Config(why)) = refused else {
                panic!("{refused:?}");
            };
            assert!(why.contains("ORGSTREAM_ENCRYPTION_KEY"), "{why}");
        }
        blind.close().await;
    }
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(stored.letter.payload, PLANTED);
}

pub(super) async fn a_payload_in_another_row_does_not_open_and_a_renamed_subscription_keeps_its_own(
    bed: &Bed,
) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let id = store.park(&lease, &sealed("001A", None)).await.unwrap();
    let other = store
        .park(&lease, &sealed("001A", Some("fulfilment")))
        .await
        .unwrap();
    store.release(&lease).await.unwrap();
    let renamed = store.rename(&org(), "accounts", "customers").await;
    assert_eq!(renamed.unwrap(), Renamed::Done);
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(stored.subscription, "customers");
    assert_eq!(stored.letter.payload, PLANTED);
    bed.execute(&format!(
        "update orgstream.dead_letter set payload = \
         (select d.payload from orgstream.dead_letter d where d.id = {id}) where id = {other}"
    ))
    .await;
    let moved = store.dead_letter(other).await.unwrap().unwrap();
    assert!(moved.unreadable.is_some() && moved.letter.payload.is_empty());
}

pub(super) async fn what_is_parked_again_is_sealed_as_it_is_to_be_now(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    let plain = DeadLetter {
        sealed: false,
        ..sealed("001A", None)
    };
    let id = store.park(&lease, &plain).await.unwrap();
    assert!(is_planted(&payloads(bed).await[0]));
    store.resolve(&lease, &[id]).await.unwrap();
    assert_eq!(store.park(&lease, &sealed("001A", None)).await.unwrap(), id);
    assert!(!is_planted(&payloads(bed).await[0]));
    let stored = store.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(
        (stored.letter.payload, stored.letter.sealed),
        (Bytes::from_static(PLANTED), true)
    );
}
