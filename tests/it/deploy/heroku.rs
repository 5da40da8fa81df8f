//! What Heroku reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{command_of, text, words, yaml};

/// The process types of the Procfile and what each runs.
fn procfile() -> BTreeMap<String, Vec<String>> {
    let line = |line: &str| {
        let (name, command) = line.split_once(':').expect("a process type and a command");
        (name.to_owned(), words(&Value::from(command)))
    };
    text("Procfile").lines().map(line).collect()
}

fn app() -> Value {
    serde_json::from_str(&text("app.json")).unwrap()
}

/// Fails where an object has a key that Heroku does not know.
fn knows(value: &Value, known: &[&str], what: &str) {
    for key in value
        .as_object()
        .unwrap_or_else(|| panic!("{what} is no object"))
        .keys()
    {
        assert!(known.contains(&key.as_str()), "{key} of {what}");
    }
}

#[test]
fn each_process_runs_its_command() {
    let processes = procfile();
    let commands: BTreeMap<&str, &str> = processes
        .iter()
        .map(|(name, words)| (name.as_str(), command_of(words)))
        .collect();
    let expected = [("release", "migrate"), ("web", "web"), ("worker", "run")];
    assert_eq!(commands, BTreeMap::from(expected));
    for words in processes.values() {
        assert_eq!(words[0], "./target/release/orgstream");
        assert_eq!(words.len(), 2, "{words:?}");
    }
}

/// The rules of Heroku's "app.json Schema", as far as they touch what ours has.
#[test]
fn app_json_has_only_what_heroku_knows() {
    let app = app();
    let top = [
        "name",
        "description",
        "keywords",
        "website",
        "repository",
        "logo",
        "success_url",
        "scripts",
        "env",
        "formation",
        "addons",
        "buildpacks",
        "environments",
        "stack",
        "image",
    ];
    knows(&app, &top, "app.json");
    let name = app["name"].as_str().unwrap();
    assert!(!name.is_empty() && name.len() <= 30, "{name}");
    assert!(
        app["keywords"]
            .as_array()
            .unwrap()
            .iter()
            .all(Value::is_string)
    );
    assert!(["heroku-22", "heroku-24"].contains(&app["stack"].as_str().unwrap()));
    for buildpack in app["buildpacks"].as_array().unwrap() {
        knows(buildpack, &["url"], "a buildpack");
        assert!(buildpack["url"].is_string());
    }
    for addon in app["addons"].as_array().unwrap() {
        let plan = addon.as_str().unwrap();
        assert!(
            plan.split_once(':')
                .is_some_and(|(_, plan)| !plan.is_empty()),
            "{plan}"
        );
    }
    let sizes = ["eco", "basic", "standard-1x", "standard-2x"];
    for (name, process) in app["formation"].as_object().unwrap() {
        assert!(
            procfile().contains_key(name),
            "{name} is not in the Procfile"
        );
        knows(process, &["quantity", "size"], name);
        assert!(
            process["quantity"]
                .as_u64()
                .is_some_and(|quantity| quantity > 0)
        );
        assert!(sizes.contains(&process["size"].as_str().unwrap()), "{name}");
    }
    for (name, variable) in app["env"].as_object().unwrap() {
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(is_name), "{name}");
        knows(
            variable,
            &["description", "value", "required", "generator"],
            name,
        );
        assert!(
            variable["description"]
                .as_str()
                .is_some_and(|text| text.ends_with('.')),
            "{name}"
        );
        assert!(variable.get("value").is_none_or(Value::is_string), "{name}");
        assert!(
            variable.get("required").is_none_or(Value::is_boolean),
            "{name}"
        );
        assert!(
            variable
                .get("generator")
                .is_none_or(|kind| kind == "secret"),
            "{name}"
        );
        let ways = ["value", "generator"]
            .iter()
            .filter(|key| variable.get(**key).is_some());
        assert!(ways.count() < 2, "{name}");
    }
}

/// Whoever presses the Button has a status page that opens, without thinking of a token.
#[test]
fn the_button_makes_all_secrets_of_ours() {
    let app = app();
    for name in [
        "ORGSTREAM_ENCRYPTION_KEY",
        "ORGSTREAM_HASH_KEY",
        "ORGSTREAM_WEB_TOKEN",
    ] {
        assert_eq!(app["env"][name]["generator"], "secret", "{name}");
    }
    let processes: BTreeSet<&String> = app["formation"].as_object().unwrap().keys().collect();
    assert_eq!(
        processes,
        BTreeSet::from([&"web".to_owned(), &"worker".to_owned()])
    );
}

#[test]
fn the_container_build_runs_what_the_slug_runs() {
    let manifest = yaml("heroku.yml");
    knows(
        &manifest,
        &["setup", "build", "release", "run"],
        "heroku.yml",
    );
    knows(&manifest["setup"], &["addons", "config"], "setup");
    knows(&manifest["build"], &["docker", "config"], "build");
    knows(&manifest["release"], &["image", "command"], "release");
    let images = manifest["build"]["docker"].as_object().unwrap();
    assert!(
        images.values().all(|file| file == "Dockerfile"),
        "{images:?}"
    );

    let built = |image: &Value| images.contains_key(image.as_str().unwrap());
    let command = |process: &Value| match process {
        Value::String(_) => words(process),
        _ => {
            assert!(built(&process["image"]), "{process}");
            words(&Value::from(words(&process["command"]).join(" ")))
        }
    };
    let mut commands = BTreeMap::from([("release".to_owned(), command(&manifest["release"]))]);
    for (name, process) in manifest["run"].as_object().unwrap() {
        commands.insert(name.clone(), command(process));
    }
    let slug = procfile();
    assert_eq!(
        commands.keys().collect::<Vec<_>>(),
        slug.keys().collect::<Vec<_>>()
    );
    for (name, words) in &commands {
        assert_eq!(command_of(words), command_of(&slug[name]), "{name}");
    }
    let plan = &manifest["setup"]["addons"][0]["plan"];
    assert_eq!(
        *plan,
        app()["addons"][0],
        "one plan in app.json and heroku.yml"
    );
}

/// Both builds leave SQLite out, with the same flags.
#[test]
fn both_builds_for_heroku_leave_sqlite_out() {
    let flags = "--no-default-features --features handlers";
    assert_eq!(yaml("heroku.yml")["build"]["config"]["CARGO_FLAGS"], flags);
    let config = text("RustConfig");
    let line = format!("RUST_CARGO_BUILD_FLAGS=\"--release --locked {flags}\"");
    assert!(config.lines().any(|one| one == line), "{config}");
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    let handlers = manifest["features"]["handlers"].as_array().unwrap();
    assert!(
        !handlers
            .iter()
            .any(|feature| feature.as_str() == Some("sqlite"))
    );
}
