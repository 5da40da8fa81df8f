//! Migrations, the org, schemas.

use super::bed::{Bed, Park, org, take};
use crate::event::{OrgId, SchemaId};
use crate::store::StoreError;
use crate::store::migrations::POSTGRES;

pub(super) async fn migrating_from_four_places_at_once_applies_each_migration_once(bed: &Bed) {
    let mut places = Vec::new();
    for _ in 0..4 {
        let store = bed.open().await;
        places.push(tokio::spawn(async move { store.migrate().await }));
    }
    let all: Vec<i64> = POSTGRES.iter().map(|migration| migration.version).collect();
    let mut applied = Vec::new();
    for place in places {
        applied.extend(place.await.unwrap().unwrap());
    }
    applied.sort_unstable();
    assert_eq!(applied, all);
    let store = bed.open().await;
    assert_eq!(store.pending_migrations().await.unwrap(), [0i64; 0]);
    assert_eq!(
        bed.column::<i64>("select version from orgstream.migration order by version")
            .await,
        all
    );
}

pub(super) async fn a_store_without_tables_says_what_to_run(bed: &Bed) {
    let store = bed.open().await;
    store.ping().await.unwrap();
    assert_eq!(
        store.pending_migrations().await.unwrap().len(),
        POSTGRES.len()
    );
    let error = store.subscriptions().await.unwrap_err();
    assert!(matches!(error, StoreError::NotMigrated(_)), "{error}");
    assert!(error.to_string().contains("`orgstream migrate`"), "{error}");
    store.migrate().await.unwrap();
    assert_eq!(store.subscriptions().await.unwrap(), []);
}

pub(super) async fn a_closed_store_refuses_calls_and_gives_no_panic(bed: &Bed) {
    let store = bed.ready().await;
    let lease = take(&*store).await;
    store.close().await;
    store.close().await;
    let error = store.park(&lease, &super::bed::letter("001A", None)).await;
    assert!(matches!(error, Err(StoreError::Unavailable(_))));
}

pub(super) async fn a_store_belongs_to_the_first_org_it_sees(bed: &Bed) {
    let store = bed.ready().await;
    assert_eq!(store.bound_org().await.unwrap(), None);
    store.bind_org(&org()).await.unwrap();
    store.bind_org(&org()).await.unwrap();
    assert_eq!(store.bound_org().await.unwrap(), Some(org()));
    let other = OrgId::parse("00D580000000002").unwrap();
    match store.bind_org(&other).await {
        Err(StoreError::OtherOrg { stored, given }) => {
            assert_eq!((stored, given), (org(), other));
        }
        result => panic!("{result:?}"),
    }
}

pub(super) async fn schemas_are_kept(bed: &Bed) {
    let store = bed.ready().await;
    let id = SchemaId::new("2f5iZhzwvC8ewpQvcLkGDw");
    assert_eq!(store.load_schema(&id).await.unwrap(), None);
    for json in [r#"{"type":"string"}"#, r#"{"type":"long"}"#] {
        store.save_schema(&id, json).await.unwrap();
        store.save_schema(&id, json).await.unwrap();
        let loaded = store.load_schema(&id).await.unwrap();
        assert_eq!(loaded.as_deref(), Some(json));
    }
}
