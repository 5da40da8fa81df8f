//! How far the live stream is: a side replay may overtake it, where that begins far back or is behind.

use super::{Held, Moment, Since};
use crate::event::Commit;
use crate::subscription::lanes::{Origin, RecordHash};

/// How far the live stream is, by commit times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::subscription) enum Reach {
    /// Nobody knows; or it has caught up, and nothing is before it.
    #[default]
    Unknown,
    /// It begins with the oldest event that the bus keeps, and has brought none.
    Nothing,
    /// It has brought what was committed then, or begins there, and has brought nothing that was committed later.
    To(Commit),
}

impl Held {
    /// The live stream begins there.
    pub(in crate::subscription) fn begins(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// The live stream brings a change.
    pub(in crate::subscription) fn reached(&mut self, commit: Commit) {
        match &self.reach {
            Reach::To(last) if !last.is_before(&commit) => {}
            Reach::To(_) | Reach::Unknown | Reach::Nothing => self.reach = Reach::To(commit),
        }
    }

    /// What a letter of a change of these records, committed then, holds if it is parked now. The live stream is still
    /// to bring what a side replay has brought before it: what it brings until then is older.
    pub(in crate::subscription) fn since(
        &self,
        moment: Moment,
        origin: Origin,
        commit: Option<Commit>,
        records: &[RecordHash],
    ) -> Since {
        let is_ahead = |commit: &Commit| match &self.reach {
            Reach::Unknown => false,
            Reach::Nothing => true,
            Reach::To(last) => last.is_before(commit),
        };
        match origin {
            // Of a platform event nobody could tell when the stream has passed it.
            Origin::Replay(_) if commit.as_ref().is_some_and(is_ahead) && !records.is_empty() => {
                Since::ToCome
            }
            _ => moment.since(origin),
        }
    }
}
