//! What the fuzz targets share: our schemas, events of them, and how a corpus gets its first files.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use orgstream::avro::Schema;
use serde_json::{Map, Value, json};

/// A schema of ours and its text.
pub struct Sample {
    pub schema: Schema,
    pub text: Value,
}

/// Three change events and a platform event.
pub static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    [
        include_str!("../../schemas/AccountChangeEvent.mXn-qVf-uENIp2CjGq7nvw.avsc"),
        include_str!("../../schemas/ContactChangeEvent.YLPx_JMP2oGKutbVV-Aggw.avsc"),
        include_str!("../../schemas/Employee__ChangeEvent.yZ0OLSGnu2NSat-PAtzEhQ.avsc"),
        include_str!("../../schemas/Order__e.T2gsoDAd40J5FRpynIKZmQ.avsc"),
    ]
    .map(|text| Sample {
        schema: Schema::parse(text).expect("a schema of ours"),
        text: serde_json::from_str(text).expect("a schema of ours"),
    })
    .into()
});

/// How many of an event's fields have a value.
#[derive(Debug, Clone, Copy)]
pub enum Filled {
    None,
    Some,
    All,
}

impl Sample {
    /// Payloads of a few events: full, half full and empty; updates, deletions and gaps.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        let kinds = [
            (Filled::All, "CREATE"),
            (Filled::Some, "UPDATE"),
            (Filled::None, "UPDATE"),
            (Filled::None, "DELETE"),
            (Filled::None, "GAP_OVERFLOW"),
        ];
        let payload = |(filled, change): (_, &str)| {
            let event = self.event(filled, change);
            self.schema.encode_json(&event).expect("the event is whole")
        };
        kinds.into_iter().map(payload).collect()
    }

    fn event(&self, filled: Filled, change: &str) -> Value {
        let mut named = HashMap::new();
        let mut event = record(&self.text, filled, &mut named);
        if let Some(header) = event.get_mut("ChangeEventHeader") {
            *header = self.header(change);
        }
        event.into()
    }

    /// A header whose bitmaps name the second field and, of the first compound field, the first component.
    pub fn header(&self, change: &str) -> Value {
        let names: Vec<&str> = fields(&self.text).map(|(name, _)| name).collect();
        let changed = [names[1].to_owned(), format!("{}.City", names[4])];
        let changed = self.schema.bitmap(&changed);
        let changed = changed.or_else(|_| self.schema.bitmap(&[names[2].to_owned()]));
        let nulled = self.schema.bitmap(&[names[2].to_owned()]);
        json!({"entityName": "Account", "recordIds": ["001Hp00002eNXYzIAO", "001Hp00002eNXYyIAO"],
            "changeType": change, "changeOrigin": "com/salesforce/api/soap/60.0;client=x",
            "transactionKey": "0002343d-9d90-e395-ed20-cf416ba652ad", "sequenceNumber": 1,
            "commitTimestamp": 1_712_693_965_000_i64, "commitNumber": 10_585_193_272_713_i64,
            "commitUser": "0055f000005mc66AAA", "nulledFields": nulled.expect("a field"), "diffFields": [],
            "changedFields": changed.expect("a field")})
    }
}

fn fields(record: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let fields = record["fields"].as_array().into_iter().flatten();
    fields.map(|field| (field["name"].as_str().unwrap_or_default(), &field["type"]))
}

fn record<'t>(
    of: &'t Value,
    filled: Filled,
    named: &mut HashMap<&'t str, &'t Value>,
) -> Map<String, Value> {
    if let Some(name) = of["name"].as_str() {
        named.insert(name, of);
    }
    let mut object = Map::new();
    for (number, (name, of)) in fields(of).enumerate() {
        let value = value(of, filled, named);
        let is_optional = of
            .as_array()
            .is_some_and(|union| union.contains(&json!("null")));
        let is_there = match filled {
            Filled::None => false,
            Filled::Some => number % 2 == 1,
            Filled::All => true,
        };
        if is_there || !is_optional {
            object.insert(name.to_owned(), value);
        }
    }
    object
}

fn value<'t>(of: &'t Value, filled: Filled, named: &mut HashMap<&'t str, &'t Value>) -> Value {
    match of {
        // The last branch, behind null and text.
        Value::Array(union) => union
            .last()
            .map_or(Value::Null, |of| value(of, filled, named)),
        Value::Object(_) if of["type"] == "record" => record(of, filled, named).into(),
        Value::String(name) => match name.as_str() {
            "boolean" => json!(true),
            "int" | "long" => json!(1_653_955_200_000_i64 % 1_000_003),
            "float" | "double" => json!(42.5),
            "string" => json!("Grüße \"an\" alle\n"),
            name => match named.get(name).copied() {
                Some(of) => record(of, filled, named).into(),
                None => Value::Null,
            },
        },
        _ => Value::Null,
    }
}

/// Writes the first files of a corpus into the folder that ORGSTREAM_FUZZ_SEEDS names, where it is set: scripts/fuzz does
/// that. libFuzzer reads its corpus only after a target's `init`.
pub fn seed<S: AsRef<[u8]>>(seeds: impl IntoIterator<Item = S>) {
    let Some(folder) = std::env::var_os("ORGSTREAM_FUZZ_SEEDS") else {
        return;
    };
    for (number, seed) in seeds.into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
