//! Real schemas, payloads and bitmaps, from the data that lies beside the project.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use crate::avro::{Schema, peek_header};

/// The folder of real data. `None`, with a word why, where it is not there; it has to be there where
/// ORGSTREAM_REQUIRE_SHARED_DATA is set.
fn data() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_SHARED_DATA").is_none(),
        "ORGSTREAM_REQUIRE_SHARED_DATA is set, but ../shared/data is not there"
    );
    eprintln!("skipped: ../shared/data is not there");
    None
}

/// The schema files of the three folders.
fn schema_files(data: &Path) -> Vec<PathBuf> {
    let folders = ["schemas", "schemas-recovered", "schemas-documented"];
    let files = folders.iter().flat_map(|folder| {
        let entries = std::fs::read_dir(data.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path())
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() > 20);
    files
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// The schema ID in `Name.2023-05.<22 characters>.avsc`.
fn id_in_name(name: &str) -> Option<&str> {
    let id = name.strip_suffix(".avsc")?.rsplit('.').next()?;
    (id.len() == 22).then_some(id)
}

#[test]
fn every_real_schema_parses_and_has_its_published_id() {
    let Some(data) = data() else { return };
    let mut confirmed = 0;
    for path in schema_files(&data) {
        let name = file_name(&path);
        let json = std::fs::read_to_string(&path).unwrap();
        let schema = Schema::parse(&json);
        if name.ends_with(".json") {
            println!("{name}: {}", schema.unwrap_err());
            continue;
        }
        let schema = schema.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with(&**schema.record_name()), "{name}");
        if let Some(id) = id_in_name(&name) {
            assert_eq!(schema.fingerprint().as_str(), id, "{name}");
            confirmed += 1;
        }
    }
    assert!(
        confirmed >= 14,
        "only {confirmed} fingerprints were compared"
    );
}

/// The schemas by their ID, and by file name.
fn schemas(data: &Path) -> HashMap<String, Schema> {
    let mut schemas = HashMap::new();
    for path in schema_files(data) {
        let json = std::fs::read_to_string(&path).unwrap();
        if let Ok(schema) = Schema::parse(&json) {
            let folder = path.parent().map(file_name).unwrap_or_default();
            schemas.insert(
                schema.fingerprint().to_string(),
                Schema::parse(&json).unwrap(),
            );
            schemas.insert(format!("{folder}/{}", file_name(&path)), schema);
        }
    }
    schemas
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The binary events of all FetchResponses, in the two forms people published them in, each with what
/// it decodes to.
fn binary_events(data: &Path) -> Vec<(String, Vec<u8>, Json)> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(data.join("payloads")).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = file_name(&path).strip_suffix(".json").map(str::to_owned) else {
            continue;
        };
        if !name.starts_with("fetch_response") {
            continue;
        }
        let decoded = read_json(&data.join(format!("payloads/decoded/{name}.decoded.json")));
        let response = read_json(&path);
        let list = response
            .as_array()
            .or_else(|| response["events"].as_array());
        let expected = decoded.as_array().unwrap();
        let list = list.unwrap();
        assert_eq!(list.len(), expected.len(), "{name}");
        for (event, expected) in list.iter().zip(expected) {
            let (id, payload) = match &event["event"] {
                Json::Null => (&event["Event"]["SchemaId"], &event["Event"]["Payload"]),
                event => (&event["schemaId"], &event["payload"]),
            };
            let payload = match payload {
                Json::String(text) => STANDARD.decode(text).unwrap(),
                bytes => serde_json::from_value(bytes.clone()).unwrap(),
            };
            events.push((id.as_str().unwrap().to_owned(), payload, expected.clone()));
        }
    }
    assert!(events.len() >= 6);
    events
}

/// What is left of a record when null means unchanged.
fn without_nulls(value: &Json) -> Json {
    match value {
        Json::Object(fields) => {
            let with_value = fields.iter().filter(|(_, value)| !value.is_null());
            with_value
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect()
        }
        other => other.clone(),
    }
}

#[test]
fn every_binary_event_decodes_to_its_published_values() {
    let Some(data) = data() else { return };
    let schemas = schemas(&data);
    let mut decoded_events = 0;
    for (id, payload, expected) in binary_events(&data) {
        let Some(schema) = schemas.get(&id) else {
            continue;
        };
        let mut record = without_nulls(&expected["record"]);
        for bitmap in ["nulledFields", "diffFields", "changedFields"] {
            record["ChangeEventHeader"][bitmap] = expected[format!("{bitmap}_names")].clone();
        }
        let decoded = schema.decode(&payload).unwrap();
        let data: Json = serde_json::from_slice(&decoded.data).unwrap();
        assert_eq!(data, record);
        assert_eq!(decoded.ignored_bits, 0);
        let header = decoded.header.unwrap();
        assert_eq!(
            json!(header.changed_fields.iter().collect::<Vec<_>>()),
            expected["changedFields_names"]
        );
        assert_eq!(
            header.commit_number,
            record["ChangeEventHeader"]["commitNumber"]
        );
        decoded_events += 1;
    }
    assert!(decoded_events >= 4);
}

#[test]
fn the_header_of_an_event_without_schema_is_found() {
    let Some(data) = data() else { return };
    for (_, payload, expected) in binary_events(&data) {
        let expected = match &expected["header_only"] {
            Json::Null => &expected["record"]["ChangeEventHeader"],
            header => header,
        };
        let header = peek_header(&payload).unwrap();
        let found = json!({
            "entityName": header.entity_name,
            "recordIds": header.record_ids,
            "changeType": header.change_type.symbol(),
            "changeOrigin": header.change_origin,
            "transactionKey": header.transaction_key,
            "sequenceNumber": header.sequence_number,
            "commitTimestamp": header.commit_timestamp,
            "commitNumber": header.commit_number,
            "commitUser": header.commit_user,
            "nulledFields": header.nulled_fields.iter().collect::<Vec<_>>(),
            "diffFields": header.diff_fields.iter().collect::<Vec<_>>(),
            "changedFields": header.changed_fields.iter().collect::<Vec<_>>(),
        });
        assert_eq!(found, *expected);
    }
}

#[test]
fn every_published_bitmap_gives_its_names_and_the_names_the_bitmap() {
    let Some(data) = data() else { return };
    let schemas = schemas(&data);
    let mut compared = 0;
    for case in read_json(&data.join("payloads/bitmaps.json"))
        .as_array()
        .unwrap()
    {
        let Some(file) = case["schema"].as_str() else {
            continue;
        };
        let schema = &schemas[file];
        let elements: Vec<String> = serde_json::from_value(case["bitmaps"].clone()).unwrap();
        let names: Vec<String> = serde_json::from_value(case["names"].clone()).unwrap();
        let slots = &schema.plan().slots;
        let set = slots.read(elements.iter().map(String::as_str)).unwrap();
        let named: Vec<String> = slots.names(&set).iter().map(str::to_owned).collect();
        assert_eq!(named, names, "{file}");
        assert_eq!(schema.bitmap(&names).unwrap(), elements, "{file}");
        compared += 1;
    }
    assert!(compared >= 9, "only {compared} bitmaps were compared");
}

#[test]
fn no_damage_to_a_real_event_does_more_than_fail() {
    let Some(data) = data() else { return };
    let schemas = schemas(&data);
    for (id, payload, _) in binary_events(&data) {
        for length in 0..payload.len() {
            peek_header(&payload[..length]);
        }
        let Some(schema) = schemas.get(&id) else {
            continue;
        };
        for length in 0..payload.len() {
            assert!(schema.decode(&payload[..length]).is_err());
            let mut flipped = payload.clone();
            for bit in 0..8 {
                flipped[length] ^= 1 << bit;
                if let Ok(decoded) = schema.decode(&flipped) {
                    serde_json::from_slice::<Json>(&decoded.data).unwrap();
                }
                flipped[length] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn the_project_s_own_schemas_parse_and_are_named_by_their_ids() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let schema = Schema::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = format!("{}.{}.avsc", schema.record_name(), schema.fingerprint());
        assert_eq!(file_name(&path), name);
        assert_eq!(
            schema.plan().header().is_some(),
            schema.record_name().ends_with("ChangeEvent")
        );
        records.push(schema.record_name().to_string());
    }
    records.sort_unstable();
    assert_eq!(
        records,
        [
            "AccountChangeEvent",
            "ContactChangeEvent",
            "Employee__ChangeEvent",
            "Order__e"
        ]
    );
}
