//! How several handlers write an event.

use crate::event::{ATTRIBUTES_SIZE, Event};

/// Appends an event as one line. It begins with `{"specversion":"1.0","id":"…"`, and the ID needs no escaping, so that a
/// shell can cut it out.
pub(super) fn append_line(event: &Event, lines: &mut Vec<u8>) {
    let mut from = lines.len();
    event.cloud_event().append_json(lines);
    // Between JSON tokens a newline is only white space; within texts there is none.
    while let Some(at) = memchr::memchr(b'\n', &lines[from..]) {
        lines[from + at] = b' ';
        from += at;
    }
    lines.push(b'\n');
}

/// Bytes that most such lines do not exceed.
pub(super) fn longest_line(event: &Event) -> usize {
    event.decoded.data.len() + ATTRIBUTES_SIZE
}

/// What a repeat of an event is known by wherever several subscriptions may bring it: their topics may be the same.
pub(super) fn repeat_key(subscription: &str, event: &Event) -> String {
    format!("{subscription}:{}", event.identity())
}
