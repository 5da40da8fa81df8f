//! The schemas of test events.

use std::path::Path;

use serde_json::{Value, json};

use crate::avro::Schema;
use crate::emulator::sample::{ACCOUNTS, CONTACTS, ORDERS, SCHEMAS};
use crate::event::{Topic, TopicKind};

/// Events of one kind.
pub(super) struct Kind {
    pub(super) schema: Schema,
    /// Its own fields that may hold a text.
    pub(super) texts: Vec<String>,
    pub(super) longs: Vec<String>,
    pub(super) doubles: Vec<String>,
}

impl Kind {
    /// Reads a schema, and gives it the field that orders its events where it has none of that name.
    pub(super) fn new(mut schema: Value, key: Option<&str>) -> Result<Self, String> {
        let mut texts = Vec::new();
        let mut longs = Vec::new();
        let mut doubles = Vec::new();
        let mut has_key = key.is_none();
        let fields = schema["fields"].as_array_mut();
        let fields = fields.ok_or("the schema has no fields")?;
        for field in fields.iter() {
            let Some(name) = field["name"].as_str() else {
                continue;
            };
            if Some(name) == key {
                has_key = true;
                continue;
            }
            // References and fields of the platform's own have rules that a test event would break.
            let plain =
                !name.ends_with("Id") && !name.ends_with("Date") && name != "SystemModstamp";
            let of = match &field["type"] {
                Value::Array(union) if union.len() == 2 && union[0] == "null" => union[1].as_str(),
                _ => None,
            };
            match of {
                Some("string") if plain => texts.push(name.to_owned()),
                Some("long") if plain => longs.push(name.to_owned()),
                Some("double") if plain => doubles.push(name.to_owned()),
                _ => {}
            }
        }
        if let Some(key) = key.filter(|_| !has_key) {
            fields.push(json!({"name": key, "type": ["null", "string"]}));
        }
        let schema = Schema::parse(&schema.to_string())
            .map_err(|error| format!("the schema of the test events cannot be used: {error}"))?;
        Ok(Self {
            schema,
            texts,
            longs,
            doubles,
        })
    }
}

/// The schemas of a topic's events: of a channel several.
pub(super) fn schema_texts(topic: &Topic, folder: Option<&Path>) -> Vec<Value> {
    let ours = |name: &str| {
        let of = SCHEMAS.iter().find(|(topic, _)| *topic == name);
        of.and_then(|(_, text)| serde_json::from_str::<Value>(text).ok())
    };
    match topic.kind() {
        TopicKind::ChangeEventChannel => {
            [ACCOUNTS, CONTACTS].into_iter().filter_map(ours).collect()
        }
        TopicKind::PlatformEventChannel => ours(ORDERS).into_iter().collect(),
        kind => {
            let name = topic.name();
            let theirs = folder.and_then(|folder| in_folder(folder, name));
            let stand_in = || {
                let like = if kind == TopicKind::ChangeEvent {
                    ACCOUNTS
                } else {
                    ORDERS
                };
                let mut schema = ours(like)?;
                schema["name"] = json!(name);
                Some(schema)
            };
            let found = theirs.or_else(|| ours(topic.as_str())).or_else(stand_in);
            found.into_iter().collect()
        }
    }
}

/// The last schema of this record in a folder of schemas. What cannot be read is none.
fn in_folder(folder: &Path, record: &str) -> Option<Value> {
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let mut files: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "avsc"))
        .collect();
    files.sort();
    let read = |path| serde_json::from_str::<Value>(&std::fs::read_to_string(path).ok()?).ok();
    let schemas = files.into_iter().rev().filter_map(read);
    schemas.into_iter().find(|schema| schema["name"] == record)
}
