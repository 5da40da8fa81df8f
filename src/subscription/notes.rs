//! What the reader has to write about the ground that it passes or loses: in the order in which it happened, off
//! the read path, because the database may hang. A late end of one hole must not become the end of the next.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::event::ReplayId;
use crate::store::{Hole, Lease, Store, StoreError};

/// How long the last ones may take once the subscription is told to stop.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// One thing to write.
#[derive(Debug, Clone)]
pub(super) enum Note {
    /// A stretch is lost.
    Lost(Hole),
    /// This place, of that time, came first after a beginning or a loss: the end of what is lost before it.
    Came(ReplayId, SystemTime),
    /// The first event of a stream that began without a place ([`Store::mark_first`]).
    First(ReplayId),
    /// The stream has come by a place that a rewind left from.
    NothingSkipped(ReplayId),
}

impl Note {
    fn what(&self) -> &'static str {
        match self {
            Self::Lost(_) => "record a hole",
            Self::Came(..) => "end a hole",
            Self::First(_) => "note the first event",
            Self::NothingSkipped(_) => "close the hole of a rewind",
        }
    }

    async fn write(&self, store: &dyn Store, lease: &Lease) -> Result<(), StoreError> {
        match self {
            Self::Lost(hole) => store.record_hole(lease, hole).await.map(|_| ()),
            Self::Came(place, at) => store.close_holes(lease, place, *at).await,
            Self::First(place) => store.mark_first(lease, place).await,
            Self::NothingSkipped(from) => store.nothing_skipped(lease, from).await,
        }
    }
}

type Queued = (Note, Option<oneshot::Sender<()>>);

/// Where notes are handed in. The writer ends once this is gone and everything is written.
#[derive(Debug)]
pub(super) struct Notes(mpsc::UnboundedSender<Queued>);

impl Notes {
    /// Begins to write. What is not written two seconds after `stop` is given up, with a word in the log; a store
    /// that says that another worker has taken over cancels `stop`.
    pub(super) fn begin(
        store: Arc<dyn Store>,
        lease: Lease,
        stop: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (queue, queued) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_all(store, lease, stop, queued));
        (Self(queue), writer)
    }

    /// To be written some time soon.
    pub(super) fn add(&self, note: Note) {
        // The writer is gone only where the subscription is, or stops.
        let _ = self.0.send((note, None));
    }

    /// As [`Notes::add`]; gives what tells when it is written, and all before it. That ends without a word where
    /// it never will be.
    pub(super) fn told(&self, note: Note) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        let _ = self.0.send((note, Some(done)));
        written
    }

    /// Waits until it is written, and all before it. False where `stop` came first: then nobody knows whether it
    /// will be.
    #[must_use]
    pub(super) async fn written(&self, note: Note, stop: &CancellationToken) -> bool {
        let written = self.told(note);
        tokio::select! {
            biased;
            written = written => written.is_ok(),
            () = stop.cancelled() => false,
        }
    }
}

async fn write_all(
    store: Arc<dyn Store>,
    lease: Lease,
    stop: CancellationToken,
    mut queued: mpsc::UnboundedReceiver<Queued>,
) {
    let give_up = CancellationToken::new();
    let writing = async {
        while let Some((note, done)) = queued.recv().await {
            let written = super::persist(&store, &lease, &give_up, note.what(), |store, lease| {
                let note = note.clone();
                async move { note.write(store.as_ref(), &lease).await }
            });
            if !written.await {
                // Another worker has taken over.
                stop.cancel();
                return;
            }
            if let Some(done) = done {
                // Whoever waited may have been told to stop.
                let _ = done.send(());
            }
        }
    };
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WRITES).await;
    };
    tokio::select! {
        biased;
        () = writing => {}
        () = too_late => warn!(
            subscription = lease.key.name,
            "the store did not take in time what is known about holes: one that is not stored yet is found again \
             at the next start, and the end of one when something comes after it"
        ),
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use super::super::lost::lost;
    use super::*;
    use crate::config::StoreConfig;
    use crate::event::OrgId;
    use crate::store::{self, HoleFilter, SubscriptionKey};

    fn id(text: &str) -> ReplayId {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn what_is_noted_before_the_end_is_written_in_order_after_the_stop_too() {
        let store = store::open(&StoreConfig::new("sqlite::memory:"))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let key = SubscriptionKey {
            org_id: OrgId::parse("00D5g000004emu1EAA").unwrap(),
            name: "accounts".to_owned(),
            topic: "/data/AccountChangeEvent".parse().unwrap(),
        };
        let hour = Duration::from_secs(3600);
        let taken = store.take_over(&key, "me", hour, &[], false).await.unwrap();
        let stop = CancellationToken::new();
        let (notes, writer) = Notes::begin(store.clone(), taken.lease, stop.clone());
        for (from, to) in [("0a", Some("0b")), ("0c", Some("0d")), ("0e", None)] {
            let hole = Hole {
                from: Some(id(from)),
                ..lost("expired_replay_id", "Gone.")
            };
            notes.add(Note::Lost(hole));
            if let Some(to) = to {
                notes.add(Note::Came(id(to), SystemTime::now()));
            }
        }
        stop.cancel();
        drop(notes);
        writer.await.unwrap();
        let holes = store.holes(&HoleFilter::default()).await.unwrap();
        let ends: Vec<_> = holes
            .into_iter()
            .map(|h| (h.hole.from, h.hole.to))
            .collect();
        let expected = [("0e", None), ("0c", Some("0d")), ("0a", Some("0b"))];
        assert_eq!(
            ends,
            expected.map(|(from, to)| (Some(id(from)), to.map(id)))
        );
    }
}
