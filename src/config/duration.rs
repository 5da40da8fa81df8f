//! Durations (`500ms`, `1m30s`, `12h`, `2d`) and sizes (`32MiB`) as people write them.

use std::time::Duration;

/// Longest duration accepted. Beyond it there is only a slip of the hand, and clock arithmetic that could
/// overflow.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

const DURATION_HELP: &str =
    "expected a duration with its unit, for example 500ms, 30s, 1m30s, 12h or 2d";
const BYTES_HELP: &str = "expected a size with its unit, for example 64KiB, 32MiB or 1GiB";

/// Units with their length in milliseconds, longest first.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Units with their number of bytes, the largest binary ones first.
const BYTE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a duration: one or more whole numbers, each with a unit of `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
///
/// A sentence that says what was expected; it never repeats the text, which may have come from a variable
/// that holds a secret.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let millis = sum_of_parts(text, |unit| {
        DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, millis)| *millis)
    })
    .ok_or(DURATION_HELP)?;
    let duration = Duration::from_millis(millis);
    if duration > LONGEST {
        return Err("longer than ten years".to_owned());
    }
    Ok(duration)
}

/// Reads a size in bytes: a whole number with `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`; a bare number
/// is bytes.
///
/// # Errors
///
/// A sentence that says what was expected, without the text.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let bytes = if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        sum_of_parts(text, |unit| {
            BYTE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, bytes)| *bytes)
        })
    };
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| BYTES_HELP.to_owned())
}

/// Writes a duration so that [`parse_duration`] reads the same again (to the millisecond).
pub(super) fn format_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, millis) in DURATION_UNITS {
        if left >= millis {
            text.push_str(&format!("{}{unit}", left / millis));
            left %= millis;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// Writes a size in the largest binary unit that holds it whole.
pub(super) fn format_bytes(bytes: usize) -> String {
    let bytes = bytes as u64;
    BYTE_UNITS
        .iter()
        .filter(|(unit, _)| unit.ends_with("iB"))
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, size)| format!("{}{unit}", bytes / size),
        )
}

/// Adds up `12h30m`-like text; `None` for anything else, an overflow included.
fn sum_of_parts(text: &str, size_of: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let part = number.parse::<u64>().ok()?.checked_mul(size_of(unit)?)?;
        sum = sum.checked_add(part)?;
        rest = after.trim_start();
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1m", 60_000),
            ("1m30s", 90_000),
            ("12h", 43_200_000),
            (" 2 d ", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1 week",
            "99999999999999999999d",
            "9999999d",
            "1ｓ",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_carry_a_binary_or_decimal_unit() {
        for (text, bytes) in [
            ("32MiB", 32 << 20),
            ("64kib", 64 << 10),
            ("1 GB", 1_000_000_000),
            ("65536", 65536),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "1TiB", "99999999999999999999"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same_again(millis in 0u64..1 << 38, bytes in 0usize..1 << 40) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_them_panic(text in "\\PC*") {
            let _ = parse_duration(&text);
            let _ = parse_bytes(&text);
        }
    }
}
