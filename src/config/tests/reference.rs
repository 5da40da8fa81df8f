//! `docs/CONFIGURATION.md` names every key and every variable, and none that there is not.
//!
//! The loader says which keys it knows when it is given one that it does not; an environment that remembers what
//! it was asked for says which variables are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::documents::root;
use super::{env, load_env, load_text, show, signed_in};
use crate::config::{Env, HandlerConfig};
use crate::handler::Registry;

/// A key that no section has, and that is like none.
const NO_KEY: &str = "zzzzzzzzzzzz";

fn reference() -> String {
    fs::read_to_string(root().join("docs/CONFIGURATION.md")).unwrap()
}

/// A row of a table: its keys, its variables, and what else it says.
struct Row {
    keys: Vec<String>,
    variables: Vec<String>,
}

/// Texts within backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The tables of the reference, by section: a heading's name, or the type of a handler that the paragraph before
/// the table begins with.
fn tables() -> BTreeMap<String, Vec<Row>> {
    let types: BTreeSet<String> = Registry::builtin()
        .type_names()
        .map(str::to_owned)
        .collect();
    let mut section = String::new();
    let mut has_variables = false;
    // A table of variables that stand for no key.
    let mut has_keys = true;
    let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for line in reference().lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches('`').to_owned();
        } else if let Some(name) = line
            .strip_prefix('`')
            .and_then(|line| line.split('`').next())
        {
            if types.contains(name) {
                section = name.to_owned();
            }
        } else if line.starts_with("| key") {
            has_keys = true;
            has_variables = line.contains("| variable");
        } else if line.starts_with("| variable") {
            has_keys = false;
        } else if line.starts_with("| `") || line.starts_with("| |") {
            let cells: Vec<&str> = line.split(" | ").collect();
            let first = quoted(cells[0]);
            // `reconnect.initial`, `.max`
            let parent = first
                .first()
                .and_then(|key| key.split_once('.'))
                .map(|(parent, _)| parent);
            let keys = first
                .iter()
                .map(|key| match (key.strip_prefix('.'), parent) {
                    (Some(rest), Some(parent)) => format!("{parent}.{rest}"),
                    _ => key.clone(),
                });
            if !has_keys {
                tables.entry(section.clone()).or_default().push(Row {
                    keys: Vec::new(),
                    variables: first,
                });
                continue;
            }
            let variables = if has_variables {
                quoted(line.split('|').nth(2).unwrap())
            } else {
                Vec::new()
            };
            tables.entry(section.clone()).or_default().push(Row {
                keys: keys.collect(),
                variables,
            });
        }
    }
    tables
}

fn documented_keys(section: &str) -> BTreeSet<String> {
    let tables = tables();
    let rows = tables
        .get(section)
        .unwrap_or_else(|| panic!("no section {section}"));
    rows.iter()
        .flat_map(|row| row.keys.clone())
        .filter(|key| !key.is_empty())
        .collect()
}

/// The keys that a message lists.
fn listed(message: &str, after: &str) -> BTreeSet<String> {
    let list = message
        .split(after)
        .nth(1)
        .unwrap_or_else(|| panic!("no {after:?} in {message}"));
    let list = list.lines().next().unwrap();
    list.split(", ")
        .map(|key| key.trim_matches('`').to_owned())
        .collect()
}

/// The keys of the table in which `text` has [`NO_KEY`].
fn known(text: &str) -> BTreeSet<String> {
    let error = load_text(text, &signed_in(&[])).unwrap_err().to_string();
    listed(&error, "known here: ")
}

/// The same, those that are tables themselves replaced by their keys.
fn known_keys(heading: &str, rest: &str, tables: &[&str]) -> BTreeSet<String> {
    let with = |line: &str| match heading {
        "" => format!("{line}\n{rest}"),
        _ => format!("{rest}\n{heading}\n{line}\n"),
    };
    let mut keys = known(&with(&format!("{NO_KEY} = 1")));
    for table in tables {
        assert!(keys.remove(*table), "no {table} in {heading}: {keys:?}");
        let inner = known(&with(&format!("{table} = {{ {NO_KEY} = 1 }}")));
        keys.extend(inner.into_iter().map(|key| format!("{table}.{key}")));
    }
    keys
}

const SUBSCRIPTION: &str = "[[subscription]]\nname = \"a\"\ntopic = \"Order__e\"\n";
const HANDLER: &str = "[[subscription.handler]]\ntype = \"log\"\n";

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let both = format!("{SUBSCRIPTION}{HANDLER}");
    let sections = known_keys("", &both, &[]);
    for section in &sections {
        let tables: &[&str] = match section.as_str() {
            "subscription" => continue,
            "salesforce" => &["allocation_retry", "blocked_retry", "reconnect"],
            _ => &[],
        };
        let heading = format!("[{section}]");
        if !reference().contains(&format!("\n## `{heading}`\n")) {
            let top = documented_keys("Top level");
            assert!(
                top.contains(section),
                "docs/CONFIGURATION.md does not name {section}"
            );
            continue;
        }
        let known = known_keys(&heading, &both, tables);
        assert_eq!(documented_keys(&heading), known, "{heading}");
    }
    for key in documented_keys("Top level") {
        assert!(sections.contains(&key), "there is no {key}");
    }
    // The first one, whose handler follows.
    let text = format!("{SUBSCRIPTION}{NO_KEY} = 1\n{HANDLER}");
    let mut known = self::known(&text);
    assert!(known.remove("handler"));
    assert_eq!(documented_keys("[[subscription]]"), known);
}

/// Those that all types have.
#[test]
fn every_key_of_handlers_in_general_is_documented() {
    let documented = documented_keys("[[subscription.handler]]");
    // What a type does not know goes to the type, so the loader lists none of them: each is tried with a value of the
    // wrong kind, and has to be the one that is complained about.
    for key in &documented {
        let line = match key.split_once('.') {
            // It is looked at only where there is something to hash.
            Some((table, "hash_key")) => {
                format!("{table} = {{ hash = [\"B\"], hash_key = {{ a = 1 }} }}")
            }
            Some((table, inner)) => format!("{table} = {{ {inner} = {{ a = 1 }} }}"),
            None => format!("{key} = {{ a = 1 }}"),
        };
        let log = if key == "type" {
            ""
        } else {
            "type = \"log\"\n"
        };
        let text = format!("{SUBSCRIPTION}[[subscription.handler]]\n{log}{line}\n");
        let Err(error) = load_text(&text, &signed_in(&[])) else {
            panic!("{key} may be anything");
        };
        let error = error.to_string();
        let last = key.rsplit('.').next().unwrap();
        assert!(
            error.contains(last) && !error.contains("unknown key"),
            "{key}: {error}"
        );
    }
    for table in ["retry", "fields"] {
        let text = format!(
            "{SUBSCRIPTION}[[subscription.handler]]\ntype = \"log\"\n{table} = {{ {NO_KEY} = 1 }}\n"
        );
        let inner: BTreeSet<String> = known(&text)
            .into_iter()
            .map(|key| format!("{table}.{key}"))
            .collect();
        let prefix = format!("{table}.");
        let said = documented
            .iter()
            .filter(|key| key.starts_with(&prefix))
            .cloned();
        assert_eq!(said.collect::<BTreeSet<_>>(), inner);
    }
}

/// Those of each type.
#[test]
fn every_key_of_each_type_of_handler_is_documented() {
    let registry = Registry::builtin();
    for kind in registry.type_names() {
        let mut config = HandlerConfig::new(kind);
        config
            .options
            .insert(NO_KEY.to_owned(), toml::Value::Integer(1));
        let Err(error) = registry.build(&config) else {
            panic!("{kind} takes {NO_KEY}");
        };
        let said = error.to_string();
        let known = match said.split("has the keys ").nth(1) {
            Some(_) => listed(
                said.split(';')
                    .find(|part| part.contains("has the keys "))
                    .unwrap(),
                "has the keys ",
            ),
            None => {
                assert!(said.contains("has no keys of its own"), "{kind}: {said}");
                BTreeSet::new()
            }
        };
        if known.is_empty() {
            assert!(!tables().contains_key(kind), "{kind} has no keys");
            continue;
        }
        assert_eq!(documented_keys(kind), known, "{kind}");
    }
}

/// A default stands in the row of its key.
#[test]
fn every_default_is_documented() {
    let document = reference();
    let pairs = [
        ("ORGSTREAM_TOPICS", "Account"),
        ("ORGSTREAM_METRICS_ADDR", "127.0.0.1:9090"),
    ];
    let shown = show(&load_env(&signed_in(&pairs)).unwrap().config);
    for (key, value) in shown.lines().filter_map(|line| line.split_once(" = ")) {
        let rows: Vec<&str> = document
            .lines()
            .filter(|line| line.starts_with(&format!("| `{key}")))
            .collect();
        assert!(!rows.is_empty(), "{key} is not in docs/CONFIGURATION.md");
        // The example sets the key, or its type does.
        let set = [
            "metrics_addr",
            "auth",
            "client_id",
            "username",
            "private_key",
            "name",
            "topic",
            "type",
        ];
        let values: Vec<&str> = match value.strip_prefix('{') {
            Some(_) => value.split('"').skip(1).step_by(2).collect(),
            None => vec![value.trim_matches('"')],
        };
        for value in values.iter().filter(|_| !set.contains(&key)) {
            assert!(
                rows.iter().any(|row| row.contains(&format!("`{value}`"))),
                "{key} is {value} where nothing is said, and docs/CONFIGURATION.md says: {rows:?}"
            );
        }
    }
}

/// Remembers which variables it was asked for.
struct Asked<'a> {
    inner: &'a dyn Env,
    names: Mutex<BTreeSet<String>>,
}

impl Env for Asked<'_> {
    fn raw(&self, name: &str) -> Option<String> {
        self.names.lock().unwrap().insert(name.to_owned());
        self.inner.raw(name)
    }
}

/// Variables that the loader asks for, whatever way to sign in is chosen.
fn asked() -> BTreeSet<String> {
    let ways: [&[(&str, &str)]; 4] = [
        &[
            ("SALESFORCE_CLIENT_ID", "a"),
            ("SALESFORCE_USERNAME", "b"),
            ("SALESFORCE_PRIVATE_KEY", "c"),
        ],
        &[
            ("SALESFORCE_CLIENT_ID", "a"),
            ("SALESFORCE_CLIENT_SECRET", "b"),
        ],
        &[
            ("SALESFORCE_CLIENT_ID", "a"),
            ("SALESFORCE_REFRESH_TOKEN", "b"),
        ],
        &[
            ("SALESFORCE_ACCESS_TOKEN", "a"),
            ("SALESFORCE_INSTANCE_URL", "https://a.my.salesforce.com"),
        ],
    ];
    let mut names = BTreeSet::new();
    for way in ways {
        let inner = env(way);
        let asked = Asked {
            inner: &inner,
            names: Mutex::default(),
        };
        // Whether it is a whole configuration does not matter.
        let text = format!("{SUBSCRIPTION}{HANDLER}fields = {{ hash = [\"a\"] }}\n");
        let _ = load_text(&text, &asked);
        let _ = load_env(&asked);
        names.extend(asked.names.into_inner().unwrap());
    }
    names
}

/// Names of variables within double quotes in the code, tests left out: those that are read elsewhere than by the
/// loader.
fn in_code(folder: &Path, names: &mut BTreeSet<String>) {
    const BEGINNINGS: [&str; 4] = ["ORGSTREAM_", "OTEL_", "KAFKA_", "DATABASE_"];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && file != "tests" {
            in_code(&path, names);
        } else if file.ends_with(".rs") && !file.contains("tests") {
            let source = fs::read_to_string(&path).unwrap();
            // Tests within a file are its end.
            let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let literals = source.split('"').filter(|text| {
                let is_name = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
                BEGINNINGS.iter().any(|begin| text.starts_with(begin))
                    && text.bytes().all(is_name)
                    && !text.ends_with('_')
            });
            names.extend(literals.map(str::to_owned));
        }
    }
}

/// Not variables that are read: an error of Kafka's, and what programs of `exec` are told.
const NOT_READ: [&str; 3] = [
    "KAFKA_STORAGE_ERROR",
    "ORGSTREAM_SUBSCRIPTION",
    "ORGSTREAM_HANDLER",
];

fn read_by_the_code() -> BTreeSet<String> {
    let mut names = asked();
    in_code(&root().join("src"), &mut names);
    names.retain(|name| !NOT_READ.contains(&name.as_str()));
    names
}

#[test]
fn every_variable_that_is_read_is_documented() {
    let document = reference();
    for name in read_by_the_code() {
        // Aliases are named as such.
        let alias = ["SF_", "SFDC_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix));
        let name = alias.map_or(name.clone(), |rest| format!("SALESFORCE_{rest}"));
        assert!(
            document.contains(&format!("`{name}`")),
            "docs/CONFIGURATION.md does not name {name}"
        );
    }
}

#[test]
fn every_variable_stands_beside_its_key() {
    let asked = asked();
    for (section, rows) in tables() {
        for row in rows {
            for name in &row.variables {
                let known = asked.contains(name) || read_by_the_code().contains(name);
                let of_others = ["MALLOC_ARENA_MAX", "PORT", "DYNO"].contains(&name.as_str());
                assert!(known || of_others, "{name} of {section} is not read");
            }
            if section == "[salesforce]" {
                let expected: Vec<String> = row
                    .keys
                    .iter()
                    .map(|key| format!("SALESFORCE_{}", key.to_uppercase().replace('.', "_")))
                    .collect();
                assert_eq!(row.variables, expected);
            }
        }
    }
}

/// Names of variables of ours anywhere in a text.
fn mentioned(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_word(c))
        .filter(|word| {
            ["ORGSTREAM_", "SALESFORCE_", "OTEL_"]
                .iter()
                .any(|begin| word.starts_with(begin))
        })
        .filter(|word| {
            !word.ends_with('_') && !word.contains("_REQUIRE_") && !word.contains("_TEST_")
        })
        .filter(|word| !word.starts_with("ORGSTREAM_BENCH") && !word.starts_with("ORGSTREAM_CHAOS"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_document_and_no_deploy_file_names_a_variable_that_is_not_read() {
    let read = read_by_the_code();
    let mut files = vec![];
    for name in [
        "README.md",
        ".env.example",
        "Dockerfile",
        "app.json",
        "docker-compose.yml",
        "heroku.yml",
        "deploy/orgstream.service",
        "deploy/orgstream-web.service",
        "deploy/prometheus/prometheus.yml",
    ] {
        files.push(root().join(name));
    }
    let documents = fs::read_dir(root().join("docs")).unwrap();
    files.extend(documents.map(|entry| entry.unwrap().path()));
    for file in files {
        for name in mentioned(&fs::read_to_string(&file).unwrap()) {
            let known = read.contains(&name) || NOT_READ.contains(&name.as_str());
            assert!(
                known,
                "{} names {name}, which nothing reads",
                file.display()
            );
        }
    }
}

/// What a Heroku user may want to set is asked for by the Button; what is left out has a reason.
#[test]
fn app_json_has_every_variable_that_a_heroku_user_needs() {
    let app: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(root().join("app.json")).unwrap()).unwrap();
    let given: BTreeSet<String> = app["env"].as_object().unwrap().keys().cloned().collect();
    let left_out = |name: &str| {
        // Aliases.
        name.starts_with("SF_") || name.starts_with("SFDC_")
            // Set by Heroku or by add-ons.
            || name.starts_with("KAFKA_") || ["DATABASE_URL", "DYNO", "PORT"].contains(&name)
            // A ready token ends within hours, files need a disk, and what concerns time has good defaults.
            || ["ACCESS_TOKEN", "INSTANCE_URL", "ORG_ID", "PRIVATE_KEY_FILE", "CA_FILE"]
                .iter().any(|key| name == format!("SALESFORCE_{key}"))
            || ["_INITIAL", "_MAX", "_INTERVAL", "_TIMEOUT", "_LIMIT", "_AGE", "_RETENTION", "_WARNING"]
                .iter().any(|end| name.starts_with("SALESFORCE_") && name.ends_with(end))
            // The web dyno listens where Heroku says, behind its router.
            || matches!(name, "ORGSTREAM_WEB_ADDR" | "ORGSTREAM_WEB_BEHIND_PROXY")
            // Of OTLP what most need; and what a build says of itself.
            || (name.starts_with("OTEL_") && !given.contains(name))
            || name == "ORGSTREAM_COMMIT"
    };
    for name in read_by_the_code() {
        assert!(
            given.contains(&name) || left_out(&name),
            "{name} is not in app.json"
        );
    }
    let read = read_by_the_code();
    for name in &given {
        assert!(
            read.contains(name) || name == "MALLOC_ARENA_MAX",
            "app.json asks for {name}, which nothing reads"
        );
    }
}
