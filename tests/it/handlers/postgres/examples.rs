//! The functions of `examples/sql`.

use serde_json::json;

use super::Db;
use crate::support::daemon::project;
use crate::support::{Daemon, Emulator, Store, account_update, eventually, record};

/// A fresh database with what an example makes, and the configuration that the example shows.
async fn with(example: &str) -> Option<(Store, Db, String)> {
    let store = Store::postgres().await?;
    let db = Db(store.url.clone());
    let sql = std::fs::read_to_string(project().join("examples/sql").join(example)).unwrap();
    db.execute(&sql).await;
    // Pasted once more it does no harm.
    db.execute(&sql).await;
    let shown: Vec<&str> = sql
        .lines()
        .filter_map(|line| line.strip_prefix("--     "))
        .collect();
    Some((store, db, shown.join("\n")))
}

fn run(org: &Emulator, store: &Store, shown: &str, reports: &Db) -> Daemon {
    let shown = shown.replace("topic =", "start = \"earliest\"\ntopic =");
    let store = format!("[store]\nurl = \"{}\"\n", store.url);
    let config = format!("{}\n{store}{shown}\n", org.salesforce());
    Daemon::run_with(&config, &[("REPORTS_URL", &reports.0)])
}

#[tokio::test]
async fn accounts_become_a_table_of_what_they_are_now() {
    let Some((store, db, shown)) = with("accounts.sql").await else {
        return;
    };
    let org = Emulator::start().await;
    let changed = |number: usize, change: &str, name: &str| {
        let mut event = account_update(&record(number), name);
        event["ChangeEventHeader"]["changeType"] = change.into();
        event
    };
    let topic = "/data/AccountChangeEvent";
    let events = [
        changed(1, "CREATE", "first"),
        changed(2, "CREATE", "second"),
        changed(3, "CREATE", "third"),
        changed(1, "UPDATE", "renamed"),
        changed(2, "DELETE", ""),
        changed(3, "GAP_UPDATE", ""),
    ];
    org.publish(topic, &events).await;
    let daemon = run(&org, &store, &shown, &db);
    let done = "select id from crm.account where stale";
    db.until(done, 1).await;
    let stands = "select json_build_array(id, name, stale)::text from crm.account order by id";
    // Different records overtake one another: the deletion may be the last.
    let left = eventually("two accounts", async || {
        Some(db.texts(stands).await).filter(|rows| rows.len() == 2 && rows[0].contains("renamed"))
    })
    .await;
    let left: Vec<serde_json::Value> = left
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    assert_eq!(
        left,
        [
            json!([record(1), "renamed", false]),
            json!([record(3), "third", true])
        ]
    );
    // What is not for it.
    let mut other = account_update(&record(4), "other");
    other["ChangeEventHeader"]["entityName"] = "Contact".into();
    org.publish(topic, &[other]).await;
    let parked = store.parks(1).await;
    assert!(
        parked[0].letter.error.contains("OS001"),
        "{}",
        parked[0].letter.error
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn an_account_keeps_what_was_not_said_and_is_stale_where_not_all_is_known() {
    let Some((store, db, shown)) = with("accounts.sql").await else {
        return;
    };
    let org = Emulator::start().await;
    let topic = "/data/AccountChangeEvent";
    let said = |ids: &[&str], change: &str, more: serde_json::Value, fields: serde_json::Value| {
        let mut event = fields;
        event["ChangeEventHeader"] =
            json!({"entityName": "Account", "recordIds": ids, "changeType": change});
        for (key, value) in more.as_object().unwrap() {
            event["ChangeEventHeader"][key] = value.clone();
        }
        event
    };
    let gap = |number: usize, change: &str| said(&[&record(number)], change, json!({}), json!({}));
    let address = json!({"Street": "1 Mill Lane", "City": "Alder", "Country": "Elm"});
    let events = [
        said(
            &[&record(1)],
            "CREATE",
            json!({}),
            json!({"Name": "one", "BillingAddress": address}),
        ),
        said(
            &[&record(1)],
            "UPDATE",
            json!({"changedFields": ["BillingAddress.Street"]}),
            json!({"BillingAddress": {"Street": "2 Mill Lane"}}),
        ),
        said(
            &[&record(1)],
            "UPDATE",
            json!({"changedFields": ["BillingAddress.City"]}),
            json!({"BillingAddress": {"City": null}}),
        ),
        said(
            &[&record(2), &record(3)],
            "CREATE",
            json!({}),
            json!({"Name": "old", "Phone": "1"}),
        ),
        said(
            &[&record(2)],
            "UPDATE",
            json!({"changedFields": ["Phone"], "diffFields": ["Name"]}),
            json!({"Name": "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n", "Phone": "2"}),
        ),
        gap(4, "GAP_CREATE"),
        gap(5, "GAP_UNDELETE"),
        gap(6, "GAP_UPDATE"),
        gap(7, "GAP_DELETE"),
    ];
    org.publish(topic, &events).await;
    let daemon = run(&org, &store, &shown, &db);
    store
        .until("accounts", "all finished", |status| status.finished == 9)
        .await;
    let stands = "select json_build_array(id, fields - 'LastModifiedDate', stale)::text from crm.account order by id";
    let stand = async || -> Vec<serde_json::Value> {
        let rows = db.texts(stands).await;
        rows.iter()
            .map(|row| serde_json::from_str(row).unwrap())
            .collect()
    };
    let rows = stand().await;
    let address = json!({"Street": "2 Mill Lane", "City": null, "Country": "Elm"});
    let expected = [
        json!([record(1), {"Name": "one", "BillingAddress": address}, false]),
        json!([record(2), {"Name": "old", "Phone": "2"}, true]),
        json!([record(3), {"Name": "old", "Phone": "1"}, false]),
        json!([record(4), {}, true]),
        json!([record(5), {}, true]),
        json!([record(6), {}, true]),
    ];
    assert_eq!(rows, expected);
    // All accounts, of which none is named.
    org.publish(topic, &[said(&["001*"], "UPDATE", json!({}), json!({}))])
        .await;
    db.until("select id from crm.account where stale", 6).await;
    assert_eq!(stand().await.len(), 6);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn orders_become_rows_in_the_order_of_the_bus() {
    let Some((store, db, shown)) = with("orders.sql").await else {
        return;
    };
    let org = Emulator::start().await;
    let events: Vec<serde_json::Value> = (0..250)
        .map(|n| json!({"OrderNumber__c": n.to_string()}))
        .collect();
    org.publish("/event/Order__e", &events).await;
    let daemon = run(&org, &store, &shown, &db);
    let rows = "select data ->> 'OrderNumber__c' from crm.order_event order by number";
    let rows = db.until(rows, 250).await;
    let expected: Vec<String> = (0..250).map(|n| n.to_string()).collect();
    assert_eq!(rows, expected);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_comes_again_elsewhere_is_done_once() {
    let Some((_, db, shown)) = with("once.sql").await else {
        return;
    };
    let org = Emulator::start().await;
    let topic = "/data/AccountChangeEvent";
    let events: Vec<_> = (0..50)
        .map(|n| account_update(&record(n % 5), &n.to_string()))
        .collect();
    org.publish(topic, &events).await;
    let shown = format!("[[subscription]]\nname = \"it\"\ntopic = \"{topic}\"\n{shown}");
    // Two stores that know nothing of one another: all comes twice.
    for _ in 0..2 {
        let store = Store::sqlite();
        let daemon = run(&org, &store, &shown, &db);
        store
            .until("it", "all finished", |status| status.finished == 50)
            .await;
        assert_eq!(daemon.stop().await.1, 0);
    }
    let counted = "select entity || ' ' || changes from crm.change_count";
    assert_eq!(db.texts(counted).await, ["Account 50"]);
}
