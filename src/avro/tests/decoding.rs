//! The rule of absence, bitmaps, diffs and damage, on events of a small schema.

use serde_json::{Value as Json, json};

use crate::avro::{DecodeReason, Schema, peek_header};
use crate::event::ChangeType;

const HEADER: &str = r#"{"name":"ChangeEventHeader","type":{"type":"record","name":"ChangeEventHeader","fields":[
    {"name":"entityName","type":"string"},{"name":"recordIds","type":{"type":"array","items":"string"}},
    {"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":[
        "CREATE","UPDATE","DELETE","UNDELETE","GAP_CREATE","GAP_UPDATE","GAP_DELETE","GAP_UNDELETE",
        "GAP_OVERFLOW","SNAPSHOT","MOVED"]}},
    {"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},
    {"name":"sequenceNumber","type":"int"},{"name":"commitTimestamp","type":"long"},
    {"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
    {"name":"nulledFields","type":{"type":"array","items":"string"}},
    {"name":"diffFields","type":{"type":"array","items":"string"}}CHANGED]}}"#;

const CHANGED: &str = r#",{"name":"changedFields","type":{"type":"array","items":"string"}}"#;

/// 1 Name (three ways), 2 Phone, 3 BillingAddress, 4 ShippingAddress, 5 Description, 6 Employees
fn schema_with(changed: &str) -> Schema {
    let header = HEADER.replace("CHANGED", changed);
    Schema::parse(&format!(
        r#"{{"type":"record","name":"AccountChangeEvent","namespace":"com.sforce.eventbus","fields":[{header},
        {{"name":"Name","type":["null","string",{{"type":"record","name":"Switchable_PersonName","fields":[
            {{"name":"FirstName","type":["null","string"]}},{{"name":"LastName","type":["null","string"]}}]}}]}},
        {{"name":"Phone","type":["null","string"]}},
        {{"name":"BillingAddress","type":["null",{{"type":"record","name":"Address","fields":[
            {{"name":"Street","type":["null","string"]}},{{"name":"City","type":["null","string"]}},
            {{"name":"Latitude","type":["null","double"]}}]}}]}},
        {{"name":"ShippingAddress","type":["null","Address"]}},
        {{"name":"Description","type":["null","string"]}},
        {{"name":"Employees","type":["null","int"]}}]}}"#
    ))
    .unwrap()
}

fn schema() -> Schema {
    schema_with(CHANGED)
}

fn header(change_type: &str, bitmaps: [&[&str]; 3]) -> Json {
    let [nulled, diffs, changed] = bitmaps;
    json!({"entityName": "Account", "recordIds": ["001Dp00000JJkkHIAT"], "changeType": change_type,
        "changeOrigin": "", "transactionKey": "k", "sequenceNumber": 1,
        "commitTimestamp": 1_771_291_772_000_i64, "commitNumber": 1_745_500_706_683_617_281_i64,
        "commitUser": "005Dp000000PpjsIAC",
        "nulledFields": nulled, "diffFields": diffs, "changedFields": changed})
}

/// Encodes and decodes an event, and gives its data without the header.
fn body(change_type: &str, bitmaps: [&[&str]; 3], body: Json) -> Json {
    let mut data = whole(change_type, bitmaps, body);
    data.as_object_mut().unwrap().remove("ChangeEventHeader");
    data
}

fn whole(change_type: &str, bitmaps: [&[&str]; 3], mut event: Json) -> Json {
    event["ChangeEventHeader"] = header(change_type, bitmaps);
    let schema = schema();
    let payload = schema.encode_json(&event).unwrap();
    serde_json::from_slice(&schema.decode(&payload).unwrap().data).unwrap()
}

#[test]
fn the_header_is_typed_and_comes_first_with_names_for_bitmaps() {
    let schema = schema();
    let mut event = json!({"Phone": "1"});
    event["ChangeEventHeader"] = header("UPDATE", [&["0x40"], &[], &["0x44", "3-0x01"]]);
    let decoded = schema.decode(&schema.encode_json(&event).unwrap()).unwrap();
    assert_eq!(&*decoded.record_name, "AccountChangeEvent");
    let header = decoded.header.unwrap();
    assert_eq!(header.change_type, ChangeType::Update);
    assert_eq!(header.commit_number, 1_745_500_706_683_617_281);
    assert_eq!(header.nulled_fields, ["Employees"]);
    assert_eq!(
        header.changed_fields,
        ["Phone", "Employees", "BillingAddress.Street"]
    );
    let text = std::str::from_utf8(&decoded.data).unwrap();
    assert!(
        text.starts_with(r#"{"ChangeEventHeader":{"entityName":"Account","#),
        "{text}"
    );
    assert!(
        text.contains(r#""commitNumber":1745500706683617281,"#),
        "{text}"
    );
    assert!(
        text.ends_with(concat!(
            r#""nulledFields":["Employees"],"diffFields":[],"#,
            r#""changedFields":["Phone","Employees","BillingAddress.Street"]},"#,
            r#""Phone":"1","BillingAddress":{"Street":null},"Employees":null}"#
        )),
        "{text}"
    );
}

#[test]
fn in_an_update_null_is_only_what_the_bitmaps_name() {
    let update = |bitmaps, event| body("UPDATE", bitmaps, event);
    // Changed to null, with and without its bit in nulledFields; enriched; unchanged.
    assert_eq!(
        update([&["0x04"], &[], &["0x24"]], json!({"Employees": 7})),
        json!({"Phone": null, "Description": null, "Employees": 7})
    );
    assert_eq!(update([&[], &[], &[]], json!({})), json!({}));
}

#[test]
fn components_are_null_within_their_parent() {
    let update = |bitmaps, event| body("UPDATE", bitmaps, event);
    assert_eq!(
        update(
            [&["3-0x01"], &[], &["3-0x03"]],
            json!({"BillingAddress": {"City": "Ulm"}})
        ),
        json!({"BillingAddress": {"Street": null, "City": "Ulm"}})
    );
    // The whole compound nulled: by its components' bits, and by its own.
    assert_eq!(
        update([&["3-0x07"], &[], &["3-0x07"]], json!({})),
        json!({"BillingAddress": {"Street": null, "City": null, "Latitude": null}})
    );
    assert_eq!(
        update([&["0x08"], &[], &["0x08"]], json!({})),
        json!({"BillingAddress": null})
    );
    // A record in which nothing has a value is no value.
    assert_eq!(
        update(
            [&[], &[], &["0x08"]],
            json!({"BillingAddress": {}, "ShippingAddress": {}})
        ),
        json!({"BillingAddress": null})
    );
    // The name of a person account.
    assert_eq!(
        update([&[], &[], &["1-0x03"]], json!({"Name": {"LastName": "Ng"}})),
        json!({"Name": {"FirstName": null, "LastName": "Ng"}})
    );
}

#[test]
fn in_all_other_events_nulls_are_left_out() {
    for change_type in ["CREATE", "DELETE", "UNDELETE", "GAP_UPDATE", "MOVED"] {
        let bitmaps: [&[&str]; 3] = [&["0x04"], &[], &["0x04", "3-0x01"]];
        let event = json!({"Name": "A", "BillingAddress": {"City": "Ulm"}});
        assert_eq!(
            body(change_type, bitmaps, event.clone()),
            event,
            "{change_type}"
        );
    }
}

#[test]
fn a_diff_is_never_passed_off_as_the_value() {
    let bitmaps: [&[&str]; 3] = [&[], &["0x20", "3-0x01"], &["0x24", "3-0x03"]];
    let event = json!({"Phone": "1", "Description": "--- \"a\"\n+++",
        "BillingAddress": {"Street": "@@", "City": "Ulm"}, "Employees": 1});
    let data = whole("UPDATE", bitmaps, event);
    let header = &data["ChangeEventHeader"];
    assert_eq!(
        header["diffFields"],
        json!(["Description", "BillingAddress.Street"])
    );
    assert_eq!(
        header["diffs"],
        json!({"BillingAddress.Street": "@@", "Description": "--- \"a\"\n+++"})
    );
    assert_eq!(data["BillingAddress"], json!({"City": "Ulm"}));
    assert_eq!(data.get("Description"), None);
    assert_eq!(data["Phone"], "1");
    // Named as a diff, but without one.
    let data = whole("UPDATE", [&[], &["0x20"], &["0x20"]], json!({}));
    assert_eq!(data.get("Description"), None);
    assert_eq!(data["ChangeEventHeader"].get("diffs"), None);
}

#[test]
fn a_field_of_which_only_a_diff_came_is_not_null() {
    for bitmaps in [
        // All that changed is the component that came as a diff, and the parent is named too.
        [&[][..], &["3-0x01"], &["0x08", "3-0x01"]],
        [&["0x08"][..], &["3-0x01"], &["3-0x01"]],
    ] {
        let event = json!({"BillingAddress": {"Street": "@@"}});
        let data = whole("UPDATE", bitmaps, event);
        assert_eq!(data.get("BillingAddress"), None);
        let diffs = &data["ChangeEventHeader"]["diffs"];
        assert_eq!(*diffs, json!({"BillingAddress.Street": "@@"}));
    }
    // Another field's diff says nothing about it.
    let data = body("UPDATE", [&[], &["4-0x01"], &["0x08"]], json!({}));
    assert_eq!(data["BillingAddress"], Json::Null);
}

#[test]
fn a_header_of_eleven_fields_and_unknown_symbols_are_read() {
    let schema = schema_with("");
    let mut event = json!({"Phone": "1"});
    event["ChangeEventHeader"] = header("MOVED", [&[], &[], &[]]);
    let fields = event["ChangeEventHeader"].as_object_mut().unwrap();
    fields.remove("changedFields");
    let decoded = schema.decode(&schema.encode_json(&event).unwrap()).unwrap();
    let header = decoded.header.unwrap();
    assert_eq!(header.change_type, ChangeType::Other("MOVED".into()));
    assert!(header.changed_fields.is_empty());
    let data: Json = serde_json::from_slice(&decoded.data).unwrap();
    assert_eq!(data["ChangeEventHeader"].get("changedFields"), None);
    assert_eq!(data["Phone"], "1");
}

#[test]
fn bits_beyond_the_schema_are_counted() {
    let schema = schema();
    let mut event = json!({"Phone": "1"});
    event["ChangeEventHeader"] = header("UPDATE", [&[], &[], &["0xFF0004", "3-0x08", "2-0x01"]]);
    let decoded = schema.decode(&schema.encode_json(&event).unwrap()).unwrap();
    assert_eq!(decoded.ignored_bits, 10);
    assert_eq!(decoded.header.unwrap().changed_fields, ["Phone"]);
}

#[test]
fn damage_behind_the_header_leaves_the_header_readable() {
    let schema = schema();
    let mut event = json!({"Phone": "1"});
    event["ChangeEventHeader"] = header("UPDATE", [&[], &[], &["0x04"]]);
    let payload = schema.encode_json(&event).unwrap();

    let cut = schema.decode(&payload[..payload.len() - 2]).unwrap_err();
    assert_eq!(cut.error.reason, DecodeReason::EndsEarly);
    assert_eq!(cut.error.field.as_deref(), Some("Description"));
    assert_eq!(cut.header.unwrap().record_ids[..], ["001Dp00000JJkkHIAT"]);

    let long = [&payload[..], b"xy"].concat();
    let left = schema.decode(&long).unwrap_err();
    assert_eq!(left.error.reason, DecodeReason::LeftOver(2));
    assert_eq!(left.error.offset, payload.len());
    assert!(left.header.is_some());

    event["ChangeEventHeader"]["changedFields"] = json!(["0x04", "surprise"]);
    let bad = schema
        .decode(&schema.encode_json(&event).unwrap())
        .unwrap_err();
    assert!(
        matches!(bad.error.reason, DecodeReason::Bitmap(_)),
        "{}",
        bad.error
    );
    assert_eq!(bad.header.unwrap().changed_fields, ["0x04", "surprise"]);

    assert_eq!(schema.decode(&payload[..20]).unwrap_err().header, None);
}

#[test]
fn a_header_is_found_without_its_schema_and_nothing_else_is_taken_for_one() {
    let mut event = json!({"Name": "A"});
    event["ChangeEventHeader"] = header("UPDATE", [&[], &[], &["0x02"]]);
    let payload = schema().encode_json(&event).unwrap();
    let header = peek_header(&payload).unwrap();
    assert_eq!(header.entity_name, "Account");
    assert_eq!(header.changed_fields, ["0x02"]);

    let fields = event["ChangeEventHeader"].as_object_mut().unwrap();
    fields.remove("changedFields");
    let old = schema_with("").encode_json(&event).unwrap();
    assert_eq!(
        peek_header(&old).unwrap().record_ids[..],
        ["001Dp00000JJkkHIAT"]
    );

    let platform =
        hex::decode("90c39fc8d8632430303535663030303030356d63363641414100020000000000404540");
    assert_eq!(peek_header(&platform.unwrap()), None);
    assert_eq!(peek_header(&[]), None);
    assert_eq!(peek_header(&[0; 100]), None);
}

fn one_field(json_type: &str) -> Schema {
    Schema::parse(&format!(
        r#"{{"type":"record","name":"Order__e","fields":[{{"name":"A","type":{json_type}}}]}}"#
    ))
    .unwrap()
}

fn reason(json_type: &str, payload: &[u8]) -> DecodeReason {
    let failure = one_field(json_type).decode(payload).unwrap_err();
    assert_eq!(failure.header, None);
    failure.error.reason
}

#[test]
fn every_kind_of_damage_is_an_error_of_its_own() {
    let text = r#""string""#;
    assert_eq!(reason(text, &[]), DecodeReason::EndsEarly);
    assert_eq!(reason(text, &[8, b'a']), DecodeReason::EndsEarly);
    assert_eq!(reason(text, &[1]), DecodeReason::NegativeLength);
    assert_eq!(reason(text, &[2, 0xff]), DecodeReason::NotUtf8);
    assert_eq!(reason(text, &[0xff; 12]), DecodeReason::NumberTooLong);
    assert_eq!(reason(text, &[2, b'a', 0]), DecodeReason::LeftOver(1));
    assert_eq!(reason(r#""boolean""#, &[2]), DecodeReason::NotABoolean);
    let beyond = [0x80, 0x80, 0x80, 0x80, 0x10];
    assert_eq!(reason(r#""int""#, &beyond), DecodeReason::IntOutOfRange);
    let symbols = r#"{"type":"enum","name":"E","symbols":["X","Y"]}"#;
    for index in [4, 3] {
        let expected = DecodeReason::NoSuchSymbol { symbols: 2 };
        assert_eq!(reason(symbols, &[index]), expected);
        let expected = DecodeReason::NoSuchBranch { branches: 2 };
        assert_eq!(reason(r#"["null","int"]"#, &[index]), expected);
    }
    let failure = one_field(text).decode(&[8, b'a']).unwrap_err();
    assert_eq!(
        failure.error.to_string(),
        "the payload is not a Order__e of its schema: at byte 1, field A: the payload ends too early"
    );
}

#[test]
fn hostile_datums_are_refused_in_bounded_time() {
    // A block of 2^60 items; the same with a block size before it.
    let count = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20];
    let array = |items: &str| format!(r#"{{"type":"array","items":{items}}}"#);
    assert_eq!(reason(&array(r#""int""#), &count), DecodeReason::EndsEarly);
    let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    assert_eq!(
        reason(&array(r#""int""#), &negative),
        DecodeReason::EndsEarly
    );
    // Items that take no byte.
    let nothing = r#"{"type":"record","name":"Nothing","fields":[]}"#;
    for items in [
        r#""null""#,
        nothing,
        r#"{"type":"fixed","name":"F","size":0}"#,
    ] {
        assert_eq!(reason(&array(items), &count), DecodeReason::TooLarge);
        let many_blocks = [0x80, 0x80, 0x40].repeat(100_000);
        assert_eq!(reason(&array(items), &many_blocks), DecodeReason::TooLarge);
    }
    // Three of them are no harm.
    let decoded = one_field(&array(r#""null""#)).decode(&[6, 0]).unwrap();
    assert_eq!(&decoded.data[..], br#"{"A":[null,null,null]}"#);
    // Records that unfold to 2^30 values of no byte.
    let mut doubling = nothing.to_owned();
    for level in 0..30 {
        doubling = format!(
            r#"{{"type":"record","name":"R{level}","fields":[{{"name":"a","type":{doubling}}},
                {{"name":"b","type":"{}"}}]}}"#,
            if level == 0 {
                "Nothing".to_owned()
            } else {
                format!("R{}", level - 1)
            }
        );
    }
    assert_eq!(reason(&doubling, &[]), DecodeReason::TooLarge);
    // A type within itself, without end.
    let list = r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#;
    assert_eq!(reason(list, &[2; 1 << 20]), DecodeReason::TooDeep(64));
    let endless = r#"{"type":"record","name":"L","fields":[{"name":"next","type":"L"}]}"#;
    assert_eq!(reason(endless, &[]), DecodeReason::TooDeep(64));
    // A symbol of a megabyte for each byte.
    let long = format!(
        r#"{{"type":"enum","name":"E","symbols":["{}"]}}"#,
        "X".repeat(1 << 20)
    );
    let mut payload = vec![0x80, 0x80, 0x7a];
    payload.resize(1_000_000, 0);
    assert_eq!(reason(&array(&long), &payload), DecodeReason::TooLarge);
}

#[test]
fn a_header_of_millions_of_items_is_refused_before_they_take_memory() {
    const ITEMS: usize = 16 << 20;
    for list in ["recordIds", "nulledFields", "diffFields", "changedFields"] {
        let mut event = json!({});
        event["ChangeEventHeader"] = header("UPDATE", [&[], &[], &[]]);
        event["ChangeEventHeader"][list] = json!(["HERE"]);
        let mut payload = schema().encode_json(&event).unwrap();
        let item = payload.windows(5).position(|five| five == b"\x08HERE");
        // The block's count is the byte before its only item.
        let count = item.unwrap() - 1;
        // 16 Mi in a varint, then as many empty strings.
        let many = [0x80, 0x80, 0x80, 0x10]
            .into_iter()
            .chain(std::iter::repeat_n(0, ITEMS));
        payload.splice(count..count + 6, many);
        let failure = schema().decode(&payload).unwrap_err();
        assert_eq!(failure.error.reason, DecodeReason::TooLarge, "{list}");
        assert_eq!(failure.error.field.as_deref(), Some(list));
        assert!(failure.error.offset < 1 << 18, "stopped at once");
        if list == "recordIds" {
            assert_eq!(peek_header(&payload), None);
        }
    }
}

#[test]
fn the_longest_list_of_record_ids_an_event_has_room_for_is_read() {
    let mut event = json!({});
    event["ChangeEventHeader"] = header("UPDATE", [&[], &[], &[]]);
    event["ChangeEventHeader"]["recordIds"] = json!(vec!["001Dp00000JJkkH"; 62_500]);
    let payload = schema().encode_json(&event).unwrap();
    assert!(payload.len() > 1_000_000);
    let ids = schema()
        .decode(&payload)
        .unwrap()
        .header
        .unwrap()
        .record_ids;
    assert_eq!(ids.len(), 62_500);
}

#[test]
fn every_type_has_one_form_in_json() {
    let json = |json_type: &str, payload: &[u8]| {
        let decoded = one_field(json_type).decode(payload).unwrap();
        assert_eq!(decoded.header, None);
        String::from_utf8(decoded.data.to_vec()).unwrap()
    };
    let nan = f64::NAN.to_le_bytes();
    assert_eq!(json(r#""double""#, &nan), r#"{"A":"NaN"}"#);
    let max = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(json(r#""long""#, &max), r#"{"A":9223372036854775807}"#);
    assert_eq!(json(r#""float""#, &0.1_f32.to_le_bytes()), r#"{"A":0.1}"#);
    assert_eq!(json(r#""bytes""#, &[4, 0xca, 0xfe]), r#"{"A":"cafe"}"#);
    assert_eq!(
        json(r#"{"type":"fixed","name":"F","size":1}"#, &[0x0f]),
        r#"{"A":"0f"}"#
    );
    let map = r#"{"type":"map","values":["null","int"]}"#;
    assert_eq!(
        json(map, &[4, 2, b'x', 0, 2, b'y', 2, 4, 0]),
        r#"{"A":{"x":null,"y":2}}"#
    );
    assert_eq!(json(r#"["int","null"]"#, &[2]), "{}");
    assert_eq!(
        json(
            r#"["string",{"type":"record","name":"P","fields":[
        {"name":"L","type":"string"}]}]"#,
            &[2, 2, b'x']
        ),
        r#"{"A":{"L":"x"}}"#
    );
}

#[test]
fn a_field_is_found_as_text_for_ordering() {
    let schema = Schema::parse(
        r#"{"type":"record","name":"Order__e","fields":[
            {"name":"CreatedDate","type":"long"},{"name":"Tags","type":{"type":"array","items":"string"}},
            {"name":"Number__c","type":["null","string"]},{"name":"Amount__c","type":["null","double"]}]}"#,
    )
    .unwrap();
    let event = json!({"CreatedDate": 5, "Tags": ["a"], "Number__c": "7 \"x\""});
    let payload = schema.encode_json(&event).unwrap();
    let key = |field: &str| schema.key_text(&payload, field);
    assert_eq!(key("Number__c").as_deref(), Some("7 \"x\""));
    assert_eq!(key("CreatedDate").as_deref(), Some("5"));
    assert_eq!(key("Tags").as_deref(), Some(r#"["a"]"#));
    assert_eq!(key("Amount__c"), None);
    assert_eq!(key("Unknown"), None);
    assert_eq!(schema.key_text(&payload[..4], "Number__c"), None);
}
