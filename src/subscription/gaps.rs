//! Changes that came without their content: recorded as holes before the position passes their events, while
//! the events themselves go to the handlers as usual (facts 7.6 and 7.7).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::delivery::end_of_task;
use super::tracker::Seq;
use crate::event::{ChangeEventHeader, ChangeType, ReplayId, SmolStr};
use crate::store::{Hole, HoleKind, Lease, Store};

/// How many are written at once.
const TOGETHER: usize = 500;

/// Gap holes on their way to the store: one write at a time, in bus order, for as long as the store is away, and
/// all that wait meanwhile together in the next.
/// There are never more than events in flight, each of which is pinned until its hole is stored.
pub(super) struct Gaps {
    lease: Lease,
    store: Arc<dyn Store>,
    waiting: VecDeque<(Seq, Hole)>,
    /// At most one; it gives `None` where the store does not take it any more.
    writing: JoinSet<Option<Vec<Seq>>>,
    /// Holes that somebody else writes, before the events of these places.
    elsewhere: JoinSet<Option<Seq>>,
    abandon: CancellationToken,
}

impl Gaps {
    pub(super) fn new(lease: Lease, store: Arc<dyn Store>) -> Self {
        Self {
            lease,
            store,
            waiting: VecDeque::new(),
            writing: JoinSet::new(),
            elsewhere: JoinSet::new(),
            abandon: CancellationToken::new(),
        }
    }

    /// Records the hole that the event at this place tells of.
    pub(super) fn record(&mut self, seq: Seq, hole: Hole) {
        warn!(
            subscription = self.lease.key.name,
            reason = hole.reason,
            entity = hole.entity,
            records = hole.record_ids.len(),
            replay_id = hole.from.as_ref().map(tracing::field::display),
            "a change came without its content: a hole is recorded"
        );
        self.waiting.push_back((seq, hole));
        self.write_next();
    }

    /// Waits for the hole before the event at this place, which somebody else writes. Where that is given up, the
    /// event is never told of: it comes again.
    pub(super) fn wait(&mut self, seq: Seq, stored: oneshot::Receiver<()>) {
        self.elsewhere
            .spawn(async move { stored.await.is_ok().then_some(seq) });
    }

    /// The next events whose holes are stored; `None` where another worker has taken over. Never ends while
    /// there is nothing to record. Cancel-safe.
    pub(super) async fn recorded(&mut self) -> Option<Vec<Seq>> {
        tokio::select! {
            Some(written) = self.writing.join_next() => {
                let stored = written.unwrap_or_else(|error| end_of_task(error))?;
                self.write_next();
                Some(stored)
            }
            Some(written) = self.elsewhere.join_next() => {
                let stored = written.unwrap_or_else(|error| end_of_task(error));
                Some(stored.into_iter().collect())
            }
            else => std::future::pending().await,
        }
    }

    /// True where nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_empty() && self.elsewhere.is_empty()
    }

    /// Gives up what is not stored yet: those events come again.
    pub(super) fn abandon(&self) {
        self.abandon.cancel();
    }

    fn write_next(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        let together = self.waiting.len().min(TOGETHER);
        if together == 0 {
            return;
        }
        let (places, holes): (Vec<Seq>, Vec<Hole>) = self.waiting.drain(..together).unzip();
        let holes: Arc<[Hole]> = holes.into();
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let abandon = self.abandon.clone();
        self.writing.spawn(async move {
            super::persist(&store, &lease, &abandon, "record gaps", |store, lease| {
                let holes = holes.clone();
                async move { store.record_gaps(&lease, &holes).await }
            })
            .await
            .then_some(places)
        });
    }
}

/// The hole that a change event tells of, where it came without its content.
pub(super) fn gap_of(header: &ChangeEventHeader, replay_id: Option<&ReplayId>) -> Option<Hole> {
    let entity = &header.entity_name;
    let (reason, explanation) = match header.change_type {
        ChangeType::GapOverflow => (
            "overflow",
            format!(
                "one transaction made more than 100,000 changes, and its further changes of {entity} have no \
                 events: compare all {entity} records with the org, deleted ones included"
            ),
        ),
        _ if header.is_entity_wide() => (
            "wildcard",
            format!(
                "a field of {entity} was converted to another type, which may have emptied it in every \
                 record: read all {entity} records again"
            ),
        ),
        ChangeType::GapDelete => (
            "gap_event",
            format!(
                "{entity} records were deleted, and the event could name only their IDs: delete them, or ask \
                 the org whether they are gone"
            ),
        ),
        _ if header.change_type.is_gap() => (
            "gap_event",
            format!(
                "{entity} records were {}, and the event could name only their IDs: read these records again \
                 before later changes of theirs are relied on",
                done_to(&header.change_type)
            ),
        ),
        _ => return None,
    };
    Some(Hole {
        kind: HoleKind::Gap,
        reason: reason.to_owned(),
        from: replay_id.cloned(),
        to: None,
        from_time: None,
        to_time: header.committed_at(),
        entity: Some(entity.to_string()),
        // An overflow names a dummy, a wildcard a prefix: neither is a record.
        record_ids: if header.is_entity_wide() {
            Vec::new()
        } else {
            header.record_ids.iter().map(SmolStr::to_string).collect()
        },
        explanation,
    })
}

fn done_to(change: &ChangeType) -> &'static str {
    match change {
        ChangeType::GapCreate => "created",
        ChangeType::GapUndelete => "brought back from the recycle bin",
        _ => "updated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: &str, record_ids: &[&str]) -> ChangeEventHeader {
        ChangeEventHeader {
            entity_name: "Account".into(),
            record_ids: record_ids.iter().map(|&id| id.into()).collect(),
            change_type: ChangeType::from_symbol(change),
            change_origin: "".into(),
            transaction_key: "".into(),
            sequence_number: 1,
            commit_timestamp: 1_790_000_000_000,
            commit_number: 1,
            commit_user: "".into(),
            nulled_fields: crate::event::FieldNames::default(),
            diff_fields: crate::event::FieldNames::default(),
            changed_fields: crate::event::FieldNames::default(),
        }
    }

    #[test]
    fn an_event_with_its_content_is_no_gap() {
        for change in ["CREATE", "UPDATE", "DELETE", "UNDELETE", "SNAPSHOT", "NEW"] {
            assert_eq!(gap_of(&header(change, &["001A"]), None), None, "{change}");
        }
    }

    #[test]
    fn a_gap_names_its_records_and_what_to_do_about_them() {
        let replay_id: ReplayId = "0a".parse().unwrap();
        for change in ["GAP_CREATE", "GAP_UPDATE", "GAP_DELETE", "GAP_UNDELETE"] {
            let hole = gap_of(&header(change, &["001A", "001B"]), Some(&replay_id)).unwrap();
            assert_eq!(
                (hole.kind, hole.reason.as_str()),
                (HoleKind::Gap, "gap_event")
            );
            assert_eq!(hole.entity.as_deref(), Some("Account"));
            assert_eq!(hole.record_ids, ["001A", "001B"]);
            assert_eq!((hole.from.as_ref(), hole.to), (Some(&replay_id), None));
            assert!(hole.to_time.is_some() && hole.explanation.contains("Account"));
        }
    }

    #[test]
    fn an_overflow_and_a_wildcard_concern_a_whole_entity_and_name_no_record() {
        for (change, id, reason) in [
            ("GAP_OVERFLOW", "000000000000000AAA", "overflow"),
            ("GAP_UPDATE", "001*", "wildcard"),
            ("UPDATE", "001*", "wildcard"),
        ] {
            let hole = gap_of(&header(change, &[id]), None).unwrap();
            assert_eq!((hole.reason.as_str(), hole.record_ids.len()), (reason, 0));
        }
    }
}
