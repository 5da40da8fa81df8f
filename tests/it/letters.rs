//! Dead letters from end to end: what parks behind which, and what a person's retry or discard makes of it
//! (design 3.1, rule 7).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Daemon, Emulator, Hook, LOG, Reply, Store, account_update, configured, eventually, names,
    record, texts, webhook,
};

pub(crate) const ACCOUNTS: &str = "/data/AccountChangeEvent";

pub(crate) fn config(org: &Emulator, store: &Store, more: &str, handlers: &str) -> String {
    let subscription = format!("start = \"earliest\"\n{more}");
    configured(
        org,
        store,
        "",
        ("accounts", ACCOUNTS, &subscription),
        handlers,
    )
}

pub(crate) async fn publish(org: &Emulator, record_number: usize, name: &str) {
    org.publish(ACCOUNTS, &[account_update(&record(record_number), name)])
        .await;
}

/// Refuses what begins with `bad`, until it is mended.
pub(crate) struct Refusing {
    pub(crate) hook: Hook,
    mended: Arc<AtomicBool>,
    /// Milliseconds that each answer takes.
    pace: Arc<AtomicU64>,
}

impl Refusing {
    pub(crate) async fn start() -> Self {
        let mended = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(AtomicU64::new(0));
        let (is_mended, paced) = (mended.clone(), pace.clone());
        let hook = Hook::start(move |event, _| {
            #[expect(clippy::disallowed_methods, reason = "a slow answer is what is wanted")]
            std::thread::sleep(Duration::from_millis(paced.load(Ordering::Relaxed)));
            let bad = event["data"]["Name"]
                .as_str()
                .is_some_and(|name| name.starts_with("bad"));
            Reply::from(if bad && !is_mended.load(Ordering::Relaxed) {
                422
            } else {
                200
            })
        })
        .await;
        Self { hook, mended, pace }
    }

    pub(crate) fn mend(&self) {
        self.mended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn unmend(&self) {
        self.mended.store(false, Ordering::Relaxed);
    }

    fn slow(&self, pace: u64) {
        self.pace.store(pace, Ordering::Relaxed);
    }

    pub(crate) fn handler(&self) -> String {
        webhook(&self.hook.url(), "")
    }
}

/// `orgstream dead-letters …`: exit code, standard output, standard error.
pub(crate) async fn letters(config: &str, args: &[&str]) -> (i32, String, String) {
    let args = [&["dead-letters"], args].concat();
    Daemon::output(&args, config, &BTreeMap::new()).await
}

/// Waits until so many letters are open, and gives them by the event's number, oldest first.
pub(crate) async fn open(store: &Store, count: usize) -> Vec<i64> {
    eventually(&format!("{count} open dead letters"), async || {
        let all = store.parked().await;
        let open: Vec<i64> = all
            .iter()
            .filter(|p| p.state == "open")
            .map(|p| p.id)
            .collect();
        (open.len() == count).then_some(open)
    })
    .await
}

async fn delivered(org: &Emulator) -> u64 {
    org.state().await["deliveries"].as_u64().unwrap()
}

/// Names of a record's events that were accepted.
fn of_record(accepted: &[Value], number: usize) -> Vec<String> {
    let id = record(number);
    let of: Vec<Value> = accepted
        .iter()
        .filter(|event| event["subject"] == id.as_str())
        .cloned()
        .collect();
    names(&of)
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::support::Store::sqlite()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() {
                if let Some(store) = crate::support::Store::postgres().await {
                    super::$name(store).await;
                }
            })*
        }
    };
}
pub(crate) use on_both;

on_both! {
    what_follows_a_parked_event_parks_behind_it_and_is_handed_over_in_order_after_a_retry,
    discarding_the_head_lets_the_next_go,
    a_handler_that_took_an_event_never_sees_it_again_for_another_that_refused_it,
    a_drain_that_is_killed_half_way_goes_on_after_a_restart,
    at_max_parked_the_subscription_is_blocked_until_room_is_made,
    a_retry_that_is_refused_again_holds_on_and_says_so,
}

async fn what_follows_a_parked_event_parks_behind_it_and_is_handed_over_in_order_after_a_retry(
    store: Store,
) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    for name in ["bad 0", "a 1", "a 2"] {
        publish(&org, 1, name).await;
    }
    publish(&org, 2, "b 0").await;
    let daemon = Daemon::run(&config);
    let ids = open(&store, 3).await;
    let accepted = refusing.hook.accepts(1).await;
    assert_eq!(names(&accepted), ["b 0"], "others go on");
    let parked = store.parked().await;
    let reasons: Vec<&str> = parked.iter().map(|p| p.letter.reason.as_str()).collect();
    assert_eq!(reasons, ["rejected", "parked_behind", "parked_behind"]);
    assert!(
        parked[2]
            .letter
            .error
            .contains(&format!("dead letter {}", ids[0]))
            || parked[2].letter.error.contains("waits behind event"),
        "{}",
        parked[2].letter.error
    );
    // Everything is finished, though nothing of it is handled.
    store
        .until("accounts", "all finished", |s| s.finished == 4)
        .await;
    let before = delivered(&org).await;
    // The one behind does not go alone, and the command says which is in the way.
    let (code, out, err) = letters(&config, &["retry", &ids[2].to_string()]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(
        err.contains(&format!("{} waits behind {}", ids[2], ids[0])),
        "{err}"
    );

    refusing.mend();
    refusing.slow(30);
    let id = ids[0].to_string();
    let command = ["retry", id.as_str()];
    let retry = letters(&config, &command);
    let arrivals = async {
        for number in 3..20 {
            publish(&org, 1, &format!("a {number}")).await;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let ((code, out, err), ()) = tokio::join!(retry, arrivals);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(out, "1 handled");
    let accepted = refusing.hook.accepts(21).await;
    let mut expected = vec!["bad 0".to_owned()];
    expected.extend((1..20).map(|number| format!("a {number}")));
    assert_eq!(of_record(&accepted, 1), expected);
    open(&store, 0).await;
    assert_eq!(
        delivered(&org).await - before,
        17,
        "nothing is delivered twice"
    );
    assert_eq!(daemon.stop().await.1, 0);
    assert!(store.parked().await.iter().all(|p| p.state == "handled"));
}

async fn discarding_the_head_lets_the_next_go(store: Store) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    for name in ["bad 0", "a 1", "bad 2", "a 3"] {
        publish(&org, 1, name).await;
    }
    let daemon = Daemon::run(&config);
    let ids = open(&store, 4).await;
    let head = ids[0].to_string();
    let (code, _, err) = letters(&config, &["discard", &head]).await;
    assert!(code == 1 && err.contains("--yes"), "{err}");
    assert!(err.contains("3 events parked behind go"), "{err}");
    let (code, out, err) = letters(&config, &["discard", &head, "--yes", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer, json!({"discarded": [ids[0]], "released": 3}));
    // The next goes by itself, and the one after that is refused in its turn.
    assert_eq!(names(&refusing.hook.accepts(1).await), ["a 1"]);
    let parked = eventually("a refusal of the next bad one", async || {
        let parked = store.parked().await;
        (parked[2].letter.reason == "rejected").then_some(parked)
    })
    .await;
    let states: Vec<&str> = parked.iter().map(|p| p.state.as_str()).collect();
    assert_eq!(states, ["discarded", "handled", "open", "open"]);
    assert_eq!(parked[3].letter.reason, "parked_behind");
    let next = ids[2].to_string();
    let (code, _, err) = letters(&config, &["discard", &next, "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(names(&refusing.hook.accepts(2).await), ["a 1", "a 3"]);
    let (code, _, err) = letters(&config, &["retry", &next]).await;
    assert!(code == 1 && err.contains("discarded already"), "{err}");
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_handler_that_took_an_event_never_sees_it_again_for_another_that_refused_it(
    store: Store,
) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let handlers = format!("{LOG}{}", refusing.handler());
    let config = config(&org, &store, "", &handlers);
    let mut expected = Vec::new();
    let mut logged: Vec<Value> = Vec::new();
    for run in 0..3 {
        for name in ["bad", "a"] {
            let name = format!("{name} {run}");
            publish(&org, 1, &name).await;
            expected.push(name);
        }
        let mut daemon = Daemon::run(&config);
        daemon.handled(2).await;
        open(&store, expected.len()).await;
        store
            .until("accounts", "all finished", |s| {
                s.finished as usize == expected.len()
            })
            .await;
        logged.extend(daemon.kill());
    }
    refusing.mend();
    let daemon = Daemon::run(&config);
    let (code, out, err) = letters(&config, &["retry", "--reason", "rejected"]).await;
    assert_eq!((code, out.as_str()), (0, "1 handled"), "{err}");
    open(&store, 0).await;
    assert_eq!(names(&refusing.hook.accepted()), expected);
    let (events, code) = daemon.stop().await;
    logged.extend(events);
    assert_eq!(
        (names(&logged), code),
        (expected, 0),
        "the log gets each once"
    );
}

async fn a_drain_that_is_killed_half_way_goes_on_after_a_restart(store: Store) {
    const BEHIND: usize = 60;
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    let mut expected = vec!["bad".to_owned()];
    publish(&org, 1, "bad").await;
    for number in 0..BEHIND {
        let name = format!("a {number}");
        publish(&org, 1, &name).await;
        expected.push(name);
    }
    let daemon = Daemon::run(&config);
    open(&store, BEHIND + 1).await;
    refusing.mend();
    refusing.slow(20);
    let (code, out, err) = letters(&config, &["retry", "--all", "--no-wait"]).await;
    assert_eq!(code, 0, "{out}{err}");
    refusing.hook.accepts(BEHIND / 3).await;
    daemon.kill();
    assert!(refusing.hook.accepted().len() < BEHIND, "killed too late");
    refusing.slow(0);
    let daemon = Daemon::run(&config);
    open(&store, 0).await;
    let accepted = names(&refusing.hook.accepted());
    let mut seen = BTreeSet::new();
    let first: Vec<String> = accepted
        .iter()
        .filter(|name| seen.insert(*name))
        .cloned()
        .collect();
    assert_eq!(first, expected, "first hand-overs are in order");
    assert!(
        accepted.len() - first.len() <= 8,
        "{} repeats",
        accepted.len() - first.len()
    );
    assert_eq!(daemon.stop().await.1, 0);
}

async fn at_max_parked_the_subscription_is_blocked_until_room_is_made(store: Store) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "max_parked = 3", &refusing.handler());
    for number in 0..5 {
        publish(&org, number, &format!("bad {number}")).await;
    }
    publish(&org, 9, "good").await;
    let daemon = Daemon::run(&config);
    let ids = open(&store, 3).await;
    let blocked = store
        .until("accounts", "state blocked", |s| s.state == "blocked")
        .await;
    let detail = blocked.detail.unwrap();
    assert!(
        detail.contains("max_parked")
            && detail.contains("dead-letters list --subscription accounts"),
        "{detail}"
    );
    assert_eq!(
        names(&refusing.hook.accepts(1).await),
        ["good"],
        "others go on"
    );
    assert!(
        blocked.position.is_none() || blocked.finished < 6,
        "{:?}",
        blocked.finished
    );
    let (code, _, err) = letters(&config, &["discard", &ids[0].to_string(), "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    eventually("the next in its place", async || {
        let all = store.parked().await;
        let open = all.iter().filter(|p| p.state == "open").count();
        (all.len() == 4 && open == 3).then_some(())
    })
    .await;
    // Across a restart, too: what is parked is not parked twice.
    daemon.kill();
    let daemon = Daemon::run(&config);
    refusing.mend();
    let (code, _, err) = letters(&config, &["retry", "--all"]).await;
    assert_eq!(code, 0, "{err}");
    let status = store
        .until("accounts", "live again", |s| {
            s.state == "live" && s.finished >= 6
        })
        .await;
    // The last one was parked when there was room; or it came after its handler was mended.
    assert!(status.parked <= 1, "{}", status.parked);
    assert_eq!(daemon.stop().await.1, 0);
}

async fn a_retry_that_is_refused_again_holds_on_and_says_so(store: Store) {
    let org = Emulator::start().await;
    let refusing = Refusing::start().await;
    let config = config(&org, &store, "", &refusing.handler());
    for name in ["bad", "a"] {
        publish(&org, 1, name).await;
    }
    let daemon = Daemon::run(&config);
    let ids = open(&store, 2).await;
    let (code, out, err) = letters(&config, &["retry", "--all", "--json"]).await;
    assert_eq!(code, 1, "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["refused"][0]["id"], ids[0]);
    assert!(
        answer["refused"][0]["error"]
            .as_str()
            .unwrap()
            .contains("422")
    );
    assert_eq!(answer["behind"], json!([{"id": ids[1], "behind": ids[0]}]));
    let parked = store.parked().await;
    assert_eq!(parked[0].letter.attempts, 2);
    assert!(parked[0].retry_asked_at.is_none() && parked[1].retry_asked_at.is_some());
    refusing.mend();
    let (code, out, err) = letters(&config, &["retry", "--handler", "hook"]).await;
    assert_eq!((code, out.as_str()), (0, "2 handled"), "{err}");
    assert_eq!(names(&refusing.hook.accepted()), ["bad", "a"]);
    assert_eq!(daemon.stop().await.1, 0);
}

#[tokio::test]
async fn platform_events_park_behind_those_of_their_key_and_without_one_behind_none() {
    const ORDERS: &str = "/event/Order__e";
    for (key, parks) in [("key = \"OrderNumber__c\"\n", 2), ("", 1)] {
        let org = Emulator::start().await;
        let store = Store::sqlite();
        let mended = Arc::new(AtomicBool::new(false));
        let is_mended = mended.clone();
        let hook = Hook::start(move |event, _| {
            let bad = event["data"]["Status__c"] == "bad" && !is_mended.load(Ordering::Relaxed);
            Reply::from(if bad { 400 } else { 200 })
        })
        .await;
        let order =
            |number: &str, status: &str| json!({"OrderNumber__c": number, "Status__c": status});
        org.publish(
            ORDERS,
            &[order("A", "bad"), order("B", "b"), order("A", "a")],
        )
        .await;
        let subscription = format!("start = \"earliest\"\n{key}");
        let handler = webhook(&hook.url(), "");
        let config = configured(
            &org,
            &store,
            "",
            ("orders", ORDERS, &subscription),
            &handler,
        );
        let daemon = Daemon::run(&config);
        open(&store, parks).await;
        let mut expected = vec!["b"; 1];
        if parks == 1 {
            expected.push("a");
        }
        assert_eq!(
            texts(&hook.accepts(expected.len()).await, "Status__c"),
            expected
        );
        let parked = store.parked().await;
        let held: Vec<&str> = parked[0]
            .letter
            .record_ids
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(held, if parks == 2 { vec!["A"] } else { vec![] });
        mended.store(true, Ordering::Relaxed);
        let (code, _, err) = letters(&config, &["retry", "--all"]).await;
        assert_eq!(code, 0, "{err}");
        expected.push("bad");
        if parks == 2 {
            expected.push("a");
        }
        assert_eq!(texts(&hook.accepts(3).await, "Status__c"), expected);
        assert_eq!(daemon.stop().await.1, 0);
    }
}

#[tokio::test]
async fn whatever_is_refused_and_retried_meanwhile_records_stay_in_order() {
    const EVENTS: usize = 300;
    let org = Arc::new(Emulator::start().await);
    let store = Store::sqlite();
    // Each event is refused so many times; every refusal is a person's retry.
    let refusals: Arc<Mutex<BTreeMap<String, u8>>> = Arc::default();
    let counted = refusals.clone();
    let hook = Hook::start(move |event, _| {
        let name = event["data"]["Name"].as_str().unwrap().to_owned();
        let mut counted = counted.lock().unwrap();
        let left = counted
            .entry(name)
            .or_insert_with(|| match fastrand::u8(..12) {
                0 => 2,
                1 | 2 => 1,
                _ => 0,
            });
        let refused = *left > 0;
        *left = left.saturating_sub(1);
        Reply::from(if refused { 422 } else { 200 })
    })
    .await;
    let config = config(&org, &store, "concurrency = 4", &webhook(&hook.url(), ""));
    let daemon = Daemon::run(&config);
    let publisher = {
        let org = org.clone();
        tokio::spawn(async move {
            for number in 0..EVENTS {
                let mut event = account_update(&record(number % 5), &number.to_string());
                if number % 7 == 0 {
                    event["ChangeEventHeader"]["recordIds"] =
                        json!([record(number % 5), record((number + 2) % 5)]);
                }
                org.publish(ACCOUNTS, &[event]).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    eventually("every event to be accepted", async || {
        // Fails until the daemon has made the tables.
        letters(&config, &["retry", "--reason", "rejected", "--no-wait"]).await;
        (hook.accepted().len() >= EVENTS).then_some(())
    })
    .await;
    publisher.await.unwrap();
    let accepted = hook.accepted();
    assert_eq!(accepted.len(), EVENTS, "each once");
    let mut newest: BTreeMap<String, usize> = BTreeMap::new();
    for event in &accepted {
        let number: usize = event["data"]["Name"].as_str().unwrap().parse().unwrap();
        for id in event["data"]["ChangeEventHeader"]["recordIds"]
            .as_array()
            .unwrap()
        {
            let id = id.as_str().unwrap().to_owned();
            let before = newest.insert(id.clone(), number);
            assert!(before < Some(number), "{id}: {number} after {before:?}");
        }
    }
    open(&store, 0).await;
    assert_eq!(daemon.stop().await.1, 0);
}
