//! A handler of one's own: `examples/custom_handler.rs` as a process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Daemon, Emulator, Store, account_update, configured, eventually, record};

/// The example; `None`, with a line that says so, where it was not built.
fn example() -> Option<PathBuf> {
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_orgstream"));
    let example = daemon.with_file_name("examples").join("custom_handler");
    if example.is_file() {
        return Some(example);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_EXAMPLES").is_none(),
        "{} is not there: cargo build --examples",
        example.display()
    );
    println!("skipped: examples are not built (cargo build --examples)");
    None
}

#[tokio::test]
async fn the_example_is_a_daemon_that_knows_its_handler() {
    let Some(example) = example() else { return };
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let subscription = (
        "accounts",
        "/data/AccountChangeEvent",
        "start = \"earliest\"",
    );
    let handler = format!(
        "[[subscription.handler]]\ntype = \"folder\"\npath = \"{}\"\n",
        folder.path().join("events").display()
    );
    let config = configured(&org, &store, "", subscription, &handler);
    let run = |command| Daemon::program(&example, &[command], &config, &BTreeMap::new());
    for command in ["check", "config"] {
        let mut daemon = run(command);
        let status = daemon.ended().await;
        assert_eq!(status.code(), Some(0), "{:?}", daemon.log());
    }
    let mut tester = Daemon::program(
        &example,
        &["handler-test", "folder", "--yes"],
        &config,
        &BTreeMap::new(),
    );
    let status = tester.ended().await;
    assert_eq!(status.code(), Some(0), "{:?}", tester.log());
    std::fs::remove_dir_all(folder.path().join("events")).unwrap();
    let events: Vec<Value> = (0..20)
        .map(|n| account_update(&record(n), &n.to_string()))
        .collect();
    org.publish("/data/AccountChangeEvent", &events).await;
    let daemon = run("run");
    let kept = eventually("20 files", async || {
        let files = std::fs::read_dir(folder.path().join("events")).ok()?;
        let files = files.map(|file| file.unwrap().path());
        let whole = files.filter(|file| file.extension().is_some_and(|end| end == "json"));
        Some(whole.collect::<Vec<_>>()).filter(|files| files.len() >= 20)
    })
    .await;
    assert_eq!(daemon.stop().await.1, 0);
    let names: BTreeSet<String> = kept
        .iter()
        .map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let event: Value = serde_json::from_str(&text).unwrap();
            event["data"]["Name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, (0..20).map(|n| n.to_string()).collect());
}
