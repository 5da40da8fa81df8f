//! Events from JSON: change events with field names in their header and defaults for what is left out,
//! and platform events. Gives Avro, with bitmaps as the platform sends them (facts 7.2 to 7.5).

use serde_json::{Map, Value, json};

use crate::avro::Schema;

/// What a change event's header says where the publisher leaves it out.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    /// Milliseconds since 1970.
    pub(crate) now_ms: i64,
    /// Groups the events of one transaction.
    pub(crate) transaction_key: String,
    /// Place within the transaction, from 1.
    pub(crate) sequence_number: i32,
    /// Beyond 2^53, as newer orgs send it.
    pub(crate) commit_number: i64,
    /// User ID, 18 characters.
    pub(crate) user_id: String,
}

/// An event that could not be made. Names the field and never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventError {
    #[error("an event is a JSON object with the event's fields")]
    NotAnObject,
    #[error("ChangeEventHeader is a JSON object; {0} in it is a list of field names")]
    Header(&'static str),
    #[error("{0}")]
    Encode(#[from] crate::avro::EncodeError),
}

const BITMAPS: [&str; 3] = ["nulledFields", "diffFields", "changedFields"];

/// True where the schema is that of a change event.
pub(super) fn is_change_event(schema: &Schema) -> bool {
    schema.record_name().ends_with("ChangeEvent")
}

/// One event as Avro. `fields` may hold a partial `ChangeEventHeader` where the schema has one.
pub(crate) fn encode(
    schema: &Schema,
    fields: &Value,
    defaults: &Defaults,
) -> Result<Vec<u8>, EventError> {
    let mut body = fields.as_object().cloned().ok_or(EventError::NotAnObject)?;
    if is_change_event(schema) {
        let header = match body.remove("ChangeEventHeader") {
            None => Map::new(),
            Some(Value::Object(header)) => header,
            Some(_) => return Err(EventError::Header("changedFields")),
        };
        let header = complete_header(schema, header, &mut body, defaults)?;
        body.insert("ChangeEventHeader".to_owned(), Value::Object(header));
    } else {
        let created = [
            ("CreatedDate", json!(defaults.now_ms)),
            ("CreatedById", json!(defaults.user_id)),
        ];
        let known = Shape::of(schema);
        for (name, value) in created {
            if known.has(name) && !body.contains_key(name) {
                body.insert(name.to_owned(), value);
            }
        }
    }
    Ok(schema.encode_json(&Value::Object(body))?)
}

/// The header with defaults put in, and its field names turned into bitmaps.
fn complete_header(
    schema: &Schema,
    mut header: Map<String, Value>,
    body: &mut Map<String, Value>,
    defaults: &Defaults,
) -> Result<Map<String, Value>, EventError> {
    let shape = Shape::of(schema);
    let change_type = header
        .get("changeType")
        .and_then(Value::as_str)
        .unwrap_or("UPDATE")
        .to_owned();
    // The platform's commit times are whole seconds in every sample (facts 7.2).
    let committed = defaults.now_ms - defaults.now_ms.rem_euclid(1000);
    let entity = entity_of(schema.record_name());
    let filled = [
        ("entityName", json!(entity)),
        (
            "recordIds",
            json!([record_id(&entity, &mut fastrand::Rng::new())]),
        ),
        ("changeType", json!(change_type)),
        ("changeOrigin", json!("com/salesforce/api/rest/66.0")),
        ("transactionKey", json!(defaults.transaction_key)),
        ("sequenceNumber", json!(defaults.sequence_number)),
        ("commitTimestamp", json!(committed)),
        ("commitNumber", json!(defaults.commit_number)),
        ("commitUser", json!(defaults.user_id)),
    ];
    for (name, value) in filled {
        if !header.contains_key(name) {
            header.insert(name.to_owned(), value);
        }
    }
    if change_type == "UPDATE" && !header.contains_key("changedFields") {
        add_changes(schema, &mut header, body, committed);
    }
    for name in BITMAPS {
        let names = match header.remove(name) {
            None => Vec::new(),
            Some(value) => serde_json::from_value(value).map_err(|_| EventError::Header(name))?,
        };
        if shape.header_has(name) {
            header.insert(name.to_owned(), json!(bitmaps(schema, names)?));
        }
    }
    Ok(header)
}

/// An update changes every field it names, and LastModifiedDate; those given as null are nulled too. A
/// compound field given as null has all its components named and not itself (facts 7.5).
/// The publisher who names `changedFields` gets exactly those.
fn add_changes(
    schema: &Schema,
    header: &mut Map<String, Value>,
    body: &mut Map<String, Value>,
    committed: i64,
) {
    if Shape::of(schema).has("LastModifiedDate") && !body.contains_key("LastModifiedDate") {
        body.insert("LastModifiedDate".to_owned(), json!(committed));
    }
    let mut changed = Vec::new();
    let mut nulled = Vec::new();
    for (name, value) in body.iter() {
        match value {
            Value::Object(components) => {
                for (component, value) in components {
                    changed.push(format!("{name}.{component}"));
                    if value.is_null() {
                        nulled.push(format!("{name}.{component}"));
                    }
                }
            }
            Value::Null => {
                let mut names = schema.nulled_components(name);
                if names.is_empty() {
                    names.push(name);
                }
                changed.extend(names.iter().map(|name| (*name).to_owned()));
                nulled.extend(names.into_iter().map(str::to_owned));
            }
            _ => changed.push(name.clone()),
        }
    }
    header.insert("changedFields".to_owned(), json!(changed));
    if !header.contains_key("nulledFields") {
        header.insert("nulledFields".to_owned(), json!(nulled));
    }
}

/// Field names as bitmaps; what already is a bitmap stays as it is.
fn bitmaps(schema: &Schema, names: Vec<String>) -> Result<Vec<String>, EventError> {
    let (mut raw, names): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| name.starts_with("0x") || name.contains("-0x"));
    raw.extend(schema.bitmap(&names)?);
    Ok(raw)
}

/// `AccountChangeEvent` is about `Account`, `Employee__ChangeEvent` about `Employee__c`.
fn entity_of(record_name: &str) -> String {
    let entity = record_name
        .strip_suffix("ChangeEvent")
        .unwrap_or(record_name);
    match entity.strip_suffix("__") {
        Some(custom) => format!("{custom}__c"),
        None => entity.to_owned(),
    }
}

/// A made-up record ID of 18 characters, with the key prefix of the object.
pub(super) fn record_id(entity: &str, random: &mut fastrand::Rng) -> String {
    // The last three letters name the capitals among the first fifteen (facts 8.6).
    let (prefix, suffix) = match entity {
        "Account" => ("001", "AAA"),
        "Contact" => ("003", "AAA"),
        "Opportunity" => ("006", "AAA"),
        "Lead" => ("00Q", "EAA"),
        _ => ("a00", "AAA"),
    };
    format!("{prefix}5g{:010}{suffix}", random.u64(..10_000_000_000))
}

/// The field names of a schema, read from its text.
#[derive(Debug, Default)]
struct Shape {
    fields: Vec<String>,
    header: Vec<String>,
}

impl Shape {
    fn of(schema: &Schema) -> Self {
        let names = |record: &Value| -> Vec<String> {
            record["fields"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|field| field["name"].as_str().map(str::to_owned))
                .collect()
        };
        let Ok(record) = serde_json::from_str::<Value>(schema.json()) else {
            return Self::default();
        };
        let header = record["fields"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|field| field["name"] == "ChangeEventHeader")
            .map(|field| names(&field["type"]))
            .unwrap_or_default();
        Self {
            fields: names(&record),
            header,
        }
    }

    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|name| name == field)
    }

    fn header_has(&self, field: &str) -> bool {
        self.header.iter().any(|name| name == field)
    }
}

/// The events that a channel delivers in place of one change, with the enriched values of each record:
/// a change of several records is un-merged, so that every record comes with its own (facts 3.5).
/// `values` holds, by record ID, the values of enriched fields; what is missing is null.
pub(super) fn enriched(
    schema: &Schema,
    fields: &Value,
    enriched_fields: &[String],
    values: &Map<String, Value>,
    defaults: &Defaults,
) -> Result<Vec<Vec<u8>>, EventError> {
    let header = &fields["ChangeEventHeader"];
    let change_type = header["changeType"].as_str().unwrap_or("UPDATE");
    if !matches!(change_type, "UPDATE" | "DELETE") {
        return Ok(Vec::new());
    }
    let mut events = Vec::new();
    for record_id in header["recordIds"].as_array().into_iter().flatten() {
        let mut event = fields.clone();
        // Fixed before the values are added, for enriched fields did not change.
        let mut own = header.as_object().cloned().unwrap_or_default();
        if change_type == "UPDATE" {
            let body = event.as_object_mut().ok_or(EventError::NotAnObject)?;
            body.remove("ChangeEventHeader");
            if !own.contains_key("changedFields") {
                let committed = defaults.now_ms - defaults.now_ms.rem_euclid(1000);
                add_changes(schema, &mut own, body, committed);
            }
        }
        own.insert("recordIds".to_owned(), json!([record_id]));
        let body = event.as_object_mut().ok_or(EventError::NotAnObject)?;
        body.insert("ChangeEventHeader".to_owned(), Value::Object(own));
        let known = record_id.as_str().and_then(|id| values.get(id));
        for field in enriched_fields {
            if !body.contains_key(field)
                && let Some(value) = known.and_then(|known| known.get(field))
            {
                body.insert(field.clone(), value.clone());
            }
        }
        events.push(encode(schema, &event, defaults)?);
    }
    Ok(events)
}
