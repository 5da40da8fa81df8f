//! What is left of an event.

use serde_json::{Value, json};

use super::*;
use crate::event::{ChangeEventHeader, ChangeType, FieldNames};

fn fields(config: &str) -> FieldsConfig {
    let table: toml::Table = toml::from_str(config).unwrap();
    let names = |key: &str| -> Option<Vec<String>> {
        let list = table.get(key)?.as_array()?;
        Some(
            list.iter()
                .map(|n| n.as_str().unwrap().to_owned())
                .collect(),
        )
    };
    FieldsConfig {
        only: names("only"),
        without: names("without").unwrap_or_default(),
        mask: names("mask").unwrap_or_default(),
        hash: names("hash").unwrap_or_default(),
        hash_key: Some("a key of at least thirty-two characters".into()),
    }
}

fn platform_event(data: &str) -> Decoded {
    Decoded {
        record_name: "Order__e".into(),
        header: None,
        data: Bytes::copy_from_slice(data.as_bytes()),
        ignored_bits: 0,
    }
}

fn shaped(config: &str, data: &str) -> String {
    let shape = Shape::new(&fields(config)).unwrap();
    let shaped = shape.apply(&platform_event(data)).unwrap();
    String::from_utf8(shaped.data.to_vec()).unwrap()
}

/// An update with this data, whose header names these fields.
fn change(changed: &[&str], header: Value, mut data: Value) -> Decoded {
    data["ChangeEventHeader"] = header;
    Decoded {
        record_name: "AccountChangeEvent".into(),
        header: Some(Box::new(ChangeEventHeader {
            entity_name: "Account".into(),
            record_ids: ["001A".into()].into(),
            change_type: ChangeType::Update,
            change_origin: "".into(),
            transaction_key: "".into(),
            sequence_number: 1,
            commit_timestamp: 0,
            commit_number: 0,
            commit_user: "".into(),
            nulled_fields: FieldNames::default(),
            diff_fields: FieldNames::default(),
            changed_fields: changed.iter().copied().collect(),
        })),
        data: serde_json::to_vec(&data).unwrap().into(),
        ignored_bits: 0,
    }
}

fn value(decoded: &Decoded) -> Value {
    serde_json::from_slice(&decoded.data).unwrap()
}

#[test]
fn without_a_word_about_it_everything_is_shown() {
    assert!(Shape::new(&FieldsConfig::default()).is_none());
}

#[test]
fn what_is_shown_is_shown_as_it_was_written() {
    let data =
        r#"{"B":3233.0,"A":9007199254740993,"T":"\u00e9 \"x\"","N":null,"L":[1,{"z":1,"a":2}]}"#;
    assert_eq!(shaped("without = ['X']", data), data);
    assert_eq!(shaped("only = ['B', 'A', 'T', 'N', 'L']", data), data);
}

#[test]
fn fields_are_left_out_masked_or_kept_and_null_and_absent_stay_what_they_are() {
    let data = r#"{"A":1,"B":"two","C":null,"D":true}"#;
    assert_eq!(
        shaped("without = ['A', 'D', 'E']", data),
        r#"{"B":"two","C":null}"#
    );
    assert_eq!(
        shaped("only = ['B', 'C', 'E']", data),
        r#"{"B":"two","C":null}"#
    );
    assert_eq!(shaped("only = []", data), "{}");
    assert_eq!(
        shaped("mask = ['A', 'B', 'C', 'E']", data),
        r#"{"A":"***","B":"***","C":null,"D":true}"#
    );
    assert_eq!(
        shaped("only = ['A', 'C']\nmask = ['A', 'C']", data),
        r#"{"A":"***","C":null}"#
    );
}

#[test]
fn one_value_of_one_field_has_one_hash_by_which_it_can_be_joined() {
    let hash = |config: &str, data: &str| -> Value {
        serde_json::from_str(&shaped(config, data)).unwrap()
    };
    let one = hash("hash = ['Email']", r#"{"Email":"ada@example.com","N":1}"#);
    assert_eq!(one["N"], 1);
    // printf 'Email:ada@example.com' | openssl dgst -sha256 -hmac 'a key of at least thirty-two characters'
    let key = hmac::Key::new(
        hmac::HMAC_SHA256,
        b"a key of at least thirty-two characters",
    );
    let tag = hmac::sign(&key, b"Email:ada@example.com");
    assert_eq!(one["Email"], hex::encode(tag.as_ref()));
    // However it is escaped, and whatever else the shape does.
    let other = hash(
        "only = ['Email']\nhash = ['Email']",
        r#"{"X":2,"Email":"ada\u0040example.com"}"#,
    );
    assert_eq!(other, json!({"Email": one["Email"]}));
    let another = hash("hash = ['Mail']", r#"{"Mail":"ada@example.com"}"#);
    assert_ne!(another["Mail"], one["Email"], "of another field");
    let number = hash("hash = ['A', 'B']", r#"{"A":12.50,"B":null}"#);
    let tag = hmac::sign(&key, b"A:12.50");
    assert_eq!(number, json!({"A": hex::encode(tag.as_ref()), "B": null}));
}

#[test]
fn without_a_key_what_is_to_be_hashed_is_masked() {
    let config = FieldsConfig {
        hash_key: None,
        ..fields("hash = ['A']")
    };
    let shaped = Shape::new(&config)
        .unwrap()
        .apply(&platform_event(r#"{"A":1}"#));
    assert_eq!(value(&shaped.unwrap()), json!({"A": "***"}));
}

#[test]
fn compound_fields_are_named_whole_or_by_their_components() {
    let data = r#"{"Addr":{"City":"Ulm","Geo":{"Lat":1.5},"Zip":null},"AddrX":1}"#;
    assert_eq!(shaped("without = ['Addr']", data), r#"{"AddrX":1}"#);
    assert_eq!(
        shaped("mask = ['Addr']", data),
        r#"{"Addr":"***","AddrX":1}"#
    );
    assert_eq!(
        shaped("mask = ['Addr.City', 'Addr.Zip']", data),
        r#"{"Addr":{"City":"***","Geo":{"Lat":1.5},"Zip":null},"AddrX":1}"#
    );
    assert_eq!(
        shaped("without = ['Addr.Geo.Lat']", data),
        r#"{"Addr":{"City":"Ulm","Zip":null},"AddrX":1}"#
    );
    assert_eq!(
        shaped("only = ['Addr.City']", data),
        r#"{"Addr":{"City":"Ulm"}}"#
    );
    assert_eq!(shaped("only = ['Addr.Street']", data), "{}");
    assert_eq!(
        shaped("only = ['Addr']\nmask = ['Addr.City']", data),
        r#"{"Addr":{"City":"***","Geo":{"Lat":1.5},"Zip":null}}"#
    );
    // A person's name may come as one text, which holds what the component does.
    assert_eq!(
        shaped("mask = ['Name.LastName']", r#"{"Name":"Ada Lovelace"}"#),
        r#"{"Name":"***"}"#
    );
    assert_eq!(
        shaped("only = ['Name.LastName']", r#"{"Name":"Ada Lovelace"}"#),
        r#"{"Name":"***"}"#
    );
}

#[test]
fn the_header_loses_what_is_left_out_and_hides_what_is_hidden_in_diffs() {
    let header = json!({
        "entityName": "Account",
        "recordIds": ["001A"],
        "changedFields": ["Phone", "Addr.City", "Addr.Zip", "Notes", "Fax"],
        "nulledFields": ["Addr.Zip"],
        "diffFields": ["Notes", "Fax", "Story"],
        "diffs": {"Notes": "-a\n+b", "Fax": "-1\n+2", "Story": "-c\n+d"},
    });
    let data = json!({"Phone": "555", "Addr": {"City": "Ulm", "Zip": null}});
    let changed = ["Phone", "Addr.City", "Addr.Zip", "Notes", "Fax"];
    let event = change(&changed, header, data);
    let shape = Shape::new(&fields(
        "without = ['Addr.Zip', 'Fax']\nmask = ['Phone', 'Notes']",
    ));
    let shaped = shape.unwrap().apply(&event).unwrap();
    assert_eq!(
        value(&shaped),
        json!({
            "ChangeEventHeader": {
                "entityName": "Account",
                "recordIds": ["001A"],
                "changedFields": ["Phone", "Addr.City", "Notes"],
                "nulledFields": [],
                "diffFields": ["Notes", "Story"],
                "diffs": {"Notes": "***", "Story": "-c\n+d"},
            },
            "Phone": "***",
            "Addr": {"City": "Ulm"},
        })
    );
    let header = shaped.header.unwrap();
    assert_eq!(header.changed_fields, ["Phone", "Addr.City", "Notes"]);
    assert_eq!(header.record_ids[..], ["001A"]);
}

#[test]
fn with_only_the_header_stays_and_names_nothing_else() {
    let header = json!({
        "entityName": "Account",
        "changedFields": ["Phone", "Name"],
        "diffs": {"Notes": "-a"},
    });
    let event = change(
        &["Phone", "Name"],
        header,
        json!({"Phone": "5", "Name": "x"}),
    );
    let shape = Shape::new(&fields("only = ['Name']")).unwrap();
    let shaped = value(&shape.apply(&event).unwrap());
    assert_eq!(
        shaped,
        json!({
            "ChangeEventHeader": {"entityName": "Account", "changedFields": ["Name"]},
            "Name": "x",
        })
    );
}

#[test]
fn what_is_no_object_is_not_shown_at_all() {
    let shape = Shape::new(&fields("mask = ['A']")).unwrap();
    for data in ["", "[1]", "\"A\"", "{\"A\":"] {
        assert!(shape.apply(&platform_event(data)).is_err(), "{data}");
    }
}

#[test]
fn its_debug_form_shows_no_key() {
    let shape = Shape::new(&fields("hash = ['A']")).unwrap();
    assert!(!format!("{shape:?}").contains("thirty"));
}
