//! What the commands print: tables, JSON, ages; and notes for a person on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Failure;

/// What stands for an absent value in a table.
pub(super) const NONE: &str = "-";

/// Prints text on standard output and lets it out at once.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            // Whoever read has enough, as `head` does.
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Failed(anyhow::anyhow!("cannot write to standard output: {error}")),
        })
}

/// Prints a line on standard output.
pub(super) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    print_line(&text)
}

/// Prints a value as one line of JSON.
pub(super) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    print_line(&text)
}

/// Says something to the person at the terminal, on standard error. Where nobody can read it, nothing is
/// lost that an exit code or standard output does not say.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Asks the person at the terminal, on the same line.
pub(super) fn ask(text: &str) {
    let mut err = io::stderr().lock();
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// A line on a terminal that changes while one waits; nothing where there is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    last: String,
}

impl Progress {
    /// `wanted` is false where output is for a program.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            shown: wanted && io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// Puts `text` in the place of what was shown before.
    pub(super) fn show(&mut self, text: &str) {
        if self.shown && self.last != text {
            // Back to the first column, and the rest of the line cleared.
            ask(&format!("\r\u{1b}[K{text}"));
            text.clone_into(&mut self.last);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.last.is_empty() {
            ask("\r\u{1b}[K");
        }
    }
}

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with this heading and no rows.
    pub(super) fn new(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned)],
        }
    }

    /// Adds a row. A line break within a cell becomes a space.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| one_line(&cell)));
    }

    /// All rows as text, each with its line break.
    pub(super) fn text(&self) -> String {
        let widths: [usize; N] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        });
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text with every control character made a space: what comes from outside may not steer a terminal.
pub(super) fn one_line(text: &str) -> String {
    crate::text::one_line(text, usize::MAX)
}

/// How long ago, as `12 s`, `4 min`, `3 h 20 min` or `5 d`; nothing for what never was.
pub(super) fn age(then: Option<SystemTime>, now: SystemTime) -> String {
    then.map_or_else(|| NONE.to_owned(), |then| length(since(then, now)))
}

/// Time from `then` to `now`; none where a clock was set back between them.
pub(super) fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// A length of time for people: its two greatest units at most.
pub(super) fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// JSON text with line breaks and indentation, every token as it was: keys keep their order and numbers
/// their digits. The text has to be JSON.
pub(super) fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push(c);
                copy_text(&mut chars, &mut out);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                if let Some(end) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

/// Copies the rest of a JSON string, its closing quote included.
fn copy_text(chars: &mut impl Iterator<Item = char>, out: &mut String) {
    while let Some(c) = chars.next() {
        out.push(c);
        match c {
            '\\' => out.extend(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["accounts".into(), "live".into()]);
        table.row(["o".into(), String::new()]);
        assert_eq!(table.text(), "NAME      STATE\naccounts  live\no\n");
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let mut table = Table::new(["DETAIL"]);
        table.row(["two\nlines\u{1b}[2J".into()]);
        assert_eq!(table.text(), "DETAIL\ntwo lines [2J\n");
    }

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

    #[test]
    fn indenting_changes_no_token() {
        let given = r#"{"b":[ ],"a":{"n":9007199254740993,"t":"x, \"y\": {\\"},"l":[1.50,{}]}"#;
        let text = indented(given);
        assert_eq!(
            text,
            "{\n  \"b\": [],\n  \"a\": {\n    \"n\": 9007199254740993,\n    \"t\": \"x, \\\"y\\\": {\\\\\"\n  },\n  \
             \"l\": [\n    1.50,\n    {}\n  ]\n}"
        );
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(given), parse(&text));
    }
}
