//! What a program writes to its standard error becomes lines of our log: as it is, but bounded in length
//! and number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;
use tracing::{info, warn};

use super::protocol::Lines;

/// The longest line that is logged, in bytes; a longer one comes in parts.
const LONGEST: usize = 4 << 10;

/// Lines of one process that are logged within [`WINDOW`]; the rest is counted. A traceback or two fit.
const LINES: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// The line that was written last.
#[derive(Debug, Clone, Default)]
pub(super) struct LastLine(Arc<Mutex<String>>);

impl LastLine {
    pub(super) fn get(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, line: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.clone_into(&mut last);
    }
}

/// Logs what comes, to its end.
pub(super) async fn follow(mut stderr: ChildStderr, handler: String, pid: i32, last: LastLine) {
    let (mut lines, mut chunk) = (Lines::default(), vec![0; 8 << 10]);
    let mut ration = Ration::new(Instant::now());
    let log = |line: &[u8], ration: &mut Ration| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        last.set(text);
        let (left_out, allowed) = ration.take(Instant::now());
        tell_left_out(&handler, pid, left_out);
        if allowed {
            info!(handler, pid, line = text, "standard error of the program");
        }
    };
    // An error is the end of it: there is nothing else to be had.
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        lines.push(&chunk[..count]);
        while let Some(line) = lines.next() {
            line.chunks(LONGEST).for_each(|part| log(part, &mut ration));
        }
        if lines.begun() > LONGEST {
            log(&lines.rest(), &mut ration);
        }
    }
    log(&lines.rest(), &mut ration);
    tell_left_out(&handler, pid, ration.left_out);
}

fn tell_left_out(handler: &str, pid: i32, lines: u32) {
    if lines > 0 {
        warn!(
            handler,
            pid, lines, "the program writes too much to its standard error: lines were left out"
        );
    }
}

/// How many lines may be logged.
struct Ration {
    since: Instant,
    taken: u32,
    left_out: u32,
}

impl Ration {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            taken: 0,
            left_out: 0,
        }
    }

    /// May one more line be logged? With it, how many were left out in the time before, to be told once.
    fn take(&mut self, now: Instant) -> (u32, bool) {
        let mut told = 0;
        if now.duration_since(self.since) >= WINDOW {
            told = self.left_out;
            *self = Self::new(now);
        }
        let allowed = self.taken < LINES;
        if allowed {
            self.taken += 1;
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        (told, allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_rationed_and_what_is_left_out_is_told_once() {
        let now = Instant::now();
        let mut ration = Ration::new(now);
        let allowed = (0..LINES + 7).filter(|_| ration.take(now).1).count();
        assert_eq!(allowed, LINES as usize);
        assert_eq!(ration.take(now + WINDOW), (7, true));
        assert_eq!(ration.take(now + WINDOW), (0, true));
    }
}
