//! A delivery by itself, for tests.

use tempfile::TempDir;

use super::*;
use crate::config::Group;
use crate::handler::BatchLimits;
use crate::store::{LetterSummary, Placed, SettledAhead};
use crate::subscription::letter_loader::LetterLoader;
use crate::subscription::sleepless::Moment;
use crate::subscription::testing::Site;
use crate::subscription::{LeaseKeeper, lease_clock};

/// What a delivery begins with.
#[derive(Default)]
pub(super) struct Begin {
    /// None, or one.
    pub(super) handler: Option<Arc<dyn Handler>>,
    pub(super) open: Vec<LetterSummary>,
    pub(super) settled: Vec<SettledAhead>,
    /// It collects transactions.
    pub(super) groups: bool,
}

/// What has to outlive it.
pub(super) type Kept = (LeaseKeeper, TempDir);

/// An open letter of this event, that could not be decoded for anyone, and which a person wants to be tried again.
pub(super) fn summary(identity: EventIdentity, id: i64) -> LetterSummary {
    LetterSummary {
        placed: Placed { place: id, id },
        subscription: "accounts".to_owned(),
        topic: "/data/AccountChangeEvent".to_owned(),
        handler: None,
        identity,
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
    }
}

/// A delivery that has this to begin with, whose stream brings nothing, and what has to outlive it.
pub(super) async fn begin(
    begin: Begin,
    lease_until: Option<Moment>,
    stop: &CancellationToken,
) -> (Delivery, Kept) {
    let Site {
        shared,
        config: mut subscription,
        taken,
        folder,
    } = Site::new().await;
    if begin.groups {
        subscription.group = Group::Transaction;
    }
    let limits = BatchLimits {
        events: 1,
        bytes: 1 << 20,
    };
    let config = &subscription.handlers[0];
    let retry = shared.salesforce.blocked_retry;
    let run = HandlerRun::new(0, config, limits, subscription.concurrency, retry);
    let handler = begin.handler.map(|handler| (run, handler));
    let (store, schemas, lease) = (shared.store.clone(), shared.schemas.clone(), taken.lease);
    let (keeper, clock) = lease_clock(lease_until);
    let forms = Arc::new(Forms::new(&subscription));
    let streams = Streams {
        forms: forms.clone(),
        shared,
        config: subscription,
        lease: lease.clone(),
        clock: clock.clone(),
    };
    let delivery = Delivery::new(Setup {
        store: store.clone(),
        forms,
        ordering: Ordering::Record,
        begins_after: None,
        handlers: handler.into_iter().collect(),
        finished_ahead: Vec::new(),
        letters: LettersSetup {
            open: begin.open,
            settled: begin.settled,
            nothing_again: false,
            resume_after: None,
            resumed_at: None,
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

impl Delivery {
    /// Takes in one item by itself.
    pub(super) fn take(&mut self, item: Item) {
        self.take_all(vec![item]);
    }
}
