//! One subscription, closely.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::Theme;
use super::spark::spark;
use crate::cli::top::picture::{Detail, MINUTES, Picture};
use crate::cli::top::view::View;
use crate::event::rfc3339;
use crate::status::Subscription;
use crate::status::text::{NONE, age, length, one_line};
use crate::store::HoleKind;

pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    view: &mut View,
    theme: Theme,
) {
    let one = view
        .detail()
        .and_then(|name| picture.overview.subscription(name));
    let Some(one) = one else {
        frame.render_widget(Line::from("the store does not know it any more"), area);
        return;
    };
    let lines = lines(one, picture, area.width, theme);
    let height: usize = lines.iter().map(|line| rows(line, area.width)).sum();
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    let most = height.saturating_sub(usize::from(area.height));
    let scrolled = view.scrolled.min(u16::try_from(most).unwrap_or(u16::MAX));
    view.scrolled = scrolled;
    frame.render_widget(text.scroll((scrolled, 0)), area);
}

/// How many rows a line takes where words are not broken.
fn rows(line: &Line<'_>, width: u16) -> usize {
    let width = usize::from(width).max(1);
    let text: String = line.iter().map(|span| span.content.as_ref()).collect();
    let (mut rows, mut column) = (1, 0);
    for word in text.split_inclusive(' ') {
        let length = word.chars().count();
        if column > 0 && column + word.trim_end().chars().count() > width {
            rows += 1;
            column = 0;
        }
        // One that is longer than a row is broken all the same.
        rows += (column + length).saturating_sub(1) / width;
        column = (column + length) % width;
    }
    rows
}

fn lines<'a>(
    one: &'a Subscription,
    picture: &'a Picture,
    width: u16,
    theme: Theme,
) -> Vec<Line<'a>> {
    let now = picture.overview.at;
    let figures = picture.figures.get(&one.name);
    let mut lines = vec![
        Line::from(vec![
            Span::styled(one.name.as_str(), theme.heading()),
            format!("  {}", one.topic).into(),
        ]),
        Line::default(),
        Line::from(vec![
            label("state", theme),
            Span::styled(one.state.as_str(), theme.of_state(one)),
            format!(" for {}", age(one.state_at, now)).into(),
        ]),
        plain("owner", owner(one), theme),
        plain(
            "lag",
            one.lag.map_or_else(|| NONE.to_owned(), length),
            theme,
        ),
    ];
    if let Some(figures) = figures.filter(|figures| !figures.lags.is_empty()) {
        let room = usize::from(width).saturating_sub(LABEL).min(MINUTES);
        let known = figures.lags.iter().flatten().copied();
        lines.push(plain("last hour", spark(&figures.lags, room), theme));
        if let Some(most) = known.filter(|lag| lag.is_finite()).reduce(f64::max) {
            let most = std::time::Duration::try_from_secs_f64(most).unwrap_or_default();
            lines.push(plain("", format!("{} at most", length(most)), theme));
        }
    }
    let written = age(one.position_at, now);
    let position = match &one.position {
        Some(position) => format!("{position}, written {written} ago"),
        None => "none yet".to_owned(),
    };
    lines.extend([
        plain("position", position, theme),
        plain("kept", kept(one), theme),
        plain(
            "received",
            format!("{} in all, {} finished", one.received, one.finished),
            theme,
        ),
        plain(
            "parked",
            format!("{}, holes {}", one.parked, one.holes),
            theme,
        ),
    ]);
    if !one.advice.is_empty() {
        lines.push(Line::default());
        lines.extend(one.advice.iter().map(|line| Line::from(line.as_str())));
    }
    // What was read for another one is not shown for this.
    match picture
        .detail
        .as_ref()
        .filter(|detail| detail.name == one.name)
    {
        Some(detail) => more(&mut lines, detail, now, theme),
        None => lines.extend([
            Line::default(),
            Line::styled("reading the store", theme.faint()),
        ]),
    }
    lines
}

const LABEL: usize = 11;

fn label(text: &str, theme: Theme) -> Span<'static> {
    Span::styled(format!("{text:<LABEL$}"), theme.faint())
}

fn plain(name: &str, value: String, theme: Theme) -> Line<'static> {
    Line::from(vec![label(name, theme), value.into()])
}

fn owner(one: &Subscription) -> String {
    let owner = one.owner.as_deref().unwrap_or(NONE);
    format!("{owner}, epoch {}", one.epoch)
}

fn kept(one: &Subscription) -> String {
    match (one.kept_until, one.kept()) {
        (None, _) => NONE.to_owned(),
        (Some(until), Some(left)) => format!("{}, until {}", length(left), rfc3339(until)),
        (Some(until), None) => format!("over since {}", rfc3339(until)),
    }
}

fn more<'a>(
    lines: &mut Vec<Line<'a>>,
    detail: &'a Detail,
    now: std::time::SystemTime,
    theme: Theme,
) {
    let heading = |lines: &mut Vec<Line<'a>>, text: String| {
        lines.push(Line::default());
        lines.push(Line::styled(text, theme.heading()));
    };
    if !detail.letters.is_empty() {
        heading(lines, "PARKED, oldest first".to_owned());
        lines.extend(detail.letters.iter().map(|stored| {
            let letter = &stored.letter;
            let handler = letter.handler.as_deref().unwrap_or("every handler");
            let ago = age(Some(stored.parked_at), now);
            let error = one_line(&letter.error);
            let (id, reason) = (stored.id, &letter.reason);
            Line::from(format!("{id}  {ago} ago  {reason}  {handler}: {error}"))
        }));
    }
    if !detail.holes.is_empty() {
        heading(lines, "HOLES, newest first".to_owned());
        lines.extend(detail.holes.iter().map(|stored| {
            let kind = match stored.hole.kind {
                HoleKind::Lost => "lost",
                HoleKind::Gap => "gap",
            };
            let ago = age(Some(stored.recorded_at), now);
            let why = one_line(&stored.hole.explanation);
            Line::from(format!("{}  {ago} ago  {kind}: {why}", stored.id))
        }));
    }
    heading(lines, "CHANGES OF STATE, newest first".to_owned());
    if detail.changes.is_empty() {
        lines.push(Line::styled("none is kept", theme.faint()));
    }
    lines.extend(detail.changes.iter().map(|change| {
        let mut text = format!("{} ago  {}", age(Some(change.at), now), change.state);
        if let Some(worker) = &change.worker {
            text.push_str(&format!("  {worker}"));
        }
        if let Some(rpc_id) = &change.rpc_id {
            text.push_str(&format!("  rpc_id {rpc_id}"));
        }
        if let Some(detail) = &change.detail {
            text.push_str(&format!("  {detail}"));
        }
        Line::from(one_line(&text))
    }));
}
