//! Texts from elsewhere, made fit for a log, a terminal or a dead letter.

/// One line of at most so many characters: what comes from outside may neither steer a terminal nor fill a log.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(longest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_on_one_line() {
        assert_eq!(one_line("a\u{1b}[2J\nb", 99), "a [2J b");
        assert_eq!(one_line("ÄÖÜß", 3), "ÄÖÜ");
    }
}
