//! The shapes of change events that replicas stumble over (facts 7.4 to 7.7).

use super::*;
use crate::avro::Schema;

/// Publishes and receives one change event; its JSON, and its bitmaps as they were on the wire.
async fn round_trip(topic: &str, schema: &str, fields: Value) -> (Value, Vec<String>) {
    let org = Org::start().await;
    org.emulator.add_schema(Some(topic), schema, None).unwrap();
    org.emulator.publish(topic, fields).unwrap();
    let earliest = fetch(topic, ReplayPreset::Earliest, 5);
    let responses = org.subscribe(earliest).await.unwrap().events(1).await;
    let event = responses[0].events[0].event.as_ref().unwrap();
    let text = String::from_utf8_lossy(&event.payload).into_owned();
    let bitmaps = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| word.contains("0x"))
        .map(str::to_owned)
        .collect();
    let decoded = Schema::parse(schema).unwrap().decode(&event.payload);
    let json = serde_json::from_slice(&decoded.ok().unwrap().data).unwrap();
    (json, bitmaps)
}

fn sample(topic: &str) -> &'static str {
    let found = sample::SCHEMAS.iter().find(|(name, _)| *name == topic);
    found.unwrap().1
}

#[tokio::test]
async fn an_update_of_a_component_alone_may_carry_no_top_level_bitmap() {
    let fields = json!({
        "ChangeEventHeader": {"changedFields": ["BillingAddress.Street"]},
        "BillingAddress": {"Street": "1 Mill Lane"},
    });
    let (event, bitmaps) = round_trip(sample::ACCOUNTS, sample(sample::ACCOUNTS), fields).await;
    assert_eq!(bitmaps, ["5-0x01"]);
    let header = &event["ChangeEventHeader"];
    assert_eq!(header["changedFields"], json!(["BillingAddress.Street"]));
    assert!(event.get("LastModifiedDate").is_none());
}

#[tokio::test]
async fn a_name_is_text_or_the_record_of_a_person() {
    for name in [
        json!("Alder & Finch"),
        json!({"FirstName": "Ada", "LastName": "Albers"}),
    ] {
        let fields = json!({"ChangeEventHeader": {"changeType": "CREATE"}, "Name": name});
        let (event, bitmaps) = round_trip(sample::ACCOUNTS, sample(sample::ACCOUNTS), fields).await;
        assert_eq!(event["Name"], name);
        assert!(bitmaps.is_empty(), "a creation changes nothing");
    }
}

#[tokio::test]
async fn a_compound_given_as_null_has_the_bits_of_its_components_and_not_its_own() {
    let fields = json!({"ChangeEventHeader": {}, "BillingAddress": null, "Phone": null});
    let (event, bitmaps) = round_trip(ACCOUNTS, &account_schema(), fields).await;
    // LastModifiedDate and Phone, nulled Phone, and both components of the address each time.
    assert_eq!(bitmaps, ["0x10", "2-0x03", "0x30", "2-0x03"]);
    let header = &event["ChangeEventHeader"];
    assert_eq!(
        header["nulledFields"],
        json!(["Phone", "BillingAddress.Street", "BillingAddress.City"])
    );
    assert_eq!(
        event["BillingAddress"],
        json!({"Street": null, "City": null})
    );
}

#[tokio::test]
async fn a_name_that_may_be_text_has_a_bit_of_its_own_as_text_and_as_null() {
    let mut schema: Value = serde_json::from_str(&account_schema()).unwrap();
    let person = json!({"type": "record", "name": "Switchable_PersonName", "fields": [
        {"name": "LastName", "type": ["null", "string"]}]});
    schema["fields"][1]["type"] = json!(["null", "string", person]);
    for (name, expected) in [
        (json!("Alder & Finch"), &["0x22"][..]),
        (Value::Null, &["0x02", "0x22"]),
        (json!({"LastName": "Albers"}), &["0x20", "1-0x01"]),
    ] {
        let fields = json!({"Name": name});
        let (event, bitmaps) = round_trip(ACCOUNTS, &schema.to_string(), fields).await;
        assert_eq!(bitmaps, expected);
        assert_eq!(event["Name"], name);
    }
}

#[tokio::test]
async fn gap_overflow_and_wildcard_events_come_without_fields() {
    for (change_type, record_id) in [
        ("GAP_UPDATE", "0015g0000000001AAA"),
        ("GAP_OVERFLOW", "000000000000000AAA"),
        ("UPDATE", "001*"),
    ] {
        let header =
            json!({"changeType": change_type, "recordIds": [record_id], "changedFields": []});
        let fields = json!({"ChangeEventHeader": header});
        let (event, bitmaps) = round_trip(sample::ACCOUNTS, sample(sample::ACCOUNTS), fields).await;
        assert_eq!(event["ChangeEventHeader"]["changeType"], change_type);
        assert_eq!(event["ChangeEventHeader"]["recordIds"], json!([record_id]));
        assert_eq!(event.as_object().unwrap().len(), 1);
        assert!(bitmaps.is_empty());
    }
}

#[tokio::test]
async fn a_diff_is_named_in_the_header_and_custom_objects_end_in_c() {
    let fields = json!({
        "ChangeEventHeader": {"diffFields": ["Profile__c"]},
        "Profile__c": "--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\n",
    });
    let topic = sample::EMPLOYEES;
    let (event, _) = round_trip(topic, sample(topic), fields).await;
    let header = &event["ChangeEventHeader"];
    assert_eq!(header["entityName"], "Employee__c");
    assert_eq!(header["diffFields"], json!(["Profile__c"]));
    assert!(event.get("Profile__c").is_none());
}

#[tokio::test]
async fn bitmaps_given_as_such_stay_as_they_are_whatever_they_say() {
    let fields = json!({
        "ChangeEventHeader": {"changedFields": ["0x04000000000000800080", "Phone"]},
        "Phone": "1",
    });
    let (_, bitmaps) = round_trip(sample::ACCOUNTS, sample(sample::ACCOUNTS), fields).await;
    assert_eq!(bitmaps, ["0x04000000000000800080", "0x80"]);
}

#[tokio::test]
async fn a_header_of_eleven_fields_gets_no_changed_fields() {
    let mut schema: Value = serde_json::from_str(&account_schema()).unwrap();
    let header = schema["fields"][0]["type"]["fields"]
        .as_array_mut()
        .unwrap();
    assert_eq!(header.pop().unwrap()["name"], "changedFields");
    let fields = json!({"Phone": "1"});
    let (event, bitmaps) = round_trip(ACCOUNTS, &schema.to_string(), fields).await;
    assert_eq!(event["Phone"], "1");
    assert!(bitmaps.is_empty());
}
