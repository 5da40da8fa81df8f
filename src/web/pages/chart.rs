//! Charts, drawn here, so that they need no script.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use crate::status::text::length;
use crate::store::{AllocationReading, Sample};

use super::super::picture::HISTORY;
use super::pieces::{counted, grouped};

/// Minutes from the left edge to the right one.
const WIDTH: u64 = HISTORY.as_secs() / 60;

/// The height that lines are drawn in, whatever a browser makes of it.
const HEIGHT: f64 = 100.0;

/// Minutes that a point of a small chart stands for.
const STEP: u64 = 4;

/// Minutes that one bar stands for.
const BAR: u64 = 5;

/// What a lag axis may end with, in seconds.
const LAGS: [u64; 14] = [
    10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 345_600,
];

/// Lag over the last hours, small enough for a row of a table.
pub(super) fn spark(samples: &[Sample], now: SystemTime) -> Markup {
    let lags = lags(samples, now);
    let most = most(&lags);
    let label = match most {
        Some(most) => format!("lag over the last 6 hours: at most {}", length(most)),
        None => "lag over the last 6 hours: not known".to_owned(),
    };
    let top = top_of_lags(most);
    html! {
        svg.spark viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
            title { (label) }
            (line(&coarser(&lags), top))
        }
        @if let Some(most) = most { span.sub aria-hidden="true" { "at most " (length(most)) } }
    }
}

/// The greatest of a few minutes, as fine as a small chart can show it.
fn coarser(lags: &[(u64, Duration)]) -> Vec<(u64, Duration)> {
    let few = lags.chunk_by(|(one, _), (other, _)| one / STEP == other / STEP);
    few.filter_map(|few| {
        let (minute, _) = few.first()?;
        Some((minute / STEP * STEP, most(few)?))
    })
    .collect()
}

/// Lag over the last hours, with axes.
pub(super) fn lag(samples: &[Sample], now: SystemTime) -> Markup {
    let lags = lags(samples, now);
    let most = most(&lags);
    let top = top_of_lags(most);
    let label = match most {
        Some(most) => format!("at most {}", length(most)),
        None => "not known".to_owned(),
    };
    let axis = |part: f64| {
        let text = length(Duration::from_secs_f64(top * part));
        text.trim_end_matches(" 0 min")
            .trim_end_matches(" 0 h")
            .to_owned()
    };
    let inside = html! { (line(&lags, top)) };
    framed(
        "Lag",
        &format!("the greatest of each minute; {label}"),
        [axis(1.0), axis(0.5), "0".to_owned()],
        &inside,
    )
}

/// Events received over the last hours.
pub(super) fn received(samples: &[Sample], now: SystemTime) -> Markup {
    let mut bars = vec![(0_u64, 0_u64); usize::try_from(WIDTH / BAR).unwrap_or(72)];
    for sample in samples {
        let Some(minute) = minute(sample.at, now) else {
            continue;
        };
        // This minute is at the right edge, and belongs to the last bar.
        let at = usize::try_from(minute / BAR).unwrap_or(usize::MAX);
        let at = at.min(bars.len() - 1);
        if let Some(bar) = bars.get_mut(at) {
            bar.0 += sample.received;
            bar.1 += sample.parked;
        }
    }
    let all: u64 = bars.iter().map(|(received, _)| received).sum();
    let parked: u64 = bars.iter().map(|(_, parked)| parked).sum();
    let most = bars.iter().map(|(received, _)| *received).max();
    let top = round_up(most.unwrap_or(0).max(4));
    let mut path = String::new();
    for (at, (received, _)) in (0_u64..).zip(&bars) {
        let height = part(*received, top) * HEIGHT;
        if *received > 0 {
            let (x, y) = (at * BAR, HEIGHT - height.max(1.5));
            let _ = write!(
                path,
                "M{x} {HEIGHT}V{y:.2}h{:.1}V{HEIGHT}Z",
                BAR as f64 * 0.8
            );
        }
    }
    let inside = html! { path.bars d=(path) {} };
    let mut label = format!("in five minutes each; {} in all", counted(all, "event"));
    if parked > 0 {
        let _ = write!(label, ", {} parked", grouped(parked));
    }
    framed(
        "Events received",
        &label,
        [grouped(top), grouped(top / 2), "0".to_owned()],
        &inside,
    )
}

/// What is used of the allocation, over the last day.
pub(super) fn allocation(readings: &[AllocationReading], now: SystemTime) -> Markup {
    const DAY: f64 = 24.0 * 3600.0;
    let mut path = String::new();
    for reading in readings {
        let Ok(age) = now.duration_since(reading.at) else {
            continue;
        };
        let x = (1.0 - age.as_secs_f64() / DAY) * WIDTH as f64;
        let used = reading.max.saturating_sub(reading.remaining);
        let y = (1.0 - part(used, reading.max.max(1))) * HEIGHT;
        if x >= 0.0 {
            let _ = write!(
                path,
                "{}{x:.1} {y:.1}",
                if path.is_empty() { 'M' } else { 'L' }
            );
        }
    }
    html! {
        svg.spark.wide viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label="deliveries used, over the last 24 hours" {
            path.line d=(path) vector-effect="non-scaling-stroke" {}
        }
    }
}

/// A chart with its title, its axes and what is in it.
fn framed(title: &str, label: &str, axis: [String; 3], inside: &Markup) -> Markup {
    html! {
        figure.chart {
            figcaption { strong { (title) } " " span { (label) } }
            div.plot {
                div.axis.y aria-hidden="true" { @for text in &axis { span { (text) } } }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                    aria-label={ (title) ", " (label) } {
                    @for y in ["0.5", "50", "99.5"] {
                        line.grid x1="0" x2=(WIDTH) y1=(y) y2=(y) vector-effect="non-scaling-stroke" {}
                    }
                    (inside)
                }
                div.axis.x aria-hidden="true" {
                    @for text in ["6 h ago", "4 h", "2 h", "now"] { span { (text) } }
                }
            }
        }
    }
}

/// The lag of each minute, by minutes from the left edge.
fn lags(samples: &[Sample], now: SystemTime) -> Vec<(u64, Duration)> {
    let known = samples.iter().filter_map(|sample| {
        let minute = minute(sample.at, now)?;
        Some((minute, sample.lag?))
    });
    known.collect()
}

fn most(lags: &[(u64, Duration)]) -> Option<Duration> {
    lags.iter().map(|(_, lag)| *lag).max()
}

/// Minutes from the left edge.
fn minute(at: SystemTime, now: SystemTime) -> Option<u64> {
    let age = now.duration_since(at).unwrap_or_default().as_secs() / 60;
    WIDTH.checked_sub(age)
}

/// A line through all minutes that follow each other, and the area below it. Where minutes are missing it breaks:
/// nobody knows.
fn line(lags: &[(u64, Duration)], top: f64) -> Markup {
    let (mut path, mut area) = (String::new(), String::new());
    for run in lags.chunk_by(|(before, _), (after, _)| after - before <= STEP) {
        let Some((first, _)) = run.first() else {
            continue;
        };
        let mut points = String::new();
        for (minute, lag) in run {
            let y = HEIGHT - (lag.as_secs_f64() / top).min(1.0) * (HEIGHT - 2.0) - 1.0;
            let _ = write!(points, "L{minute} {y:.1}");
        }
        // One minute alone is a short line.
        points.push_str("h1");
        let _ = write!(path, "M{}", &points[1..]);
        let _ = write!(area, "M{first} {HEIGHT}{points}V{HEIGHT}Z");
    }
    html! {
        path.area d=(area) {}
        path.line d=(path) vector-effect="non-scaling-stroke" {}
    }
}

fn top_of_lags(most: Option<Duration>) -> f64 {
    let most = most.unwrap_or_default().as_secs();
    let top = LAGS.into_iter().find(|top| *top >= most);
    top.unwrap_or(most) as f64
}

/// The next of 4, 10, 20, 40, 100, …: it halves well.
fn round_up(most: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for step in [4, 10, 20] {
            let top = unit.saturating_mul(step);
            if top >= most {
                return top;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

fn part(of: u64, whole: u64) -> f64 {
    of as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(minutes_ago: u64, lag: Option<u64>, now: SystemTime) -> Sample {
        Sample {
            at: now - Duration::from_secs(minutes_ago * 60),
            lag: lag.map(Duration::from_secs),
            received: 3,
            parked: 0,
        }
    }

    #[test]
    fn a_line_breaks_where_nobody_knows_and_keeps_within_its_frame() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let samples = [
            sample(400, Some(9), now),
            sample(300, Some(0), now),
            sample(299, Some(5), now),
            sample(200, None, now),
            sample(100, Some(10), now),
        ];
        let text = spark(&samples, now).into_string();
        assert!(text.contains("d=\"M60 50.0h1M260 1.0h1\""), "{text}");
        assert!(text.contains("at most 10 s"), "{text}");
        let text = spark(&[], now).into_string();
        assert!(
            text.contains("not known") && text.contains("d=\"\""),
            "{text}"
        );
    }

    #[test]
    fn axes_end_with_a_round_number() {
        for (most, top) in [
            (0, 10.0),
            (10, 10.0),
            (11, 30.0),
            (4000, 7200.0),
            (900_000, 900_000.0),
        ] {
            assert_eq!(top_of_lags(Some(Duration::from_secs(most))), top);
        }
        for (most, top) in [
            (4, 4),
            (5, 10),
            (11, 20),
            (21, 40),
            (41, 100),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(round_up(most), top);
        }
    }

    #[test]
    fn events_are_counted_in_bars() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let samples = [sample(2, None, now), sample(1, None, now)];
        let text = received(&samples, now).into_string();
        assert!(text.contains("6 events in all"), "{text}");
        assert!(text.contains("<span>10</span><span>5</span>"), "{text}");
    }
}
