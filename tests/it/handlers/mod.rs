//! Handlers against what they write to: the daemon, the emulator and the far side, each a process.

mod endurance;
mod postgres;
