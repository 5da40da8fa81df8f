//! The event bus: one line of positions for the whole org, with gaps, retention and resets. Pure: no
//! clock and no I/O, so that every rule can be tested in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::event::SchemaId;

/// How far the line jumps on a reset, so that no earlier replay ID is valid on the new line.
const RESET_JUMP: u64 = 1_000_000;

/// Most moves of the line without an event whose times are kept. Beyond, the oldest ages with the next.
const MAX_MARKS: usize = 4096;

/// The part of the retention window that the line stands still at most before a keepalive moves it on:
/// an hour of 72.
const STANDSTILL_PART: u32 = 72;

/// One event as it lies on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Chosen by the publisher.
    pub id: String,
    /// Names the schema that wrote the payload.
    pub schema_id: SchemaId,
    /// One Avro datum.
    pub payload: Bytes,
}

/// An event at its place. On a channel that enriches it, one change may come as several events.
#[derive(Debug, Clone)]
struct Entry {
    position: u64,
    at: SystemTime,
    topic: Arc<str>,
    event: Arc<StoredEvent>,
    siblings: Vec<(Arc<str>, Vec<Arc<StoredEvent>>)>,
}

/// What is put on the bus.
#[derive(Debug, Clone)]
pub(super) struct NewEntry {
    /// The event's own topic, never a channel.
    pub(super) topic: Arc<str>,
    /// The event as that topic delivers it.
    pub(super) event: StoredEvent,
    /// What a channel delivers in its place: enriched events that share its replay ID (facts 3.5).
    pub(super) siblings: Vec<(Arc<str>, Vec<StoredEvent>)>,
}

/// Which events a stream receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Feed {
    /// Those of one topic.
    Topic(Arc<str>),
    /// Those of a channel's members.
    Channel {
        /// The channel's own name.
        name: Arc<str>,
        /// The topics that it carries.
        members: Vec<Arc<str>>,
    },
}

impl Feed {
    fn carries(&self, topic: &str) -> bool {
        match self {
            Self::Topic(name) => **name == *topic,
            Self::Channel { members, .. } => members.iter().any(|member| **member == *topic),
        }
    }
}

/// A place between two deliveries. `sibling` counts the events already delivered of the entry behind
/// `position`, where a response ended between events that share a replay ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    position: u64,
    sibling: usize,
}

impl Cursor {
    /// The place it is at, or inside of.
    pub(super) fn position(self) -> u64 {
        self.position
    }

    /// Strictly after a position.
    pub(super) fn after(position: u64) -> Self {
        Self {
            position,
            sibling: 0,
        }
    }
}

/// An event on its way to a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Its place; siblings share one.
    pub(super) position: u64,
    /// The event.
    pub(super) event: Arc<StoredEvent>,
}

/// How much one response may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadLimits {
    /// Most events.
    pub(super) events: usize,
    /// Most payload bytes; the first event is delivered whatever its size.
    pub(super) bytes: usize,
    /// End the response between events that share a replay ID.
    pub(super) split_siblings: bool,
}

/// Replay ID bytes that name no place on this bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnknownPosition;

/// When the line came to a place without an event there.
#[derive(Debug, Clone, Copy)]
struct Mark {
    position: u64,
    at: SystemTime,
}

/// The org-wide line of events.
#[derive(Debug)]
pub(super) struct Bus {
    entries: VecDeque<Entry>,
    /// The newest place; what a keepalive names.
    head: u64,
    /// When the line came there.
    head_at: SystemTime,
    /// Where the line was without an event, oldest first; places age as events do.
    marks: VecDeque<Mark>,
    /// Just before the oldest event kept; where EARLIEST begins.
    horizon: u64,
    /// The first place that has not aged; a replay ID before it is refused.
    oldest: u64,
    /// Counts resets: a place on one line means nothing on the next.
    line: u64,
    retention: Duration,
    max_gap: u64,
    random: fastrand::Rng,
}

impl Bus {
    /// An empty bus that begins at `base`. Positions grow by 1 to `max_gap + 1`.
    pub(super) fn new(
        base: u64,
        at: SystemTime,
        retention: Duration,
        max_gap: u64,
        random: fastrand::Rng,
    ) -> Self {
        Self {
            entries: VecDeque::new(),
            head: base,
            head_at: at,
            marks: VecDeque::from([Mark { position: base, at }]),
            horizon: base,
            oldest: base,
            line: 0,
            retention,
            max_gap,
            random,
        }
    }

    /// The newest place.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Which line it is: another one after each reset.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The place just before the oldest event kept; EARLIEST begins after it.
    pub(super) fn horizon(&self) -> u64 {
        self.horizon
    }

    /// How many places hold an event.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts an event at the end of the line and gives its place.
    pub(super) fn append(&mut self, entry: NewEntry, at: SystemTime) -> u64 {
        // Mostly no gap, as in logs of real orgs; every fourth event on average leaves one.
        let gap = if self.max_gap > 0 && self.random.u8(..4) == 0 {
            self.random.u64(1..=self.max_gap)
        } else {
            0
        };
        self.head = self.head.saturating_add(1).saturating_add(gap);
        self.head_at = at;
        self.entries.push_back(Entry {
            position: self.head,
            at,
            topic: entry.topic,
            event: Arc::new(entry.event),
            siblings: entry
                .siblings
                .into_iter()
                .map(|(channel, events)| (channel, events.into_iter().map(Arc::new).collect()))
                .collect(),
        });
        self.head
    }

    /// Moves the line on without an event, as work of the org that no topic carries does.
    pub(super) fn skip(&mut self, places: u64, at: SystemTime) {
        if places == 0 {
            return;
        }
        self.head = self.head.saturating_add(places);
        self.head_at = at;
        self.marks.push_back(Mark {
            position: self.head,
            at,
        });
        if self.marks.len() > MAX_MARKS {
            self.marks.pop_front();
        }
    }

    /// Moves a line on that has stood still, as that of a real org never does for long. What a keepalive
    /// names is then a place that a client can still resume from as long as it can from any other.
    pub(super) fn keep_moving(&mut self, now: SystemTime) {
        self.expire(now);
        let still = now.duration_since(self.head_at).unwrap_or_default();
        if still >= self.retention / STANDSTILL_PART || self.head < self.oldest {
            self.skip(1, now);
        }
    }

    /// Drops what is older than the retention window, and with it the places that the line passed then.
    pub(super) fn expire(&mut self, now: SystemTime) {
        let Some(oldest) = now.checked_sub(self.retention) else {
            return;
        };
        while let Some(entry) = self.entries.front()
            && entry.at < oldest
        {
            self.horizon = entry.position;
            self.oldest = self.oldest.max(entry.position.saturating_add(1));
            self.entries.pop_front();
        }
        while let Some(mark) = self.marks.front()
            && mark.at < oldest
        {
            self.oldest = self.oldest.max(mark.position.saturating_add(1));
            self.marks.pop_front();
        }
    }

    /// Drops every event up to and including a place, or all of them.
    pub(super) fn expire_up_to(&mut self, position: Option<u64>) {
        let limit = position.unwrap_or(self.head).min(self.head);
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.position <= limit)
        {
            self.entries.pop_front();
        }
        self.marks.retain(|mark| mark.position > limit);
        self.horizon = self.horizon.max(limit);
        self.oldest = self.oldest.max(limit.saturating_add(1));
    }

    /// Begins a new line, as a sandbox does after an update of its org: nothing is kept and no earlier
    /// replay ID is valid. `base` chooses where; the default is far beyond the old line.
    pub(super) fn reset(&mut self, base: Option<u64>, at: SystemTime) {
        self.entries.clear();
        self.head = base.unwrap_or_else(|| self.head.saturating_add(RESET_JUMP));
        self.head_at = at;
        self.marks = VecDeque::from([Mark {
            position: self.head,
            at,
        }]);
        self.horizon = self.head;
        self.oldest = self.head;
        self.line += 1;
    }

    /// The place a replay ID names, where it is one that was issued or passed and has not aged.
    /// Accepts the 10 bytes the platform sends and their first 8 alone (facts 3.5).
    pub(super) fn position_of(&self, replay_id: &[u8]) -> Result<u64, UnknownPosition> {
        let position = match replay_id {
            [prefix @ .., 0, 0] if prefix.len() == 8 => prefix,
            prefix if prefix.len() == 8 => prefix,
            _ => return Err(UnknownPosition),
        };
        let position = position
            .iter()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if (self.oldest..=self.head).contains(&position) {
            Ok(position)
        } else {
            Err(UnknownPosition)
        }
    }

    /// The next events of a feed after a cursor, in bus order, and the cursor behind them. Without
    /// events the cursor still moves: to the head, or to where the feed's next event begins.
    pub(super) fn read(
        &self,
        cursor: Cursor,
        feed: &Feed,
        limits: ReadLimits,
    ) -> (Vec<Delivery>, Cursor) {
        let mut deliveries: Vec<Delivery> = Vec::new();
        let mut bytes = 0;
        let start = self.entries.partition_point(|entry| {
            entry.position <= cursor.position
                && !(cursor.sibling > 0 && entry.position == cursor.position)
        });
        for entry in self.entries.iter().skip(start) {
            if !feed.carries(&entry.topic) {
                continue;
            }
            let events = entry.on(feed);
            let skip = if entry.position == cursor.position {
                cursor.sibling
            } else {
                0
            };
            for (index, event) in events.iter().enumerate().skip(skip) {
                let full = deliveries.len() >= limits.events
                    || (!deliveries.is_empty() && bytes + event.payload.len() > limits.bytes)
                    || (limits.split_siblings && index > skip && !deliveries.is_empty());
                if full {
                    let behind = Cursor {
                        position: if index > 0 {
                            entry.position
                        } else {
                            deliveries
                                .last()
                                .map_or(cursor.position, |delivery| delivery.position)
                        },
                        sibling: index,
                    };
                    return (deliveries, behind);
                }
                bytes += event.payload.len();
                deliveries.push(Delivery {
                    position: entry.position,
                    event: Arc::clone(event),
                });
            }
        }
        let behind = Cursor::after(self.head.max(cursor.position));
        (deliveries, behind)
    }
}

impl Entry {
    /// The events that a feed delivers for this entry: its own, or a channel's enriched ones.
    fn on(&self, feed: &Feed) -> &[Arc<StoredEvent>] {
        if let Feed::Channel { name, .. } = feed
            && let Some((_, events)) = self.siblings.iter().find(|(channel, _)| channel == name)
        {
            return events;
        }
        std::slice::from_ref(&self.event)
    }
}

/// A place as the platform writes it: 8 bytes, big endian, and two zero bytes (facts 3.5).
pub(super) fn replay_id(position: u64) -> Bytes {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&position.to_be_bytes());
    Bytes::copy_from_slice(&bytes)
}

#[cfg(test)]
mod tests;
