//! What the documents say about configuration is true.

use std::fs;
use std::path::Path;

use super::{env, load_env, load_text, show, signed_in};

#[test]
fn the_example_environment_is_a_configuration() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    let text = fs::read_to_string(path).unwrap();
    // What is commented out is an example too: it must at least name variables that exist.
    let pairs: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let loaded = load_env(&env(&pairs)).unwrap();
    assert_eq!(loaded.warnings, []);
    assert!(!loaded.config.subscriptions.is_empty());
}

#[test]
fn every_configuration_in_the_documents_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for document in ["README.md", "docs/CONFIGURATION.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let loaded = load_text(block, &signed_in(&[]));
            assert!(loaded.is_ok(), "{document}: {loaded:?}");
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

#[test]
fn every_variable_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/CONFIGURATION.md")).unwrap();
    let app: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(root.join("app.json")).unwrap()).unwrap();
    for name in app["env"].as_object().unwrap().keys() {
        assert!(
            document.contains(name),
            "{name} of app.json is not in docs/CONFIGURATION.md"
        );
    }
    for name in fs::read_to_string(root.join(".env.example"))
        .unwrap()
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
    {
        assert!(
            document.contains(name),
            "{name} of .env.example is not in docs/CONFIGURATION.md"
        );
    }
}

#[test]
fn every_key_and_its_default_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/CONFIGURATION.md")).unwrap();
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
        // A default stands in the row, unless the example sets the key or its type does.
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
        let value = value.trim_matches('"');
        if set.contains(&key) || value.starts_with('{') {
            continue;
        }
        assert!(
            rows.iter().any(|row| row.contains(&format!("`{value}`"))),
            "{key} is {value} where nothing is said, and docs/CONFIGURATION.md says: {rows:?}"
        );
    }
}
