//! What is shown, at one moment. Values only: drawing it asks nobody.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::status::Overview;
use crate::store::{StateChange, StoredDeadLetter, StoredHole};

/// How many minutes a chart goes back.
pub(super) const MINUTES: usize = 60;

/// What is known of a subscription beyond its row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Figures {
    /// Events received each second, lately; `None` before the second look.
    pub(super) rate: Option<f64>,
    /// Its greatest lag in seconds in each of the last [`MINUTES`] minutes, oldest first; `None` where nobody ran it.
    pub(super) lags: Vec<Option<f64>>,
}

/// More of one subscription.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Detail {
    pub(super) name: String,
    /// Its last changes of state, newest first.
    pub(super) changes: Vec<StateChange>,
    /// Its open dead letters, oldest first.
    pub(super) letters: Vec<StoredDeadLetter>,
    /// Its holes that nobody has acknowledged, newest first.
    pub(super) holes: Vec<StoredHole>,
}

/// Everything that was read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) overview: Overview,
    /// By name of the subscription.
    pub(super) figures: BTreeMap<String, Figures>,
    pub(super) detail: Option<Detail>,
}

/// What was seen last, and whether that is how things are now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) picture: Option<Picture>,
    /// Since when the store does not answer, and why.
    pub(super) trouble: Option<(SystemTime, String)>,
}

impl Seen {
    /// Takes in what came of reading.
    pub(super) fn take(&mut self, read: Result<Picture, String>, now: SystemTime) {
        match read {
            Ok(picture) => {
                self.picture = Some(picture);
                self.trouble = None;
            }
            Err(why) => {
                let since = self.trouble.take().map_or(now, |(since, _)| since);
                self.trouble = Some((since, why));
            }
        }
    }
}
