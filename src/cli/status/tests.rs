use super::*;
use crate::event::OrgId;
use crate::store::{Refused, SubscriptionKey};

fn status() -> SubscriptionStatus {
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

/// What is shown at so many seconds, beside workers to which so much is refused.
fn view(seconds: u64, refused: &[&[&str]]) -> View {
    let worker = |(number, names): (usize, &&[&str])| Worker {
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
    };
    let fleet = Fleet {
        alive: false,
        org_id: None,
        refused: BTreeMap::new(),
    };
    View {
        bus: BUS,
        fleet: fleet.of(refused.iter().enumerate().map(worker).collect()),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    }
}

#[test]
fn what_is_refused_is_shown_with_the_reason_and_needs_a_person() {
    let view = view(100, &[&["orders", "new"], &["orders"]]);
    assert!(view.needs_a_person(&status()));
    assert_eq!(view.state(&status()), "live", "another worker can run it");
    let free = SubscriptionStatus {
        held: false,
        ..status()
    };
    assert_eq!(view.state(&free), "refused");
    assert_eq!(view.shown(&free).refused.len(), 2);
    let text = view.table(std::slice::from_ref(&free));
    assert!(text.contains("new     /event/Order__e  refused"), "{text}");
    let new: Vec<Shown> = view.unknown(&[free]).collect();
    assert_eq!((new.len(), new[0].name.as_str()), (1, "new"));
    let advice: Vec<String> = view.fleet.advice().collect();
    assert_eq!(advice.len(), 3);
    assert_eq!(advice[1], "orders is refused to worker.0: renamed");
}

#[test]
fn a_fleet_that_is_dead_needs_a_person_and_says_nothing_of_what_it_did_last() {
    let left = SubscriptionStatus {
        held: false,
        state: "blocked".into(),
        detail: Some("long ago".into()),
        ..status()
    };
    let dead = view(100, &[]);
    assert!(dead.needs_a_person(&left));
    let shown = dead.shown(&left);
    assert_eq!(
        (shown.state.as_str(), shown.detail),
        ("waiting for a worker", None)
    );
    assert!(!view(100, &[&[]]).needs_a_person(&left), "it is taken over");
    let paused = SubscriptionStatus {
        paused_at: Some(SystemTime::UNIX_EPOCH),
        ..left
    };
    assert!(!dead.needs_a_person(&paused));
}

#[test]
fn a_position_that_is_about_to_leave_the_bus_says_until_when_it_is_kept() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let with_time = SubscriptionStatus {
        position_time: Some(at(50)),
        ..status()
    };
    assert_eq!(BUS.advice(&with_time, at(849)), None);
    let advice = BUS.advice(&with_time, at(850)).unwrap();
    assert!(advice.contains("until 1970-01-01T00:17:30Z"), "{advice}");
    let advice = BUS.advice(&with_time, at(1050)).unwrap();
    assert!(advice.contains("lost already"), "{advice}");
    assert!(view(850, &[&[]]).needs_a_person(&with_time));
    // Of an older row only the time of its writing is known.
    assert!(BUS.leaving(&status(), at(890)).is_some());
    let none = SubscriptionStatus {
        position: None,
        ..with_time
    };
    assert!(BUS.leaving(&none, at(5000)).is_none());
}

#[test]
fn a_subscription_is_one_line() {
    let view = view(100, &[&[]]);
    let text = view.table(&[status()]);
    let line: Vec<&str> = text.lines().nth(1).unwrap().split("  ").collect();
    let cells: Vec<&str> = line
        .iter()
        .map(|cell| cell.trim())
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(
        cells,
        [
            "orders",
            "/event/Order__e",
            "live",
            "worker.1",
            "5 s",
            "00000000001204450000",
            "10 s",
            "16 min",
            "12",
            "11",
            "0",
            "0"
        ]
    );
    assert_eq!(view.shown(&status()).lag_seconds, Some(5.0));
}

#[test]
fn what_nobody_runs_says_what_it_waits_for() {
    let free = SubscriptionStatus {
        held: false,
        state: "blocked".into(),
        detail: Some("long ago".into()),
        ..status()
    };
    let view = view(100, &[&[]]);
    assert_eq!(view.state(&free), "waiting for a worker");
    assert!(advice(&free)[0].contains("`orgstream run`"));
    let paused = SubscriptionStatus {
        paused_at: Some(SystemTime::UNIX_EPOCH),
        ..free
    };
    assert_eq!(view.state(&paused), "paused by a person");
    assert!(advice(&paused)[0].contains("`orgstream resume orders`"));
    let unnamed = SubscriptionStatus {
        worker: None,
        ..status()
    };
    assert_eq!(owner(&unnamed).as_deref(), Some("0f9d5c1e"));
}

#[test]
fn blocked_parked_and_holes_need_a_person_and_say_where_to_look() {
    let view = view(100, &[&[]]);
    assert!(!view.needs_a_person(&status()));
    assert!(advice(&status()).is_empty());
    let blocked = SubscriptionStatus {
        state: "blocked".into(),
        detail: Some("sign-in refused".into()),
        ..status()
    };
    assert!(view.needs_a_person(&blocked));
    assert_eq!(advice(&blocked), ["orders is blocked: sign-in refused"]);
    let parked = SubscriptionStatus {
        parked: 1,
        holes: 2,
        ..status()
    };
    assert!(view.needs_a_person(&parked));
    let lines = advice(&parked);
    assert!(
        lines[0].contains("1 event parked") && lines[1].contains("2 holes"),
        "{lines:?}"
    );
}
