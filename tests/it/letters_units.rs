//! Dead letters of transactions, of side replays, and of handlers that are gone (design 3.1, rules 7, 9, 13
//! and 14).

use serde_json::json;

use crate::grouping::{self, ALL, accepted, told, transaction, transaction_from, whole};
use crate::letters::{Refusing, config, letters, on_both, open, publish};
use crate::letters_kept::{UNKNOWN, account_schema};
use crate::replay::{marked, replayed, two};
use crate::support::{Daemon, Emulator, Hook, LOG, Reply, Store, eventually, names, webhook};

on_both! {
    a_transaction_of_which_one_event_cannot_be_decoded_is_refused_and_given_up_whole,
    a_side_replay_parks_what_it_cannot_decode_for_its_own_handlers,
    what_a_side_replay_brought_says_so_when_it_is_tried_again,
    a_letter_whose_handler_is_configured_no_more_is_not_tried_and_stands_in_nobodys_way,
}

/// What people want of open letters, and why they are open.
async fn wanted(store: &Store) -> Vec<(bool, String)> {
    let parked = store.parked().await;
    let open = parked.into_iter().filter(|stored| stored.state == "open");
    open.map(|stored| (stored.retry_asked_at.is_some(), stored.letter.reason))
        .collect()
}

fn rests(reasons: &[&str]) -> Vec<(bool, String)> {
    let one = |reason: &&str| (false, (*reason).to_owned());
    reasons.iter().map(one).collect()
}

async fn a_transaction_of_which_one_event_cannot_be_decoded_is_refused_and_given_up_whole(
    store: Store,
) {
    let org = Emulator::start().await;
    org.fault(
        json!({"rpc": "Subscribe", "kind": "corrupt_payload", "times": 1, "after_events": 1}),
    )
    .await;
    transaction(&org, "a", 3).await;
    // Of another record, or it would be behind the first.
    transaction_from(&org, "b", 1, 10).await;
    let hook = Hook::start(|_, _| Reply::from(200)).await;
    let config = grouping::config(&org, &store, ALL, "", &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    let ids = open(&store, 3).await;
    let reasons = ["parked_behind", "undecodable", "parked_behind"];
    assert_eq!(wanted(&store).await, rests(&reasons));
    // Of all, and of one that is whole itself: it ends, and nobody asks for anything any more.
    let of_one = ids[0].to_string();
    for args in [["retry", "--all"], ["retry", &of_one]] {
        let (code, out, err) = letters(&config, &args).await;
        assert_eq!(code, 1, "{out}{err}");
        assert!(err.contains("cannot be decoded"), "{err}");
        eventually("none is asked for", async || {
            (wanted(&store).await == rests(&reasons)).then_some(())
        })
        .await;
    }
    let refused = store.parked().await;
    assert_eq!(refused[1].letter.attempts, 0, "nobody was given it");
    // What would be left of it must not pass for the whole.
    let (code, out, err) = letters(&config, &["discard", &ids[1].to_string(), "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("3 events discarded"), "{out}");
    assert!(err.contains("2 events of the same transactions"), "{err}");
    open(&store, 0).await;
    transaction(&org, "c", 1).await;
    hook.accepts(2).await;
    assert_eq!(accepted(&hook), [whole("b", 1), whole("c", 1)]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn a_transaction_whose_schema_is_gone_is_refused_whole_and_rests() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let hook = Hook::start(|event, _| match told(event).starts_with("bad") {
        true => Reply::from(422),
        false => Reply::from(200),
    })
    .await;
    let config = grouping::config(&org, &store, ALL, "", &webhook(&hook.url(), ""));
    transaction(&org, "bad", 3).await;
    let daemon = Daemon::run(&config);
    let ids = open(&store, 3).await;
    // That of the first event is one that the org does not know.
    assert_eq!(UNKNOWN, "dW5rbm93bnVua25vd251bm");
    store
        .execute(
            "update orgstream.dead_letter set schema_id = 'dW5rbm93bnVua25vd251bm' \
             where id = (select min(id) from orgstream.dead_letter)",
        )
        .await;
    let (code, out, err) = letters(&config, &["retry", &ids[0].to_string()]).await;
    assert_eq!(code, 1, "{out}{err}");
    // Why they were parked stays; why they could not go is the error.
    eventually("a refusal of all", async || {
        let refused = |error: &str| error.contains("(schema_refused)");
        let parked = store.parked().await;
        let all = parked.iter().all(|one| refused(&one.letter.error));
        all.then_some(())
    })
    .await;
    assert_eq!(wanted(&store).await, rests(&["rejected"; 3]));
    assert_eq!(hook.came().len(), 1, "none of it was handed over");
    let (_, text) = account_schema();
    org.post("/schemas", &json!({"schema": text, "schema_id": UNKNOWN}))
        .await;
    let (code, out, err) = letters(&config, &["retry", &ids[2].to_string()]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert_eq!(hook.came().len(), 2);
    assert_eq!(wanted(&store).await, rests(&["rejected"; 3]));
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn what_comes_again_and_cannot_be_decoded_is_parked_for_those_that_have_not_had_it() {
    let Some(store) = Store::postgres().await else {
        return;
    };
    let org = Emulator::start().await;
    let hook = Hook::closed().await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    publish(&org, 1, "a").await;
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    store.execute("delete from orgstream.schema").await;
    org.fault(json!({"rpc": "GetSchema", "kind": "error", "status": 5}))
        .await;
    let daemon = Daemon::run(&config);
    let letter = store.parks(1).await.swap_remove(0).letter;
    assert_eq!(
        (letter.reason.as_str(), letter.handler.as_deref()),
        ("schema_refused", Some("hook"))
    );
    org.clear_faults().await;
    hook.open();
    let (code, out, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(names(&hook.accepts(1).await), ["a"]);
    let (events, code) = daemon.stop().await;
    assert_eq!((events.len(), code), (0, 0), "one handler had it before");
}

async fn a_side_replay_parks_what_it_cannot_decode_for_its_own_handlers(store: Store) {
    let org = Emulator::start().await;
    let hook = Hook::start(|_, _| Reply::from(200)).await;
    let config = two(&org, &store, &hook, "");
    let mut daemon = Daemon::run(&config);
    publish(&org, 1, "a").await;
    publish(&org, 1, "b").await;
    publish(&org, 2, "c").await;
    hook.accepts(3).await;
    daemon.handled(3).await;
    org.fault(
        json!({"rpc": "Subscribe", "kind": "corrupt_payload", "times": 1, "after_events": 0}),
    )
    .await;
    let command = replayed(&config, &["--from", "earliest", "--handler", "hook"]).await;
    assert_eq!(command["progress"]["parked"], json!(1), "{command}");
    let parked = store.parks(1).await.swap_remove(0);
    let letter = &parked.letter;
    assert_eq!(
        (
            letter.reason.as_str(),
            letter.handler.as_deref(),
            letter.replayed
        ),
        ("undecodable", Some("hook"), true)
    );
    // The other handler had it long ago, and nothing of its records waits for it.
    publish(&org, 1, "d").await;
    let events = daemon.handled(4).await;
    assert_eq!(marked(&events).join(" "), "a b c d");
    let (code, out, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 1, "{out}{err}");
    let (events, code) = daemon.stop().await;
    assert_eq!((events.len(), code), (4, 0));
}

async fn what_a_side_replay_brought_says_so_when_it_is_tried_again(store: Store) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    refusing.mend();
    let config = two(&org, &store, &refusing.hook, "");
    let daemon = Daemon::run(&config);
    publish(&org, 1, "bad").await;
    refusing.hook.accepts(1).await;
    refusing.unmend();
    let command = replayed(&config, &["--from", "earliest", "--handler", "hook"]).await;
    assert_eq!(command["progress"]["parked"], json!(1), "{command}");
    open(&store, 1).await;
    let (_, out, _) = letters(&config, &["export", "--all"]).await;
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["event"]["replayed"], true);
    refusing.mend();
    let (code, out, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let accepted = refusing.hook.accepts(2).await;
    assert_eq!(marked(&accepted), ["bad", "bad*"]);
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_letter_whose_handler_is_configured_no_more_is_not_tried_and_stands_in_nobodys_way(
    store: Store,
) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let both = config(&org, &store, "", &format!("{LOG}{}", refusing.handler()));
    publish(&org, 1, "bad").await;
    let mut daemon = Daemon::run(&both);
    let id = open(&store, 1).await[0].to_string();
    daemon.handled(1).await;
    assert_eq!(daemon.stop().await.1, 0);
    let log_only = config(&org, &store, "", LOG);
    let mut daemon = Daemon::run(&log_only);
    publish(&org, 1, "a").await;
    assert_eq!(names(&daemon.handled(1).await), ["a"]);
    let (code, out, err) = letters(&log_only, &["retry", &id]).await;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(
        err.contains(&format!(
            "{id} is not tried: `accounts` has no handler `hook`"
        )),
        "{err}"
    );
    let asked = store.parked().await[0].retry_asked_at;
    assert_eq!(asked, None, "nobody is asked for what nobody can do");
    // Asked for all the same, by one who still has the old configuration, it rests until the handler is back.
    let (code, _, err) = letters(&both, &["retry", &id, "--no-wait"]).await;
    assert_eq!(code, 0, "{err}");
    publish(&org, 1, "b").await;
    assert_eq!(names(&daemon.handled(2).await), ["a", "b"]);
    open(&store, 1).await;
    assert_eq!(daemon.stop().await.1, 0);
    refusing.mend();
    let daemon = Daemon::run(&both);
    eventually("the event", async || {
        (names(&refusing.hook.accepted()).first()? == "bad").then_some(())
    })
    .await;
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
}
