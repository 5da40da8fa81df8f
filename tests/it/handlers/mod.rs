//! Handlers against what they write to: the daemon, the emulator and the far side, each a process.

mod custom;
mod endurance;
mod exec;
mod postgres;
mod webhook;
