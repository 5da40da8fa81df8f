use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

const ORDER: &str = r#"{"type":"record","name":"Order__e","fields":[{"name":"A","type":"int"}]}"#;

fn order_id() -> SchemaId {
    Schema::parse(ORDER).unwrap().fingerprint()
}

/// An org that answers when it is let, and counts.
struct Org {
    answer: Mutex<Result<String, SchemaUnavailable>>,
    calls: AtomicUsize,
    open: Semaphore,
}

impl Org {
    fn answering(answer: Result<&str, SchemaUnavailable>) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer.map(str::to_owned)),
            calls: AtomicUsize::new(0),
            open: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl SchemaSource for Org {
    async fn fetch(&self, _: &SchemaId) -> Result<String, SchemaUnavailable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let _permit = self.open.acquire().await.unwrap();
        self.answer.lock().unwrap().clone()
    }
}

#[derive(Default)]
struct Shelf {
    texts: Mutex<HashMap<SchemaId, Arc<str>>>,
    broken: AtomicBool,
}

#[async_trait]
impl SchemaShelf for Shelf {
    async fn load(&self, id: &SchemaId) -> Result<Option<Arc<str>>, String> {
        match self.broken.load(Ordering::SeqCst) {
            true => Err("no connection".into()),
            false => Ok(self.texts.lock().unwrap().get(id).cloned()),
        }
    }

    async fn save(&self, id: &SchemaId, json: &str) -> Result<(), String> {
        if self.broken.load(Ordering::SeqCst) {
            return Err("no connection".into());
        }
        self.texts.lock().unwrap().insert(id.clone(), json.into());
        Ok(())
    }
}

fn cache(org: &Arc<Org>) -> SchemaCache {
    SchemaCache::new(Arc::clone(org) as Arc<dyn SchemaSource>, None, None)
}

fn cache_with(org: &Arc<Org>, shelf: &Arc<Shelf>, dir: Option<PathBuf>) -> SchemaCache {
    let shelf = Arc::clone(shelf) as Arc<dyn SchemaShelf>;
    SchemaCache::new(Arc::clone(org) as Arc<dyn SchemaSource>, Some(shelf), dir)
}

fn later() -> SchemaUnavailable {
    SchemaUnavailable::Later("no connection".into())
}

fn refused() -> SchemaUnavailable {
    SchemaUnavailable::Refused("no such schema".into())
}

/// Lets everything that can go on do so.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn however_many_wait_a_schema_is_fetched_once() {
    let org = Org::answering(Ok(ORDER));
    let cache = cache(&org);
    let id = order_id();
    let found = join_all((0..100).map(|_| cache.get(&id))).await;
    assert!(
        found
            .iter()
            .all(|found| found.as_ref().unwrap().json() == ORDER)
    );
    cache.get(&id).await.unwrap();
    assert_eq!(org.calls(), 1);
}

#[tokio::test]
async fn a_waiter_that_goes_away_disturbs_nobody() {
    let org = Org::answering(Ok(ORDER));
    org.open.forget_permits(usize::MAX);
    let cache = cache(&org);
    let ask = || {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&order_id()).await })
    };
    let first = ask();
    settle().await;
    let second = ask();
    settle().await;
    first.abort();
    settle().await;
    org.open.add_permits(1);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(org.calls(), 1);
}

#[tokio::test]
async fn when_all_waiters_have_gone_the_next_one_begins_anew() {
    let org = Org::answering(Ok(ORDER));
    org.open.forget_permits(usize::MAX);
    let cache = cache(&org);
    let id = order_id();
    let waiting = Duration::from_millis(10);
    assert!(tokio::time::timeout(waiting, cache.get(&id)).await.is_err());
    org.open.add_permits(1);
    assert!(cache.get(&id).await.is_ok());
    assert_eq!(org.calls(), 2);
}

#[tokio::test]
async fn an_org_out_of_reach_is_asked_again_but_once_for_all_who_wait() {
    let org = Org::answering(Err(later()));
    org.open.forget_permits(usize::MAX);
    let cache = cache(&org);
    let id = order_id();
    let answering = async {
        settle().await;
        org.open.add_permits(1);
    };
    let (found, ()) = tokio::join!(join_all((0..10).map(|_| cache.get(&id))), answering);
    assert!(
        found
            .iter()
            .all(|found| found.as_ref().unwrap_err() == &later())
    );
    assert_eq!(org.calls(), 1);
    *org.answer.lock().unwrap() = Ok(ORDER.into());
    assert!(cache.get(&id).await.is_ok());
    assert_eq!(org.calls(), 2);
}

#[tokio::test]
async fn a_refusal_is_remembered_for_a_while() {
    let org = Org::answering(Err(refused()));
    let id = order_id();
    let long = cache(&org);
    assert_eq!(long.get(&id).await.unwrap_err(), refused());
    assert_eq!(long.get(&id).await.unwrap_err(), refused());
    assert_eq!(org.calls(), 1);
    let source = Arc::clone(&org) as Arc<dyn SchemaSource>;
    let short = SchemaCache::with_memory(source, None, None, Duration::ZERO);
    assert_eq!(short.get(&id).await.unwrap_err(), refused());
    *org.answer.lock().unwrap() = Ok(ORDER.into());
    assert!(short.get(&id).await.is_ok());
}

#[tokio::test]
async fn a_blank_id_costs_no_call() {
    let org = Org::answering(Ok(ORDER));
    let error = cache(&org).get(&SchemaId::new(" ")).await.unwrap_err();
    assert!(matches!(error, SchemaUnavailable::Refused(_)));
    assert_eq!(org.calls(), 0);
}

#[tokio::test]
async fn what_is_no_schema_is_refused_in_clear_words() {
    let org = Org::answering(Ok("<html>Service unavailable</html>"));
    let error = cache(&org).get(&SchemaId::new("X")).await.unwrap_err();
    assert!(matches!(error, SchemaUnavailable::Refused(_)));
    let text = error.to_string();
    assert!(
        text.starts_with("schema X cannot be used: not JSON"),
        "{text}"
    );
}

#[tokio::test]
async fn a_schema_under_another_id_than_its_fingerprint_is_used() {
    let org = Org::answering(Ok(ORDER));
    let schema = cache(&org).get(&SchemaId::new("X")).await.unwrap();
    assert_eq!(&**schema.record_name(), "Order__e");
}

#[tokio::test]
async fn after_a_restart_the_shelf_answers() {
    let org = Org::answering(Ok(ORDER));
    let shelf = Arc::new(Shelf::default());
    let id = order_id();
    cache_with(&org, &shelf, None).get(&id).await.unwrap();
    cache_with(&org, &shelf, None).get(&id).await.unwrap();
    assert_eq!(org.calls(), 1);
    // A damaged copy is replaced.
    shelf.texts.lock().unwrap().insert(id.clone(), "{".into());
    cache_with(&org, &shelf, None).get(&id).await.unwrap();
    assert_eq!(org.calls(), 2);
    assert_eq!(&*shelf.texts.lock().unwrap()[&id], ORDER);
}

#[tokio::test]
async fn a_broken_shelf_is_passed_over() {
    let org = Org::answering(Ok(ORDER));
    let shelf = Arc::new(Shelf::default());
    shelf.broken.store(true, Ordering::SeqCst);
    assert!(
        cache_with(&org, &shelf, None)
            .get(&order_id())
            .await
            .is_ok()
    );
    assert_eq!(org.calls(), 1);
}

#[tokio::test]
async fn the_folder_saves_the_call() {
    let org = Org::answering(Err(later()));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("order.avsc"), ORDER).unwrap();
    let shelf = Arc::new(Shelf::default());
    let cache = cache_with(&org, &shelf, Some(dir.path().to_owned()));
    assert!(cache.get(&order_id()).await.is_ok());
    assert_eq!(cache.get(&SchemaId::new("X")).await.unwrap_err(), later());
    assert_eq!(org.calls(), 1);
}
