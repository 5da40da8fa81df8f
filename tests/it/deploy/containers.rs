//! The image and the compose file. Nothing here builds or runs them: what is checked is that they name what is there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{command_of, text, words, yaml};
use crate::support::daemon::project;

/// Instructions of the Dockerfile, continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let joined = text("Dockerfile").replace("\\\n", " ");
    let lines = joined
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap();
            (word.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

/// What the instructions of this word say.
fn all<'a>(instructions: &'a [(String, String)], word: &str) -> Vec<&'a str> {
    let same = instructions.iter().filter(|(each, _)| each == word);
    same.map(|(_, rest)| rest.as_str()).collect()
}

#[test]
fn the_image_is_built_from_what_its_context_has() {
    let ignored = text(".dockerignore");
    let given: BTreeSet<&str> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    assert!(ignored.lines().any(|line| line == "*"));
    let instructions = instructions();
    let mut copied = BTreeSet::new();
    for copy in all(&instructions, "COPY") {
        let mut words: Vec<&str> = copy.split_whitespace().collect();
        if words[0].starts_with("--from=") {
            continue;
        }
        words.pop(); // where to
        copied.extend(words);
    }
    assert_eq!(
        copied, given,
        ".dockerignore gives what the Dockerfile copies"
    );
    for path in copied {
        assert!(project().join(path).exists(), "{path}");
    }
}

/// Every file that the code includes as it is built lies in a folder that the image has.
#[test]
fn the_image_has_what_the_code_includes() {
    let mut folders = vec![project().join("src")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.to_string_lossy().contains("test") {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            for piece in source
                .split("include_str!(")
                .chain(source.split("include_bytes!("))
                .skip(1)
            {
                let Some(named) = piece
                    .split('"')
                    .nth(1)
                    .filter(|name| name.starts_with("../"))
                else {
                    continue;
                };
                let file = path.parent().unwrap().join(named).canonicalize();
                let Ok(file) = file else { continue };
                let root = project().canonicalize().unwrap();
                let top = file.strip_prefix(root).unwrap().iter().next().unwrap();
                let top = top.to_string_lossy().into_owned();
                assert!(
                    text(".dockerignore")
                        .lines()
                        .any(|line| line == format!("!{top}")),
                    "{} includes {named}, which the image is built without",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn the_image_runs_the_daemon_as_nobody_in_particular() {
    let instructions = instructions();
    let stages = all(&instructions, "FROM");
    assert_eq!(stages.len(), 2, "{stages:?}");
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    let rust = manifest["package"]["rust-version"].as_str().unwrap();
    assert!(
        stages[0].contains(&format!("rust:{rust}")),
        "{} has Rust {rust}",
        stages[0]
    );
    let user = all(&instructions, "USER");
    assert!(
        user.last()
            .is_some_and(|user| user.parse::<u32>().is_ok_and(|id| id > 0)),
        "{user:?}"
    );
    let [command] = all(&instructions, "CMD")[..] else {
        panic!("one CMD");
    };
    let command: Value = serde_json::from_str(command).unwrap();
    assert_eq!(command_of(&words(&command)), "run");
    // Heroku puts a shell in front of commands.
    assert!(all(&instructions, "ENTRYPOINT").is_empty());
    // The health check asks where the metrics are served, and the image has what it asks with.
    let environment = all(&instructions, "ENV").join(" ");
    let address = environment.split("ORGSTREAM_METRICS_ADDR=").nth(1).unwrap();
    let address = address.split_whitespace().next().unwrap();
    let [check] = all(&instructions, "HEALTHCHECK")[..] else {
        panic!("one HEALTHCHECK");
    };
    assert!(
        check.contains(&format!("http://{address}/healthz")),
        "{check}"
    );
    assert!(
        all(&instructions, "RUN")
            .iter()
            .any(|run| run.contains(" curl "))
    );
}

#[test]
fn the_compose_file_runs_what_there_is() {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_object().unwrap();
    let mut commands = BTreeSet::new();
    for (name, service) in services {
        // Everything that a service waits for, is beside or keeps is there.
        for (other, _) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(other), "{name} waits for {other}");
            let waits_for_health = service["depends_on"][other]["condition"] == "service_healthy";
            assert!(
                !waits_for_health || services[other]["healthcheck"].is_object(),
                "{other}"
            );
        }
        if let Some(beside) = service["network_mode"].as_str() {
            assert!(
                services.contains_key(beside.strip_prefix("service:").unwrap()),
                "{name}"
            );
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let volume = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(
                compose["volumes"].as_object().unwrap().contains_key(volume),
                "{volume}"
            );
        }
        if service["image"] != "orgstream" {
            continue;
        }
        let words = words(&service["command"]);
        let command = command_of(&words).to_owned();
        if command == "run" {
            assert_eq!(service["stop_grace_period"], "30s", "{name}");
        }
        // The status page has a port of this machine alone, and its health check asks that port.
        if command == "web" {
            let address = service["environment"]["ORGSTREAM_WEB_ADDR"]
                .as_str()
                .unwrap();
            let port = address.rsplit(':').next().unwrap();
            assert_eq!(service["ports"][0], format!("127.0.0.1:{port}:{port}"));
            let check = service["healthcheck"]["test"].to_string();
            assert!(check.contains(&format!(":{port}/healthz")), "{check}");
        }
        for variable in service["environment"].as_object().into_iter().flatten() {
            assert!(variable.1.is_string(), "{name}: {variable:?}");
        }
        commands.insert(command);
    }
    let expected = ["emulator", "run", "web"].map(str::to_owned);
    assert_eq!(commands, BTreeSet::from(expected));
}

/// `docker compose up` leaves the demo out, and `docker compose up demo` leaves out what needs an org.
#[test]
fn the_demo_and_the_real_thing_share_nothing() {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_object().unwrap();
    let is_demo = |name: &str| services[name]["profiles"] == serde_json::json!(["demo"]);
    let url = |name: &str| services[name]["environment"]["DATABASE_URL"].clone();
    for (name, service) in services {
        assert_eq!(name.starts_with("demo"), is_demo(name), "{name}");
        for (other, _) in service["depends_on"].as_object().into_iter().flatten() {
            assert_eq!(is_demo(name), is_demo(other), "{name} waits for {other}");
        }
    }
    assert_eq!(url("demo"), url("demo-worker"));
    assert_eq!(url("web"), url("worker"));
    assert_ne!(url("demo"), url("web"));
    // The worker of the demo finds the org where it listens.
    let emulator = words(&services["demo-org"]["command"]).join(" ");
    let environment = &services["demo-worker"]["environment"];
    for (flag, variable) in [
        ("login", "SALESFORCE_LOGIN_URL"),
        ("pubsub", "SALESFORCE_PUBSUB_ENDPOINT"),
    ] {
        let port = environment[variable]
            .as_str()
            .unwrap()
            .rsplit(':')
            .next()
            .unwrap();
        assert!(
            emulator.contains(&format!("--{flag}-port {port}")),
            "{emulator}"
        );
    }
    assert_eq!(
        environment["SALESFORCE_CLIENT_ID"],
        orgstream::emulator::DEFAULT_CLIENT_ID
    );
    assert_eq!(
        environment["SALESFORCE_CLIENT_SECRET"],
        orgstream::emulator::DEFAULT_CLIENT_SECRET
    );
}
