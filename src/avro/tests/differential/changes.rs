//! Change events: fields, values, a header and its bitmaps, and what they have to become.

use std::collections::BTreeSet;

use apache_avro::types::Value;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::oracle::oracle;
use super::types::{Type, any_body, any_text, record_value, schema_text};
use crate::avro::Schema;
use crate::event::{ChangeEventHeader, ChangeType};

pub(super) const BITMAPS: [&str; 3] = ["nulledFields", "diffFields", "changedFields"];
const TEXTS: [&str; 4] = ["entityName", "changeOrigin", "transactionKey", "commitUser"];
const CHANGE_TYPES: [&str; 10] = [
    "CREATE",
    "UPDATE",
    "DELETE",
    "UNDELETE",
    "GAP_CREATE",
    "GAP_UPDATE",
    "GAP_DELETE",
    "GAP_UNDELETE",
    "GAP_OVERFLOW",
    "SNAPSHOT",
];
const UPDATE: usize = 1;

/// What a header says beside its bitmaps.
#[derive(Debug, Clone)]
pub(super) struct Header {
    texts: [String; 4],
    record_ids: Vec<String>,
    change_type: usize,
    sequence_number: i32,
    commit_timestamp: i64,
    commit_number: i64,
    /// Eleven fields, without `changedFields`, as until 2019.
    is_old: bool,
}

fn any_header() -> impl Strategy<Value = Header> {
    let change_type = prop_oneof![1 => Just(UPDATE), 1 => 0..CHANGE_TYPES.len()];
    let texts = [any_text(), any_text(), any_text(), any_text()];
    let numbers = (any::<i32>(), any::<i64>(), any::<i64>());
    let is_old = proptest::bool::weighted(0.1);
    (texts, vec(any_text(), 0..4), change_type, numbers, is_old).prop_map(
        |(texts, record_ids, change_type, numbers, is_old)| Header {
            texts,
            record_ids,
            change_type,
            sequence_number: numbers.0,
            commit_timestamp: numbers.1,
            commit_number: numbers.2,
            is_old,
        },
    )
}

impl Header {
    /// The fields in the platform's order, each with its type and its value.
    fn fields(&self, bitmaps: [Vec<String>; 3]) -> Vec<(&'static str, Json, Value)> {
        let text = |at: usize| {
            let value = Value::String(self.texts[at].clone());
            (TEXTS[at], json!("string"), value)
        };
        let texts = |name, texts: Vec<String>| {
            let value = Value::Array(texts.into_iter().map(Value::String).collect());
            (name, json!({"type": "array", "items": "string"}), value)
        };
        let symbol = CHANGE_TYPES[self.change_type].to_owned();
        let change_type = json!({"type": "enum", "name": "ChangeType", "symbols": CHANGE_TYPES});
        let [nulled, diffs, changed] = bitmaps;
        let mut fields = vec![
            text(0),
            texts("recordIds", self.record_ids.clone()),
            (
                "changeType",
                change_type,
                Value::Enum(self.change_type as u32, symbol),
            ),
            text(1),
            text(2),
            (
                "sequenceNumber",
                json!("int"),
                Value::Int(self.sequence_number),
            ),
            (
                "commitTimestamp",
                json!("long"),
                Value::Long(self.commit_timestamp),
            ),
            (
                "commitNumber",
                json!("long"),
                Value::Long(self.commit_number),
            ),
            text(3),
            texts("nulledFields", nulled),
            texts("diffFields", diffs),
            texts("changedFields", changed),
        ];
        if self.is_old {
            fields.pop();
        }
        fields
    }
}

/// A change event: types and values of its fields, its header, and which fields the bitmaps name.
#[derive(Debug, Clone)]
pub(super) struct Change {
    fields: Vec<Type>,
    values: Value,
    header: Header,
    bitmaps: [BTreeSet<String>; 3],
}

pub(super) fn any_change() -> impl Strategy<Value = Change> {
    (any_body(), any_header()).prop_flat_map(|(fields, header)| {
        let mut names = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            names.push(format!("F{i}"));
            names.extend((0..field.components()).map(|component| format!("F{i}.F{component}")));
        }
        let some = |most: usize| {
            let few = 0..names.len().min(6).min(most) + 1;
            proptest::sample::subsequence(names.clone(), few)
                .prop_map(|names| names.into_iter().collect::<BTreeSet<_>>())
        };
        let changed = if header.is_old { some(0) } else { some(6) };
        let bitmaps = [some(6), some(6), changed];
        let values = record_value(&fields);
        (Just(fields), values, Just(header), bitmaps).prop_map(
            |(fields, values, header, bitmaps)| Change {
                fields,
                values,
                header,
                bitmaps,
            },
        )
    })
}

impl Change {
    pub(super) fn schema(&self) -> String {
        let fields = self.header.fields(Default::default());
        let fields = fields
            .into_iter()
            .map(|(name, of, _)| json!({"name": name, "type": of}));
        let fields: Vec<Json> = fields.collect();
        let header = json!({"type": "record", "name": "ChangeEventHeader", "fields": fields});
        schema_text(Some(header), &self.fields)
    }

    /// The whole event.
    pub(super) fn value(&self, schema: &Schema) -> Value {
        let bitmaps = self.bitmaps.each_ref().map(|names| {
            let names: Vec<String> = names.iter().cloned().collect();
            schema.bitmap(&names).unwrap()
        });
        let header = self.header.fields(bitmaps).into_iter();
        let header = header.map(|(name, _, value)| (name.to_owned(), value));
        let mut event = vec![(
            "ChangeEventHeader".to_owned(),
            Value::Record(header.collect()),
        )];
        let Value::Record(values) = &self.values else {
            panic!("an event is a record");
        };
        event.extend(values.iter().cloned());
        Value::Record(event)
    }

    /// The header as JSON, with names for bitmaps in any order.
    pub(super) fn expected_header(&self) -> Json {
        let bitmaps = self.bitmaps.each_ref();
        let bitmaps = bitmaps.map(|names| names.iter().cloned().collect());
        let fields = self.header.fields(bitmaps).into_iter();
        let fields = fields.map(|(name, _, value)| (name.to_owned(), oracle(&value).0));
        Json::Object(fields.collect())
    }

    /// True for the typed form of the header.
    pub(super) fn is(&self, header: &ChangeEventHeader) -> bool {
        let expected = &self.header;
        let names = [
            &header.nulled_fields,
            &header.diff_fields,
            &header.changed_fields,
        ];
        let names = names.map(|names| names.iter().map(str::to_owned).collect::<BTreeSet<_>>());
        let texts = [
            &header.entity_name,
            &header.change_origin,
            &header.transaction_key,
            &header.commit_user,
        ];
        let numbers = (header.sequence_number, header.commit_timestamp);
        texts == expected.texts.each_ref()
            && header.record_ids[..] == expected.record_ids[..]
            && header.change_type == ChangeType::from_symbol(CHANGE_TYPES[expected.change_type])
            && numbers == (expected.sequence_number, expected.commit_timestamp)
            && header.commit_number == expected.commit_number
            && names == self.bitmaps
    }

    /// The body by the rule of absence, and the diffs.
    pub(super) fn expected(&self) -> (Json, Json) {
        let [nulled, diffs, changed] = &self.bitmaps;
        let update = self.header.change_type == UPDATE;
        let shown = |name: &str| {
            let parent = name.split('.').next().unwrap_or(name);
            let mut components = diffs.iter().filter_map(|diff| diff.split_once('.'));
            let diff = diffs.contains(name)
                || diffs.contains(parent)
                || components.any(|(parent, _)| parent == name);
            update && !diff && (nulled.contains(name) || changed.contains(name))
        };
        let Value::Record(values) = &self.values else {
            panic!("an event is a record");
        };
        let mut body = Map::new();
        let mut diff_texts = Map::new();
        for ((name, value), of) in values.iter().zip(&self.fields) {
            let components: Vec<_> = (0..of.components())
                .map(|i| (format!("F{i}"), format!("{name}.F{i}")))
                .collect();
            let (mut json, mut present) = oracle(value);
            if is_compound(value)
                && !components.is_empty()
                && let Some(object) = json.as_object_mut()
            {
                for (component, full) in &components {
                    if diffs.contains(full) {
                        let text = object.remove(component);
                        diff_texts.extend(text.map(|text| (full.clone(), text)));
                    } else if shown(full) {
                        object.entry(component).or_insert(Json::Null);
                    }
                }
                present = !object.is_empty();
            }
            let nulls = components.iter().filter(|(_, full)| shown(full));
            let nulls: Map<_, _> = nulls.map(|(name, _)| (name.clone(), Json::Null)).collect();
            if diffs.contains(name) {
                diff_texts.extend(present.then(|| (name.clone(), json)));
            } else if present {
                body.insert(name.clone(), json);
            } else if shown(name) {
                body.insert(name.clone(), Json::Null);
            } else if !nulls.is_empty() {
                body.insert(name.clone(), nulls.into());
            }
        }
        (body.into(), diff_texts.into())
    }
}

/// A record and not a map, which is an object too.
fn is_compound(value: &Value) -> bool {
    match value {
        Value::Union(_, value) => is_compound(value),
        Value::Record(_) => true,
        _ => false,
    }
}
