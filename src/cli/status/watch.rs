//! `orgstream status --watch`: the same again and again.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::{Source, tables};
use crate::cli::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::{note, one_line, print};
use crate::event::rfc3339;
use crate::status::Overview;

/// Shows it every `pause` until Ctrl-C. A database that does not answer is told, and asked again.
pub(super) async fn run(source: &Source<'_>, pause: Duration) -> Result<ExitCode, Failure> {
    let interrupt = Interrupt::listen()?;
    let mut screen = Screen::new();
    loop {
        let Some(found) = interrupt.or(source.overview()).await else {
            break;
        };
        match found {
            Ok(overview) if source.args.output.json => source.json(&overview, true)?,
            Ok(overview) => screen.show(&block(&overview), overview.at)?,
            Err(Failure::Failed(error)) => screen.fail(&error, source.args.output.json)?,
            // A configuration that can never work, or a reader that is gone.
            Err(other) => return Err(other),
        }
        if interrupt.or(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tables and advice, as one text.
fn block(overview: &Overview) -> String {
    let mut text = tables::text(overview);
    if overview.subscriptions.is_empty() {
        text.push_str(tables::EMPTY);
        text.push('\n');
    }
    let mut advice = overview.subscriptions.iter().flat_map(|one| &one.advice);
    if let Some(first) = advice.next() {
        text.push('\n');
        for line in std::iter::once(first).chain(advice) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// A time, to the second.
fn second(at: SystemTime) -> String {
    let since_1970 = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(since_1970.as_secs()))
}

/// Where it is shown: in place on a terminal, else one block after another.
struct Screen {
    terminal: bool,
    /// What was shown last, to be kept in sight while the database is away.
    last: String,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            last: String::new(),
        }
    }

    fn show(&mut self, text: &str, at: SystemTime) -> Result<(), Failure> {
        text.clone_into(&mut self.last);
        self.draw(&format!("{}\n\n{text}", second(at)))
    }

    /// Says why there is nothing new; on a terminal above what was shown last, which is dated no more.
    fn fail(&self, error: &anyhow::Error, json: bool) -> Result<(), Failure> {
        let why = one_line(&format!("{error:#}"));
        let at = second(SystemTime::now());
        match self.terminal && !json {
            true => self.draw(&format!(
                "{at}  no answer, asking again: {why}\n\n{}",
                self.last
            )),
            false => {
                note(&format!("{at}  no answer, asking again: {why}"));
                Ok(())
            }
        }
    }

    fn draw(&self, text: &str) -> Result<(), Failure> {
        if self.terminal {
            print(&in_place(text, ratatui::crossterm::terminal::size().ok()))
        } else {
            print(&format!("{text}\n"))
        }
    }
}

/// Over whatever the screen shows: from its first line on, each line cut at the right edge and the rest of it
/// cleared, and no more lines than there are. Cleared line by line, for a screen that is cleared whole flickers.
fn in_place(text: &str, size: Option<(u16, u16)>) -> String {
    let (columns, rows) = size.map_or((usize::MAX, usize::MAX), |(columns, rows)| {
        (usize::from(columns), usize::from(rows))
    });
    let lines: Vec<String> = text
        .lines()
        .take(rows.saturating_sub(1).max(1))
        .map(|line| line.chars().take(columns).collect())
        .collect();
    format!("\u{1b}[H{}\u{1b}[K\r\n\u{1b}[J", lines.join("\u{1b}[K\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_drawn_over_and_never_scrolled() {
        let text = in_place("one\nlonger\nthree\n", Some((4, 3)));
        assert_eq!(text, "\u{1b}[Hone\u{1b}[K\r\nlong\u{1b}[K\r\n\u{1b}[J");
        let whole = in_place("one\ntwo\n", None);
        assert_eq!(whole, "\u{1b}[Hone\u{1b}[K\r\ntwo\u{1b}[K\r\n\u{1b}[J");
    }
}
