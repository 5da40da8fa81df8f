//! Values as JSON text, appended to a buffer. No I/O.

/// Text in quotes, escaped.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    put_text(out, text);
    out.push(b'"');
}

/// Text that is to stand between quotes, escaped.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = first_special(rest) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else {
            break;
        };
        put_escaped(out, *byte);
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn put_escaped(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            put_hex_digits(out, &[byte]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Where the first byte is that has to be escaped.
fn first_special(bytes: &[u8]) -> Option<usize> {
    let special = |byte: &u8| (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    // Most text has none, so whole chunks are tested without an early exit: that takes one comparison.
    let clean = |chunk: &[u8; 16]| !chunk.iter().fold(false, |any, byte| any | special(byte));
    let (chunks, _) = bytes.as_chunks();
    let passed = 16 * chunks.iter().take_while(|chunk| clean(chunk)).count();
    // What is left is tested with what is before it.
    if bytes.len() < passed + 16 && bytes.last_chunk().is_some_and(clean) {
        return None;
    }
    let found = bytes[passed..].iter().position(special)?;
    Some(passed + found)
}

/// A whole number, digit for digit.
pub(crate) fn put_integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// The shortest digits that read back as the same double. JSON has no NaN and no infinity: they
/// become strings.
pub(crate) fn put_double(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        put_non_finite(out, value);
    }
}

/// As [`put_double`], for single precision.
pub(crate) fn put_float(out: &mut Vec<u8>, value: f32) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        put_non_finite(out, f64::from(value));
    }
}

fn put_non_finite(out: &mut Vec<u8>, value: f64) {
    let name: &[u8] = if value.is_nan() {
        br#""NaN""#
    } else if value > 0.0 {
        br#""Infinity""#
    } else {
        br#""-Infinity""#
    };
    out.extend_from_slice(name);
}

/// Bytes as hexadecimal text in quotes.
pub(crate) fn put_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    put_hex_digits(out, bytes);
    out.push(b'"');
}

fn put_hex_digits(out: &mut Vec<u8>, bytes: &[u8]) {
    hex_digits(bytes, |digits| out.extend_from_slice(digits));
}

/// Bytes as hexadecimal text.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    hex_digits(bytes, |digits| {
        text.extend(digits.iter().copied().map(char::from));
    });
}

/// Gives the hexadecimal digits of bytes, many at a time.
pub(crate) fn hex_digits(bytes: &[u8], mut put: impl FnMut(&[u8])) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 64];
    for chunk in bytes.chunks(32) {
        let (pairs, _) = digits.as_chunks_mut();
        for (pair, byte) in pairs.iter_mut().zip(chunk) {
            let [high, low] = [byte >> 4, byte & 15];
            *pair = [DIGITS[usize::from(high)], DIGITS[usize::from(low)]];
        }
        put(&digits[..2 * chunk.len()]);
    }
}

/// Finishes an object or array whose every element was written with a comma before it: the first
/// comma becomes the opening bracket. Says whether there was an element.
pub(crate) fn close(out: &mut Vec<u8>, start: usize, [open, close]: [u8; 2]) -> bool {
    let filled = match out.get_mut(start) {
        Some(comma) => {
            *comma = open;
            true
        }
        None => {
            out.push(open);
            false
        }
    };
    out.push(close);
    filled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_reads_back_as_itself(text in "(\\PC|[\\x00-\\x1f\"\\\\]){0,60}") {
            let mut out = Vec::new();
            put_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn any_double_reads_back_as_itself(value in any::<f64>(), single in any::<f32>()) {
            let mut out = Vec::new();
            put_double(&mut out, value);
            prop_assert_eq!(std::str::from_utf8(&out).unwrap().parse::<f64>().unwrap(), value);
            let mut out = Vec::new();
            put_float(&mut out, single);
            prop_assert_eq!(std::str::from_utf8(&out).unwrap().parse::<f32>().unwrap(), single);
        }
    }

    #[test]
    fn hexadecimal_digits_are_those_of_every_byte() {
        for length in [0, 1, 10, 31, 32, 33, 64, 300] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            let mut text = String::new();
            push_hex(&mut text, &bytes);
            assert_eq!(text, hex::encode(&bytes));
        }
    }

    #[test]
    fn numbers_that_json_does_not_have_are_strings() {
        for (value, text) in [
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"Infinity\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
            (3233.0, "3233.0"),
            (-0.0, "-0.0"),
        ] {
            let mut out = Vec::new();
            put_double(&mut out, value);
            assert_eq!(std::str::from_utf8(&out).unwrap(), text);
        }
    }
}
