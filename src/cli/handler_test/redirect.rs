//! Standard output lent to standard error, while something runs that may print.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::stdio::dup2_stdout;

use crate::cli::Failure;

/// The real standard output, while what is written to it goes to standard error.
pub(super) struct StandardOutput(OwnedFd);

impl StandardOutput {
    /// From now on what is printed goes to standard error.
    pub(super) fn to_standard_error() -> Result<Self, Failure> {
        let real = io::stdout().as_fd().try_clone_to_owned();
        let real = real.map_err(failed)?;
        dup2_stdout(io::stderr()).map_err(|error| failed(error.into()))?;
        Ok(Self(real))
    }

    /// As it was.
    pub(super) fn restore(self) -> Result<(), Failure> {
        dup2_stdout(self.0).map_err(|error| failed(error.into()))
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::Failed(anyhow::anyhow!("cannot lend standard output: {error}"))
}
