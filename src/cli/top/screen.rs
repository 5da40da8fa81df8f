//! The terminal: taken over for drawing, and given back as it was, however the process ends.

use std::io::{self, Stdout};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::sync::mpsc;

use super::draw::draw;
use super::picture::Seen;
use super::view::View;

/// How soon the thread that waits for keys notices that nobody wants them any more.
const POLL: Duration = Duration::from_millis(200);

/// The terminal, while it is ours.
pub(super) struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal over: another screen, no echo, no lines.
    pub(super) fn enter() -> io::Result<Self> {
        // Else a panic's message would be lost with the other screen, and the terminal left showing nothing typed.
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            usual(info);
        }));
        enable_raw_mode()?;
        let entered = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match entered {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    pub(super) fn draw(&mut self, seen: &Seen, view: &mut View, now: SystemTime) -> io::Result<()> {
        self.0
            .draw(|frame| draw(frame, seen, view, now))
            .map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Safe to do twice. What cannot be given back is lost with the terminal.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
}

/// Keys and changes of size.
pub(super) struct Input {
    events: mpsc::Receiver<Event>,
    over: Arc<AtomicBool>,
}

impl Input {
    /// Reads them in a thread of its own, because the terminal is read by blocking calls.
    pub(super) fn listen() -> Self {
        let (send, events) = mpsc::channel(64);
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let event = match event::poll(POLL) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                // Without a terminal there is nothing to read any more: the channel ends, and with it the command.
                let Ok(event) = event else { return };
                if send.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Self { events, over }
    }

    /// The next one; `None` where the terminal is gone.
    pub(super) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
