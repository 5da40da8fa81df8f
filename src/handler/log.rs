//! The `log` handler: one CloudEvents JSON object a line on standard output.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::registry::HandlerConfigError;
use super::written::{append_line, longest_line};
use super::{Answer, BatchAnswer, BatchLimits, EventBatch, Handler, Options, Retry};
use crate::config::HandlerConfig;

/// Writes events as CloudEvents JSON, one a line. An event is handled once the operating system has
/// its whole line; while the output cannot be written (closed pipe, full disk) events wait.
///
/// It has no options of its own.
#[derive(Debug, Clone)]
pub struct LogHandler {
    sink: LineSink,
}

impl LogHandler {
    /// A handler that writes to `sink`.
    pub fn new(sink: LineSink) -> Self {
        Self { sink }
    }

    /// A handler that writes to standard output.
    pub(super) fn from_config(config: &HandlerConfig) -> Result<Self, HandlerConfigError> {
        Options::new(config).finish(Some(()))?;
        LineSink::stdout()
            .map(Self::new)
            .map_err(|error| HandlerConfigError::setup(config, format!("standard output: {error}")))
    }
}

#[async_trait]
impl Handler for LogHandler {
    async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
        let sizes = batch.events.iter().map(|event| longest_line(event));
        let mut lines = self.sink.buffer();
        lines.reserve(sizes.sum());
        for event in &batch.events {
            append_line(event, &mut lines);
        }
        let Written { complete, error } = self.sink.write(lines).await;
        let Some(error) = error else {
            return BatchAnswer::HANDLED;
        };
        // A pipe without a reader, a full disk: that is no event's fault.
        let why = format!("cannot write to standard output: {error}");
        let retry = Answer::Retry(Retry::because(why).uncounted());
        if complete == 0 {
            return BatchAnswer::All(retry);
        }
        let count = batch.events.len();
        let mut answers = vec![Answer::Handled; complete.min(count)];
        answers.resize(count, retry);
        BatchAnswer::Each(answers)
    }

    fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            events: 500,
            bytes: 1 << 20,
        }
    }
}

/// An output of whole lines that any number of handlers share. A line is never torn or mixed with
/// another, whether calls run side by side, are cancelled, or the output fails in the middle of one.
///
/// A thread of its own does the writing: an output that blocks holds up neither the runtime nor the end
/// of the process.
#[derive(Debug, Clone)]
pub struct LineSink {
    jobs: mpsc::Sender<Job>,
    /// A buffer that was written, for the next call.
    spare: Arc<Mutex<Vec<u8>>>,
}

/// The largest buffer that is kept for the next call, in bytes.
const MAX_SPARE: usize = 2 << 20;

#[derive(Debug)]
struct Job {
    lines: Vec<u8>,
    reply: oneshot::Sender<Written>,
}

/// How far a job got.
#[derive(Debug, Default)]
struct Written {
    /// Lines that are out completely, where not all are.
    complete: usize,
    /// Why the rest is not.
    error: Option<String>,
}

impl LineSink {
    /// The one sink for standard output; all callers share it.
    ///
    /// # Errors
    ///
    /// The operating system gives no thread or no file descriptor.
    pub fn stdout() -> io::Result<Self> {
        static STDOUT: OnceLock<LineSink> = OnceLock::new();
        if let Some(sink) = STDOUT.get() {
            return Ok(sink.clone());
        }
        let sink = Self::start(Output::stdout()?)?;
        Ok(STDOUT.get_or_init(|| sink).clone())
    }

    /// A sink that writes to `out`. What `out` accepts counts as written, so it must not be a buffer that
    /// can fail later; it is flushed after each call.
    ///
    /// # Errors
    ///
    /// The operating system gives no thread.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::start(Output::Other(Box::new(out)))
    }

    fn start(output: Output) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(16);
        let spare = Arc::<Mutex<Vec<u8>>>::default();
        let written = spare.clone();
        std::thread::Builder::new()
            .name("orgstream-log".into())
            .spawn(move || run(output, queue, &written))?;
        Ok(Self { jobs, spare })
    }

    /// An empty buffer for lines.
    fn buffer(&self) -> Vec<u8> {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes lines, each with its newline. Dropping the future while they wait takes them back; once
    /// begun they are written to the end.
    async fn write(&self, lines: Vec<u8>) -> Written {
        let (reply, written) = oneshot::channel();
        let ended = || Written {
            complete: 0,
            error: Some("the thread that writes it has ended".into()),
        };
        if self.jobs.send(Job { lines, reply }).await.is_err() {
            return ended();
        }
        written.await.unwrap_or_else(|_| ended())
    }
}

enum Output {
    /// Standard output without the standard library's buffer, whose state after an error is unknown.
    #[cfg(unix)]
    Stdout(File),
    Other(Box<dyn Write + Send>),
}

impl Output {
    #[cfg(unix)]
    fn stdout() -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::Stdout(File::from(descriptor)))
    }

    #[cfg(not(unix))]
    fn stdout() -> io::Result<Self> {
        Ok(Self::Other(Box::new(io::stdout())))
    }

    fn write(&mut self, torn: &mut Vec<u8>, lines: &[u8]) -> Written {
        match self {
            #[cfg(unix)]
            Self::Stdout(file) => {
                // Held so that nothing that is printed gets between our lines.
                let mut stdout = io::stdout().lock();
                match stdout.flush() {
                    Ok(()) => write_lines(file, torn, lines),
                    Err(error) => Written {
                        complete: 0,
                        error: Some(error.to_string()),
                    },
                }
            }
            Self::Other(out) => write_lines(out, torn, lines),
        }
    }
}

fn run(mut output: Output, mut queue: mpsc::Receiver<Job>, spare: &Mutex<Vec<u8>>) {
    // The rest of a line whose beginning is out already: it has to come before anything else.
    let mut torn = Vec::new();
    while let Some(Job { mut lines, reply }) = queue.blocking_recv() {
        if reply.is_closed() {
            continue; // its caller was cancelled and will hand the events over again
        }
        let written = output.write(&mut torn, &lines);
        if lines.capacity() <= MAX_SPARE {
            lines.clear();
            *spare.lock().unwrap_or_else(PoisonError::into_inner) = lines;
        }
        // The caller may have gone meanwhile; then the lines come twice, which handlers may do.
        let _ = reply.send(written);
    }
}

fn write_lines(out: &mut impl Write, torn: &mut Vec<u8>, lines: &[u8]) -> Written {
    let (accepted, failure) = write_some(out, torn);
    torn.drain(..accepted);
    if let Some(error) = failure {
        return Written {
            complete: 0,
            error: Some(error.to_string()),
        };
    }
    let (accepted, failure) = write_some(out, lines);
    let (done, rest) = lines.split_at(accepted);
    if done.last().is_some_and(|byte| *byte != b'\n') {
        let end = rest.iter().position(|byte| *byte == b'\n');
        torn.extend_from_slice(&rest[..end.map_or(rest.len(), |end| end + 1)]);
    }
    match failure.or_else(|| out.flush().err()) {
        // Nobody asks how many.
        None => Written::default(),
        Some(error) => Written {
            complete: memchr::memchr_iter(b'\n', done).count(),
            error: Some(error.to_string()),
        },
    }
}

/// Writes what `out` accepts: the number of bytes, and the error that ended it early.
fn write_some(out: &mut impl Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut accepted = 0;
    while accepted < bytes.len() {
        match out.write(&bytes[accepted..]) {
            Ok(0) => return (accepted, Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => accepted += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (accepted, Some(error)),
        }
    }
    (accepted, None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::batch;
    use super::*;

    /// Accepts at most `step` bytes a call and `room` bytes in all, then fails until there is room again.
    #[derive(Clone)]
    struct Narrow {
        step: usize,
        state: Arc<Mutex<(usize, Vec<u8>)>>,
    }

    impl Narrow {
        fn new(step: usize, room: usize) -> Self {
            Self {
                step,
                state: Arc::new(Mutex::new((room, Vec::new()))),
            }
        }

        fn make_room(&self) {
            self.state.lock().unwrap().0 = usize::MAX;
        }

        fn ids(&self) -> Vec<String> {
            let text = String::from_utf8(self.state.lock().unwrap().1.clone()).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            text.lines()
                .map(|line| {
                    let event: serde_json::Value = serde_json::from_str(line).unwrap();
                    event["eventuuid"].as_str().unwrap().to_owned()
                })
                .collect()
        }
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, written) = &mut *self.state.lock().unwrap();
            let count = bytes.len().min(self.step).min(*room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= count;
            written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn handler(out: impl Write + Send + 'static) -> LogHandler {
        LogHandler::new(LineSink::new(out).unwrap())
    }

    #[tokio::test]
    async fn each_event_is_one_line() {
        let out = Narrow::new(usize::MAX, usize::MAX);
        let answer = handler(out.clone())
            .handle(&batch(&["{}", "{\n \"a\": \"x\\ny\"\n}"]))
            .await;
        assert_eq!(answer, BatchAnswer::HANDLED);
        assert_eq!(out.ids(), ["event-0", "event-1"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn lines_of_handlers_that_share_a_sink_do_not_mix() {
        let out = Narrow::new(7, usize::MAX);
        let sink = LineSink::new(out.clone()).unwrap();
        let calls = (0..20).map(|_| {
            let handler = LogHandler::new(sink.clone());
            tokio::spawn(async move { handler.handle(&batch(&["{}", "{}", "{}"])).await })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), BatchAnswer::HANDLED);
        }
        let ids = out.ids();
        assert_eq!(ids.len(), 60);
        assert!(
            ids.chunks(3)
                .all(|batch| batch == ["event-0", "event-1", "event-2"])
        );
    }

    #[tokio::test]
    async fn whatever_the_byte_an_output_fails_at_no_line_is_torn_and_no_event_is_lost() {
        let whole = Narrow::new(usize::MAX, usize::MAX);
        handler(whole.clone()).handle(&batch(&["{}", "{}"])).await;
        let length = whole.state.lock().unwrap().1.len();
        for room in 0..length {
            let out = Narrow::new(50, room);
            let handler = handler(out.clone());
            let handled = match handler.handle(&batch(&["{}", "{}"])).await {
                BatchAnswer::All(Answer::Retry(_)) => 0,
                BatchAnswer::Each(answers) => {
                    assert_eq!(answers[0], Answer::Handled);
                    assert!(matches!(&answers[1..], [Answer::Retry(retry)] if !retry.counts));
                    1
                }
                other => panic!("{other:?} with room for {room} bytes only"),
            };
            assert_eq!(handled, usize::from(room >= length / 2), "room {room}");

            out.make_room();
            let rest = EventBatch {
                subscription: "orders".into(),
                events: batch(&["{}", "{}"]).events.split_off(handled),
                strict: false,
            };
            assert_eq!(handler.handle(&rest).await, BatchAnswer::HANDLED);
            let mut ids = out.ids(); // parses every line
            ids.dedup();
            assert_eq!(ids, ["event-0", "event-1"], "room {room}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_closed_pipe_is_a_retry() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        match handler(writer).handle(&batch(&["{}"])).await {
            BatchAnswer::All(Answer::Retry(retry)) => {
                assert!(retry.reason.contains("roken pipe"), "{}", retry.reason);
                assert!(!retry.counts);
            }
            other => panic!("{other:?}"),
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_cancelled_call_neither_blocks_the_runtime_nor_tears_a_line() {
        use std::io::Read as _;
        let (mut reader, writer) = io::pipe().unwrap();
        let handler = handler(writer);
        // More than a pipe holds: the write stops in the middle of a line.
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
        let begun = batch(&[&large]);
        let first = tokio::task::spawn_blocking(move || {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            (reader, byte)
        });
        let (mut reader, byte) = tokio::select! {
            biased;
            first = first => first.unwrap(),
            answer = handler.handle(&begun) => panic!("{answer:?}"),
        };
        // Takes its events back before they are begun.
        let waiting = batch(&["{}", "{}", "{}"]);
        let call = handler.handle(&waiting);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), call)
                .await
                .is_err()
        );

        let read = tokio::task::spawn_blocking(move || {
            let mut text = byte.to_vec();
            reader.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        let answer = handler.handle(&batch(&["{}", "{}"])).await;
        assert_eq!(answer, BatchAnswer::HANDLED);
        drop(handler);
        let text = read.await.unwrap();
        let lengths: Vec<bool> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap();
                line.len() > 1 << 20
            })
            .collect();
        assert_eq!(lengths, [true, false, false]);
    }
}
