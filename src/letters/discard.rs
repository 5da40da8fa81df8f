//! Giving dead letters up, and what follows from it.

use std::collections::{BTreeSet, HashSet};

use super::ways::{released, whole};
use crate::store::{LetterSelection, LetterSummary, Store, StoreError};

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Letters that are given up, in order: those that are meant, and with each all of its transaction.
    pub(crate) ids: Vec<i64>,
    /// How many of them nobody named: they are of the same transactions.
    pub(crate) with_them: usize,
    /// How many others, parked behind them, go to their handler then.
    pub(crate) released: usize,
}

impl Plan {
    /// What becomes of these open letters. `unordered` names subscriptions in which nothing is held back.
    pub(crate) async fn of(
        store: &dyn Store,
        chosen: &[LetterSummary],
        unordered: &HashSet<String>,
    ) -> Result<Self, StoreError> {
        let subscriptions: BTreeSet<&String> = chosen.iter().map(|one| &one.subscription).collect();
        let mut open = Vec::new();
        for subscription in subscriptions {
            let selection = LetterSelection {
                subscription: Some(subscription.clone()),
                ..LetterSelection::default()
            };
            open.extend(store.select_letters(&selection).await?);
        }
        let named: HashSet<i64> = chosen.iter().map(|letter| letter.placed.id).collect();
        let all = whole(&open, &named);
        let released = released(&open, &all, unordered);
        let with_them = all.len().saturating_sub(named.len());
        let mut ids: Vec<i64> = all.into_iter().collect();
        ids.sort_unstable();
        Ok(Self {
            ids,
            with_them,
            released,
        })
    }

    /// Does it. Gives the numbers of those that were open until now.
    pub(crate) async fn carry_out(&self, store: &dyn Store) -> Result<Vec<i64>, StoreError> {
        let selection = LetterSelection {
            ids: self.ids.clone(),
            ..LetterSelection::default()
        };
        let mut discarded = store.discard(&selection).await?;
        discarded.sort_unstable();
        Ok(discarded)
    }

    /// That others go along, where any do.
    pub(crate) fn company(&self) -> Option<String> {
        (self.with_them > 0).then(|| {
            let more = events(self.with_them);
            format!("{more} of the same transactions as these go with them")
        })
    }

    /// What is about to happen.
    pub(crate) fn what(&self) -> String {
        let mut text = format!("{} given up for good", events(self.ids.len()));
        if self.released > 0 {
            let parked = events(self.released);
            text.push_str(&format!("; {parked} parked behind go to the handler then"));
        }
        text
    }
}

/// `1 event`, `2 events`.
pub(crate) fn events(count: usize) -> String {
    match count {
        1 => "1 event".to_owned(),
        _ => format!("{count} events"),
    }
}
