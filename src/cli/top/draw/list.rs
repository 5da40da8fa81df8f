//! The list of subscriptions, and below it the workers and what needs a person.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::Theme;
use super::spark::spark;
use crate::cli::top::picture::{Figures, Picture};
use crate::cli::top::view::View;
use crate::status::text::{NONE, length, one_line, since};
use crate::status::{Overview, Subscription};

/// A column: its heading, its width, and from which width of the screen on it is shown.
struct Column {
    heading: &'static str,
    width: Constraint,
    from: u16,
    /// Numbers stand at the right edge.
    right: bool,
    cell: for<'a> fn(&'a Subscription, &Figures, Theme) -> Text<'a>,
}

const fn column(
    heading: &'static str,
    width: u16,
    from: u16,
    cell: for<'a> fn(&'a Subscription, &Figures, Theme) -> Text<'a>,
) -> Column {
    Column {
        heading,
        width: Constraint::Length(width),
        from,
        right: false,
        cell,
    }
}

const fn number(
    heading: &'static str,
    width: u16,
    from: u16,
    cell: for<'a> fn(&'a Subscription, &Figures, Theme) -> Text<'a>,
) -> Column {
    Column {
        right: true,
        ..column(heading, width, from, cell)
    }
}

const STATE: &str = "STATE";

/// On 80 columns the name has 12 left; more columns come where it has 15 beside them.
const COLUMNS: [Column; 11] = [
    Column {
        width: Constraint::Min(10),
        ..column("NAME", 0, 0, |one, _, _| one.name.as_str().into())
    },
    column("TOPIC", 28, 140, |one, _, _| one.topic.as_str().into()),
    column(STATE, 20, 0, |one, _, theme| {
        Text::styled(one.state.as_str(), theme.of_state(one))
    }),
    number("LAG", 7, 0, |one, _, _| one.lag.map_or_else(none, short)),
    column("LAST HOUR", 10, 66, |_, figures, theme| {
        Text::styled(
            spark(&figures.lags, 10),
            theme.ink(ratatui::style::Color::Cyan),
        )
    }),
    number("EV/S", 6, 72, |_, figures, _| {
        figures.rate.map_or_else(none, rate)
    }),
    number("FLIGHT", 6, 108, |one, _, _| {
        one.in_flight
            .map_or_else(none, |count| count.to_string().into())
    }),
    number("PARKED", 6, 48, |one, _, theme| {
        troubling(one, one.parked, theme)
    }),
    number("HOLES", 5, 58, |one, _, theme| {
        troubling(one, one.holes, theme)
    }),
    number("KEPT", 7, 80, |one, _, theme| kept(one, theme)),
    column("OWNER", 16, 100, |one, _, _| {
        one.owner.as_deref().unwrap_or(NONE).into()
    }),
];

fn none() -> Text<'static> {
    NONE.into()
}

/// A length of time in seven characters.
fn short(length: std::time::Duration) -> Text<'static> {
    let seconds = length.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{minutes}m"),
        7_200..172_800 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    }
    .into()
}

fn rate(rate: f64) -> Text<'static> {
    match rate {
        rate if rate < 0.05 => "0".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
    .into()
}

/// A count that waits for a person where it is more than nothing.
fn troubling(one: &Subscription, count: u64, theme: Theme) -> Text<'static> {
    match (&one.key, count) {
        (None, _) => none(),
        (Some(_), 0) => "0".into(),
        (Some(_), count) => Text::styled(count.to_string(), theme.wrong()),
    }
}

fn kept(one: &Subscription, theme: Theme) -> Text<'static> {
    match (one.kept_until, one.kept()) {
        (None, _) => none(),
        (Some(_), None) => Text::styled("over", theme.wrong()),
        (Some(_), Some(left)) if one.kept_is_short => short(left).style(theme.wrong()),
        (Some(_), Some(left)) => short(left),
    }
}

pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    view: &View,
    theme: Theme,
) {
    let overview = &picture.overview;
    if overview.subscriptions.is_empty() {
        let text = "the store knows no subscription yet: `orgstream run` makes them";
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let subscriptions = rows(overview.subscriptions.len()).saturating_add(1);
    // The list gets what it needs and half of the screen at least; the rest is shared by what is below.
    let most = (area.height / 2).max(area.height.saturating_sub(12));
    let workers = rows(overview.workers.len()).saturating_add(2).min(6);
    let [above, middle, below] = Layout::vertical([
        Constraint::Length(subscriptions.min(most)),
        Constraint::Length(workers),
        Constraint::Min(0),
    ])
    .areas(area);
    table(frame, above, picture, view, theme);
    frame.render_widget(workers_of(overview, middle.height, theme), middle);
    frame.render_widget(needs(overview, theme), below);
}

/// As wide as the states that there are.
fn state_width(all: &[&Subscription]) -> u16 {
    let longest = all.iter().map(|one| one.state.chars().count()).max();
    u16::try_from(longest.unwrap_or(0))
        .unwrap_or(0)
        .clamp(10, 20)
}

fn table(frame: &mut Frame<'_>, area: Rect, picture: &Picture, view: &View, theme: Theme) {
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| area.width >= column.from)
        .collect();
    let ordered = view.ordered(picture);
    let unknown = Figures::default();
    let rows = ordered.iter().map(|one| {
        let figures = picture.figures.get(&one.name).unwrap_or(&unknown);
        Row::new(columns.iter().map(|column| {
            let text = (column.cell)(one, figures, theme);
            Cell::new(if column.right {
                text.right_aligned()
            } else {
                text
            })
        }))
    });
    let heading = columns.iter().map(|column| {
        let text = Text::from(column.heading);
        Cell::new(if column.right {
            text.right_aligned()
        } else {
            text
        })
    });
    let widths = columns.iter().map(|column| match column.heading {
        // The longest words are rare, and leave the names little room.
        STATE => Constraint::Length(state_width(&ordered)),
        _ => column.width,
    });
    let table = Table::new(rows, widths)
        .header(Row::new(heading).style(theme.heading()))
        .row_highlight_style(theme.chosen());
    let mut state = TableState::default().with_selected(view.chosen(&ordered));
    frame.render_stateful_widget(table, area, &mut state);
}

/// A heading and a line for each worker; how many more there are, where they do not fit.
fn workers_of(overview: &Overview, height: u16, theme: Theme) -> Paragraph<'static> {
    let mut lines = vec![Line::default()];
    if overview.workers.is_empty() {
        lines.push(Line::styled(
            "no worker lives: `orgstream run` is one",
            theme.wrong(),
        ));
        return Paragraph::new(lines);
    }
    lines.push(Line::styled("WORKERS", theme.heading()));
    let room = usize::from(height).saturating_sub(2);
    let shown = match overview.workers.len() > room {
        true => room.saturating_sub(1),
        false => room,
    };
    for one in overview.workers.iter().take(shown) {
        let runs = match one.runs.is_empty() {
            true => "nothing".to_owned(),
            false => one.runs.join(", "),
        };
        let age = length(since(one.started_at, overview.at));
        lines.push(Line::from(vec![
            one_line(&one.name).into(),
            Span::styled(
                format!("  {}, for {age}, runs ", one.version),
                theme.faint(),
            ),
            runs.into(),
        ]));
    }
    let more = overview.workers.len().saturating_sub(shown);
    if more > 0 {
        lines.push(Line::styled(format!("and {more} more"), theme.faint()));
    }
    Paragraph::new(lines)
}

/// What waits for a person, in words.
fn needs(overview: &Overview, theme: Theme) -> Paragraph<'_> {
    let needy = overview
        .subscriptions
        .iter()
        .filter(|one| one.needs_a_person);
    let advice: Vec<Line<'_>> = needy
        .flat_map(|one| &one.advice)
        .map(|line| Line::from(line.as_str()))
        .collect();
    let mut lines = vec![Line::default()];
    if advice.is_empty() {
        lines.push(Line::styled("nothing needs a person", theme.well()));
    } else {
        lines.push(Line::styled("NEEDS A PERSON", theme.wrong()));
        lines.extend(advice);
    }
    Paragraph::new(lines).wrap(Wrap { trim: true })
}
