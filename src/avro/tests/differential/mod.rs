//! Generated schemas and events: what the plan writes is what apache-avro reads, under the same rule
//! of absence, here said once more over a tree of values.
//!
//! Every shape of facts 4.4 is among them: null first and every other union, required fields, compounds that are
//! defined once and named from then on, names that are text or a record, all bitmaps of a change event. Beside them is
//! what Avro has and the platform does not send.

mod changes;
mod oracle;
mod types;

use std::collections::BTreeSet;

use apache_avro::types::Value;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::avro::{DecodeReason, Schema, peek_header};
use changes::{BITMAPS, any_change};
use oracle::{encode, exact, in_blocks, oracle, read, same};
use types::{Type, any_event, any_fields, real_body, record_value, schema_text};

/// What our decoder makes of a payload, read back.
fn decoded(schema: &Schema, payload: &[u8]) -> Result<Json, DecodeReason> {
    match schema.decode(payload) {
        Ok(decoded) => Ok(exact(&decoded.data)),
        Err(failure) => Err(failure.error.reason),
    }
}

proptest! {
    #[test]
    fn any_datum_of_any_schema_reads_as_apache_avro_reads_it((fields, value) in any_event()) {
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let payload = encode(&text, value.clone());
        let found = decoded(&schema, &payload);
        let expected = oracle(&value).0;
        prop_assert!(found.as_ref().is_ok_and(|found| same(found, &expected)), "{found:?}\n{expected}");
    }

    #[test]
    fn arrays_and_maps_are_read_in_however_many_blocks_they_come(
        (fields, value) in any_event(),
        blocks in vec(any::<u8>(), 1..20),
    ) {
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let payload = in_blocks(&value, &blocks);
        let expected = oracle(&value).0;
        prop_assert!(read(&text, &payload).is_some_and(|read| same(&oracle(&read).0, &expected)));
        let found = decoded(&schema, &payload);
        prop_assert!(found.as_ref().is_ok_and(|found| same(found, &expected)), "{found:?}\n{expected}");
    }

    #[test]
    fn change_events_read_as_apache_avro_reads_them_by_the_rule_of_absence(change in any_change()) {
        let text = change.schema();
        let schema = Schema::parse(&text).unwrap();
        let payload = encode(&text, change.value(&schema));
        let event = schema.decode(&payload).unwrap();
        prop_assert!(event.header.as_ref().is_some_and(|header| change.is(header)), "{:?}", event.header);
        let mut found = exact(&event.data);
        let mut header = found.as_object_mut().unwrap().remove("ChangeEventHeader").unwrap();
        let diffs = header.as_object_mut().unwrap().remove("diffs").unwrap_or_else(|| json!({}));
        let mut expected = change.expected_header();
        for name in BITMAPS {
            let names = [&mut header, &mut expected].map(|header| {
                let names = header.as_object_mut().unwrap().remove(name).unwrap_or_default();
                serde_json::from_value::<Option<BTreeSet<String>>>(names).unwrap()
            });
            prop_assert_eq!(&names[0], &names[1], "{}", name);
        }
        prop_assert!(same(&header, &expected), "{header}\n{expected}");
        let (body, expected_diffs) = change.expected();
        prop_assert!(same(&found, &body), "{found}\n{body}");
        prop_assert!(same(&diffs, &expected_diffs), "{diffs}\n{expected_diffs}");
    }

    #[test]
    fn damaged_bytes_fail_where_apache_avro_fails_and_else_read_the_same(
        (fields, value) in any_event(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let mut payload = encode(&text, value);
        let cut = cut.index(payload.len() + 1);
        if cut < payload.len() {
            prop_assert!(schema.decode(&payload[..cut]).is_err());
        }
        for (at, byte) in damage {
            if !payload.is_empty() {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
        }
        let value = read(&text, &payload);
        match decoded(&schema, &payload) {
            Ok(found) => {
                prop_assert!(value.is_some_and(|value| same(&oracle(&value).0, &found)), "{found}");
            }
            // Bounds of ours.
            Err(DecodeReason::TooLarge | DecodeReason::TooDeep(_)) => {}
            // apache-avro takes the end for a null, and drops the bits of a number that do not fit.
            Err(DecodeReason::EndsEarly | DecodeReason::NumberTooLong) => {}
            Err(reason) => prop_assert!(value.is_none(), "{reason}: {value:?}"),
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_an_error_wherever_it_stands(
        (fields, value) in any_event(),
        at in any::<prop::sample::Index>(),
        wrong in prop::sample::select(NOT_UTF_8),
    ) {
        let mut fields = fields;
        fields.push(Type::TEXT);
        let Value::Record(mut values) = value else { panic!("an event is a record") };
        values.push((format!("F{}", values.len()), Value::String(String::new())));
        let mut value = Value::Record(values);
        let mut texts = Vec::new();
        all_texts(&mut value, &mut texts);
        let at = at.index(texts.len());
        *texts[at] = MARK.to_owned();
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let mut payload = encode(&text, value);
        prop_assert!(schema.decode(&payload).is_ok());
        let mark = payload.windows(MARK.len()).position(|bytes| bytes == MARK.as_bytes()).unwrap();
        payload[mark + 1..][..wrong.len()].copy_from_slice(wrong);
        prop_assert_eq!(decoded(&schema, &payload), Err(DecodeReason::NotUtf8));
        prop_assert!(read(&text, &payload).is_none());
    }

    #[test]
    fn random_bytes_never_panic(
        fields in any_fields(),
        change in any_change(),
        bytes in vec(prop_oneof![any::<u8>(), Just(0), Just(2)], 0..200),
    ) {
        let schema = Schema::parse(&schema_text(None, &fields)).unwrap();
        let _ = decoded(&schema, &bytes);
        let schema = Schema::parse(&change.schema()).unwrap();
        let _ = decoded(&schema, &bytes);
        peek_header(&bytes);
    }

    #[test]
    fn what_was_decoded_encodes_to_an_event_that_decodes_the_same(
        (fields, value) in real_body()
            .prop_flat_map(|fields| (Just(fields.clone()), record_value(&fields)))
    ) {
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let found = decoded(&schema, &encode(&text, value)).unwrap();
        // A required compound without any component cannot be told from an absent one.
        if let Ok(again) = schema.encode_json(&found) {
            let again = decoded(&schema, &again).unwrap();
            prop_assert!(same(&again, &found), "{again}\n{found}");
        } else {
            let missing = |(i, of): (usize, &Type)| {
                of.components() > 0 && !of.may_be_null() && found.get(format!("F{i}")).is_none()
            };
            prop_assert!(fields.iter().enumerate().any(missing), "{found}");
        }
    }
}

/// A text that is nowhere else, long enough for what is put into it.
const MARK: &str = "\u{1}\u{2}mark\u{3}";

/// Not UTF-8: a lone byte, a surrogate, an overlong form, a character beyond the last, one that is cut off.
const NOT_UTF_8: &[&[u8]] = &[
    b"\xff",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82x",
];

fn all_texts<'v>(value: &'v mut Value, texts: &mut Vec<&'v mut String>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Union(_, value) => all_texts(value, texts),
        Value::Record(fields) => fields
            .iter_mut()
            .for_each(|(_, value)| all_texts(value, texts)),
        Value::Array(items) => items.iter_mut().for_each(|value| all_texts(value, texts)),
        Value::Map(entries) => entries
            .values_mut()
            .for_each(|value| all_texts(value, texts)),
        _ => {}
    }
}

#[test]
fn a_key_of_a_map_that_is_not_utf_8_is_an_error() {
    let text = schema_text(None, &[Type::Map(Box::new(Type::Simple("int")))]);
    let schema = Schema::parse(&text).unwrap();
    for (key, sound) in [(b"\xc3\xa4", true), (b"\xc3x", false)] {
        let payload = [&[2, 4][..], key, &[14, 0]].concat();
        assert_eq!(decoded(&schema, &payload).is_ok(), sound);
        assert_eq!(read(&text, &payload).is_some(), sound);
    }
}

#[test]
fn a_type_that_holds_itself_reads_as_apache_avro_reads_it() {
    let text = r#"{"type":"record","name":"Link","namespace":"com.sforce.eventbus","fields":[
        {"name":"F0","type":"long"},{"name":"F1","type":["null","Link"]}]}"#;
    let schema = Schema::parse(text).unwrap();
    let mut payload = Vec::new();
    for links in 1..=20 {
        payload.extend([links, 2]);
        let whole = [&payload[..payload.len() - 1], &[0]].concat();
        let expected = oracle(&read(text, &whole).unwrap()).0;
        assert_eq!(decoded(&schema, &whole), Ok(expected));
    }
}
