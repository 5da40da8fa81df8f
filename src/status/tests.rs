use super::*;
use crate::store::{AllocationReading, Refused, SubscriptionKey, Worker as Process};

pub(crate) fn status() -> SubscriptionStatus {
    SubscriptionStatus {
        key: SubscriptionKey {
            org_id: OrgId::parse("00D5g000004emu1EAA").unwrap(),
            name: "orders".into(),
            topic: "Order__e".parse().unwrap(),
        },
        state: "live".into(),
        detail: None,
        state_at: None,
        holder: Some("0f9d5c1e-1111-4222-8333-444455556666".into()),
        held: true,
        worker: Some("worker.1".into()),
        paused_at: None,
        epoch: 3,
        position: Some("00000000001204450000".parse().unwrap()),
        position_time: None,
        position_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(90)),
        caught_up_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(95)),
        received: 12,
        finished: 11,
        parked: 0,
        holes: 0,
    }
}

const BUS: Bus = Bus {
    retention: Duration::from_secs(1000),
    warning: Duration::from_secs(200),
};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What is shown at so many seconds, beside workers to which so much is refused.
pub(crate) fn overview(
    stored: &[SubscriptionStatus],
    seconds: u64,
    refused: &[&[&str]],
) -> Overview {
    let worker = |(number, names): (usize, &&[&str])| LivingWorker {
        worker: Process {
            holder: number.to_string(),
            name: format!("worker.{number}"),
            version: "0".into(),
            subscriptions: Vec::new(),
            refused: names
                .iter()
                .map(|name| Refused {
                    name: (*name).to_owned(),
                    topic: "/event/Order__e".into(),
                    why: "renamed".into(),
                })
                .collect(),
        },
        started_at: at(40),
        seen_at: at(99),
    };
    let living = refused.iter().enumerate().map(worker).collect();
    Overview::of(stored, living, None, BUS, at(seconds))
}

fn one(stored: SubscriptionStatus, seconds: u64, refused: &[&[&str]]) -> Subscription {
    overview(&[stored], seconds, refused)
        .subscriptions
        .remove(0)
}

#[test]
fn what_is_refused_is_shown_with_the_reason_and_needs_a_person() {
    let refused: &[&[&str]] = &[&["orders", "new"], &["orders"]];
    let held = one(status(), 100, refused);
    assert!(held.needs_a_person);
    assert_eq!(held.state, "live", "another worker can run it");
    let free = SubscriptionStatus {
        held: false,
        ..status()
    };
    let all = overview(std::slice::from_ref(&free), 100, refused);
    let [orders, new] = &all.subscriptions[..] else {
        panic!("{all:?}");
    };
    assert_eq!(
        (orders.state.as_str(), orders.refused.len()),
        ("refused", 2)
    );
    assert_eq!(
        (new.name.as_str(), new.topic.as_str(), new.state.as_str()),
        ("new", "/event/Order__e", "refused")
    );
    assert_eq!(new.advice, ["new is refused to worker.0: renamed"]);
    assert!(
        orders
            .advice
            .ends_with(&["orders is refused to worker.1: renamed".to_owned()])
    );
    assert_eq!(all.workers[0].refused, ["orders", "new"]);
}

#[test]
fn a_fleet_that_is_dead_needs_a_person_and_says_nothing_of_what_it_did_last() {
    let left = SubscriptionStatus {
        held: false,
        state: "blocked".into(),
        detail: Some("long ago".into()),
        ..status()
    };
    let dead = one(left.clone(), 100, &[]);
    assert!(dead.needs_a_person);
    assert_eq!(
        (dead.state.as_str(), dead.detail),
        ("waiting for a worker", None)
    );
    assert!(
        !one(left.clone(), 100, &[&[]]).needs_a_person,
        "it is taken over"
    );
    let paused = SubscriptionStatus {
        paused_at: Some(SystemTime::UNIX_EPOCH),
        ..left
    };
    assert!(!one(paused, 100, &[]).needs_a_person);
}

#[test]
fn a_position_that_is_about_to_leave_the_bus_says_until_when_it_is_kept() {
    let with_time = SubscriptionStatus {
        position_time: Some(at(50)),
        ..status()
    };
    let seen = |seconds| one(with_time.clone(), seconds, &[&[]]);
    let well = seen(849);
    assert!(well.advice.is_empty() && !well.kept_is_short && !well.needs_a_person);
    assert_eq!(well.kept_seconds, Some(201.0));
    let short = seen(850);
    assert!(short.needs_a_person && short.kept_is_short);
    let advice = &short.advice[0];
    assert!(advice.contains("until 1970-01-01T00:17:30Z"), "{advice}");
    let over = seen(1060);
    assert_eq!((over.kept(), over.kept_seconds), (None, Some(-10.0)));
    assert!(over.advice[0].contains("lost already"), "{over:?}");
    // Of an older row only the time of its writing is known.
    assert!(one(status(), 890, &[&[]]).kept_is_short);
    let none = SubscriptionStatus {
        position: None,
        ..with_time.clone()
    };
    assert!(!one(none, 5000, &[&[]]).kept_is_short);
}

#[test]
fn what_nobody_runs_says_what_it_waits_for() {
    let free = SubscriptionStatus {
        held: false,
        state: "blocked".into(),
        detail: Some("long ago".into()),
        ..status()
    };
    let waiting = one(free.clone(), 100, &[&[]]);
    assert_eq!(waiting.state, "waiting for a worker");
    assert!(waiting.advice[0].contains("`orgstream run`"));
    let paused = SubscriptionStatus {
        paused_at: Some(SystemTime::UNIX_EPOCH),
        ..free
    };
    let paused = one(paused, 100, &[&[]]);
    assert_eq!(paused.state, "paused by a person");
    assert!(paused.advice[0].contains("`orgstream resume orders`"));
    let unnamed = SubscriptionStatus {
        worker: None,
        ..status()
    };
    assert_eq!(owner(&unnamed).as_deref(), Some("0f9d5c1e"));
}

#[test]
fn blocked_parked_and_holes_need_a_person_and_say_where_to_look() {
    let well = one(status(), 100, &[&[]]);
    assert!(!well.needs_a_person && well.advice.is_empty());
    assert_eq!(well.lag, Some(Duration::from_secs(5)));
    let blocked = SubscriptionStatus {
        state: "blocked".into(),
        detail: Some("sign-in\nrefused".into()),
        ..status()
    };
    let blocked = one(blocked, 100, &[&[]]);
    assert!(blocked.needs_a_person);
    assert_eq!(blocked.advice, ["orders is blocked: sign-in refused"]);
    let parked = SubscriptionStatus {
        parked: 1,
        holes: 2,
        ..status()
    };
    let parked = one(parked, 100, &[&[]]);
    assert!(parked.needs_a_person);
    let lines = &parked.advice;
    assert!(
        lines[0].contains("1 event parked") && lines[1].contains("2 holes"),
        "{lines:?}"
    );
}

#[test]
fn every_state_that_is_shown_is_listed() {
    let free = SubscriptionStatus {
        held: false,
        ..status()
    };
    let paused = SubscriptionStatus {
        paused_at: Some(at(1)),
        ..free.clone()
    };
    for (stored, refused) in [
        (status(), &[&[][..]][..]),
        (free.clone(), &[&[]]),
        (free, &[&["orders"]]),
        (paused, &[&[]]),
    ] {
        let state = one(stored, 100, refused).state;
        assert!(STATES.contains(&state.as_str()), "{state}");
    }
}

#[test]
fn a_worker_runs_what_it_holds_and_not_what_it_held() {
    let mut row = status();
    row.holder = Some("0".into());
    let left = SubscriptionStatus {
        held: false,
        ..row.clone()
    };
    assert_eq!(overview(&[row], 100, &[&[]]).workers[0].runs, ["orders"]);
    assert!(overview(&[left], 100, &[&[]]).workers[0].runs.is_empty());
}

/// The keys of `orgstream status --json` are part of the interface: none may go, or mean something else.
#[test]
fn json_has_the_keys_that_are_promised() {
    let json = serde_json::to_value(one(status(), 100, &[&[]])).unwrap();
    let mut keys: Vec<&str> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "advice",
            "caught_up_at",
            "detail",
            "epoch",
            "finished",
            "held",
            "holder",
            "holes",
            "in_flight",
            "kept_is_short",
            "kept_seconds",
            "kept_until",
            "lag_seconds",
            "name",
            "needs_a_person",
            "org_id",
            "owner",
            "parked",
            "paused_at",
            "position",
            "position_at",
            "position_time",
            "received",
            "refused",
            "state",
            "state_at",
            "topic"
        ]
    );
    assert_eq!(json["lag_seconds"], 5.0);
    assert_eq!(json["caught_up_at"], "1970-01-01T00:01:35Z");
}

#[test]
fn of_the_allocation_the_last_reading_counts_and_is_told_in_percent() {
    let reading = |remaining| AllocationReading {
        at: at(remaining),
        max: 10_000,
        remaining,
    };
    let of = |readings: &[_]| Allocation::of(readings, at(2_600));
    assert_eq!(of(&[]), None);
    let last = of(&[reading(1_000), reading(2_500)]).unwrap();
    assert_eq!((last.remaining, last.used_percent()), (2_500, 75));
    // One of yesterday says nothing of now.
    let old = Allocation::of(&[reading(2_500)], at(2_500 + 3_601));
    assert_eq!(old, None);
    let none = AllocationReading {
        max: 0,
        ..reading(0)
    };
    assert_eq!(of(&[none]).unwrap().used_percent(), 100);
}
