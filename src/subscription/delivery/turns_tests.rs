//! A delivery by itself: that it rests while there is nothing that it may do, and looks where it has to.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use secrecy::SecretString;
use tempfile::TempDir;

use super::*;
use crate::app::Org;
use crate::config::{Checks, StoreConfig, Subscriptions};
use crate::event::{EventIdentity, OrgId};
use crate::salesforce::limits::Limits as OrgLimits;
use crate::store::{LetterSummary, Placed, SubscriptionKey};
use crate::subscription::letter_loader::{LetterLoader, LoadedLetter};
use crate::subscription::parking::Done;
use crate::subscription::sleepless::Moment;
use crate::subscription::{LeaseKeeper, Samples, Shared, lease_clock};

/// A delivery without handlers, whose stream brings nothing, and what has to outlive it.
async fn delivery(
    lease_until: Option<Moment>,
    stop: &CancellationToken,
) -> (Delivery, (LeaseKeeper, TempDir)) {
    let env: BTreeMap<String, String> = [
        ("ORGSTREAM_TOPICS", "/data/AccountChangeEvent"),
        ("SALESFORCE_ACCESS_TOKEN", "00D!token"),
        ("SALESFORCE_INSTANCE_URL", "https://org.my.salesforce.com"),
        ("DATABASE_URL", "sqlite::memory:"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let loaded = crate::config::load(None, Subscriptions::Required, &env, &Checks::NONE).unwrap();
    let mut config = loaded.config;
    let folder = tempfile::tempdir().unwrap();
    config.store = StoreConfig {
        url: SecretString::from(format!("sqlite://{}/store.db", folder.path().display())),
        ..config.store
    };
    let store = crate::store::open(&config.store).await.unwrap();
    store.migrate().await.unwrap();
    let org = Org::prepare(&config.salesforce, None).unwrap();
    let subscription = config.subscriptions.swap_remove(0);
    let key = SubscriptionKey {
        org_id: OrgId::parse("00D58000000arpq").unwrap(),
        name: subscription.name.clone(),
        topic: subscription.topic.clone(),
    };
    store.bind_org(&key.org_id).await.unwrap();
    let names = [key.name.clone()];
    let taken = store.take_over(&key, "holder", Duration::from_secs(60), &names, false);
    let lease = taken.await.unwrap().lease;
    let (keeper, clock) = lease_clock(lease_until);
    let schemas = Arc::new(org.schemas(None, &config.schemas_dir));
    let forms = Arc::new(Forms::new(&subscription));
    let streams = Streams {
        forms: forms.clone(),
        shared: Shared {
            limits: OrgLimits::new(&config.salesforce, org.tokens.clone()).unwrap(),
            bus: org.bus.clone(),
            store: store.clone(),
            schemas: schemas.clone(),
            salesforce: config.salesforce,
            org_id: key.org_id.clone(),
            host: String::new(),
            samples: Samples::default(),
        },
        config: subscription,
        lease: lease.clone(),
        clock: clock.clone(),
    };
    let delivery = Delivery::new(Setup {
        store: store.clone(),
        forms,
        ordering: Ordering::Record,
        begins_after: None,
        handlers: Vec::new(),
        finished_ahead: Vec::new(),
        letters: LettersSetup {
            open: Vec::new(),
            settled: Vec::new(),
            nothing_again: false,
            resume_after: None,
            max_parked: 10,
            sealed: false,
            loader: LetterLoader {
                store,
                schemas,
                maker: streams.maker(false),
            },
        },
        behind_since: SystemTime::now(),
        assignment: Assignment {
            clock,
            asked: watch::channel(0).1,
        },
        streams,
        resumed_after: None,
        resumed_event: None,
        given_up: mpsc::unbounded_channel().1,
        age: PositionAge::new((Duration::from_secs(1), Duration::ZERO), None),
        in_flight: Arc::new(InFlight::new(10, 1 << 20)),
        stream_state: watch::channel(State::Live).1,
        stream_changes: Changes::default(),
        shown_state: watch::channel(State::Live).0,
        observer: Observer::new("accounts", []),
        stop: stop.clone(),
        lease,
    });
    (delivery, (keeper, folder))
}

/// Turns of the loop within a second and a half, letters being due to be looked at all the while.
async fn turns(mut delivery: Delivery) -> usize {
    delivery.letters.put_off([1]);
    let turns = delivery.turns.clone();
    // Until an item comes, which none does, nothing is drained.
    let (_items, coming) = mpsc::unbounded_channel();
    let limit = Duration::from_millis(1500);
    let ended = tokio::time::timeout(limit, Box::pin(delivery.run(coming))).await;
    assert!(ended.is_err(), "{ended:?}");
    turns.load(Relaxed)
}

#[tokio::test]
async fn while_no_letter_may_be_tried_the_delivery_does_not_turn_for_those_that_wait() {
    let now = Moment::now();
    let stopped = CancellationToken::new();
    stopped.cancel();
    for (until, stop) in [
        (None, CancellationToken::new()),
        (Some(now), CancellationToken::new()),
        (None, stopped),
    ] {
        let lapsed = until.is_some();
        let stops = stop.is_cancelled();
        let (delivery, _kept) = delivery(until, &stop).await;
        let turns = turns(delivery).await;
        assert!(
            turns < 50,
            "{turns} turns; lapsed {lapsed}, stopping {stops}"
        );
    }
}

#[tokio::test]
async fn a_letter_that_turns_out_to_be_settled_has_the_store_looked_at() {
    let stop = CancellationToken::new();
    let (mut delivery, _kept) = delivery(None, &stop).await;
    // What the store says of the first look, at the beginning.
    let one = LetterSummary {
        placed: Placed { place: 7, id: 7 },
        subscription: "accounts".to_owned(),
        handler: None,
        identity: EventIdentity::from_stored("a"),
        state: "open".to_owned(),
        reason: "undecodable".to_owned(),
        error: String::new(),
        record_ids: Vec::new(),
        unit: None,
        asked: true,
        replay_id: None,
        bytes: 1,
        received_at: SystemTime::now(),
        commit: None,
        to_come: false,
        until: None,
    };
    for lost in [true, false] {
        let ticket = delivery.letters.held.load(one.clone(), Vec::new(), false);
        let ticket = ticket.unwrap();
        if lost {
            // Passed on, without an answer, and once more.
            delivery.letters_written(Done::PassedOn(vec![(ticket, 7)], None));
        } else {
            delivery.letters_loaded(Ok(vec![LoadedLetter::Gone(vec![ticket])]));
        }
        delivery.follow_letters();
        let looked = delivery.letters.parking.done().await.unwrap();
        assert!(matches!(looked, Done::Looked(_)), "{lost}");
        delivery.letters_written(looked);
        assert!(delivery.letters.held.is_empty(), "{lost}");
    }
}
