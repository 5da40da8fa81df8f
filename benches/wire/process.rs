//! Processes that are measured: their processor time and memory, as the kernel tells them.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const MIB: f64 = 1024.0;

/// The program that is measured: this build's, unless another is named.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os("ORGSTREAM_BENCH_PROGRAM").filter(|at| !at.is_empty());
    named.map_or_else(|| env!("CARGO_BIN_EXE_orgstream").into(), PathBuf::from)
}

/// A process of ours; killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    id: u32,
    // Its end is what a client waits for.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts it; its standard error is ours.
    pub(crate) fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let id = child.id().with_context(|| format!("{name} ended"))?;
        Ok(Self {
            name: name.to_owned(),
            id,
            _stdin: child.stdin.take(),
            child,
        })
    }

    /// The lines of its standard output, where that is a pipe.
    pub(crate) fn lines(&mut self) -> anyhow::Result<Lines<BufReader<ChildStdout>>> {
        let stdout = self.child.stdout.take().context("no standard output")?;
        Ok(BufReader::with_capacity(1 << 18, stdout).lines())
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id))
            .with_context(|| format!("{} ended", self.name))?;
        // The name before it may hold spaces.
        let (_, fields) = stat.rsplit_once(") ").context("no /proc/…/stat")?;
        let ticks = |index: usize| -> anyhow::Result<f64> {
            let field = fields.split(' ').nth(index).context("a short stat")?;
            Ok(field.parse()?)
        };
        let in_a_second = rustix::param::clock_ticks_per_second() as f64;
        Ok((ticks(11)? + ticks(12)?) / in_a_second)
    }

    /// Resident memory now, in MiB.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        self.status("VmRSS:")
    }

    /// The most resident memory that it ever had, in MiB.
    pub(crate) fn peak_mib(&self) -> anyhow::Result<f64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id))
            .with_context(|| format!("{} ended", self.name))?;
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib
            .context("no such line in /proc/…/status")?
            .parse::<f64>()?
            / MIB)
    }

    /// Ends it in order, as a platform does.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let id = i32::try_from(self.id)?;
        let id = rustix::process::Pid::from_raw(id).context("no process")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Ends it at once.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}
