//! The header that every change event carries.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;
use smol_str::SmolStr;

use super::FieldNames;

/// Kind of change, from `ChangeEventHeader.changeType`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChangeType {
    /// A record was created.
    Create,
    /// Fields of a record changed.
    Update,
    /// A record was deleted.
    Delete,
    /// A record came back from the recycle bin.
    Undelete,
    /// A creation whose content the bus could not carry.
    GapCreate,
    /// An update whose content the bus could not carry.
    GapUpdate,
    /// A deletion whose content the bus could not carry.
    GapDelete,
    /// An undeletion whose content the bus could not carry.
    GapUndelete,
    /// More than 100,000 changes in one transaction: one such event for each entity beyond that.
    GapOverflow,
    /// Reserved by the platform.
    Snapshot,
    /// A symbol this version does not know; kept as sent.
    Other(Box<str>),
}

impl ChangeType {
    /// From the enum symbol of the schema, for example `GAP_UPDATE`.
    pub fn from_symbol(symbol: &str) -> Self {
        match symbol {
            "CREATE" => Self::Create,
            "UPDATE" => Self::Update,
            "DELETE" => Self::Delete,
            "UNDELETE" => Self::Undelete,
            "GAP_CREATE" => Self::GapCreate,
            "GAP_UPDATE" => Self::GapUpdate,
            "GAP_DELETE" => Self::GapDelete,
            "GAP_UNDELETE" => Self::GapUndelete,
            "GAP_OVERFLOW" => Self::GapOverflow,
            "SNAPSHOT" => Self::Snapshot,
            other => Self::Other(other.into()),
        }
    }

    /// The enum symbol, as the platform spells it.
    pub fn symbol(&self) -> &str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Undelete => "UNDELETE",
            Self::GapCreate => "GAP_CREATE",
            Self::GapUpdate => "GAP_UPDATE",
            Self::GapDelete => "GAP_DELETE",
            Self::GapUndelete => "GAP_UNDELETE",
            Self::GapOverflow => "GAP_OVERFLOW",
            Self::Snapshot => "SNAPSHOT",
            Self::Other(symbol) => symbol,
        }
    }

    /// The symbol in small letters.
    pub(super) fn lowercase(&self) -> Cow<'_, str> {
        Cow::Borrowed(match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::GapCreate => "gap_create",
            Self::GapUpdate => "gap_update",
            Self::GapDelete => "gap_delete",
            Self::GapUndelete => "gap_undelete",
            Self::GapOverflow => "gap_overflow",
            Self::Snapshot => "snapshot",
            Self::Other(symbol) => return symbol.to_ascii_lowercase().into(),
        })
    }

    /// True where the change came without its content.
    pub fn is_gap(&self) -> bool {
        matches!(
            self,
            Self::GapCreate
                | Self::GapUpdate
                | Self::GapDelete
                | Self::GapUndelete
                | Self::GapOverflow
        )
    }
}

impl fmt::Display for ChangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.symbol())
    }
}

/// IDs of records: one, most often, which lies here without an allocation.
pub type RecordIds = SmallVec<[SmolStr; 1]>;

/// `ChangeEventHeader` with its bitmaps resolved to field names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeEventHeader {
    /// API name of the object, for example `Account`.
    pub entity_name: SmolStr,
    /// IDs of the records that this one event changes; may hold `001*` or the overflow dummy.
    pub record_ids: RecordIds,
    /// What kind of change.
    pub change_type: ChangeType,
    /// Which API and client made the change; may be empty.
    pub change_origin: SmolStr,
    /// Shared by all events of one transaction.
    pub transaction_key: SmolStr,
    /// Place within the transaction, from 1.
    pub sequence_number: i32,
    /// Milliseconds since 1970.
    pub commit_timestamp: i64,
    /// Grows with commits; often beyond 2^53.
    pub commit_number: i64,
    /// User ID.
    pub commit_user: SmolStr,
    /// Fields set to null, by name.
    pub nulled_fields: FieldNames,
    /// Fields sent as a diff, by name.
    pub diff_fields: FieldNames,
    /// Fields changed, by name.
    pub changed_fields: FieldNames,
}

/// When a change was committed. Changes of one record are on the bus in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The commit time; a whole second in every sample (facts 7.2).
    pub at: SystemTime,
    /// `commitNumber`, which grows with commits: what tells those of one second apart. Never by itself, for another
    /// database of the org may count otherwise.
    pub number: Option<i64>,
}

impl Commit {
    /// True where it is certain that this one was before the other.
    pub fn is_before(&self, other: &Self) -> bool {
        let numbers = self.number.zip(other.number);
        self.at < other.at
            || (self.at == other.at && numbers.is_some_and(|(own, other)| own < other))
    }
}

impl ChangeEventHeader {
    /// When a change received then was committed; `None` where that cannot be: clocks do not differ by a day.
    pub fn commit(&self, received_at: SystemTime) -> Option<Commit> {
        const DAY: Duration = Duration::from_secs(86_400);
        let at = self.committed_at()?;
        let latest = received_at.checked_add(DAY)?;
        (at <= latest).then_some(Commit {
            at,
            number: Some(self.commit_number).filter(|number| *number > 0),
        })
    }

    /// The commit time, where it is one a clock can hold.
    pub fn committed_at(&self) -> Option<SystemTime> {
        u64::try_from(self.commit_timestamp)
            .ok()
            .and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)))
    }

    /// True for an event that concerns a whole entity instead of the records it names: an overflow, or
    /// a wildcard such as `001*` (facts 7.6).
    pub fn is_entity_wide(&self) -> bool {
        self.change_type == ChangeType::GapOverflow
            || self.record_ids.iter().any(|id| is_entity_wide_id(id))
    }
}

/// True for a record ID that stands for a whole entity: a wildcard such as `001*`, or the dummy of an
/// overflow (facts 7.6).
pub fn is_entity_wide_id(id: &str) -> bool {
    id.ends_with('*') || id == "000000000000000AAA"
}
