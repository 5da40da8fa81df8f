//! What the documents say about configuration is true. [`super::reference`] compares the tables of
//! docs/CONFIGURATION.md, key by key.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{env, load_env};
use crate::app;
use crate::config::Subscriptions;
use crate::emulator::SigningKey;
use crate::handler::Registry;

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md, docs/*.md and the READMEs of examples.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    for folder in ["docs", "examples/handlers", "examples/sql"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    found
}

#[test]
fn the_example_environment_is_a_configuration() {
    let text = fs::read_to_string(root().join(".env.example")).unwrap();
    let pairs: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let loaded = load_env(&env(&pairs)).unwrap();
    assert_eq!(loaded.warnings, []);
    assert!(!loaded.config.subscriptions.is_empty());
}

/// As `orgstream config` loads it, handlers' keys checked: not one warning.
#[test]
fn every_configuration_in_the_documents_is_one() {
    let key = SigningKey::generate().unwrap();
    let env = env(&[
        ("SALESFORCE_CLIENT_ID", "3MVG9"),
        ("SALESFORCE_USERNAME", "daemon@example.com"),
        ("SALESFORCE_PRIVATE_KEY", &key.private_pem),
        ("DATABASE_URL", "postgres://localhost/app"),
        ("ORGSTREAM_WEB_TOKEN", "a token that is long enough"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("orgstream.toml");
    let mut seen = BTreeSet::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        // A block within a list is indented.
        for block in text.split("```toml\n").skip(1) {
            fs::write(&file, block.split("```").next().unwrap()).unwrap();
            let registry = Registry::builtin();
            let loaded = app::load_config(Some(&file), Subscriptions::Required, &env, &registry);
            let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", document.display()));
            assert_eq!(loaded.warnings, [], "{}", document.display());
            seen.insert(document.clone());
        }
    }
    assert!(seen.len() >= 5, "{seen:?}");
}
