//! Small parts of pages: times, states, bars. Whatever comes from outside is escaped by the template, and its
//! characters that would disguise a text are spelt out.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use crate::event::rfc3339;
use crate::status::Subscription;
use crate::status::text::{length, since};
pub(super) use crate::text::visible;

/// How much a person should mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// It mends itself, or is not urgent.
    Warn,
    /// A person has to act.
    Bad,
    /// At rest, as somebody wants it.
    Quiet,
}

impl Tone {
    /// The class that colours it.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Quiet => "quiet",
        }
    }

    /// A sign of another shape for each, for those who do not see the colour.
    pub(super) fn mark(self) -> Markup {
        html! {
            svg class={ "mark " (self.class()) } viewBox="0 0 12 12" aria-hidden="true" {
                @match self {
                    Self::Good => circle cx="6" cy="6" r="4.5" {},
                    Self::Warn => path d="M6 .8 11.6 11H.4Z" {},
                    Self::Bad => path d="M1 1h10v10H1ZM3 4.3 4.7 6 3 7.7 4.3 9 6 7.3 7.7 9 9 7.7 7.3 6 9 4.3 7.7 3 6 4.7 4.3 3Z" fill-rule="evenodd" {},
                    Self::Quiet => path d="M2 1.5h3v9H2zM7 1.5h3v9H7z" {},
                }
            }
        }
    }
}

/// How much a person should mind a subscription's state.
pub(super) fn tone(one: &Subscription) -> Tone {
    match (one.state.as_str(), one.held) {
        ("live", _) => Tone::Good,
        ("connecting" | "reconnecting" | "paused", true) => Tone::Warn,
        ("stopped", true) => Tone::Quiet,
        _ if one.paused_at.is_some() => Tone::Quiet,
        _ => Tone::Bad,
    }
}

/// A state as sign and word.
pub(super) fn state(one: &Subscription) -> Markup {
    let tone = tone(one);
    html! {
        span class={ "state " (tone.class()) } { (tone.mark()) span { (visible(&one.state)) } }
    }
}

/// How long ago something was, with the moment itself for those who point at it.
pub(super) fn ago(then: SystemTime, now: SystemTime) -> Markup {
    let moment = rfc3339(then);
    html! { time datetime=(moment) title=(moment) { (length(since(then, now))) " ago" } }
}

/// The same of what may never have been.
pub(super) fn maybe_ago(then: Option<SystemTime>, now: SystemTime) -> Markup {
    match then {
        Some(then) => ago(then, now),
        None => none(),
    }
}

/// A moment, to the second.
pub(super) fn moment(then: SystemTime) -> Markup {
    let since = then.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = Duration::from_secs(since.unwrap_or_default().as_secs());
    let moment = rfc3339(SystemTime::UNIX_EPOCH + seconds);
    html! { time datetime=(moment) { (moment) } }
}

/// What stands for nothing.
pub(super) fn none() -> Markup {
    html! { span.none aria-label="none" { "–" } }
}

/// A length of time that may not be known.
pub(super) fn maybe_length(length_of: Option<Duration>) -> Markup {
    match length_of {
        Some(it) => html! { (length(it)) },
        None => none(),
    }
}

/// A count that may not be known.
pub(super) fn maybe_count(count: Option<u64>) -> Markup {
    match count {
        Some(count) => html! { (grouped(count)) },
        None => none(),
    }
}

/// A count with its thousands apart.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A count that is worth a look where it is not zero.
pub(super) fn count(number: u64, link: &str, tone: Tone) -> Markup {
    html! {
        @if number == 0 { span.zero { "0" } }
        @else { a class={ "count " (tone.class()) } href=(link) { (grouped(number)) } }
    }
}

/// A bar that is filled to a part of its length; `mark` is where it becomes critical.
pub(super) fn bar(part: f64, mark: Option<f64>, tone: Tone, label: &str) -> Markup {
    let percent = |part: f64| format!("{:.2}%", part.clamp(0.0, 1.0) * 100.0);
    html! {
        svg class={ "bar " (tone.class()) } role="img" aria-label=(label) {
            rect.track width="100%" height="100%" {}
            rect.fill width=(percent(part)) height="100%" {}
            @if let Some(mark) = mark {
                line x1=(percent(mark)) x2=(percent(mark)) y1="0" y2="100%" {}
            }
        }
    }
}

/// A sentence whose commands, between backticks, look like commands.
pub(super) fn sentence(text: &str) -> Markup {
    let text = visible(text);
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

/// The first so many characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// `1 event`, `2 events`, with thousands apart.
pub(super) fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}s", grouped(count)),
    }
}

/// A value in the query of an address.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1\u{202f}000"),
            (1_234_567, "1\u{202f}234\u{202f}567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn marks_that_disguise_a_text_are_spelt_out_and_markup_stays_text() {
        let text = "<b>`x`</b> \u{202e}gpj.exe \u{0}\"'";
        let html = sentence(text).into_string();
        assert_eq!(
            html,
            "&lt;b&gt;<code>x</code>&lt;/b&gt; \\u202egpj.exe \\u0000&quot;'"
        );
    }

    #[test]
    fn a_bar_stays_within_its_length() {
        let html = bar(1.7, Some(-1.0), Tone::Bad, "x").into_string();
        assert!(
            html.contains("width=\"100.00%\"") && html.contains("x1=\"0.00%\""),
            "{html}"
        );
    }
}
