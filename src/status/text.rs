//! Lengths of time and texts from outside, as people read them.

use std::time::{Duration, SystemTime};

/// What stands for an absent value in a table.
pub const NONE: &str = "-";

/// Text with every character made a space that would steer a terminal or disguise the rest.
pub fn one_line(text: &str) -> String {
    crate::text::one_line(text, usize::MAX)
}

/// How long ago, as `12 s`, `4 min`, `3 h 20 min` or `5 d 2 h`; a dash for what never was.
pub fn age(then: Option<SystemTime>, now: SystemTime) -> String {
    then.map_or_else(|| NONE.to_owned(), |then| length(since(then, now)))
}

/// Time from `then` to `now`; none where a clock was set back between them.
pub fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// A length of time for people: its two greatest units at most.
pub fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `1 event`, `2 events`.
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_short_and_ages_of_nothing_are_a_dash() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_260, "2 h 1 min"),
            (200_000, "2 d 7 h"),
        ] {
            assert_eq!(length(Duration::from_secs(seconds)), text);
        }
        let now = SystemTime::now();
        assert_eq!(age(None, now), "-");
        assert_eq!(age(Some(now + Duration::from_secs(5)), now), "0 s");
    }
}
