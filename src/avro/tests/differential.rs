//! Generated schemas and events: what the plan writes is what apache-avro reads, under the same rule
//! of absence, here said once more over a tree of values.

use std::collections::BTreeSet;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use crate::avro::{Schema, peek_header};

/// A type to generate; named types get their names when written.
#[derive(Debug, Clone)]
enum Type {
    Simple(&'static str),
    Fixed(usize),
    Enum(usize),
    Array(Box<Type>),
    Map(Box<Type>),
    Record(Vec<Type>),
    /// Null first, as everywhere in real events.
    Nullable(Box<Type>),
    NullLast(Box<Type>),
    /// `["null", "string", record]`, as Account's Name.
    Switchable(Vec<Type>),
    /// `["string", record]`, its required form.
    Required(Vec<Type>),
}

impl Type {
    fn json(&self, next: &mut usize) -> Json {
        let mut name = || {
            *next += 1;
            format!("T{next}")
        };
        match self {
            Self::Simple(name) => json!(name),
            Self::Fixed(size) => json!({"type": "fixed", "name": name(), "size": size}),
            Self::Enum(count) => {
                let symbols: Vec<_> = (0..*count).map(|i| format!("S{i}")).collect();
                json!({"type": "enum", "name": name(), "namespace": "", "symbols": symbols})
            }
            Self::Array(items) => json!({"type": "array", "items": items.json(next)}),
            Self::Map(values) => json!({"type": "map", "values": values.json(next)}),
            Self::Record(fields) => {
                let name = name();
                json!({"type": "record", "name": name, "fields": fields_json(fields, next)})
            }
            Self::Nullable(of) => json!(["null", of.json(next)]),
            Self::NullLast(of) => json!([of.json(next), "null"]),
            Self::Switchable(fields) => {
                json!(["null", "string", Self::Record(fields.clone()).json(next)])
            }
            Self::Required(fields) => json!(["string", Self::Record(fields.clone()).json(next)]),
        }
    }

    fn value(&self) -> BoxedStrategy<Value> {
        let union = |at: u32, of: BoxedStrategy<Value>| {
            of.prop_map(move |value| Value::Union(at, Box::new(value)))
                .boxed()
        };
        let null = |at| Just(Value::Union(at, Box::new(Value::Null)));
        match self {
            Self::Simple(name) => simple_value(name),
            Self::Fixed(size) => {
                let size = *size;
                vec(any::<u8>(), size)
                    .prop_map(move |bytes| Value::Fixed(size, bytes))
                    .boxed()
            }
            Self::Enum(count) => (0..*count)
                .prop_map(|at| Value::Enum(at as u32, format!("S{at}")))
                .boxed(),
            Self::Array(items) => vec(items.value(), 0..4).prop_map(Value::Array).boxed(),
            Self::Map(values) => hash_map("\\PC{0,5}", values.value(), 0..4)
                .prop_map(Value::Map)
                .boxed(),
            Self::Record(fields) => record_value(fields),
            Self::Nullable(of) => prop_oneof![null(0), union(1, of.value())].boxed(),
            Self::NullLast(of) => prop_oneof![null(1), union(0, of.value())].boxed(),
            Self::Switchable(fields) => prop_oneof![
                null(0),
                union(1, simple_value("string")),
                union(2, record_value(fields))
            ]
            .boxed(),
            Self::Required(fields) => prop_oneof![
                union(0, simple_value("string")),
                union(1, record_value(fields))
            ]
            .boxed(),
        }
    }

    /// The components whose bits a change event may set.
    fn components(&self) -> usize {
        match self {
            Self::Record(fields) | Self::Switchable(fields) | Self::Required(fields) => {
                fields.len()
            }
            Self::Nullable(of) | Self::NullLast(of) => match &**of {
                Self::Record(fields) => fields.len(),
                _ => 0,
            },
            _ => 0,
        }
    }
}

fn fields_json(fields: &[Type], next: &mut usize) -> Json {
    let fields = fields.iter().enumerate();
    let fields = fields.map(|(i, of)| json!({"name": format!("F{i}"), "type": of.json(next)}));
    fields.collect::<Vec<_>>().into()
}

fn simple_value(name: &str) -> BoxedStrategy<Value> {
    match name {
        "boolean" => any::<bool>().prop_map(Value::Boolean).boxed(),
        "int" => any::<i32>().prop_map(Value::Int).boxed(),
        "long" => any::<i64>().prop_map(Value::Long).boxed(),
        "float" => any::<f32>().prop_map(Value::Float).boxed(),
        "double" => any::<f64>().prop_map(Value::Double).boxed(),
        "bytes" => vec(any::<u8>(), 0..5).prop_map(Value::Bytes).boxed(),
        _ => "(\\PC|[\\x00-\\x1f\"\\\\]){0,12}"
            .prop_map(Value::String)
            .boxed(),
    }
}

fn record_value(fields: &[Type]) -> BoxedStrategy<Value> {
    let values: Vec<_> = fields.iter().map(Type::value).collect();
    let named = |values: Vec<Value>| {
        let fields = values.into_iter().enumerate();
        Value::Record(fields.map(|(i, value)| (format!("F{i}"), value)).collect())
    };
    values.prop_map(named).boxed()
}

fn any_simple() -> impl Strategy<Value = Type> {
    const NAMES: &[&str] = &[
        "boolean", "int", "long", "float", "double", "bytes", "string",
    ];
    proptest::sample::select(NAMES).prop_map(Type::Simple)
}

/// A field as a real change event has them: nullable scalars and compounds of them.
fn any_body_field() -> impl Strategy<Value = Type> {
    let scalar = || any_simple().prop_map(|of| Type::Nullable(Box::new(of)));
    let compound = || vec(scalar(), 1..12);
    prop_oneof![
        6 => scalar(),
        2 => compound().prop_map(|fields| Type::Nullable(Box::new(Type::Record(fields)))),
        1 => compound().prop_map(Type::Switchable),
        1 => compound().prop_map(Type::Required),
        1 => any_simple(),
    ]
}

/// Any type that Avro knows.
fn any_type() -> impl Strategy<Value = Type> {
    let leaf = prop_oneof![
        4 => any_simple(),
        1 => (1..5_usize).prop_map(Type::Fixed),
        1 => (1..5_usize).prop_map(Type::Enum),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        let not_union = || boxed().prop_filter("a union within a union", |of| is_member(of));
        prop_oneof![
            // An array of nothing is refused beyond a bound that apache-avro does not have.
            boxed()
                .prop_filter("nothing", |of| !is_nothing(of))
                .prop_map(Type::Array),
            boxed().prop_map(Type::Map),
            vec(inner.clone(), 0..5).prop_map(Type::Record),
            not_union().prop_map(Type::Nullable),
            not_union().prop_map(Type::NullLast),
            vec(inner.clone(), 1..4).prop_map(Type::Switchable),
        ]
    })
}

fn is_member(of: &Type) -> bool {
    !matches!(
        of,
        Type::Nullable(_) | Type::NullLast(_) | Type::Switchable(_) | Type::Required(_)
    )
}

fn is_nothing(of: &Type) -> bool {
    match of {
        Type::Record(fields) => fields.iter().all(is_nothing),
        _ => false,
    }
}

fn schema_text(header: Option<Json>, fields: &[Type]) -> String {
    let mut all = fields_json(fields, &mut 0);
    if let (Some(header), Some(list)) = (header, all.as_array_mut()) {
        list.insert(0, json!({"name": "ChangeEventHeader", "type": header}));
    }
    json!({"type": "record", "name": "Generated", "namespace": "com.sforce.eventbus", "fields": all})
        .to_string()
}

fn encode(schema: &str, value: Value) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// As apache-avro reads it, if it does.
fn read(schema: &str, mut payload: &[u8]) -> Option<Value> {
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    reader.read_value(&mut payload).ok()
}

/// A value as JSON, and whether it is one: null and a record of nothing are none.
fn oracle(value: &Value) -> (Json, bool) {
    let non_finite = |value: f64| json!(value.to_string().replace("inf", "Infinity"));
    let json = match value {
        Value::Null => return (Json::Null, false),
        Value::Union(_, value) => return oracle(value),
        Value::Record(fields) => {
            let object: Map<String, Json> = fields
                .iter()
                .map(|(name, value)| (name.clone(), oracle(value)))
                .filter(|(_, (_, present))| *present)
                .map(|(name, (json, _))| (name, json))
                .collect();
            let present = !object.is_empty();
            return (object.into(), present);
        }
        Value::Boolean(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Long(value) => json!(value),
        Value::Float(value) if !value.is_finite() => non_finite(f64::from(*value)),
        // Which of the shortest forms it is has its own test.
        Value::Float(value) => {
            let shortest = zmij::Buffer::new().format_finite(*value).parse::<f64>();
            json!(shortest.unwrap())
        }
        Value::Double(value) if !value.is_finite() => non_finite(*value),
        Value::Double(value) => json!(value),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => json!(hex::encode(bytes)),
        Value::String(text) | Value::Enum(_, text) => json!(text),
        Value::Array(items) => items.iter().map(|item| oracle(item).0).collect(),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| (key.clone(), oracle(value).0));
            Json::Object(entries.collect())
        }
        other => panic!("not generated: {other:?}"),
    };
    (json, true)
}

/// Equal; doubles up to what serde_json loses when it reads them.
fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) if one.is_f64() && other.is_f64() => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            (one - other).abs() <= 1e-14 * one.abs() + 1e-300
        }
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

/// What our decoder makes of a payload, read back.
fn decoded(schema: &Schema, payload: &[u8]) -> Option<Json> {
    let decoded = schema.decode(payload).ok()?;
    Some(serde_json::from_slice(&decoded.data).unwrap())
}

const CHANGE_TYPES: [&str; 4] = ["CREATE", "UPDATE", "DELETE", "GAP_UPDATE"];
const BITMAPS: [&str; 3] = ["nulledFields", "diffFields", "changedFields"];

fn header_json() -> Json {
    let mut fields = vec![
        json!({"name": "entityName", "type": "string"}),
        json!({"name": "recordIds", "type": {"type": "array", "items": "string"}}),
        json!({"name": "changeType", "type": {"type": "enum", "name": "ChangeType",
            "symbols": CHANGE_TYPES}}),
        json!({"name": "commitNumber", "type": "long"}),
    ];
    fields.extend(
        BITMAPS.map(|name| json!({"name": name, "type": {"type": "array", "items": "string"}})),
    );
    json!({"type": "record", "name": "ChangeEventHeader", "fields": fields})
}

/// A change event: types and values of its fields, its change type, and which fields its bitmaps name.
#[derive(Debug, Clone)]
struct Change {
    fields: Vec<Type>,
    values: Value,
    change_type: usize,
    bitmaps: [BTreeSet<String>; 3],
}

fn any_change() -> impl Strategy<Value = Change> {
    let fields = vec(any_body_field(), 1..70);
    fields.prop_flat_map(|fields| {
        let mut names = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            names.push(format!("F{i}"));
            names.extend((0..field.components()).map(|component| format!("F{i}.F{component}")));
        }
        let some = || {
            let few = 0..names.len().min(6);
            proptest::sample::subsequence(names.clone(), few)
                .prop_map(|names| names.into_iter().collect::<BTreeSet<_>>())
        };
        let bitmaps = [some(), some(), some()];
        let values = record_value(&fields);
        (Just(fields), values, 0..CHANGE_TYPES.len(), bitmaps).prop_map(
            |(fields, values, change_type, bitmaps)| Change {
                fields,
                values,
                change_type,
                bitmaps,
            },
        )
    })
}

impl Change {
    fn schema(&self) -> String {
        schema_text(Some(header_json()), &self.fields)
    }

    fn payload(&self, text: &str, schema: &Schema) -> Vec<u8> {
        let strings =
            |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
        let change_type = CHANGE_TYPES[self.change_type].to_owned();
        let mut header = vec![
            ("entityName".to_owned(), Value::String("Account".into())),
            ("recordIds".to_owned(), strings(vec!["001".into()])),
            (
                "changeType".to_owned(),
                Value::Enum(self.change_type as u32, change_type),
            ),
            ("commitNumber".to_owned(), Value::Long(i64::MAX)),
        ];
        for (name, fields) in BITMAPS.iter().zip(&self.bitmaps) {
            let fields: Vec<String> = fields.iter().cloned().collect();
            header.push(((*name).to_owned(), strings(schema.bitmap(&fields).unwrap())));
        }
        let mut event = vec![("ChangeEventHeader".to_owned(), Value::Record(header))];
        let Value::Record(values) = &self.values else {
            panic!("an event is a record");
        };
        event.extend(values.iter().cloned());
        encode(text, Value::Record(event))
    }

    /// The body by the rule of absence, and the diffs.
    fn expected(&self) -> (Json, Json) {
        let [nulled, diffs, changed] = &self.bitmaps;
        let update = CHANGE_TYPES[self.change_type] == "UPDATE";
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
            if let Some(object) = json.as_object_mut().filter(|_| !components.is_empty()) {
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

proptest! {
    #[test]
    fn any_datum_of_any_schema_reads_as_apache_avro_reads_it(
        (fields, value) in vec(any_type(), 0..6)
            .prop_flat_map(|fields| (Just(fields.clone()), record_value(&fields)))
    ) {
        let text = schema_text(None, &fields);
        let schema = Schema::parse(&text).unwrap();
        let payload = encode(&text, value.clone());
        let found = decoded(&schema, &payload);
        let expected = oracle(&value).0;
        prop_assert!(found.as_ref().is_some_and(|found| same(found, &expected)), "{found:?}\n{expected}");
    }

    #[test]
    fn change_events_read_as_apache_avro_reads_them_by_the_rule_of_absence(change in any_change()) {
        let text = change.schema();
        let schema = Schema::parse(&text).unwrap();
        let mut found = decoded(&schema, &change.payload(&text, &schema)).unwrap();
        let header = found.as_object_mut().unwrap().remove("ChangeEventHeader").unwrap();
        for (name, fields) in BITMAPS.iter().zip(&change.bitmaps) {
            let names: BTreeSet<String> = serde_json::from_value(header[*name].clone()).unwrap();
            prop_assert_eq!(&names, fields);
        }
        let (body, diffs) = change.expected();
        prop_assert!(same(&found, &body), "{found}\n{body}");
        let found = header.get("diffs").cloned().unwrap_or_else(|| json!({}));
        prop_assert!(same(&found, &diffs), "{found}\n{diffs}");
    }

    #[test]
    fn damaged_bytes_fail_or_read_as_apache_avro_reads_them(
        (fields, value) in vec(any_type(), 0..6)
            .prop_flat_map(|fields| (Just(fields.clone()), record_value(&fields))),
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
        if let Some(found) = decoded(&schema, &payload) {
            let value = read(&text, &payload);
            prop_assert!(value.is_some_and(|value| same(&oracle(&value).0, &found)), "{found}");
        }
    }

    #[test]
    fn random_bytes_never_panic(
        fields in vec(any_type(), 0..6),
        bytes in vec(prop_oneof![any::<u8>(), Just(0), Just(2)], 0..200),
    ) {
        let schema = Schema::parse(&schema_text(None, &fields)).unwrap();
        let _ = decoded(&schema, &bytes);
        let schema = Schema::parse(&schema_text(Some(header_json()), &fields)).unwrap();
        let _ = decoded(&schema, &bytes);
        peek_header(&bytes);
    }

    #[test]
    fn what_was_decoded_encodes_to_an_event_that_decodes_the_same(
        (fields, value) in vec(any_body_field(), 1..10)
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
                matches!(of, Type::Required(_)) && found.get(format!("F{i}")).is_none()
            };
            prop_assert!(fields.iter().enumerate().any(missing), "{found}");
        }
    }
}
