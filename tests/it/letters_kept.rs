//! That every parked event can be decoded later: with the schema that wrote it, however its topic changed,
//! and once a schema that could not be had is there (design 3.1, rule 9).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::letters::{ACCOUNTS, Refusing, config, letters, on_both, open, publish};
use crate::support::{Daemon, Emulator, LOG, Store, eventually, names, record};

on_both! {
    what_could_not_be_decoded_holds_its_records_and_goes_to_every_handler_once_it_can_be,
}

/// The schema of Account: its ID and its text.
pub(crate) fn account_schema() -> (String, Value) {
    let folder = crate::support::daemon::project().join("schemas");
    let path = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("AccountChangeEvent.")
        })
        .unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let id = name.split('.').nth(1).unwrap().to_owned();
    let text = std::fs::read_to_string(path).unwrap();
    (id, serde_json::from_str(&text).unwrap())
}

/// An ID that the org does not know.
pub(crate) const UNKNOWN: &str = "dW5rbm93bnVua25vd251bm";

async fn what_could_not_be_decoded_holds_its_records_and_goes_to_every_handler_once_it_can_be(
    store: Store,
) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let handlers = format!("{LOG}{}", refusing.handler());
    let config = config(&org, &store, "", &handlers);
    // A payload to send once more under an ID that nobody knows yet.
    publish(&org, 1, "bad 0").await;
    let mut daemon = Daemon::run(&config);
    let first = open(&store, 1).await;
    let payload = store.parked().await[0].letter.payload.clone();
    let raw = json!({"topic": ACCOUNTS, "schema_id": UNKNOWN, "payload": BASE64_STANDARD.encode(&payload)});
    let (code, _, err) = letters(&config, &["discard", &first[0].to_string(), "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    org.post("/raw", &raw).await;
    publish(&org, 1, "a 1").await;
    publish(&org, 2, "b 1").await;
    daemon.handled(2).await;
    // For both handlers what follows is behind it.
    let ids = open(&store, 3).await;
    let parked = store.parked().await;
    let undecodable = parked.iter().find(|p| p.id == ids[0]).unwrap();
    assert_eq!(undecodable.letter.reason, "schema_refused");
    assert_eq!(undecodable.letter.handler, None);
    assert_eq!(undecodable.letter.record_ids, [record(1)]);
    let behind: Vec<_> = parked
        .iter()
        .filter(|p| p.letter.reason == "parked_behind")
        .collect();
    let mut for_handlers: Vec<&str> = behind
        .iter()
        .filter_map(|p| p.letter.handler.as_deref())
        .collect();
    for_handlers.sort_unstable();
    assert_eq!(for_handlers, ["hook", "out"]);
    // Still not.
    let id = ids[0].to_string();
    let (code, out, err) = letters(&config, &["retry", &id]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("schema_refused"), "{err}");
    let (_, text) = account_schema();
    org.post("/schemas", &json!({"schema": text, "schema_id": UNKNOWN}))
        .await;
    let (code, out, err) = letters(&config, &["retry", &id]).await;
    // One handler takes it, the other refuses it, and has a letter of its own in its place.
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("1 handled, 1 refused again"), "{out}{err}");
    let events = daemon.handled(4).await;
    assert_eq!(names(&events[1..]), ["b 1", "bad 0", "a 1"]);
    let open_now = open(&store, 2).await;
    let parked = store.parked().await;
    let own = parked
        .iter()
        .find(|p| p.letter.place == Some(ids[0]))
        .filter(|p| p.state == "open");
    let own = own.or_else(|| {
        parked
            .iter()
            .find(|p| p.letter.place == Some(ids[0]) && p.letter.handler.as_deref() == Some("hook"))
    });
    let own = own.unwrap();
    assert_eq!(
        (own.state.as_str(), own.letter.reason.as_str()),
        ("open", "rejected")
    );
    assert!(open_now.contains(&own.id));
    refusing.mend();
    let (code, _, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{err}");
    let accepted = names(&refusing.hook.accepted());
    assert_eq!(accepted, ["b 1", "bad 0", "a 1"]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_parked_event_is_decoded_with_the_schema_that_wrote_it_after_that_of_its_topic_changed() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    publish(&org, 1, "bad before").await;
    let daemon = Daemon::run(&config);
    open(&store, 1).await;
    daemon.kill();
    let (old, mut schema) = account_schema();
    let added = json!({"name": "Added__c", "type": ["null", "string"], "default": null});
    // In the middle, so that the new schema reads the old bytes wrongly.
    schema["fields"].as_array_mut().unwrap().insert(1, added);
    org.post("/schemas", &json!({"topic": ACCOUNTS, "schema": schema}))
        .await;
    publish(&org, 1, "bad after").await;
    let daemon = Daemon::run(&config);
    let ids = open(&store, 2).await;
    let parked = store.parked().await;
    assert_eq!(parked[0].letter.schema_id.as_str(), old);
    assert_ne!(parked[1].letter.schema_id.as_str(), old);

    let (code, out, err) = letters(&config, &["export", "--all"]).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    for (line, (stored, name)) in lines
        .iter()
        .zip(parked.iter().zip(["bad before", "bad after"]))
    {
        assert_eq!(line["event"]["data"]["Name"], name);
        assert_eq!(line["event"]["id"], stored.letter.identity.as_str());
        assert_eq!(line["event"]["specversion"], "1.0");
        assert_eq!(
            line["payload"],
            BASE64_STANDARD.encode(&stored.letter.payload)
        );
        assert_eq!(line["schema_id"], stored.letter.schema_id.as_str());
        assert!(line["error"].as_str().unwrap().len() > 3);
    }

    refusing.mend();
    let (code, _, err) = letters(&config, &["retry", &ids[0].to_string()]).await;
    assert_eq!(code, 0, "{err}");
    let accepted = refusing.hook.accepts(2).await;
    assert_eq!(names(&accepted), ["bad before", "bad after"]);
    let schemas: Vec<&str> = accepted
        .iter()
        .map(|e| e["dataschema"].as_str().unwrap())
        .collect();
    assert!(
        schemas[0].ends_with(&old) && !schemas[1].ends_with(&old),
        "{schemas:?}"
    );
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_retry_without_a_worker_says_so_and_ctrl_c_takes_it_back() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    publish(&org, 1, "bad").await;
    let daemon = Daemon::run(&config);
    let ids = open(&store, 1).await;
    assert_eq!(daemon.stop().await.1, 0);
    let id = ids[0].to_string();
    let (code, out, err) = letters(&config, &["retry", &id, "--no-wait"]).await;
    assert_eq!((code, out.as_str()), (0, "1 will be tried again"), "{err}");
    assert!(err.contains("no worker runs `accounts`"), "{err}");
    let mut retry = Daemon::command(
        &["dead-letters", "retry", &id, "--json"],
        &config,
        &std::collections::BTreeMap::new(),
    );
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    retry.signal("INT");
    let status = retry.ended().await;
    assert_eq!(status.code(), Some(1));
    let asked = store.parked().await[0].retry_asked_at;
    assert_eq!(asked, None, "taken back");
    refusing.mend();
    let daemon = Daemon::run(&config);
    let (code, _, err) = letters(&config, &["retry", &id]).await;
    assert_eq!(code, 0, "{err}");
    eventually("the event", async || {
        (names(&refusing.hook.accepted()) == ["bad"]).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
}
