//! Opens streams: for each a reader and a decoder, which are two tasks.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::changes::Changes;
use super::cost::EarliestCost;
use super::decoder::{Decoder, EventMaker, Item};
use super::forms::Forms;
use super::in_flight::InFlight;
use super::lease_clock::LeaseClock;
use super::lost::GivenUp;
use super::notes::Notes;
use super::observe::Observer;
use super::quiet::Quiet;
use super::reader::Reader;
use super::resume::Resume;
use super::state::State;
use crate::config::SubscriptionConfig;
use crate::event::{ReplayId, Source};
use crate::store::Lease;

/// What the streams of one subscription under one epoch have in common.
pub(super) struct Streams {
    pub(super) shared: Shared,
    pub(super) forms: Arc<Forms>,
    pub(super) config: SubscriptionConfig,
    pub(super) lease: Lease,
    pub(super) clock: LeaseClock,
}

/// What one of them has of its own.
pub(super) struct Opening {
    pub(super) resume: Resume,
    /// Where the reader tells that the position is given up.
    pub(super) given_up: mpsc::UnboundedSender<GivenUp>,
    /// What an earlier run from EARLIEST began with, of which nothing was finished.
    pub(super) expected: Option<ReplayId>,
    /// Where rewinds left from that perhaps skipped something.
    pub(super) rewound_from: Vec<ReplayId>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) observer: Observer,
    /// For a side replay: where its reader says that the place to begin after is gone.
    pub(super) replay: Option<watch::Sender<Option<String>>>,
    pub(super) stop: CancellationToken,
}

/// A stream, as its delivery sees it.
pub(super) struct Stream {
    /// Closed when the stream has ended and everything received is in here.
    pub(super) items: mpsc::UnboundedReceiver<Vec<Item>>,
    pub(super) state: watch::Receiver<State>,
    pub(super) changes: Changes,
    tasks: Tasks,
}

/// The tasks of a stream.
pub(super) struct Tasks {
    reader: JoinHandle<()>,
    decoder: JoinHandle<()>,
    notes: JoinHandle<()>,
}

impl Streams {
    /// Makes events of payloads under this epoch.
    pub(super) fn maker(&self, replayed: bool) -> EventMaker {
        EventMaker {
            source: Arc::new(Source::new(
                self.shared.org_id.clone(),
                &self.shared.host,
                self.config.topic.clone(),
            )),
            epoch: self.lease.epoch,
            replayed,
            key: self.config.key.clone(),
            forms: self.forms.clone(),
        }
    }

    /// Begins to stream.
    pub(super) fn open(&self, opening: Opening) -> Stream {
        let (shared, config) = (&self.shared, &self.config);
        let (stream_state, state) = watch::channel(State::Connecting);
        let changes = Changes::default();
        let (arrivals, arrivals_out) = mpsc::unbounded_channel();
        let (items_in, items) = mpsc::unbounded_channel();
        let decoder = Decoder {
            subscription: config.name.clone(),
            maker: self.maker(opening.replay.is_some()),
            schema_wait: config.schema_wait,
            schemas: shared.schemas.clone(),
            in_flight: opening.in_flight.clone(),
            observer: opening.observer.clone(),
            stop: opening.stop.clone(),
            missing: HashMap::new(),
            last_schema: None,
        };
        let (notes, noted) = Notes::begin(
            shared.store.clone(),
            self.lease.clone(),
            opening.stop.clone(),
        );
        let reader = Reader {
            topic: config.topic.clone(),
            lease: self.lease.clone(),
            bus: shared.bus.clone(),
            store: shared.store.clone(),
            salesforce: shared.salesforce.clone(),
            on_expired: config.on_expired_replay_id,
            replay: opening.replay,
            resume: opening.resume,
            in_flight: opening.in_flight,
            clock: self.clock.clone(),
            arrivals,
            state: stream_state,
            changes: changes.clone(),
            rpc_id: None,
            observer: opening.observer,
            stop: opening.stop,
            begun: false,
            quiet: Quiet::new(shared.salesforce.silence_limit),
            given_up: opening.given_up,
            expected: opening.expected,
            rewound_from: opening.rewound_from,
            notes,
            cost: EarliestCost::new(
                shared.limits.clone(),
                shared.store.clone(),
                self.lease.key.clone(),
                shared.salesforce.retention,
            ),
        };
        Stream {
            items,
            state,
            changes,
            tasks: Tasks {
                reader: tokio::spawn(reader.run()),
                decoder: tokio::spawn(decoder.run(arrivals_out, items_in)),
                notes: noted,
            },
        }
    }
}

impl Stream {
    /// What comes, and what to wait for at the end.
    pub(super) fn split(self) -> (mpsc::UnboundedReceiver<Vec<Item>>, Tasks) {
        (self.items, self.tasks)
    }
}

impl Tasks {
    /// Waits for all, which were told to stop.
    ///
    /// # Errors
    ///
    /// Where one of them panicked.
    pub(super) async fn ended(self) -> Result<(), JoinError> {
        self.reader.await?;
        self.decoder.await?;
        self.notes.await
    }
}
