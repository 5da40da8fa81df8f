//! Rows, and notifications of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use sqlx::postgres::PgListener;

use super::super::trouble::Bench;
use super::{APPENDED, Db};
use crate::support::{Store, eventually, record};

/// A notification.
pub(super) type Heard = Value;

/// Listens, until the connection ends.
pub(super) async fn hear(url: &str, channel: &str, heard: &Mutex<Vec<Heard>>) {
    let Ok(mut listener) = PgListener::connect(url).await else {
        return;
    };
    if listener.listen(channel).await.is_err() {
        return;
    }
    while let Ok(Some(notification)) = listener.try_recv().await {
        let text = notification.payload();
        assert!(text.len() < 8000);
        heard
            .lock()
            .unwrap()
            .push(serde_json::from_str(text).unwrap());
    }
}

/// No row is notified of twice, and those of one record in their order.
pub(super) fn assert_each_once_and_in_order(heard: &[Heard]) {
    let mut seen = HashSet::new();
    let mut newest: HashMap<String, u64> = HashMap::new();
    for one in heard {
        let number = one["number"].as_u64().unwrap();
        assert!(seen.insert(number), "{number} twice");
        let before = newest.insert(one["subject"].to_string(), number);
        assert!(
            before.is_none_or(|before| before < number),
            "{number} after {before:?}"
        );
    }
}

#[tokio::test]
async fn every_row_is_notified_of_once_it_is_there() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::spawn({
        let (url, heard) = (store.url.clone(), heard.clone());
        async move { hear(&url, "crm.Accounts", &heard).await }
    });
    eventually("a listener", async || {
        let listens =
            "select query from pg_stat_activity where query like 'LISTEN%' and state = 'idle'";
        Some(()).filter(|()| !listener.is_finished())?;
        (!db.texts(listens).await.is_empty()).then_some(())
    })
    .await;
    let handler = "type = \"postgres\"\nmode = \"notify\"\nchannel = \"crm.Accounts\"";
    let mut bench = Bench::start_in(store, handler).await;
    bench.publish(300).await;
    db.has(APPENDED, 300).await;
    let heard = eventually("300 notifications", async || {
        let heard = heard.lock().unwrap();
        (heard.len() >= 300).then(|| heard.clone())
    })
    .await;
    assert_each_once_and_in_order(&heard);
    let rows = "select json_build_object('subscription', subscription, 'id', id, 'subject', subject, 'type', type, \
                'topic', topic, 'number', number)::text from orgstream_events order by number";
    for row in db.texts(rows).await {
        let row: Value = serde_json::from_str(&row).unwrap();
        assert!(heard.contains(&row), "nobody heard of {row}");
    }
    bench.nothing_parked().await;
    listener.abort();
}

#[tokio::test]
async fn what_is_too_long_for_a_notification_is_left_out_of_it() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let db = Db(store.url.clone());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::spawn({
        let (url, heard) = (store.url.clone(), heard.clone());
        async move { hear(&url, "orgstream_events", &heard).await }
    });
    let bench = Bench::start_in(store, "type = \"postgres\"\nmode = \"notify\"").await;
    bench.publish_about(&"é".repeat(4_000), "0").await;
    db.has(APPENDED, 1).await;
    // The listener may have come too late for that one.
    for number in 1..1_000 {
        bench
            .publish_about(&"é".repeat(4_000), &number.to_string())
            .await;
        db.until(APPENDED, number + 1).await;
        if !heard.lock().unwrap().is_empty() {
            break;
        }
    }
    bench.publish_about(&record(1), "last").await;
    let heard = eventually("the last", async || {
        let heard = heard.lock().unwrap();
        let last = heard.iter().any(|one: &Value| one["subject"] == record(1));
        last.then(|| heard.clone())
    })
    .await;
    let long = heard[0].as_object().unwrap();
    let keys: Vec<&str> = long.keys().map(String::as_str).collect();
    assert_eq!(keys, ["number", "subscription", "topic", "type"]);
    listener.abort();
}
