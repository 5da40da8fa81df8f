//! JSON to binary Avro, through the apache-avro crate: for `publish` and the emulator.

use std::collections::HashMap;

use apache_avro::Schema as Avro;
use apache_avro::schema::{Name, RecordSchema};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::Value as Json;

/// Deepest nesting that is encoded; that of the decoder.
const MAX_DEPTH: usize = super::decode::MAX_DEPTH;

/// A JSON value that the schema cannot hold. Names the field, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// No such field.
    #[error("the schema has no field {0}")]
    UnknownField(String),
    /// A field that may not be null is left out.
    #[error("field {0} is required and has no value")]
    Missing(String),
    /// The wrong kind of value.
    #[error("{field} is not {expected}")]
    Mismatch {
        /// Where: `field A.B[2]`, or `the event` itself.
        field: String,
        /// What the schema wants there.
        expected: String,
    },
    /// Nested beyond any real event.
    #[error("the value is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The Avro library's refusal.
    #[error("the value does not encode: {0}")]
    Avro(String),
}

/// One binary datum of this schema.
pub(super) fn encode(schema: &Avro, json: &Json) -> Result<Vec<u8>, EncodeError> {
    let mut names = HashMap::new();
    collect_names(schema, &mut names);
    let value = Encoder {
        names,
        path: Vec::new(),
    }
    .value(schema, json)?;
    GenericDatumWriter::builder(schema)
        // What was built above fits; the library's own check refuses a record with a field of type null.
        .validate(false)
        .build()
        .and_then(|writer| writer.write_value_to_vec(value))
        // The library's own text may hold the value.
        .map_err(|_| EncodeError::Avro("the Avro library refuses it".into()))
}

fn collect_names<'s>(schema: &'s Avro, names: &mut HashMap<&'s Name, &'s Avro>) {
    match schema {
        Avro::Record(record) => {
            names.insert(&record.name, schema);
            for field in &record.fields {
                collect_names(&field.schema, names);
            }
        }
        Avro::Enum(symbols) => _ = names.insert(&symbols.name, schema),
        Avro::Fixed(fixed) => _ = names.insert(&fixed.name, schema),
        Avro::Array(array) => collect_names(&array.items, names),
        Avro::Map(map) => collect_names(&map.types, names),
        Avro::Union(union) => {
            for branch in union.variants() {
                collect_names(branch, names);
            }
        }
        _ => {}
    }
}

struct Encoder<'s> {
    names: HashMap<&'s Name, &'s Avro>,
    /// Where in the value the encoder is: `A`, `.B`, `[2]`.
    path: Vec<String>,
}

impl<'s> Encoder<'s> {
    fn value(&mut self, schema: &'s Avro, json: &Json) -> Result<Value, EncodeError> {
        if self.path.len() > MAX_DEPTH {
            return Err(EncodeError::TooDeep);
        }
        let value = match (schema, json) {
            (Avro::Null, Json::Null) => Some(Value::Null),
            (Avro::Boolean, Json::Bool(value)) => Some(Value::Boolean(*value)),
            (Avro::Int, _) => integer(json).and_then(|n| Some(Value::Int(n.try_into().ok()?))),
            (Avro::Long, _) => integer(json).map(Value::Long),
            // Rounding to the nearer float is what the type asks for.
            (Avro::Float, _) => float(json).map(|value| Value::Float(value as f32)),
            (Avro::Double, _) => float(json).map(Value::Double),
            (Avro::String, Json::String(text)) => Some(Value::String(text.clone())),
            (Avro::Bytes, Json::String(text)) => hex::decode(text).ok().map(Value::Bytes),
            (Avro::Fixed(fixed), Json::String(text)) => hex::decode(text)
                .ok()
                .filter(|bytes| bytes.len() == fixed.size)
                .map(|bytes| Value::Fixed(fixed.size, bytes)),
            (Avro::Enum(of), Json::String(text)) => {
                let at = of.symbols.iter().position(|symbol| symbol == text);
                at.and_then(|at| Some(Value::Enum(at.try_into().ok()?, text.clone())))
            }
            (Avro::Array(array), Json::Array(items)) => Some(self.array(&array.items, items)?),
            (Avro::Map(map), Json::Object(entries)) => Some(self.map(&map.types, entries)?),
            (Avro::Record(record), Json::Object(entries)) => Some(self.record(record, entries)?),
            (Avro::Union(union), _) => Some(self.union(schema, union.variants(), json)?),
            (Avro::Ref { name }, _) => match self.names.get(name).copied() {
                Some(named) => Some(self.value(named, json)?),
                None => None,
            },
            _ => None,
        };
        value.ok_or_else(|| self.mismatch(schema))
    }

    /// Encodes with one more step in the path.
    fn within(
        &mut self,
        step: String,
        schema: &'s Avro,
        json: &Json,
    ) -> Result<Value, EncodeError> {
        self.path.push(step);
        let value = self.value(schema, json);
        self.path.pop();
        value
    }

    fn array(&mut self, items: &'s Avro, json: &[Json]) -> Result<Value, EncodeError> {
        let values = json.iter().enumerate();
        let values = values.map(|(i, item)| self.within(format!("[{i}]"), items, item));
        values.collect::<Result<_, _>>().map(Value::Array)
    }

    fn map(
        &mut self,
        values: &'s Avro,
        json: &serde_json::Map<String, Json>,
    ) -> Result<Value, EncodeError> {
        let entries = json.iter().map(|(key, value)| {
            let value = self.within(format!(".{key}"), values, value)?;
            Ok((key.clone(), value))
        });
        entries.collect::<Result<_, _>>().map(Value::Map)
    }

    fn record(
        &mut self,
        record: &'s RecordSchema,
        json: &serde_json::Map<String, Json>,
    ) -> Result<Value, EncodeError> {
        let known = |name: &String| record.fields.iter().any(|field| field.name == *name);
        if let Some(unknown) = json.keys().find(|name| !known(name)) {
            return Err(EncodeError::UnknownField(self.at(&format!(".{unknown}"))));
        }
        let fields = record.fields.iter().map(|field| {
            let step = format!(".{}", field.name);
            let given = json.get(&field.name);
            if given.is_none() && !nullable(&field.schema) {
                return Err(EncodeError::Missing(self.at(&step)));
            }
            let value = self.within(step, &field.schema, given.unwrap_or(&Json::Null))?;
            Ok((field.name.clone(), value))
        });
        fields.collect::<Result<_, _>>().map(Value::Record)
    }

    /// The first branch that can hold the value. Where only one could, its own complaint is the answer.
    fn union(
        &mut self,
        schema: &'s Avro,
        branches: &'s [Avro],
        json: &Json,
    ) -> Result<Value, EncodeError> {
        let mut refusals = Vec::new();
        for (at, branch) in (0_u32..).zip(branches) {
            match self.value(branch, json) {
                Ok(value) => return Ok(Value::Union(at, Box::new(value))),
                Err(EncodeError::TooDeep) => return Err(EncodeError::TooDeep),
                Err(refusal) if *branch != Avro::Null => refusals.push(refusal),
                Err(_) => {}
            }
        }
        match (refusals.pop(), refusals.is_empty()) {
            (Some(only), true) => Err(only),
            _ => Err(self.mismatch(schema)),
        }
    }

    fn at(&self, step: &str) -> String {
        let path = self.path.concat() + step;
        path.strip_prefix('.').unwrap_or(&path).to_owned()
    }

    fn mismatch(&self, schema: &Avro) -> EncodeError {
        EncodeError::Mismatch {
            field: if self.path.is_empty() {
                "the event".to_owned()
            } else {
                format!("field {}", self.at(""))
            },
            expected: expected(schema),
        }
    }
}

fn nullable(schema: &Avro) -> bool {
    match schema {
        Avro::Null => true,
        Avro::Union(union) => union.variants().contains(&Avro::Null),
        _ => false,
    }
}

/// A whole number; one written with a fraction of zero is one too, where a double is exact.
fn integer(json: &Json) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    json.as_i64().or_else(|| {
        let value = json.as_f64()?;
        // The cast is exact: the value is whole and within ±2^53.
        (value.fract() == 0.0 && value.abs() <= EXACT && !json.is_u64()).then_some(value as i64)
    })
}

fn float(json: &Json) -> Option<f64> {
    match json {
        Json::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => json.as_f64(),
    }
}

/// What a value of this type looks like in JSON.
fn expected(schema: &Avro) -> String {
    match schema {
        Avro::Null => "null".into(),
        Avro::Boolean => "true or false".into(),
        Avro::Int => "a whole number of 32 bits".into(),
        Avro::Long => "a whole number of 64 bits".into(),
        Avro::Float | Avro::Double => "a number".into(),
        Avro::String => "text".into(),
        Avro::Bytes => "bytes as hexadecimal text".into(),
        Avro::Fixed(fixed) => format!("{} bytes as hexadecimal text", fixed.size),
        Avro::Enum(of) => format!("one of {}", of.symbols.join(", ")),
        Avro::Array(_) => "an array".into(),
        Avro::Union(union) => {
            let branches: Vec<_> = union.variants().iter().map(expected).collect();
            branches.join(" or ")
        }
        _ => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::avro::Schema;

    fn schema() -> Schema {
        Schema::parse(
            r#"{"type":"record","name":"Case__e","namespace":"com.sforce.eventbus","fields":[
                {"name":"CreatedDate","type":"long"},{"name":"CreatedById","type":"string"},
                {"name":"Case_Status__c","type":["null","string"]},
                {"name":"RandomNumber__c","type":["null","double"]}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn an_object_becomes_the_datum_that_the_platform_would_send() {
        let event = json!({"CreatedDate": 1_712_693_965_000_i64, "CreatedById": "0055f000005mc66AAA",
            "RandomNumber__c": 42.5});
        let datum = schema().encode_json(&event).unwrap();
        assert_eq!(
            hex::encode(datum),
            "90c39fc8d8632430303535663030303030356d63363641414100020000000000404540"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_name_of_the_field() {
        let whole = json!({"CreatedDate": 1, "CreatedById": "005"});
        let cases = [
            ("CreatedById", json!(null), "field CreatedById is not text"),
            (
                "CreatedDate",
                json!(1.5),
                "field CreatedDate is not a whole number of 64 bits",
            ),
            (
                "RandomNumber__c",
                json!("secret"),
                "field RandomNumber__c is not a number",
            ),
            (
                "Randomnumber__c",
                json!(1),
                "the schema has no field Randomnumber__c",
            ),
        ];
        for (field, value, message) in cases {
            let mut event = whole.clone();
            event[field] = value;
            let error = schema().encode_json(&event).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = schema()
            .encode_json(&json!({"CreatedDate": 1}))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "field CreatedById is required and has no value"
        );
        let error = schema().encode_json(&json!([1])).unwrap_err();
        assert_eq!(error.to_string(), "the event is not an object");
    }
}
