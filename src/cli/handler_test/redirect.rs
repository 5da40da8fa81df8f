//! Standard output lent to standard error, while something runs that may print.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::stdio::dup2_stdout;

use crate::cli::Failure;

/// The real standard output, while what is written to it goes to standard error; as it was, once this is dropped.
pub(super) struct StandardOutput(OwnedFd);

impl StandardOutput {
    /// From now on what is printed goes to standard error.
    pub(super) fn to_standard_error() -> Result<Self, Failure> {
        let failed =
            |error: io::Error| anyhow::anyhow!("cannot lend standard output to a handler: {error}");
        let real = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        dup2_stdout(io::stderr()).map_err(|error| failed(error.into()))?;
        Ok(Self(real))
    }
}

impl Drop for StandardOutput {
    fn drop(&mut self) {
        // Fails for no descriptor that is open, and this one is.
        let _ = dup2_stdout(&self.0);
    }
}
