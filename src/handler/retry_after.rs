//! The `Retry-After` header (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime};

use time::{Date, Month, OffsetDateTime, Time};

/// The longest pause that the other side may ask for; a wrong clock must not hold events for a year.
const LONGEST: Duration = Duration::from_secs(3600);

/// Reads the value of a `Retry-After` header, seconds or an HTTP date, as a pause from `now` on: none
/// for a time that has passed, an hour at most. `None` where it is neither.
pub(super) fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds is more than an hour.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(LONGEST));
    }
    let now = OffsetDateTime::from(now);
    let pause = http_date(value, now.year())? - now;
    // Fails for negative ones: a time that has passed.
    let pause = Duration::try_from(pause).unwrap_or_default();
    Some(pause.min(LONGEST))
}

/// Any of the three forms of RFC 9110, section 5.6.7; the day of the week is not looked at.
fn http_date(text: &str, this_year: i32) -> Option<OffsetDateTime> {
    let parts: Vec<&str> = text
        .split([' ', ',', '-'])
        .filter(|part| !part.is_empty())
        .collect();
    let (day, month, year, time) = match parts[..] {
        // Sun, 06 Nov 1994 08:49:37 GMT and Sunday, 06-Nov-94 08:49:37 GMT
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let date = Date::from_calendar_date(
        full_year(year, this_year)?,
        month_of(month)?,
        day.parse().ok()?,
    );
    let mut clock = time.split(':').map(|part| part.parse::<u8>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // A leap second is as good as the one before.
    let time = Time::from_hms(hour, minute, second.min(59));
    Some(date.ok()?.with_time(time.ok()?).assume_utc())
}

/// Four digits as they are; two digits are the year that is nearest to this one.
fn full_year(text: &str, this_year: i32) -> Option<i32> {
    let year: i32 = text.parse().ok()?;
    match text.len() {
        4 => Some(year),
        2 => {
            let earliest = this_year - 49;
            Some(earliest + (year - earliest).rem_euclid(100))
        }
        _ => None,
    }
}

fn month_of(text: &str) -> Option<Month> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let index = MONTHS.iter().position(|month| *month == text)?;
    Month::try_from(u8::try_from(index + 1).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 1994-11-06 08:49:00, in seconds since 1970.
    const NOW: u64 = 784_111_740;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn seconds_and_all_three_forms_of_dates_are_understood() {
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("3600", Some(3600)),
            ("3601", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
            ("Sun Nov  6 08:49:37 1994", Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)), // has passed
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)), // a day ahead
            ("Sun, 06 Nov 1994 08:49:60 GMT", Some(59)), // leap second
            ("", None),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("Sun, 31 Feb 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 199999994 08:49:37 GMT", None),
        ] {
            assert_eq!(
                parse(value, at(NOW)),
                seconds.map(Duration::from_secs),
                "{value}"
            );
        }
    }

    #[test]
    fn a_year_of_two_digits_is_at_most_50_years_ahead() {
        for (text, this_year, year) in [
            ("94", 1994, 1994),
            ("05", 1999, 2005),
            ("99", 2026, 1999),
            ("27", 2026, 2027),
            ("76", 2026, 2076),
            ("77", 2026, 1977),
        ] {
            assert_eq!(
                full_year(text, this_year),
                Some(year),
                "{text} in {this_year}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_a_pause_of_more_than_an_hour(value in ".{0,40}", now in 0u64..=253_402_300_799) {
            if let Some(pause) = parse(&value, at(now)) {
                prop_assert!(pause <= LONGEST);
            }
        }

        #[test]
        fn a_date_within_the_hour_gives_the_exact_pause(now in 0u64..=4_102_444_800, ahead in 0u64..=3600) {
            let then = OffsetDateTime::from(at(now + ahead));
            let weekday = then.weekday().to_string();
            let month = then.month().to_string();
            let (day, year) = (then.day(), then.year());
            let (h, m, s) = then.to_hms();
            let value = format!(
                "{}, {day:02} {} {year:04} {h:02}:{m:02}:{s:02} GMT", &weekday[..3], &month[..3]
            );
            prop_assert_eq!(parse(&value, at(now)), Some(Duration::from_secs(ahead)), "{}", value);
        }
    }
}
