//! What people ask of the process that runs a subscription (design 3.1, rule 13). A command is a row: its
//! owner carries it out, and withdrawing the row stops it.

use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::common::{from_ms, replay_id};
use super::hole::PERHAPS_SKIPPED;
use super::{Hole, HoleKind, Lease, StoreError, TakenOver};
use crate::config::Start;
use crate::event::{OrgId, ReplayId};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// Move the position, and go on from there.
    Rewind,
    /// Hand a stretch of the bus over again, beside the live stream.
    Replay,
}

impl CommandKind {
    /// As in the column `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rewind => "rewind",
            Self::Replay => "replay",
        }
    }

    /// Reads what [`CommandKind::name`] wrote; `None` for a kind that only a later release knows.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Rewind, Self::Replay]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandState {
    /// Nobody has begun it.
    Asked,
    /// The owner of the subscription is at it.
    Running,
    /// Carried out.
    Done,
    /// Cannot be carried out; the outcome says why.
    Failed,
    /// A person took it back.
    Withdrawn,
}

impl CommandState {
    const ALL: [Self; 5] = [
        Self::Asked,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Withdrawn,
    ];

    /// As in the column `state`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// True where nothing more will come of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Withdrawn)
    }

    /// Reads what [`CommandState::name`] wrote; the table allows nothing else.
    pub(super) fn from_name(name: &str) -> Self {
        let same = |state: &Self| state.name() == name;
        Self::ALL.into_iter().find(same).unwrap_or(Self::Failed)
    }
}

/// A command as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCommand {
    /// Its number.
    pub id: i64,
    /// Which subscription it is for.
    pub subscription: String,
    /// What is asked.
    pub kind: CommandKind,
    /// Where from, where to, for whom: [`ReplayArguments`] as JSON.
    pub arguments: Value,
    /// How far it is.
    pub state: CommandState,
    /// [`ReplayProgress`] as JSON.
    pub progress: Value,
    /// How it ended, for a person.
    pub outcome: Option<String>,
    /// When it was asked.
    pub asked_at: SystemTime,
    /// By whom, as far as that is known.
    pub asked_by: Option<String>,
    /// When it was first begun.
    pub begun_at: Option<SystemTime>,
    /// When it ended.
    pub ended_at: Option<SystemTime>,
}

/// The column `arguments` of both kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayArguments {
    /// `earliest`, `latest`, or a replay ID in hexadecimal.
    pub from: String,
    /// The last replay ID of a side replay, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Up to this commit time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_time_ms: Option<i64>,
    /// The handlers of a side replay; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<String>,
}

/// The column `progress` of a side replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayProgress {
    /// Everything up to this replay ID is finished: a later owner goes on from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Events received; repeats count.
    pub received: u64,
    /// Events that every chosen handler has handled or does not want, or that are parked.
    pub finished: u64,
    /// Of these, those that no chosen handler wants.
    pub unwanted: u64,
    /// Of the finished ones, how often one was parked.
    pub parked: u64,
    /// Numbers of the open dead letters whose events lie at or before the place: a later owner does not meet
    /// them, and they hold what it brings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub met: Vec<i64>,
    /// Commit time of the newest finished event, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// What its stream is doing, where that is not streaming.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// It ends with any of these replay IDs: where the live stream was when it began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<String>,
    /// It ends before this replay ID: the first that the live stream hands over by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// Which position belonged to which time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionMark {
    /// Commit time of the newest event at or below the position (for a platform event: when it was received).
    pub at: SystemTime,
    /// The position.
    pub position: ReplayId,
}

/// What the marks of a subscription know about a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarksAround {
    /// The newest at or before it.
    pub before: Option<PositionMark>,
    /// The oldest of all.
    pub oldest: Option<PositionMark>,
}

/// Commands, as people give and as owners carry them out.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Asks the owner of a subscription, and makes it look. Gives the command's number; `None` where the
    /// store knows no such subscription.
    async fn ask(
        &self,
        org_id: &OrgId,
        subscription: &str,
        kind: CommandKind,
        arguments: &Value,
        asked_by: Option<&str>,
    ) -> Result<Option<i64>, StoreError>;

    /// Takes a command back, unless it is over, and makes the owner look. Gives it as it is then; `None`
    /// where there is no such command.
    async fn withdraw(&self, id: i64) -> Result<Option<StoredCommand>, StoreError>;

    /// One command.
    async fn command(&self, id: i64) -> Result<Option<StoredCommand>, StoreError>;

    /// The last commands, of one subscription or of all, newest first. Kinds of a later release are left out.
    async fn commands(
        &self,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<StoredCommand>, StoreError>;

    /// What is asked of the owner and not over, oldest first. Kinds of a later release are left out.
    async fn open_commands(&self, lease: &Lease) -> Result<Vec<StoredCommand>, StoreError>;

    /// Begins a command, or goes on with it; false where it is over, because a person withdrew it.
    async fn begin_command(&self, lease: &Lease, id: i64) -> Result<bool, StoreError>;

    /// Writes how far a command is; false where it is over.
    async fn save_command(
        &self,
        lease: &Lease,
        id: i64,
        progress: &Value,
    ) -> Result<bool, StoreError>;

    /// Ends a command with its last progress; false where it was over already.
    async fn end_command(
        &self,
        lease: &Lease,
        id: i64,
        state: CommandState,
        outcome: &str,
        progress: Option<&Value>,
    ) -> Result<bool, StoreError>;

    /// Carries a rewind out, in one transaction: raises the epoch, puts the position at `to` (none for
    /// earliest and latest, of which the column `begin_from` keeps a note), forgets what was finished above
    /// the old one, records what it skips or perhaps skips as a `lost` hole that begins at the old one
    /// ([`TakenOver::rewound_from`]), and ends the command. The holder stays, and gives up its lease of before for the one in the answer. `None` where
    /// the command is over, because a person withdrew it: nothing has changed then.
    async fn rewind(
        &self,
        lease: &Lease,
        id: i64,
        to: &Start,
        outcome: &str,
    ) -> Result<Option<TakenOver>, StoreError>;

    /// What is known about where a subscription stood at a time.
    async fn marks_around(
        &self,
        org_id: &OrgId,
        subscription: &str,
        at: SystemTime,
    ) -> Result<MarksAround, StoreError>;
}

/// The columns `position` and `begin_from` after a rewind to here.
pub(super) fn begin_from_text(to: &Start) -> (Option<ReplayId>, Option<&'static str>) {
    match to {
        Start::Latest => (None, Some("latest")),
        Start::Earliest => (None, Some("earliest")),
        Start::After(id) => (Some(id.clone()), None),
    }
}

/// Where a subscription stands when a rewind takes it away from there.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) position: Option<ReplayId>,
    /// The newest event at or below the position.
    pub(super) event: Option<ReplayId>,
    /// When the event at the position was committed, or the keepalive received.
    pub(super) time: Option<SystemTime>,
    /// Without a position: the first event that came, and when it had begun.
    pub(super) begun_with: Option<ReplayId>,
    pub(super) begun_at: Option<SystemTime>,
}

impl Left {
    /// What a rewind to here skips, or perhaps skips. Replay IDs cannot be compared, so only LATEST is known
    /// to go on; of any other place the stream tells, by what it brings, that it lies back. That is an event: a
    /// keepalive's place may be that of an event of another topic, and is never brought again.
    pub(super) fn hole(self, to: &Start) -> Option<Hole> {
        let end = match to {
            Start::Latest => return Some(self.skipped()),
            Start::Earliest => None,
            Start::After(id) => Some(id),
        };
        let known = [&self.position, &self.event].into_iter().flatten();
        if known.into_iter().any(|place| Some(place) == end) {
            return None;
        }
        let from = self.event.or(self.position).or(self.begun_with);
        // A start at LATEST to which nothing came can miss something only beyond a place that was given.
        let begun = self.begun_at.is_some() && end.is_some();
        (from.is_some() || begun).then(|| Hole {
            reason: PERHAPS_SKIPPED.to_owned(),
            to: end.cloned(),
            from_time: self.time.or(self.begun_at.filter(|_| from.is_none())),
            from,
            explanation: match end {
                Some(_) => PERHAPS_AFTER,
                None => PERHAPS_GONE,
            }
            .to_owned(),
            ..lost_by_rewind()
        })
    }

    /// What lies between here and LATEST; its end is the first event or keepalive that comes.
    fn skipped(self) -> Hole {
        Hole {
            reason: "skipped_by_rewind".to_owned(),
            from: self.position,
            from_time: self.time,
            explanation: "a person rewound the subscription to LATEST: what lay between its position and the \
                          first event after it was not handled"
                .to_owned(),
            ..lost_by_rewind()
        }
    }
}

const PERHAPS_AFTER: &str = "a person rewound the subscription from the beginning of this hole to its end. Which of the \
     two comes first is not known, for replay IDs are opaque: if that was a leap forward, what lies between was \
     not handled, and can be had by a replay from the beginning. If it was a step back, nothing was skipped, and \
     this hole closes by itself when the stream comes by its beginning again";

const PERHAPS_GONE: &str = "a person rewound the subscription to the earliest event that the bus kept: if the beginning \
     of this hole had left the bus by then, what followed it up to that event was not handled. If not, nothing \
     was skipped, and this hole closes by itself when the stream comes by its beginning again";

fn lost_by_rewind() -> Hole {
    Hole {
        kind: HoleKind::Lost,
        reason: String::new(),
        from: None,
        to: None,
        from_time: None,
        to_time: None,
        entity: None,
        record_ids: Vec::new(),
        explanation: String::new(),
    }
}

/// The columns `arguments` and `progress` of a command. What a person wrote there and is no JSON reads as
/// nothing, which whoever reads on says.
pub(super) fn command_json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// A row of `position_mark`.
pub(super) fn position_mark((at, position): (i64, Vec<u8>)) -> Option<PositionMark> {
    Some(PositionMark {
        at: from_ms(at),
        position: replay_id(Some(position))?,
    })
}
