//! What both stores share: how values are written, and the decisions that are not SQL.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::{Footing, HoleKind, Recent, Refused, StoreError, SubscriptionKey, Tenure};
use crate::config::Start;
use crate::event::{Commit, OrgId, ReplayId, Topic};

/// Record IDs kept of one hole; a gap may name any number, and its count is kept beside them.
pub(super) const MAX_HOLE_RECORDS: usize = 1_000;

/// The least distance of two position marks of one subscription, in milliseconds.
pub(super) const MARK_INTERVAL_MS: i64 = 60_000;

/// Milliseconds since 1970: how times travel to the database and rest in SQLite.
pub(super) fn to_ms(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => span_ms(after),
        Err(before) => -span_ms(before.duration()),
    }
}

/// A span of time in milliseconds.
pub(super) fn span_ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The time that [`to_ms`] wrote. A value no clock can hold reads as 1970.
pub(super) fn from_ms(ms: i64) -> SystemTime {
    let span = Duration::from_millis(ms.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if ms < 0 {
        epoch.checked_sub(span)
    } else {
        epoch.checked_add(span)
    };
    time.unwrap_or(epoch)
}

/// The time of a position mark, unless no event can have been committed then: a commit time comes from a
/// payload, and one from the far future would be the last mark for long.
pub(super) fn mark_ms(at: SystemTime) -> Option<i64> {
    const DAY_MS: i64 = 86_400_000;
    let at = to_ms(at);
    (0..=to_ms(SystemTime::now()).saturating_add(DAY_MS))
        .contains(&at)
        .then_some(at)
}

/// Start of the minute that a time is in, in milliseconds since 1970.
pub(super) fn minute_ms(at: SystemTime) -> i64 {
    let at = to_ms(at);
    at.saturating_sub(at.rem_euclid(60_000))
}

/// A stored lag in seconds; one that no span of time can be is none.
pub(super) fn lag_from(seconds: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds?).ok()
}

/// When a change was committed, as it is in the columns `committed_at` (in milliseconds) and `commit_number`.
pub(super) fn commit(at_ms: Option<i64>, number: Option<i64>) -> Option<Commit> {
    let at = from_ms(at_ms?);
    Some(Commit { at, number })
}

/// Counters are 64 bits with a sign in SQL.
pub(super) fn to_sql_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A counter as read; never below zero.
pub(super) fn from_sql_count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Text as Postgres can hold it: publishers may send U+0000, which its `text` refuses.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Each of a list as [`plain`] text.
pub(super) fn plain_list(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| plain(text).into_owned()).collect()
}

/// A stored replay ID; null and empty are none.
pub(super) fn replay_id(stored: Option<Vec<u8>>) -> Option<ReplayId> {
    stored.and_then(|bytes| ReplayId::from_wire(&bytes))
}

/// Kind of a hole, as stored. Postgres writes it by a statement for each kind.
#[cfg(feature = "sqlite")]
pub(super) fn kind_text(kind: HoleKind) -> &'static str {
    match kind {
        HoleKind::Lost => "lost",
        HoleKind::Gap => "gap",
    }
}

/// Reads what `kind_text` wrote; the tables allow nothing else.
pub(super) fn kind_from(text: &str) -> HoleKind {
    if text == "gap" {
        HoleKind::Gap
    } else {
        HoleKind::Lost
    }
}

/// A stored organization ID.
pub(super) fn org_from(text: &str) -> Result<OrgId, StoreError> {
    OrgId::parse(text).map_err(|error| unreadable("org_id", text, &error))
}

/// A stored topic.
pub(super) fn topic_from(text: &str) -> Result<Topic, StoreError> {
    text.parse()
        .map_err(|error| unreadable("topic", text, &error))
}

fn unreadable(column: &str, text: &str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Unavailable(format!(
        "a row holds the {column} `{text}`, which orgstream did not write ({error}): correct the row"
    ))
}

/// Refuses the positions of another org.
pub(super) fn same_org(stored: &str, given: &OrgId) -> Result<(), StoreError> {
    let stored = org_from(stored)?;
    if stored == *given {
        Ok(())
    } else {
        Err(StoreError::OtherOrg {
            stored,
            given: given.clone(),
        })
    }
}

/// Refuses a name that is bound to another topic (design 3.1, rule 4).
pub(super) fn same_topic(stored: &str, key: &SubscriptionKey) -> Result<(), StoreError> {
    if stored == key.topic.as_str() {
        Ok(())
    } else {
        Err(StoreError::TopicChanged {
            name: key.name.clone(),
            stored: stored.to_owned(),
            given: key.topic.to_string(),
        })
    }
}

/// Refuses a new name whose topic was streamed by `others`, one of which is configured no more: beginning
/// anew would drop its position (design 3.1, rule 4).
pub(super) fn not_a_rename(
    key: &SubscriptionKey,
    others: &[String],
    configured: &[String],
    start_is_explicit: bool,
) -> Result<(), StoreError> {
    if start_is_explicit {
        return Ok(());
    }
    match others.iter().find(|other| !configured.contains(other)) {
        None => Ok(()),
        Some(old) => Err(StoreError::RenameSuspected {
            name: key.name.clone(),
            old: old.clone(),
            topic: key.topic.to_string(),
        }),
    }
}

/// Refuses a name that a person gave up: who has it in its configuration still means what is called `new`
/// now. On another topic it is another subscription.
pub(super) fn not_given_up(
    key: &SubscriptionKey,
    former: Option<(String, String)>,
) -> Result<(), StoreError> {
    match former {
        Some((new, topic)) if topic == key.topic.as_str() => Err(StoreError::Renamed {
            name: key.name.clone(),
            new,
            topic,
        }),
        _ => Ok(()),
    }
}

/// Where a subscription would go on, by whether it has a position and whether it began at LATEST.
pub(super) fn footing(placed: bool, begun: bool) -> Footing {
    match (placed, begun) {
        (true, _) => Footing::Placed,
        (false, true) => Footing::Begun,
        (false, false) => Footing::New,
    }
}

/// What a worker was refused, as stored: a JSON array.
pub(super) fn refused_json(refused: &[Refused]) -> String {
    let all = refused.iter().map(|one| {
        serde_json::json!({
            "name": plain(&one.name), "topic": plain(&one.topic), "why": plain(&one.why),
        })
    });
    serde_json::Value::from_iter(all).to_string()
}

/// Reads what [`refused_json`] wrote. Of another version's words nothing can be told.
pub(super) fn refused_from(json: &str) -> Vec<Refused> {
    serde_json::from_str(json).unwrap_or_default()
}

/// Where a subscription without a position begins, as stored; a replay ID would be a position.
pub(super) fn begin_text(begin: &Start) -> Option<&'static str> {
    match begin {
        Start::Earliest => Some("earliest"),
        Start::Latest => Some("latest"),
        Start::After(_) => None,
    }
}

/// Reads what [`begin_text`] wrote, which counts while there is no position.
pub(super) fn begin_from(text: Option<&str>, position: Option<&ReplayId>) -> Option<Start> {
    match (text, position) {
        (Some("earliest"), None) => Some(Start::Earliest),
        (Some("latest"), None) => Some(Start::Latest),
        _ => None,
    }
}

/// How many events came between two marks: the time in milliseconds and the count of each.
pub(super) fn recent((from, before): (i64, i64), (to, received): (i64, i64)) -> Option<Recent> {
    let over = u64::try_from(to.checked_sub(from)?)
        .ok()
        .filter(|ms| *ms > 0)?;
    Some(Recent {
        events: from_sql_count(received.saturating_sub(before)),
        over: Duration::from_millis(over),
    })
}

/// Refuses what a person paused.
pub(super) fn not_paused(paused: bool, key: &SubscriptionKey) -> Result<(), StoreError> {
    if paused {
        return Err(StoreError::Paused {
            subscription: key.name.clone(),
        });
    }
    Ok(())
}

/// Who may run a subscription, by its last holder and what is left of the lease in milliseconds; `None`
/// where it was given back or never taken.
pub(super) fn tenure(holder: Option<String>, rest_ms: Option<i64>) -> Tenure {
    match (holder, rest_ms.map(u64::try_from)) {
        (None, _) | (_, None) => Tenure::Free,
        (Some(holder), Some(Ok(rest))) if rest > 0 => Tenure::Held {
            holder,
            rest: Duration::from_millis(rest),
        },
        _ => Tenure::Lapsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_round_trip_to_the_millisecond() {
        for ms in [0, 1, -1, 1_795_000_000_123, -62_135_596_800_000] {
            assert_eq!(to_ms(from_ms(ms)), ms);
        }
        // Whatever a row holds, reading it does not panic.
        for ms in [i64::MIN, i64::MAX] {
            from_ms(ms);
        }
    }

    #[test]
    fn a_commit_time_from_the_far_future_makes_no_mark() {
        let now = SystemTime::now();
        assert_eq!(mark_ms(now), Some(to_ms(now)));
        assert_eq!(mark_ms(now + Duration::from_secs(2 * 86_400)), None);
        assert_eq!(mark_ms(from_ms(-1)), None);
    }

    #[test]
    fn a_minute_begins_before_any_time_in_it_even_before_1970() {
        for (at, begins) in [(0, 0), (59_999, 0), (60_000, 60_000), (-1, -60_000)] {
            assert_eq!(minute_ms(from_ms(at)), begins);
        }
        minute_ms(from_ms(i64::MIN));
    }

    #[test]
    fn text_with_a_nul_character_becomes_text_that_postgres_holds() {
        assert_eq!(plain("a\0b"), "a\u{fffd}b");
        assert!(matches!(plain("ab"), Cow::Borrowed("ab")));
    }
}
