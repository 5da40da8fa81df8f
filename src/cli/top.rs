//! `orgstream top`: the subscriptions, live in the terminal.

mod draw;
mod picture;
mod read;
mod screen;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use futures_util::future::BoxFuture;
use ratatui::crossterm::event::{Event, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::picture::{Picture, Seen};
use self::read::Reader;
use self::screen::{Input, Screen};
use self::view::{Then, View};
use super::Failure;
use super::connect;
use crate::config::{self, Env as _, ProcessEnv};
use crate::status::Bus;

/// How often ages on the screen go on where nothing else changes.
const TICK: Duration = Duration::from_secs(1);

/// Watch the subscriptions live in the terminal.
///
/// Shows each subscription's state, its lag now and over the last hour, events each second, parked events, holes, how long
/// the bus keeps what follows its position, and its owner; below, the workers, and what needs a person. On a wide
/// terminal more: events in flight, topics. Reads the store only, so it works from anywhere that reaches it, whether or
/// not a daemon runs; while the database is away it says so and shows what it saw last.
///
/// Keys: up and down choose a subscription, enter shows its details (last changes of state with their rpc ids, parked
/// events, holes), s changes the order, p pauses the refreshing, ? helps, q ends. NO_COLOR is respected.
///
/// Where standard output is no terminal, `orgstream status --watch` is what you want.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  orgstream top\n  orgstream top --interval 5")]
pub(super) struct TopArgs {
    /// Refresh every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

pub(super) async fn run(path: Option<&Path>, args: TopArgs) -> Result<ExitCode, Failure> {
    if !can_draw() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "`orgstream top` needs a terminal to draw on: `orgstream status --watch` prints the same for a pipe or a \
             file"
        )));
    }
    let config = config::load_store(path, &ProcessEnv)?;
    let (retention, warning) = config::load_bus_retention(path, &ProcessEnv)?;
    let store = connect::store(&config).await?;
    let reader = Reader::new(store.clone(), Bus { retention, warning });
    let shown = show(reader, Duration::from_secs(args.interval)).await;
    store.close().await;
    shown.map_err(|error| Failure::Failed(error.into()))?;
    Ok(ExitCode::SUCCESS)
}

fn can_draw() -> bool {
    let dumb = ProcessEnv.var("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// What asks the process to end. Ctrl-C is a key here, unless somebody else sends the signal.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
        ]))
    }

    async fn asked(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

type Answer = BoxFuture<'static, (Reader, Result<Picture, String>)>;

/// Draws until a person, or a signal, ends it. The terminal is as it was afterwards, whatever happens.
async fn show(reader: Reader, pause: Duration) -> io::Result<()> {
    let mut ends = Ends::listen()?;
    let mut screen = Screen::enter()?;
    let mut input = Input::listen();
    let mut view = View::new(ProcessEnv.var("NO_COLOR").is_none());
    let mut seen = Seen::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer: Option<Answer> = Some(ask(reader, None));
    let mut resting: Option<Reader> = None;
    let mut next = Instant::now();
    loop {
        screen.draw(&seen, &mut view, SystemTime::now())?;
        let due = resting.is_some() && !view.is_paused();
        tokio::select! {
            () = ends.asked() => return Ok(()),
            event = input.next() => match event {
                // The terminal is gone.
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    match view.press(key, seen.picture.as_ref()) {
                        Then::End => return Ok(()),
                        Then::Read => next = Instant::now(),
                        Then::Draw => {}
                    }
                }
                // The size, which drawing looks at.
                Some(_) => {}
            },
            (reader, read) = pending(&mut answer) => {
                answer = None;
                seen.take(read, SystemTime::now());
                resting = Some(reader);
                next = Instant::now() + pause;
            }
            () = sleep_until(next), if due => {
                answer = resting.take().map(|reader| ask(reader, view.detail()));
            }
            _ = ticks.tick() => {}
        }
    }
}

fn ask(mut reader: Reader, detail: Option<&str>) -> Answer {
    let detail = detail.map(str::to_owned);
    Box::pin(async move {
        let read = reader.read(detail.as_deref()).await;
        (reader, read)
    })
}

/// The answer under way; never, where nothing was asked.
async fn pending(answer: &mut Option<Answer>) -> (Reader, Result<Picture, String>) {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}
