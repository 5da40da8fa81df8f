//! How several handlers write an event.

use crate::event::Event;

/// An event as one line. Begins with `{"specversion":"1.0","id":"…"`, and the ID needs no escaping, so that a
/// shell can cut it out.
pub(super) fn event_line(event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = event.cloud_event().to_json()?;
    // Between JSON tokens a newline is only white space; within texts there is none.
    for byte in &mut line {
        if *byte == b'\n' {
            *byte = b' ';
        }
    }
    line.push(b'\n');
    Ok(line)
}

/// What a repeat of an event is known by wherever several subscriptions may bring it: their topics may be the same.
pub(super) fn repeat_key(subscription: &str, event: &Event) -> String {
    format!("{subscription}:{}", event.identity())
}
