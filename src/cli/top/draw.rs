//! Drawing: from what was seen and how it is looked at to the cells of a screen, and nothing else.
//!
//! Only the terminal's own colours are used, so that it reads on a dark and on a light one, and no state is told by
//! colour alone.

mod detail;
mod list;
mod spark;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::picture::{Picture, Seen};
use super::view::{Page, View};
use crate::status::Subscription;
use crate::status::text::{counted, length, one_line, since};

/// Narrower or lower, and there is nothing to be read.
const LEAST: (u16, u16) = (40, 8);

/// How things look: with colours, or by weight alone.
#[derive(Debug, Clone, Copy)]
struct Theme {
    colour: bool,
}

impl Theme {
    fn ink(self, colour: Color) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn well(self) -> Style {
        self.ink(Color::Green)
    }

    /// Passes by itself, or is meant so.
    fn passing(self) -> Style {
        self.ink(Color::Yellow)
    }

    /// Needs a person.
    fn wrong(self) -> Style {
        self.ink(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn of_state(self, one: &Subscription) -> Style {
        match one.state.as_str() {
            "blocked" | "refused" => self.wrong(),
            "live" => self.well(),
            _ if one.needs_a_person && !one.held => self.wrong(),
            _ => self.passing(),
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, seen: &Seen, view: &mut View, now: SystemTime) {
    let area = frame.area();
    let theme = Theme {
        colour: view.colour,
    };
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (columns, rows) = LEAST;
        frame.render_widget(
            Paragraph::new(format!("at least {columns} x {rows}, please")),
            area,
        );
        return;
    }
    let trouble = seen.trouble.as_ref().map(|trouble| no_answer(trouble, now));
    let [top, above, page, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(trouble.is_some())),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(seen, theme), top);
    if let Some(text) = trouble {
        frame.render_widget(Line::styled(text, theme.wrong()), above);
    }
    match (&seen.picture, view.page) {
        (None, _) => {
            let text = match seen.trouble {
                Some(_) => "",
                None => "reading the store",
            };
            frame.render_widget(Line::styled(text, theme.faint()), page);
        }
        (Some(picture), Page::List) => list::draw(frame, page, picture, view, theme),
        (Some(picture), Page::Detail) => detail::draw(frame, page, picture, view, theme),
    }
    frame.render_widget(footer(view, theme), bottom);
    if view.help {
        help(frame, area, theme);
    }
}

fn no_answer((since_then, why): &(SystemTime, String), now: SystemTime) -> String {
    let ago = length(since(*since_then, now));
    format!("no answer from the store for {ago}: {}", one_line(why))
}

/// Which org, how much there is, and of when.
fn header(seen: &Seen, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::styled("orgstream", theme.heading())];
    if let Some(Picture { overview, .. }) = &seen.picture {
        let count = |count: usize, noun| counted(u64::try_from(count).unwrap_or(u64::MAX), noun);
        if let Some(org) = &overview.org_id {
            spans.push(format!("  org {org}").into());
        }
        spans.push(format!("  {}", count(overview.subscriptions.len(), "subscription")).into());
        let workers = format!("  {}", count(overview.workers.len(), "worker"));
        spans.push(
            match overview.workers.is_empty() && !overview.subscriptions.is_empty() {
                true => Span::styled(workers, theme.wrong()),
                false => workers.into(),
            },
        );
        if let Some(allocation) = overview.allocation {
            let percent = allocation.used_percent();
            let text = format!("  {percent} % of {} deliveries used", allocation.max);
            spans.push(match percent {
                90.. => Span::styled(text, theme.wrong()),
                _ => text.into(),
            });
        }
    }
    Line::from(spans)
}

/// The keys, and what they have set.
fn footer(view: &View, theme: Theme) -> Line<'static> {
    let order = view.order.word();
    let keys = match view.page {
        Page::List => {
            format!("q end  up/down choose  enter details  s sort: {order}  p pause  ? help")
        }
        Page::Detail => "q back  up/down scroll  p pause  ? help".to_owned(),
    };
    let mut spans = Vec::new();
    if view.is_paused() {
        spans.push(Span::styled("paused", theme.chosen()));
        spans.push("  ".into());
    }
    spans.push(Span::styled(keys, theme.faint()));
    Line::from(spans)
}

const HELP: [(&str, &str); 8] = [
    ("up, down, k, j", "choose a subscription, or scroll"),
    ("enter", "details of the chosen one; back"),
    ("s", "order: name, need, lag, rate, parked"),
    ("p, space", "pause the refreshing, and go on"),
    ("r", "refresh now"),
    ("q, escape", "back, or end"),
    ("ctrl-c", "end"),
    ("?, h", "this help; any key closes it"),
];

fn help(frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let mut lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(keys, what)| {
            Line::from(vec![
                Span::styled(format!("{keys:<16}"), theme.heading()),
                (*what).into(),
            ])
        })
        .collect();
    lines.push(Line::default());
    lines.push("LAG: how far behind, as its worker said some seconds ago".into());
    lines.push("KEPT: how long the bus keeps what follows the position".into());
    let wanted = u16::try_from(lines.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2);
    let (width, height) = (area.width.min(64), area.height.min(wanted));
    let over = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, over);
    let block = Block::bordered().title(" keys ");
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(text.block(block), over);
}
