//! What the commands print: tables, JSON, ages; and notes for a person on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::Failure;
pub(super) use crate::letters::json::indented;

pub(super) use crate::status::text::{NONE, age, length, one_line};

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
}
