//! A small disk, to be full.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A disk in memory; it is gone when dropped.
pub(crate) struct Disk {
    at: PathBuf,
    _own: Option<TempDir>,
}

impl Disk {
    /// One of this size, in a folder of its own. `None`, with a line that says so, where this process may not mount
    /// one.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let own = TempDir::with_prefix_in("orgstream-disk-", "/tmp").unwrap();
        let mut disk = Self::over(own.path(), size)?;
        disk._own = Some(own);
        Some(disk)
    }

    /// As [`Disk::mount`], over a folder that is there.
    pub(crate) fn over(folder: &Path, size: &str) -> Option<Self> {
        let at = folder.to_owned();
        let options = format!("size={size},mode=0777");
        if mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], &at) {
            return Some(Self { at, _own: None });
        }
        println!("skipped: no right to mount a small disk");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Gives it more room.
    pub(crate) fn grow(&self) {
        assert!(mount(&["-o", "remount,size=64m"], &self.at));
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.at.join("ballast")).unwrap();
        for piece in [1 << 16, 1 << 10, 1] {
            while file
                .write(&vec![0; piece])
                .is_ok_and(|written| written == piece)
            {}
        }
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    let done = Command::new("mount").args(args).arg(at).output();
    done.is_ok_and(|output| output.status.success())
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
