//! What operators see: logs on standard error, and metrics.

pub mod exposition;
mod histograms;
mod logfmt;
pub mod metrics;
mod otlp;
mod recorder;
mod samples;
mod serve;

use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry, fmt};

pub use otlp::{OtlpError, OtlpPush};
pub(crate) use recorder::when_asked;
pub use recorder::{Recorder, RecorderError};
pub use samples::LogSamples;
pub use serve::{MetricsServer, ServeError, serve};

/// How a log record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `pretty` where standard error is a terminal, else `logfmt`.
    #[default]
    Auto,
    /// `time=… level=info msg="…" subscription=accounts …`
    Logfmt,
    /// One JSON object.
    Json,
    /// For people at a terminal; in colour unless `NO_COLOR` is set.
    Pretty,
}

/// Text that is not a [`LogFormat`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a log format: expected auto, logfmt, json or pretty")]
pub struct InvalidLogFormat {
    given: String,
}

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;

    fn from_str(given: &str) -> Result<Self, InvalidLogFormat> {
        match given.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "logfmt" => Ok(Self::Logfmt),
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err(InvalidLogFormat {
                given: given.to_owned(),
            }),
        }
    }
}

/// Text that is not a log filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{part}` is not part of a log filter: expected a level (error, warn, info, debug, trace, off) or \
     target=level, separated by commas, such as info,h2=warn"
)]
pub struct InvalidFilter {
    part: String,
}

/// Which records are written: a level, and levels for single targets, as in `info,h2=warn`. What it
/// does not name is logged at `info`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(Targets);

impl Default for LogFilter {
    fn default() -> Self {
        Self(Targets::new().with_default(LevelFilter::INFO))
    }
}

impl LogFilter {
    /// No record at all, for what draws on the terminal.
    pub fn nothing() -> Self {
        Self(Targets::new().with_default(LevelFilter::OFF))
    }

    /// Warnings and errors only, for commands that answer and end.
    pub fn warnings() -> Self {
        Self(Targets::new().with_default(LevelFilter::WARN))
    }
}

impl FromStr for LogFilter {
    type Err = InvalidFilter;

    // By hand: `Targets` takes a misspelt level for a target, and then logs nothing at all.
    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let mut targets = Self::default().0;
        for part in text.split(',').map(str::trim) {
            let invalid = || InvalidFilter {
                part: part.to_owned(),
            };
            let (target, level) = match part.split_once('=') {
                None if part.is_empty() => continue,
                None => (None, part),
                Some((target, level)) => (Some(target.trim()), level.trim()),
            };
            let level = LevelFilter::from_str(level).map_err(|_| invalid())?;
            targets = match target {
                None => targets.with_default(level),
                Some(target)
                    if !target.is_empty()
                        && target
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"_:-.".contains(&b)) =>
                {
                    targets.with_target(target, level)
                }
                Some(_) => return Err(invalid()),
            };
        }
        Ok(Self(targets))
    }
}

/// Format and filter, as the environment asks for them.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    /// `ORGSTREAM_LOG_FORMAT`.
    pub format: LogFormat,
    /// `ORGSTREAM_LOG`, else `RUST_LOG`.
    pub filter: LogFilter,
    /// What could not be understood, and so has its default; to be logged once logs are there.
    pub problems: Vec<String>,
}

impl LogSettings {
    /// From the variables that `lookup` gives.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut problems = Vec::new();
        let format = setting(&lookup, &["ORGSTREAM_LOG_FORMAT"], &mut problems);
        let filter = setting(&lookup, &["ORGSTREAM_LOG", "RUST_LOG"], &mut problems);
        Self {
            format,
            filter,
            problems,
        }
    }
}

/// The first of `names` that is set and not blank.
fn setting<T>(
    lookup: &impl Fn(&str) -> Option<String>,
    names: &[&str],
    problems: &mut Vec<String>,
) -> T
where
    T: FromStr<Err: std::fmt::Display> + Default,
{
    let given = names.iter().find_map(|name| {
        let value = lookup(name).filter(|value| !value.trim().is_empty())?;
        Some((name, value))
    });
    match given.map(|(name, value)| (name, value.parse())) {
        None => T::default(),
        Some((_, Ok(value))) => value,
        Some((name, Err(error))) => {
            problems.push(format!("{name}: {error}; the default is used"));
            T::default()
        }
    }
}

/// Sends the process's logs to standard error.
///
/// # Errors
///
/// Something else in this process already receives them.
pub fn init(format: LogFormat, filter: LogFilter) -> Result<(), SetGlobalDefaultError> {
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let format = match format {
        LogFormat::Auto if terminal => LogFormat::Pretty,
        LogFormat::Auto => LogFormat::Logfmt,
        other => other,
    };
    let subscriber = Registry::default()
        .with(layer(format, colour, io::stderr))
        .with(filter.0);
    tracing::subscriber::set_global_default(subscriber)
}

/// [`init`] as the environment asks for it; logs what it could not understand.
///
/// # Errors
///
/// As [`init`].
pub fn init_from_env() -> Result<(), SetGlobalDefaultError> {
    let settings = LogSettings::from_env(|name| std::env::var(name).ok());
    init(settings.format, settings.filter)?;
    for problem in settings.problems {
        tracing::warn!("{problem}");
    }
    Ok(())
}

fn layer<W>(format: LogFormat, colour: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer()
        .with_writer(writer)
        // Else a standard error that cannot be written would be reported there, and that panics.
        .log_internal_errors(false);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_timer(Clock).boxed(),
        LogFormat::Pretty => layer.compact().with_ansi(colour).with_timer(Clock).boxed(),
        LogFormat::Auto | LogFormat::Logfmt => layer
            .with_ansi(false)
            .fmt_fields(logfmt::Fields)
            .event_format(logfmt::Lines)
            .boxed(),
    }
}

/// UTC to the millisecond, always of the same width.
#[derive(Debug, Clone, Copy)]
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        w.write_str(&timestamp(SystemTime::now()))
    }
}

fn timestamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (date, (hour, minute, second, millisecond)) = (time.date(), time.to_hms_milli());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let out = captured.clone();
        let filter: LogFilter = filter.parse().unwrap();
        let subscriber = Registry::default()
            .with(layer(format, false, move || out.clone()))
            .with(filter.0);
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no write")]
    struct Failure(#[source] io::Error);

    fn samples() {
        let span = tracing::info_span!(
            "stream",
            subscription = "accounts",
            state = tracing::field::Empty
        );
        let _entered = span.enter();
        span.record("state", "live");
        let cause = Failure(io::Error::other("disk\nfull"));
        tracing::warn!(
            attempts = 3,
            error = &cause as &dyn std::error::Error,
            detail = %"a b",
            "cannot write the \"position\""
        );
        tracing::debug!("not logged");
    }

    #[test]
    fn logfmt_has_time_level_message_and_the_fields_of_span_and_event() {
        let text = logged(LogFormat::Logfmt, "info", samples);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("time=20") && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "level=warn msg=\"cannot write the \\\"position\\\"\" subscription=accounts state=live \
             attempts=3 error=\"no write: disk\\nfull\" detail=\"a b\" target=orgstream::telemetry::tests\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, "info", samples);
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record["level"], "WARN");
        assert_eq!(record["message"], "cannot write the \"position\"");
        assert_eq!(record["attempts"], 3);
        assert_eq!(record["span"]["subscription"], "accounts");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn pretty_has_message_and_fields() {
        let text = logged(LogFormat::Pretty, "info", samples);
        for part in ["WARN", "cannot write", "accounts", "attempts=3"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn filters_name_levels_and_targets() {
        let log = || {
            tracing::info!(target: "h2::client", "frame");
            tracing::warn!(target: "h2::client", "reset");
            tracing::debug!("detail");
        };
        let shown = |filter| logged(LogFormat::Logfmt, filter, log).lines().count();
        assert_eq!(shown(""), 2);
        assert_eq!(shown(" Debug , h2=warn,"), 2);
        assert_eq!(shown("h2=warn"), 1); // the rest stays at info
        assert_eq!(shown("off"), 0);
        for wrong in ["inof", "h2=loud", "=info", "a[span]=info", "h2=warn=info"] {
            assert!(wrong.parse::<LogFilter>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_the_environment_gets_wrong_has_its_default_and_is_told() {
        let env = |name: &str| match name {
            "ORGSTREAM_LOG_FORMAT" => Some("xml".to_owned()),
            "RUST_LOG" => Some("inof".to_owned()),
            _ => Some(" ".to_owned()),
        };
        let settings = LogSettings::from_env(env);
        assert_eq!(settings.format, LogFormat::Auto);
        assert_eq!(settings.filter, LogFilter::default());
        let [format, filter] = &settings.problems[..] else {
            panic!("{:?}", settings.problems);
        };
        assert!(format.starts_with("ORGSTREAM_LOG_FORMAT: `xml` is not a log format"));
        assert!(filter.starts_with("RUST_LOG: `inof` is not part of a log filter"));

        let env = |name: &str| match name {
            "ORGSTREAM_LOG_FORMAT" => Some("JSON".to_owned()),
            "ORGSTREAM_LOG" => Some("debug".to_owned()),
            "RUST_LOG" => Some("error".to_owned()),
            _ => None,
        };
        let settings = LogSettings::from_env(env);
        assert_eq!(settings.format, LogFormat::Json);
        assert_eq!(settings.filter, "debug".parse().unwrap());
        assert!(settings.problems.is_empty());
    }

    #[test]
    fn times_are_utc_to_the_millisecond() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_300_000_050);
        assert_eq!(timestamp(time), "2026-11-21T22:26:40.050Z");
    }
}
