//! Real captured events, from the shared data, go through byte for byte.

use std::path::Path;

use super::*;
use crate::salesforce::pubsub::proto::SchemaRequest;

#[tokio::test]
async fn captured_events_are_delivered_byte_for_byte_with_their_own_schemas() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let Ok(files) = std::fs::read_dir(data.join("payloads")) else {
        assert!(std::env::var_os("ORGSTREAM_REQUIRE_SHARED_DATA").is_none());
        println!("skipped: no shared data");
        return;
    };
    let org = Org::start().await;
    for file in std::fs::read_dir(data.join("schemas")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let schema = std::fs::read_to_string(&path).unwrap();
        if let Some(id) = name.split('.').nth(2).filter(|id| id.len() == 22) {
            let topic = ACCOUNTS;
            let added = org.emulator.add_schema(Some(topic), &schema, None).unwrap();
            assert_eq!(added.as_str(), id, "{name}");
        }
    }
    let mut sent = Vec::new();
    for file in files {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("fetch_response.") {
            let captured = std::fs::read(&path).unwrap();
            let captured: Value = serde_json::from_slice(&captured).unwrap();
            sent.extend(captured_events(&captured).unwrap());
            org.emulator.publish_captured(ACCOUNTS, &captured).unwrap();
        }
    }
    assert!(sent.len() >= 5);
    let earliest = fetch(ACCOUNTS, ReplayPreset::Earliest, 100);
    let mut stream = org.subscribe(earliest).await.unwrap();
    let responses = stream.events(sent.len()).await;
    let received = responses.iter().flat_map(|response| &response.events);
    let mut decoded = 0;
    for (sent, received) in sent.iter().zip(received) {
        let event = received.event.as_ref().unwrap();
        assert_eq!(event.payload, sent.payload);
        assert_eq!(event.schema_id, sent.schema_id.as_str());
        let request = org.signed(SchemaRequest {
            schema_id: event.schema_id.clone(),
        });
        if let Ok(info) = org.client.clone().get_schema(request).await {
            let schema = crate::avro::Schema::parse(&info.into_inner().schema_json).unwrap();
            assert!(schema.decode(&event.payload).is_ok());
            decoded += 1;
        }
    }
    assert!(decoded >= 3, "the events whose schema is there decode");
}
