//! The lines that go to and fro: one CloudEvent a line to the program, one answer a line back.
//! docs/HANDLERS.md describes them for whoever writes a program.

use std::time::Duration;

use serde_json::Value;

use crate::handler::{Answer, Retry};
use crate::text::one_line;

/// The longest answer, in bytes. It names an event and perhaps a reason: more than this is no answer.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// The longest reason that is kept, in characters; it ends up in logs and dead letters.
const LONGEST_REASON: usize = 500;

/// The longest pause that a program may ask for, in seconds.
const LONGEST_PAUSE: f64 = 3600.0;

/// What a program said about one event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) id: String,
    pub(super) answer: Answer,
}

/// Reads an answer. The error says what is wrong with the line, and shows nothing of it.
pub(super) fn read_answer(line: &[u8]) -> Result<Said, &'static str> {
    let Ok(Value::Object(said)) = serde_json::from_slice(line) else {
        return Err("it is no JSON object");
    };
    let Some(id) = said.get("id").and_then(Value::as_str) else {
        return Err("it has no `id`");
    };
    let reason = |why: &Value| why.as_str().map(plain);
    let answer = match (said.get("ok"), said.get("retry"), said.get("reject")) {
        (Some(Value::Bool(true)), None, None) => Answer::Handled,
        (None, Some(why), None) => {
            let retry = Retry::because(reason(why).ok_or("`retry` is no text")?);
            Answer::Retry(match said.get("after") {
                Some(after) => retry.after(pause(after)?),
                None => retry,
            })
        }
        (None, None, Some(why)) => Answer::Reject {
            reason: reason(why).ok_or("`reject` is no text")?,
        },
        _ => return Err("it has not one of `ok` (true), `retry` and `reject`"),
    };
    Ok(Said {
        id: id.to_owned(),
        answer,
    })
}

fn pause(seconds: &Value) -> Result<Duration, &'static str> {
    match seconds.as_f64() {
        Some(seconds) if seconds >= 0.0 => Ok(Duration::from_secs_f64(seconds.min(LONGEST_PAUSE))),
        _ => Err("`after` is no number of seconds"),
    }
}

/// A text of the program's for our own: bounded and on one line.
pub(super) fn plain(text: &str) -> String {
    one_line(text, LONGEST_REASON)
}

/// Cuts what is read into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// How much of it has been given out.
    given: usize,
}

impl Lines {
    /// Takes what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.given);
        self.given = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let left = &self.buffer[self.given..];
        let end = left.iter().position(|byte| *byte == b'\n')?;
        let line = left[..end].to_vec();
        self.given += end + 1;
        Some(line)
    }

    /// Bytes of the line that has no end yet.
    pub(super) fn begun(&self) -> usize {
        self.buffer.len() - self.given
    }

    /// The beginning of a line that will have no end, or is too long to wait for it.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        let given = std::mem::take(&mut self.given);
        std::mem::take(&mut self.buffer).split_off(given)
    }
}

/// The answer in each line that a program wrote, whatever the pieces that its output came in.
#[cfg(fuzzing)]
pub(in crate::handler) fn answers(output: &[u8], step: usize) -> Vec<Result<Answer, &'static str>> {
    let (mut lines, mut answers) = (Lines::default(), Vec::new());
    for piece in output.chunks(step) {
        lines.push(piece);
        while let Some(line) = lines.next() {
            answers.push(read_answer(&line).map(|said| said.answer));
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::batch;
    use super::*;
    use crate::handler::written::append_line;

    #[test]
    fn an_event_is_one_line_that_begins_with_its_id() {
        let batch = batch(&["{\n \"a\": \"x\\ny\"\n}"]);
        let mut line = Vec::new();
        append_line(&batch.events[0], &mut line);
        let line = String::from_utf8(line).unwrap();
        let id = batch.events[0].identity();
        let begin = format!("{{\"specversion\":\"1.0\",\"id\":\"{id}\",");
        assert!(line.starts_with(&begin), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["data"]["a"], "x\ny");
    }

    #[test]
    fn answers_are_read() {
        let retry = |reason: &str, after| {
            Answer::Retry(Retry {
                after,
                ..Retry::because(reason)
            })
        };
        let half = Some(Duration::from_millis(500));
        for (line, answer) in [
            (r#"{"id":"e","ok":true}"#, Answer::Handled),
            (r#" {"ok":true, "took":3, "id":"e"} "#, Answer::Handled),
            (r#"{"id":"e","retry":"busy"}"#, retry("busy", None)),
            (
                r#"{"id":"e","retry":"busy","after":0.5}"#,
                retry("busy", half),
            ),
            (
                r#"{"id":"e","retry":"","after":1e300}"#,
                retry("", Some(Duration::from_secs(3600))),
            ),
            (
                "{\"id\":\"e\",\"reject\":\"a\\nb\"}\r",
                Answer::Reject {
                    reason: "a b".into(),
                },
            ),
        ] {
            let said = read_answer(line.as_bytes()).unwrap();
            assert_eq!((said.id.as_str(), said.answer), ("e", answer), "{line}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told_apart_and_not_shown() {
        for (line, why) in [
            ("hidden", "no JSON object"),
            ("[\"hidden\"]", "no JSON object"),
            ("{\"id\":\"hidden\",\"ok\":true", "no JSON object"),
            ("{\"ok\":true}", "no `id`"),
            ("{\"id\":7,\"ok\":true}", "no `id`"),
            ("{\"id\":\"hidden\"}", "not one of"),
            ("{\"id\":\"hidden\",\"ok\":false}", "not one of"),
            ("{\"id\":\"hidden\",\"ok\":\"true\"}", "not one of"),
            (
                "{\"id\":\"hidden\",\"ok\":true,\"retry\":\"x\"}",
                "not one of",
            ),
            ("{\"id\":\"hidden\",\"retry\":true}", "`retry` is no text"),
            ("{\"id\":\"hidden\",\"reject\":null}", "`reject` is no text"),
            (
                "{\"id\":\"hidden\",\"retry\":\"x\",\"after\":-1}",
                "`after`",
            ),
            (
                "{\"id\":\"hidden\",\"retry\":\"x\",\"after\":\"1\"}",
                "`after`",
            ),
        ] {
            let said = read_answer(line.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
            assert!(!said.contains("hidden"), "{said}");
        }
    }

    #[test]
    fn a_reason_is_bounded_and_on_one_line() {
        let long = format!(
            "{{\"id\":\"e\",\"reject\":\"\\u001b{}\"}}",
            "x".repeat(9999)
        );
        let Answer::Reject { reason } = read_answer(long.as_bytes()).unwrap().answer else {
            panic!("not rejected");
        };
        assert_eq!(reason.len(), LONGEST_REASON);
        assert!(!reason.contains('\u{1b}'));
    }

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        let text = b"one\n\ntwo\nthree";
        for step in 1..=text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for chunk in text.chunks(step) {
                lines.push(chunk);
                while let Some(line) = lines.next() {
                    seen.push(line);
                }
            }
            assert_eq!(seen, [&b"one"[..], b"", b"two"], "{step}");
            assert_eq!(lines.begun(), 5);
            assert_eq!(lines.rest(), b"three");
        }
    }
}
