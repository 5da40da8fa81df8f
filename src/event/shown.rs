//! How much of an event a handler is given.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Decoded, Event, EventIdentity, RawEvent};

/// How much of an event an [`Event`] is.
#[derive(Debug, Clone, Default)]
pub enum Shown {
    /// All of it.
    #[default]
    Whole,
    /// All of it, and beside it what handlers are given that are not shown all: by the number of what they are
    /// shown, where that was made already.
    Forms(Arc<[Option<Decoded>]>),
    /// What a handler is given that is not shown all. It has no payload any more, so it keeps the identity of
    /// the whole.
    Part(EventIdentity),
}

impl Shown {
    /// Bytes that it holds in memory beside the event.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Forms(forms) => forms.iter().flatten().map(Decoded::size).sum(),
            Self::Whole | Self::Part(_) => 0,
        }
    }

    /// The form of this number, where it was made already.
    pub(crate) fn form(&self, number: usize) -> Option<&Decoded> {
        match self {
            Self::Forms(forms) => forms.get(number)?.as_ref(),
            Self::Whole | Self::Part(_) => None,
        }
    }
}

impl Event {
    /// The same event with this in place of what was decoded, and without its payload.
    pub(crate) fn part(&self, decoded: Decoded) -> Self {
        Self {
            source: self.source.clone(),
            raw: RawEvent {
                id: self.raw.id.clone(),
                schema_id: self.raw.schema_id.clone(),
                payload: Bytes::new(),
                replay_id: self.raw.replay_id.clone(),
            },
            decoded,
            received_at: self.received_at,
            epoch: self.epoch,
            replayed: self.replayed,
            partial: self.partial,
            key: self.key.clone(),
            shown: Shown::Part(self.identity()),
            known_as: OnceLock::new(),
        }
    }
}
