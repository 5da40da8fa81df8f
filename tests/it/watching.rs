//! `orgstream status --watch` and `orgstream top`, as programs meet them: without a terminal.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Daemon, Emulator, Store, eventually};

#[tokio::test]
async fn watching_prints_a_line_a_turn_for_programs_and_ends_well_with_ctrl_c() {
    let org = Emulator::start().await;
    let store = Store::sqlite();
    let config = format!(
        "{}\n[store]\nurl = \"{}\"\n[[subscription]]\nname = \"accounts\"\ntopic = \"Account\"\n\
         [[subscription.handler]]\ntype = \"log\"\n",
        org.salesforce(),
        store.url
    );
    let daemon = Daemon::run(&config);
    daemon.logged(&["stream open"]).await;
    let args = ["status", "--watch", "1", "--json", "--overview"];
    let mut watch = Daemon::command(&args, &config, &BTreeMap::new());
    let turns = eventually("three turns", async || {
        let turns: Vec<Value> = watch.events();
        (turns.len() >= 3).then_some(turns)
    })
    .await;
    assert_eq!(turns[0]["subscriptions"][0]["name"], "accounts");
    assert_eq!(turns[0]["workers"][0]["runs"][0], "accounts");
    watch.signal("INT");
    assert_eq!(watch.ended().await.code(), Some(0));

    let one = ["status", "--json", "--subscription", "accounts"];
    let (code, out, err) = Daemon::output(&one, &config, &BTreeMap::new()).await;
    let rows: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (0, 1), "{out}{err}");
    let none = ["status", "--subscription", "orders"];
    let (code, _, err) = Daemon::output(&none, &config, &BTreeMap::new()).await;
    assert_eq!(code, 1);
    assert!(err.contains("no subscription is called `orders`"), "{err}");
    let (_, out, _) = Daemon::output(&["status"], &config, &BTreeMap::new()).await;
    assert!(out.contains("WORKER") && out.contains("RUNS"), "{out}");
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn watching_goes_on_while_the_database_is_away() {
    let config = "[store]\nurl = \"postgres://u:hunter2@127.0.0.1:1/x\"\ntimeout = \"1s\"\n";
    let mut watch = Daemon::command(&["status", "--watch", "1"], config, &BTreeMap::new());
    eventually("it was told twice", async || {
        let log = watch.log();
        let told = log
            .iter()
            .filter(|line| line.contains("no answer, asking again"));
        (told.count() >= 2).then_some(())
    })
    .await;
    assert!(!watch.log().join("\n").contains("hunter2"));
    watch.signal("INT");
    assert_eq!(watch.ended().await.code(), Some(0));
}

#[tokio::test]
async fn without_a_terminal_top_names_what_to_use_instead() {
    let (code, out, err) = Daemon::output(&["top"], "", &BTreeMap::new()).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("`orgstream status --watch`"), "{err}");
}
