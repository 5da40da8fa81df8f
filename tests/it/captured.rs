//! Events captured from real orgs go the whole way, from the bus to the `log` handler.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::support::daemon::project;
use crate::support::{Daemon, Emulator, Store, eventually};

const ACCOUNTS: &str = "/data/AccountChangeEvent";

/// The shared test data; `None`, with a line that says so, where it is not there.
fn shared_data() -> Option<PathBuf> {
    let path = project().parent()?.join("shared/data");
    if path.is_dir() {
        return Some(path);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_SHARED_DATA").is_none(),
        "the shared test data is not beside the project"
    );
    println!("skipped: the shared test data is not beside the project");
    None
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What our `data` must be, from the decoded record published beside the event: bitmaps named,
/// unchanged nulls left out.
fn expected(decoded: &Value) -> Value {
    let mut data = without_nulls(&decoded["record"]);
    let header = &mut data["ChangeEventHeader"];
    for field in ["changedFields", "nulledFields", "diffFields"] {
        header[field] = decoded[format!("{field}_names")].clone();
    }
    data
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .filter(|(_, value)| value.as_object().is_none_or(|object| !object.is_empty()))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn captured_events_come_out_of_the_log_handler_as_the_values_published_beside_them() {
    let Some(data) = shared_data() else { return };
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    for schema in std::fs::read_dir(data.join("schemas")).unwrap() {
        let path = schema.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("AccountChangeEvent.") {
            org.post(
                "/schemas",
                &json!({"topic": ACCOUNTS, "schema": read(&path)}),
            )
            .await;
        }
    }
    let mut decodable = Vec::new();
    let mut undecodable = Vec::new();
    let mut captures: Vec<_> = std::fs::read_dir(data.join("payloads"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("fetch_response.")
        })
        .collect();
    captures.sort();
    assert!(captures.len() >= 4, "{captures:?}");
    for capture in captures {
        org.post(
            "/captured",
            &json!({"topic": ACCOUNTS, "response": read(&capture)}),
        )
        .await;
        let name = capture.file_stem().unwrap().to_str().unwrap();
        let decoded = read(&data.join(format!("payloads/decoded/{name}.decoded.json")));
        for event in decoded.as_array().unwrap() {
            if event["schema_file"].is_null() {
                let mut event = event.clone();
                event["captured_payload"] = captured_payload(&read(&capture), &event["event_id"]);
                undecodable.push(event);
            } else {
                decodable.push(event.clone());
            }
        }
    }
    let config = format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"{ACCOUNTS}\"\n\
         start = \"earliest\"\nordering = \"strict\"\n[[subscription.handler]]\nname = \"out\"\ntype = \"log\"\n",
        org.salesforce(),
        store.url
    );
    let mut daemon = Daemon::run(&config);
    daemon.handled(decodable.len()).await;
    assert_parked(&config, &undecodable).await;
    let (events, code) = daemon.stop().await;
    assert_eq!(code, 0);
    assert_eq!(events.len(), decodable.len());
    for (event, decoded) in events.iter().zip(&decodable) {
        assert_eq!(event["eventuuid"], decoded["event_id"]);
        assert_eq!(
            event["dataschema"],
            format!(
                "urn:salesforce:avro:{}",
                decoded["schema_id"].as_str().unwrap()
            )
        );
        assert_eq!(event["data"], expected(decoded), "{}", decoded["event_id"]);
    }
}

/// The base64 payload of an event in a captured response.
fn captured_payload(response: &Value, id: &Value) -> Value {
    let events = response["events"].as_array().unwrap();
    let event = events.iter().find(|event| event["event"]["id"] == *id);
    let payload = event.unwrap()["event"]["payload"].clone();
    assert!(payload.is_string(), "{payload}");
    payload
}

/// Events whose schema nobody has are parked with their bytes.
async fn assert_parked(config: &str, undecodable: &[Value]) {
    assert!(!undecodable.is_empty());
    let env = Default::default();
    let list = ["dead-letters", "list", "--json"];
    let parked = eventually("the undecodable events to be parked", async || {
        let (_, out, _) = Daemon::output(&list, config, &env).await;
        let parked: Vec<Value> = serde_json::from_str(&out).ok()?;
        (parked.len() == undecodable.len()).then_some(parked)
    })
    .await;
    for (letter, event) in parked.iter().zip(undecodable) {
        assert_eq!(letter["event_uuid"], event["event_id"]);
        assert_eq!(letter["schema_id"], event["schema_id"]);
        assert_eq!(letter["reason"], "schema_refused");
        let id = letter["id"].to_string();
        let (code, out, _) =
            Daemon::output(&["dead-letters", "show", &id, "--json"], config, &env).await;
        assert_eq!(code, 0);
        let shown: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(shown["payload_bytes"], event["payload_bytes"]);
        assert_eq!(shown["payload"], event["captured_payload"], "byte for byte");
    }
}
