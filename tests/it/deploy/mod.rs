//! The files under `deploy/` and those that hosts read say what the code does.

mod alerts;
mod containers;
mod dashboard;
mod expressions;
mod heroku;
mod units;

use std::fs;

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::daemon::project;

/// A file of the project as text.
fn text(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file of the project with one document, as JSON has it.
fn yaml(path: &str) -> Value {
    let mut documents = YamlLoader::load_from_str(&text(path)).unwrap();
    assert_eq!(documents.len(), 1, "{path}");
    json(documents.remove(0))
}

/// Merges (`<<`) are carried out: a key of one's own comes before a merged one, an earlier merged one before a later.
fn json(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Null | Yaml::BadValue | Yaml::Alias(_) => Value::Null,
        Yaml::Boolean(value) => value.into(),
        Yaml::Integer(value) => value.into(),
        Yaml::Real(text) => text.parse::<f64>().unwrap().into(),
        Yaml::String(text) => text.into(),
        Yaml::Array(list) => list.into_iter().map(json).collect(),
        Yaml::Hash(hash) => {
            let mut own = Map::new();
            let mut merged = Vec::new();
            for (key, value) in hash {
                let key = key.into_string().expect("a key that is text");
                match (key.as_str(), json(value)) {
                    ("<<", Value::Array(many)) => merged.extend(many),
                    ("<<", one) => merged.push(one),
                    (_, value) => {
                        own.insert(key, value);
                    }
                }
            }
            for from in merged {
                for (key, value) in from.as_object().expect("a mapping to merge") {
                    own.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            Value::Object(own)
        }
    }
}

/// The texts of a list, or the words of a text.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(list) => list
            .iter()
            .map(|one| one.as_str().expect("a list of texts").to_owned())
            .collect(),
        other => panic!("{other} is no command"),
    }
}

/// The command that a process of these words runs: what follows the program's name.
fn command_of(words: &[String]) -> &str {
    let program = words[0].rsplit('/').next().unwrap();
    assert_eq!(program, "orgstream", "{words:?}");
    &words[1]
}
