//! Everything that was published, and what has to come out of each subscription for it.

use std::sync::{Arc, Mutex, PoisonError};

use super::account::{Lanes, NO_RECORD, Piece, Poison};
use super::plan::{Feed, Subscription};

/// One event on the bus.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its place.
    pub(crate) place: u64,
    /// The topic it belongs to.
    pub(crate) topic: &'static str,
    /// The records of a change event, or the key of a platform event that has one.
    pub(crate) records: Vec<String>,
    /// An update: channels that enrich it split it up by record.
    pub(crate) splits: bool,
    /// A gap event.
    pub(crate) gap: bool,
    /// An overflow: nothing overtakes it, and it overtakes nothing.
    pub(crate) barrier: bool,
    pub(crate) poison: Poison,
}

/// The list, shared by the publisher and who trims the bus.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// The last place that the bus forgot, of each time that it did.
    forgotten: Vec<u64>,
}

impl Ledger {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, entry: Entry) {
        self.inner().entries.push(entry);
    }

    /// The bus has forgotten everything published until now, and this place, which a keepalive may have named.
    pub(crate) fn forget_all(&self, up_to: u64) {
        self.inner().forgotten.push(up_to);
    }

    /// Up to where the bus has forgotten, for each time that it did.
    pub(crate) fn forgotten(&self) -> Vec<u64> {
        self.inner().forgotten.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.inner().entries.len()
    }

    /// What has to come out of a subscription, in bus order.
    pub(crate) fn pieces(&self, subscription: &Subscription) -> Vec<Piece> {
        let feed = subscription.feed;
        let inner = self.inner();
        let carried = inner.entries.iter().filter(|entry| carries(feed, entry));
        carried
            .flat_map(|entry| pieces_of(entry, feed))
            .map(|(records, entry)| Piece {
                place: entry.place,
                record: first_record(feed, &records),
                lanes: lanes(subscription.ordering, entry, records),
                gap: entry.gap,
                poison: entry.poison.clone(),
            })
            .collect()
    }
}

fn carries(feed: Feed, entry: &Entry) -> bool {
    match feed {
        Feed::Accounts | Feed::Orders | Feed::Notices => entry.topic == feed.topic(),
        Feed::Changes => entry.topic.starts_with("/data/"),
        Feed::Sales => entry.topic == Feed::Accounts.topic(),
    }
}

/// An enriching channel delivers an update of several records as one event for each.
fn pieces_of(entry: &Entry, feed: Feed) -> Vec<(Vec<String>, &Entry)> {
    if feed == Feed::Sales && entry.splits {
        let alone = entry
            .records
            .iter()
            .map(|record| (vec![record.clone()], entry));
        alone.collect()
    } else {
        vec![(entry.records.clone(), entry)]
    }
}

/// What tells apart the pieces of one place.
fn first_record(feed: Feed, records: &[String]) -> String {
    match feed {
        Feed::Orders | Feed::Notices => String::new(),
        _ => records.first().cloned().unwrap_or_default(),
    }
}

fn lanes(ordering: &str, entry: &Entry, records: Vec<String>) -> Lanes {
    let undecodable = matches!(entry.poison, Poison::Bytes | Poison::Schema);
    match ordering {
        // Never handed over, so in no order.
        _ if undecodable => Lanes::None,
        "none" => Lanes::None,
        "strict" => Lanes::All,
        _ if entry.barrier => Lanes::All,
        _ if records.is_empty() => Lanes::Of(vec![NO_RECORD.to_owned()]),
        _ => Lanes::Of(records),
    }
}
