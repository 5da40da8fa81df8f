//! Places as people name them: the ends of the bus, a replay ID, a time.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::parse_duration;
use crate::event::ReplayId;

/// A place on the bus, or a time that has to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PlaceArg {
    /// The oldest event that the bus keeps.
    Earliest,
    /// What comes next.
    Latest,
    /// Right after this event.
    Id(ReplayId),
    /// A moment.
    Time(SystemTime),
}

const EXPECTED: &str = "expected latest, earliest, a replay ID in hexadecimal as `tail` and `status` print it, a time such as \
     2026-11-20T10:00:00Z, or a span such as `2h ago`";

impl FromStr for PlaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "latest" => return Ok(Self::Latest),
            "earliest" => return Ok(Self::Earliest),
            _ => {}
        }
        if let Some(span) = text.strip_suffix("ago") {
            // `2h-ago` needs no quotes.
            let span = parse_duration(span.trim_end().trim_end_matches('-'))?;
            let time = SystemTime::now().checked_sub(span);
            return time.map(Self::Time).ok_or_else(|| EXPECTED.to_owned());
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(time) => {
                let since_1970 = u64::try_from(time.unix_timestamp_nanos() / 1_000_000);
                let since_1970 = since_1970.map_err(|_| EXPECTED.to_owned())?;
                Ok(Self::Time(
                    SystemTime::UNIX_EPOCH + Duration::from_millis(since_1970),
                ))
            }
            // A time that lacks its zone is the likeliest slip.
            Err(_) if text.contains('-') && text.contains(':') => Err(format!(
                "{EXPECTED}; a time wants its zone: Z, or an offset such as +02:00"
            )),
            Err(_) => Err(EXPECTED.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_times_are_told_apart() {
        assert_eq!("earliest".parse(), Ok(PlaceArg::Earliest));
        assert_eq!("latest".parse(), Ok(PlaceArg::Latest));
        let id = "000000000010db4d0000";
        assert_eq!(id.parse(), Ok(PlaceArg::Id(id.parse().unwrap())));
        // Hexadecimal digits, and not two days: spans say `ago`.
        assert!(matches!("2d".parse(), Ok(PlaceArg::Id(_))));
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_168_800_500);
        for text in ["2026-11-20T10:00:00.5Z", "2026-11-20T12:00:00.5+02:00"] {
            assert_eq!(text.parse(), Ok(PlaceArg::Time(time)), "{text}");
        }
        for text in ["2h ago", "2h-ago", "1h60m ago"] {
            let Ok(PlaceArg::Time(time)) = text.parse() else {
                panic!("{text}");
            };
            let span = SystemTime::now().duration_since(time).unwrap();
            assert!((7200..7300).contains(&span.as_secs()), "{text}");
        }
    }

    #[test]
    fn what_is_neither_says_what_was_expected() {
        for text in [
            "",
            "yesterday",
            "12:00",
            "ago",
            "-1h ago",
            "2026-11-20",
            "0001-01-01T00:00:00Z",
        ] {
            assert!(text.parse::<PlaceArg>().is_err(), "{text}");
        }
        let error = "2026-11-20T10:00:00".parse::<PlaceArg>().unwrap_err();
        assert!(error.contains("zone"), "{error}");
    }
}
