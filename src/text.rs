//! Texts from elsewhere, made fit for a log, a terminal, a page or a dead letter.

use std::fmt::Write as _;

/// One line of at most so many characters: what comes from outside may neither steer a terminal nor fill a log, nor
/// look like something else than it is.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || is_hidden(c) {
                ' '
            } else {
                c
            }
        })
        .take(longest)
        .collect()
}

/// Text of many lines, with those characters spelt out that would steer a terminal, would not be seen, or would make the
/// rest look like something else: controls but line ends, and marks that turn the direction of writing. JSON stays the
/// same JSON.
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => out.push(character),
            _ if character.is_control() || is_hidden(character) => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out
}

/// Marks of direction, and what has no width.
fn is_hidden(character: char) -> bool {
    matches!(
        character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_on_one_line() {
        assert_eq!(one_line("a\u{1b}[2J\nb", 99), "a [2J b");
        assert_eq!(one_line("ÄÖÜß", 3), "ÄÖÜ");
        assert_eq!(one_line("a\u{202e}b\u{9b}c\u{7f}\u{2028}d", 99), "a b c  d");
    }

    #[test]
    fn what_would_steer_or_disguise_is_spelt_out_and_json_stays_the_same() {
        assert_eq!(visible("a\nb\t\u{85}\u{7f}"), "a\nb\t\\u0085\\u007f");
        let json = "{\"a\":\"\u{9b}31m \u{202e}gpj.exe \u{7f} é\"}";
        let shown = visible(json);
        assert!(
            shown.chars().all(|c| !c.is_control() && !is_hidden(c)),
            "{shown}"
        );
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(&shown), parse(json));
    }
}
