//! Log records as logfmt: one line of `key=value` pairs, whatever the values are.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes the fields of spans.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut visitor = Visitor::default();
        fields.record(&mut visitor);
        writer.write_str(&visitor.pairs)
    }
}

/// Writes a record: `time`, `level`, `msg`, the fields of the spans around it from the outermost in, its
/// own, and `target`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines;

impl<S> FormatEvent<S, Fields> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, Fields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut visitor = Visitor::default();
        event.record(&mut visitor);
        let mut line = String::with_capacity(256);
        push_pair(&mut line, "time", &super::timestamp(SystemTime::now()));
        push_pair(&mut line, "level", level(*event.metadata().level()));
        push_pair(&mut line, "msg", &visitor.message);
        for span in ctx
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span.extensions().get::<FormattedFields<Fields>>() {
                push_pairs(&mut line, fields);
            }
        }
        push_pairs(&mut line, &visitor.pairs);
        push_pair(&mut line, "target", event.metadata().target());
        writeln!(writer, "{line}")
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Collects fields as pairs, the message apart.
#[derive(Debug, Default)]
struct Visitor {
    message: String,
    pairs: String,
}

impl Visit for Visitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            push_pair(&mut self.pairs, field.name(), value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            // Writing to a String does not fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.record_str(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn push_pairs(line: &mut String, pairs: &str) {
    if !pairs.is_empty() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(pairs);
    }
}

fn push_pair(line: &mut String, key: &str, value: &str) {
    if !line.is_empty() {
        line.push(' ');
    }
    push_key(line, key);
    line.push('=');
    if is_bare(value) {
        line.push_str(value);
    } else {
        push_quoted(line, value);
    }
}

/// Keys come from our own code and from libraries: whatever would end one early becomes `_`.
fn push_key(line: &mut String, key: &str) {
    let key = key.strip_prefix("r#").unwrap_or(key);
    if key.is_empty() {
        line.push('_');
    }
    line.extend(key.chars().map(|c| {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') {
            c
        } else {
            '_'
        }
    }));
}

/// True for a value that every reader of logfmt takes as it is.
fn is_bare(value: &str) -> bool {
    !value.is_empty()
        && value
            .chars()
            .all(|c| !c.is_whitespace() && !matches!(c, '"' | '=' | '\\') && !is_unsafe(c))
}

/// Quotes and escapes as in JSON.
fn push_quoted(line: &mut String, value: &str) {
    line.push('"');
    for c in value.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // All of these have four digits at most; writing to a String does not fail.
            c if is_unsafe(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

/// Characters that would break the line or disguise it: controls (escape sequences of terminals among
/// them), separators of lines and paragraphs, and marks that turn the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads pairs back; `None` where the line is not logfmt.
    fn parse(line: &str) -> Option<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        let mut rest = line;
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=')?;
            let (value, after) = if after.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = values.next()?.ok()?;
                (value, &after[values.byte_offset()..])
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            pairs.push((key.to_owned(), value));
            rest = match after.strip_prefix(' ') {
                Some(next) if !next.is_empty() => next,
                None if after.is_empty() => after,
                _ => return None,
            };
        }
        Some(pairs)
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[a-z \"=\\\\\n\r\t\u{0}\u{1b}\u{85}\u{2028}\u{202e}]{0,20}",
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_values_a_record_is_one_line_that_parses_back(
            values in prop::collection::vec(any_text(), 1..6)
        ) {
            let mut line = String::new();
            for (n, value) in values.iter().enumerate() {
                push_pair(&mut line, &format!("k{n}"), value);
            }
            prop_assert!(!line.chars().any(is_unsafe), "{line:?}");
            prop_assert_eq!(line.lines().count(), 1);
            let pairs = parse(&line).expect("logfmt");
            prop_assert_eq!(pairs.len(), values.len());
            for (n, ((key, read), value)) in pairs.iter().zip(&values).enumerate() {
                prop_assert_eq!(key, &format!("k{n}"));
                prop_assert_eq!(read, value);
            }
        }

        #[test]
        fn whatever_a_key_is_it_stays_one_key(key in any_text()) {
            let mut line = String::new();
            push_pair(&mut line, &key, "v");
            let pairs = parse(&line).expect("logfmt");
            prop_assert_eq!(pairs.len(), 1);
            prop_assert!(!pairs[0].0.is_empty() && !pairs[0].0.contains(' '));
        }
    }

    #[test]
    fn values_are_quoted_where_they_must_be() {
        for (value, written) in [
            ("accounts", "k=accounts"),
            ("/data/AccountChangeEvent", "k=/data/AccountChangeEvent"),
            ("Zürich", "k=Zürich"),
            ("", r#"k="""#),
            ("a b", r#"k="a b""#),
            ("a=b", r#"k="a=b""#),
            ("x\ntime=now level=error", r#"k="x\ntime=now level=error""#),
            ("\u{1b}[31m", r#"k="\u001b[31m""#),
        ] {
            let mut line = String::new();
            push_pair(&mut line, "k", value);
            assert_eq!(line, written);
        }
    }
}
